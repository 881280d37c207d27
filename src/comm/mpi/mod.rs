//! MPI, opened as the program runs: one binary for machines with Open MPI, MPICH, Intel MPI and their kin, or with none.
//!
//! Three binary interfaces exist; `abi.rs` knows them. Only bytes travel, so that of an interface's many constants four
//! are needed. Every wait looks now and then whether it has lasted too long.

#[allow(unsafe_code)]
mod abi;
#[allow(unsafe_code)]
mod calls;

pub use abi::{ENVIRONMENT, Found, find};

use super::launch::Place;
use super::patience::{Wait, outside, patience};
use super::staging::{self, Staging};
use super::{Comm, Pair, Parts, World};
use crate::error::{Error, Result};
use calls::{Calls, Op};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most bytes that are broadcast, or that a rank adds to what is gathered, at once.
const PIECE: usize = 1 << 24;

/// The ranks of a job, by way of an MPI library.
pub struct Mpi {
    calls: Mutex<Box<dyn Calls>>,
    found: String,
    pub(super) world: World,
    local_rank: usize,
    patience: Duration,
    /// Whether the last call was made, or none can be any more.
    over: AtomicBool,
}

impl Mpi {
    /// Opens the library of the launcher that started `place`, and joins the others.
    ///
    /// Errors: [`Error::Usage`] where there is no library, or it is not the launcher's: it sees another number of processes.
    pub fn join(place: &Place, env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let patience = patience(env)?;
        let (launcher, size) = (place.launcher.spoken(), place.size);
        let found = find(Some(place.launcher), env).map_err(|why| {
            Error::usage(format!(
                "{launcher} started {size} processes, and there is no MPI library by which they find each other ({why}): install \
                 the launcher's own, or name its file in {ENVIRONMENT}"
            ))
        })?;
        let line = found.line();
        let calls = found.start()?;
        let [rank, seen] = calls.world()?;
        let this = Self {
            calls: Mutex::new(calls),
            found: line,
            world: World::of(rank, seen),
            local_rank: place.local_rank,
            patience,
            over: AtomicBool::new(false),
        };
        if (rank, seen) == (place.rank, size) {
            return Ok(this);
        }
        let Self { found, .. } = &this;
        Err(Error::usage(format!(
            "{launcher} started this process as rank {} of {size}, and for the MPI library ({found}) it is rank {rank} of {seen}: \
             the library is not the launcher's; use the mpirun that belongs to it, or name the other's file in {ENVIRONMENT}",
            place.rank
        )))
    }

    fn calls(&self) -> MutexGuard<'_, Box<dyn Calls>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Runs `op` to its end.
    fn run(&self, op: Op<'_>, patience: Option<Duration>, what: &str) -> Result<()> {
        let parted = || Error::Device(format!("cannot {what}: the ranks have parted"));
        let calls = self.calls();
        if self.over() {
            return Err(parted());
        }
        let mut wait = Wait::new(what, patience);
        let mut waiting = || if self.over() { Err(parted()) } else { wait.on(|| "another rank is".into()) };
        let ended = calls.run(op, &mut waiting).map_err(|e| match e {
            Error::Device(why) if !why.starts_with("waited") && !self.over() => {
                Error::Device(format!("cannot {what}: {why}"))
            }
            e => e,
        });
        self.over.fetch_or(ended.is_err(), Ordering::Relaxed);
        ended
    }

    /// What every rank has, each having `lengths[rank]` bytes.
    fn gather_of(&self, mine: &[u8], lengths: &[usize], what: &str) -> Result<Vec<Vec<u8>>> {
        let (mut send, mut receive) = (Staging::of(mine), Staging::default());
        receive.resize(lengths.iter().sum());
        let op = Op::Gather { send: &mut send, receive: &mut receive, lengths };
        self.run(op, Some(self.patience), what)?;
        let mut rest = receive.bytes();
        let parts = lengths.iter().map(|n| {
            let (part, after) = rest.split_at(*n);
            rest = after;
            part.to_vec()
        });
        Ok(parts.collect())
    }
}

impl Comm for Mpi {
    fn world(&self) -> World {
        self.world
    }

    fn local_rank(&self) -> usize {
        self.local_rank
    }

    fn describe(&self) -> String {
        self.found.clone()
    }

