//! A command of the shipped program on the stand-in libraries.

use crate::cli_common::{Cli, Ran, finish};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A folder as [`Cli`] has it, and the libraries. What they say stays out of the folder.
pub struct Stand {
    pub cli: Cli,
    libraries: &'static Path,
    aside: TempDir,
}

/// Switches of the stand-ins (kernels/standin/README.md), without their `STANDIN_`.
pub type Switches<'a> = &'a [(&'a str, &'a str)];

impl Stand {
    /// `None`: there are no libraries here, which was said.
    pub fn with(cli: impl FnOnce() -> Cli) -> Option<Stand> {
        let libraries = crate::library::folder()?;
        Some(Stand { cli: cli(), libraries, aside: TempDir::new().unwrap() })
    }

    fn log(&self) -> PathBuf {
        self.aside.path().join("log")
    }

    /// The command, not started.
    pub fn command(&self, args: &str, switches: Switches) -> Command {
        let mut c = self.cli.command(args);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("STANDIN_")) {
            c.env_remove(name);
        }
        c.env("LD_LIBRARY_PATH", self.libraries).env("STANDIN_LOG", self.log());
        c.envs(switches.iter().map(|(name, value)| (format!("STANDIN_{name}"), value)));
        c
    }

    /// Runs a command, whatever its end. Panics where the stand-ins saw a defect, or the program one of its own.
    #[track_caller]
    pub fn run(&self, args: &str, switches: Switches) -> (Ran, String) {
        self.end(args, switches, self.command(args, switches))
    }

    /// [`Stand::run`] of a command made by [`Stand::command`].
    #[track_caller]
    pub fn end(&self, args: &str, switches: Switches, mut command: Command) -> (Ran, String) {
        let _ = std::fs::remove_file(self.log());
        let ran = finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let what = || format!("{args} {switches:?}: {}\n{}\n{log}", ran.code, ran.err);
        assert!(!log.contains("DEFECT"), "{}", what());
        assert!(log.contains("defects: 0"), "the stand-ins were not used to the end: {}", what());
        assert!(
            (0..3).contains(&ran.code) && !ran.err.contains("panicked") && !ran.err.contains("internal error"),
            "{}",
            what()
        );
        (ran, log)
    }

    /// Runs a command that must succeed, and do something on the device.
    #[track_caller]
    pub fn ok(&self, args: &str, switches: Switches) -> Ran {
        let (ran, log) = self.run(args, switches);
        assert_eq!(ran.code, 0, "{args} {switches:?}: {}\n{log}", ran.err);
        ran
    }

    /// How often each call is made by a command, which must succeed; `ran`: kernels and products that ran.
    #[track_caller]
    pub fn count(&self, args: &str) -> BTreeMap<String, u64> {
        let file = self.aside.path().join("counts");
        self.ok(args, &[("COUNTS", file.to_str().expect("UTF-8"))]);
        let text = std::fs::read_to_string(file).unwrap();
        let entry = |l: &str| l.split_once(' ').map(|(name, n)| (name.to_owned(), n.parse().unwrap())).unwrap();
        text.lines().map(entry).collect()
    }

    /// A number of the last command's summary, such as `launches`.
    pub fn counted(&self, what: &str) -> u64 {
        let log = std::fs::read_to_string(self.log()).unwrap();
        let before = log.split(&format!(" {what}")).next().expect("the summary names it");
        before.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{what}: {log}"))
    }
}
