//! The processes that a launcher started, as the program sees them: who speaks, and how all end where one fails.

use super::signal;
use crate::comm::launch::Place;
use crate::comm::{self, Comm, World};
use crate::error::{Error, Result};
use crate::say::{self, Level};
use crate::train::joined::Job;
use std::time::Duration;

/// What goes wrong everywhere rank 0 tells, and takes the others with it: they wait so long before they speak.
const FIRST_SPEAKS: Duration = Duration::from_secs(3);

/// A launcher that ends a job at once drops what it was about to pass on, this process's last line among it.
const PASSED_ON: Duration = Duration::from_millis(500);

/// How long ending a job may take: a library that has lost its network waits for ever.
const LAST: Duration = Duration::from_secs(5);

/// How long taking leave of each other may take, when all is done.
const LEAVE: Duration = Duration::from_secs(20);

/// What the environment says of `name`.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Where this process stands, where a launcher says. Errors: it says what cannot be.
pub fn place() -> Result<Option<Place>> {
    Place::of(&environment)
}

/// Refuses a launcher of several processes for a command that is one process's: they would all do the same, into the same place.
pub fn refuse_several(place: Option<&Place>) -> Result<()> {
    match place.filter(|place| place.size > 1) {
        None => Ok(()),
        Some(Place { launcher, size, .. }) => Err(Error::usage(format!(
            "{} started {size} processes, and this command runs in one: start it without a launcher",
            launcher.spoken()
        ))),
    }
}

/// Where this process stands, before it has joined the others.
pub fn world(place: Option<&Place>) -> World {
    place.map_or(World::ALONE, |place| World::of(place.rank, place.size))
}

/// Joins the others that `place` tells of.
pub fn join(place: Option<&Place>) -> Result<Box<dyn Comm>> {
    comm::join(place, &environment)
}

/// Refuses ranks that are at another command than rank 0, or of another version: what they say to each other would mean other things.
pub fn same_command(job: Job<'_>, command: &str) -> Result<()> {
    job.ranks()
        .same(&[("version of the program", env!("CARGO_PKG_VERSION").to_owned()), ("command", command.to_owned())])
}

/// Where any of the ranks heard a signal, by which all stopped, the others end as if they had heard it. All ranks call this.
pub fn share_signal(comm: &dyn Comm) -> Result<()> {
    let all = comm.gather(&[signal::exit_code().unwrap_or(0)], "hear which signal it was")?;
    if let Some(code) = all.iter().flatten().copied().find(|code| *code > 128) {
        signal::adopt(i32::from(code) - 128);
    }
    Ok(())
}

/// What `fetch` brings rank 0 brings first, and the others find it.
pub fn first_fetches<T>(job: Job<'_>, fetch: impl FnOnce() -> Result<T>) -> Result<T> {
    job.ranks().first_then_all("wait for what rank 0 fetches", fetch)
}

/// Only rank 0 speaks from here on; the others say what ends them.
pub fn hush(place: Option<&Place>) {
    if place.is_some_and(|place| place.rank > 0) {
        say::set_level(Level::Error);
    }
}

/// What is to be said of an error before the process ends: nothing where others say it.
pub fn last_words(world: World, why: &str, e: &Error) -> Option<String> {
    if world.is_first() {
        return Some(why.to_owned());
    }
    std::thread::sleep(FIRST_SPEAKS);
    // All were asked to stop.
    (!matches!(e, Error::Stopped(_))).then(|| format!("rank {}: {why}", world.rank))
}

/// Ends all processes, as this one cannot go on, whatever the library does.
pub fn abort(comm: &dyn Comm, code: u8) {
    if comm.world().size == 1 {
        return;
    }
    std::thread::sleep(PASSED_ON);
    ends_with(code, LAST);
    comm.abort(code.into());
}

/// The last call of all ranks, which have come to their end. MPICH over UCX between machines stays in `MPI_Finalize` for ever now
/// and then: one rank takes leave of others that no longer listen.
pub fn end(comm: &dyn Comm) -> Result<()> {
    if comm.world().size > 1 {
        comm.barrier("part")?;
        ends_with(0, LEAVE);
    }
    comm.end()
}

/// Ends the process with `code`, unless it has ended by itself within `time`.
fn ends_with(code: u8, time: Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(time);
        signal::exit_now(code);
    });
}
