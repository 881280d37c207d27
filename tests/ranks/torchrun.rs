//! Processes as torchrun starts them: with its variables, and its store at MASTER_PORT. They meet at a port after that.

use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

fn seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// What all processes of a job have in common.
pub struct Torchrun {
    size: usize,
    /// Ranks that each machine is said to have.
    beside: usize,
    /// The agent's store; it never answers.
    store: TcpListener,
    id: String,
}

impl Torchrun {
    pub fn new(size: usize) -> Torchrun {
        // Ports after it are likely to be free, and it is below those that the system deals out.
        let own = (0..200).find_map(|_| {
            let port = 12_000 + (seed() / 1000 % 16_000) as u16;
            TcpListener::bind(("127.0.0.1", port)).ok()
        });
        Torchrun { size, beside: size, store: own.expect("a port"), id: format!("{}", seed()) }
    }

    /// As if the ranks were on machines with `beside` each.
    pub fn on_machines(self, beside: usize) -> Torchrun {
        Torchrun { beside, ..self }
    }

    pub fn port(&self) -> u16 {
        self.store.local_addr().unwrap().port()
    }

    /// `command` as rank `rank`.
    pub fn rank(&self, rank: usize, mut command: Command) -> Command {
        let (size, beside, port) = (self.size.to_string(), self.beside.to_string(), self.port().to_string());
        command.envs([("RANK", rank.to_string()), ("LOCAL_RANK", (rank % self.beside).to_string())]);
        command.envs([("WORLD_SIZE", &size), ("LOCAL_WORLD_SIZE", &beside), ("MASTER_PORT", &port)]);
        command.envs([("MASTER_ADDR", "127.0.0.1"), ("TORCHELASTIC_RUN_ID", &self.id), ("RAYON_NUM_THREADS", "1")]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts all, as `of` says.
    pub fn start(&self, of: impl Fn(usize) -> Command) -> Vec<Child> {
        (0..self.size).map(|rank| self.rank(rank, of(rank)).spawn().unwrap()).collect()
    }

    /// Waits for all.
    pub fn end(all: Vec<Child>) -> Vec<Output> {
        // Each is read by a thread of its own, or one that says much would wait for the others.
        let threads: Vec<_> =
            all.into_iter().map(|child| std::thread::spawn(move || child.wait_with_output().unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }
}
