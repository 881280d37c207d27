//! docs/messages.md: the texts of the sources that the program may print, by what they are about, so that whoever got one finds it.
//! `FUSEDPO_WRITE_DOCS=1 cargo test --release --test cli messages` writes the page.

use crate::cli_docs::{page, root};

use fusedpo::cli::Cli as Program;
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::collections::BTreeSet;
use std::path::Path;

/// A text of the sources, as it stands there but for escapes and line ends, and the calls that it is an argument of, the outermost first.
pub struct Literal {
    pub file: String,
    calls: Vec<String>,
    pub text: String,
}

/// Of all sources but their tests, as what these expect is not what is printed; in order.
pub fn literals() -> Vec<Literal> {
    let mut all = Vec::new();
    walk(&root().join("src"), "", &mut all);
    all
}

fn walk(dir: &Path, under: &str, all: &mut Vec<Literal>) {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    for name in names {
        let (path, file) = (dir.join(&name), format!("{under}{name}"));
        if path.is_dir() {
            walk(&path, &format!("{file}/"), all);
        } else if name.ends_with(".rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            of(text.parse().unwrap_or_else(|e| panic!("{file}: {e}")), &file, &mut Vec::new(), all);
        }
    }
}

fn of(tokens: TokenStream, file: &str, calls: &mut Vec<String>, all: &mut Vec<Literal>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut of_tests = false;
    for (i, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Group(g) if of_tests => of_tests = g.delimiter() != Delimiter::Brace,
            other if of_tests => of_tests = !is_punct(other, ';'),
            // An attribute: a comment, or help of an option, which `--help` shows.
            TokenTree::Group(g) if g.delimiter() == Delimiter::Bracket && is_attribute(&tokens[..i]) => {
                let attribute = g.stream().to_string();
                of_tests = attribute.starts_with("cfg")
                    && attribute.split(|c: char| !c.is_alphanumeric()).any(|w| w == "test");
            }
            TokenTree::Group(g) => {
                let call = called(&tokens[..i]);
                calls.extend(call.clone());
                of(g.stream(), file, calls, all);
                calls.truncate(calls.len() - usize::from(call.is_some()));
            }
            TokenTree::Literal(l) => {
                if let Some(text) = unquoted(&l.to_string()) {
                    all.push(Literal { file: file.to_owned(), calls: calls.clone(), text });
                }
            }
            _ => {}
        }
    }
}

fn is_punct(token: &TokenTree, c: char) -> bool {
    matches!(token, TokenTree::Punct(p) if p.as_char() == c)
}

fn is_attribute(before: &[TokenTree]) -> bool {
    match before {
        [.., hash, not] if is_punct(not, '!') => is_punct(hash, '#'),
        [.., hash] => is_punct(hash, '#'),
        [] => false,
    }
}

/// What is called with the group behind these: `Error::usage`, `.expect`, `format!`.
fn called(before: &[TokenTree]) -> Option<String> {
    let mut from = before.len();
    while let Some(last) = from.checked_sub(1) {
        let is_part = match &before[last] {
            TokenTree::Ident(_) => !matches!(before.get(from), Some(TokenTree::Ident(_))),
            other => is_punct(other, '!') || is_punct(other, ':') || is_punct(other, '.'),
        };
        if !is_part {
            break;
        }
        from = last;
    }
    let name: String = before[from..].iter().map(ToString::to_string).collect();
    (!name.is_empty()).then_some(name)
}

/// The text of a literal in quotes.
fn unquoted(literal: &str) -> Option<String> {
    if let Some(raw) = literal.strip_prefix('r') {
        let inner = raw.trim_matches('#');
        return Some(inner.strip_prefix('"')?.strip_suffix('"')?.to_owned());
    }
    let inner = literal.strip_prefix('"')?.strip_suffix('"')?;
    // A line that goes on without its margin.
    let lines: Vec<&str> = inner.split("\\\n").collect();
    let joined = lines.iter().enumerate().map(|(i, l)| if i == 0 { l } else { l.trim_start() });
    Some(joined.collect::<String>().replace("\\\"", "\"").replace("\\\\", "\\"))
}

/// Where sources begin so, their texts stand under this heading; of two the longer beginning counts.
type Room = (&'static str, &'static str, &'static [&'static str]);

