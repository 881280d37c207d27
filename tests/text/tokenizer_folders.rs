//! Tokenizer folders as transformers reads them: folders made at random, the same ids or both refuse.

use fusedpo::data::text::{TextTokenizer, TokenizerOptions};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// A Python that has transformers, or a line that says why not.
fn python(test: &str) -> Option<std::path::PathBuf> {
    let python = std::env::var_os("FUSEDPO_PYTHON").map(std::path::PathBuf::from);
    let Some(python) = python else {
        println!("skipped: {test} (FUSEDPO_PYTHON is not set)");
        return None;
    };
    let has = Command::new(&python).args(["-c", "import transformers"]).output().is_ok_and(|o| o.status.success());
    if !has {
        println!("skipped: {test} ({} has no transformers)", python.display());
        return None;
    }
    Some(python)
}

fn count(default: usize) -> usize {
    std::env::var("FUSEDPO_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// How a folder came out the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Same {
    Ids,
    /// The same ids from what transformers saved, though the description says something else.
    NotKnownAgain,
    /// Both refuse it.
    Refused,
    /// Its ids are left to chance, which is refused.
    ByChance,
}

/// What is different, if anything is.
fn compare(dir: &Path, case: &Value) -> Result<Same, String> {
    let loaded = TextTokenizer::load(dir, &TokenizerOptions::default());
    let tok = match (&case["error"], loaded) {
        (Value::Null, Ok(tok)) => tok,
        (Value::Null, Err(e)) if e.to_string().contains("left to chance") => return Ok(Same::ByChance),
        (Value::Null, Err(e)) => return Err(format!("refused: {e}")),
        (why, Ok(_)) => return Err(format!("accepted, but transformers: {why}")),
        (_, Err(_)) => return Ok(Same::Refused),
    };
    let texts = case["texts"].as_array().unwrap();
    for (i, text) in texts.iter().map(|t| t.as_str().unwrap()).enumerate() {
        for (what, got) in [("ids", tok.encode(text)), ("bare", tok.encode_bare(text))] {
            let want = &case[what][i];
            match got {
                Err(_) if want.is_null() => {}
                Ok(got) if !want.is_null() && got == ids(want) => {}
                got => return Err(format!("{text:?} {what}: {got:?}, not {want}")),
            }
        }
    }
    let eos = tok.eos.as_ref().map(|e| u64::from(e.id));
    if eos != case["eos"].as_u64() {
        return Err(format!("eos {eos:?}, not {}", case["eos"]));
    }
    if u64::from(tok.vocab_size) != case["len"].as_u64().unwrap() {
        return Err(format!("{} tokens, not {}", tok.vocab_size, case["len"]));
    }
    // What is written beside shards is this tokenizer.
    let copy = dir.join("copy");
    std::fs::create_dir(&copy).unwrap();
    std::fs::write(copy.join("tokenizer.json"), tok.json()).unwrap();
    std::fs::write(copy.join("tokenizer_config.json"), tok.config_json().to_string()).unwrap();
    let again = TextTokenizer::load(&copy, &TokenizerOptions::default()).map_err(|e| format!("its copy: {e}"))?;
    let by_file = tok.sha256 != tok.meaning();
    if again.meaning() != tok.meaning() || again.eos != tok.eos || (by_file && again.sha256 != tok.sha256) {
        let same = [again.meaning() == tok.meaning(), again.eos == tok.eos, again.sha256 == tok.sha256];
        return Err(format!("its copy is another tokenizer: {same:?}, by file {by_file}"));
    }
    // So is what transformers makes of it when it saves it.
    let resaved = dir.join("resaved");
    let again = TextTokenizer::load(&resaved, &TokenizerOptions::default()).map_err(|e| format!("resaved: {e}"))?;
    // Not always: it forgets `legacy`, say. Then it is another tokenizer for us too.
    match (again.meaning() == tok.meaning(), case["again"] == case["ids"]) {
        (true, false) => Err("saved again, other ids from the same tokenizer".into()),
        (false, true) => Ok(Same::NotKnownAgain),
        _ => Ok(Same::Ids),
    }
}

#[test]
fn folders_give_the_ids_that_transformers_gives() {
    let Some(python) = python("folders_give_the_ids_that_transformers_gives") else { return };
    let n = count(150);
    let same = compared(&python, n, &[]);
    assert!(same[&Same::Ids] > n * 9 / 10, "{same:?} of {n}");
}

/// Large ones that ask for Mistral's pattern.
#[test]
fn the_pattern_of_mistral_is_mended_where_transformers_mends_it() {
    let Some(python) = python("the_pattern_of_mistral_is_mended_where_transformers_mends_it") else { return };
    let n = count(12);
    let same = compared(&python, n, &["mistral"]);
    assert!(same[&Same::Ids] > n / 2, "{same:?} of {n}");
}

/// How `n` folders came out the same, that the script made with `more` arguments.
fn compared(python: &Path, n: usize, more: &[&str]) -> BTreeMap<Same, usize> {
    let out = tempfile::tempdir().unwrap();
    let seed = std::env::var("FUSEDPO_SEED").unwrap_or_else(|_| "7".into());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/tokenizer_cases.py");
    let made =
        Command::new(python).arg(script).arg(out.path()).args([&n.to_string(), &seed]).args(more).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let cases = std::fs::read_to_string(out.path().join("cases.jsonl")).unwrap();
    let (mut same, mut wrong) = (BTreeMap::<Same, usize>::new(), Vec::new());
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for line in cases.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let name = case["name"].as_str().unwrap();
        match compare(&out.path().join(name), &case) {
            Ok(how) => *same.entry(how).or_default() += 1,
            Err(why) => wrong.push(format!("{name} {}: {why}", case["class"])),
        }
        *kinds.entry(case["class"].as_str().unwrap_or("refused").to_owned()).or_default() += 1;
    }
    println!("{same:?}, {} differ; {kinds:?}", wrong.len());
    if !wrong.is_empty() {
        let kept = out.keep();
        panic!("{} differ, in {}:\n{}", wrong.len(), kept.display(), wrong[..wrong.len().min(25)].join("\n"));
    }
    same
}
