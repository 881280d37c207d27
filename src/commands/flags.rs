//! Where options get their dashes. The library names an option as its field; people type a flag.

use crate::error::Error;
use std::collections::HashSet;

/// The options of the program.
///
/// In an error of the library an option stands as `` `token_budget` ``, which becomes `--token-budget`. Errors about a file
/// quote its keys and columns in the same way, as notes and warnings do, so there an option stands as
/// `` `options.token_budget` ``. What is no option stays as it is.
pub struct Flags(HashSet<String>);

impl Flags {
    /// Of `program` and its commands.
    pub fn of(program: &clap::Command) -> Self {
        let all = program.get_arguments().chain(program.get_subcommands().flat_map(|c| c.get_arguments()));
        Self(all.filter_map(|arg| Some(arg.get_long()?.replace('-', "_"))).collect())
    }

    /// What an error says to people.
    pub fn error(&self, e: &Error) -> String {
        match e {
            Error::Usage(_) | Error::Device(_) | Error::Training(_) | Error::Stopped(_) => self.reason(&e.to_string()),
            _ => self.text(&e.to_string()),
        }
    }

    /// `text` with its `` `token_budget` `` and `` `options.token_budget` `` as flags.
    pub fn reason(&self, text: &str) -> String {
        self.replace(text, |quoted| Some(quoted.strip_prefix("options.").unwrap_or(quoted)))
    }

    /// `text` with its `` `options.token_budget` `` as flags.
    pub fn text(&self, text: &str) -> String {
        self.replace(text, |quoted| quoted.strip_prefix("options."))
    }

    fn replace(&self, text: &str, name: impl Fn(&str) -> Option<&str>) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, (quoted, after))) =
            rest.split_once('`').and_then(|(before, inner)| Some((before, inner.split_once('`')?)))
        {
            out += before;
            match name(quoted).filter(|name| self.0.contains(*name)) {
                Some(name) => {
                    out += "--";
                    out += &name.replace('_', "-");
                    rest = after;
                }
                None => {
                    // The second of these may be the first of the next two.
                    out.push('`');
                    rest = &rest[before.len() + 1..];
                }
            }
        }
        out + rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Flags {
        Flags(["token_budget", "out", "input"].map(str::to_owned).into())
    }

    #[test]
    fn options_get_dashes() {
        let f = flags();
        assert_eq!(
            f.error(&Error::usage("`token_budget` 0: must be 1 or more")),
            "--token-budget 0: must be 1 or more"
        );
        assert_eq!(f.error(&Error::usage("`nonsense`, `out` and `options.out`")), "`nonsense`, --out and --out");
        assert_eq!(f.error(&Error::Device("`out`".into())), "--out");
        assert_eq!(f.reason("a lone ` and `out`, and ``out``"), "a lone ` and --out, and `--out`");
        assert_eq!(f.reason("no quotes"), "no quotes");
    }

    #[test]
    fn keys_and_columns_of_files_keep_their_quotes() {
        let (f, e) = (flags(), Error::file("c.toml", "found `input` and `options.x`; give another `options.out`"));
        assert_eq!(f.error(&e), "c.toml: found `input` and `options.x`; give another --out");
    }
}