/// Headings, what stands under each and where to read on, and which sources are meant.
const ROOMS: &[Room] = &[
    (
        "The command line",
        "Options, where results go, what a command prints. Nothing was begun where one of these is an error. `fusedpo COMMAND --help` has each option.",
        &["cli.rs", "main.rs", "say.rs", "error.rs", "guard.rs", "choice.rs", "units.rs", "lib.rs", "commands/"],
    ),
    (
        "Configurations, and TRL's keys",
        "Of `--config`: [runs.md](runs.md#configurations); of keys that TRL has: [from-trl.md](from-trl.md).",
        &["commands/config", "commands/yaml", "commands/trl", "commands/effect"],
    ),
    ("The hub", "[hub.md](hub.md).", &["hub/", "commands/hub"]),
    (
        "Files and folders",
        "Reading and writing. Whatever is made appears whole or not at all, so that after one of these nothing is half there.",
        &["files/"],
    ),
    (
        "Files of rows, and rows",
        "[data.md](data.md). Behind one of these stand the file and the row; `--on-bad-row` says whether such a row ends a pack or is dropped.",
        &["data/", "data/input/"],
    ),
    (
        "Chat templates",
        "A template is the tokenizer's own program; most of these are of Jinja's kind, and name what the template did. [tokenizers.md](tokenizers.md).",
        &["data/text/template"],
    ),
    ("Tokenizers and texts", "[tokenizers.md](tokenizers.md).", &["data/text/"]),
    ("Packing", "What `pack` reports and drops: [data.md](data.md).", &["data/pack/"]),
    (
        "Shards",
        "[shard-format.md](shard-format.md). Damaged ones are packed or copied again; `fusedpo inspect DATA --verify` checks every byte.",
        &["data/shard/"],
    ),
    (
        "The reference's log-probabilities",
        "Kept beside the shards, and made again where they are deleted. [runs.md](runs.md).",
        &["data/sidecar/", "train/reference"],
    ),
    (
        "Plans, lengths and memory",
        "[memory.md](memory.md).",
        &["data/plan/", "data/lengths/", "train/memory", "train/forecast", "batch/"],
    ),
    (
        "Several processes",
        "Launchers, and the ranks of a run: [distributed.md](distributed.md).",
        &["comm/", "commands/ranks", "train/team", "train/joined"],
    ),
    ("Losses", "`fusedpo loss explain NAME`, [losses.md](losses.md).", &["loss/"]),
    ("A model's configuration", "[models.md](models.md).", &["model/config/"]),
    ("Models", "Directories and their weights; generation. [models.md](models.md).", &["model/"]),
    (
        "Adapters",
        "[adapters.md](adapters.md).",
        &["model/adapter", "model/peft", "model/low_rank", "model/merge", "train/adapter_options"],
    ),
    (
        "Weights in four bits",
        "[adapters.md](adapters.md).",
        &["quant/", "model/nf4", "model/export_nf4", "model/quantized", "model/stored", "model/source"],
    ),
    (
        "Training",
        "Options of a run, what it says while it goes on, and what ends it. [runs.md](runs.md), [metrics.md](metrics.md).",
        &["train/", "observe/"],
    ),
    ("Checkpoints, and going on", "[runs.md](runs.md#going-on).", &["train/checkpoint", "train/resume", "train/saver"]),
    (
        "Steps that go non-finite, and `replay`",
        "[runs.md](runs.md#a-step-that-goes-non-finite).",
        &["train/replay/", "train/kept_batch", "commands/replay"],
    ),
    ("Pages of runs", "`fusedpo report`: [report.md](report.md).", &["report/", "chart/", "commands/report"]),
    (
        "The ledger of pairs, and `analyze`",
        "[ledger.md](ledger.md).",
        &["train/ledger/", "analyze/", "commands/analyze"],
    ),
    ("Recipes", "[recipes.md](recipes.md).", &["recipe/", "commands/run/"]),
    ("Sweeps", "[sweep.md](sweep.md).", &["sweep/", "commands/sweep", "commands/child"]),
    ("The model card", "`RUN/README.md`: [runs.md](runs.md).", &["train/card/"]),
    (
        "Devices",
        "Numbers of elements that do not fit are a defect of ours, or of a program that calls the library. [gpu.md](gpu.md).",
        &["device", "backend/"],
    ),
    ("The demo", "", &["demo/"]),
];

