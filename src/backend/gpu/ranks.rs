//! GPUs of ranks, which reach each other by NCCL, on the stream that all else is enqueued on or on one beside it.

use super::check;
use super::context::{Gpu, GpuFloat};
use super::driver::Driver;
use super::joined::Joined;
use super::lock::lock;
use crate::backend::ops::element::Storage;
use crate::backend::ops::ranks::{Exchange, RankOps};
use crate::comm::Comm;
use crate::comm::nccl::{Nccl, Run};
use crate::error::{Error, Result};

/// Exchanges that the host is ahead of the device. A queue of the driver's that is full holds the host where it looks for nobody; this
/// many, with what belongs to them, are far from filling one.
const AHEAD: usize = 16;

/// Where each part lies that is not rank `own`'s.
fn runs<T>(at: u64, lengths: &[usize], own: usize) -> Vec<Run> {
    let mut at = at;
    let of = |(rank, n): (usize, &usize)| {
        let (here, bytes) = (at, n * size_of::<T>());
        at += bytes as u64;
        Run { at: here, bytes: if rank == own { 0 } else { bytes } }
    };
    lengths.iter().enumerate().map(of).collect()
}

impl<D: Driver, A: GpuFloat> RankOps for Gpu<D, A> {
    fn join(&self, comm: &dyn Comm, env: &dyn Fn(&str) -> Option<String>) -> Result<()> {
        if comm.world().size == 1 || self.driver.queue().is_none() {
            return Ok(());
        }
        // The GPU is this thread's from here on, and the library takes the one that is.
        self.driver.synchronize()?;
        let nccl = Nccl::join(comm, env)?;
        // It joins once in its life.
        let _ = self.way.set(nccl.describe().to_owned());
        *lock(&self.ranks) = Some(Joined::new(nccl, &self.driver));
        Ok(())
    }

    fn joined(&self) -> Option<String> {
        self.way.get().cloned()
    }

    fn exchange<T: Storage>(&self, comm: &dyn Comm, op: Exchange<'_, Self, T>, what: &str) -> Result<()> {
        const OP: &str = "exchange";
        self.usable(OP)?;
        let mut ranks = lock(&self.ranks);
        let (Some(joined), Some(stream)) = (ranks.as_mut(), self.driver.queue()) else {
            return Err(Error::Device(format!("cannot {what}: the GPUs of the ranks have not been joined")));
        };
        let Exchange { send, to, receive, from } = op;
        let (own, size) = (comm.world().rank, comm.world().size);
        check::len(OP, "to", to.len(), &[("ranks", size)])?;
        check::len(OP, "from", from.len(), &[("ranks", size)])?;
        check::len(OP, "send", send.len(), &[("to", to.iter().sum())])?;
        check::len(OP, "receive", receive.len(), &[("from", from.iter().sum())])?;
        check::len(OP, "its own part", to[own], &[("from", from[own])])?;
        let before = |lengths: &[usize]| lengths[..own].iter().sum::<usize>() * size_of::<T>();
        let mine = (receive.at + before(from) as u64, send.at + before(to) as u64, to[own] * size_of::<T>());
        // SAFETY: both lie within views of live buffers of this driver, of which one is lent to be written.
        unsafe { self.driver.copy(mine.0, mine.1, mine.2) }?;
        let (out, into) = (runs::<T>(send.at, to, own), runs::<T>(receive.at, from, own));
        // SAFETY: they lie within views of live buffers of this driver, and whoever frees one waits for the stream first; the stream
        // is this driver's, with whose GPU this rank joined.
        let begun = unsafe { joined.nccl.exchange(comm, (&out, &into), stream, what) };
        begun.map_err(|e| joined.failed(e))?;
        let event = self.driver.event()?;
        self.driver.record(&event)?;
        joined.under_way.push_back(event);
        if joined.under_way.len() <= AHEAD {
            return Ok(());
        }
        let first = joined.under_way.pop_front().expect("there are more");
        joined.nccl.wait(comm, || self.driver.reached(&first), what).map_err(|e| joined.failed(e))
    }

    fn beside(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.usable("enqueue beside")?;
        self.driver.aside()?;
        let done = work();
        self.driver.back();
        done
    }

    fn rejoin(&self) -> Result<()> {
        self.usable("enqueue beside")?;
        self.driver.rejoin()
    }

    fn exchanged(&self, comm: &dyn Comm, what: &str) -> Result<()> {
        let mut ranks = lock(&self.ranks);
        let Some(joined) = ranks.as_mut() else { return Ok(()) };
        let driver = &self.driver;
        let event = driver.event()?;
        driver.record(&event)?;
        joined.under_way.clear();
        joined.nccl.wait(comm, || driver.reached(&event), what).map_err(|e| joined.failed(e))
    }

    fn leave(&self, comm: &dyn Comm) -> Result<()> {
        let Some(mut joined) = lock(&self.ranks).take() else { return Ok(()) };
        self.driver.synchronize()?;
        joined.nccl.part(comm).map_err(|e| joined.failed(e))
    }
}
