//! `fusedpo analyze`: what a run's ledger says of its data.

use crate::analyze::{self, Analysis, Column, Example, Found, Part, Wanted};
use crate::data::numbers::grouped;
use crate::data::shard::{Dataset, Split};
use crate::error::{Error, Result};
use crate::files::{RunDir, Target};
use crate::note;
use crate::say;
use crate::train::ledger::Ledger;
use crate::train::record::Record;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Values of a column that are shown.
const MOST_SLICES: usize = 40;
/// Longest text in a table, in characters.
const LONGEST: usize = 300;

/// Options of `fusedpo analyze`.
#[derive(clap::Args)]
pub struct AnalyzeArgs {
    /// Folder of a run of `dpo` that keeps a ledger, under way or not; it is only read
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Folder of the shards that the run trained on [default: where they lay then]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Epoch to look at, from 0 [default: the last that is whole]
    #[arg(long, value_name = "N")]
    pub epoch: Option<u32>,
    /// Pairs to show of each kind
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub show: usize,
    /// Column of the rows to slice by; needs --input
    #[arg(long, value_name = "COLUMN")]
    pub by: Option<String>,
    /// Files that the shards were packed from, in the same order; for --by
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub input: Vec<PathBuf>,
    /// Write the rows of likely flipped pairs to FILE, for `pack --exclude`
    #[arg(long, value_name = "FILE")]
    pub exclude_out: Option<PathBuf>,
    /// Replace that file
    #[arg(long)]
    pub overwrite: bool,
    /// Print one JSON object (docs/json.md has its keys)
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &AnalyzeArgs) -> Result<()> {
    check(args)?;
    Record::refuse_newer(&args.run)?;
    let Some(ledger) = Ledger::open(&args.run)? else {
        let why = match RunDir::is_there(&args.run) {
            true => "has no ledger.bin: its loss reads no pairs, or it ran with `options.ledger` off",
            false => "is not the folder of a run: give one that `fusedpo dpo` filled",
        };
        return Err(Error::file(&args.run, why));
    };
    let folder = data_of(args)?;
    let data = Dataset::open(&folder, Split::Train)?;
    let slices = match &args.by {
        Some(by) => Some((by.as_str(), slices(args, by, &ledger, &data)?)),
        None => None,
    };
    let found = analyze::analyze(&ledger, &data, &Wanted { epoch: args.epoch, examples: args.show })?;
    if let (Some(_), false) = (&args.exclude_out, found.reference) {
        let why = "`exclude_out`: the run's loss reads no reference, so which labels are likely flipped cannot be said; leave it out";
        return Err(Error::usage(why));
    }
    if let Some(path) = &args.exclude_out {
        write_list(path, args.overwrite, &found)?;
    }
    match args.json {
        true => say::json(&as_json(&found, slices.as_ref())),
        false => table(&found, slices.as_ref()).iter().for_each(|line| say!("{line}")),
    }
    Ok(())
}

/// Writes the rows of likely flipped pairs.
fn write_list(path: &Path, overwrite: bool, found: &Analysis) -> Result<()> {
    let mut list = Target::open(path, overwrite)?;
    for row in &found.exclude {
        list.put((serde_json::to_string(row).expect("plain values") + "\n").as_bytes())?;
    }
    list.commit()?;
    note!("{}: {} rows for `pack --exclude`", path.display(), found.exclude.len());
    Ok(())
}

/// Refuses what has no effect.
fn check(args: &AnalyzeArgs) -> Result<()> {
    let refuse = |why: &str| Err(Error::usage(why));
    match (&args.by, args.input.is_empty()) {
        (Some(_), true) => {
            return refuse("`by`: the shards keep no columns; give the rows they were packed from as `input`");
        }
        (None, false) => {
            return refuse("`input` has no effect: rows are read for a column; give `by` too, or leave it out");
        }
        _ => {}
    }
    if args.exclude_out.as_deref() == Some(Path::new("-")) {
        return refuse("`exclude_out` -: standard output has what was found; name a file");
    }
    match args.overwrite && args.exclude_out.is_none() {
        true => refuse("`overwrite` has no effect: no file is written; give `exclude_out` too, or leave it out"),
        false => Ok(()),
    }
}

/// The folder of the shards.
fn data_of(args: &AnalyzeArgs) -> Result<PathBuf> {
    if let Some(data) = &args.data {
        return Ok(data.clone());
    }
    let config = RunDir::read_config(&args.run).and_then(|text| text.parse::<toml::Table>().ok());
    let data = config.and_then(|config| Some(PathBuf::from(config.get("data")?.as_str()?)));
    data.ok_or_else(|| Error::file(&args.run, "has no config.toml that says where its data lie; give `options.data`"))
}

type Slices = Vec<(String, Part)>;