/// The heading of a file's texts.
fn room(file: &str) -> &'static str {
    let all = ROOMS.iter().flat_map(|(title, _, begins)| begins.iter().map(move |b| (b, *title)));
    let (_, title) = all
        .filter(|(begins, _)| file.starts_with(**begins))
        .max_by_key(|(begins, _)| begins.len())
        .unwrap_or_else(|| panic!("tests/cli/messages.rs has no heading for src/{file}"));
    title
}

/// Whether these words are for people: some words, in a place where they may be printed.
fn is_message(literal: &Literal) -> bool {
    let not_printed = ["expect", "assert", "debug_assert", "unreachable!", "panic!", "asm!", "todo!", "static_assert"];
    let elsewhere = literal.calls.iter().any(|c| {
        let name = c.rsplit(['.', ':']).next().unwrap();
        not_printed.iter().any(|n| name.starts_with(n))
    });
    // Examples of `--help`, formulas and guidance of `loss explain`, the card, the words of the demo: no messages, and shown elsewhere.
    // And instructions of an assembler.
    let is_table = |file: &str| {
        ["commands/help.rs", "demo/words.rs", "demo/grammar.rs"].contains(&file)
            || file.starts_with("train/card/")
            // What a page says that is no note on it.
            || file.starts_with("report/")
            || file.starts_with("chart/")
            || file.starts_with("backend/cpu/gemm/")
            || file.starts_with("loss/")
                && !["explain", "losses", "math", "mod", "pair", "params", "spec", "step", "table"]
                    .iter()
                    .any(|n| file == format!("loss/{n}.rs"))
    };
    let of_an_error = literal.calls.iter().any(|c| {
        ["rror", "bad", "refus", "raise", "warn", "note", "Fault", "Event", "Err"].iter().any(|n| c.contains(n))
    });
    if elsewhere || is_table(&literal.file) && !of_an_error {
        return false;
    }
    let text = with_dots(&literal.text).replace("...", " ");
    let words = text.split_whitespace().filter(|w| w.chars().filter(|c| c.is_alphabetic()).count() >= 2).count();
    let letters = text.chars().filter(|c| c.is_alphanumeric() || *c == ' ').count();
    let least = if of_an_error { 2 } else { 3 };
    words >= least && letters * 10 >= text.chars().count() * 7 && !text.contains("\\p{")
}

/// `text` with `...` for what varies, in one line.
fn with_dots(text: &str) -> String {
    let (mut out, mut chars) = (String::new(), text.chars().peekable());
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('{', Some('{')) | ('}', Some('}')) => out.extend(chars.next()),
            ('{', Some(_)) => {
                let inside: String = chars.clone().take_while(|c| *c != '}').collect();
                let is_place = inside.chars().all(|c| c.is_ascii_alphanumeric() || "_.:?#<>*$+- ".contains(c));
                if is_place && chars.clone().any(|c| c == '}') && !inside.contains("  ") {
                    chars.by_ref().take_while(|c| *c != '}').for_each(drop);
                    out += "...";
                } else {
                    out.push(c);
                }
            }
            ('\\', Some('n' | 't')) => {
                chars.next();
                out.push(' ');
            }
            _ => out.push(c),
        }
    }
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The page's text.
fn index() -> String {
    let flags = Program::flags();
    let mut of_rooms: Vec<BTreeSet<String>> = vec![BTreeSet::new(); ROOMS.len()];
    for literal in literals().iter().filter(|l| is_message(l)) {
        // Errors about files quote keys and columns as they stand, and options by a longer name.
        let of_files = ["data/", "model/", "hub/", "files/", "quant/"].iter().any(|r| literal.file.starts_with(r))
            && !literal
                .calls
                .iter()
                .any(|c| ["Error::usage", "Error::Device", "Error::Training"].contains(&c.as_str()));
        let dots = with_dots(&literal.text);
        let text = if of_files { flags.text(&dots) } else { flags.reason(&dots) };
        let text = text.trim_matches([' ', ';', ':', ',', '|']).to_owned();
        let title = room(&literal.file);
        of_rooms[ROOMS.iter().position(|(t, ..)| *t == title).unwrap()].insert(text);
    }
    let mut out = String::from(
        "# Messages\n\n\
         What the program can print, by what it is about, with `...` for what varies: search this page for some words of a message, without its\n\
         names and numbers. A message is often made of several of these lines, such as what is wrong and what to do; most say themselves what to\n\
         do, and [troubleshooting.md](troubleshooting.md) says it by symptom. What begins with `fusedpo:` ended the command, with the exit codes of\n\
         [runs.md](runs.md#stopping); a `warning:` or `note:` did not. Mistyped options are answered by the parser of the command line, and an operating\n\
         system's own reasons (`No space left on device`) stand behind `cannot ...:`.\n\n\
         Collected from the sources: `FUSEDPO_WRITE_DOCS=1 cargo test --release --test cli messages` writes this page, and a test compares it.\n",
    );
    for ((title, about, _), lines) in ROOMS.iter().zip(of_rooms) {
        assert!(!lines.is_empty(), "no message under {title}");
        let lines: Vec<String> = lines.into_iter().collect();
        let about = if about.is_empty() { String::new() } else { format!("{about}\n\n") };
        out += &format!("\n## {title}\n\n{about}```text\n{}\n```\n", lines.join("\n"));
    }
    out
}

