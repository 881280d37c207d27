//! What a run's responses are worth: by the demo's grammar, or by a program of the user's.

use super::inputs::{Inputs, Marks};
use crate::commands::child::{self, Ended};
use crate::demo::grammar::Grammar;
use crate::demo::words::split;
use crate::files;
use crate::sweep::{Scores, Spec};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// The responses of a run, as `generate` writes them.
pub(super) const GENERATIONS: &str = "generations.jsonl";

/// What came of scoring them.
const SCORES: &str = "scores.json";

/// Longest file of responses that is read.
const MOST: u64 = 1 << 30;

/// Seconds that a scorer has where nobody says how many.
const TIMEOUT: f64 = 600.0;

/// The scores of the run in `out`; kept there. Errors: why there are none; `None`: a signal came.
pub(super) fn of(spec: &Spec, inputs: &Inputs, out: &Path) -> Result<Scores, Option<String>> {
    let path = out.join(SCORES);
    let marks = Marks { prompts: Some(inputs.prompts()), scorer: Some(inputs.scorer()) };
    let found = files::read_text(&path, MOST).ok().and_then(|text| serde_json::from_str(&text).ok());
    if let (Some(found), true) = (found, Marks::of(out) == marks) {
        return Ok(found);
    }
    let text = files::read_text(&out.join(GENERATIONS), MOST).map_err(|e| Some(e.to_string()))?;
    let scores = match &spec.measure.scorer {
        Some(program) => {
            let limit = Duration::from_secs_f64(spec.measure.scorer_timeout.unwrap_or(TIMEOUT));
            let of = text.lines().count();
            match child::run_program(program, text.into_bytes(), limit) {
                Ended::Well(said) => numbers(&said, of).map_err(|why| Some(format!("the scorer {why}")))?,
                Ended::Stopped => return Err(None),
                Ended::Badly(why) => return Err(Some(format!("the scorer {why}"))),
            }
        }
        None => demo(&text).map_err(Some)?,
    };
    if scores.is_empty() {
        return Err(Some("there is no prompt to answer".into()));
    }
    let scores = Scores::of(&scores);
    if ![&[scores.reward][..], &scores.reward_ci95[..]].concat().iter().all(|x| x.is_finite()) {
        return Err(Some("the scorer's numbers are too large for a mean".into()));
    }
    let text = serde_json::to_string(&scores).map_err(|e| Some(e.to_string()))? + "\n";
    // One that is killed between the two must not take the scores for those of another scorer.
    let unscored = Marks { prompts: Some(inputs.prompts()), scorer: None };
    let written =
        unscored.write(out).and_then(|()| files::write(&path, text.as_bytes())).and_then(|()| marks.write(out));
    written.map_err(|e| Some(e.to_string()))?;
    Ok(scores)
}

/// Why the file of responses at `path` is not as it was written, a line for each of `of` prompts; `None`: it is.
pub(super) fn damage(path: &Path, of: usize) -> Option<String> {
    let text = match files::read_text(path, MOST) {
        Ok(text) => text,
        Err(e) => return Some(format!("cannot be read ({e})")),
    };
    let lines = text.lines().count();
    if lines != of || !text.ends_with('\n') {
        let cut = if text.ends_with('\n') || text.is_empty() { "" } else { ", the last of them cut short" };
        return Some(format!("has {lines} lines{cut}, and there are {of} prompts"));
    }
    let sound = |(i, line): (usize, &str)| {
        let row: Value = serde_json::from_str(line).unwrap_or_default();
        row["row"].as_u64() == Some(i as u64) && row["index"].as_u64() == Some(0) && row["completion"].is_string()
    };
    let bad = text.lines().enumerate().position(|line| !sound(line))?;
    Some(format!("has a line {} that is no response to its prompt", bad + 1))
}

