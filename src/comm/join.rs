//! From a launcher's word to the ranks of its job.

use super::launch::{Launcher, Place};
use super::link::{Alone, Comm};
use super::mpi::Mpi;
use crate::error::{Error, Result};

/// Joins the other processes of the launcher that `env` tells of. Without a launcher, and with one that started one process, no
/// library is touched.
///
/// Errors: [`Error::Usage`] where the launcher's processes cannot find each other, and what to do.
pub fn join(place: Option<&Place>, env: &dyn Fn(&str) -> Option<String>) -> Result<Box<dyn Comm>> {
    let Some(place) = place.filter(|place| place.size > 1) else { return Ok(Box::new(Alone)) };
    if place.launcher == Launcher::Torchrun {
        return Err(Error::usage(format!(
            "torchrun started {} processes, and on CPUs processes find each other by MPI, which torchrun does not set up: start \
             them with mpirun or srun",
            place.size
        )));
    }
    Ok(Box::new(Mpi::join(place, env)?))
}
