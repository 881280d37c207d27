//! Ctrl-C while there is work that it must not lose, and Ctrl-C again.

mod cli_common;

use cli_common::*;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::process::ChildStderr;

/// `n` pairs with prompts of their own.
fn many(n: usize) -> Vec<Value> {
    let mut rows = pairs(n);
    for (i, row) in rows.iter_mut().enumerate() {
        row["prompt"] = json!(format!("w{} w{} w{}", 3 + i % 90, 3 + i / 90 % 90, 3 + i / 8100));
    }
    rows
}

/// Reads lines of stderr up to the one that begins so.
fn wait_for(err: &mut BufReader<ChildStderr>, begin: &str) {
    let mut line = String::new();
    while !line.starts_with(begin) {
        line.clear();
        assert!(err.read_line(&mut line).unwrap() > 0, "it ended before it said {begin:?}");
    }
}

/// The rest of stderr and the exit code.
fn end(mut child: Running, mut err: BufReader<ChildStderr>) -> (String, Option<i32>) {
    let mut rest = String::new();
    err.read_to_string(&mut rest).unwrap();
    (rest, child.wait().unwrap().code())
}

/// Whether the tests themselves run under nohup: what they start ignores SIGHUP then, as it should.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("SigIgn:")?.trim(), 16).ok());
    let ignored = mask.is_some_and(|mask| mask & 1 == 1);
    if ignored {
        println!("skipped: SIGHUP, which is ignored here");
    }
    ignored
}

/// What `reference` says it did: responses, computed, found.
fn counts(said: &str) -> [u64; 3] {
    let words: Vec<&str> = said.split_whitespace().collect();
    [words[0], words[2], words[4]].map(|w| w.parse().unwrap_or_else(|_| panic!("{said}")))
}

#[test]
fn an_interrupted_reference_pass_keeps_what_it_has() {
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &many(12_000));
    cli.ok("pack --tokenizer m --input rows.jsonl --out d");
    let mut child = cli.spawn("reference --model m --data d");
    let mut err = BufReader::new(child.stderr.take().unwrap());
    // Said when the first micro-batches are done; written to disk every five seconds.
    wait_for(&mut err, "reference ");
    signal(&child, "INT");
    let (rest, code) = end(child, err);
    assert_eq!(code, Some(128 + 2), "{rest}");
    let last = rest.lines().last().unwrap();
    let left = last.strip_prefix("fusedpo: stopped: ").unwrap_or_else(|| panic!("{rest}"));
    let left: u64 =
        left.strip_suffix(" responses still to do; the same command goes on from here").unwrap().parse().unwrap();
    assert!(0 < left && left < 24_000, "{left}");
    let [all, computed, found] = counts(&cli.ok("reference --model m --data d").out);
    assert_eq!((all, computed, found), (24_000, left, 24_000 - left), "it goes on where it stopped");
    assert_eq!(cli.names("d", ".tmp"), Vec::<String>::new());
}

#[test]
fn a_second_ctrl_c_ends_at_once() {
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &many(20_000));
    cli.ok("pack --tokenizer m --input rows.jsonl --out d");
    // One step of seconds: nobody who asks twice wants to wait for it.
    let mut child = cli.spawn("sft --model m --data d --out r --batch-size 20000 --max-steps 1");
    let mut err = BufReader::new(child.stderr.take().unwrap());
    wait_for(&mut err, "memory");
    signal(&child, "INT");
    wait_for(&mut err, "stopping");
    signal(&child, "INT");
    let (rest, code) = end(child, err);
    assert_eq!(code, Some(130), "{rest}");
    assert!(!rest.contains("saved"), "{rest}");
    assert!(!cli.path("r/model.safetensors").exists());
}

