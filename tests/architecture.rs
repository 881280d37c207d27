//! The architecture page is kept by this test: it reads every path that the sources name, and fails where a wall is broken.
//! Each rule has a planted violation that it must find.

mod source_graph;

use source_graph::{File, Sources, Tree, read, room};
use std::path::Path;

/// Rooms from the ground up. A file may name its own room and lower ones; rooms on one floor do not know each other.
const FLOORS: &[&[&str]] = &[
    &["error", "choice", "units"],
    &["batch", "chart", "files", "loss", "guard", "quant", "comm"],
    &["observe"],
    &["hub"],
    &["data", "backend"],
    &["model"],
    &["train"],
    &["analyze", "device", "say"],
    &["report"],
    &["sweep", "recipe"],
    &["demo"],
    &["commands"],
    &["cli"],
    &["main"],
];

/// Rooms that speak with a person: they may print, name flags, hear signals, and know clap.
const SPEAKING: &[&str] = &["say", "demo", "commands", "cli", "main"];

/// What library rooms never name: (first segments of a path, why).
const NEVER: &[(&str, &str)] = &[
    ("clap", "the command line is the commands' business"),
    ("indicatif", "progress is told to an observer"),
    ("ctrlc", "signals are heard by the commands"),
    ("signal_hook", "signals are heard by the commands"),
    ("std::io::stderr", "a library does not print"),
    ("std::io::stdout", "a library does not print"),
    ("std::process::exit", "a library returns"),
    ("std::panic::set_hook", "the panic hook is the program's"),
    ("std::env::args", "the command line is the commands' business"),
    ("print!", "a library does not print"),
    ("println!", "a library does not print"),
    ("eprint!", "a library does not print"),
    ("eprintln!", "a library does not print"),
    ("dbg!", "a library does not print"),
    ("note!", "a library does not print"),
    ("say!", "a library does not print"),
];

/// What prints: `say` alone does, as it makes visible what a terminal would obey.
const PRINTS: &[&str] = &["print!", "println!", "eprint!", "eprintln!", "dbg!"];

/// What makes or changes a file: `files` alone does, for all library rooms.
const WRITES: &[&str] = &[
    "fs::write",
    "fs::copy",
    "fs::rename",
    "fs::create_dir",
    "fs::create_dir_all",
    "fs::remove_file",
    "fs::remove_dir",
    "fs::remove_dir_all",
    "fs::set_permissions",
    "File::create",
    "File::create_new",
    "File::options",
    "OpenOptions::new",
    "tempfile::tempdir",
    "tempfile::tempfile",
    "tempfile::Builder",
    "tempfile::NamedTempFile",
];

/// Files that do so all the same, and why.
const WRITERS: &[(&str, &str, &str)] =
    &[("backend/gpu/cuda/cublaslt/plans.rs", "File::options", "a log: a line is added when a shape was timed")];

/// What opens a file for reading: `files` alone does, for all rooms, as it knows what must not be opened.
const READS: &[&str] = &["File::open", "fs::read", "fs::read_to_string", "Mmap::map", "MmapOptions::new"];

/// Files that do so all the same, and why.
const READERS: &[(&str, &str, &str)] = &[
    ("backend/cpu/system.rs", "fs::read_to_string", "the system's own word on memory, in /proc and /sys"),
    ("commands/doctor.rs", "fs::read_to_string", "likewise"),
];

/// Statics of library rooms, and why.
const STATICS: &[(&str, &str, &str)] = &[
    ("backend/cpu/gemm/amx.rs", "USABLE", "the system grants tile registers to the process, once"),
    ("backend/cpu/gemm/amx.rs", "TILES", "a constant that needs an address"),
];

/// Files, and folders, that may hold `unsafe`.
const UNSAFE: &[&str] = &[
    "backend/cpu/gemm/",
    "backend/cpu/pages.rs",
    "backend/cpu/simd.rs",
    "backend/gpu/",
    "files/map.rs",
    "comm/mpi/abi.rs",
    "comm/mpi/calls.rs",
    "comm/nccl/",
    "commands/bus.rs",
];

