//! A GPU's way to those of other ranks, and what becomes of it where it fails.

use super::driver::Driver;
use crate::comm::nccl::{Ended, Nccl};
use crate::error::Error;
use std::collections::VecDeque;
use std::sync::Arc;

/// The way to the others. Dropped, it is ended, and with it what is under way.
pub(super) struct Joined<D: Driver> {
    pub nccl: Nccl,
    /// Where the last exchanges end, in order: the host does not run further ahead.
    pub under_way: VecDeque<D::Event>,
    driver: Arc<D>,
}

impl<D: Driver> Joined<D> {
    pub fn new(nccl: Nccl, driver: &Arc<D>) -> Self {
        Self { nccl, under_way: VecDeque::new(), driver: driver.clone() }
    }

    /// The error; where something is on the device that never ends, the device is not waited for any more.
    pub fn failed(&self, (e, ended): (Error, Ended)) -> Error {
        if ended == Ended::Stuck {
            self.driver.lose();
            // What it holds must not be waited for either.
            std::mem::forget(self.driver.clone());
        }
        e
    }
}

impl<D: Driver> Drop for Joined<D> {
    fn drop(&mut self) {
        let ended = self.nccl.abort();
        drop(self.failed((Error::Device("the ranks have parted".into()), ended)));
    }
}
