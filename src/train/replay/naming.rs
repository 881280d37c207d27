//! From buffers and indices to names: which layer, which parameter, which token.

use super::report::{Place, SeenOp};
use crate::backend::watched::{Arena, Rows, Seen, Viewed};
use crate::batch::MicroBatch;
use crate::data::shard::Dataset;
use crate::model::{ParamSpec, ParamTable};
use std::ops::Range;

/// Parameters that are named one by one.
const NAMED: usize = 3;

/// What names are taken from.
pub(super) struct Names<'a> {
    /// The parameters.
    pub table: &'a ParamTable,
    /// The training split.
    pub data: &'a Dataset,
    /// Micro-batches in the order in which they were loaded.
    pub batches: &'a [MicroBatch],
}

impl Names<'_> {
    /// What was seen, named.
    pub fn of(&self, seen: Seen) -> SeenOp {
        let names = self.parameters(&seen.viewed);
        let layer = self.layer(&seen, &names);
        let reference = seen.viewed.iter().any(|v| v.arena == Arena::Reference) && seen.stage != "update";
        let mut of = short(&names, layer);
        if reference && !of.is_empty() {
            of = format!("the reference's {of}");
        }
        let place = seen.numbers.first.map(|(i, _)| self.place(&seen, i));
        SeenOp {
            micro_batch: seen.batch.filter(|_| seen.stage != "update" && seen.stage != "step").map(|b| b + 1),
            stage: seen.stage,
            layer,
            op: seen.op,
            output: seen.output,
            of,
            rows: seen.rows,
            numbers: seen.numbers,
            place,
        }
    }

    /// The last layer's ops on the rows that predict something stand under no layer's mark.
    fn layer(&self, seen: &Seen, names: &[&str]) -> Option<usize> {
        let passes = matches!(seen.stage, "forward" | "backward");
        let named = names.first().and_then(|name| name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok());
        let outside = names.iter().any(|name| !name.starts_with("model.layers."));
        match seen.layer.or(named.filter(|_| passes)) {
            None if passes && !outside && (seen.gathered || seen.op == "scatter_rows") => {
                self.table.layers.len().checked_sub(1)
            }
            layer => layer,
        }
    }

    /// Hugging Face's names of what the op was given.
    fn parameters(&self, viewed: &[Viewed]) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for v in viewed {
            if v.arena == Arena::Codes {
                let of = self.table.nf4.iter().filter(|p| overlap(&p.codes, &v.at));
                names.extend(of.map(|p| p.name.as_str()));
                continue;
            }
            let (at, trained) = self.elements(v);
            let of = self.table.specs.iter().filter(|s| overlap(if trained { &s.grad } else { &s.at }, &at));
            names.extend(of.map(|s| s.name.as_str()));
        }
        let mut seen = std::collections::HashSet::new();
        names.retain(|name| seen.insert(*name));
        names
    }

    /// The elements that were viewed, and whether they are of the trained arena.
    fn elements(&self, v: &Viewed) -> (Range<usize>, bool) {
        let split = if v.arena == Arena::Vectors { self.table.trained_matrices } else { 0 };
        (v.at.start + split..v.at.end + split, matches!(v.arena, Arena::Gradients | Arena::Vectors))
    }

    /// Where number `i` of an output is.
    fn place(&self, seen: &Seen, i: usize) -> Place {
        let width = seen.width.max(1);
        let (at, column) = (i / width, (width > 1).then_some(i % width));
        let batch = seen.batch.and_then(|b| self.batches.get(b));
        let mut place = match (seen.rows, batch) {
            (Rows::Slots, Some(mb)) => self.row(mb, at),
            (Rows::Predictions(first), Some(mb)) => match mb.predictions().get(first + at) {
                Some(p) => self.of_response(mb, p.response as usize, self.row(mb, p.row as usize)),
                None => Place::default(),
            },
            (Rows::Responses(first), Some(mb)) => self.of_response(mb, first + at, Place::default()),
            (Rows::Pairs(first), Some(mb)) => match mb.pairs().get(first + at) {
                Some(p) => Place {
                    pair: Some((p.id, "both")),
                    data_row: mb.responses().get(p.chosen as usize).and_then(|r| self.data.response_row(r.id)),
                    ..Place::default()
                },
                None => Place::default(),
            },
            (Rows::Parameters, _) => return self.parameter(seen, i),
            _ => Place::default(),
        };
        place.column = column;
        if let (Some(column), "linear_fwd") = (column, seen.op) {
            place.tensor = self.column(seen, column).map(|spec| spec.name.clone());
        }
        place
    }

    /// The tensor of a product that an output column is of.
    fn column(&self, seen: &Seen, column: usize) -> Option<&ParamSpec> {
        let weight = seen.viewed.iter().find(|v| matches!(v.arena, Arena::Weights | Arena::Reference))?;
        let element = weight.at.start + column * (weight.at.len() / seen.width);
        self.table.specs.iter().find(|s| s.at.contains(&element))
    }

    fn parameter(&self, seen: &Seen, i: usize) -> Place {
        let gradient = matches!(seen.output, "dw" | "db" | "dbias" | "dtable");
        let of = seen.viewed.iter().find(|v| v.arena != Arena::Codes && self.elements(v).1 == gradient);
        let Some((at, trained)) = of.map(|v| self.elements(v)) else { return Place::default() };
        let element = at.start + i;
        let range = |s: &ParamSpec| if trained { s.grad.clone() } else { s.at.clone() };
        match self.table.specs.iter().find(|s| range(s).contains(&element)) {
            Some(spec) => Place {
                tensor: Some(spec.name.clone()),
                index: index(&spec.shape, element - range(spec).start),
                ..Place::default()
            },
            None => Place::default(),
        }
    }

    fn row(&self, mb: &MicroBatch, row: usize) -> Place {
        if row >= mb.used() {
            return Place { row: Some(row), ..Place::default() };
        }
        let (token, position) = (Some(mb.tokens()[row]), Some(mb.positions()[row]));
        let place = Place { row: Some(row), token, position, ..Place::default() };
        let Some(group) = mb.groups().iter().find(|g| (g.prompt.start as usize..g.end as usize).contains(&row)) else {
            return place;
        };
        if row < group.prompt.end as usize {
            let first = mb.responses().get(group.responses.start as usize);
            let data_row = first.and_then(|r| self.data.response_row(r.id));
            return Place { prompt_of: Some(group.id), data_row, ..place };
        }
        // The prompt has the first segment, unless it is empty.
        let first = group.segments.start as usize + usize::from(!group.prompt.is_empty());
        let segments = &mb.segments()[first..group.segments.end as usize];
        match segments.iter().position(|s| (s.start as usize..(s.start + s.len) as usize).contains(&row)) {
            Some(n) => self.of_response(mb, group.responses.start as usize + n, place),
            None => place,
        }
    }

    fn of_response(&self, mb: &MicroBatch, i: usize, place: Place) -> Place {
        let Some(slot) = mb.responses().get(i) else { return place };
        let end = |p: &crate::batch::PairSlot| match i {
            _ if p.chosen as usize == i => Some((p.id, "chosen")),
            _ if p.rejected as usize == i => Some((p.id, "rejected")),
            _ => None,
        };
        let pair = mb.pairs().iter().find_map(end);
        Place { prompt_of: None, response: Some(slot.id), pair, data_row: self.data.response_row(slot.id), ..place }
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Indices of element `i` of a tensor of `shape`.
pub(super) fn index(shape: &[usize], i: usize) -> Vec<usize> {
    let mut rest = i;
    let mut all: Vec<usize> = shape
        .iter()
        .rev()
        .map(|n| {
            let at = rest % n.max(&1);
            rest /= n.max(&1);
            at
        })
        .collect();
    all.reverse();
    all
}

/// `self_attn.{q_proj, k_proj, v_proj}.weight` for three names of one layer.
fn short(names: &[&str], layer: Option<usize>) -> String {
    let prefix = layer.map_or_else(String::new, |l| format!("model.layers.{l}."));
    let all: Vec<&str> = names.iter().map(|name| name.strip_prefix(prefix.as_str()).unwrap_or(name)).collect();
    let [first, rest @ ..] = &all[..] else { return String::new() };
    if rest.is_empty() {
        return (*first).to_owned();
    }
    if all.len() > NAMED {
        return format!("{first} and {} others", rest.len());
    }
    let parts: Vec<Vec<&str>> = all.iter().map(|name| name.split('.').collect()).collect();
    let same = |at: &dyn Fn(&Vec<&str>) -> Option<usize>| {
        parts.iter().all(|p| at(p).map(|i| p[i]) == at(&parts[0]).map(|i| parts[0][i]) && at(p).is_some())
    };
    let before = (0..parts[0].len()).take_while(|i| same(&|p| (*i + 1 < p.len()).then_some(*i))).count();
    let after = (1..parts[0].len()).take_while(|i| same(&|p| (before + *i < p.len()).then(|| p.len() - *i))).count();
    let middle: Vec<String> = parts.iter().map(|p| p[before..p.len() - after].join(".")).collect();
    let join = |p: &[&str]| p.join(".");
    let head = if before > 0 { join(&parts[0][..before]) + "." } else { String::new() };
    let tail = if after > 0 { format!(".{}", join(&parts[0][parts[0].len() - after..])) } else { String::new() };
    format!("{head}{{{}}}{tail}", middle.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_short() {
        let qkv = ["q", "k", "v"].map(|p| format!("model.layers.3.self_attn.{p}_proj.weight"));
        let names: Vec<&str> = qkv.iter().map(String::as_str).collect();
        assert_eq!(short(&names, Some(3)), "self_attn.{q_proj, k_proj, v_proj}.weight");
        assert_eq!(short(&names[..1], Some(3)), "self_attn.q_proj.weight");
        assert_eq!(short(&["a.lora_A.weight", "a.lora_B.weight"], None), "a.{lora_A, lora_B}.weight");
        assert_eq!(short(&["a", "b"], None), "{a, b}");
        assert_eq!(short(&["a", "b", "c", "d"], None), "a and 3 others");
        assert_eq!(short(&[], Some(1)), "");
        assert_eq!((index(&[3, 4], 7), index(&[5], 4), index(&[], 0)), (vec![1, 3], vec![4], vec![]));
    }
}
