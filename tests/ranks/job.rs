//! A job under way, by whatever starts it: who its ranks are, and how they ended.

use crate::cli_common::{Cli, Running};
use crate::mpirun::{Mpirun, said};
use crate::torchrun::Torchrun;
use crate::transport::seed;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// In the environment of all of a job's processes.
const MARK: &str = "FUSEDPO_TEST_JOB";

/// What starts processes.
#[derive(Clone, Debug)]
pub enum By {
    /// Ranks meet over TCP.
    Torchrun,
    Mpi(Mpirun),
}

impl By {
    /// TCP, and every MPI that is installed.
    pub fn all() -> Vec<By> {
        std::iter::once(By::Torchrun).chain(Mpirun::all().into_iter().map(By::Mpi)).collect()
    }

    pub fn name(&self) -> &'static str {
        match self {
            By::Torchrun => "torchrun",
            By::Mpi(mpirun) => mpirun.name,
        }
    }
}

/// Processes that compute one run.
pub struct Job {
    by: By,
    mark: String,
    /// By rank where nobody started them but the test; else the launcher.
    children: Vec<Running>,
}

/// How a job ended.
#[derive(Debug)]
pub struct Ended {
    /// By rank where nobody started them but the test; else the launcher's.
    pub all: Vec<Output>,
    /// Since `Job::ends` was asked for.
    pub took: Duration,
}

impl Job {
    /// The program with `args` as each of `ranks`, with `more` in their environment.
    pub fn start(by: &By, cli: &Cli, ranks: usize, args: &str, more: &[(&str, &str)]) -> Job {
        Self::each(by, cli, &vec![args.to_owned(); ranks], more)
    }

    /// The program with the arguments of each rank.
    pub fn each(by: &By, cli: &Cli, args: &[String], more: &[(&str, &str)]) -> Job {
        Self::within(&[], by, cli, args, more)
    }

    /// All of that started by `prefix`.
    pub fn within(prefix: &[String], by: &By, cli: &Cli, args: &[String], more: &[(&str, &str)]) -> Job {
        let mark = format!("{}-{}", std::process::id(), seed());
        let spawn = |command: Command| {
            let mut command = behind(prefix, command);
            command.env(MARK, &mark).env("HF_HUB_OFFLINE", "1").envs(more.iter().copied());
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            Running::from(command.spawn().unwrap())
        };
        let children = match by {
            By::Torchrun => {
                let torchrun = Torchrun::new(args.len());
                let of = |(rank, args): (usize, &String)| spawn(torchrun.rank(rank, cli.command(args)));
                args.iter().enumerate().map(of).collect()
            }
            By::Mpi(mpirun) => {
                let mut command = mpirun.command(1);
                for (rank, args) in args.iter().enumerate() {
                    if rank > 0 {
                        command.args([":", "-n", "1"]);
                    }
                    command.arg(env!("CARGO_BIN_EXE_fusedpo")).args(args.split_whitespace());
                }
                command.current_dir(cli.dir.path());
                vec![spawn(command)]
            }
        };
        Job { by: by.clone(), mark, children }
    }

    /// Process ids of those with the job's mark whose environment has `and`; what launchers start beside them is not the program.
    fn find(&self, and: Option<String>) -> Vec<u32> {
        let all =
            std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        let has = |pid: &u32| {
            let Ok(environ) = std::fs::read(format!("/proc/{pid}/environ")) else { return false };
            let environ: Vec<&[u8]> = environ.split(|byte| *byte == 0).collect();
            let known = |what: &str| environ.contains(&what.as_bytes());
            known(&format!("{MARK}={}", self.mark)) && and.as_ref().is_none_or(|and| known(and))
        };
        let program =
            |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "fusedpo\n");
        all.filter(program).filter(has).collect()
    }

    /// The process id of a rank.
    pub fn pid(&self, rank: usize) -> u32 {
        let name = match &self.by {
            By::Torchrun => return self.children[rank].id(),
            By::Mpi(mpirun) if mpirun.name.ends_with("openmpi") => "OMPI_COMM_WORLD_RANK",
            By::Mpi(_) => "PMI_RANK",
        };
        let found = self.find(Some(format!("{name}={rank}")));
        assert_eq!(found.len(), 1, "rank {rank} of {:?}", self.by);
        found[0]
    }

    /// The launcher's process id, below the clock that watches it.
    pub fn launcher(&self) -> u32 {
        let clock = self.children[0].id();
        let children = std::fs::read_to_string(format!("/proc/{clock}/task/{clock}/children")).unwrap();
        children.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Waits, no longer than a minute, until the job has made `path`.
    pub fn awaits(&mut self, path: &Path) {
        let begun = Instant::now();
        while !path.exists() {
            let over = self.children.iter_mut().any(|child| child.try_wait().unwrap().is_some());
            if over || begun.elapsed() > Duration::from_secs(60) {
                panic!(
                    "{path:?} is not there: {:?}",
                    self.children.drain(..).map(|c| c.wait_with_output()).collect::<Vec<_>>()
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for all but `stuck`, which is killed when the others have ended, and for all that they started.
    pub fn ends(mut self, stuck: Option<usize>) -> Ended {
        let begun = Instant::now();
        let mut children: Vec<_> = self.children.drain(..).map(Some).collect();
        let lost = stuck.filter(|_| matches!(self.by, By::Torchrun)).map(|rank| children[rank].take().unwrap());
        // Each is read by a thread of its own, or one that says much would wait for the others.
        let wait = |child: Running| std::thread::spawn(move || child.wait_with_output().unwrap());
        let threads: Vec<_> = children.into_iter().map(|child| child.map(wait)).collect();
        let mut all: Vec<_> = threads.into_iter().map(|thread| thread.map(|thread| thread.join().unwrap())).collect();
        let took = begun.elapsed();
        if let (Some(rank), Some(mut child)) = (stuck, lost) {
            child.kill().unwrap();
            all[rank] = Some(child.wait_with_output().unwrap());
        }
        while !self.find(None).is_empty() {
            assert!(begun.elapsed() < took + Duration::from_secs(8), "{:?}: processes stay behind", self.by);
            std::thread::sleep(Duration::from_millis(20));
        }
        Ended { all: all.into_iter().map(Option::unwrap).collect(), took }
    }
}

impl Ended {
    /// All that was said, for messages.
    pub fn said(&self) -> String {
        self.all.iter().map(said).collect()
    }

    /// Whether all went well.
    pub fn well(&self) -> bool {
        self.all.iter().all(|ran| ran.status.success())
    }

    /// The program's last lines, of all ranks.
    pub fn lines(&self) -> Vec<String> {
        let said = self.said();
        said.lines().filter(|line| line.contains("fusedpo: ")).map(str::to_owned).collect()
    }
}

/// `command` as what `prefix` starts.
fn behind(prefix: &[String], command: Command) -> Command {
    let [first, rest @ ..] = prefix else { return command };
    let mut all = Command::new(first);
    all.args(rest).arg(command.get_program()).args(command.get_args());
    all.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    all.current_dir(command.get_current_dir().expect("tests run in a folder"));
    all
}

/// Sends `signal` to the process `pid`.
pub fn send(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success(), "{signal} {pid}");
}
