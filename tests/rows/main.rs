//! Rows: what each means, in every shape; rows that cannot be used; turns, and what `sft` learns.

mod bad;
mod fuzz;
mod meaning;
#[path = "../pack_common/mod.rs"]
mod pack_common;
#[path = "../common/places.rs"]
mod places;
mod shapes;
mod turns;

use fusedpo::data::pack::{PackReport, pack};
use fusedpo::data::shard::Split;
use pack_common::place::*;
use serde_json::{Value, json};

fn say(role: &str, text: &str) -> Value {
    json!({"role": role, "content": text})
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|r| format!("{r}\n")).collect()
}

/// The tiny template's text of a message.
fn turn(role: &str, text: &str) -> String {
    format!("<|turn|>{role}\n{text}</s>\n")
}

/// `prompt`, with the generation prompt, and the assistant's answer to it, as `contents` shows them.
fn asked(prompt: &[(&str, &str)], answer: &str) -> String {
    let prompt: String = prompt.iter().map(|(role, text)| turn(role, text)).collect();
    format!("{prompt}<|turn|>assistant\n>{answer}</s>\n")
}

fn packed(rows: &[Value]) -> (Vec<String>, PackReport) {
    let place = Place::new();
    let o = place.options("rows.jsonl", lines(rows));
    let report = run(&o);
    (place.contents(&o.out, Split::Train), report)
}

/// What packing `rows` says, where it is refused.
fn refused(rows: &[Value]) -> String {
    let place = Place::new();
    let e = pack(&place.options("rows.jsonl", lines(rows)), &mut |_| Ok(())).unwrap_err().to_string();
    assert_eq!(e.lines().count(), 1, "{e}");
    e.split_once("rows.jsonl: ").unwrap().1.to_owned()
}
