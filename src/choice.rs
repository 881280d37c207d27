//! Enums that a user names: on the command line, in `--config`, in `config.toml`. Their names and descriptions stand
//! beside their variants, in one place, and nothing here knows who asks for them.

use serde::de::{Deserializer, Error, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// An enum that a user names. [`choice!`](crate::choice!) writes it.
pub trait Choice: Copy + Eq + fmt::Debug + Send + Sync + 'static {
    /// Every value, in the order in which they are shown.
    const ALL: &'static [Self];

    /// What a user writes.
    fn name(self) -> &'static str;

    /// What it means, for a list of the values: the variant's documentation.
    fn about(self) -> &'static str;

    /// Other names that are understood.
    fn aliases(self) -> &'static [&'static str];

    /// The value called `name`, by its name or an alias.
    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|c| c.name() == name || c.aliases().contains(&name))
    }
}

/// Declares enums that a user names, with [`Choice`], `Default`, `Display`, and serde's traits by name.
///
/// ```
/// use fusedpo::choice::Choice;
///
/// fusedpo::choice! {
///     /// How loud.
///     pub enum Volume: default Soft {
///         /// For people.
///         Soft = "soft" | "piano",
///         /// For crowds.
///         Loud = "loud",
///     }
/// }
///
/// assert_eq!(Volume::named("piano"), Some(Volume::Soft));
/// assert_eq!((Volume::default().name(), Volume::Loud.about()), ("soft", "For crowds"));
/// ```
#[macro_export]
macro_rules! choice {
    ($(#[$meta:meta])* $vis:vis enum $name:ident: default $default:ident {
        $($(#[doc = $about:literal])+ $variant:ident = $text:literal $(| $alias:literal)*,)+
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        $vis enum $name { $($(#[doc = $about])+ $variant,)+ }

        impl $crate::choice::Choice for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
            fn about(self) -> &'static str {
                $crate::choice::sentence(match self { $(Self::$variant => concat!($($about),+),)+ })
            }
            fn aliases(self) -> &'static [&'static str] {
                match self { $(Self::$variant => &[$($alias),*],)+ }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::$default
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad($crate::choice::Choice::name(*self))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str($crate::choice::Choice::name(*self))
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                $crate::choice::by_name(from)
            }
        }
    };
}

/// Documentation as an entry of a list: no space before it, no full stop after it.
#[doc(hidden)]
pub fn sentence(doc: &'static str) -> &'static str {
    let doc = doc.trim();
    doc.strip_suffix('.').unwrap_or(doc)
}

/// Reads a [`Choice`] by its name.
#[doc(hidden)]
pub fn by_name<'de, T: Choice, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    struct Name<T>(PhantomData<T>);

    impl<T: Choice> Visitor<'_> for Name<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a name")
        }
        fn visit_str<E: Error>(self, name: &str) -> Result<T, E> {
            T::named(name).ok_or_else(|| {
                let known = T::ALL.iter().flat_map(|c| [c.name()].into_iter().chain(c.aliases().iter().copied()));
                let known: Vec<String> = known.map(|n| format!("`{n}`")).collect();
                E::custom(format!("unknown variant `{name}`, expected one of {}", known.join(", ")))
            })
        }
    }

    from.deserialize_str(Name(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::Choice;

    choice! {
        /// Two things.
        pub enum Two: default B {
            /// The first; its description
            /// goes on.
            A = "a" | "alpha" | "al",
            /// The second: `\n` stays as it is
            B = "b",
        }
    }

    #[test]
    fn names_aliases_and_descriptions() {
        assert_eq!(Two::ALL, [Two::A, Two::B]);
        assert_eq!(
            ["a", "alpha", "al", "b", "A", ""].map(Two::named),
            [Some(Two::A), Some(Two::A), Some(Two::A), Some(Two::B), None, None]
        );
        assert_eq!(Two::A.about(), "The first; its description goes on");
        assert_eq!(Two::B.about(), r"The second: `\n` stays as it is");
        assert_eq!((Two::default(), format!("{:>3}", Two::B)), (Two::B, "  b".to_owned()));
    }

    #[test]
    fn serde_by_name() {
        assert_eq!(serde_json::to_string(&[Two::A, Two::B]).unwrap(), r#"["a","b"]"#);
        assert_eq!(serde_json::from_str::<Vec<Two>>(r#"["alpha","b"]"#).unwrap(), [Two::A, Two::B]);
        let e = |text| serde_json::from_str::<Two>(text).unwrap_err().to_string();
        let unknown = "unknown variant `c`, expected one of `a`, `alpha`, `al`, `b`";
        assert!(e(r#""c""#).starts_with(unknown), "{}", e(r#""c""#));
        assert!(e("3").starts_with("invalid type: integer `3`, expected a name"), "{}", e("3"));
    }
}
