//! Hyper-parameters of losses: each with its name, its meaning and its domain, once.

use crate::error::{Error, Result};
use std::ops::{Index, IndexMut};

/// Calls `$then!` with a line for every hyper-parameter: its description, field, variant, the values it may have, and those
/// in words. Who declares options of them (a run, a command) reads them from here.
#[doc(hidden)]
#[macro_export]
macro_rules! loss_params {
    ($then:path) => {
        $then! {
            /// Strength of the pull towards the reference (DPO eq. 7); without a reference the scale of the reward
            beta Beta above_0 "a finite number greater than 0";
            /// Probability that a label is flipped
            label_smoothing LabelSmoothing below_half "in [0, 0.5)";
            /// Temperature of discopop's blend
            discopop_tau DiscopopTau above_0 "a finite number greater than 0";
            /// Margin of reward that is asked for
            simpo_gamma SimpoGamma finite "a finite number";
            /// Exponent of alphapo's reward; towards 0 it is simpo
            alphapo_alpha AlphapoAlpha not_0 "a finite number other than 0";
            /// Weight of the chosen response's mean token loss in cpo
            cpo_alpha CpoAlpha from_0 "a finite number, 0 or more";
            /// Weight of the chosen response's mean token loss in rpo
            rpo_alpha RpoAlpha from_0 "a finite number, 0 or more";
            /// Weight of the chosen response's loss in slic
            slic_lambda SlicLambda from_0 "a finite number, 0 or more";
            /// Weight of the rejected response in unlikelihood
            unlikelihood_alpha UnlikelihoodAlpha from_0 "a finite number, 0 or more";
            /// Penalty on a chosen response that falls below the reference, in dpop
            dpop_lambda DpopLambda from_0 "a finite number, 0 or more";
            /// Margin for each unit of log score difference, in odpo
            odpo_alpha OdpoAlpha from_0 "a finite number, 0 or more";
            /// Margin for each token of length difference, in rdpo
            rdpo_alpha RdpoAlpha from_0 "a finite number, 0 or more";
            /// Scale of the score difference whose sigmoid is soft_label's label
            soft_label_scale SoftLabelScale above_0 "a finite number greater than 0";
            /// How far the batch's mean reward margin moves beta, in beta_dpo
            beta_dpo_alpha BetaDpoAlpha from_0 "a finite number, 0 or more";
            /// How slowly beta_dpo's running mean and deviation follow
            beta_dpo_momentum BetaDpoMomentum share "in [0, 1)";
            /// Share of a batch's pairs that beta_dpo keeps
            beta_dpo_keep BetaDpoKeep part "in (0, 1]";
            /// Weight of desirable responses, in kto
            desirable_weight DesirableWeight from_0 "a finite number, 0 or more";
            /// Weight of undesirable responses, in kto
            undesirable_weight UndesirableWeight from_0 "a finite number, 0 or more";
        }
    };
}

macro_rules! define {
    ($(#[doc = $about:literal] $field:ident $variant:ident $range:ident $want:literal;)+) => {
        /// A hyper-parameter of one loss or several.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Param { $(#[doc = $about] $variant,)+ }

        impl Param {
            /// Every one.
            pub const ALL: &'static [Param] = &[$(Param::$variant,)+];

            /// Its option.
            pub const fn name(self) -> &'static str {
                match self { $(Param::$variant => stringify!($field),)+ }
            }

            /// What it means.
            pub fn about(self) -> &'static str {
                match self { $(Param::$variant => $about,)+ }.trim()
            }

            /// The values that it may have, in words.
            pub const fn domain(self) -> &'static str {
                match self { $(Param::$variant => $want,)+ }
            }

            fn allows(self, x: f64) -> bool {
                match self { $(Param::$variant => $range(x),)+ }
            }
        }
    };
}
loss_params!(define);

fn finite(x: f64) -> bool {
    x.is_finite()
}
fn above_0(x: f64) -> bool {
    x.is_finite() && x > 0.0
}
fn from_0(x: f64) -> bool {
    x.is_finite() && x >= 0.0
}
fn not_0(x: f64) -> bool {
    x.is_finite() && x != 0.0
}
fn below_half(x: f64) -> bool {
    (0.0..0.5).contains(&x)
}
fn share(x: f64) -> bool {
    (0.0..1.0).contains(&x)
}
fn part(x: f64) -> bool {
    x > 0.0 && x <= 1.0
}

impl Param {
    /// The option called `name`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|p| p.name() == name)
    }

    /// Refuses what is outside its domain. Errors: [`Error::Usage`], the option by its name.
    pub fn check(self, x: f64) -> Result<()> {
        match self.allows(x) {
            true => Ok(()),
            false => Err(Error::usage(format!("`{}` {x}: must be {}", self.name(), self.domain()))),
        }
    }
}

/// How many there are.
pub const PARAMS: usize = Param::ALL.len();

/// A value for every hyper-parameter; NaN for those that a loss does not have.
#[derive(Clone, Copy, Debug)]
pub struct Params([f64; PARAMS]);

impl Params {
    /// No values.
    pub const NONE: Params = Params([f64::NAN; PARAMS]);

    /// With `param` at `value`.
    pub const fn with(mut self, param: Param, value: f64) -> Self {
        self.0[param as usize] = value;
        self
    }
}

impl Index<Param> for Params {
    type Output = f64;
    fn index(&self, param: Param) -> &f64 {
        &self.0[param as usize]
    }
}

impl IndexMut<Param> for Params {
    fn index_mut(&mut self, param: Param) -> &mut f64 {
        &mut self.0[param as usize]
    }
}

/// By bits: two losses without a value are alike in it.
impl PartialEq for Params {
    fn eq(&self, o: &Self) -> bool {
        self.0.iter().zip(&o.0).all(|(a, b)| a.to_bits() == b.to_bits())
    }
}
