//! What strangers' files must not do: give numbers that are none, write on the terminal what they like, make a row a
//! program's end, or leave things behind.

use crate::cli_common;

use cli_common::*;
use serde_json::json;

/// The model `name`, whose last norm makes numbers that are none, though its weights are finite.
fn overflowing(cli: &Cli, name: &str) {
    let file = format!("{name}/model.safetensors");
    let mut bytes = cli.bytes(&file);
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let [start, end] = [0, 1].map(|i| tensors["model.norm.weight"]["data_offsets"][i].as_u64().unwrap() as usize);
    for weight in bytes[8 + header + start..8 + header + end].chunks_exact_mut(4) {
        weight.copy_from_slice(&3e38f32.to_le_bytes());
    }
    cli.write(&file, bytes);
}

#[test]
fn numbers_that_are_none_are_errors() {
    let cli = Cli::with_data();
    cli.model("bad", "llama");
    overflowing(&cli, "bad");
    let last = |args: &str| {
        let before = cli.tree();
        let ran = cli.run(args);
        let line = ran.err.lines().last().unwrap_or_default().to_owned();
        assert!(ran.code == 1 && ran.out.is_empty() && line.starts_with("fusedpo: "), "{args}: {ran:?}");
        assert_eq!(cli.tree(), before, "{args}: leaves files behind");
        line
    };
    let hint = "check its config.json, and whether the download is whole";
    let line = last("score --model bad --data d --out s");
    assert!(line.starts_with("fusedpo: bad: row ") && line.contains(", response ") && line.ends_with(hint), "{line}");
    let line = last("score --model bad --data d --out -");
    assert!(line.starts_with("fusedpo: bad: row "), "{line}");
    // Of responses alone, which need no reference.
    for data in ["--loss-type sft", "--loss-type sft --json"] {
        let line = last(&format!("eval --model bad --data d {data}"));
        let want = "of the data: its log-probability is not finite, and of ";
        assert!(line.starts_with("fusedpo: bad: row ") && line.contains(want) && line.ends_with(hint), "{line}");
    }
    // The reference is sound, the policy is not.
    let ran = cli.run("eval --model bad --ref-model m --data d --loss-type sigmoid --beta 0.1 --label-smoothing 0");
    let line = ran.err.lines().last().unwrap_or_default();
    assert!(ran.code == 1 && ran.out.is_empty() && line.starts_with("fusedpo: bad: row "), "{ran:?}");
    let line = last("generate --model bad --prompt w5 --max-new-tokens 3");
    assert_eq!(line, format!("fusedpo: prompt 1: after 0 new tokens the model computes no finite numbers; {hint}"));
    cli.write("in.jsonl", "{\"prompt\":\"w5\"}\n{\"prompt\":\"w6\"}\n");
    let line = last("generate --model bad --input in.jsonl --temperature 1 --num-return-sequences 2");
    assert!(line.contains("prompt 1: after 0 new tokens"), "{line}");
}

/// Control characters and what turns the direction of text, in everything that a file can make the program say.
const EVIL: &str = "\u{1b}]0;x\u{7}\u{1b}[2J\u{202e}\u{9b}31m\r\u{2066}";
const SHOWN: &str = "\\u{1b}]0;x\\u{7}\\u{1b}[2J\\u{202e}\\u{9b}31m\\r\\u{2066}";

