//! Files that a stranger gave: what is no regular file of its folder is refused by name, at once, and before any work. A
//! link out of a model's folder is how a private file would get into a trained model.
#![cfg(unix)]

use crate::cli_common;

use cli_common::*;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

const SFT: &str = "sft --model m --data d --out r --max-steps 1";
const SECRET: &str = "PRIVATE KEY 6f1c";

/// Makes something at a path.
type Make<'a> = &'a dyn Fn(&Path);

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Puts something else in a file's place.
fn instead(cli: &Cli, name: &str, put: impl FnOnce(&Path)) {
    let path = cli.path(name);
    let _ = std::fs::remove_file(&path);
    put(&path);
}

/// What an export copies, and what a model is read from.
const SIDE_FILES: &[&str] = &[
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
];

#[test]
fn a_link_out_of_the_folder_is_refused_before_training() {
    let cli = Cli::with_data();
    cli.write("secret", SECRET);
    std::fs::create_dir(cli.path("m/sub")).unwrap();
    symlink(cli.dir.path(), cli.path("m/up")).unwrap();
    let secret = cli.path("secret").canonicalize().unwrap();
    let targets: [(&str, &Path); 5] = [
        ("../secret", &secret),
        (secret.to_str().unwrap(), &secret),
        ("sub/../../secret", &secret),
        ("up/secret", &secret),
        ("/proc/version", Path::new("/proc/version")),
    ];
    for name in SIDE_FILES.iter().chain(&["config.json", "tokenizer.json"]) {
        let (file, kept) = (format!("m/{name}"), std::fs::read(cli.path(&format!("m/{name}"))).ok());
        for (to, leads) in targets {
            instead(&cli, &file, |path| symlink(to, path).unwrap());
            let want = format!(
                "{file}: is a link that leads out of its folder, to {}: such links are not followed, as they could copy any \
                 file into a result; put the file itself there",
                leads.display()
            );
            cli.bad(SFT, 2, &want);
        }
        std::fs::remove_file(cli.path(&file)).unwrap();
        if let Some(kept) = kept {
            cli.write(&file, kept);
        }
    }
    // Weights are read as numbers, never copied: they may lie where large files do.
    std::fs::rename(cli.path("m/model.safetensors"), cli.path("weights")).unwrap();
    symlink(cli.path("weights"), cli.path("m/model.safetensors")).unwrap();
    cli.ok("sft --model m --data d --out linked --max-steps 1");
    // Nor is the environment of the process copied.
    symlink("/proc/self/environ", cli.path("m/vocab.json")).unwrap();
    let ran = cli.run(SFT);
    assert!(
        ran.code == 2 && ran.err.contains("m/vocab.json: is a link that leads out of its folder, to /proc/"),
        "{ran:?}"
    );
    assert!(!cli.path("r").exists());
}

