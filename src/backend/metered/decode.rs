//! Ops of generation are no part of a step: refused.

use super::device::Metered;
use super::work::Extent;
use crate::backend::Backend;
use crate::backend::ops::decode::{AttentionDecode, DecodeOps, KvStore, Layout, LinearPacked, LogitsPacked};
use crate::backend::ops::head::Logits;
use crate::backend::ops::linear::LinearFwd;
use crate::error::{Error, Result};

macro_rules! refused {
    ($($name:ident($args:ident);)*) => { $(
        fn $name(&self, _: $args<'_, Self>) -> Result<()> {
            Err(Error::usage(concat!(stringify!($name), ": an op of generation, of which nothing is counted")))
        }
    )* };
}

impl<B: Backend> DecodeOps for Metered<B> {
    type Packed = ();

    fn packed_room(&self, _: &str, _: usize, _: usize, _: Layout) -> Result<Option<()>> {
        Ok(None)
    }
    fn pack_weight(&self, _: &mut (), _: Extent<B::Act>) -> Result<bool> {
        Ok(false)
    }
    refused! {
        linear_few(LinearFwd);
        logits_few(Logits);
        linear_packed(LinearPacked);
        logits_packed(LogitsPacked);
        kv_store(KvStore);
        attention_decode(AttentionDecode);
    }
}
