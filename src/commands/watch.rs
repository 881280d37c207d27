//! `fusedpo watch`.

use super::curves::{Look, beyond, curve, short};
use super::signal;
use crate::error::{Error, Result};
use crate::files::RunDir;
use crate::say;
use crate::train::record::{Outcome, Record};
use console::Term;
use serde_json::Value;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Draw a run's curves, again and again until it ends.
#[derive(Clone, Debug, clap::Args)]
pub struct WatchArgs {
    /// Folder of the run; it need not be there yet
    pub run: PathBuf,
    /// Draw once and end
    #[arg(long)]
    pub once: bool,
    /// Draw with ASCII alone, as where the locale is not UTF-8
    #[arg(long)]
    pub ascii: bool,
}

/// What is drawn: keys of metrics, with their names. Where the first of two neighbours is there, the second says the same.
const CURVES: [(&str, &str); 6] = [
    ("loss", "loss"),
    ("rewards/margins", "reward margin"),
    ("rewards/accuracies", "accuracy"),
    ("mean_token_accuracy", "token accuracy"),
    ("learning_rate", "learning rate"),
    ("tokens_per_second", "tokens a second"),
];

/// Shortest time between two looks, and how many times as long as a look took.
const EVERY: (Duration, u32) = (Duration::from_secs(1), 20);

/// (step, value) of a curve, of training and held out.
type Points = [Vec<(f64, f64)>; 2];

/// What `metrics.jsonl` says.
#[derive(Default)]
struct Seen {
    curves: [Points; CURVES.len()],
    step: u64,
    epoch: f64,
    /// Mean of late.
    seconds: Option<f64>,
}

impl Seen {
    /// Of the run in `path`; `None` where there is none yet.
    fn of(path: &Path) -> Result<Option<Self>> {
        if !RunDir::is_there(path) {
            return Ok(None);
        }
        let mut seen = Self::default();
        RunDir::each_row_of(path, |row| {
            let number = |key: &str| row.get(key).and_then(Value::as_f64);
            let Some(step) = number("step") else { return };
            for ((key, _), [train, held_out]) in CURVES.iter().zip(&mut seen.curves) {
                train.extend(number(key).map(|y| (step, y)));
                held_out.extend(number(&format!("eval_{key}")).map(|y| (step, y)));
            }
            seen.step = seen.step.max(step as u64);
            seen.epoch = number("epoch").unwrap_or(seen.epoch);
            if let Some(s) = number("step_seconds") {
                seen.seconds = Some(seen.seconds.map_or(s, |mean| 0.95 * mean + 0.05 * s));
            }
        })?;
        Ok(Some(seen))
    }
}

/// How a run is, and whether that is its end.
fn state(path: &Path, seen: Option<&Seen>) -> (String, bool) {
    let name = path.display();
    let Some(seen) = seen else { return (format!("{name}: not begun"), false) };
    // Asked before the record: who ends writes it first.
    let taken = RunDir::is_taken(path);
    let Some(record) = Record::read(path) else {
        return (format!("{name}: at step {}; its run.json cannot be read", seen.step), false);
    };
    let (outcome, ended) = match record.outcome {
        Outcome::Running if taken => ("running".to_owned(), false),
        Outcome::Running | Outcome::Killed => ("killed; --resume auto goes on with it".to_owned(), false),
        Outcome::Finished => ("finished".to_owned(), true),
        Outcome::Stopped => ("stopped; --resume auto goes on with it".to_owned(), true),
        Outcome::Failed => (format!("failed: {}", say::one_line(record.error.as_deref().unwrap_or("no reason"))), true),
    };
    let stage = record.options.get("stage").and_then(Value::as_str).unwrap_or("run");
    let mut text = format!("{name}: {stage}, step {} of {}, epoch {:.2}", seen.step, record.steps_asked, seen.epoch);
    if let Some(s) = seen.seconds {
        text += &format!(", {} s a step", short(s));
        let left = record.steps_asked.saturating_sub(seen.step);
        if !ended && taken && left > 0 {
            text += &format!(", {} left", crate::units::duration(s * left as f64));
        }
    }
    (format!("{text}: {outcome}"), ended && !taken)
}

/// `text` in lines of at most `width` characters, cut between its words; a word that is longer has a line of its own.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The lines of `state`, and as many curves as there are and find room, for `lines` lines of `width` characters.
fn picture(state: Vec<String>, seen: Option<&Seen>, (lines, width): (usize, usize), ascii: bool) -> Vec<String> {
    let mut text = state;
    let Some(seen) = seen else { return text };
    let of_pairs = !seen.curves[2].iter().all(Vec::is_empty);
    let is_drawn = |key: &str, [train, held_out]: &Points| {
        !(train.is_empty() && held_out.is_empty() || of_pairs && key == "mean_token_accuracy")
    };
    let drawn = CURVES.iter().zip(&seen.curves).filter(|((key, _), points)| is_drawn(key, points));
    // The cursor has a line, and a curve three at least: what would be cut is left out.
    let room = lines.saturating_sub(1 + text.len());
    let drawn: Vec<_> = drawn.take((room / 3).max(1)).collect();
    let height = (room / drawn.len().max(1)).saturating_sub(1).clamp(2, 8);
    for ((_, name), [train, held_out]) in drawn {
        let last = |points: &Vec<(f64, f64)>| points.last().map(|(_, y)| short(*y));
        let mut title = format!("{name} {}", last(train).unwrap_or_default());
        if let Some(value) = last(held_out) {
            title += &format!(", held out {value} (o)");
        }
        if let Some((_, (step, y))) = beyond(train) {
            title += &format!("; {} at step {step}, beyond the picture", short(y));
        }
        text.push(title);
        text.extend(curve(train, held_out, Look { width, height, ascii }));
    }
    if seen.step == 0 {
        text.push("no step yet".to_owned());
    }
    text
}

