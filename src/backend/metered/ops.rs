//! Every op of a step: noted, and not done.

use super::device::Metered;
use super::work::{Extent, Work};
use crate::backend::Backend;
use crate::backend::ops::*;
use crate::batch::Capacity;
use crate::error::Result;

/// Bytes of an argument: what is read (`view`), written (`out`), or both (`both`), once each; what need not be there (`some`,
/// and `maybe` for what is added to); what is read at a few places, or no number of a row at all, is passed over (`own`).
macro_rules! bytes {
    (view $f:ident) => {
        $f.bytes()
    };
    (out $f:ident) => {
        $f.bytes()
    };
    (both $f:ident) => {
        2.0 * $f.bytes()
    };
    (some $f:ident) => {
        $f.map_or(0.0, |v| v.bytes())
    };
    (maybe $f:ident) => {
        $f.map_or(0.0, |v| 2.0 * v.bytes())
    };
    (with $f:ident) => {
        $f.map_or(0.0, |(v, write)| written(&v, write.adds()))
    };
    (own $f:ident) => {
        0.0
    };
}

/// Bytes of a result that is set, or added to.
fn written<T>(to: &Extent<T>, adds: bool) -> f64 {
    if adds { 2.0 * to.bytes() } else { to.bytes() }
}

/// The ops of each trait, with the names of their arguments, each after how its bytes count; then the work, `moved` being all of
/// these bytes.
macro_rules! metered {
    ($this:ident, $moved:ident: $($ops:ident { $($name:ident$([$g:ident])?($args:ident { $($how:ident $field:ident),* })
        => { $($work:tt)* };)* })*) => { $(
        impl<B: Backend> $ops for Metered<B> { $(
            #[allow(unused_variables)]
            fn $name$(<$g: Gradient>)?(&self, op: $args<'_, Self $(, $g)?>) -> Result<()> {
                let $args { $($field),* } = op;
                let ($this, $moved) = (self, 0.0 $(+ bytes!($how $field))*);
                self.note(Work { op: stringify!($name), $($work)*, ..Work::default() });
                Ok(())
            }
        )* }
    )* };
}

/// Multiplications of a product, twice.
fn flops(rows: usize, out: usize, inp: usize) -> f64 {
    2.0 * rows as f64 * out as f64 * inp as f64
}

/// Of an adapter's product with A, and with B.
fn low_rank(rows: usize, parts: &AdapterParts<'_>) -> [f64; 2] {
    [flops(rows, parts.low(), parts.inp), flops(rows, parts.covered(), parts.rank)]
}

