//! What the ledger of a run says of its pairs: likely flipped labels and the hardest, with their texts, where the data still lies where
//! it lay.

use super::data::splits;
use super::diff;
use super::html;
use super::run::Run;
use super::samples::cut;
use crate::analyze::{Analysis, Example, Found, Wanted, analyze};
use crate::chart::{short, swatch};
use crate::data::numbers::grouped;
use crate::train::ledger::Ledger;
use std::fmt::Write;

/// Pairs of a kind that are shown of a run.
const SHOWN: usize = 8;

pub(super) fn inner(runs: &[Run]) -> String {
    let mut out = String::new();
    for (i, run) in runs.iter().enumerate() {
        let Some(found) = of(run) else { continue };
        // Writing to text does not fail.
        let _ = match found {
            Ok(found) => {
                writeln!(out, "<h3>{} {}</h3>\n{}", swatch(i, None), html::text(&run.name), said(&found))
            }
            Err(why) => {
                writeln!(out, "<h3>{} {}</h3>\n<p>{}</p>", swatch(i, None), html::text(&run.name), html::text(&why))
            }
        };
    }
    out
}

/// `None`: the run keeps no ledger, or has no step in it.
fn of(run: &Run) -> Option<Result<Analysis, String>> {
    let ledger = match Ledger::open(&run.folder) {
        Ok(ledger) => ledger.filter(|ledger| !ledger.epochs().is_empty())?,
        Err(e) => return Some(Err(e.to_string())),
    };
    let read = |data: &[crate::data::shard::Dataset]| {
        let train = data.first().ok_or("the data has no training split")?;
        analyze(&ledger, train, &Wanted { epoch: None, examples: SHOWN }).map_err(|e| e.to_string())
    };
    Some(splits(run)?.and_then(|data| read(&data)))
}

fn said(a: &Analysis) -> String {
    let share = |n: u64, of: u64| match of {
        0 => String::new(),
        of => format!(" <small>{:.1} %</small>", 100.0 * n as f64 / of as f64),
    };
    let all = a.all.pairs;
    let facts = [
        ("Pairs of epoch", format!("{} <small>in epoch {}</small>", grouped(all), a.epoch + 1)),
        ("Likely flipped labels", grouped(a.flipped.pairs) + &share(a.flipped.pairs, a.judged)),
        ("Preferred by the model", format!("{:.3}", a.all.accuracy)),
        ("Both responses less likely", grouped(a.displaced.pairs) + &share(a.displaced.pairs, all)),
        ("Said both ways by the data", grouped(a.contradicting.pairs)),
    ];
    // Of a loss without a reference neither is known.
    let known = |name: &str| a.reference || !["Likely flipped labels", "Both responses less likely"].contains(&name);
    let tile = |(name, value): &(&str, String)| format!("<div><dt>{name}</dt><dd>{value}</dd></div>\n");
    let tiles: String = facts.iter().filter(|(name, _)| known(name)).map(tile).collect();
    format!(
        "<dl class=\"tiles\">\n{tiles}</dl>\n{}{}",
        kind("Likely flipped labels, the surest first", &a.flipped),
        kind("The hardest pairs: those of the largest loss", &a.hardest)
    )
}

fn kind(title: &str, found: &Found) -> String {
    if found.examples.is_empty() {
        return String::new();
    }
    let shown: String = found.examples.iter().map(one).collect();
    format!(
        "<details><summary>{title} ({} of {})</summary>\n{shown}</details>\n",
        found.examples.len(),
        grouped(found.pairs)
    )
}

fn one(e: &Example) -> String {
    let [chosen, rejected] = diff::marked(&cut(&e.chosen), &cut(&e.rejected));
    let side = |who: &str, tokens: u32, change: f64, text: &str| {
        format!(
            "<div><h5>{who} <small>{tokens} tokens, log-prob changed by {}</small></h5><p class=\"text\">{text}</p></div>\n",
            short(change)
        )
    };
    format!(
        "<article class=\"sample\">\n<h4>Row {}, loss {} at step {}, gain {} nats</h4>\n<p class=\"text prompt\">{}</p>\n\
         <div class=\"pair\">\n{}{}</div>\n</article>\n",
        e.row,
        short(f64::from(e.loss)),
        e.step,
        short(e.gain),
        html::text(&cut(&e.prompt)),
        side("Chosen", e.tokens[0], e.change_chosen, &chosen),
        side("Rejected", e.tokens[1], e.change_rejected, &rejected)
    )
}