/// Whether the locale has other characters than ASCII, as C programs ask.
fn is_utf8() -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"].iter().filter_map(|name| std::env::var(name).ok());
    set.into_iter().find(|value| !value.is_empty()).is_some_and(|value| {
        let value = value.to_ascii_lowercase();
        value.contains("utf-8") || value.contains("utf8")
    })
}

/// Draws, until the run has ended or a signal comes.
pub fn run(args: &WatchArgs) -> Result<()> {
    let (path, ascii) = (&args.run, args.ascii || !is_utf8());
    let terminal = std::io::stdout().is_terminal();
    let (mut drawn, mut lines, mut before) = (String::new(), 0, None);
    loop {
        let looked = Instant::now();
        Record::refuse_newer(path)?;
        let seen = Seen::of(path)?;
        let size = Term::stdout().size_checked().filter(|_| terminal);
        let (high, wide) = size.map_or((40, 80), |(high, wide)| (usize::from(high), usize::from(wide)));
        if seen.is_none() && args.once {
            return Err(Error::file(path, "is not the folder of a run: it has no metrics.jsonl"));
        }
        let (state, ended) = state(path, seen.as_ref());
        let last = ended || args.once;
        let mut now = match terminal || last {
            true => {
                // Whoever reads a line from a pipe gets it whole.
                let state = if terminal { wrapped(&state, wide) } else { vec![state] };
                picture(state, seen.as_ref(), (high, wide), ascii)
            }
            false => vec![state],
        };
        let redraws = terminal && !args.once;
        if redraws {
            // A line that wraps would be two to whoever draws over it.
            now.iter_mut().for_each(|line| *line = line.chars().take(wide).collect());
            // Nor does one get back above the first line.
            now.truncate(high.saturating_sub(1).max(1));
        }
        let now = now.join("\n");
        // Lines that another width wraps, or another height pushes away, are not where they were.
        let resized = before.replace(size).is_some_and(|before| before != size);
        if now != drawn || resized && redraws {
            match redraws {
                true if resized => say::draw_anew(&now),
                true => say::redraw(&now, lines),
                false => say!("{now}"),
            }
            lines = now.lines().count();
            drawn = now;
        }
        if last {
            return Ok(());
        }
        let until = Instant::now() + EVERY.0.max(EVERY.1 * looked.elapsed());
        while Instant::now() < until {
            if signal::stop_requested() {
                return Err(Error::stopped("stopped watching; the run is as it was"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_between_words() {
        let text = "a-run: dpo, step 96 of 300: running";
        assert_eq!(wrapped(text, 80), [text]);
        assert_eq!(wrapped(text, 12), ["a-run: dpo,", "step 96 of", "300: running"]);
        assert_eq!(wrapped(text, 1).len(), 7, "a word is never cut");
        for width in 8..40 {
            let lines = wrapped(text, width);
            assert_eq!(lines.join(" "), text);
            assert!(lines.iter().all(|line| line.chars().count() <= width), "{lines:?}");
        }
    }

    /// Nothing is drawn that would be cut: no title without its curve, and no line for which there is no room.
    #[test]
    fn curves_find_room() {
        let mut seen = Seen { step: 9, ..Default::default() };
        for points in &mut seen.curves {
            points[0] = (0..9).map(|i| (f64::from(i), f64::from(i * i % 7))).collect();
        }
        let state = "r: dpo, step 9 of 9, epoch 1.00, 1.234 s a step: stopped; --resume auto goes on with it";
        for (lines, width) in (8..60).zip((24..160).step_by(5).cycle()) {
            let head = wrapped(state, width);
            let n = head.len();
            let text = picture(head, Some(&seen), (lines, width), false);
            let titles = text.iter().filter(|line| CURVES.iter().any(|(_, name)| line.starts_with(name))).count();
            let curves = text.iter().filter(|line| line.contains('|')).count();
            assert!(
                titles >= 1 && text.len() == n + titles + curves && curves >= 2 * titles,
                "{lines}x{width}: {text:#?}"
            );
            assert!(text.len() < lines || titles == 1, "{lines}x{width}: {text:#?}");
        }
        let whole = picture(vec![state.to_owned()], Some(&seen), (24, 80), false);
        assert_eq!(whole.iter().filter(|line| !line.contains('|')).count(), 6, "five curves, and the state");
    }
}
