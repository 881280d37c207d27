//! The names of a [`Choice`] on the command line.

use crate::choice::Choice;
use crate::train::choices::DeviceChoice;
use crate::train::report_options::ReportTo;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Arg, Command};
use std::ffi::OsStr;
use std::str::FromStr;

/// Parses [`ReportTo`], and says of who else might be meant what there is for them.
#[derive(Clone, Copy)]
pub struct Reports;

impl TypedValueParser for Reports {
    type Value = ReportTo;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<ReportTo, clap::Error> {
        let known = |name: &str| ReportTo::named(name).ok_or_else(|| ReportTo::elsewhere(name));
        TypedValueParser::parse_ref(&known, command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        named::<ReportTo>()
            .possible_values()
            .map(|all| all.collect::<Vec<_>>().into_iter())
            .map(|all| Box::new(all) as _)
    }
}

/// Parses a [`DeviceChoice`]; help lists its names with their descriptions.
#[derive(Clone, Copy)]
pub struct Devices;

impl TypedValueParser for Devices {
    type Value = DeviceChoice;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<DeviceChoice, clap::Error> {
        let known = |text: &str| DeviceChoice::from_str(text).map_err(|_| format!("possible values: {}", names()));
        TypedValueParser::parse_ref(&known, command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(DeviceChoice::NAMES.into_iter().map(|(name, about)| PossibleValue::new(name).help(about))))
    }
}

/// Of devices.
fn names() -> String {
    DeviceChoice::NAMES.map(|(name, _)| name).join(", ")
}

/// Parses a [`Choice`] by name or alias; help lists the names with their descriptions.
pub fn named<T: Choice>() -> impl TypedValueParser<Value = T> {
    let values =
        T::ALL.iter().map(|c| PossibleValue::new(c.name()).help(c.about()).aliases(c.aliases().iter().copied()));
    PossibleValuesParser::new(values).map(|name| T::named(&name).expect("clap lets only names through"))
}
