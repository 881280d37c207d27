//! How linear weights of blocks are held in four bits: an option of the command line and of `--config`, and what config.json
//! says.

use crate::choice;
use regex::Regex;
use regex_syntax::ast::parse::Parser;
use regex_syntax::ast::{self, Ast, Visitor};
use std::convert::Infallible;

choice! {
    /// What linear weights of blocks are held in.
    pub enum Quantize: default Nf4 {
        /// Four bits a weight, and a magnitude for every 64 of them.
        Nf4 = "nf4",
    }
}

impl Quantize {
    /// With the magnitudes quantized too, or not; `None`: not, as transformers has it.
    pub fn with(self, double: Option<bool>) -> Quantized {
        match self {
            Self::Nf4 => Quantized { double: double.unwrap_or_default() },
        }
    }
}

/// How the linear weights of blocks are held in four bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantized {
    /// Whether the magnitudes of blocks are quantised too: 4.127 bits a weight, and not 4.5.
    pub double: bool,
}

/// Modules that stay as they are where others are held in four bits: `llm_int8_skip_modules` of bitsandbytes, by transformers' rule
/// (`should_convert_module`).
#[derive(Clone, Debug, Default)]
pub struct Skipped(Vec<Key>);

#[derive(Clone, Debug)]
struct Key {
    text: String,
    /// All of a name.
    whole: Regex,
    /// What stands before [`CUT`].
    beginning: Regex,
}

/// Put in the place of what comes after a component, so that a key that asks for a name's end does not find one there.
const CUT: char = '\0';

impl PartialEq for Skipped {
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().map(|key| &key.text).eq(other.0.iter().map(|key| &key.text))
    }
}

impl Skipped {
    /// Those that `keys` name. Errors: the first that is no regular expression, and why.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let regex = |key: &str, end: &str| {
            Regex::new(&format!(r"\A(?:{key}){end}")).map_err(|e| {
                let why = e.to_string();
                format!("{key}: {}", why.lines().last().unwrap_or_default().trim_start_matches("error: "))
            })
        };
        let one = |key: &str| {
            if repeats_a_repetition(key) {
                return Err(format!("{key}: a quantifier after another, which Python reads in another way"));
            }
            Ok(Key { text: key.to_owned(), whole: regex(key, r"\z")?, beginning: regex(key, r"\x00")? })
        };
        keys.into_iter().map(one).collect::<Result<_, _>>().map(Self)
    }

    /// Whether the module of the weight `name` stays as it is: where its name ends with a key, or begins with what a key matches, up
    /// to a whole component.
    pub fn has(&self, name: &str) -> bool {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let dots = module.match_indices('.').flat_map(|(at, _)| [at, at + 1]);
        let beginnings: Vec<String> = dots.map(|end| format!("{}{CUT}", &module[..end])).collect();
        self.0.iter().any(|key| {
            module.ends_with(key.text.as_str())
                || key.whole.is_match(module)
                || beginnings.iter().any(|text| key.beginning.is_match(text))
        })
    }
}

/// Whether a quantifier is of another: `a*+` gives nothing back in Python from 3.11 on, and was an error before; here it would be
/// `(a*)+`. What is no regular expression here has none.
fn repeats_a_repetition(key: &str) -> bool {
    struct Nested(bool);
    impl Visitor for Nested {
        type Output = bool;
        type Err = Infallible;
        fn finish(self) -> Result<bool, Infallible> {
            Ok(self.0)
        }
        fn visit_pre(&mut self, ast: &Ast) -> Result<(), Infallible> {
            self.0 |= matches!(ast, Ast::Repetition(of) if matches!(*of.ast, Ast::Repetition(_)));
            Ok(())
        }
    }
    let Ok(ast) = Parser::new().parse(key) else { return false };
    ast::visit(&ast, Nested(false)).unwrap_or_else(|never| match never {})
}

#[cfg(test)]
mod tests {
    use super::Skipped;

    /// As transformers 5.23's `should_convert_module`, whose own examples these are, and others that it was asked.
    #[test]
    fn modules_are_skipped_as_transformers_does() {
        for (key, name, skipped) in [
            ("layer.1", "layer.1.attn", true),
            ("layer.1", "layer.11.attn", false),
            ("layer.*", "layer.11.attn", true),
            ("mlp.gate", "mlp.gate_proj", false),
            ("fc1", "model.decoder.layers.23.fc1", true),
            ("c1", "model.decoder.layers.23.fc1", true),
            ("lm_head", "model.layers.0.mlp.up_proj", false),
            ("model.layers.1.mlp", "model.layers.1.mlp.up_proj", true),
            ("model.layers.1.mlp", "model.layers.10.mlp.up_proj", false),
            (r"model.layers.\d+.self_attn.o_proj", "model.layers.17.self_attn.o_proj", true),
            ("a|model.layers.0", "model.layers.0.mlp.up_proj", true),
            ("layers.0", "model.layers.0.mlp.up_proj", false),
            ("model.", "model.layers.0.mlp.up_proj", true),
            ("model.layers.$", "model.layers.0.mlp.up_proj", false),
            ("model.+up_proj$", "model.layers.0.mlp.up_proj", true),
            ("mod", "model.layers.0.mlp.up_proj", false),
            ("", "model.layers.0.mlp.up_proj", true),
        ] {
            let all = Skipped::new([key]).unwrap();
            assert_eq!(all.has(&format!("{name}.weight")), skipped, "{key} {name}");
        }
        assert!(!Skipped::default().has("model.layers.0.mlp.up_proj.weight"));
        for key in ["model.*+", "model.++x", "a?+", "layers.[0-9]{1,2}+.mlp", "x(a|b*+)", "a*??", "a**"] {
            assert!(Skipped::new([key]).unwrap_err().ends_with("which Python reads in another way"), "{key}");
        }
        for key in ["(a*)+", "a*?", r"a\++", "[*+]+", r"a+\+", "a{2}?", "a|b+"] {
            assert!(Skipped::new([key]).is_ok(), "{key}");
        }
        assert!(Skipped::new(["(?=x)y"]).is_err() && Skipped::new(["("]).is_err());
    }
}
