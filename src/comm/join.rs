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
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, byte| n << 8 | usize::from(*byte));
    let told = |said: &Vec<u8>| [0, 8].map(|at| said.get(at..at + 8).map_or(0, number));
    Ok(even(&all.iter().map(told).collect::<Vec<_>>()))
}

/// How many ranks every machine has, where they follow each other there, of `all` that have a number of as many; else 1.
fn even(all: &[[usize; 2]]) -> usize {
    let size = all[0][1];
    let lies = |(rank, told): (usize, &[usize; 2])| *told == [rank % size, size];
    let all_lie = size > 0 && all.len().is_multiple_of(size) && all.iter().enumerate().all(lies);
    if all_lie { size } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::even;

    #[test]
    fn machines_with_as_many_ranks_in_a_row() {
        assert_eq!(even(&[[0, 2], [1, 2], [0, 2], [1, 2]]), 2);
        assert_eq!(even(&[[0, 3], [1, 3], [2, 3]]), 3, "one machine");
        assert_eq!(even(&[[0, 1], [0, 1]]), 1);
        assert_eq!(even(&[[0, 2], [0, 2], [1, 2], [1, 2]]), 1, "dealt out in turn");
        assert_eq!(even(&[[0, 2], [1, 2], [0, 1]]), 1, "one has fewer");
        assert_eq!(even(&[[0, 2], [1, 2], [0, 2]]), 1, "one has not all of its own");
        assert_eq!(even(&[[0, 0], [1, 0]]), 1, "the launcher says nothing");
    }
}