fn slices(args: &AnalyzeArgs, by: &str, ledger: &Ledger, data: &Dataset) -> Result<Slices> {
    let Some(epoch) = args.epoch.or(analyze::usual_epoch(ledger)) else { return Ok(Vec::new()) };
    let (pairs, _) = analyze::of_epoch(ledger, data, epoch)?;
    let Column { values, known } = analyze::column(&args.input, by, data.folder())?;
    if !known {
        let of = data.folder().display();
        note!(
            "{of}: nothing there says which rows it was packed from; they are taken to be those of `--input`, in that order"
        );
    }
    Ok(analyze::slices(&pairs, |row| values.get(row as usize).map_or("(absent)", String::as_str)))
}

fn as_json(found: &Analysis, slices: Option<&(&str, Slices)>) -> Value {
    let mut all = serde_json::to_value(found).expect("plain values");
    if let Some((by, of)) = slices {
        let of: Vec<Value> = of.iter().map(|(value, part)| json!({"value": value, "part": part})).collect();
        all["by"] = json!(by);
        all["slices"] = of.into();
    }
    all
}

/// What a person reads.
fn table(a: &Analysis, slices: Option<&(&str, Slices)>) -> Vec<String> {
    let mut lines = vec![format!(
        "epoch {} of {:?}: {} of {} pairs; gain: how much likelier than under the reference chosen became than rejected, nats",
        a.epoch,
        a.epochs,
        grouped(a.all.pairs),
        grouped(a.num_pairs)
    )];
    if a.not_finite > 0 {
        lines.push(format!("{} pairs had numbers that are not finite, and are left out", grouped(a.not_finite)));
    }
    lines.push(String::new());
    lines.push(heading(""));
    lines.push(row("all pairs", &a.all));
    let l = &a.length_bias;
    let of_lengths = [
        ("chosen is longer", &l.chosen_longer),
        ("chosen is shorter", &l.chosen_shorter),
        ("same length", &l.same_length),
    ];
    lines.extend(of_lengths.iter().filter(|(_, part)| part.pairs > 0).map(|(name, part)| row(name, part)));
    lines.push(String::new());
    lines.push(format!(
        "length bias: chosen has {:+.1} tokens more in the mean; correlation of that with gain {:+.2}",
        l.tokens_more, l.correlation
    ));
    let d = &a.displacement;
    match a.reference {
        true => lines.push(format!(
        "displacement: of {:.1} % of the pairs both log-probs fell, of {:.1} % the chosen one; mean change {:+.2} (chosen), {:+.2} (rejected)",
        100.0 * d.both_fell,
        100.0 * d.chosen_fell,
        d.change_chosen,
        d.change_rejected
        )),
        false => lines.push(
            "the loss reads no reference: gain is the difference of the log-probs, and neither flipped labels nor displacement are told"
                .to_owned(),
        ),
    }
    if let Some((by, of)) = slices {
        lines.push(String::new());
        lines.push(heading(by));
        lines.extend(of.iter().take(MOST_SLICES).map(|(value, part)| row(value, part)));
        if of.len() > MOST_SLICES {
            lines.push(format!("and {} more values; --json has all", of.len() - MOST_SLICES));
        }
    }
    if !a.reference {
        kind(&mut lines, "hardest pairs, by loss", &a.hardest);
        kind(&mut lines, "contradicting duplicates, the one that the model agrees with first", &a.contradicting);
        return lines;
    }
    let judged = match a.judged {
        n if n == a.all.pairs => String::new(),
        n => format!(" of {} that the model knew enough to judge", grouped(n)),
    };
    kind(&mut lines, &format!("likely flipped labels{judged}"), &a.flipped);
    kind(&mut lines, "hardest pairs, by loss", &a.hardest);
    kind(&mut lines, "both log-probs fell", &a.displaced);
    kind(&mut lines, "contradicting duplicates, the one that the model agrees with first", &a.contradicting);
    lines
}

fn heading(by: &str) -> String {
    format!("{:<40} {:>10} {:>10} {:>10} {:>10}", short(by, 40), "pairs", "accuracy", "gain", "loss")
}

fn row(name: &str, p: &Part) -> String {
    format!("{:<40} {:>10} {:>10.3} {:>10.3} {:>10.4}", short(name, 40), grouped(p.pairs), p.accuracy, p.gain, p.loss)
}

fn kind(lines: &mut Vec<String>, name: &str, of: &Found) {
    lines.push(String::new());
    lines.push(format!("{name}: {}", grouped(of.pairs)));
    of.examples.iter().for_each(|e| example(lines, e));
}

fn example(lines: &mut Vec<String>, e: &Example) {
    lines.push(format!(
        "  row {}, pair {}, step {}: gain {:+.3} (chosen {:+.3}, rejected {:+.3}), loss {:.4}, {} and {} tokens",
        e.row, e.pair, e.step, e.gain, e.change_chosen, e.change_rejected, e.loss, e.tokens[0], e.tokens[1]
    ));
    for (name, text) in [("prompt", &e.prompt), ("chosen", &e.chosen), ("rejected", &e.rejected)] {
        lines.push(format!("    {name:<9}{}", short(text, LONGEST)));
    }
}

/// In one line, its end left out where it is long.
fn short(text: &str, longest: usize) -> String {
    let line = text.replace('\n', "\\n");
    match line.chars().count() > longest {
        true => line.chars().take(longest - 3).collect::<String>() + "...",
        false => line,
    }
}
