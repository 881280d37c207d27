//! NCCL, opened as the program runs: bytes go from GPU to GPU without the host.
//!
//! It stands beside a [`Comm`], which carries what the host has to say, the id by which ranks join among it. It adds nothing up.
//! No call waits but those that say so, and they look now and then whether a rank is lost, or has been waited for too long.

#[allow(unsafe_code)]
mod library;

pub use library::{ENVIRONMENT, Found, Run, find};

use super::patience::{JOINING, Wait, patience};
use super::{Comm, World};
use crate::error::{Error, Result};
use library::{ID, Link};
use std::time::Duration;

/// How long parting and ending may take.
const LAST: Duration = Duration::from_secs(5);

/// The ranks' GPUs, by way of NCCL.
pub struct Nccl {
    /// Nothing once the ranks have parted.
    link: Option<Link>,
    found: String,
    world: World,
    patience: Duration,
}

/// What of a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nothing is on the device any more.
    Whole,
    /// The library did not come back: the device must not be waited for.
    Stuck,
}

impl Nccl {
    /// Joins the GPUs of all ranks of `comm`, each the one that is current on its thread. Every rank calls this.
    ///
    /// Errors: [`Error::Usage`] where a rank has no library, or another version; [`Error::Device`] where the library fails, or a rank
    /// does not come.
    pub fn join(comm: &dyn Comm, env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let (world, patience) = (comm.world(), patience(env)?);
        let found = same_on_all(comm, find(env))?;
        // A mark, then the id, or why there is none.
        let mut id = Vec::new();
        if world.is_first() {
            id = match found.unique_id() {
                Ok(id) => [&[1], &id[..]].concat(),
                Err(e) => [&[0], e.to_string().as_bytes()].concat(),
            };
        }
        comm.broadcast(&mut id, "hear by what id GPUs join")?;
        let id: [u8; ID] = match id.split_first() {
            Some((1, id)) => id.try_into().map_err(|_| Error::Device("NCCL: an id of another length".into()))?,
            said => {
                let why = String::from_utf8_lossy(said.map_or(&[][..], |(_, why)| why)).into_owned();
                return Err(Error::Device(format!("cannot join the GPUs of the other ranks: {why}")));
            }
        };
        const WHAT: &str = "join the GPUs of the other ranks";
        let link = found.join(id, world).map_err(|e| doing(WHAT, e))?;
        let mut this = Self { link: Some(link), found: found.line().to_owned(), world, patience };
        let is_ready = |link: &Link| link.is_ready();
        this.watch(comm, patience.min(JOINING), is_ready, WHAT).map_err(|(e, _)| e)?;
        Ok(this)
    }

    /// Version and file.
    pub fn describe(&self) -> &str {
        &self.found
    }

    /// Which of how many.
    pub fn world(&self) -> World {
        self.world
    }

    fn link(&self, what: &str) -> Result<&Link> {
        self.link.as_ref().ok_or_else(|| Error::Device(format!("cannot {what}: the GPUs have parted")))
    }

    /// Enqueues on `stream` what goes to every rank, by rank, and what comes from it. It is there when the stream has come past,
    /// which only [`Nccl::wait`] may wait for.
    ///
    /// Errors, with what is left to be waited for: as of [`Comm`].
    ///
    /// # Safety
    /// The memory is of the GPU with which this rank joined, is there until the stream has come past, and nobody else writes to it, nor
    /// to what goes out; the stream is one of that GPU's.
    #[allow(unsafe_code)]
    pub unsafe fn exchange(
        &mut self,
        comm: &dyn Comm,
        (out, into): (&[Run], &[Run]),
        stream: u64,
        what: &str,
    ) -> Result<(), (Error, Ended)> {
        let link = self.link(what).map_err(|e| (e, Ended::Whole))?;
        // SAFETY: the caller's word.
        match unsafe { link.exchange(out, into, stream) } {
            Ok(true) => Ok(()),
            // The library is at it in a thread of its own.
            Ok(false) => self.watch(comm, self.patience, |link| link.is_ready(), what),
            Err(e) => Err((self.told(comm, doing(what, e)), self.end())),
        }
    }

