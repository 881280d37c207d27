//! Every op of a step: passed on, then its outputs are looked at. Scratch is not, nor is what the contract leaves open.

use super::device::Watched;
use super::log::Rows::{Pairs, Parameters, Predictions, Responses, Slots, Whole};
use crate::backend::Backend;
use crate::backend::ops::*;
use crate::batch::Capacity;
use crate::comm::Comm;
use crate::error::Result;
use std::time::Instant;

/// How an argument is handed on: `out` is written and looked at later, `maybe` is one that need not be there, `with` one that has
/// something beside it; `view` is read, `some` is one that need not be there; `own` is a value.
macro_rules! handed {
    ($be:ident out $f:ident) => {
        $be.lend(&mut $f)
    };
    ($be:ident maybe $f:ident) => {
        $f.as_mut().map(|v| $be.lend(v))
    };
    ($be:ident with $f:ident) => {
        $f.as_mut().map(|(v, write)| ($be.lend(v), *write))
    };
    ($be:ident view $f:ident) => {
        $be.part($f, 0..$be.view_len($f))
    };
    ($be:ident some $f:ident) => {
        $f.map(|v| $be.part(v, 0..$be.view_len(v)))
    };
    ($be:ident plus $f:ident) => {
        match $f {
            Write::Plus(v) => Write::Plus($be.part(v, 0..$be.view_len(v))),
            Write::Add => Write::Add,
            Write::Set => Write::Set,
        }
    };
    ($be:ident own $f:ident) => {
        $f
    };
}

/// How an output is looked at.
macro_rules! looked_at {
    ($this:ident $op:ident out $f:ident $what:expr) => {
        $this.see(stringify!($op), stringify!($f), $this.be.read_only(&$f), $what)?
    };
    ($this:ident $op:ident maybe $f:ident $what:expr) => {
        if let Some(v) = &$f {
            $this.see(stringify!($op), stringify!($f), $this.be.read_only(v), $what)?
        }
    };
    ($this:ident $op:ident with $f:ident $what:expr) => {
        if let Some((v, _)) = &$f {
            $this.see(stringify!($op), stringify!($f), $this.be.read_only(v), $what)?
        }
    };
}

