//! What the pages for users say: their commands run, their messages are the program's, and what they say of TRL's keys is what
//! the program answers.

use crate::cli_common;

use cli_common::*;
use fusedpo::cli::Cli as Program;
use fusedpo::commands::trl_keys;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};

pub fn root() -> PathBuf {
    golden("../..")
}

pub fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// README.md and the pages of docs/, by their paths; results are of other days' programs.
fn pages() -> Vec<(String, String)> {
    let names = std::fs::read_dir(root().join("docs")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut all: Vec<String> = names.filter(|n| n.ends_with(".md")).map(|n| format!("docs/{n}")).collect();
    all.push("README.md".into());
    all.sort();
    all.into_iter().map(|name| (name.clone(), page(&name))).collect()
}

/// Fenced blocks that begin with ```` ```KIND ````.
fn blocks(text: &str, kind: &str) -> Vec<String> {
    let (mut all, mut open): (Vec<String>, Option<bool>) = (Vec::new(), None);
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), open) {
            (Some(info), None) => {
                open = Some(info == kind);
                if info == kind {
                    all.push(String::new());
                }
            }
            (Some(_), Some(_)) => open = None,
            (None, Some(true)) => {
                let block = all.last_mut().unwrap();
                block.push_str(line);
                block.push('\n');
            }
            _ => {}
        }
    }
    assert!(open.is_none(), "a block without an end");
    all
}

/// Words of a line as a shell has them, and where a command ends (`&&`, `|`, `;`, a comment) or gives its output to a file, a new list.
fn commands(line: &str) -> Vec<Vec<String>> {
    let (mut all, mut word, mut quote): (Vec<Vec<String>>, Option<String>, Option<char>) = (vec![vec![]], None, None);
    for c in line.chars().chain([' ']) {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, c) if c.is_whitespace() => match word.take() {
                Some(end) if ["&&", "||", "|", ";", ">", "<", "&"].contains(&end.as_str()) => all.push(vec![]),
                Some(w) => all.last_mut().unwrap().push(w),
                None => {}
            },
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    assert_eq!(quote, None, "{line}");
    all.retain(|words| !words.is_empty());
    all
}

/// Options of a command by its name, and those that are everywhere.
fn options(command: &str) -> BTreeSet<String> {
    let program = Program::program();
    let of = program.find_subcommand(command);
    let within = of.into_iter().flat_map(clap::Command::get_subcommands);
    let own = of.into_iter().chain(within).flat_map(clap::Command::get_arguments);
    own.chain(program.get_arguments()).filter_map(|a| Some(format!("--{}", a.get_long()?))).collect()
}

fn every_option() -> BTreeSet<String> {
    Program::program().get_subcommands().flat_map(|c| options(c.get_name())).collect()
}

/// Words between backticks within a line.
fn spans(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut all = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            all.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    all
}

#[test]
fn every_command_in_the_docs_is_one() {
    let mut seen = 0;
    for (name, text) in pages() {
        for block in blocks(&text, "sh").into_iter().chain(blocks(&text, "sh not-run")) {
            for line in block.replace("\\\n", " ").lines() {
                for words in commands(line) {
                    if words[0] == "fusedpo" {
                        if let Err(e) = Program::program().try_get_matches_from(&words) {
                            panic!("{name}: {line}\n{e}");
                        }
                        seen += 1;
                    }
                    for script in words.iter().filter(|w| w.starts_with("scripts/")) {
                        assert!(root().join(script).exists(), "{name}: {line}: {script}");
                    }
                }
            }
        }
        // In the text options stand with placeholders, so that only their names can be known.
        for span in spans(&text).iter().filter(|s| s.starts_with("fusedpo ")) {
            let words: Vec<&str> = span.split(' ').collect();
            let all = options(words[1]);
            for word in words.iter().filter(|w| w.starts_with("--")) {
                let option = word.split('=').next().unwrap().replace('_', "-");
                assert!(all.contains(&option) || option == "--help", "{name}: {span}");
                seen += 1;
            }
        }
    }
    assert!(seen > 60, "{seen}");
    // Python stands where a test runs it.
    for (name, text) in pages() {
        let python = blocks(&text, "python").len() + blocks(&text, "py").len();
        assert_eq!(python, usize::from(name == "docs/getting-started.md"), "{name}: no test runs its Python");
    }
    let all = every_option();
    for name in ["docs/getting-started.md", "docs/from-trl.md", "docs/troubleshooting.md"] {
        for span in spans(&page(name)).iter().filter(|s| s.starts_with("--")) {
            let option = span.split([' ', '|', '=']).next().unwrap();
            assert!(all.contains(option) || option == "--help", "{name}: {span}");
        }
    }
}

