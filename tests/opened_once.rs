//! A model's directory is opened once a command, and its weights are read as often as they are needed: counted from
//! outside, by a library between the program and the system's `open` and `pread`.
#![cfg(target_os = "linux")]

mod cli_common;

use cli_common::{Cli, pairs};
use fusedpo::backend::cpu::Cpu;
use fusedpo::model::{Model, ModelConfig, SaveDtype, export};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The library; `None`, said on stderr, where there is no C compiler.
fn library() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("watch-files.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/watch/files.c");
        let ran =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&out).arg(&source).arg("-ldl").output();
        match ran {
            Err(e) => {
                eprintln!("skipped: how often files are opened (no C compiler: {e})");
                None
            }
            Ok(ran) => {
                assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
                Some(out)
            }
        }
    };
    BUILT.get_or_init(build).as_deref()
}

/// What a command did with files.
struct Watched {
    lines: Vec<String>,
    folder: PathBuf,
}

/// Runs a command that must succeed.
fn watch(cli: &Cli, args: &str, library: &Path) -> Watched {
    let log = cli.path("watched");
    let _ = std::fs::remove_file(&log);
    let ran = cli.command(args).env("LD_PRELOAD", library).env("FUSEDPO_WATCH", &log).output().unwrap();
    assert!(ran.status.success(), "{args}: {}", String::from_utf8_lossy(&ran.stderr));
    let lines = cli.text("watched").lines().map(str::to_owned).collect();
    Watched { lines, folder: cli.dir.path().canonicalize().unwrap() }
}

impl Watched {
    /// How often a file was opened.
    fn opened(&self, name: &str) -> usize {
        self.lines.iter().filter(|l| l.strip_prefix("open ").is_some_and(|p| self.is(p, name))).count()
    }

    /// How often a file was read from end to end, to the nearest whole time.
    fn walked(&self, name: &str) -> usize {
        let read = self.lines.iter().filter_map(|l| l.strip_prefix("read ")?.split_once(' '));
        let bytes: usize = read.filter(|(_, p)| self.is(p, name)).map(|(n, _)| n.parse::<usize>().unwrap()).sum();
        let size = std::fs::metadata(self.folder.join(name)).unwrap().len() as usize;
        (bytes + size / 2) / size
    }

    fn is(&self, path: &str, name: &str) -> bool {
        // The program names what it was given; the system knows where that is.
        self.folder.join(path).canonicalize().is_ok_and(|p| p == self.folder.join(name))
    }
}

/// A model of 2 MB, so that the pages at the ends of its tensors are few.
fn with_model() -> Cli {
    let cli = Cli::new();
    cli.edit_json("m/config.json", |c| {
        for (key, value) in [("hidden_size", 128), ("intermediate_size", 512), ("head_dim", 32)] {
            c[key] = value.into();
        }
        for (key, value) in [("num_hidden_layers", 2), ("num_attention_heads", 4), ("num_key_value_heads", 4)] {
            c[key] = value.into();
        }
    });
    let config = ModelConfig::load(&cli.path("m")).unwrap();
    std::fs::remove_file(cli.path("m/model.safetensors")).unwrap();
    let be = Cpu::<f32>::new().unwrap();
    for (name, seed) in [("made", 7), ("other", 8)] {
        let model = Model::random(&be, config.clone(), seed, 64).unwrap();
        export(&be, &model, None, Some(&cli.path("m")), &cli.path(name), SaveDtype::F32).unwrap();
    }
    cli.write_rows("rows.jsonl", &pairs(24));
    cli.ok("pack --tokenizer m --input rows.jsonl --out d --eval-fraction 0.25");
    cli
}

/// Every file of `model` that says what the model is, and how often it was opened: configuration, and its tokenizer.
fn configuration(w: &Watched, model: &str) -> [usize; 4] {
    ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
        .map(|name| w.opened(&format!("{model}/{name}")))
}

#[test]
fn a_cold_dpo_opens_its_model_once() {
    let Some(library) = library() else { return };
    let cli = with_model();
    let w = watch(&cli, "dpo --model made --data d --out o --max-steps 2 --device cpu --dtype f32", library);
    assert_eq!(configuration(&w, "made"), [1, 1, 1, 1]);
    // Hashed; loaded as the reference of both splits; loaded as the policy; compared with what is saved.
    assert_eq!(w.walked("made/model.safetensors"), 4);

    // Warm, the reference is hashed and not loaded.
    let w = watch(&cli, "dpo --model made --data d --out o2 --max-steps 2 --device cpu --dtype f32", library);
    assert_eq!(configuration(&w, "made"), [1, 1, 1, 1]);
    assert_eq!(w.walked("made/model.safetensors"), 3);

    // Another reference: each of the two once, and hashed: run.json names both.
    let args = "dpo --model made --ref-model other --data d --out o3 --max-steps 2 --device cpu --dtype f32";
    let w = watch(&cli, args, library);
    assert_eq!((configuration(&w, "made"), w.walked("made/model.safetensors")), ([1, 1, 1, 1], 3));
    assert_eq!((configuration(&w, "other"), w.walked("other/model.safetensors")), ([1, 1, 1, 1], 2));
}

#[test]
fn so_do_the_other_commands() {
    let Some(library) = library() else { return };
    let cli = with_model();
    let cpu = "--device cpu --dtype f32";
    let reference = watch(&cli, &format!("reference --model made --data d {cpu}"), library);
    assert_eq!((configuration(&reference, "made"), reference.walked("made/model.safetensors")), ([1, 1, 1, 1], 2));
    let score = watch(&cli, &format!("score --model made --data d --out s.jsonl {cpu}"), library);
    assert_eq!(configuration(&score, "made"), [1, 1, 1, 1]);
    let generate = watch(&cli, &format!("generate --model made --prompt w5 --max-new-tokens 3 {cpu}"), library);
    assert_eq!((configuration(&generate, "made"), generate.walked("made/model.safetensors")), ([1, 1, 1, 1], 1));
    // The policy's evaluation, and its own reference: the sidecar's key, and the samples' score.
    let eval = watch(&cli, &format!("eval --model made --data d {cpu}"), library);
    assert_eq!((configuration(&eval, "made"), eval.walked("made/model.safetensors")), ([1, 1, 1, 1], 3));
    let sft = watch(&cli, &format!("sft --model made --data d --out o --max-steps 2 {cpu}"), library);
    // Hashed, as run.json names it; loaded; compared with what is saved.
    assert_eq!((configuration(&sft, "made"), sft.walked("made/model.safetensors")), ([1, 1, 1, 1], 3));
}