/// The ops of each trait, with the names of their arguments, each after how it is handed on, and what is looked at: which output,
/// behind `@` on what condition, what its rows are, and how wide.
macro_rules! watched {
    ($this:ident: $($ops:ident { $($name:ident$([$g:ident])?($args:ident { $($how:ident $field:ident),* })
        => $($kind:ident $output:ident $(@$if:ident)? $what:expr),*;)* })*) => { $(
        impl<B: Backend> $ops for Watched<B> { $(
            #[allow(unused_mut)]
            fn $name$(<$g: Gradient>)?(&self, op: $args<'_, Self $(, $g)?>) -> Result<()> {
                let $args { $(mut $field),* } = op;
                let ($this, be) = (self, &self.be);
                let begun = Instant::now();
                be.$name($args { $($field: handed!(be $how $field)),* })?;
                $this.timed(stringify!($name), begun);
                if $this.log().on {
                    $this.log().before(stringify!($name));
                    $( if true $(&& $if)? {
                        looked_at!($this $name $kind $output $what);
                    } )*
                    $this.log().viewed.clear();
                }
                Ok(())
            }
        )* }
    )* };
}
watched! { this:
    EmbedOps {
        embed_fwd(EmbedFwd { out x, view table, own batch, own dim }) => out x (Slots, dim);
        embed_bwd[G](EmbedBwd { out dtable, view dx, own batch, own dim }) => out dtable (Parameters, 1);
    }
    NormOps {
        rmsnorm_fwd(RmsNormFwd { out y, out rstd, view x, view w, own eps })
            => out y (Slots, this.be.view_len(w)), out rstd (Slots, 1);
        rmsnorm_bwd(RmsNormBwd { out dx, maybe dw, out dy, view x, view w, view rstd, own write, own again })
            => out dx (Slots, this.be.view_len(w)), maybe dw (Parameters, 1), out dy @again (Slots, this.be.view_len(w));
        qk_norm_fwd(QkNormFwd { out qkv, out raw, out rstd, view w, view table, own batch, own shape, own eps })
            => out qkv (Slots, shape.qkv_width()), out rstd (Slots, shape.heads + shape.kv_heads);
        qk_norm_bwd(QkNormBwd { out dqkv, maybe dw, view raw, view rstd, view w, view table, own batch, own shape })
            => out dqkv (Slots, shape.qkv_width()), maybe dw (Parameters, 1);
    }
    LinearOps {
        linear_fwd(LinearFwd { out y, view x, view w, own out, own inp, plus write }) => out y (Slots, out);
        linear_bwd_input(LinearBwdInput { out dx, view dy, view w, own out, own inp, own write }) => out dx (Slots, inp);
        linear_bwd_weight[G](LinearBwdWeight { out dw, view dy, view x, own out, own inp, own write })
            => out dw (Parameters, 1);
        linear_bwd_part[G](LinearBwdPart { out dw, view dy, view x, own columns, own out, own inp })
            => out dw (Parameters, 1);
        bias_fwd(BiasFwd { out y, view bias }) => out y (Slots, this.be.view_len(bias));
        bias_bwd(BiasBwd { out dbias, view dy }) => out dbias (Parameters, 1);
    }
    AdapterOps {
        adapter_fwd(AdapterFwd { out y, out low, view x, view a, view b, own parts })
            => out low (Slots, parts.low()), out y (Slots, parts.out);
        adapter_bwd_low(AdapterBwdLow { out dlow, view dy, view b, own parts }) => out dlow (Slots, parts.low());
        adapter_bwd_weight(AdapterBwdWeight { out db, out low, view dy, view x, view a, own parts })
            => out db (Parameters, 1);
    }
    RopeOps {
        rope_fwd(RopeFwd { out qkv, some bias, view table, own batch, own shape }) => out qkv (Slots, shape.qkv_width());
        rope_bwd(RopeBwd { out dqkv, maybe dbias, view table, own batch, own shape })
            => out dqkv (Slots, shape.qkv_width()), maybe dbias (Parameters, 1);
    }
    AttentionOps {
        attention_fwd(AttentionFwd { out out, out lse, view qkv, own batch, own shape })
            => out out (Slots, shape.q_width()), out lse (Slots, shape.heads);
        attention_bwd(AttentionBwd {
            out dqkv, out delta, out partial, view dout, view out, view lse, view qkv, own batch, own shape
        }) => out dqkv (Slots, shape.qkv_width());
    }
    SwigluOps {
        swiglu_fwd(SwigluFwd { out act, view gate_up, own ffn }) => out act (Slots, ffn);
        swiglu_bwd(SwigluBwd { out gate_up, out dact, own ffn, own again })
            => out gate_up (Slots, 2 * ffn), out dact @again (Slots, ffn);
    }
    RowOps {
        gather_rows(GatherRows { out out, view x, own batch, own dim }) => out out (Slots, dim);
        scatter_rows(ScatterRows { out dx, view dout, own batch, own dim }) => out dx (Slots, dim);
    }
    HeadOps {
        head_fwd(HeadFwd {
            out logp, out entropy, out log_sum_p2, out hit, out logits, view x, view w, own batch, own chunk, own mode
        }) => out logp (Predictions(this.at_chunk(chunk)), 1), out entropy (Predictions(chunk.predictions.start), 1),
            out log_sum_p2 (Predictions(chunk.predictions.start), 1);
        logits(Logits { out logits, view x, view w, own dim }) => ;
        head_bwd[G](HeadBwd { out dx, with dw, out scaled, view logits, view x, view w, view coef })
            => out dx (Predictions(this.chunk()), this.be.view_len(x) / this.be.view_len(coef).max(1)),
            with dw (Parameters, 1);
    }
    LossOps {
        loss(Loss {
            out coef, out responses, out pairs, view logp, view entropy, view hit, view log_sum_p2, own batch, own chunk,
            own spec, own scales, own given
        }) => out responses (Responses(chunk.responses.start), RESPONSE_STATS),
            out pairs (Pairs(chunk.pairs.start), PAIR_STATS), out coef (Predictions(chunk.predictions.start), 1);
    }
    OptimOps {
        grad_norm(GradNorm { out norm, view g }) => out norm (Whole, 1);
        grad_norm_narrow(GradNormNarrow { out norm, view matrices, view vectors }) => out norm (Whole, 1);
        add(Add { out to, view from }) => out to (Parameters, 1);
        squares(Squares { out sums, view g, own block }) => out sums (Whole, 1);
        root(Root { out norm, view sums }) => out norm (Whole, 1);
        update[G](Update { out w, maybe master, out m, out v, view g, view norm, own max_grad_norm, own rule })
            => maybe master (Parameters, 1), out m (Parameters, 1), out v (Parameters, 1), out w (Parameters, 1);
        mix(Mix { out w, maybe master, view from, some from_master, own alpha })
            => maybe master (Parameters, 1), out w (Parameters, 1);
    }
    SmallStateOps {
        update_bf16[G](UpdateBf16 { out w, out m, out v, view g, view norm, own max_grad_norm, own rule, own rounding })
            => out m (Parameters, 1), out v (Parameters, 1), out w (Parameters, 1);
        update_8bit[G](Update8bit {
            out w, out m, out m_scale, out v, out v_scale, view g, view norm, own max_grad_norm, own rule, own rounding
        }) => out m_scale (Whole, 1), out v_scale (Whole, 1), out w (Parameters, 1);
    }
}