/// Under `name` a tiny model with a tokenizer of letters, and a chat template.
fn model(cli: &Cli, name: &str) {
    cli.model(name, "llama");
    let special = ["<unk>", "<s>", "</s>"].map(str::to_owned);
    let letters = (33..127).map(|b| char::from(b).to_string());
    let vocab = special.into_iter().chain(letters).enumerate().map(|(i, t)| (t, i.into()));
    let vocab: serde_json::Map<_, _> = vocab.collect();
    cli.edit_json(&format!("{name}/tokenizer.json"), |t| {
        t["model"] = serde_json::json!({"type": "BPE", "merges": [], "vocab": vocab});
    });
    cli.edit_json(&format!("{name}/tokenizer_config.json"), |t| {
        t["chat_template"] = "{% for m in messages %}<s>{{ m.role[0] }}:{{ m.content }}</s>{% endfor %}\
            {% if add_generation_prompt %}<s>a:{% endif %}"
            .into();
    });
    cli.edit_json(&format!("{name}/config.json"), |c| c["max_position_embeddings"] = 1024.into());
}

/// What a shell that stops at the first error prints, with the program on its PATH.
#[cfg(unix)]
fn shell(cli: &Cli, script: &str) -> (String, String) {
    let program = PathBuf::from(cli.command("").get_program()).parent().unwrap().to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(program).chain(std::env::split_paths(&path))).unwrap();
    let ran = Command::new("sh")
        .args(["-c", &format!("set -eu\n{script}")])
        .current_dir(cli.dir.path())
        .stdin(Stdio::null())
        .env("PATH", path)
        .env("HOME", cli.dir.path())
        .env("RAYON_NUM_THREADS", "2")
        .env("HF_HUB_OFFLINE", "1")
        // The CPU, on every machine.
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap());
    assert!(ran.status.success(), "{out}\n{err}");
    (out, err)
}

/// The page's Python and that of the run's card, where the packages are at hand.
#[cfg(unix)]
fn python_loads_it(cli: &Cli, text: &str) {
    let (page, card) = (blocks(text, "python").concat(), blocks(&cli.text("run-dpo/README.md"), "python").concat());
    assert!(page.contains("from_pretrained(\"run-dpo\")") && card.contains("generate("), "{page}{card}");
    let Some(python) = std::env::var_os("FUSEDPO_PYTHON") else {
        return println!("skipped: Python of the docs (FUSEDPO_PYTHON is not set)");
    };
    let has = Command::new(&python).args(["-c", "import torch, transformers"]).output();
    if !has.is_ok_and(|o| o.status.success()) {
        return println!("skipped: Python of the docs (torch or transformers is missing)");
    }
    let script = format!("{page}print(type(model).__name__, len(tokenizer))\nimport os\nos.chdir(\"run-dpo\")\n{card}");
    let ran = Command::new(&python)
        .args(["-c", &script])
        .current_dir(cli.dir.path())
        .envs([("HF_HUB_OFFLINE", "1"), ("CUDA_VISIBLE_DEVICES", ""), ("OMP_NUM_THREADS", "1")])
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{script}\n{out}\n{err}");
    // The model of the first, and what that of the second wrote behind its prompt.
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines.len() >= 2 && lines[0].starts_with("LlamaForCausalLM "), "{out}");
    assert!(lines[1..].concat().len() > "Onceuponatime".len(), "{out}");
}

