//! `fusedpo plan`: memory and time of a run that is not begun.

use super::choice::named;
use super::hub;
use super::plan_time::{self, holds, unit};
use super::train_flags::{DpoFlags, TrainFlags};
use super::typed::{command_of_plan, options_for_plan};
use crate::backend::Backend;
use crate::backend::gpu::specs::GpuName;
use crate::choice::Choice;
use crate::data::lengths::Lengths;
use crate::data::numbers::grouped;
use crate::device::{self, Paper, PaperTask};
use crate::error::{Error, Result};
use crate::files::ScratchFolder;
use crate::model::wanted::Wanted;
use crate::observe::Observe;
use crate::say;
use crate::train::forecast::{Budget, Forecast, MOST, On, Part, forecast};
use crate::train::options::{Stage, TrainOptions};
use crate::units;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Options of `fusedpo plan`.
#[derive(clap::Args)]
pub struct PlanArgs {
    /// Command whose run is planned
    #[arg(long, value_parser = named::<Stage>(), default_value_t)]
    pub stage: Stage,
    /// Lengths of well-known data, in place of --data
    #[arg(long, value_parser = named::<Lengths>(), conflicts_with = "data", value_name = "NAME")]
    pub lengths: Option<Lengths>,
    /// Longest prompt + response of --lengths in tokens, as of `pack`; 0: no limit [default: 1024]
    #[arg(long, value_name = "N")]
    pub max_length: Option<usize>,
    /// GPU to plan for, here or not [default: this machine's; with --device-memory alone none, and no times]
    #[arg(long, value_parser = named::<GpuName>(), value_name = "NAME")]
    pub gpu: Option<GpuName>,
    /// Memory of the device, such as 80GiB or 24GB; then --device auto is a GPU [default: that of --gpu, or this machine's]
    #[arg(long, value_parser = units::parse_bytes, value_name = "SIZE")]
    pub device_memory: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Options of the run.
    #[command(flatten)]
    pub train: TrainFlags,
    /// Options of the run, where it is one of `dpo`.
    #[command(flatten)]
    pub dpo: Box<DpoFlags>,
}

/// Longest row where nothing else is said: the default of `pack`.
const MAX_LENGTH: usize = 1024;

struct Plan<'a> {
    options: &'a TrainOptions,
    /// The shards, and whether they are all the data that there are.
    data: (&'a Path, bool),
}

impl PaperTask for Plan<'_> {
    type Out = Forecast;
    fn run<B: Backend>(self, be: &B, on: On<B>) -> Result<Forecast> {
        forecast(be, self.options, self.data, on)
    }
}

/// Runs the command: prints the plan, and fails where it does not fit.
pub fn run(args: &PlanArgs, observe: &mut dyn Observe) -> Result<()> {
    let mut options = options_for_plan(args.stage, &args.train, &args.dpo, args.lengths.is_some())?;
    hub::place_run(&mut options, Wanted::Config, observe)?;
    let (_folder, data) = data(args, &options)?;
    let compute = &options.compute;
    let plan = device::on_paper(
        compute.device,
        (compute.dtype, compute.logits_dtype),
        Paper { memory: args.device_memory, gpu: args.gpu },
        Plan { options: &options, data: (&data, args.lengths.is_none()) },
    )?;
    match args.json {
        true => say!("{}", as_json(&plan, args, &options)),
        false => {
            let lines = table(&plan, args, &options);
            lines.iter().chain(&command_line(&plan, args)?).for_each(|line| say!("{line}"));
        }
    }
    plan.check()
}

/// The shards to plan for; of lengths alone, in a folder that is held as long as they are read.
fn data(args: &PlanArgs, options: &TrainOptions) -> Result<(Option<ScratchFolder>, PathBuf)> {
    let Some(lengths) = args.lengths else {
        return match args.max_length {
            Some(_) => Err(Error::usage("--max-length: only --lengths has it; shards are as long as they were packed")),
            None => Ok((None, options.files.data.clone())),
        };
    };
    // As many steps as the plan looks at.
    let pairs = options.data.batch_size.saturating_mul(64);
    let folder = lengths.shards(args.max_length.unwrap_or(MAX_LENGTH), pairs)?;
    let path = folder.path().to_owned();
    Ok((Some(folder), path))
}

