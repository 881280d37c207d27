//! `fusedpo replay`: a step of a run taken again, and what every op of it has left.

use super::choice::Devices;
use super::hub;
use crate::backend::Backend;
use crate::backend::watched::Numbers;
use crate::device::{self, OwningTask};
use crate::error::Result;
use crate::model::wanted::Wanted;
use crate::observe::Observe;
use crate::say;
use crate::train::choices::DeviceChoice;
use crate::train::options::TrainOptions;
use crate::train::replay::{self, Bad, Place, Replay, SeenOp};
use crate::warn;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Options of `fusedpo replay`.
#[derive(clap::Args)]
pub struct ReplayArgs {
    /// Folder of a run of `sft` or `dpo`; it is only read
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// The step, from 1; a run says which were skipped
    #[arg(value_name = "STEP")]
    pub step: u64,
    /// Device [default: what the run came to]
    #[arg(long, value_parser = Devices)]
    pub device: Option<DeviceChoice>,
    /// Print one JSON object (docs/json.md has its keys)
    #[arg(long)]
    pub json: bool,
}

struct Again<'a>(&'a TrainOptions, u64, &'a mut dyn Observe);

impl OwningTask for Again<'_> {
    type Out = Replay;
    fn run<B: Backend>(self, be: B) -> Result<Replay> {
        replay::replay(be, self.0, self.1, self.2)
    }
}

/// Runs the command: what it finds is its result, be it finite or not.
pub fn run(args: &ReplayArgs, observe: &mut dyn Observe) -> Result<()> {
    let mut options = replay::options_of(&args.run)?;
    if let Some(device) = args.device {
        options.compute.device = device;
    }
    hub::place_run(&mut options, Wanted::Model, observe)?;
    let compute = (options.compute.dtype, options.compute.logits_dtype);
    let found = device::dispatch_owning(options.compute.device, compute, Again(&options, args.step, observe))?;
    if let Some(why) = &found.agreement.difference {
        warn!("{why}: this is not to the bit what the run has computed");
    }
    if !found.agreement.taken {
        let (step, run) = (found.step, args.run.display());
        warn!("{run} has no numbers of step {step}: the run has not taken it, and this is what it would be");
    }
    match args.json {
        true => say::json(&as_json(&found, &args.run)),
        false => table(&found).iter().for_each(|line| say!("{line}")),
    }
    Ok(())
}

/// What a person reads.
fn table(r: &Replay) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<4} {:<24} {:<20} {:<52} {:>13} {:>13} {:>13} {:>14}",
        "mb", "where", "op, output", "of", "min", "max", "max |x|", "not finite"
    )];
    for op in &r.ops {
        let n = &op.numbers;
        let micro_batch = op.micro_batch.map_or("-".to_owned(), |i| i.to_string());
        let [min, max, largest] = extremes(n);
        lines.push(format!(
            "{micro_batch:<4} {:<24} {:<20} {:<52} {min:>13} {max:>13} {largest:>13} {:>14}",
            op.place_in_step(),
            format!("{} {}", op.op, op.output),
            op.of,
            format!("{} / {}", n.non_finite, n.len)
        ));
    }
    lines.push(String::new());
    lines.push(format!("loss {}, gradient norm {}{}", r.loss, r.grad_norm, update(r)));
    lines.push(compared(r));
    for (part, n) in &r.state {
        let [min, max, _] = extremes(n);
        lines.push(format!("before the step: {part} {min} to {max}, {} of {} not finite", n.non_finite, n.len));
    }
    lines.extend(r.inputs.iter().map(|bad| format!("before the step: {}", bad.named())));
    lines.push(r.verdict());
    lines
}

fn update(r: &Replay) -> &'static str {
    if r.updated { "" } else { ": no weight was changed" }
}

/// How it stands to what the run has written down.
fn compared(r: &Replay) -> String {
    let a = &r.agreement;
    let batch = match (&a.batch, &a.difference) {
        (Some(path), None) => format!("; the batch is that of {}", path.display()),
        _ => String::new(),
    };
    let steps = match (a.compared, &a.difference) {
        (_, Some(why)) => format!("compared with the run: {why}"),
        (0, None) => "the run has no numbers of these steps to compare with".to_owned(),
        (1, None) => "1 step compared with what the run wrote down: loss and gradient norm are the same".to_owned(),
        (n, None) => format!("{n} steps compared with what the run wrote down: loss and gradient norm are the same"),
    };
    steps + &batch
}

/// The least, the largest, and the largest in size; `-` where nothing is finite.
fn extremes(n: &Numbers) -> [String; 3] {
    match n.min > n.max {
        true => ["-", "-", "-"].map(str::to_owned),
        false => [n.min, n.max, n.max_abs()].map(|x| format!("{x:.5e}")),
    }
}

fn as_json(r: &Replay, run: &Path) -> Value {
    let path = |p: &PathBuf| p.display().to_string();
    json!({
        "run": run.display().to_string(),
        "stage": r.stage,
        "step": r.step,
        "steps": r.steps,
        "from_step": r.from.step,
        "checkpoint": r.from.checkpoint.as_ref().map(path),
        "batch": r.agreement.batch.as_ref().map(path),
        "steps_compared": r.agreement.compared,
        "difference": r.agreement.difference,
        "taken": r.agreement.taken,
        "loss": r.loss,
        "grad_norm": r.grad_norm,
        "updated": r.updated,
        "state": r.state.iter().map(state_json).collect::<Vec<_>>(),
        "inputs": r.inputs.iter().map(bad_json).collect::<Vec<_>>(),
        "inputs_since": r.inputs_since,
        "ops": r.ops.iter().map(op_json).collect::<Vec<_>>(),
        "first": r.first().map(op_json),
        "verdict": r.verdict(),
    })
}

/// What is no number in JSON, as text.
fn first_value(n: &Numbers) -> Option<String> {
    n.first.map(|(_, x)| x.to_string())
}

fn finite(n: &Numbers, x: f64) -> Option<f64> {
    (n.min <= n.max).then_some(x)
}

fn state_json((part, n): &(&str, Numbers)) -> Value {
    json!({
        "part": part,
        "count": n.len,
        "min": finite(n, n.min),
        "max": finite(n, n.max),
        "non_finite": n.non_finite,
    })
}

fn bad_json(bad: &Bad) -> Value {
    json!({
        "part": bad.part,
        "of": bad.of,
        "count": bad.numbers.len,
        "non_finite": bad.numbers.non_finite,
        "index": bad.index,
        "value": first_value(&bad.numbers),
    })
}

fn op_json(op: &SeenOp) -> Value {
    let n = &op.numbers;
    json!({
        "micro_batch": op.micro_batch,
        "stage": op.stage,
        "layer": op.layer,
        "op": op.op,
        "output": op.output,
        "of": op.of,
        "count": n.len,
        "min": finite(n, n.min),
        "max": finite(n, n.max),
        "max_abs": finite(n, n.max_abs()),
        "non_finite": n.non_finite,
        "value": first_value(n),
        "place": op.place.as_ref().map(place_json),
    })
}

fn place_json(p: &Place) -> Value {
    json!({
        "row": p.row,
        "column": p.column,
        "token": p.token,
        "position": p.position,
        "prompt_of": p.prompt_of,
        "response": p.response,
        "pair": p.pair.map(|(id, _)| id),
        "end": p.pair.map(|(_, end)| end),
        "data_row": p.data_row,
        "tensor": p.tensor,
        "index": p.index,
    })
}
