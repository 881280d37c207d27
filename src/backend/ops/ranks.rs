//! Numbers from the devices of ranks to each other's.

use super::device::Device;
use super::element::Storage;
use crate::comm::{Comm, Parts, Staging};
use crate::error::{Result, expect_len};

/// What a rank has for the others, and they for it: a part for each rank, one after the other, this rank's own among them. Both
/// sides say the same of a part's length.
pub struct Exchange<'a, B: Device, T: Storage> {
    /// What goes out.
    pub send: B::View<'a, T>,
    /// Elements that go to each rank; all of `send`.
    pub to: &'a [usize],
    /// Becomes what comes in.
    pub receive: B::ViewMut<'a, T>,
    /// Elements that come from each rank; all of `receive`.
    pub from: &'a [usize],
}

/// A device among those of other ranks. What is given here is the definition, by way of the host; GPUs have a way of their own.
pub trait RankOps: Device {
    /// Joins the devices of all ranks of `comm`, where there is a way that leaves out the host. Every rank calls this, and `comm` is
    /// the same in all calls.
    ///
    /// Errors: as of [`Comm`]; no way, though the device needs one.
    fn join(&self, comm: &dyn Comm, env: &dyn Fn(&str) -> Option<String>) -> Result<()> {
        let _ = (comm, env);
        Ok(())
    }

    /// Whether it did, so that numbers need not go by the host; by what, in words.
    fn joined(&self) -> Option<String> {
        None
    }

    /// Hands every rank its part, and takes what the others have for this one. It may be under way when this comes back: ops that are
    /// enqueued later find it done, and before the host waits for anything else it calls [`RankOps::exchanged`].
    ///
    /// Errors: [`crate::Error::Shape`]; as of [`Comm`].
    fn exchange<T: Storage>(&self, comm: &dyn Comm, op: Exchange<'_, Self, T>, what: &str) -> Result<()> {
        let Exchange { send, to, mut receive, from } = op;
        let bytes = |n: &[usize]| n.iter().map(|n| n * size_of::<T>()).collect::<Vec<_>>();
        let (mut out, mut into) = (Staging::default(), Staging::default());
        out.resize(self.view_len(send) * size_of::<T>());
        self.download(out.numbers_mut(), send)?;
        let (to, from) = (bytes(to), bytes(from));
        expect_len("exchange", "send", out.bytes().len(), &[("to", to.iter().sum())])?;
        comm.exchange(Parts { send: &mut out, to: &to, receive: &mut into, from: &from }, what)?;
        self.upload(self.lend(&mut receive), into.numbers())
    }

    /// Enqueues what `work` enqueues beside what comes later: after all that was enqueued before, and not awaited by later ops until
    /// [`RankOps::rejoin`]. Nobody else writes meanwhile to what it reads, nor touches what it writes. Products are not for it, nor ops
    /// with scratch. A device that does one thing after the other does it at once.
    fn beside(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        work()
    }

    /// What is enqueued from here on comes after all that went [beside](RankOps::beside).
    fn rejoin(&self) -> Result<()> {
        Ok(())
    }

    /// Waits until all exchanges are over, as long as ranks are waited for.
    ///
    /// Errors: as of [`Comm`].
    fn exchanged(&self, comm: &dyn Comm, what: &str) -> Result<()> {
        let _ = (comm, what);
        Ok(())
    }

    /// Parts from the others in order. Every rank calls this.
    fn leave(&self, comm: &dyn Comm) -> Result<()> {
        let _ = comm;
        Ok(())
    }
}