fn harmless(what: &str, text: &str) {
    let bad = |c: &char| {
        c.is_control() && *c != '\n' && *c != '\t' || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert_eq!(text.chars().find(bad), None, "{what}: {text:?}");
}

#[test]
fn what_is_printed_is_made_visible() {
    let cli = Cli::with_data();
    let says = |args: &str, part: &str| {
        let ran = cli.run(args);
        harmless(args, &ran.err);
        harmless(args, &ran.out);
        assert!((ran.err.clone() + &ran.out).contains(part), "{args}: {part}: {ran:?}");
        ran
    };
    let config = cli.bytes("m/config.json");
    cli.edit_json("m/config.json", |c| c["model_type"] = EVIL.into());
    assert_eq!(says("score --model m --data d --out s", SHOWN).code, 2);
    cli.write("m/config.json", config);
    // Columns, in an error and in a report; keys of a TOML; a name of a file.
    cli.write_rows("odd.jsonl", &[json!({ EVIL: 1 })]);
    assert_eq!(says("pack --tokenizer m --input odd.jsonl --out p", SHOWN).code, 2);
    cli.write_rows("odd.jsonl", &[json!({"prompt": "w1", "completion": "w2", EVIL: 1})]);
    assert_eq!(says("pack --tokenizer m --input odd.jsonl --out p", SHOWN).code, 0);
    cli.write("c.toml", "\"\\u001b[2J\\u202e\" = 1\n");
    assert_eq!(says("sft --config c.toml --model m --data d --out r", "\\u{1b}[2J\\u{202e}").code, 2);
    let name = format!("no{EVIL}");
    let ran = Cli::command(&cli, "inspect").arg(&name).output().unwrap();
    let err = String::from_utf8(ran.stderr).unwrap();
    harmless("a name", &err);
    assert!(ran.status.code() == Some(2) && err.contains(SHOWN), "{err}");
    // A tensor's name.
    let whole = cli.bytes("m/model.safetensors");
    let tensors = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let evil = |n: String| if n == "model.norm.weight" { EVIL.to_owned() } else { n };
    let renamed = tensors.tensors().into_iter().map(|(n, t)| (evil(n), t));
    cli.write("m/model.safetensors", safetensors::serialize(renamed, None).unwrap());
    cli.edit_json("m/config.json", |c| c["tie_word_embeddings"] = c["tie_word_embeddings"].clone());
    let ran = cli.run("score --model m --data d --out s");
    harmless("tensor", &ran.err);
    assert_eq!(ran.code, 2, "{ran:?}");
}

/// What a model writes goes into a pipe as it is, and is made visible on a terminal.
#[cfg(unix)]
#[test]
fn a_generated_text_does_not_command_a_terminal() {
    use std::os::fd::{FromRawFd, OwnedFd};
    let cli = Cli::with_data();
    cli.edit_json("m/tokenizer.json", |t| {
        let vocab = t["model"]["vocab"].as_object_mut().unwrap();
        let evil = |word: &String| {
            if word.starts_with('w') { format!("{word}\u{1b}[31m\u{202e}\u{9b}") } else { word.clone() }
        };
        *vocab = vocab.iter().map(|(word, id)| (evil(word), id.clone())).collect();
    });
    let prompt = "w5\u{1b}[31m\u{202e}\u{9b}";
    cli.write("in.jsonl", json!({ "prompt": prompt }).to_string());
    for (args, json) in [("--num-return-sequences 1", false), ("--num-return-sequences 2 --temperature 1e-3", true)] {
        let command = || {
            let mut command = cli.command(&format!("generate --model m --max-new-tokens 6 {args} --prompt"));
            command.arg(prompt);
            command
        };
        let piped = String::from_utf8(command().output().unwrap().stdout).unwrap();
        // JSON hides the first of the three by itself.
        let raw = ['\u{1b}', '\u{202e}', '\u{9b}'].map(|c| piped.contains(c));
        assert_eq!(raw, [!json, true, true], "{piped:?}");
        let (mut master, mut slave) = (0, 0);
        let (name, settings, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
        // SAFETY: two places for descriptors, and no name, settings or size.
        assert_eq!(unsafe { libc::openpty(&mut master, &mut slave, name, settings, size) }, 0);
        // SAFETY: both were just opened, and are nobody else's.
        let (master, slave) = unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        let status = command().stdout(slave).stderr(std::process::Stdio::null()).status().unwrap();
        assert!(status.success());
        let mut bytes = vec![0; 1 << 16];
        let n = std::io::Read::read(&mut std::fs::File::from(master), &mut bytes).unwrap();
        let seen = String::from_utf8(bytes[..n].to_vec()).unwrap().replace("\r\n", "\n");
        harmless(args, &seen);
        let want: Vec<serde_json::Value> = piped.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        let got: Vec<serde_json::Value> = seen.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        match json {
            true => assert!(got == want && got.len() == 2, "JSON stays JSON: {seen}"),
            false => assert!(seen.contains("\\u{1b}[31m\\u{202e}\\u{9b}"), "{seen}"),
        }
    }
}

#[test]
fn a_row_does_not_ask_for_everything() {
    let cli = Cli::with_data();
    let row = |n: usize| {
        let (texts, scores): (Vec<_>, Vec<_>) = (0..n).map(|i| (format!("w{}", i % 90), i)).unzip();
        json!({"prompt": "w1", "responses": texts, "scores": scores})
    };
    cli.write_rows("many.jsonl", &[row(3), row(1500)]);
    let ran = cli.run("pack --tokenizer m --input many.jsonl --out p");
    let want = "fusedpo: many.jsonl: line 2: 1500 scored responses make 1124250 pairs, and a row at most 1048576: split \
                the row, or take --pairs best-worst, which makes one\n";
    assert!(ran.code == 2 && ran.err == want && !cli.path("p").exists(), "{ran:?}");
    cli.ok("pack --tokenizer m --input many.jsonl --out p --pairs best-worst");
    // As many responses of which few pairs come.
    let mut even = row(1500);
    even["scores"] = (0..1500).map(|i| i32::from(i > 3)).collect();
    cli.write_rows("even.jsonl", &[even]);
    cli.ok("pack --tokenizer m --input even.jsonl --out e");
    // A message is not as long as the row that it is about.
    let columns: serde_json::Map<_, _> = (0..100_000).map(|i| (format!("column {i}"), 1.into())).collect();
    cli.write_rows("wide.jsonl", &[columns.into()]);
    let ran = cli.run("pack --tokenizer m --input wide.jsonl --out q");
    assert!(ran.code == 2 && ran.err.len() < 5000, "{} bytes", ran.err.len());
}

#[test]
fn more_threads_than_a_machine_can_start() {
    let cli = Cli::with_data();
    let run = |n: &str| {
        cli.command("score --model m --data d --out s --overwrite").env("RAYON_NUM_THREADS", n).output().unwrap()
    };
    let ran = run("100000");
    let err = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.code() == Some(2) && err.starts_with("fusedpo: RAYON_NUM_THREADS=100000: at most "), "{err}");
    assert!(run("3").status.success() && run("0").status.success());
}

#[cfg(target_os = "linux")]
#[test]
fn what_a_dead_process_left_goes_with_the_next() {
    let cli = Cli::with_data();
    let names = [".p.5000000-0.tmp", "d/.tmp-5000000-x.part", ".tmp-5000000-x.part"];
    std::fs::create_dir(cli.path(names[0])).unwrap();
    names[1..].iter().for_each(|name| cli.write(name, "x"));
    // A living one's stay.
    let mine = format!(".tmp-{}-x.part", std::process::id());
    cli.write(&mine, "x");
    cli.ok("pack --tokenizer m --input rows.jsonl --out p");
    cli.ok("reference --model m --data d");
    cli.ok("score --model m --data d --out s");
    assert!(names.iter().all(|name| !cli.path(name).exists()) && cli.path(&mine).exists());
}

/// A shard that is cut short at any time: a line that names it, and never a signal.
#[cfg(target_os = "linux")]
#[test]
fn a_shard_cut_short_ends_no_process_by_a_signal() {
    use fusedpo::data::shard::format::Meta;
    use fusedpo::data::shard::{Dataset, NewGroup, NewResponse, ShardWriter, Split};
    let cli = Cli::with_data();
    let small = Dataset::open(&cli.path("d"), Split::Train).unwrap();
    let meta = Meta { ..small.meta().clone() };
    std::fs::create_dir(cli.path("big")).unwrap();
    let shard = cli.path("big/train-00000.pref");
    let mut writer = ShardWriter::create(&shard, &meta).unwrap();
    let tokens = vec![5; 50_000];
    for row in 0..400 {
        let response = NewResponse { tokens: &tokens, score: None, label: None, row, index: 0 };
        writer.push(&NewGroup { prompt: &[3, row as u32 % 90], responses: vec![response], pairs: Vec::new() }).unwrap();
    }
    writer.finish().unwrap();
    let whole = std::fs::read(&shard).unwrap();
    let mut ends = [0; 3];
    for (i, args) in ["inspect big --verify", "score --model m --data big --out s", "inspect big --show 3"]
        .iter()
        .cycle()
        .take(24)
        .enumerate()
    {
        std::fs::write(&shard, &whole).unwrap();
        let child = cli.spawn(args);
        std::thread::sleep(std::time::Duration::from_millis(i as u64 * 3));
        std::fs::OpenOptions::new()
            .write(true)
            .open(&shard)
            .unwrap()
            .set_len(if i % 2 == 0 { 0 } else { 5000 })
            .unwrap();
        let ran = finish(child);
        let last = ran.err.lines().last().unwrap_or_default();
        let sound =
            ran.code == 0 || (ran.code <= 2 && last.starts_with("fusedpo: ") && last.contains("big/train-00000.pref"));
        // The model has no positions for such rows: what a run that was not disturbed says.
        let sound = sound || (ran.code == 2 && last.contains("positions"));
        assert!(sound, "{args}: {ran:?}");
        ends[usize::try_from(ran.code).unwrap()] += 1;
    }
    println!("{ends:?} ended with 0, 1 (in the instant between), 2 (seen in time)");
}

/// Sidecars with valid checksums whose numbers nobody computed: a few are computed again before the first step.
#[test]
fn a_forged_sidecar_is_found_before_the_first_step() {
    let cli = Cli::with_data();
    cli.ok("reference --model m --data d");
    let dpo = "dpo --model m --data d --max-steps 1 --out";
    cli.ok(&format!("{dpo} a"));
    let name = cli.names("d", "train-00000.pref.ref-").remove(0);
    let mut bytes = cli.bytes(&format!("d/{name}"));
    let n = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) as usize;
    let (values, end) = (384..384 + 8 * n, 384 + 8 * n + 8 * n.div_ceil(64));
    for value in bytes[values].chunks_exact_mut(8) {
        let logp = f64::from_le_bytes(value[..].try_into().unwrap());
        value.copy_from_slice(&(logp * 1.25).to_le_bytes());
    }
    let crc = crc32fast::hash(&bytes[384..end]);
    bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
    cli.write(&format!("d/{name}"), bytes);
    let ran = cli.run(&format!("{dpo} b"));
    let last = ran.err.lines().last().unwrap_or_default();
    let want = "the reference sidecars say ";
    assert!(
        ran.code == 1
            && last.contains(want)
            && last.ends_with("delete the sidecars, and the reference pass makes them again"),
        "{ran:?}"
    );
}
