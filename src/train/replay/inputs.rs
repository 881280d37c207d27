//! What a step begins with, looked through before it.

use super::naming::index;
use super::report::Bad;
use crate::backend::watched::Numbers;
use crate::backend::{Backend, code8};
use crate::batch::{Batches, Outline};
use crate::error::Result;
use crate::model::{ParamSpec, ParamTable};
use crate::train::checkpoint::PIECE;
use crate::train::state::{Section, State};
use std::ops::Range;

/// Sections by name with their numbers, and what in them is not finite.
type Found = (Vec<(&'static str, Numbers)>, Vec<Bad>);

/// The numbers of each of the state's lasting sections, but for codes of 8 bits; and every tensor in them that is not finite.
pub(super) fn of_state<B: Backend>(be: &B, state: &State<B>) -> Result<Found> {
    let (mut all, mut bad) = (Vec::new(), Vec::new());
    for section in state.sections(be).iter().filter(|s| s.lasting && s.dtype != "u8") {
        let (mut block, mut whole) = (0, Numbers::default());
        for spec in &state.model.table.specs {
            let at = match section.part {
                part if part.of_blocks() => {
                    let start = block;
                    block += code8::blocks(spec.grad.len());
                    start..block
                }
                part if part.of_trained() => spec.grad.clone(),
                _ => spec.at.clone(),
            };
            let numbers = numbers(be, state, section, at)?;
            whole.join(&numbers);
            if let Some((i, _)) = numbers.first {
                let index = if section.part.of_blocks() { vec![i] } else { index(&spec.shape, i) };
                bad.push(Bad { part: section.name.into(), of: spec.name.clone(), numbers, index });
            }
        }
        all.push((section.name, whole));
    }
    Ok((all, bad))
}

/// Whether weights are among `bad` that every step reads: no step after them has a finite gradient norm. Of an embedding that is no
/// head there may be rows that no step has read.
pub(super) fn weights_tell(bad: &[Bad], table: &ParamTable) -> bool {
    let read_in_part = |spec: &ParamSpec| spec.at == table.embed.at && table.embed != table.head;
    let of = |bad: &Bad| table.specs.iter().find(|spec| spec.name == bad.of);
    bad.iter().filter(|bad| bad.part == "weights").any(|bad| of(bad).is_some_and(|spec| !read_in_part(spec)))
}

fn numbers<B: Backend>(be: &B, state: &State<B>, section: &Section, at: Range<usize>) -> Result<Numbers> {
    let (mut numbers, mut bytes) = (Numbers::default(), Vec::new());
    for start in at.clone().step_by(PIECE) {
        bytes.clear();
        state.read(be, section.part, start..at.end.min(start + PIECE), &mut bytes)?;
        match section.width {
            2 => bytes.as_chunks().0.iter().for_each(|x| numbers.add(half::bf16::from_le_bytes(*x).to_f64())),
            4 => bytes.as_chunks().0.iter().for_each(|x| numbers.add(f32::from_le_bytes(*x).into())),
            _ => bytes.as_chunks().0.iter().for_each(|x| numbers.add(f64::from_le_bytes(*x))),
        }
    }
    Ok(numbers)
}

/// Reference log-probs of the step's responses that are not finite.
pub(super) fn of_reference(batches: &Batches) -> Vec<Bad> {
    let slots = batches.all().flat_map(Outline::responses);
    let bad = slots.filter(|slot| !slot.ref_logp.is_finite()).map(|slot| {
        let mut numbers = Numbers::default();
        numbers.add(slot.ref_logp);
        Bad { part: "reference_logp".into(), of: format!("response {}", slot.id), numbers, index: Vec::new() }
    });
    bad.collect()
}
