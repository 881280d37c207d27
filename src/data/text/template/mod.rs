//! Chat templates: a model's own Jinja template, rendered as `transformers` 5.23 renders it with Jinja2 3.1.
//!
//! A template is a program that Jinja2 turns into Python, so it is run here as Python runs it: `lex` and `parse` read it as
//! Jinja2 does, `scope` gives each name the cell that it has there, `exec` and `eval` run it upon Python's values (`value`,
//! `ops`, `number`, `repr`) with Jinja2's filters and tests and Python's methods. What cannot be the same is refused by name
//! ([`fault::Kind::Refused`]), never rendered differently. Work, memory and depth of one rendering are bounded (`fault`).

mod args;
mod ast;
mod attr;
mod cases;
mod chat;
mod convert;
mod eval;
mod exec;
mod expr;
mod fault;
mod fields;
mod filters;
mod filters_lazy;
mod filters_text;
mod helpers;
mod iter;
mod json;
mod lex;
mod literal;
mod loops;
mod macros;
mod methods;
mod number;
mod operators;
mod ops;
mod parse;
mod percent;
mod plain;
mod repr;
mod run;
mod scope;
mod spec;
mod strftime;
mod strings;
mod symbols;
mod terms;
mod tests;
mod token;
mod unicode;
mod value;
mod views;
mod walk;

pub use chat::{ChatTemplate, Sources};
