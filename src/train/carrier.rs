//! Buckets that go between ranks on a thread of their own, while this one computes.
//!
//! What is packed goes there by value and comes back with what it has become: the two threads share no memory but that.

use crate::comm::{Comm, Staging};
use crate::error::{Error, Result};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, Scope};

/// Buckets that are under way at once: one is packed, one travels, one is unpacked.
pub(super) const ROOM: usize = 3;

/// Where numbers lie that travel: it stays from step to step.
#[derive(Default)]
pub(super) struct Packed {
    /// What goes out.
    pub send: Staging,
    /// What comes in.
    pub receive: Staging,
}

/// A bucket under way.
pub(super) struct Parcel {
    /// Which.
    pub bucket: usize,
    /// Its numbers.
    pub packed: Packed,
    /// How many numbers there are at each place of its parts ([`World::place_of`](crate::comm::World::place_of)).
    pub parts: Vec<usize>,
}

/// The way to the thread that carries, and back.
pub(super) struct Carrier {
    jobs: Sender<Option<Parcel>>,
    done: Receiver<Result<Parcel>>,
    under_way: usize,
    room: Vec<Packed>,
}

/// Ends the thread when it goes, and first what it waits for, unless all was well.
pub(super) struct Ends<'a> {
    comm: &'a dyn Comm,
    jobs: Sender<Option<Parcel>>,
    well: bool,
}

impl Carrier {
    /// Begins a thread that does `carry` with what it is given, in order, until `Ends` goes or one fails. `room` is where buckets are
    /// packed, made [`ROOM`] in all.
    pub fn start<'s, 'a: 's>(
        scope: &'s Scope<'s, '_>,
        comm: &'a dyn Comm,
        mut room: Vec<Packed>,
        mut carry: impl FnMut(&mut Parcel) -> Result<()> + Send + 's,
    ) -> Result<(Self, Ends<'a>)> {
        let ((jobs, todo), (back, done)) = (channel::<Option<Parcel>>(), channel());
        let carries = move || {
            while let Ok(Some(mut parcel)) = todo.recv() {
                let ended = carry(&mut parcel).map(|()| parcel);
                let failed = ended.is_err();
                if back.send(ended).is_err() || failed {
                    return;
                }
            }
        };
        let begun = Builder::new().name("carrier".into()).spawn_scoped(scope, carries);
        begun.map_err(|e| Error::Device(format!("cannot begin a thread that carries gradients and weights: {e}")))?;
        room.resize_with(ROOM, Packed::default);
        let ends = Ends { comm, jobs: jobs.clone(), well: false };
        Ok((Self { jobs, done, under_way: 0, room }, ends))
    }

    /// Room to pack a bucket in; where all is under way, that of the first to come back, once `unpack` has taken what it brings.
    pub fn room(&mut self, unpack: impl FnOnce(&mut Parcel) -> Result<()>) -> Result<Packed> {
        match self.room.pop() {
            Some(packed) => Ok(packed),
            None => self.back(unpack),
        }
    }

    /// Hands a bucket on. Errors: why one before it failed.
    pub fn send(&mut self, parcel: Parcel) -> Result<()> {
        self.under_way += 1;
        match self.jobs.send(Some(parcel)) {
            Ok(()) => Ok(()),
            // What the thread has said last is behind what it had brought before.
            Err(_) => Err(self.done.try_iter().find_map(Result::err).unwrap_or_else(gone)),
        }
    }

    /// Waits for all that is under way, and gives all room back.
    pub fn finish(mut self, mut unpack: impl FnMut(&mut Parcel) -> Result<()>) -> Result<Vec<Packed>> {
        while self.under_way > 0 {
            let packed = self.back(&mut unpack)?;
            self.room.push(packed);
        }
        Ok(self.room)
    }

    fn back(&mut self, unpack: impl FnOnce(&mut Parcel) -> Result<()>) -> Result<Packed> {
        let mut parcel = self.done.recv().map_err(|_| gone())??;
        self.under_way -= 1;
        unpack(&mut parcel)?;
        Ok(parcel.packed)
    }
}

/// It has panicked, which its scope tells.
fn gone() -> Error {
    Error::Device("the thread that carries gradients and weights has ended".into())
}

impl Ends<'_> {
    /// Nothing is under way any more.
    pub fn well(mut self) {
        self.well = true;
    }
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if !self.well {
            self.comm.give_up();
        }
        // Nobody listens where it has ended.
        let _ = self.jobs.send(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::Alone;

    /// No more buckets are under way than there is room for, and what one brings is taken before its room is used again.
    #[test]
    fn a_bucket_waits_for_room() {
        std::thread::scope(|scope| {
            let (go, wait) = channel();
            let carry = move |parcel: &mut Parcel| {
                wait.recv().expect("the test goes on");
                parcel.parts.push(parcel.bucket);
                Ok(())
            };
            let (mut carrier, ends) = Carrier::start(scope, &Alone, Vec::new(), carry).unwrap();
            let mut came = Vec::new();
            let mut take = |parcel: &mut Parcel| {
                came.push((parcel.bucket, parcel.parts.clone()));
                Ok(())
            };
            for bucket in 0..2 * ROOM {
                if bucket >= ROOM {
                    go.send(()).unwrap();
                }
                let mut taken = 0;
                let packed = carrier.room(|parcel| {
                    taken += 1;
                    take(parcel)
                });
                assert_eq!(taken, usize::from(bucket >= ROOM), "{bucket}");
                carrier.send(Parcel { bucket, packed: packed.unwrap(), parts: Vec::new() }).unwrap();
            }
            (0..ROOM).for_each(|_| go.send(()).unwrap());
            assert_eq!(carrier.finish(take).unwrap().len(), ROOM);
            assert!(came.into_iter().eq((0..2 * ROOM).map(|bucket| (bucket, vec![bucket]))));
            ends.well();
        });
    }
}
