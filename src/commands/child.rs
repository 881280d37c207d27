//! Processes that a command starts: runs of this program, and programs of the user's. None outlives the command unnoticed: a
//! signal to it is handed on once, and where it is killed the system tells its own runs to end in order.

use super::{guarded, signal};
use crate::error::{Error, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Names the process that a run of this program belongs to.
const PARENT: &str = "FUSEDPO_PARENT";

/// How often it is looked whether one ended.
const LOOK: Duration = Duration::from_millis(15);

/// How long a pipe is read on after its process ended: another that holds it is not waited for.
const DRAIN: Duration = Duration::from_secs(2);

/// What is said of one whose output did not end in that time.
const NOT_READ: &str = "ended well, but what it printed could not be read to its end";

/// Most bytes that are kept of what a process prints.
const MOST: u64 = 256 << 20;

/// Most characters of its last line that are quoted.
const QUOTED: usize = 300;

/// Where another process of this program started this one, its end is this one's: in order, as by SIGTERM.
pub fn follow_parent() {
    let Some(parent) = std::env::var(PARENT).ok().and_then(|pid| pid.parse::<i32>().ok()) else { return };
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::TERM));
    // It may have ended before that; whose parent is another then has nobody to work for.
    if rustix::process::getppid().is_none_or(|pid| pid.as_raw_nonzero().get() != parent) {
        std::process::exit(143);
    }
}

/// How a process ended.
#[derive(Debug)]
pub enum Ended {
    /// By itself, with this on stdout.
    Well(Vec<u8>),
    /// In order, as this command was asked to stop.
    Stopped,
    /// Not well: why, in words.
    Badly(String),
}

/// A run of this program: `args`, with `env` beside, in this command's folder. What it prints on stdout is kept; `tell` gets
/// its lines on stderr, but for the error that ended it.
pub fn run_self(args: &[OsString], env: &[(String, String)], tell: &dyn Fn(&str)) -> Result<Ended> {
    let program =
        std::env::current_exe().map_err(|e| Error::Device(format!("cannot find this program's own file: {e}")))?;
    let mut command = Command::new(&program);
    command.args(args).envs(env.iter().map(|(k, v)| (k, v))).env(PARENT, std::process::id().to_string());
    // The terminal's own signals reach this command alone, which hands them on once.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(Error::io(&program, "start"))?;
    let out = collect(child.stdout.take());
    let (lines, said) = mpsc::channel();
    let err = child.stderr.take();
    std::thread::spawn(move || {
        for line in err.into_iter().flat_map(|e| BufReader::new(e).split(b'\n').map_while(std::io::Result::ok)) {
            if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    let (mut last, mut told) = (String::new(), false);
    let mut hear = |line: String| {
        if line.trim().is_empty() {
            return;
        }
        if !line.starts_with("fusedpo: ") {
            tell(&line);
        }
        last = line;
    };
    let status = loop {
        said.try_iter().for_each(&mut hear);
        if signal::stop_requested() && !told {
            told = true;
            let _ = kill_process(pid(&child), Signal::TERM);
        }
        if let Some(status) = child.try_wait().map_err(Error::io(&program, "wait for"))? {
            break status;
        }
        std::thread::sleep(LOOK);
    };
    let until = Instant::now() + DRAIN;
    while let Ok(line) = said.recv_timeout(until.saturating_duration_since(Instant::now())) {
        hear(line);
    }
    match (status.success(), told) {
        (true, _) => Ok(match out.recv_timeout(DRAIN) {
            Ok(said) => Ended::Well(said),
            Err(_) => Ended::Badly(NOT_READ.to_owned()),
        }),
        (false, true) => Ok(Ended::Stopped),
        (false, false) => Ok(Ended::Badly(why(status, last.strip_prefix("fusedpo: ").unwrap_or(&last)))),
    }
}

/// A program of the user's, without a shell: `input` on its stdin. It and all that it starts end after `limit`, and with this process.
pub fn run_program(words: &[String], input: Vec<u8>, limit: Duration) -> Ended {
    let Some(program) = words.first() else { return Ended::Badly("names no program".into()) };
    let begun = guarded::command(words).and_then(|mut command| {
        // A run of this program that it starts follows it, not this command.
        command.env_remove(PARENT).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    });
    let mut child = match begun {
        Ok(child) => child,
        Err(e) => return Ended::Badly(format!("cannot start {program}: {e}")),
    };
    let (out, err) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let stdin = child.stdin.take();
    // One that reads no further is no error: what it printed says more.
    std::thread::spawn(move || stdin.map(|mut to| to.write_all(&input)));
    let until = Instant::now() + limit;
    let end = |child: &mut Child| {
        let _ = kill_process_group(pid(child), Signal::KILL);
        let _ = child.kill();
        let _ = child.wait();
    };
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                // What it left behind ends with it.
                let _ = kill_process_group(pid(&child), Signal::KILL);
                let text = out.recv_timeout(DRAIN);
                let said = String::from_utf8_lossy(&err.recv_timeout(DRAIN).unwrap_or_default()).into_owned();
                let last = said.lines().rfind(|l| !l.trim().is_empty()).unwrap_or_default();
                if let Some(what) = guarded::unstarted(status, last) {
                    return Ended::Badly(format!("cannot start {what}"));
                }
                return match (status.success(), text) {
                    (true, Ok(text)) => Ended::Well(text),
                    (true, Err(_)) => Ended::Badly(NOT_READ.to_owned()),
                    (false, _) => Ended::Badly(why(status, last)),
                };
            }
            Ok(None) if signal::stop_requested() => {
                end(&mut child);
                return Ended::Stopped;
            }
            Ok(None) if Instant::now() >= until => {
                end(&mut child);
                return Ended::Badly(format!("had not ended after {} s, and was ended", limit.as_secs_f64()));
            }
            Ok(None) => std::thread::sleep(LOOK),
            Err(e) => return Ended::Badly(format!("cannot wait for {program}: {e}")),
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Reads a pipe to its end, on a thread of its own: a process whose pipe is full waits.
fn collect(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (to, from) = mpsc::channel();
    std::thread::spawn(move || {
        let mut all = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.by_ref().take(MOST).read_to_end(&mut all);
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        }
        to.send(all)
    });
    from
}

/// Exit code or signal, and the last line that was said.
fn why(status: ExitStatus, last: &str) -> String {
    use std::os::unix::process::ExitStatusExt;
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "did not end well".to_owned(),
    };
    let last: String = last.trim().chars().take(QUOTED).collect();
    if last.is_empty() { how } else { format!("{how}: {last}") }
}
