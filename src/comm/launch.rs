//! Which process this is, as launchers tell it in the environment.

use crate::choice;
use crate::error::{Error, Result};

choice! {
    /// Who started the processes.
    pub enum Launcher: default OpenMpi {
        /// PyTorch's: one agent a machine.
        Torchrun = "torchrun",
        /// The `mpirun` of MPICH, Intel MPI and their kin, and whatever else speaks their PMI, as `srun --mpi=pmi2` does.
        Pmi = "pmi",
        /// Open MPI's `mpirun`.
        OpenMpi = "openmpi",
        /// Slurm's `srun`, with another way than PMI to find each other, such as `--mpi=pmix`.
        Slurm = "slurm",
    }
}

/// Where a process stands among those that were started with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// By whom.
    pub launcher: Launcher,
    /// From 0.
    pub rank: usize,
    /// How many.
    pub size: usize,
    /// From 0, of those on its machine: its GPU.
    pub local_rank: usize,
    /// How many are on its machine, where the launcher says.
    pub local_size: Option<usize>,
}

/// Most processes of a job: as many as a run may have lanes.
const MOST: usize = 65_536;

/// How a launcher tells: the names of its variables, those that come first winning.
struct Words {
    launcher: Launcher,
    /// All must be there: others set some of the same names.
    marks: &'static [&'static str],
    rank: &'static str,
    size: &'static [&'static str],
    local_rank: &'static [&'static str],
    local_size: &'static [&'static str],
}

/// Slurm's list of how many tasks each machine has, as "8(x2)": known where all have as many.
const TASKS_PER_NODE: &str = "SLURM_STEP_TASKS_PER_NODE";

/// In the order in which they are asked. Slurm comes last: its allocation is around whatever was started in it. What a batch
/// script itself sees has no step.
const KNOWN: &[Words] = &[
    Words {
        launcher: Launcher::Torchrun,
        marks: &["RANK", "LOCAL_RANK"],
        rank: "RANK",
        size: &["WORLD_SIZE"],
        local_rank: &["LOCAL_RANK"],
        local_size: &["LOCAL_WORLD_SIZE"],
    },
    Words {
        launcher: Launcher::Pmi,
        marks: &["PMI_RANK"],
        rank: "PMI_RANK",
        size: &["PMI_SIZE"],
        local_rank: &["MPI_LOCALRANKID", "SLURM_LOCALID"],
        local_size: &["MPI_LOCALNRANKS", TASKS_PER_NODE],
    },
    Words {
        launcher: Launcher::OpenMpi,
        marks: &["OMPI_COMM_WORLD_RANK"],
        rank: "OMPI_COMM_WORLD_RANK",
        size: &["OMPI_COMM_WORLD_SIZE"],
        local_rank: &["OMPI_COMM_WORLD_LOCAL_RANK"],
        local_size: &["OMPI_COMM_WORLD_LOCAL_SIZE"],
    },
    Words {
        launcher: Launcher::Slurm,
        marks: &["SLURM_STEP_ID", "SLURM_PROCID"],
        rank: "SLURM_PROCID",
        size: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
        local_rank: &["SLURM_LOCALID"],
        local_size: &[TASKS_PER_NODE],
    },
];

impl Place {
    /// What `env` says; `None` without a launcher.
    ///
    /// Errors: [`Error::Usage`] for a variable that is not a number or is missing beside the others, or a rank that there is not.
    pub fn of(env: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let there = |words: &&Words| words.marks.iter().all(|mark| env(mark).is_some());
        let Some(words) = KNOWN.iter().find(there) else { return Ok(None) };
        let place = words.place(env)?;
        // One that started this process alone and was itself started many times, each of which would be all of the job.
        let around =
            KNOWN.iter().filter(|w| w.launcher != words.launcher && w.launcher != Launcher::Slurm).filter(there);
        let others = around.filter_map(|w| w.place(env).ok()).find(|other| place.size == 1 && other.size > 1);
        match others {
            Some(other) => Err(Error::usage(format!(
                "{} says in the environment that this process is one of {}, and {}=1 that it is alone: unset what does not belong to it",
                other.launcher.spoken(),
                other.size,
                words.size[0],
            ))),
            None => Ok(Some(place)),
        }
    }

    /// What is odd about `env`, which is no launcher's: it says how many processes there are, above one, and lacks what else its launcher
    /// says. Operators of pods set some for a process that nobody else started, and a shell in one of Slurm's allocations has a number.
    pub fn half(env: &dyn Fn(&str) -> Option<String>) -> Option<String> {
        KNOWN.iter().filter(|words| words.launcher != Launcher::Slurm).find_map(|words| {
            let size = words.size[0];
            let many: usize = env(size)?.trim().parse().ok().filter(|n| *n > 1)?;
            let lacks = words.marks.iter().find(|mark| env(mark).is_none())?;
            Some(format!(
                "{size}={many} is in the environment and {lacks} is not: this process computes by itself; where it is to be one of \
                 {many}, start it by {}",
                words.launcher.spoken()
            ))
        })
    }

    /// The launcher in words, and how many it started.
    pub fn line(&self) -> String {
        let Self { rank, size, local_rank, local_size, .. } = self;
        let of = local_size.map_or_else(String::new, |n| format!(" of {n}"));
        format!("rank {rank} of {size}, {local_rank}{of} on its machine, started by {}", self.launcher.spoken())
    }
}

impl Launcher {
    /// As a sentence names it.
    pub fn spoken(self) -> &'static str {
        match self {
            Self::Torchrun => "torchrun",
            Self::Pmi => "mpirun (PMI)",
            Self::OpenMpi => "Open MPI's mpirun",
            Self::Slurm => "srun",
        }
    }
}

impl Words {
    fn place(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<Place> {
        let number = |name: &'static str| -> Result<Option<usize>> {
            let Some(text) = env(name) else { return Ok(None) };
            let wrong = || Error::usage(format!("{name}={text} in the environment: not a whole number; who set it?"));
            text.trim().parse().map(Some).map_err(|_| wrong())
        };
        let first = |names: &[&'static str]| names.iter().find_map(|name| number(name).transpose()).transpose();
        let missing = |name: &str| {
            let why = "is not, though it belongs to it: start the program by its launcher, or without either of them";
            Error::usage(format!("{} is in the environment and {name} {why}", self.rank))
        };
        let rank = number(self.rank)?.ok_or_else(|| missing(self.rank))?;
        let size = first(self.size)?.ok_or_else(|| missing(self.size[0]))?;
        if size > MOST {
            return Err(Error::usage(format!("{}={size} in the environment: at most {MOST} processes", self.size[0])));
        }
        if rank >= size {
            let (name, of) = (self.rank, self.size[0]);
            return Err(Error::usage(format!(
                "{name}={rank} and {of}={size} in the environment: ranks are below their number; who set them?"
            )));
        }
        let on_each = |name: &&'static str| match *name {
            TASKS_PER_NODE => {
                let list = env(name).filter(|list| !list.contains(','));
                list.and_then(|list| list.split("(x").next()?.parse().ok()).map(Ok)
            }
            name => number(name).transpose(),
        };
        let local_size = self.local_size.iter().find_map(on_each).transpose()?;
        let local_rank = first(self.local_rank)?.unwrap_or(rank);
        Ok(Place { launcher: self.launcher, rank, size, local_rank, local_size })
    }
}