fn mib(bytes: usize) -> String {
    format!("{:.2}", bytes as f64 / f64::from(1 << 20))
}

/// What a person reads.
fn table(plan: &Forecast, args: &PlanArgs, options: &TrainOptions) -> Vec<String> {
    let [all, trained] = plan.parameters.map(|n| grouped(n as u64));
    let batch_size = options.data.batch_size;
    let mut lines = vec![
        format!(
            "{} of {all} parameters ({}), {trained} of them trained; {}",
            args.stage, plan.architecture, plan.device
        ),
        match args.lengths {
            Some(lengths) => format!("lengths: {}; rows of up to {} tokens", lengths.source(), plan.longest_row),
            None => format!("data: {} {} in rows of up to {} tokens", plan.units, unit(plan), plan.longest_row),
        },
        format!("the largest of them needs {} slots: no token budget can be smaller", grouped(plan.least as u64)),
        format!("--token-budget {}: {}", plan.at.slots, holds(plan, &plan.at)),
        String::new(),
    ];
    let row = |name: &str, many: &str, bytes: usize| format!("  {name:<44} {many:>7} {:>12}", mib(bytes));
    let section = |lines: &mut Vec<String>, title: String, parts: Vec<(&str, String, usize)>| {
        let sum = parts.iter().map(|(.., bytes)| bytes).sum();
        lines.push(format!("{:<54} {:>12}", title, mib(sum)));
        lines.extend(parts.iter().map(|(name, many, bytes)| row(name, many, *bytes)));
    };
    let of = |held: bool, samples: bool| -> Vec<(&str, String, usize)> {
        let parts = plan.parts.iter().filter(|part: &&Part| part.held == held && part.samples == samples);
        parts.map(|p| (p.name.as_str(), p.buffers.to_string(), p.bytes)).collect()
    };
    lines.push(format!("{:<46} {:>7} {:>12}", "", "buffers", "MiB"));
    section(&mut lines, "held throughout".into(), of(true, false));
    section(&mut lines, format!("by a micro-batch of {} slots", grouped(plan.at.slots as u64)), of(false, false));
    let sampled = of(false, true);
    if !sampled.is_empty() {
        section(&mut lines, "while an evaluation samples".into(), sampled);
    }
    let mut beside: Vec<_> = plan.beside.iter().map(|(name, bytes)| (name.as_str(), String::new(), *bytes)).collect();
    beside.push(("margin: 2 % of the plan and 64 MiB", String::new(), plan.margin));
    section(&mut lines, "beside".into(), beside);
    lines.push(row("sum", "", plan.all()).replacen("  ", "", 1).replacen(" sum", "sum", 1));
    lines.push(String::new());
    lines.extend(verdict(plan, batch_size, args.device_memory.or(args.gpu.map(|gpu| gpu.sheet().memory))));
    lines.push(String::new());
    lines.extend(plan_time::lines(plan, args.gpu.is_some() || args.device_memory.is_none()));
    lines
}

/// With `--fit`: the command that trains with the recommended budget.
fn command_line(plan: &Forecast, args: &PlanArgs) -> Result<Option<String>> {
    let Some(best) = plan.recommended.as_ref().filter(|_| args.train.fit == Some(true)) else { return Ok(None) };
    command_of_plan(args.stage, &args.train, &args.dpo, best.budget.slots).map(Some)
}

