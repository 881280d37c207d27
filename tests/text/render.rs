//! Chat templates against `transformers` 5.23.0 itself: random templates and conversations, the same text or both refuse.

use fusedpo::data::text::ChatTemplate;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

const SCRIPT: &str = "tests/render/reference.py";

/// Python with `transformers` and `jinja2`, if there is one: `$FUSEDPO_PYTHON`, else `python3`.
fn python() -> Option<String> {
    let exe = std::env::var("FUSEDPO_PYTHON").unwrap_or_else(|_| "python3".into());
    let asks = "import transformers, jinja2; assert transformers.__version__ == '5.23.0', transformers.__version__";
    let found = Command::new(&exe).args(["-c", asks]).output().is_ok_and(|out| out.status.success());
    if !found {
        println!(
            "skipped: comparison with transformers (no python3 with transformers 5.23.0 and jinja2; FUSEDPO_PYTHON names one)"
        );
    }
    found.then_some(exe)
}

/// What ours makes of a case: the text, or the error.
fn ours(case: &Value) -> Result<String, String> {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>"), ("pad_token", "<pad>")];
    let tokens = tokens.map(|(name, text)| (name.to_owned(), text.to_owned())).to_vec();
    let source = case["template"].as_str().unwrap().to_owned();
    let template = ChatTemplate::new(source, tokens, Path::new("t.jinja")).map_err(|e| e.to_string())?;
    let kwargs: Map<String, Value> = case["kwargs"].as_object().unwrap().clone();
    let messages = case["messages"].as_array().unwrap();
    template.render(messages, case["prompt"].as_bool().unwrap(), Some(&case["tools"]), &kwargs)
}

const REFUSED: &str = " is not supported in chat templates here";

#[derive(Default)]
struct Tally {
    cases: usize,
    texts: usize,
    errors: usize,
    refused: BTreeMap<String, usize>,
    wrong: Vec<String>,
}

impl Tally {
    fn add(&mut self, line: &str) {
        let case: Value = serde_json::from_str(line).unwrap();
        self.cases += 1;
        let shown = || format!("{}\n  of {}", case["template"], line.chars().take(3000).collect::<String>());
        match (case["text"].as_str(), ours(&case)) {
            (Some(want), Ok(got)) if want == got => self.texts += 1,
            (None, Err(_)) => self.errors += 1,
            (Some(_), Err(why)) if why.contains(REFUSED) => {
                let name = why.split(": ").last().unwrap_or(&why).split(REFUSED).next().unwrap_or_default().to_owned();
                *self.refused.entry(name).or_default() += 1;
            }
            (Some(want), Err(why)) => self.wrong.push(format!("{}\n  want {want:?}\n  but ours: {why}", shown())),
            (Some(want), Ok(got)) => self.wrong.push(format!("{}\n  want {want:?}\n  got  {got:?}", shown())),
            (None, Ok(got)) => self.wrong.push(format!("{}\n  want {}\n  got  {got:?}", shown(), case["error"])),
        }
    }

    fn check(&self, what: &str) {
        println!(
            "{what}: {} cases, {} the same text, {} refused by both, {} refused here by name: {:?}",
            self.cases,
            self.texts,
            self.errors,
            self.refused.values().sum::<usize>(),
            self.refused
        );
        let some = self.wrong.iter().take(8).cloned().collect::<Vec<_>>().join("\n\n");
        assert!(self.wrong.is_empty(), "{} of {} differ from transformers:\n{some}", self.wrong.len(), self.cases);
    }
}

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

/// Runs the script with `args`; at least a share of `least` of its cases must render.
fn compare(python: &str, args: &[String], what: &str, least: f64) {
    let mut script = Command::new(python);
    let mut child = script.arg(SCRIPT).args(args).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let mut tally = Tally::default();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        tally.add(&line.unwrap());
    }
    assert!(child.wait().unwrap().success());
    assert!(tally.texts as f64 >= tally.cases as f64 * least, "too few render: {} of {}", tally.texts, tally.cases);
    tally.check(what);
}

/// `FUSEDPO_RENDER_TEMPLATES` of them, each with `FUSEDPO_RENDER_CONVERSATIONS`, from seed `FUSEDPO_RENDER_SEED`.
#[test]
fn random_templates_render_as_transformers_renders_them() {
    let Some(python) = python() else { return };
    let (templates, talks) = (number("FUSEDPO_RENDER_TEMPLATES", 300), number("FUSEDPO_RENDER_CONVERSATIONS", 4));
    let seed = number("FUSEDPO_RENDER_SEED", 1);
    compare(&python, &[seed, templates, talks].map(|n| n.to_string()), "random templates", 0.5);
}

/// Templates of the families in use, in words of our own; further ones below the folder `FUSEDPO_RENDER_FOLDER`.
#[test]
fn templates_as_models_have_them_render_as_transformers_renders_them() {
    let Some(python) = python() else { return };
    let (seed, talks) = (number("FUSEDPO_RENDER_SEED", 1), number("FUSEDPO_RENDER_CONVERSATIONS", 20));
    let more = std::env::var("FUSEDPO_RENDER_FOLDER").ok();
    for folder in std::iter::once("tests/render/templates".to_owned()).chain(more) {
        compare(&python, &[seed.to_string(), folder.clone(), talks.to_string()], &folder, 0.2);
    }
}
