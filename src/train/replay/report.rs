//! What a replay has found.

use crate::backend::watched::{Numbers, Rows};
use std::path::PathBuf;

/// A step that was taken again.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// `sft` or `dpo`.
    pub stage: &'static str,
    /// From 1.
    pub step: u64,
    /// Steps that the run has.
    pub steps: u64,
    /// Where it went on from.
    pub from: From,
    /// Whether what was taken again is what the run has written down.
    pub agreement: Agreement,
    /// Its loss.
    pub loss: f64,
    /// Its gradient norm before clipping.
    pub grad_norm: f64,
    /// Whether its update was made: a gradient norm that is not finite stops it.
    pub updated: bool,
    /// The numbers of the state before it: of weights, master weights, moments, a reference that follows.
    pub state: Vec<(&'static str, Numbers)>,
    /// What of the state and of the data was not finite before it.
    pub inputs: Vec<Bad>,
    /// The step after whose update weights were not finite any more, where that is known.
    pub inputs_since: Option<u64>,
    /// What every op has left, in the order in which they ran.
    pub ops: Vec<SeenOp>,
}

/// Where a replay went on from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct From {
    /// The steps before it; 0: the model that the run started from.
    pub step: u64,
    /// The checkpoint.
    pub checkpoint: Option<PathBuf>,
}

/// How the steps that were taken again compare with what the run has written down of them: loss and gradient norm, to the bit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Agreement {
    /// Steps that were compared.
    pub compared: u64,
    /// The first that differs, in words.
    pub difference: Option<String>,
    /// Whether the step itself is among those that the run wrote down.
    pub taken: bool,
    /// The file of the step's batch, where the run kept it: it is the one that was computed again.
    pub batch: Option<PathBuf>,
}

/// A tensor that was not finite before the step.
#[derive(Clone, Debug, PartialEq)]
pub struct Bad {
    /// `weights`, `first_moment`, ... or `reference_logp`.
    pub part: String,
    /// The tensor, by Hugging Face's name, or the response.
    pub of: String,
    /// Its numbers.
    pub numbers: Numbers,
    /// Where in it the first one is.
    pub index: Vec<usize>,
}

/// What an op has left in one of its outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct SeenOp {
    /// Micro-batch, from 1, as they were loaded; `None`: of the step as a whole.
    pub micro_batch: Option<usize>,
    /// Part of the step: `forward`, `head`, `loss`, `head backward`, `backward`, `update`.
    pub stage: &'static str,
    /// Layer, from 0.
    pub layer: Option<usize>,
    /// The op.
    pub op: &'static str,
    /// The output.
    pub output: &'static str,
    /// The parameters that it is of, in short; empty: none.
    pub of: String,
    /// What its rows are.
    pub rows: Rows,
    /// Its numbers.
    pub numbers: Numbers,
    /// Where the first one is that is not finite.
    pub place: Option<Place>,
}

/// Where a number is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Place {
    /// Row of the micro-batch.
    pub row: Option<usize>,
    /// Column of the output.
    pub column: Option<usize>,
    /// Token of that row.
    pub token: Option<u32>,
    /// Its position.
    pub position: Option<u32>,
    /// The group whose prompt it is in.
    pub prompt_of: Option<u64>,
    /// The response that it is in, or that is predicted.
    pub response: Option<u64>,
    /// The pair of that response, and which of it.
    pub pair: Option<(u64, &'static str)>,
    /// The input row that the data were packed from, from 0.
    pub data_row: Option<u64>,
    /// The parameter.
    pub tensor: Option<String>,
    /// Which number of it.
    pub index: Vec<usize>,
}

impl Replay {
    /// The first op that has left a number that is not finite.
    pub fn first(&self) -> Option<&SeenOp> {
        self.ops.iter().find(|op| op.numbers.non_finite > 0)
    }

    /// What came of it, in one line.
    pub fn verdict(&self) -> String {
        let step = self.step;
        let op = self.first().map(|op| op.named());
        match (self.inputs.first(), op) {
            (None, None) => {
                format!("step {step}: every number is finite, in {} outputs of ops", self.ops.len())
            }
            (None, Some(op)) => format!("step {step}: the first number that is not finite: {op}"),
            (Some(bad), op) => {
                let since = self.inputs_since.map_or_else(String::new, |at| {
                    format!("; it was the update of step {at} that left it so: replay that step")
                });
                let then = op.map_or_else(String::new, |op| format!("; of ops the first: {op}"));
                format!("step {step}: not finite before any op: {}{since}{then}", bad.named())
            }
        }
    }
}

impl Bad {
    /// In words.
    pub fn named(&self) -> String {
        let Bad { part, of, numbers, index } = self;
        let at = if index.is_empty() { String::new() } else { format!(", the first at {index:?}") };
        let value = numbers.first.map_or(f64::NAN, |(_, x)| x);
        format!("{part} of {of}: {} of {} numbers{at}: {value}", numbers.non_finite, numbers.len)
    }
}

impl SeenOp {
    /// Where it stands: `forward, layer 3`.
    pub fn place_in_step(&self) -> String {
        self.layer.map_or_else(|| self.stage.to_owned(), |l| format!("{}, layer {l}", self.stage))
    }

    /// In words, with the first number that is not finite.
    pub fn named(&self) -> String {
        let mut text = format!("{}: {}", self.place_in_step(), self.op);
        if !self.of.is_empty() {
            text += &format!(" of {}", self.of);
        }
        let n = &self.numbers;
        let value = n.first.map_or(f64::NAN, |(_, x)| x);
        text += &format!(", output {}: {} of {} numbers, the first {value}", self.output, n.non_finite, n.len);
        if let Some(place) = &self.place {
            text += &place.in_words(self.micro_batch);
        }
        text
    }
}

impl Place {
    fn in_words(&self, micro_batch: Option<usize>) -> String {
        let mut text = String::new();
        if let Some(tensor) = &self.tensor {
            text += &match self.index.is_empty() {
                true => format!(" of {tensor}"),
                false => format!(" at {:?} of {tensor}", self.index),
            };
        }
        if let Some(row) = self.row {
            text += &format!(" in row {row}");
        }
        if let (Some(micro_batch), true) = (micro_batch, self.row.is_some() || self.response.is_some()) {
            text += &format!(" of micro-batch {micro_batch}");
        }
        if let (Some(token), Some(position)) = (self.token, self.position) {
            text += &format!(": token {token} at position {position}");
        }
        if let Some(group) = self.prompt_of {
            text += &format!(" of the prompt of group {group}");
        }
        if let Some(response) = self.response {
            text += &format!(" of response {response}");
        }
        if let Some((pair, end)) = self.pair {
            text += &format!(", {end} of pair {pair}");
        }
        if let Some(row) = self.data_row {
            text += &format!(" (row {row} of the data)");
        }
        text
    }
}
