//! Attention over segments with a shared prefix. Kernels: `kernels/attention*.cu`; reference: `backend/cpu/attention.rs`.

use super::batch::GpuBatch;
use super::driver::{Driver, View, ViewMut};
use super::{Gpu, GpuFloat};
use crate::backend::{AttnShape, Capacity};
use crate::data::batch::MicroBatch;
use crate::error::{Error, Result};
use std::marker::PhantomData;

/// Tables of a batch that the attention kernels follow.
pub struct Tables<D: Driver> {
    driver: PhantomData<D>,
}

impl<D: Driver> Tables<D> {
    /// Memory for any micro-batch within `capacity`.
    pub(super) fn new<A: GpuFloat>(_gpu: &Gpu<D, A>, _capacity: Capacity) -> Result<Self> {
        Ok(Tables { driver: PhantomData })
    }

    /// Replaces the content.
    pub(super) fn load<A: GpuFloat>(&mut self, _gpu: &Gpu<D, A>, _from: &MicroBatch) -> Result<()> {
        Ok(())
    }
}

impl<D: Driver, A: GpuFloat> Gpu<D, A> {
    /// See [`crate::backend::Backend::attention_fwd`].
    pub fn attention_fwd(
        &self,
        _out: ViewMut<A>,
        _lse: ViewMut<f32>,
        _qkv: View<A>,
        _batch: &GpuBatch<D>,
        _shape: AttnShape,
    ) -> Result<()> {
        Err(Error::Launch { kernel: "attention_fwd", why: "not in this build".into() })
    }

    /// See [`crate::backend::Backend::attention_bwd`].
    #[allow(clippy::too_many_arguments)]
    pub fn attention_bwd(
        &self,
        _dqkv: ViewMut<A>,
        _delta: ViewMut<f32>,
        _dout: View<A>,
        _out: View<A>,
        _lse: View<f32>,
        _qkv: View<A>,
        _batch: &GpuBatch<D>,
        _shape: AttnShape,
    ) -> Result<()> {
        Err(Error::Launch { kernel: "attention_bwd", why: "not in this build".into() })
    }
}
