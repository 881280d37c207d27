//! The shape of a low-rank adapter (LoRA, Hu et al. 2021): which linear layers have one, of which rank, how it is scaled.

use super::sample::{normal, uniform};
use crate::choice;
use crate::error::{Error, Result};
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;

/// A linear layer of every block that can have an adapter: its name in PEFT's `target_modules`, and its place in a layer.
pub const MODULES: [(&str, &str); 7] = [
    ("q_proj", "self_attn.q_proj"),
    ("k_proj", "self_attn.k_proj"),
    ("v_proj", "self_attn.v_proj"),
    ("o_proj", "self_attn.o_proj"),
    ("gate_proj", "mlp.gate_proj"),
    ("up_proj", "mlp.up_proj"),
    ("down_proj", "mlp.down_proj"),
];

/// Largest rank: more than any linear layer has use for.
pub const MOST_RANK: usize = 1 << 16;

/// An adapter's shape. All of its layers have the same rank and scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdapterShape {
    /// Rank.
    pub r: usize,
    /// PEFT's `lora_alpha`.
    pub alpha: f64,
    /// Whether the scale is `alpha / sqrt(r)` (Kalajdzievski 2023, arXiv 2312.03732) and not `alpha / r`.
    pub rslora: bool,
    /// Which of [`MODULES`] have one.
    pub targets: [bool; 7],
    /// Share of the adapter's input that is dropped while it trains, in [0, 1]. With 1 it does not train.
    pub dropout: f64,
}

impl AdapterShape {
    /// Every linear layer of a block, scale `alpha / r`. Errors: [`AdapterShape::check`].
    pub fn new(r: usize, alpha: f64) -> Result<Self> {
        let shape = Self { r, alpha, rslora: false, targets: [true; 7], dropout: 0.0 };
        shape.check()?;
        Ok(shape)
    }

    /// Errors: a rank of 0 or beyond [`MOST_RANK`], an alpha or a dropout that is none, no layer.
    pub fn check(&self) -> Result<()> {
        let why = match self {
            _ if self.r == 0 || self.r > MOST_RANK => format!("rank {} is not from 1 to {MOST_RANK}", self.r),
            _ if !(self.alpha.is_finite() && self.alpha > 0.0) => {
                format!("alpha {} is not a finite number above 0", self.alpha)
            }
            _ if !(0.0..=1.0).contains(&self.dropout) => format!("dropout {} is not from 0 to 1", self.dropout),
            _ if self.targets == [false; 7] => "no module has an adapter".to_owned(),
            _ => return Ok(()),
        };
        Err(Error::usage(why))
    }

    /// [`AdapterShape::check`] of one that is to train. Errors: a dropout of 1, which leaves nothing to train on.
    pub fn check_trains(&self) -> Result<()> {
        self.check()?;
        if self.dropout < 1.0 {
            return Ok(());
        }
        let why = "the adapter's dropout is 1, which leaves nothing to train on: give a `lora_dropout` below 1";
        Err(Error::usage(why))
    }

    /// What the low-rank product is multiplied with.
    pub fn scale(&self) -> f64 {
        let r = self.r as f64;
        self.alpha / if self.rslora { r.sqrt() } else { r }
    }

    /// Names of the layers that have one.
    pub fn target_names(&self) -> impl Iterator<Item = &'static str> {
        MODULES.iter().zip(self.targets).filter(|(_, on)| *on).map(|((name, _), _)| *name)
    }
}

/// The modules that `names` are. Errors: the first that is none of [`MODULES`].
pub fn targets<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<[bool; 7], String> {
    let mut all = [false; 7];
    for name in names {
        let at = MODULES.iter().position(|(n, path)| name == *n || name == *path).ok_or_else(|| name.to_owned())?;
        all[at] = true;
    }
    Ok(all)
}

/// An adapter's weights on the host: small beside the model's.
pub struct AdapterWeights {
    /// Its shape.
    pub shape: AdapterShape,
    /// By the names of the parameter table.
    pub(super) values: HashMap<String, Values>,
    /// The folder that they are from; none where they were made.
    pub path: Option<PathBuf>,
}

/// The values of a tensor. Those of a new adapter are not kept: they take as much as what is trained, and are the same
/// whenever they are drawn.
pub(super) enum Values {
    /// Read.
    Read(Vec<f32>),
    /// As many zeros.
    Zeros(usize),
    /// Drawn: from `init`, for a tensor of so many elements and inputs, by seed and stream.
    Drawn { init: AdapterInit, len: usize, inp: usize, seed: u64, stream: u64 },
}

impl AdapterWeights {
    /// Elements `range` of the tensor of that name, or all; none where it is not the adapter's.
    pub(super) fn get(&self, name: &str, range: Option<Range<usize>>) -> Option<Cow<'_, [f32]>> {
        Some(match self.values.get(name)? {
            Values::Read(values) => Cow::Borrowed(&values[range.unwrap_or(0..values.len())]),
            Values::Zeros(len) => Cow::Owned(vec![0.0; range.map_or(*len, |r| r.len())]),
            Values::Drawn { init, len, inp, seed, stream } => {
                let one = |i: usize| init.draw(&self.shape, *inp, *seed, (*stream, i as u64));
                Cow::Owned(range.unwrap_or(0..*len).map(one).collect())
            }
        })
    }

    /// Whether the tensor of that name is the adapter's.
    pub(super) fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }
}

choice! {
    /// What a new adapter's A is drawn from; B is zero, so that it changes nothing yet.
    pub enum AdapterInit: default Kaiming {
        /// Uniform within 1 / sqrt(inputs): PEFT's default.
        Kaiming = "kaiming" | "true",
        /// Normal with deviation 1 / r.
        Gaussian = "gaussian",
    }
}

impl AdapterInit {
    /// Element `i` of tensor `stream`, which has `inp` inputs.
    pub(super) fn draw(self, shape: &AdapterShape, inp: usize, seed: u64, (stream, i): (u64, u64)) -> f32 {
        // Streams of their own: the same seed draws other things too.
        let stream = stream.wrapping_add(0x10c4_0000);
        match self {
            Self::Kaiming => ((2.0 * uniform(seed, stream, i) - 1.0) / (inp as f64).sqrt()) as f32,
            Self::Gaussian => (normal(seed, stream, i) / shape.r as f64) as f32,
        }
    }
}
