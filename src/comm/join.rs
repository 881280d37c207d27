//! From a launcher's word to the ranks of its job.

use super::launch::Place;
use super::link::{Alone, Comm};
use super::mpi::Mpi;
use super::tcp::{Meeting, Tcp};
use crate::error::Result;

/// Joins the other processes of the launcher that `env` tells of: by TCP where it says where they meet, as torchrun does, else by
/// MPI. Without a launcher, and with one that started one process, no library is touched.
///
/// Errors: [`Error::Usage`](crate::Error::Usage) where the launcher's processes cannot find each other, and what to do.
pub fn join(place: Option<&Place>, env: &dyn Fn(&str) -> Option<String>) -> Result<Box<dyn Comm>> {
    let Some(place) = place.filter(|place| place.size > 1) else { return Ok(Box::new(Alone)) };
    match Meeting::of(place, env)? {
        Some(meeting) => {
            let mut tcp = Tcp::join(place, &meeting, env)?;
            tcp.world.beside = beside(&tcp, place)?;
            Ok(Box::new(tcp))
        }
        None => {
            let mut mpi = Mpi::join(place, env)?;
            mpi.world.beside = beside(&mpi, place)?;
            Ok(Box::new(mpi))
        }
    }
}

/// How many ranks each machine has ([`World::beside`](super::World::beside)), by what the launcher told each.
fn beside(comm: &dyn Comm, place: &Place) -> Result<usize> {
    let mine = [place.local_rank as u64, place.local_size.unwrap_or(0) as u64].map(u64::to_le_bytes).concat();
    let all = comm.gather(&mine, "hear where the ranks are")?;
    let size = place.local_size.filter(|n| *n > 0 && all.len().is_multiple_of(*n));
    let lies = |size: usize| {
        (0..all.len()).all(|rank| all[rank] == [rank % size, size].map(|n| (n as u64).to_le_bytes()).concat())
    };
    Ok(size.filter(|size| lies(*size)).unwrap_or(1))
}
