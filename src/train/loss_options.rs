//! Options of the loss: which, or which sum, and every hyper-parameter of the table.

use super::group::options;
use crate::error::{Error, Result};
use crate::loss::{Divergence, LossSpec, LossType, MOST_TERMS, PARAMS, Param, Term};
use crate::loss_params;
use serde::de::Deserializer;
use serde::{Deserialize, Serialize, Serializer};

/// One loss or several: `"sigmoid"`, `"sigmoid,sft"` or `["sigmoid", "sft"]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LossTypes(pub Vec<LossType>);

impl From<LossType> for LossTypes {
    fn from(loss_type: LossType) -> Self {
        Self(vec![loss_type])
    }
}

impl Serialize for LossTypes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(to),
            many => many.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for LossTypes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Text(String),
            List(Vec<String>),
        }
        let names = match Written::deserialize(from)? {
            Written::Text(text) => text.split(',').map(|name| name.trim().to_owned()).collect(),
            Written::List(names) => names,
        };
        let named = |name: String| LossType::deserialize(serde::de::value::StringDeserializer::new(name));
        names.into_iter().map(named).collect::<Result<_, _>>().map(Self)
    }
}

/// Writes [`LossOptions`] with a field for every hyper-parameter of the table.
macro_rules! with_params {
    ($(#[doc = $about:literal] $field:ident $variant:ident $range:ident $want:literal;)+) => {
        options! {
            /// The loss.
            pub struct LossOptions {
                /// Which loss, or which losses of a sum.
                loss_type: LossTypes = LossType::Sigmoid.into();
                /// Weight of each loss of a sum; `None`: 1.
                loss_weights: Option<Vec<f64>> = None;
                /// What keeps the policy near the reference; `None`: the reverse KL.
                f_divergence_type: Option<Divergence> = None;
                /// Exponent of the alpha divergence; `None`: 0.5, where it is that.
                f_alpha_divergence_coef: Option<f64> = None;
                /// LD-DPO: how much tokens beyond the length of a pair's shorter response count; `None`: as the others.
                ld_alpha: Option<f64> = None;
                /// WPO: pairs count by how likely the policy is to write them; `None`: no.
                use_weighting: Option<bool> = None;
                $(#[doc = $about] $field: Option<f64> = None;)+
            }
        }

        impl LossOptions {
            /// Every hyper-parameter as it is given.
            fn params(&self) -> [(Param, Option<f64>); PARAMS] {
                [$((Param::$variant, self.$field),)+]
            }

            fn param_mut(&mut self, param: Param) -> &mut Option<f64> {
                match param { $(Param::$variant => &mut self.$field,)+ }
            }
        }
    };
}
loss_params!(with_params);

impl LossOptions {
    /// Checks the loss, and writes the defaults of its hyper-parameters where they are not given.
    ///
    /// Errors: [`Error::Usage`]: what is out of its domain, what the loss would ignore, what has no meaning together.
    pub fn resolve(&mut self) -> Result<LossSpec> {
        let types = &self.loss_type.0;
        if types.is_empty() || types.len() > MOST_TERMS {
            return Err(Error::usage(format!("`loss_type`: {} losses; name 1 to {MOST_TERMS}", types.len())));
        }
        if let Some(weights) = self.loss_weights.as_ref().filter(|w| w.len() != types.len()) {
            let (weights, losses) = (weights.len(), types.len());
            return Err(Error::usage(format!("`loss_weights`: {weights} weights for {losses} losses; give one each")));
        }
        let spec = self.spec();
        self.refuse_ignored(&spec)?;
        for (param, _) in self.params().into_iter().filter(|(_, given)| given.is_none()) {
            let mut values = spec.terms().iter().filter(|t| t.has(param)).map(|t| t.params[param]);
            // Losses of a sum may each have a default of their own: then nothing is written.
            if let Some(value) = values.next().filter(|first| values.all(|v| v == *first)) {
                *self.param_mut(param) = Some(value);
            }
        }
        if !spec.is_sft() {
            (self.f_divergence_type, self.use_weighting) = (Some(spec.divergence), Some(spec.use_weighting));
        }
        if spec.divergence == Divergence::AlphaDivergence {
            self.f_alpha_divergence_coef.get_or_insert(spec.f_alpha);
        }
        spec.check()?;
        Ok(spec)
    }

    /// Options without an effect.
    fn refuse_ignored(&self, spec: &LossSpec) -> Result<()> {
        let name = spec.name();
        let given = self.params().into_iter().filter_map(|(param, given)| Some((param, given?)));
        let nothing = |param, value| param == Param::LabelSmoothing && value == 0.0;
        for (param, value) in given {
            if !spec.has(param) && !nothing(param, value) {
                let option = param.name();
                let with: Vec<&str> =
                    LossType::EVERY.iter().filter(|l| Term::of(**l).has(param)).map(|l| l.def().name).collect();
                let with = if with.len() > 4 { "another loss".to_owned() } else { with.join(" or ") };
                let why = format!("`{option}`: not defined for `loss_type` {name}; leave it out, or use {with}");
                return Err(Error::usage(why));
            }
        }
        if self.use_weighting == Some(true) && spec.is_sft() {
            let why = format!("`use_weighting`: the {name} loss weighs no pairs; leave it out");
            return Err(Error::usage(why));
        }
        if self.f_alpha_divergence_coef.is_some() && spec.divergence != Divergence::AlphaDivergence {
            let why = "`f_alpha_divergence_coef`: only `f_divergence_type` alpha_divergence has it; leave it out";
            return Err(Error::usage(why));
        }
        Ok(())
    }

    /// The loss that these options say.
    pub fn spec(&self) -> LossSpec {
        let weights = self.loss_weights.iter().flatten().copied().chain(std::iter::repeat(1.0));
        let terms = self.loss_type.0.iter().zip(weights).take(MOST_TERMS);
        let terms: Vec<Term> = terms.map(|(loss_type, weight)| Term { weight, ..Term::of(*loss_type) }).collect();
        let given = self.params().into_iter().filter_map(|(param, given)| Some((param, given?)));
        let mut spec = given.fold(LossSpec::sum(&terms), |spec, (param, value)| spec.with(param, value));
        spec.divergence = self.f_divergence_type.unwrap_or_default();
        spec.f_alpha = self.f_alpha_divergence_coef.unwrap_or(spec.f_alpha);
        (spec.ld_alpha, spec.use_weighting) = (self.ld_alpha, self.use_weighting.unwrap_or(false));
        spec
    }
}
