//! Which losses there are.

use super::table::LossDef;
use crate::choice::Choice;

/// Declares the table: a variant of [`LossType`] and the file that has its row, in the order of the kernel's table.
macro_rules! losses {
    ($($variant:ident = $file:ident,)+) => {
        /// Losses by TRL's `loss_type`, where TRL has them; each is described in its row of [`LOSSES`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
        #[allow(missing_docs)]
        pub enum LossType { #[default] $($variant,)+ }

        /// Every loss, in the order of [`LossType`].
        pub const LOSSES: &[LossDef] = &[$(super::$file::DEF,)+];

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
    Aot = aot,
    AotUnpaired = aot_unpaired,
    BetaDpo = beta_dpo,
    Kto = kto,
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