fn violations(tree: &Tree) -> Vec<String> {
    circles(tree).into_iter().chain(tree.files.keys().flat_map(|path| violations_of(tree, path))).collect()
}

fn circles(tree: &Tree) -> Vec<String> {
    let said = |ring: Vec<String>| {
        let pairs = ring.iter().flat_map(|from| ring.iter().map(move |to| (from, to)));
        let ties: Vec<String> = pairs.filter_map(tie(tree)).collect();
        format!("circle of {}: {}", ring.join(", "), ties.join("; "))
    };
    tree.circles().into_iter().map(said).collect()
}

fn violations_of(tree: &Tree, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    let file = &tree.files[path];
    if path != "lib.rs" {
        floors(tree, path, &mut found);
        if !SPEAKING.contains(&room(path)) {
            silence(path, file, &mut found);
        }
        if room(path) != "say" {
            only_there(path, file, (PRINTS, &[], "what is printed goes through the room `say`"), &mut found);
        }
        if room(path) != "files" {
            let hint = "files are opened by the room of that name";
            only_there(path, file, (READS, READERS, hint), &mut found);
        }
        safety(path, file, &mut found);
    }
    found
}

fn tie(tree: &Tree) -> impl Fn((&String, &String)) -> Option<String> {
    |(from, to)| tree.arrows[from].get(to).map(|m| format!("{from}:{} names {}", m.line, m.path.join("::")))
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|f| f.contains(&room))
}

fn floors(tree: &Tree, path: &str, found: &mut Vec<String>) {
    let Some(own) = floor(room(path)) else {
        return found.push(format!("{path}: its room stands on no floor of tests/architecture.rs"));
    };
    for (to, m) in &tree.arrows[path] {
        let other = floor(room(to));
        let upward = room(to) != room(path) && other.is_none_or(|f| f >= own);
        if upward {
            found.push(format!("{path}:{} names {} of {to}, which is not below it", m.line, m.path.join("::")));
        }
    }
}

fn silence(path: &str, file: &File, found: &mut Vec<String>) {
    for m in &file.mentions {
        // `use std::io; io::stderr()` comes as `io::stderr`.
        let name = m.path.join("::");
        let short = |full: &str| full.split_once("std::").map(|(_, s)| s.to_owned());
        for (never, why) in NEVER {
            let hit =
                name == *never || name.starts_with(&format!("{never}::")) || short(never).is_some_and(|s| name == s);
            if hit {
                found.push(format!("{path}:{} names {name}: {why}", m.line));
            }
        }
    }
    if room(path) != "files" {
        only_there(path, file, (WRITES, WRITERS, "files are written by the room of that name"), found);
    }
    for (text, line) in &file.strings {
        if names_flag(text) {
            found.push(format!(
                "{path}:{line} writes a flag, {text}: name the option, the commands know how it is typed"
            ));
        }
    }
    for (name, line) in &file.statics {
        if !STATICS.iter().any(|(file, known, _)| *file == path && known == name) {
            found.push(format!("{path}:{line} holds static {name}: the library has no state of the process"));
        }
    }
}

/// Names that one room alone may name, the exceptions, and what to say of others.
type Rule = (&'static [&'static str], &'static [(&'static str, &'static str, &'static str)], &'static str);

fn only_there(path: &str, file: &File, (names, exceptions, hint): Rule, found: &mut Vec<String>) {
    for m in &file.mentions {
        let name = m.path.join("::");
        let hit = names.iter().find(|w| name == **w || name.ends_with(&format!("::{w}")));
        if let Some(hit) = hit.filter(|w| !exceptions.iter().any(|(f, known, _)| *f == path && known == *w)) {
            found.push(format!("{path}:{} names {hit}: {hint}", m.line));
        }
    }
}