/// What it comes to.
fn verdict(plan: &Forecast, batch_size: usize, device_memory: Option<usize>) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(free) = plan.free {
        let device = free + plan.beside.iter().map(|(_, bytes)| bytes).sum::<usize>();
        let device = device_memory.unwrap_or(device);
        let fits = if plan.fits() { "fits" } else { "does not fit" };
        lines.push(format!("{fits}: {} of {}", units::bytes(plan.all()), units::bytes(device)));
    }
    if let Some(slots) = plan.refused {
        let fits = plan.at.slots;
        lines.push(format!("{slots} slots, the default, do not fit: a run is to be given --token-budget {fits}"));
    }
    if plan.in_full {
        lines.push("outputs of norms and SwiGLU are kept, as there is room; without them less would do".into());
    }
    if let Some(reference) = plan.reference {
        lines.push(format!("the reference's pass, before it: {}", units::bytes(reference)));
    }
    if let Some(save) = plan.save {
        lines.push(format!("a checkpoint: {} on the disk", units::bytes(save.disk as usize)));
    }
    if let Some(best) = &plan.largest {
        let needed = units::bytes(best.needed);
        let more = if best.slots >= MOST { ", and no more was looked at" } else { "" };
        lines.push(format!("largest token budget that fits: {} ({needed}){more}: {}", best.slots, holds(plan, best)));
        if best.holds.largest_step < best.slots {
            let step = grouped(plan.at.holds.largest_step as u64);
            lines.push(format!(
                "a step of {batch_size} {} takes up to {step} slots (of the first steps in this order): more gain nothing",
                unit(plan)
            ));
        }
    }
    lines
}

fn as_json(plan: &Forecast, args: &PlanArgs, options: &TrainOptions) -> Value {
    let budget = |b: &Budget| {
        let h = &b.holds;
        json!({
            "token_budget": b.slots, "needed": b.needed, "units_per_micro_batch": h.units,
            "slots_filled_per_micro_batch": h.filled, "micro_batches_per_step": h.micro_batches,
            "slots_per_step": h.step, "slots_of_largest_step": h.largest_step,
        })
    };
    let parts = plan.parts.iter();
    let parts = parts.map(
        |p| json!({ "name": p.name, "buffers": p.buffers, "bytes": p.bytes, "held": p.held, "samples": p.samples }),
    );
    let named = |list: &[(String, usize)]| -> Vec<Value> {
        list.iter().map(|(name, bytes)| json!({ "name": name, "bytes": bytes })).collect()
    };
    let mut all = json!({
        "stage": args.stage.name(), "device": plan.device, "architecture": plan.architecture,
        "parameters": plan.parameters[0], "trained_parameters": plan.parameters[1],
        "lengths": args.lengths.map(Choice::name), "unit": unit(plan),
        "units": args.lengths.is_none().then_some(plan.units),
        "batch_size": options.data.batch_size, "least_token_budget": plan.least, "longest_row": plan.longest_row,
        "at": budget(&plan.at), "outputs_kept": plan.in_full, "parts": parts.collect::<Vec<_>>(),
        "beside": named(&plan.beside), "margin": plan.margin, "reference_pass": plan.reference,
        "checkpoint": plan.save.map(|s| s.disk), "free": plan.free, "all": plan.all(), "fits": plan.fits(),
        "largest": plan.largest.as_ref().map(budget), "refused_token_budget": plan.refused,
        "least_needed": plan.least_needed, "would_fit": named(&plan.instead),
        "recommended": recommended(plan, budget),
    });
    if let (Some(all), Value::Object(time)) = (all.as_object_mut(), plan_time::as_json(plan)) {
        all.extend(time);
    }
    all
}

/// The recommended budget, with its pace.
fn recommended(plan: &Forecast, budget: impl Fn(&Budget) -> Value) -> Value {
    let Some(best) = &plan.recommended else { return Value::Null };
    let mut all = budget(&best.budget);
    if let Some(pace) = &best.pace {
        all["step_seconds"] = json!(pace.step_seconds);
        all["tokens_per_second"] = json!(pace.tokens_per_second);
        all["units_per_second"] = json!(pace.units_per_second);
    }
    all
}
