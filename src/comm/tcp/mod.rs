//! Host bytes over TCP, a connection between every two ranks: for launchers that give processes no MPI, as torchrun does.
//!
//! They find each other at rank 0's machine. No library is needed, and whoever is lost or late is known by rank.

mod door;
mod frame;
mod meet;
mod mesh;

pub use meet::{ADDRESS, Meeting};

use super::launch::Place;
use super::patience::{outside, patience};
use super::staging;
use super::{Comm, Pair, Parts, World};
use crate::error::{Error, Result};
use frame::Room;
use mesh::Mesh;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Most bytes that are broadcast, or that a rank adds to what is gathered, at once.
const PIECE: usize = 1 << 30;

/// The ranks of a job, by way of connections of their own.
pub struct Tcp {
    mesh: Mesh,
    pub(super) world: World,
    local_rank: usize,
    patience: Duration,
    /// Whether the ranks have parted.
    over: AtomicBool,
}

impl Tcp {
    /// Meets the other ranks where `meeting` says.
    ///
    /// Errors: [`Error::Usage`] for a place that cannot be, [`Error::Device`] where a rank does not come.
    pub fn join(place: &Place, meeting: &Meeting, env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let patience = patience(env)?;
        let peers = meeting.meet(place, patience)?;
        let mesh =
            Mesh::new(place.rank, peers).map_err(|e| Error::Device(format!("cannot join the other ranks: {e}")))?;
        let world = World::of(place.rank, place.size);
        Ok(Self { mesh, world, local_rank: place.local_rank, patience, over: AtomicBool::new(false) })
    }

    fn swap(
        &self,
        out: &[Option<&[u8]>],
        into: &mut [Option<Room<'_>>],
        patience: Option<Duration>,
        what: &str,
    ) -> Result<()> {
        if self.over.load(Ordering::Relaxed) {
            return Err(Error::Device(format!("cannot {what}: the ranks have parted")));
        }
        let ended = self.mesh.swap((out, into), patience, what, &self.over);
        self.over.fetch_or(ended.is_err(), Ordering::Relaxed);
        ended
    }
}

impl Comm for Tcp {
    fn world(&self) -> World {
        self.world
    }

    fn local_rank(&self) -> usize {
        self.local_rank
    }

    fn describe(&self) -> String {
        "TCP".into()
    }

    fn barrier(&self, what: &str) -> Result<()> {
        let size = self.world.size;
        let mut into: Vec<_> = (0..size).map(|_| Some(Room::Of(&mut []))).collect();
        self.swap(&vec![Some(&[][..]); size], &mut into, Some(outside(self.patience)), what)
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, what: &str) -> Result<()> {
        let size = self.world.size;
        let mut length = (bytes.len() as u64).to_le_bytes();
        let hand_out = |bytes: &mut [u8]| {
            let (mut out, mut into) = (vec![None; size], (0..size).map(|_| None).collect::<Vec<_>>());
            if self.world.is_first() {
                out = vec![Some(&*bytes); size];
            } else {
                into[0] = Some(Room::Of(bytes));
            }
            self.swap(&out, &mut into, Some(self.patience), what)
        };
        hand_out(&mut length)?;
        bytes.resize(u64::from_le_bytes(length) as usize, 0);
        bytes.chunks_mut(PIECE).try_for_each(hand_out)
    }

    fn gather(&self, mine: &[u8], what: &str) -> Result<Vec<Vec<u8>>> {
        let World { rank, size, .. } = self.world;
        let mut all = vec![Vec::new(); size];
        // Who has more than goes at once says so by the length of what comes.
        let mut at = 0;
        loop {
            let part = &mine[at.min(mine.len())..(at + PIECE).min(mine.len())];
            let mut into: Vec<_> = (0..size).map(|_| Some(Room::Any(Vec::new()))).collect();
            self.swap(&vec![Some(part); size], &mut into, Some(self.patience), what)?;
            into[rank] = Some(Room::Of(&mut []));
            let mut more = part.len() == PIECE;
            for (all, room) in all.iter_mut().zip(&mut into) {
                let got = room.as_mut().map_or(&mut [][..], Room::bytes);
                more |= got.len() == PIECE;
                all.extend_from_slice(got);
            }
            all[rank].extend_from_slice(part);
            if !more {
                return Ok(all);
            }
            at += PIECE;
        }
    }

    fn exchange(&self, Parts { send, to, receive, from }: Parts<'_>, what: &str) -> Result<()> {
        let World { rank, size, .. } = self.world;
        staging::check(to, from, size)?;
        receive.resize(from.iter().sum());
        let (mut rest, mut room) = (send.bytes(), receive.bytes_mut());
        let (mut out, mut into) = (Vec::with_capacity(size), Vec::with_capacity(size));
        for (n, m) in to.iter().zip(from) {
            let (part, after) = rest.split_at(*n);
            let (place, beyond) = room.split_at_mut(*m);
            (rest, room) = (after, beyond);
            // Both sides know how long a part is: an empty one need not go.
            out.push((*n > 0).then_some(part));
            into.push((*m > 0).then_some(Room::Of(place)));
        }
        if let (Some(part), Some(place)) = (out[rank].take(), into[rank].take().as_mut()) {
            place.bytes().copy_from_slice(part);
        }
        self.swap(&out, &mut into, Some(self.patience), what)
    }

    fn share(&self, (send, receive): Pair<'_>, lengths: &[usize], what: &str) -> Result<()> {
        let World { rank, size, .. } = self.world;
        staging::check(lengths, lengths, size)?;
        assert_eq!(send.bytes().len(), lengths[rank], "as long as all were told");
        receive.resize(lengths.iter().sum());
        let (mut rest, mut into) = (receive.bytes_mut(), Vec::with_capacity(size));
        for n in lengths {
            let (place, beyond) = rest.split_at_mut(*n);
            rest = beyond;
            into.push((*n > 0).then_some(Room::Of(place)));
        }
        if let Some(place) = into[rank].take().as_mut() {
            place.bytes().copy_from_slice(send.bytes());
        }
        let out = vec![Some(send.bytes()).filter(|bytes| !bytes.is_empty()); size];
        self.swap(&out, &mut into, Some(self.patience), what)
    }

    fn look(&self, what: &str) -> Result<()> {
        self.mesh.look(what)
    }

    fn give_up(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    fn abort(&self, _: i32) {
        self.give_up();
        self.mesh.part();
    }

    fn end(&self) -> Result<()> {
        self.barrier("part")?;
        self.give_up();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::mesh::tests::three;
    use super::*;
    use std::time::Instant;

    /// Of one that does not come, those hear in the end that wait where all meet; elsewhere sooner.
    #[test]
    fn where_all_meet_is_not_waited_for_ever() {
        let patience = Duration::from_millis(20);
        let [mine, other, third] = three();
        let rank = |mesh, rank| Tcp {
            mesh,
            world: World::of(rank, 3),
            local_rank: rank,
            patience,
            over: AtomicBool::new(false),
        };
        let (mine, other) = (rank(mine, 0), rank(other, 1));
        let waits = |of: &Tcp| {
            let begun = Instant::now();
            let e = of.barrier("meet").unwrap_err().to_string();
            assert!(e.starts_with("waited 1 s to meet: rank 2 is lost or stuck ("), "{e}");
            assert!(
                begun.elapsed() >= 48 * patience && begun.elapsed() < Duration::from_secs(10),
                "{:?}",
                begun.elapsed()
            );
        };
        std::thread::scope(|scope| {
            scope.spawn(|| waits(&mine));
            waits(&other);
        });
        drop(third);
    }
}