/// Every signal that asks for an end: the step is finished, checkpoint and model are there, the exit code says which it was, and
/// the command that is printed goes on from there.
#[test]
fn each_signal_stops_a_run_that_then_goes_on() {
    let cli = Cli::with_data();
    let base = "--model m --data d --device cpu --learning-rate 1e-3 --lr-scheduler-type constant";
    for (name, number, stage) in [("INT", 2, "sft"), ("TERM", 15, "dpo"), ("HUP", 1, "sft"), ("USR1", 10, "dpo")] {
        if name == "HUP" && hangup_is_ignored() {
            continue;
        }
        let out = format!("r {name}");
        let args = format!("{stage} {base} --max-steps 1000000 --eval-steps 0");
        let mut command = cli.command(&args);
        command.args(["--out", &out]).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let child = command.spawn().unwrap();
        let metrics = cli.path(&format!("{out}/metrics.jsonl"));
        let begun = std::time::Instant::now();
        while !std::fs::read_to_string(&metrics).is_ok_and(|t| t.lines().count() > 5) {
            assert!(begun.elapsed().as_secs() < 60, "it takes no steps");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        signal(&child, name);
        let ran = finish(child);
        assert_eq!(ran.code, 128 + number, "{name}: {ran:?}");
        let last = ran.err.lines().last().unwrap();
        let (said, again) = last.split_once("; this goes on: fusedpo ").unwrap_or_else(|| panic!("{ran:?}"));
        let step: u64 = said.split(' ').nth(4).unwrap().parse().unwrap();
        assert_eq!(said, format!("fusedpo: stopped after step {step} of 1000000, with checkpoint-{step}"));
        let run: Value = serde_json::from_str(&cli.text(&format!("{out}/run.json"))).unwrap();
        let state = [&run["outcome"], &run["steps_done"], &run["steps_asked"]];
        assert_eq!(state, [&json!("stopped"), &json!(step), &json!(1000000)]);
        assert!(run["end"].is_string() && run["start"].is_string());
        // As printed, quotes and all, through a shell; two steps more.
        let line = format!("'{}' {again} --max-steps {}", env!("CARGO_BIN_EXE_fusedpo"), step + 2);
        let ran = std::process::Command::new("sh").args(["-c", &line]).current_dir(cli.dir.path()).output().unwrap();
        assert!(ran.status.success(), "{line}: {}", String::from_utf8_lossy(&ran.stderr));
        cli.ok(&format!("{stage} {base} --max-steps {} --out peace-{name} --save-steps 0", step + 2));
        let [a, b] = [out.as_str(), &format!("peace-{name}")].map(|o| cli.bytes(&format!("{o}/model.safetensors")));
        assert!(a == b, "{name}: other weights");
        assert_eq!(cli.json_lines(&format!("{out}/metrics.jsonl")).last().unwrap()["step"], json!(step + 2));
    }
}

/// `sft && dpo`: what comes after a stop does not begin.
#[test]
fn nothing_begins_after_a_stop() {
    let cli = Cli::with_data();
    let program = env!("CARGO_BIN_EXE_fusedpo");
    let script = format!(
        "'{program}' sft --model m --data d --device cpu --out s --max-steps 1000000 & pid=$!; \
         while [ $(wc -l < s/metrics.jsonl 2>/dev/null || echo 0) -lt 4 ]; do sleep 0.01; done; \
         kill -TERM $pid; wait $pid && '{program}' dpo --model s --data d --device cpu --out p; echo code $?"
    );
    let ran = std::process::Command::new("sh").args(["-c", &script]).current_dir(cli.dir.path()).output().unwrap();
    let out = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(out.ends_with("code 143\n") && !cli.path("p").exists(), "{out}");
}

/// A signal when nothing can be left undone any more: all is there, and still what was to come after it does not begin.
#[test]
#[cfg(unix)]
fn a_signal_at_the_very_end_is_a_signal() {
    use std::io::Write;
    let cli = Cli::with_data();
    let (mut from, mut to) = std::io::pipe().unwrap();
    // Full: the run waits to say its last line.
    let full = to.try_clone().unwrap();
    let filler = std::thread::spawn(move || {
        let _ = to.write_all(&[b'x'; 1 << 20]);
    });
    let mut command = cli.command("sft --model m --data d --device cpu --out r --max-steps 2");
    let child = command.stdout(full).stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(command);
    let mut child = Running::from(child);
    let mut err = BufReader::new(child.stderr.take().unwrap());
    wait_for(&mut err, "saved r: ");
    std::thread::sleep(std::time::Duration::from_millis(100));
    signal(&child, "TERM");
    wait_for(&mut err, "stopping: ");
    let reader = std::thread::spawn(move || from.read_to_end(&mut Vec::new()).unwrap());
    filler.join().unwrap();
    let (rest, code) = end(child, err);
    reader.join().unwrap();
    assert_eq!((rest.as_str(), code), ("fusedpo: all was done when the signal came\n", Some(143)));
    let run: Value = serde_json::from_str(&cli.text("r/run.json")).unwrap();
    assert_eq!(run["outcome"], "finished");
}

/// A run under `nohup` outlives its terminal.
#[test]
#[cfg(target_os = "linux")]
fn an_ignored_hangup_stays_ignored() {
    let cli = Cli::with_data();
    let program = env!("CARGO_BIN_EXE_fusedpo");
    let script = format!(
        "trap '' HUP; '{program}' sft --model m --data d --device cpu --out s --max-steps 1000000 & pid=$!; \
         while [ $(wc -l < s/metrics.jsonl 2>/dev/null || echo 0) -lt 4 ]; do sleep 0.01; done; \
         kill -HUP $pid; sleep 0.3; kill -0 $pid && echo alive; kill -TERM $pid; wait $pid; echo code $?"
    );
    let ran = std::process::Command::new("sh").args(["-c", &script]).current_dir(cli.dir.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "alive\ncode 143\n");
}

#[test]
fn other_commands_end_by_their_signal_too() {
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &many(60_000));
    let mut child = cli.spawn("pack --tokenizer m --input rows.jsonl --out d");
    std::thread::sleep(std::time::Duration::from_millis(150));
    signal(&child, "TERM");
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143), "{err}");
    assert!(err.ends_with("fusedpo: stopped; nothing was written\n"), "{err}");
    assert!(!cli.path("d").exists() && cli.names("", ".tmp").is_empty());
    cli.ok("pack --tokenizer m --input rows.jsonl --out d");
    let (name, number) = if hangup_is_ignored() { ("USR1", 10) } else { ("HUP", 1) };
    let mut child = cli.spawn("score --model m --data d --out s.jsonl");
    let mut err = BufReader::new(child.stderr.take().unwrap());
    wait_for(&mut err, "score ");
    signal(&child, name);
    let (rest, code) = end(child, err);
    assert_eq!(code, Some(128 + number), "{rest}");
    assert!(!cli.path("s.jsonl").exists());
}