#[test]
fn the_page_of_messages_has_every_text_of_the_sources() {
    let index = index();
    if std::env::var_os("FUSEDPO_WRITE_DOCS").is_some() {
        std::fs::write(root().join("docs/messages.md"), &index).unwrap();
    }
    let page = page("docs/messages.md");
    let lines = |text: &str| -> BTreeSet<String> { text.lines().map(str::to_owned).collect() };
    let (is, wanted) = (lines(&page), lines(&index));
    let (missing, left): (Vec<_>, Vec<_>) = (wanted.difference(&is).collect(), is.difference(&wanted).collect());
    assert!(
        page == index,
        "docs/messages.md is of other sources; FUSEDPO_WRITE_DOCS=1 cargo test --release --test cli messages writes it again\n\
         missing: {missing:#?}\nnot in the sources: {left:#?}"
    );
}

/// Texts made in each of the ways that there are: none is overlooked.
#[test]
fn messages_of_every_kind_are_in_the_page() {
    let page = index();
    for message in [
        // Error::usage of a literal, and with places for numbers.
        "names no EOS token, which plain text must end with; give --eos-token TEXT",
        "the output folder exists and is not empty; name a new one or remove it",
        // Told by the library, and said by a command.
        "the learning rate is 0: no weight will change; give a larger --learning-rate",
        "no --ref-model: rewards are measured against the policy itself, and are 0",
        // Bound to a name first, or a helper's argument.
        "so would --gradient-checkpointing",
        "a pointer of Git LFS in place of the file",
        // Of a panic, of the log, of an error's own form.
        "internal error at ...: ...; please report it with the command that led here",
        "the run's log cannot be written (...); the run goes on without it",
        "has ... elements, expected ... = ...",
    ] {
        assert!(page.lines().any(|l| l.contains(message)), "{message}");
    }
    assert!(page.lines().all(|l| !l.contains("{}") && !l.contains("\\n") && l.is_ascii() | !l.contains('\u{202e}')));
    let texts = |source: &str| {
        let mut all = Vec::new();
        of(source.parse().unwrap(), "commands/x.rs", &mut Vec::new(), &mut all);
        all.into_iter().filter(is_message).map(|l| with_dots(&l.text)).collect::<Vec<_>>()
    };
    for (source, want) in [
        (
            r#"return Err(Error::usage(format!("lower {} to {x:.3}, {{as}} it \
              stands", y)));"#,
            vec!["lower ... to ..., {as} it stands"],
        ),
        (r#"let why = "three words here";"#, vec!["three words here"]),
        (r#"Error::file(path, "not UTF-8")"#, vec!["not UTF-8"]),
        (r##"#[doc = "a comment of words"] x.expect("it is never said"); assert!(a, "nor is this one");"##, vec![]),
        (r#"let key = "not UTF-8";"#, vec![]),
    ] {
        assert_eq!(texts(source), want, "{source}");
    }
}