metered! { this, moved:
    EmbedOps {
        embed_fwd(EmbedFwd { both x, own table, own batch, own dim }) => { stream: moved };
        embed_bwd[G](EmbedBwd { own dtable, view dx, own batch, own dim })
            => { stream: moved + 2.0 * (dx.len * size_of::<G>()) as f64 };
    }
    NormOps {
        rmsnorm_fwd(RmsNormFwd { out y, out rstd, view x, view w, own eps }) => { stream: moved };
        rmsnorm_bwd(RmsNormBwd { own dx, maybe dw, view dy, view x, view w, view rstd, own write, own again })
            => { stream: moved + written(&dx, write.adds()) + if again { dy.bytes() } else { 0.0 } };
        qk_norm_fwd(QkNormFwd { both qkv, out raw, out rstd, view w, own table, own batch, own shape, own eps })
            => { stream: moved };
        qk_norm_bwd(QkNormBwd { both dqkv, maybe dw, view raw, view rstd, view w, own table, own batch, own shape })
            => { stream: moved };
    }
    LinearOps {
        linear_fwd(LinearFwd { out y, view x, view w, own out, own inp, own write })
            => { product: flops(y.len / out.max(1), out, inp), results: y.len as f64, operands: moved + of_sum(&y, write) };
        linear_bwd_input(LinearBwdInput { own dx, view dy, view w, own out, own inp, own write })
            => {
                product: flops(dy.len / out.max(1), out, inp),
                results: dx.len as f64,
                operands: moved + written(&dx, write.adds())
            };
        linear_bwd_weight[G](LinearBwdWeight { own dw, view dy, view x, own out, own inp, own write })
            => { product: flops(dy.len / out.max(1), out, inp), operands: moved + written(&dw, write.adds()) };
        linear_bwd_part[G](LinearBwdPart { both dw, view dy, view x, own columns, own out, own inp })
            => { product: flops(dy.len / out.max(1), columns.len(), inp), operands: moved };
        bias_fwd(BiasFwd { both y, view bias }) => { stream: moved };
        bias_bwd(BiasBwd { both dbias, view dy }) => { stream: moved };
    }
    AdapterOps {
        adapter_fwd(AdapterFwd { both y, both low, view x, view a, view b, own parts })
            => { product: low_rank(y.len / parts.out.max(1), &parts).iter().sum(), stream: moved };
        adapter_bwd_low(AdapterBwdLow { out dlow, view dy, view b, own parts })
            => { product: low_rank(dy.len / parts.out.max(1), &parts)[1], stream: moved };
        adapter_bwd_weight(AdapterBwdWeight { both db, both low, view dy, view x, view a, own parts })
            => { product: low_rank(dy.len / parts.out.max(1), &parts).iter().sum(), stream: moved };
    }
    RopeOps {
        rope_fwd(RopeFwd { both qkv, some bias, own table, own batch, own shape }) => { stream: moved };
        rope_bwd(RopeBwd { both dqkv, maybe dbias, own table, own batch, own shape }) => { stream: moved };
    }
    AttentionOps {
        attention_fwd(AttentionFwd { out out, out lse, view qkv, own batch, own shape })
            => { attention: 4.0 * batch.scores * shape.q_width() as f64, stream: moved };
        attention_bwd(AttentionBwd {
            out dqkv, both delta, own partial, view dout, view out, view lse, view qkv, own batch, own shape
        }) => { attention: 10.0 * batch.scores * shape.q_width() as f64, stream: moved };
    }
    SwigluOps {
        swiglu_fwd(SwigluFwd { out act, view gate_up, own ffn }) => { stream: moved };
        swiglu_bwd(SwigluBwd { both gate_up, view dact, own ffn, own again })
            => { stream: moved + if again { dact.bytes() } else { 0.0 } };
    }
    RowOps {
        gather_rows(GatherRows { both out, own x, own batch, own dim }) => { stream: moved };
        scatter_rows(ScatterRows { out dx, view dout, own batch, own dim }) => { stream: moved };
    }
    HeadOps {
        // Logits are written by the product and read once, each row being held meanwhile; their gradient is as narrow as weights are.
        head_fwd(HeadFwd {
            out logp, out entropy, out log_sum_p2, out hit, own logits, view x, view w, own batch, own chunk, own mode
        }) => {
            product: flops(logp.len, logits.len / logp.len.max(1), x.len / logp.len.max(1)),
            results: logits.len as f64,
            operands: x.bytes() + w.bytes() + this.logits(logits.len),
            stream: moved - x.bytes() - w.bytes() + this.logits(logits.len) + this.gradient(logits.len, mode)
        };
        logits(Logits { out logits, view x, view w, own dim })
            => { product: flops(x.len / dim.max(1), w.len / dim.max(1), dim), operands: moved };
        head_bwd[G](HeadBwd { out dx, with dw, both scaled, own logits, view x, view w, view coef })
            => {
                product: flops(coef.len, logits.len / coef.len.max(1), x.len / coef.len.max(1))
                    * if dw.is_some() { 2.0 } else { 1.0 },
                operands: moved + if dw.is_some() { 2.0 } else { 1.0 } * this.gradient(logits.len, HeadMode::Train)
            };
    }
    LossOps {
        loss(Loss {
            out coef, both responses, both pairs, view logp, view entropy, view hit, view log_sum_p2, own batch, own chunk,
            own spec, own scales, own given
        }) => { stream: moved };
    }
    OptimOps {
        grad_norm(GradNorm { out norm, view g }) => { stream: moved };
        grad_norm_narrow(GradNormNarrow { out norm, view matrices, view vectors }) => { stream: moved };
        add(Add { both to, view from }) => { stream: moved };
        squares(Squares { out sums, view g, own block }) => { stream: moved };
        root(Root { out norm, view sums }) => { stream: moved };
        update[G](Update { both w, maybe master, both m, both v, view g, view norm, own max_grad_norm, own rule })
            => { stream: moved - if master.is_some() { w.bytes() } else { 0.0 } };
        mix(Mix { both w, maybe master, view from, some from_master, own alpha }) => { stream: moved };
    }
    SmallStateOps {
        update_bf16[G](UpdateBf16 {
            both w, both m, both v, view g, view norm, own max_grad_norm, own rule, own rounding
        }) => { stream: moved };
        update_8bit[G](Update8bit {
            both w, both m, both m_scale, both v, both v_scale, view g, view norm, own max_grad_norm, own rule, own rounding
        }) => { stream: moved };
    }
    QuantOps {
        dequantize_nf4(DequantizeNf4 { out w, view codes, own absmax, own round }) => { stream: moved };
    }
}

/// Bytes of what a sum is made with, beside its product: what is there, or another operand.
fn of_sum<T>(y: &Extent<T>, write: Write<Extent<T>>) -> f64 {
    match write {
        Write::Set => 0.0,
        Write::Add | Write::Plus(_) => y.bytes(),
    }
}

impl<B: Backend> Metered<B> {
    /// Bytes of logits: those of the accumulation precision, as long as the backend has no others.
    fn logits(&self, len: usize) -> f64 {
        (len * size_of::<B::Acc>()) as f64
    }

    /// Bytes of what training leaves in their place.
    fn gradient(&self, len: usize, mode: HeadMode) -> f64 {
        if mode == HeadMode::Train { (len * size_of::<B::Act>()) as f64 } else { 0.0 }
    }
}

impl<B: Backend> DropoutOps for Metered<B> {
    fn make_room(&self, _: &mut Self::Batch, _: Capacity) -> Result<()> {
        Ok(())
    }
    fn dropout_fwd(&self, op: DropoutFwd<'_, Self>) -> Result<()> {
        self.note(Work { op: "dropout_fwd", stream: op.y.bytes() + op.x.bytes(), ..Work::default() });
        Ok(())
    }
    fn dropout_bwd(&self, op: DropoutBwd<'_, Self>) -> Result<()> {
        self.note(Work { op: "dropout_bwd", stream: 2.0 * op.dx.bytes() + op.dy.bytes(), ..Work::default() });
        Ok(())
    }
}

/// Alone, as what is metered does nothing.
impl<B: Backend> RankOps for Metered<B> {}
