//! What stands between a command and a program of the user's: this program again, in a group of processes with it. However the command
//! ends, by SIGKILL too, the group ends soon after. What left the group (`setsid`, a daemon) nobody can follow.

use crate::say::{self, Level};
use rustix::process::{Signal, getpid, getppid, kill_current_process_group, kill_process};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus, exit};
use std::time::Duration;

/// Names the process that is to be outlived by nothing.
const COMMAND: &str = "FUSEDPO_GUARDS";

/// How often it is looked whether one of the two ended.
const LOOK: Duration = Duration::from_millis(15);

/// Of a program that could not be started, with [`CANNOT`] on stderr.
const UNSTARTED: u8 = 125;

const CANNOT: &str = "fusedpo: cannot start ";

/// `words` in a group of their own, which ends with this process.
pub(super) fn command(words: &[String]) -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(words).env(COMMAND, std::process::id().to_string()).process_group(0);
    Ok(command)
}

/// Why the program of [`command`] could not be started, where it could not, from how it ended and its last line on stderr.
pub(super) fn unstarted(status: ExitStatus, last: &str) -> Option<&str> {
    last.strip_prefix(CANNOT).filter(|_| status.code() == Some(UNSTARTED.into()))
}

/// Where this process is such a guard: starts the program, waits for it, and ends as it did. Else `None`.
pub fn serve() -> Option<ExitCode> {
    let command = std::env::var(COMMAND).ok()?.parse::<i32>().ok()?;
    let is_there = || getppid().is_some_and(|pid| pid.as_raw_nonzero().get() == command);
    let mut words = std::env::args_os().skip(1);
    let program = words.next()?;
    if !is_there() {
        return Some(ExitCode::FAILURE);
    }
    let mut child = match Command::new(&program).args(words).env_remove(COMMAND).spawn() {
        Ok(child) => child,
        Err(e) => {
            say::at(Level::Error, &format!("{CANNOT}{}: {e}", program.display()));
            return Some(UNSTARTED.into());
        }
    };
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(as_it_ended(status)),
            Ok(None) if is_there() => std::thread::sleep(LOOK),
            _ => {
                // This process is one of the group.
                let _ = kill_current_process_group(Signal::KILL);
                exit(1);
            }
        }
    }
}

/// By the same signal, or with the same code.
fn as_it_ended(status: ExitStatus) -> ExitCode {
    if let Some(signal) = status.signal().and_then(Signal::from_named_raw) {
        let _ = kill_process(getpid(), signal);
    }
    let code = status.code().or(status.signal().map(|n| 128 + n));
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
