//! Ops of generation are no part of a step: passed on, and not looked at.

use super::device::Watched;
use crate::backend::Backend;
use crate::backend::ops::decode::{AttentionDecode, DecodeOps, KvStore, Layout, LinearPacked, LogitsPacked};
use crate::backend::ops::device::Act;
use crate::backend::ops::head::Logits;
use crate::backend::ops::linear::LinearFwd;
use crate::error::Result;

macro_rules! passed_on {
    ($($name:ident($args:ident { $($field:ident),* });)*) => { $(
        fn $name(&self, op: $args<'_, Self>) -> Result<()> {
            let $args { $($field),* } = op;
            self.be.$name($args { $($field),* })
        }
    )* };
}

impl<B: Backend> DecodeOps for Watched<B> {
    type Packed = B::Packed;

    fn packed_room(&self, name: &str, out: usize, inp: usize, layout: Layout) -> Result<Option<B::Packed>> {
        self.be.packed_room(name, out, inp, layout)
    }
    fn pack_weight(&self, to: &mut B::Packed, w: Act<'_, B>) -> Result<bool> {
        self.be.pack_weight(to, w)
    }
    passed_on! {
        linear_few(LinearFwd { y, x, w, out, inp, write });
        logits_few(Logits { logits, x, w, dim });
        linear_packed(LinearPacked { y, x, w, write });
        logits_packed(LogitsPacked { logits, x, w });
        kv_store(KvStore { k, v, qkv, dst, shape });
        attention_decode(AttentionDecode { out, qkv, k, v, lens, stride, shape });
    }
}