/// `--word` at the beginning of a word.
fn names_flag(text: &str) -> bool {
    text.match_indices("--").any(|(i, _)| {
        let before = text[..i].chars().next_back();
        let after = text[i + 2..].chars().next();
        after.is_some_and(|c| c.is_ascii_lowercase()) && before.is_none_or(|c| !c.is_alphanumeric() && c != '-')
    })
}

fn safety(path: &str, file: &File, found: &mut Vec<String>) {
    let allowed = UNSAFE.iter().any(|p| path == *p || p.ends_with('/') && path.starts_with(p));
    if let (Some(line), false) = (file.unsafe_lines.first(), allowed) {
        found.push(format!("{path}:{line} holds unsafe code, and tests/architecture.rs does not allow it there"));
    }
}

fn sources() -> Sources {
    read(&Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("src"))
}

#[test]
fn the_walls_stand() {
    let found = violations(&Tree::new(&sources()));
    assert!(found.is_empty(), "{} walls broken:\n{}", found.len(), found.join("\n"));
}

#[test]
fn unsafe_code_is_denied_at_the_root_and_allowed_by_name() {
    let tree = Tree::new(&sources());
    assert!(tree.files["lib.rs"].lints.iter().any(|l| l == "deny(unsafe_code)"), "{:?}", tree.files["lib.rs"].lints);
    // Whatever is allowed has some.
    for place in UNSAFE {
        let some = tree.files.iter().any(|(path, f)| path.starts_with(place) && !f.unsafe_lines.is_empty());
        assert!(some, "{place} has no unsafe code: take it from the list");
    }
    for (path, name, _) in STATICS {
        let statics = tree.files.get(*path).map(|f| f.statics.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>());
        assert!(statics.as_ref().is_some_and(|s| s.contains(name)), "{path} has no {name}: take it from the list");
    }
}

/// (file, what is put into it, what must be said)
const PLANTED: &[(&str, &str, &str)] = &[
    ("error.rs", "use crate::train;", "names crate::train"),
    ("loss/mod.rs", "fn x() { crate::backend::cpu::fault(); }", "which is not below it"),
    ("batch/mod.rs", "use super::data::plan::Planner as P;", "which is not below it"),
    ("observe/mod.rs", "fn x<B: crate::backend::Backend>() {}", "which is not below it"),
    ("hub/mod.rs", "use crate::model::ModelDir;", "which is not below it"),
    ("hub/mod.rs", "fn x() { std::fs::create_dir_all(\"a\").ok(); }", "names fs::create_dir_all"),
    ("backend/mod.rs", "mod inner { fn x() { super::super::model::fault() } }", "which is not below it"),
    ("model/mod.rs", "use crate::{error::Error as E, commands::{self, pack as p}};", "which is not below it"),
    ("data/mod.rs", "#[derive(Clone, clap::ValueEnum)] enum X {}", "names clap"),
    ("train/mod.rs", "fn x() { eprintln!(\"x\"); }", "names eprintln!"),
    ("model/mod.rs", "fn x() { use std::io; io::stderr().lock(); }", "names io::stderr"),
    ("data/mod.rs", "fn x() { ctrlc::set_handler(|| ()).unwrap(); }", "names ctrlc"),
    ("data/mod.rs", "use std::panic::set_hook;", "names std::panic::set_hook"),
    ("train/mod.rs", "fn x() -> &'static str { \"give --max-steps\" }", "writes a flag"),
    (
        "train/mod.rs",
        "static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);",
        "holds static COUNT",
    ),
    ("train/mod.rs", "use std::fs; fn x() { fs::write(\"a\", \"b\").ok(); }", "names fs::write"),
    ("data/mod.rs", "fn x() { std::fs::File::create(\"a\").ok(); }", "names File::create"),
    ("commands/pack.rs", "fn x() { println!(\"x\"); }", "goes through the room `say`"),
    ("main.rs", "fn x() { eprintln!(\"x\"); }", "goes through the room `say`"),
    ("model/mod.rs", "fn x() { crate::note!(\"x\"); }", "names crate::note!"),
    ("model/mod.rs", "use std::fs::File; fn x() { File::open(\"a\").ok(); }", "names File::open"),
    ("commands/pack.rs", "fn x() { std::fs::read_to_string(\"a\").ok(); }", "names fs::read_to_string"),
    ("data/mod.rs", "use std::fs; fn x() { fs::read(\"a\").ok(); }", "names fs::read"),
    ("loss/mod.rs", "fn x() { unsafe { std::hint::unreachable_unchecked() } }", "holds unsafe code"),
    (
        "backend/gpu/norm.rs",
        "use crate::backend::gpu::rope as r; fn x() { crate::commands::fault() }",
        "which is not below it",
    ),
    ("strange.rs", "fn x() {}", "stands on no floor"),
];