    fn barrier(&self, what: &str) -> Result<()> {
        self.run(Op::Barrier, Some(outside(self.patience)), what)
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, what: &str) -> Result<()> {
        let mut length = Staging::of(&(bytes.len() as u64).to_le_bytes());
        self.run(Op::Broadcast(&mut length), Some(self.patience), what)?;
        bytes.resize(length.numbers::<u64>()[0] as usize, 0);
        for piece in bytes.chunks_mut(PIECE) {
            let mut staging = Staging::of(piece);
            self.run(Op::Broadcast(&mut staging), Some(self.patience), what)?;
            piece.copy_from_slice(staging.bytes());
        }
        Ok(())
    }

    fn gather(&self, mine: &[u8], what: &str) -> Result<Vec<Vec<u8>>> {
        let size = self.world.size;
        let lengths = self.gather_of(&(mine.len() as u64).to_le_bytes(), &vec![8; size], what)?;
        let length = |bytes: &Vec<u8>| bytes.iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte)) as usize;
        let lengths: Vec<usize> = lengths.iter().map(length).collect();
        let (most, piece) = (lengths.iter().copied().max().unwrap_or(0), (i32::MAX as usize / size).min(PIECE));
        let mut all: Vec<Vec<u8>> = lengths.iter().map(|n| Vec::with_capacity(*n)).collect();
        for at in (0..most).step_by(piece) {
            let now: Vec<usize> = lengths.iter().map(|n| n.saturating_sub(at).min(piece)).collect();
            let part = &mine[at.min(mine.len())..(at + piece).min(mine.len())];
            let got = self.gather_of(part, &now, what)?;
            all.iter_mut().zip(got).for_each(|(all, part)| all.extend(part));
        }
        Ok(all)
    }

    fn exchange(&self, parts: Parts<'_>, what: &str) -> Result<()> {
        staging::check(parts.to, parts.from, self.world.size)?;
        parts.receive.resize(parts.from.iter().sum());
        self.run(Op::Exchange { parts, rank: self.world.rank }, Some(self.patience), what)
    }

    fn share(&self, (send, receive): Pair<'_>, lengths: &[usize], what: &str) -> Result<()> {
        staging::check(lengths, lengths, self.world.size)?;
        assert_eq!(send.bytes().len(), lengths[self.world.rank], "as long as all were told");
        receive.resize(lengths.iter().sum());
        self.run(Op::Gather { send, receive, lengths }, Some(self.patience), what)
    }

    fn give_up(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    fn abort(&self, code: i32) {
        self.give_up();
        self.calls().abort(code);
    }

    fn end(&self) -> Result<()> {
        // Whoever waits for the last one looks now and then, where a library would look all the time.
        self.barrier("part")?;
        self.give_up();
        self.calls().finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// A library by which nobody else ever comes.
    struct Nobody;

    impl Calls for Nobody {
        fn world(&self) -> Result<[usize; 2]> {
            Ok([0, 2])
        }
        fn run(&self, _: Op<'_>, waiting: &mut dyn FnMut() -> Result<()>) -> Result<()> {
            loop {
                waiting()?;
            }
        }
        fn abort(&self, _: i32) {}
        fn finalize(&self) -> Result<()> {
            Ok(())
        }
    }

    fn two(patience: Duration) -> Mpi {
        let calls: Mutex<Box<dyn Calls>> = Mutex::new(Box::new(Nobody));
        let (found, over) = ("a test".into(), AtomicBool::new(false));
        Mpi { calls, found, world: World::of(0, 2), local_rank: 0, patience, over }
    }

    #[test]
    fn where_all_meet_is_not_waited_for_ever() {
        let (patience, begun) = (Duration::from_millis(20), Instant::now());
        let e = two(patience).barrier("meet").unwrap_err().to_string();
        assert!(e.starts_with("waited 1 s to meet: another rank is lost or stuck ("), "{e}");
        assert!(begun.elapsed() >= 48 * patience && begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        let begun = Instant::now();
        let e = two(patience).gather(&[], "gather").unwrap_err().to_string();
        assert!(e.starts_with("waited 0 s to gather: another") && begun.elapsed() < 24 * patience, "{e}");
    }

    /// What one thread waits for another of this rank may give up.
    #[test]
    fn what_is_given_up_is_not_waited_for() {
        let (mine, begun) = (two(Duration::from_secs(20)), Instant::now());
        let ended = std::thread::scope(|scope| {
            let waits = scope.spawn(|| mine.barrier("meet"));
            std::thread::sleep(Duration::from_millis(20));
            mine.give_up();
            waits.join().unwrap()
        });
        assert!(ended.unwrap_err().to_string().contains("cannot meet: the ranks have parted"));
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}