    /// Waits until `reached` says that the stream has come past all that was enqueued.
    ///
    /// Errors, with what is left on the device: as of [`Comm`].
    pub fn wait(
        &mut self,
        comm: &dyn Comm,
        mut reached: impl FnMut() -> Result<bool>,
        what: &str,
    ) -> Result<(), (Error, Ended)> {
        self.link(what).map_err(|e| (e, Ended::Whole))?;
        // An error of another rank is no end of what is on this rank's device.
        self.watch(comm, self.patience, |link| link.is_ready().and_then(|_| reached()), what)
    }

    /// Looks until `over`. Whatever fails ends it.
    fn watch(
        &mut self,
        comm: &dyn Comm,
        patience: Duration,
        mut over: impl FnMut(&Link) -> Result<bool>,
        what: &str,
    ) -> Result<(), (Error, Ended)> {
        let (mut wait, mut looks) = (Wait::new(what, Some(patience)), 0u32);
        let why = loop {
            let link = self.link(what).map_err(|e| (e, Ended::Whole))?;
            match over(link) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(e) => break self.told(comm, doing(what, e)),
            }
            looks = looks.wrapping_add(1);
            let looked = if looks.is_multiple_of(64) { comm.look(what) } else { Ok(()) };
            if let Err(e) = looked.and_then(|()| wait.on(|| "another rank is".into())) {
                break e;
            }
        };
        Err((why, self.end()))
    }

    /// What the host has heard, where it has: it knows who it was.
    fn told(&self, comm: &dyn Comm, e: Error) -> Error {
        comm.look("go on").err().unwrap_or(e)
    }

    /// Ends it at once, and what is under way; nothing where that was done.
    pub fn abort(&mut self) -> Ended {
        self.end()
    }

    fn end(&mut self) -> Ended {
        match self.link.take().is_none_or(|link| link.abort(LAST)) {
            true => Ended::Whole,
            false => Ended::Stuck,
        }
    }

    /// Parts from the others in order: every rank calls this, when nothing is on its device any more.
    pub fn part(&mut self, comm: &dyn Comm) -> Result<(), (Error, Ended)> {
        const WHAT: &str = "part from the GPUs of the other ranks";
        let link = self.link(WHAT).map_err(|e| (e, Ended::Whole))?;
        match link.finalize() {
            Ok(true) => {}
            Ok(false) => self.watch(comm, self.patience.min(LAST), |link| link.is_ready(), WHAT)?,
            Err(e) => return Err((doing(WHAT, e), self.end())),
        }
        match self.link.take().map(Link::destroy) {
            None | Some(Ok(_)) => Ok(()),
            Some(Err(e)) => Err((doing(WHAT, e), Ended::Whole)),
        }
    }
}

fn doing(what: &str, e: Error) -> Error {
    match e {
        Error::Device(why) => Error::Device(format!("cannot {what}: {why}")),
        e => e,
    }
}

/// What this rank found, where all have found the same version.
fn same_on_all(comm: &dyn Comm, found: Result<Found, String>) -> Result<Found> {
    let version = |line: &str| line.split(',').next().unwrap_or_default().to_owned();
    let mine = match &found {
        Ok(found) => format!("+{}", version(found.line())),
        Err(why) => format!("-{why}"),
    };
    let all = comm.gather(mine.as_bytes(), "compare NCCL")?;
    let all: Vec<String> = all.iter().map(|said| String::from_utf8_lossy(said).into_owned()).collect();
    let install = "install NCCL (or pip's nvidia-nccl-cu13), put it on LD_LIBRARY_PATH, or name its file in";
    for (rank, said) in all.iter().enumerate() {
        if let Some(why) = said.strip_prefix('-') {
            return Err(Error::usage(format!(
                "rank {rank} has no NCCL by which GPUs reach each other ({why}): {install} {ENVIRONMENT}"
            )));
        }
        if said != &all[0] {
            let [other, first] = [said, &all[0]].map(|said| said.trim_start_matches('+'));
            return Err(Error::usage(format!("rank {rank} has {other} and rank 0 {first}: all ranks need the same")));
        }
    }
    found.map_err(Error::Device)
}