/// A finite number a line, as many as there are responses.
fn numbers(said: &[u8], of: usize) -> Result<Vec<f64>, String> {
    let text = std::str::from_utf8(said).map_err(|_| "printed what is no text")?;
    let mut scores = Vec::with_capacity(of);
    for (i, line) in text.lines().enumerate() {
        if i == of {
            return Err(format!("printed more lines than the {of} responses that it was given"));
        }
        match line.trim().parse::<f64>() {
            Ok(x) if x.is_finite() => scores.push(x),
            _ => {
                let shown: String = line.chars().take(60).collect();
                return Err(format!("printed `{shown}` in line {}, which is no finite number", i + 1));
            }
        }
    }
    if scores.len() < of {
        return Err(format!("printed {} scores for {of} responses", scores.len()));
    }
    Ok(scores)
}

/// Rewards of whole texts, prompt and response, by the demo's grammar.
fn demo(text: &str) -> Result<Vec<f64>, String> {
    let grammar = Grammar::reviews();
    let reward = |line: &str| {
        let row: Value = serde_json::from_str(line).map_err(|e| format!("{GENERATIONS}: {e}"))?;
        let part = |key: &str| row[key].as_str().map(str::to_owned);
        let (Some(prompt), Some(completion)) = (part("prompt"), part("completion")) else {
            return Err("the demo's reward is of plain prompts; `prompts` has messages".to_owned());
        };
        // The token before every text of the demo's.
        let mut words = split(prompt.trim_start_matches("<s>"));
        words.extend(split(&completion));
        Ok(grammar.reward(&words))
    };
    text.lines().map(reward).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_responses_is_whole_or_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.jsonl");
        let line = |row: usize| format!("{{\"row\":{row},\"index\":0,\"completion\":\"x\"}}\n");
        let whole: String = (0..3).map(line).collect();
        let found = |text: &str| {
            files::write(&path, text.as_bytes()).unwrap();
            damage(&path, 3)
        };
        assert_eq!(found(&whole), None);
        assert_eq!(found("").unwrap(), "has 0 lines, and there are 3 prompts");
        assert_eq!(found(&(line(0) + &line(1))).unwrap(), "has 2 lines, and there are 3 prompts");
        let cut = &whole[..whole.len() - 5];
        assert_eq!(found(cut).unwrap(), "has 3 lines, the last of them cut short, and there are 3 prompts");
        assert_eq!(found(&(line(0) + &line(2) + &line(2))).unwrap(), "has a line 2 that is no response to its prompt");
        assert_eq!(found(&(whole.clone() + &line(3))).unwrap(), "has 4 lines, and there are 3 prompts");
        assert!(found(&whole.replace("\"x\"", "1")).unwrap().contains("a line 1"));
        assert!(damage(dir.path(), 3).is_some());
    }

    #[test]
    fn scores_are_as_many_finite_numbers_as_responses() {
        assert_eq!(numbers(b"1\n -2.5e0 \n3", 3).unwrap(), [1.0, -2.5, 3.0]);
        for (said, want) in [
            (&b"1\n2\n"[..], "printed 2 scores for 3 responses"),
            (b"1\n2\n3\n4\n", "more lines than the 3"),
            (b"1\nx\n3\n", "`x` in line 2"),
            (b"1\nnan\n3\n", "`nan` in line 2"),
            (b"1\n\n3\n", "`` in line 2"),
            (b"\xff\n", "no text"),
            (b"", "printed 0 scores"),
        ] {
            let why = numbers(said, 3).unwrap_err();
            assert!(why.contains(want), "{why}");
        }
    }

    #[test]
    fn the_demos_reward_is_of_the_whole_text() {
        let line = |prompt: &str, completion: &str| {
            serde_json::json!({"prompt": prompt, "completion": completion}).to_string()
        };
        let text =
            [line("<s> the film was superb", ", but the plot was bad."), line("the film", "was shown")].join("\n");
        let scores = demo(&text).unwrap();
        assert!((scores[0] - 1.0 / 6.0).abs() < 1e-12 && scores[1] == 0.0, "{scores:?}");
        assert!(demo("{\"prompt\": [], \"completion\": \"x\"}").unwrap_err().contains("plain prompts"));
    }
}
