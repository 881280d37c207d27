//! How a state's sections lie in the files of a checkpoint: safetensors, a tensor a parameter, by Hugging Face's names. The
//! gaps between them in the arena are zeros in every section, and stay so.

use crate::backend::code8;
use crate::error::{Error, Result};
use crate::model::{ParamSpec, ParamTable, peft};
use crate::train::state::{Part, Section};
use serde_json::{Map, json};
use std::ops::Range;

/// Elements that are moved at a time.
pub const PIECE: usize = 1 << 20;
/// Bytes that are written and read at a time.
pub const BUFFER: usize = 1 << 18;

/// Weights, where models have them.
pub(super) const MODEL: &str = "model.safetensors";
/// All that the optimiser keeps.
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";

/// The reference that follows the policy.
pub(super) const REFERENCE: &str = "reference.safetensors";

/// A file of a checkpoint.
pub(super) struct TensorFile {
    /// Its name.
    pub name: &'static str,
    /// What is in it, in order.
    pub sections: Vec<Section>,
}

/// Which sections lie in which file.
pub(super) fn files(sections: &[Section], table: &ParamTable) -> Vec<TensorFile> {
    let model = if table.has_adapter() { peft::WEIGHTS } else { MODEL };
    let place = |part| match part {
        Part::Weights => model,
        Part::Reference | Part::ReferenceMaster => REFERENCE,
        _ => OPTIMIZER,
    };
    let of = |name| {
        let all = sections.iter().filter(|s| s.lasting && place(s.part) == name);
        TensorFile { name, sections: all.copied().collect() }
    };
    let mut all = vec![of(model), of(OPTIMIZER), of(REFERENCE)];
    all.retain(|f| !f.sections.is_empty());
    all
}

impl TensorFile {
    /// Length and JSON of the header. Errors: an element type that safetensors has no name for.
    pub fn header(&self, table: &ParamTable, step: u64) -> Result<Vec<u8>> {
        let mut map = Map::new();
        map.insert("__metadata__".into(), json!({"format": "pt", "global_step": step.to_string()}));
        let mut at = 0;
        for s in &self.sections {
            let dtype = match s.dtype {
                "f32" => "F32",
                "f64" => "F64",
                "bf16" => "BF16",
                "u8" => "U8",
                other => return Err(Error::Training(format!("a section of {other} cannot be kept in a checkpoint"))),
            };
            for spec in specs(table, s.part) {
                let blocks = [code8::blocks(spec.at.len())];
                let (len, shape) = match s.part.of_blocks() {
                    true => (blocks[0], &blocks[..]),
                    false => (spec.at.len(), &spec.shape[..]),
                };
                let end = at + len * s.width;
                let name = match s.part {
                    Part::Weights if table.has_adapter() => format!("{}{}", peft::PREFIX, spec.name),
                    Part::Weights => spec.name.clone(),
                    _ => format!("{}.{}", s.name, spec.name),
                };
                map.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]}));
                at = end;
            }
        }
        let mut text = serde_json::Value::Object(map).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        Ok([&(text.len() as u64).to_le_bytes()[..], &text].concat())
    }

    /// Bytes behind the header.
    pub fn data_len(&self, table: &ParamTable) -> u64 {
        self.sections.iter().map(|s| (elements(table, s.part) * s.width) as u64).sum()
    }
}

/// The parameters that `part` has: what lies beside an adapter is in its base, and stays there.
fn specs(table: &ParamTable, part: Part) -> impl Iterator<Item = &ParamSpec> {
    let some = part.of_trained() || table.has_adapter();
    table.specs.iter().filter(move |spec| spec.trains || !some)
}

/// Elements of `part`, without gaps.
pub fn elements(table: &ParamTable, part: Part) -> usize {
    match part.of_blocks() {
        true => table.trained_blocks(code8::blocks),
        false => specs(table, part).map(|spec| spec.at.len()).sum(),
    }
}

/// The elements of all tensors of `part`, in order, at most [`PIECE`] at a time.
pub(super) fn pieces(table: &ParamTable, part: Part) -> impl Iterator<Item = Range<usize>> + '_ {
    let of = |at: Range<usize>| at.clone().step_by(PIECE).map(move |start| start..(start + PIECE).min(at.end));
    let mut block = 0;
    let range = move |spec: &ParamSpec| match part {
        // They have no gaps.
        _ if part.of_blocks() => {
            let start = block;
            block += code8::blocks(spec.grad.len());
            start..block
        }
        _ if part.of_trained() => spec.grad.clone(),
        _ => spec.at.clone(),
    };
    specs(table, part).map(range).flat_map(of)
}