/// Each command reads other files of a model; none of them waits, and none reads a device.
#[test]
fn a_pipe_or_a_device_is_refused_by_every_reader() {
    let cli = Cli::with_data();
    let model = [
        "score --model m --data d --out s",
        "generate --model m --prompt w5",
        "eval --model m --data d --kl-samples 0",
    ];
    let tokenizer = ["generate --model m --prompt w5", "pack --tokenizer m --input rows.jsonl --out p", SFT];
    let all: [(&str, &[&str]); 5] = [
        ("m/config.json", &model),
        ("m/model.safetensors", &model),
        ("m/tokenizer.json", &tokenizer),
        ("m/tokenizer_config.json", &tokenizer),
        ("m/vocab.json", &[SFT]),
    ];
    for (file, commands) in all {
        let kept = std::fs::read(cli.path(file)).ok();
        let kinds: [(&str, Make); 3] = [
            ("a pipe", &|path| fifo(path)),
            ("a folder", &|path| std::fs::create_dir(path).unwrap()),
            ("a socket", &|path| drop(std::os::unix::net::UnixListener::bind(path).unwrap())),
        ];
        for (kind, make) in kinds {
            instead(&cli, file, make);
            for command in commands {
                cli.bad(command, 2, &format!("{file}: is {kind}, not a regular file; name a file"));
            }
            if kind == "a folder" { std::fs::remove_dir(cli.path(file)) } else { std::fs::remove_file(cli.path(file)) }
                .unwrap();
        }
        for (to, why) in [("nowhere", "leads nowhere"), (file.strip_prefix("m/").unwrap(), "leads to itself")] {
            instead(&cli, file, |path| symlink(to, path).unwrap());
            cli.bad(commands[0], 2, &format!("{file}: is a link that {why}; put a file there"));
        }
        std::fs::remove_file(cli.path(file)).unwrap();
        if let Some(kept) = kept {
            cli.write(file, kept);
        }
    }
    // A device that never ends: not a byte of it is read.
    instead(&cli, "m/config.json", |path| symlink("/dev/zero", path).unwrap());
    let want = "m/config.json: is a link that leads out of its folder, to /dev/zero: such links are not followed, as they \
                could copy any file into a result; put the file itself there";
    cli.bad(model[0], 2, want);
    instead(&cli, "m/config.json", |path| {
        std::fs::write(path, std::fs::read(golden("llama/config.json")).unwrap()).unwrap()
    });
    // What a user named may be a link, to wherever, and is a regular file all the same.
    for (file, command) in [
        ("c.toml", "sft --config c.toml --model m --data d --out r"),
        ("in.jsonl", "pack --tokenizer m --input in.jsonl --out p"),
        ("t.jinja", "pack --tokenizer m --input rows.jsonl --out p --chat-template t.jinja"),
        ("tok", "pack --tokenizer tok --input rows.jsonl --out p"),
        ("d/train-00000.pref", "inspect d"),
    ] {
        instead(&cli, file, fifo);
        let ran = cli.run(command);
        assert!(ran.code == 2 && ran.err.contains(&format!("{file}: is a pipe")), "{command}: {ran:?}");
        instead(&cli, file, |path| symlink("/dev/zero", path).unwrap());
        let ran = cli.run(command);
        assert!(ran.code == 2 && ran.err.contains(&format!("{file}: is a device")), "{command}: {ran:?}");
    }
}

#[test]
fn a_file_that_no_file_of_its_kind_is_as_long_as() {
    let cli = Cli::with_data();
    for (file, command, mib) in [
        ("m/config.json", "score --model m --data d --out s", 64),
        ("m/generation_config.json", "score --model m --data d --out s", 64),
        ("m/tokenizer.json", "pack --tokenizer m --input rows.jsonl --out p", 128),
        ("m/tokenizer_config.json", "pack --tokenizer m --input rows.jsonl --out p", 64),
        ("m/merges.txt", SFT, 128),
        ("t.jinja", "pack --tokenizer m --input rows.jsonl --out p --chat-template t.jinja", 1),
        ("c.toml", "sft --config c.toml --model m --data d --out r", 1),
    ] {
        let kept = std::fs::read(cli.path(file)).ok();
        // Sparse: it takes no room.
        std::fs::File::create(cli.path(file)).unwrap().set_len((mib << 20) + 1).unwrap();
        cli.bad(command, 2, &format!("{file}: has more than {mib} MiB; no file of its kind is that long"));
        std::fs::remove_file(cli.path(file)).unwrap();
        if let Some(kept) = kept {
            cli.write(file, kept);
        }
    }
}