/// From top to bottom, in a folder where the page's model lies under its name on the hub; then README's run on the page's rows.
#[cfg(unix)]
#[test]
fn getting_started_is_what_happens() {
    let text = page("docs/getting-started.md");
    let name = "HuggingFaceTB/SmolLM2-135M-Instruct";
    let cli = Cli { dir: tempfile::TempDir::new().unwrap() };
    std::fs::create_dir(cli.path("HuggingFaceTB")).unwrap();
    model(&cli, name);
    let script = blocks(&text, "sh").concat();
    assert!(script.matches("\nfusedpo ").count() >= 8 && script.contains(&format!("--model {name}")), "{script}");
    let (out, err) = shell(&cli, &script);
    // What it says will be there, is.
    for file in [
        "data/report.json",
        "run-dpo/model.safetensors",
        "run-dpo/config.toml",
        "run-dpo/metrics.jsonl",
        "run-dpo/run.json",
        "run-dpo/run.log",
        "run-dpo/README.md",
        "run-dpo/training.svg",
        "merged/config.json",
    ] {
        assert!(text.contains(file.rsplit('/').next().unwrap()) && cli.path(file).exists(), "{file}: {out}\n{err}");
    }
    // And its report has the page's lines, but for the numbers of another tokenizer.
    let names = |report: &str| -> Vec<String> {
        report.lines().map(|l| l.split("  ").find(|part| !part.is_empty()).unwrap_or("").trim().to_owned()).collect()
    };
    let shown = blocks(&text, "text").into_iter().find(|b| b.starts_with("rows\n")).unwrap();
    let printed = &out[out.find("rows\n").unwrap()..];
    assert_eq!(names(&shown), names(printed)[..shown.lines().count()]);
    python_loads_it(&cli, &text);
    for line in ["held-out before: loss 0.6931, accuracy 0.500 [", "held-out after:  loss "] {
        assert!(text.contains(line) && out.contains(line), "{line}: {out}");
    }
    let readme = blocks(&page("README.md"), "sh").into_iter().find(|b| b.contains("fusedpo pack")).unwrap();
    let commands: Vec<&str> = readme.lines().filter(|l| l.starts_with("fusedpo ")).collect();
    assert_eq!(commands.len(), 6, "{readme}");
    let other = Cli { dir: tempfile::TempDir::new().unwrap() };
    model(&other, "smollm2");
    other.write("pairs.jsonl", cli.bytes("pairs.jsonl"));
    shell(&other, &commands.join("\n"));
}

/// The page's configuration is one, with the page's commands.
#[cfg(unix)]
#[test]
fn a_configuration_of_trls_runs() {
    let text = page("docs/from-trl.md");
    let cli = Cli { dir: tempfile::TempDir::new().unwrap() };
    std::fs::create_dir(cli.path("org")).unwrap();
    cli.model("org/model", "llama");
    cli.write_rows("org/preferences", &pairs(24));
    cli.write("dpo.yaml", &blocks(&text, "yaml")[0]);
    shell(&cli, &blocks(&text, "sh").concat());
    let options = cli.text("run/config.toml");
    for line in
        ["learning_rate = 0.0000005", "lora_r = 16", "loss_type = [\"sigmoid\", \"sft\"]", "loss_weights = [1.0, 0.2]"]
    {
        assert!(options.contains(line), "{line}: {options}");
    }
}

/// Pieces between placeholders of every text in the sources, as a user sees them.
fn texts() -> Vec<String> {
    let all = crate::messages::literals();
    let flags = Program::flags();
    let seen = all.iter().flat_map(|l| [flags.reason(&l.text), flags.text(&l.text)]);
    let mut pieces: Vec<String> = seen
        .flat_map(|text| {
            let parts: Vec<String> = text
                .split('{')
                .enumerate()
                .map(|(i, part)| {
                    if i == 0 { part.to_owned() } else { part.split_once('}').map_or("", |(_, rest)| rest).to_owned() }
                })
                .collect();
            parts
        })
        .collect();
    pieces.sort();
    pieces.dedup();
    pieces
}

