//! The names of a [`Choice`] on the command line.

use crate::choice::Choice;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

/// Parses a [`Choice`] by name or alias; help lists the names with their descriptions.
pub fn named<T: Choice>() -> impl TypedValueParser<Value = T> {
    let values =
        T::ALL.iter().map(|c| PossibleValue::new(c.name()).help(c.about()).aliases(c.aliases().iter().copied()));
    PossibleValuesParser::new(values).map(|name| T::named(&name).expect("clap lets only names through"))
}
