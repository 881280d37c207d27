//! The MPIs of this machine.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

/// `mpirun` of an MPI.
#[derive(Clone, Debug)]
pub struct Mpirun {
    pub name: &'static str,
    path: PathBuf,
}

/// What of `names` is in `PATH`.
fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

impl Mpirun {
    /// Those that are installed, by Debian's names; says once of the others that they are skipped.
    pub fn all() -> Vec<Mpirun> {
        static ALL: OnceLock<Vec<Mpirun>> = OnceLock::new();
        ALL.get_or_init(Self::found).clone()
    }

    fn found() -> Vec<Mpirun> {
        let of = |name: &'static str| {
            let path = which(name);
            if path.is_none() {
                // Past what a test harness keeps of tests that pass.
                drop(writeln!(std::io::stderr(), "skipped: tests under {name} (it is not installed)"));
            }
            path.map(|path| Mpirun { name, path })
        };
        ["mpirun.openmpi", "mpirun.mpich"].into_iter().filter_map(of).collect()
    }

    /// `ranks` processes of what is added to the command.
    pub fn command(&self, ranks: usize) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "120"]).arg(&self.path);
        if self.name.ends_with("openmpi") {
            command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]);
        }
        command.args(["-n", &ranks.to_string()]).env("RAYON_NUM_THREADS", "1");
        command
    }
}

/// Both streams, for messages.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
