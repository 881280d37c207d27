//! Runs inputs in a process of their own, within 8 GiB of addresses and a minute each: whatever ends that process, an abort,
//! a stack that overflows, a hang, is known by the number of the input, and the rest goes on in another process.

use super::bench::Bench;
use super::{LARGEST, Rng, Verdict};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Addresses that the process may have.
const MEMORY: u64 = 8 << 30;
/// Longest that an input may take before its process is ended.
const HANGS: Duration = Duration::from_secs(60);
/// Longer than any of them takes, on a busy machine too.
const SLOW: Duration = Duration::from_secs(30);
/// Larger than anything these small files can need.
const HUGE: usize = 256 << 20;
/// Set for the process that runs the inputs: `KIND:NUMBER` of each, separated by blanks, or `FROM+N`.
const CHILD: &str = "FUSEDPO_MUTATE_CHILD";

/// A kind of input: its name, its number, what makes one and has it read.
pub type Target = (&'static str, fn(&Bench, &mut Rng) -> Verdict);

/// Input `number` of kind `kind`. Of a run from 0 on, input I is number I of kind I mod the number of kinds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Input {
    pub kind: usize,
    pub number: u64,
}

/// What came of all inputs.
pub struct Outcome {
    /// Inputs by kind: tried, read.
    pub counts: Vec<(u64, u64)>,
    pub wrong: Vec<String>,
}

/// In the process of [`run`]: does what it was started for. Elsewhere nothing.
pub fn child(targets: &[Target]) {
    let Ok(inputs) = std::env::var(CHILD) else { return };
    // SAFETY: a limit of this process.
    let limited = unsafe { libc::setrlimit(libc::RLIMIT_AS, &libc::rlimit { rlim_cur: MEMORY, rlim_max: MEMORY }) };
    assert_eq!(limited, 0, "a limit on memory");
    let b = Bench::new();
    let mut out = std::io::stdout();
    for input in inputs.split(' ') {
        let (kind, number) = input.split_once(':').unwrap();
        let input = Input { kind: kind.parse().unwrap(), number: number.parse().unwrap() };
        writeln!(out, "@begin").and_then(|()| out.flush()).unwrap();
        match one(targets, &b, input) {
            Ok(read) => writeln!(out, "@done {}", u8::from(read)).unwrap(),
            Err(why) => writeln!(out, "@wrong {}", why.replace('\n', " / ")).unwrap(),
        }
    }
}

/// One input; what is wrong with how it was taken.
fn one(targets: &[Target], b: &Bench, input: Input) -> Verdict {
    let (_, target) = targets[input.kind];
    LARGEST.store(0, Ordering::Relaxed);
    let begun = Instant::now();
    let verdict = catch_unwind(AssertUnwindSafe(|| target(b, &mut Rng::new(input.number))));
    let verdict = verdict.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(format!("panic: {}", text.unwrap_or("?")))
    });
    let (largest, took) = (LARGEST.load(Ordering::Relaxed), begun.elapsed());
    b.restore_model();
    match verdict {
        Ok(_) if largest > HUGE => Err(format!("asked for {largest} bytes at once")),
        Ok(_) if took > SLOW => Err(format!("took {took:?}")),
        verdict => verdict,
    }
}

/// Runs `inputs`, in processes that each run the test `name` of this program, until 40 are wrong.
pub fn run(targets: &[Target], name: &str, inputs: &[Input]) -> Outcome {
    let mut outcome = Outcome { counts: vec![(0, 0); targets.len()], wrong: Vec::new() };
    let mut at = 0;
    while at < inputs.len() && outcome.wrong.len() < 40 {
        // Few enough to be named in one variable.
        let some = &inputs[at..inputs.len().min(at + 4000)];
        at += process(targets, name, some, &mut outcome);
    }
    outcome
}

/// Runs inputs in one process until one of them ends it; gives how many were run.
fn process(targets: &[Target], name: &str, inputs: &[Input], outcome: &mut Outcome) -> usize {
    let list: Vec<_> = inputs.iter().map(|i| format!("{}:{}", i.kind, i.number)).collect();
    let errors = tempfile::tempfile().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(CHILD, list.join(" "))
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors.try_clone().unwrap())
        .spawn()
        .unwrap();
    let (send, lines) = mpsc::channel();
    let out = BufReader::new(child.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        out.lines().map_while(Result::ok).filter(|l| l.contains('@')).for_each(|l| drop(send.send(l)));
    });
    let mut done = 0;
    let ended = loop {
        if done == inputs.len() {
            break None;
        }
        let Input { kind, number } = inputs[done];
        let (count, place) = (&mut outcome.counts[kind], format!("{} {number}", targets[kind].0));
        let line = match lines.recv_timeout(HANGS) {
            Ok(line) => line,
            Err(mpsc::RecvTimeoutError::Timeout) => break Some((place, format!("took over {HANGS:?}"))),
            Err(mpsc::RecvTimeoutError::Disconnected) => break Some((place, "ended the process".to_owned())),
        };
        // What libtest prints has no end of line before ours.
        let line = &line[line.find('@').unwrap()..];
        if line.starts_with("@begin") {
            continue;
        }
        count.0 += 1;
        count.1 += u64::from(line == "@done 1");
        outcome.wrong.extend(line.strip_prefix("@wrong ").map(|why| format!("{place}: {why}")));
        done += 1;
    };
    if ended.is_some() {
        let _ = child.kill();
    }
    let status = child.wait().unwrap();
    reader.join().unwrap();
    if let Some((place, why)) = ended {
        let mut said = String::new();
        let mut errors = errors;
        errors.seek(SeekFrom::Start(0)).unwrap();
        let _ = errors.read_to_string(&mut said);
        let last = said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("");
        outcome.counts[inputs[done].kind].0 += 1;
        outcome.wrong.push(format!("{place}: {why}: {status}: {last}"));
        done += 1;
    }
    done
}
