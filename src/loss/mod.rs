//! The loss table: one file a loss, each a formula with its derivative and source, evaluated in f64.
//!
//! A loss sees sums of token log-probs and gives `dL/dlogp` per response, which the head applies to every token of the
//! response. What a loss must have seen before it can do so is its [`Rule`]. The kernel's device function of the same name
//! is in `kernels/losses.cuh`; a loss is one file here, one function there, and a line in each table.
//!
//! ```
//! use fusedpo::loss::{LossSpec, LossType, Pair, Rule};
//!
//! let spec = LossSpec::of(LossType::Sigmoid).beta(0.1);
//! spec.check()?;
//! // The policy likes the chosen response 2 nats more than the reference does, and the rejected one 1 nat less.
//! let p = Pair {
//!     chosen: -40.0, rejected: -52.0, ref_chosen: -42.0, ref_rejected: -51.0, chosen_len: 20.0, rejected_len: 25.0,
//!     ..Pair::ZERO
//! };
//! let term = &spec.terms()[0];
//! let Rule::Pair(f) = term.def().rule else { panic!("a loss of pairs") };
//! let loss = spec.pair(term, f, &p);
//! assert!((loss.loss - (1.0 + (-0.3_f64).exp()).ln()).abs() < 1e-12); // -log sigmoid(0.1 * 3)
//! assert!(loss.d_chosen < 0.0 && loss.d_rejected == -loss.d_chosen);
//! # Ok::<(), fusedpo::Error>(())
//! ```

mod divergence;
mod explain;
pub mod math;
mod pair;
mod params;
mod spec;
mod step;
mod table;

mod alphapo;
mod apo_down;
mod apo_zero;
mod bco_pair;
mod cpo;
mod discopop;
mod dpop;
mod exo_pair;
mod hinge;
mod ipo;
mod ipo_sum;
mod nca_pair;
mod odpo;
mod orpo;
mod plackett_luce;
mod rdpo;
mod robust;
mod rpo;
mod sft;
mod sigmoid;
mod sigmoid_norm;
mod simpo;
mod slic;
mod soft_label;
mod sppo_hard;
mod unlikelihood;

pub use divergence::Divergence;
pub use explain::{Explained, Given, NOTATION, explain, notation};
pub use pair::{Pair, PairLoss};
pub use params::{PARAMS, Param, Params};
pub use spec::{LossSpec, MOST_TERMS, Scales, Term};
pub use step::{Judged, Running, StepPairs};
pub use table::{Lengths, LossDef, MOST_PARAMS, Rule, Scope};

use crate::choice::Choice;

/// Declares the table: a variant of [`LossType`] and the file that has its row, in the order of the kernel's table.
macro_rules! losses {
    ($($variant:ident = $file:ident,)+) => {
        /// Losses by TRL's `loss_type`, where TRL has them; each is described in its row of [`LOSSES`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
        #[allow(missing_docs)]
        pub enum LossType { #[default] $($variant,)+ }

        /// Every loss, in the order of [`LossType`].
        pub const LOSSES: &[LossDef] = &[$($file::DEF,)+];

        impl LossType {
            /// Every loss.
            pub const EVERY: &'static [LossType] = &[$(LossType::$variant,)+];
        }
    };
}

losses! {
    Sigmoid = sigmoid,
    Robust = robust,
    Hinge = hinge,
    Ipo = ipo,
    IpoSum = ipo_sum,
    ExoPair = exo_pair,
    NcaPair = nca_pair,
    BcoPair = bco_pair,
    SppoHard = sppo_hard,
    ApoZero = apo_zero,
    ApoDown = apo_down,
    Discopop = discopop,
    SigmoidNorm = sigmoid_norm,
    Rpo = rpo,
    Dpop = dpop,
    Odpo = odpo,
    SoftLabel = soft_label,
    Rdpo = rdpo,
    Simpo = simpo,
    Alphapo = alphapo,
    Cpo = cpo,
    Orpo = orpo,
    Slic = slic,
    Unlikelihood = unlikelihood,
    Sft = sft,
    PlackettLuce = plackett_luce,
}

impl LossType {
    /// Its row of [`LOSSES`].
    pub fn def(self) -> &'static LossDef {
        &LOSSES[self as usize]
    }
}

impl Choice for LossType {
    const ALL: &'static [Self] = Self::EVERY;
    fn name(self) -> &'static str {
        self.def().name
    }
    fn about(self) -> &'static str {
        self.def().about
    }
    fn aliases(self) -> &'static [&'static str] {
        &[]
    }
}

impl std::fmt::Display for LossType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl serde::Serialize for LossType {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl<'de> serde::Deserialize<'de> for LossType {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        crate::choice::by_name(from)
    }
}