impl<B: Backend> QuantOps for Watched<B> {
    fn dequantize_nf4(&self, op: DequantizeNf4<'_, Self>) -> Result<()> {
        let DequantizeNf4 { mut w, codes, absmax, round } = op;
        let be = &self.be;
        fn short<'s, 'l: 's, B: Backend, T: Storage>(be: &B, v: B::View<'l, T>) -> B::View<'s, T> {
            be.part(v, 0..be.view_len(v))
        }
        let absmax = match absmax {
            Nf4Absmax::Plain(of) => Nf4Absmax::Plain(short(be, of)),
            Nf4Absmax::Nested { codes, absmax, map, offset } => Nf4Absmax::Nested {
                codes: short(be, codes),
                absmax: short(be, absmax),
                map: short(be, map),
                offset: short(be, offset),
            },
        };
        let begun = Instant::now();
        be.dequantize_nf4(DequantizeNf4 { w: be.lend(&mut w), codes: short(be, codes), absmax, round })?;
        self.timed("dequantize_nf4", begun);
        if self.log().on {
            // What it was made of stays known to the product that reads it.
            self.see("dequantize_nf4", "w", be.read_only(&w), (Whole, 1))?;
        }
        Ok(())
    }
}

impl<B: Backend> DropoutOps for Watched<B> {
    fn make_room(&self, batch: &mut B::Batch, capacity: Capacity) -> Result<()> {
        self.be.make_room(batch, capacity)
    }
    fn dropout_fwd(&self, op: DropoutFwd<'_, Self>) -> Result<()> {
        let DropoutFwd { mut y, x, dim, dropout: Dropout { batch, predicting, site, p } } = op;
        let (be, dropout) = (&self.be, Dropout { batch, predicting, site, p });
        let op = DropoutFwd { y: be.lend(&mut y), x: be.part(x, 0..be.view_len(x)), dim, dropout };
        let begun = Instant::now();
        be.dropout_fwd(op)?;
        self.timed("dropout_fwd", begun);
        // The log is free again before it is written to.
        let on = self.log().on;
        if on { self.see("dropout_fwd", "y", be.read_only(&y), (Slots, dim)) } else { Ok(()) }
    }
    fn dropout_bwd(&self, op: DropoutBwd<'_, Self>) -> Result<()> {
        let DropoutBwd { mut dx, dy, dim, dropout: Dropout { batch, predicting, site, p } } = op;
        let (be, dropout) = (&self.be, Dropout { batch, predicting, site, p });
        let op = DropoutBwd { dx: be.lend(&mut dx), dy: be.part(dy, 0..be.view_len(dy)), dim, dropout };
        let begun = Instant::now();
        be.dropout_bwd(op)?;
        self.timed("dropout_bwd", begun);
        let on = self.log().on;
        if on { self.see("dropout_bwd", "dx", be.read_only(&dx), (Slots, dim)) } else { Ok(()) }
    }
}

impl<B: Backend> RankOps for Watched<B> {
    fn join(&self, comm: &dyn Comm, env: &dyn Fn(&str) -> Option<String>) -> Result<()> {
        self.be.join(comm, env)
    }
    fn joined(&self) -> Option<String> {
        self.be.joined()
    }
    fn exchange<T: Storage>(&self, comm: &dyn Comm, op: Exchange<'_, Self, T>, what: &str) -> Result<()> {
        let Exchange { send, to, mut receive, from } = op;
        let (send, receive) = (self.be.part(send, 0..self.be.view_len(send)), self.be.lend(&mut receive));
        self.be.exchange(comm, Exchange { send, to, receive, from }, what)
    }
    fn beside(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.be.beside(work)
    }
    fn rejoin(&self) -> Result<()> {
        self.be.rejoin()
    }
    fn exchanged(&self, comm: &dyn Comm, what: &str) -> Result<()> {
        self.be.exchanged(comm, what)
    }
    fn leave(&self, comm: &dyn Comm) -> Result<()> {
        self.be.leave(comm)
    }
}

impl<B: Backend> Watched<B> {
    /// Remembers at which predictions the head is.
    fn at_chunk(&self, chunk: &crate::batch::Chunk) -> usize {
        self.log().chunk = chunk.predictions.start;
        chunk.predictions.start
    }

    fn chunk(&self) -> usize {
        self.log().chunk
    }
}