/// What of a message does not vary: between the dots, and between the parts that a message is made of.
fn fixed(message: &str) -> Vec<&str> {
    let parts = message.split("...").flat_map(|p| p.split("; ")).flat_map(|p| p.split(": "));
    parts.map(|p| p.trim().trim_end_matches([':', ';'])).filter(|p| p.len() >= 8).collect()
}

#[test]
fn every_message_of_the_page_on_troubles_is_printed() {
    let (text, all) = (page("docs/troubleshooting.md"), texts());
    // In one text, or where one is put into a place of another.
    let is_there = |part: &str| {
        let within = |(i, _): (usize, char)| {
            let (left, right) = (&part[..i], &part[i + 1..]);
            left.len() >= 4
                && right.len() >= 4
                && all.iter().any(|piece| piece.trim_end().ends_with(left))
                && all.iter().any(|piece| piece.starts_with(right))
        };
        all.iter().any(|piece| piece.contains(part)) || part.char_indices().filter(|(_, c)| *c == ' ').any(within)
    };
    let is_printed = |message: &str| {
        let fixed = fixed(message);
        fixed.iter().any(|p| p.len() >= 12) && fixed.iter().all(|p| is_there(p))
    };
    let (mut seen, mut unknown) = (0, Vec::new());
    for message in blocks(&text, "text").iter().flat_map(|b| b.lines()) {
        let begins = ["fusedpo: ", "warning: ", "note: ", ""].into_iter().find(|b| message.starts_with(b)).unwrap();
        if !is_printed(&message[begins.len()..]) {
            let missing: Vec<_> = fixed(message).into_iter().filter(|p| !is_there(p)).collect();
            unknown.push(format!("{message}\n    not in the sources: {missing:?}"));
        }
        seen += 1;
    }
    assert!(unknown.is_empty(), "{}", unknown.join("\n"));
    assert!(seen >= 50, "{seen}");
    for other in [
        "the loss rose: so much; lower --learning-rate (1), or warm it upp",
        "no pairs",
        "an invented text of some length",
    ] {
        assert!(!is_printed(other), "{other}");
    }
}

/// The rows of a table between `<!-- NAME -->` and the next comment, each cell trimmed.
fn table(text: &str, name: &str) -> Vec<Vec<String>> {
    let begins = format!("<!-- {name} -->\n");
    let from = text.split_once(&begins).unwrap_or_else(|| panic!("no {begins}")).1;
    let rows = from.split("<!--").next().unwrap().lines().filter(|l| l.starts_with("| `"));
    rows.map(|l| l.trim_matches('|').split(" | ").map(|c| c.trim().to_owned()).collect()).collect()
}

#[test]
fn the_page_for_those_who_come_from_trl_says_what_the_program_answers() {
    let text = page("docs/from-trl.md");
    let options: BTreeSet<String> = options("dpo").union(&options("sft")).cloned().collect();
    let [renamed, always, elsewhere] = trl_keys::rows();
    // Taken as they are: options of ours by the same name, which nothing translates or refuses.
    let same = table(&text, "same");
    let same: Vec<&str> = same.iter().flat_map(|row| row[0].split(", ")).map(|key| key.trim_matches('`')).collect();
    assert!(same.len() >= 35, "{}", same.len());
    for name in same {
        assert!(options.contains(&format!("--{}", name.replace('_', "-"))), "{name}");
        assert!(trl_keys::answer(name).is_none(), "{name}");
        assert!(always.iter().all(|row| row[0] != format!("`{name}`")), "{name}");
    }
    let names = table(&text, "renamed");
    for want in renamed {
        assert!(names.iter().any(|row| row[..2] == want), "{want:?}: {names:?}");
    }
    for (name, want) in [("always", always), ("elsewhere", elsewhere)] {
        let lines: String = want.iter().map(|row| format!("| {} |\n", row.join(" | "))).collect();
        assert!(table(&text, name) == want, "docs/from-trl.md, <!-- {name} --> is to have these rows:\n{lines}");
    }
}