/// The hub's cache holds a model as links to the blobs of the same repository.
#[test]
fn the_hub_cache_is_a_model_folder() {
    let cli = Cli::with_data();
    let (repository, snapshot) = ("hub/models--a--b", "hub/models--a--b/snapshots/0f1e");
    std::fs::create_dir_all(cli.path(&format!("{repository}/blobs"))).unwrap();
    std::fs::create_dir_all(cli.path(snapshot)).unwrap();
    for entry in std::fs::read_dir(cli.path("m")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        std::fs::copy(cli.path(&format!("m/{name}")), cli.path(&format!("{repository}/blobs/b-{name}"))).unwrap();
        symlink(format!("../../blobs/b-{name}"), cli.path(&format!("{snapshot}/{name}"))).unwrap();
    }
    // The snapshot by its own name, and by a link that the user made.
    symlink(snapshot, cli.path("mine")).unwrap();
    for (model, out) in [(snapshot, "a"), ("mine", "b")] {
        cli.ok(&format!("sft --model {model} --data d --out {out} --max-steps 1"));
        assert!(cli.path(&format!("{out}/tokenizer.json")).symlink_metadata().unwrap().is_file());
        cli.ok(&format!("generate --model {model} --prompt w5 --max-new-tokens 2"));
    }
    cli.ok(&format!("pack --tokenizer {snapshot} --input rows.jsonl --out p"));
    // Another repository's blobs are not its own, and `blobs` that is a link is no folder of this one.
    std::fs::create_dir_all(cli.path("hub/models--x--y/blobs")).unwrap();
    cli.write("hub/models--x--y/blobs/v", SECRET);
    symlink("../../../models--x--y/blobs/v", cli.path(&format!("{snapshot}/vocab.json"))).unwrap();
    let refused = |out: &str| {
        let ran = cli.run(&format!("sft --model {snapshot} --data d --out {out} --max-steps 1"));
        assert!(
            ran.code == 2 && ran.err.contains("/vocab.json: is a link that leads out of its folder, to "),
            "{ran:?}"
        );
        assert!(!cli.path(out).exists());
    };
    refused("c");
    std::fs::remove_dir_all(cli.path(&format!("{repository}/blobs"))).unwrap();
    symlink("../models--x--y/blobs", cli.path(&format!("{repository}/blobs"))).unwrap();
    instead(&cli, &format!("{snapshot}/vocab.json"), |path| symlink("../../blobs/v", path).unwrap());
    for entry in std::fs::read_dir(cli.path("m")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let copy = |path: &Path| assert!(std::fs::copy(cli.path(&format!("m/{name}")), path).unwrap() > 0);
        instead(&cli, &format!("{snapshot}/{name}"), copy);
    }
    refused("c");
}

/// An index says where each tensor is; two answers, or a wrong one, are none.
#[test]
fn an_index_that_does_not_fit_its_files() {
    let cli = Cli::with_data();
    let whole = cli.bytes("m/model.safetensors");
    let tensors = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let all: Vec<_> = tensors.tensors();
    let (a, b) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let write = |first: &[usize], second: &[usize], index: &dyn Fn(usize) -> &'static str| {
        let _ = std::fs::remove_file(cli.path("m/model.safetensors"));
        for (name, of) in [(a, first), (b, second)] {
            let part = of.iter().map(|i| (all[*i].0.clone(), all[*i].1.clone()));
            cli.write(&format!("m/{name}"), safetensors::serialize(part, None).unwrap());
        }
        let map: serde_json::Map<_, _> =
            all.iter().enumerate().map(|(i, (n, _))| (n.clone(), index(i).into())).collect();
        cli.write("m/model.safetensors.index.json", serde_json::json!({ "weight_map": map }).to_string());
    };
    let (n, score) = (all.len(), "score --model m --data d --out s");
    let (first, second): (Vec<_>, Vec<_>) = (0..n).partition(|i| i % 2 == 0);
    let right = |i: usize| {
        if i.is_multiple_of(2) { "model-00001-of-00002.safetensors" } else { "model-00002-of-00002.safetensors" }
    };
    write(&first, &second, &right);
    cli.ok(&format!("{score} --overwrite"));
    let twice: Vec<usize> = (0..n).filter(|i| i % 2 == 1 || *i == 0).collect();
    write(&first, &twice, &right);
    let name = &all[0].0;
    let index = "model.safetensors.index.json";
    let bad = |want: &str| cli.bad(&format!("{score} --overwrite"), 2, want);
    bad(&format!("m/{b}: holds tensor `{name}`, which {index} puts into {a}; download both again"));
    write(&first, &second, &|i| if i == 1 { right(0) } else { right(i) });
    let name = &all[1].0;
    bad(&format!("m/{b}: holds tensor `{name}`, which {index} puts into {a}; download both again"));
    let without: Vec<usize> = second.iter().copied().filter(|i| *i != 1).collect();
    write(&first, &without, &right);
    bad(&format!("m/{index}: puts tensor `{name}` into {b}, which does not have it; download both again"));
    // An export writes files of these names: they must not be those that a run writes.
    let safetensors = "a name that ends in .safetensors";
    for (file, want) in [
        ("metrics.jsonl", safetensors),
        ("config.toml", safetensors),
        ("config.json", safetensors),
        ("../x.safetensors", "a file name"),
        ("", "a file name"),
    ] {
        cli.write("m/model.safetensors.index.json", serde_json::json!({"weight_map": {"t": file}}).to_string());
        bad(&format!("m/{index}: `weight_map` gives \"{file}\" for `t`, expected {want}"));
    }
}
