//! How a group of options is declared: each with its description, its default and its range in one place.

use crate::error::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A group of options. `options!` writes it.
pub trait Group: Serialize + DeserializeOwned + Default {
    /// Names of its options: its fields, and its keys in TOML.
    const KEYS: &'static [&'static str];

    /// Refuses values out of range. Errors: [`Error::Usage`], the option by its name.
    fn check(&self) -> Result<()>;
}

/// Takes a group's options out of `table`; the others have their defaults. Errors: the key, and what is wrong with it.
pub fn take<G: Group>(table: &mut toml::Table) -> Result<G, String> {
    let mut mine = toml::Table::new();
    for key in G::KEYS {
        let Some((key, value)) = table.remove_entry(*key) else { continue };
        // One by one, so that the error can name its key.
        let alone: Result<G, _> = toml::Table::from_iter([(key.clone(), value.clone())]).try_into();
        alone.map_err(|e| format!("`{key}`: {}", first_line(&e)))?;
        mine.insert(key, value);
    }
    mine.try_into().map_err(|e| first_line(&e))
}

/// What is wrong with a piece of TOML, in one line.
pub fn first_line(e: &toml::de::Error) -> String {
    e.message().lines().next().unwrap_or("not valid TOML").to_owned()
}

/// Refuses `value` for the option `name`.
pub fn range<T: Shown>(ok: bool, name: &str, value: &T, want: &str) -> Result<()> {
    match ok {
        true => Ok(()),
        false => Err(Error::usage(format!("`{name}` {}: must be {want}", value.shown()))),
    }
}

/// A value as its user would write it.
pub trait Shown {
    /// Short, even where the number is not.
    fn shown(&self) -> String;
}

impl Shown for f64 {
    fn shown(&self) -> String {
        let plain = self.to_string();
        if plain.len() > 24 { format!("{self:e}") } else { plain }
    }
}

impl Shown for u64 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for usize {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl<T: Shown> Shown for Option<T> {
    fn shown(&self) -> String {
        self.as_ref().map_or_else(|| "(not given)".to_owned(), T::shown)
    }
}

/// Finite, and 0 or more.
pub fn finite_from_0(x: &f64) -> bool {
    x.is_finite() && *x >= 0.0
}

/// Declares groups of options: `name: type = default;`, or `name: type = default, in range "in words";` where the range is
/// a function of a reference to the value.
macro_rules! options {
    ($($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$about:meta])* $field:ident: $type:ty = $default:expr $(, in $range:path, $want:literal)?;)+
    })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub struct $name {
            $($(#[$about])* pub $field: $type,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $crate::train::group::Group for $name {
            const KEYS: &'static [&'static str] = &[$(stringify!($field)),+];

            fn check(&self) -> $crate::error::Result<()> {
                $($(
                    let ok: fn(&$type) -> bool = $range;
                    $crate::train::group::range(ok(&self.$field), stringify!($field), &self.$field, $want)?;
                )?)+
                Ok(())
            }
        }
    )+};
}

pub(crate) use options;

#[cfg(test)]
mod tests {
    use super::*;

    options! {
        /// A few.
        pub struct Few {
            /// A share.
            share: f64 = 0.5, in in_0_to_1, "in [0, 1)";
            /// How many, where it is said.
            count: Option<usize> = None;
        }
    }

    fn in_0_to_1(x: &f64) -> bool {
        (0.0..1.0).contains(x)
    }

    #[test]
    fn defaults_keys_and_ranges() {
        let mut table: toml::Table = "count = 3\nother = 1".parse().unwrap();
        let few: Few = take(&mut table).unwrap();
        assert_eq!(few, Few { share: 0.5, count: Some(3) });
        assert_eq!(table.keys().collect::<Vec<_>>(), ["other"]);
        few.check().unwrap();
        let bad = |share| Few { share, count: None }.check().unwrap_err().to_string();
        assert_eq!(bad(1.0), "`share` 1: must be in [0, 1)");
        assert_eq!(bad(f64::NAN), "`share` NaN: must be in [0, 1)");
        assert_eq!(bad(1e300), "`share` 1e300: must be in [0, 1)");
    }

    #[test]
    fn a_wrong_type_names_its_key() {
        let mut table: toml::Table = "count = \"x\"".parse().unwrap();
        let e = take::<Few>(&mut table).unwrap_err();
        assert_eq!(e, "`count`: invalid type: string \"x\", expected usize");
    }
}