#[test]
fn each_planted_violation_is_found() {
    let (sources, sound) = (sources(), Tree::new(&sources()));
    for (file, text, said) in PLANTED {
        let old = sources.get(*file).map_or("", String::as_str);
        let planted = sound.with(file, &format!("{old}\n{text}\n"));
        let found = violations_of(&planted, file);
        assert!(found.iter().any(|v| v.contains(said)), "{file}: {text}\nfound: {found:#?}");
    }
}

#[test]
fn what_is_no_violation_is_passed_over() {
    let text = "/// Takes `--flag`. unsafe\nfn x() -> &'static str { \"a -- b, --- c, x--y\" }\n\
                #[cfg(test)] mod tests { use crate::commands; fn f() { unsafe { g() }; println!(\"--x\") } }\n\
                thread_local! { static QUIET: std::cell::Cell<bool> = const { std::cell::Cell::new(false) }; }\n";
    let (sources, sound) = (sources(), Tree::new(&sources()));
    let planted = sound.with("loss/mod.rs", &format!("{}\n{text}", sources["loss/mod.rs"]));
    assert_eq!(violations_of(&planted, "loss/mod.rs"), violations_of(&sound, "loss/mod.rs"));
}

fn tree(files: &[(&str, &str)]) -> Tree {
    Tree::new(&files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect())
}

#[test]
fn circles_are_found_through_every_way_of_naming() {
    let ways = [
        "use super::b::f;",
        "use crate::a::{b::{f, g}};",
        "use crate::a::b;",
        "fn x() { crate::a::b::f() }",
        "fn x(_: super::b::T) {}",
        "macro_rules! m { () => { $crate::a::b::f() } }",
        "use crate::F;",
        "use crate::a::*; fn x() { b::f() }",
    ];
    for way in ways {
        let lib = ("lib.rs", "pub mod a; pub use a::b::f as F;");
        let t = tree(&[lib, ("a/mod.rs", "pub mod b; pub mod c;"), ("a/b.rs", "use super::c::X;"), ("a/c.rs", way)]);
        assert_eq!(t.circles(), [["a/b.rs", "a/c.rs"]], "{way}");
    }
}

#[test]
fn a_reexport_is_looked_through() {
    // `mod.rs` hands on what `b` defines; `c` takes it from there: no loop.
    let t = tree(&[
        ("lib.rs", "pub mod a;"),
        ("a/mod.rs", "pub mod b; mod c; pub use b::T; pub use c::U;"),
        ("a/b.rs", "pub struct T;"),
        ("a/c.rs", "use super::T; pub struct U(T);"),
    ]);
    assert!(t.circles().is_empty(), "{:?}", t.circles());
    assert_eq!(t.arrows["a/c.rs"].keys().collect::<Vec<_>>(), ["a/b.rs"]);
    // But a function of `mod.rs` itself that uses `c`, which uses another of `mod.rs`, is one.
    let t = tree(&[
        ("lib.rs", "pub mod a;"),
        ("a/mod.rs", "mod c; pub fn f() { c::g() } pub fn h() {}"),
        ("a/c.rs", "pub fn g() { super::h() }"),
    ]);
    assert_eq!(t.circles(), [["a/c.rs", "a/mod.rs"]]);
}
