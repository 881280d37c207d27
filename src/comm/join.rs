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
        Some(meeting) => Ok(Box::new(Tcp::join(place, &meeting, env)?)),
        None => Ok(Box::new(Mpi::join(place, env)?)),
    }
}
