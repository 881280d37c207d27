//! What ranks say to each other, and one process by itself.

use super::staging::{Staging, check};
use crate::error::{Error, Result};

/// Which of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// From 0.
    pub rank: usize,
    /// How many ranks there are; at least 1.
    pub size: usize,
    /// How many are on each machine, where they follow each other there and all machines have as many; 1 where that is not so, or not
    /// known.
    pub beside: usize,
}

impl World {
    /// One process.
    pub const ALONE: World = World::of(0, 1);

    /// Of ranks of which nobody knows where they are.
    pub const fn of(rank: usize, size: usize) -> Self {
        Self { rank, size, beside: 1 }
    }

    /// Machines, each with several ranks; 1 where it does not matter to whom one is near.
    pub fn machines(self) -> usize {
        if self.beside == 1 { 1 } else { self.size / self.beside }
    }

    /// Which part of what all share is `rank`'s: those of the same number on each machine have neighbours.
    pub fn place_of(self, rank: usize) -> usize {
        match self.machines() {
            1 => rank,
            n => rank % self.beside * n + rank / self.beside,
        }
    }

    /// Whose part `place` is.
    pub fn rank_at(self, place: usize) -> usize {
        match self.machines() {
            1 => place,
            n => place % n * self.beside + place / n,
        }
    }

    /// Whether it is the one that writes and speaks.
    pub fn is_first(self) -> bool {
        self.rank == 0
    }
}

/// What a rank has for the others, and they for it: a part for each rank, one after the other. Both sides say the same of a
/// part's length; in all less than 2 GiB each way.
#[derive(Debug)]
pub struct Parts<'a> {
    /// What goes out.
    pub send: &'a mut Staging,
    /// Its bytes, by rank.
    pub to: &'a [usize],
    /// Becomes what came in.
    pub receive: &'a mut Staging,
    /// Its bytes, by rank.
    pub from: &'a [usize],
}

/// What goes out, and what becomes what came in.
pub type Pair<'a> = (&'a mut Staging, &'a mut Staging);

/// What the ranks of a job say to each other. Every rank calls the same in the same order; `what` says in an error what they
/// were at, as in "waited 60 s to `what`". Calls may come from any thread, one after the other.
///
/// Errors of all: [`Error::Device`](crate::Error::Device) where a rank is lost, or did not come within the time that ranks are waited for.
pub trait Comm: Sync {
    /// Which of how many.
    fn world(&self) -> World;

    /// From 0, of those on this rank's machine: its GPU.
    fn local_rank(&self) -> usize;

    /// Through what, in words.
    fn describe(&self) -> String;

    /// Comes back when all have come here; waits 48 times as long as elsewhere.
    fn barrier(&self, what: &str) -> Result<()>;

    /// Makes `bytes` those of rank 0, of whatever length.
    fn broadcast(&self, bytes: &mut Vec<u8>, what: &str) -> Result<()>;

    /// What every rank has to say, by rank; each may be of another length.
    fn gather(&self, mine: &[u8], what: &str) -> Result<Vec<Vec<u8>>>;

    /// Hands every rank its part, and takes what the others have for this one.
    fn exchange(&self, parts: Parts<'_>, what: &str) -> Result<()>;

    /// Looks whether a rank is known to be lost, and waits for nothing. Errors: one is.
    fn look(&self, what: &str) -> Result<()> {
        let _ = what;
        Ok(())
    }

    /// Hands `send`, of `lengths[rank]` bytes, to all, and makes `receive` what all have, by rank; in all less than 2 GiB. All know
    /// the lengths, where [`Comm::gather`] asks for them.
    fn share(&self, (send, receive): Pair<'_>, lengths: &[usize], what: &str) -> Result<()> {
        check(lengths, lengths, self.world().size)?;
        let all = self.gather(send.bytes(), what)?;
        if !all.iter().map(Vec::len).eq(lengths.iter().copied()) {
            let got: usize = all.iter().map(Vec::len).sum();
            let want: usize = lengths.iter().sum();
            return Err(Error::Device(format!("cannot {what}: {got} bytes came, and {want} were to come")));
        }
        receive.resize(lengths.iter().sum());
        let mut to = receive.bytes_mut();
        for part in &all {
            let (now, rest) = to.split_at_mut(part.len());
            now.copy_from_slice(part);
            to = rest;
        }
        Ok(())
    }

    /// This rank does not go on: what another thread waits for ends soon, with an error.
    fn give_up(&self) {}

    /// Ends all processes of the job, this one too, with exit code `code`; may come back where the library cannot, or wait for ever.
    fn abort(&self, code: i32);

    /// The last call: all have come to their end.
    fn end(&self) -> Result<()>;
}

/// One process by itself: every call is answered at once, from what it was given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Comm for Alone {
    fn world(&self) -> World {
        World::ALONE
    }
    fn local_rank(&self) -> usize {
        0
    }
    fn describe(&self) -> String {
        "one process".into()
    }
    fn barrier(&self, _: &str) -> Result<()> {
        Ok(())
    }
    fn broadcast(&self, _: &mut Vec<u8>, _: &str) -> Result<()> {
        Ok(())
    }
    fn gather(&self, mine: &[u8], _: &str) -> Result<Vec<Vec<u8>>> {
        Ok(vec![mine.to_vec()])
    }
    fn exchange(&self, Parts { send, to, receive, from }: Parts<'_>, _: &str) -> Result<()> {
        check(to, from, 1)?;
        receive.resize(from[0]);
        receive.bytes_mut().copy_from_slice(&send.bytes()[..to[0]]);
        Ok(())
    }
    fn abort(&self, _: i32) {}
    fn end(&self) -> Result<()> {
        Ok(())
    }
}
