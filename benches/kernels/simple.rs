//! Ops without a batch: norms, SwiGLU, biases, products, the key/value cache, updates.

use crate::clock::{Bench, Clock, Work, random};
use fusedpo::backend::rounding::Rounding;
use fusedpo::backend::*;
use half::bf16;

/// Hidden size and MLP width of SmolLM2-135M, Qwen2.5-0.5B, Llama-3.2-1B.
const MODELS: [(usize, usize); 3] = [(576, 1536), (896, 4864), (2048, 8192)];

pub fn benches<B: Clock>(bench: &mut Bench<'_, B>) {
    for (dim, ffn) in MODELS {
        norms(bench, dim);
        swiglu(bench, ffn);
        linear(bench, dim, ffn);
        adapter(bench, dim, ffn);
    }
    bias(bench, 1152);
    decode(bench, AttnShape { heads: 14, kv_heads: 2, head_dim: 64 });
    updates(bench);
    quantized(bench);
    small_states(bench);
}

fn norms<B: Clock>(bench: &mut Bench<'_, B>, dim: usize) {
    let (rows, act) = (B::ROWS, size_of::<B::Act>());
    let (shape, n) = (format!("{rows}x{dim}"), rows * dim);
    let set = |be: &B| {
        let r = |n| random::<B, B::Act>(be, n);
        (r(n), r(n), r(dim), random::<B, B::Acc>(be, rows), random::<B, B::Acc>(be, dim), r(n))
    };
    let forward = Work::bytes((2 * n + dim) * act + 4 * rows);
    bench.run("rmsnorm_fwd", &shape, forward, set, |be, (y, x, w, rstd, ..)| {
        let (y, rstd) = (be.view_mut(y, 0..n), be.view_mut(rstd, 0..rows));
        be.rmsnorm_fwd(RmsNormFwd { y, rstd, x: be.view(x, 0..n), w: be.view(w, 0..dim), eps: 1e-5 })
            .expect("rmsnorm_fwd");
    });
    for (name, again) in [("rmsnorm_bwd", false), ("rmsnorm_bwd_again", true)] {
        let backward = Work::bytes(((3 + usize::from(again)) * n + dim) * act + 4 * rows + 8 * dim);
        bench.run(name, &shape, backward, set, |be, (dx, x, w, rstd, dw, dy)| {
            let (dx, dw, dy) = (be.view_mut(dx, 0..n), Some(be.view_mut(dw, 0..dim)), be.view_mut(dy, 0..n));
            let (x, w, rstd) = (be.view(x, 0..n), be.view(w, 0..dim), be.view(rstd, 0..rows));
            be.rmsnorm_bwd(RmsNormBwd { dx, dw, dy, x, w, rstd, write: Write::Set, again }).expect("rmsnorm_bwd");
        });
    }
}

fn swiglu<B: Clock>(bench: &mut Bench<'_, B>, ffn: usize) {
    let (rows, act) = (B::ROWS, size_of::<B::Act>());
    let shape = format!("{rows}x{ffn}");
    let pair = |be: &B| (random::<B, B::Act>(be, rows * 2 * ffn), random::<B, B::Act>(be, rows * ffn));
    bench.run("swiglu_fwd", &shape, Work::bytes(3 * rows * ffn * act), pair, |be, (gu, a)| {
        be.swiglu_fwd(SwigluFwd { act: be.view_mut(a, 0..rows * ffn), gate_up: be.view(gu, 0..2 * rows * ffn), ffn })
            .expect("swiglu_fwd");
    });
    for (name, again) in [("swiglu_bwd", false), ("swiglu_bwd_again", true)] {
        let work = Work::bytes((5 + usize::from(again)) * rows * ffn * act);
        bench.run(name, &shape, work, pair, |be, (gu, d)| {
            let (gate_up, dact) = (be.view_mut(gu, 0..2 * rows * ffn), be.view_mut(d, 0..rows * ffn));
            be.swiglu_bwd(SwigluBwd { gate_up, dact, ffn, again }).expect("swiglu_bwd");
        });
    }
}

/// The up projection, its gradients.
fn linear<B: Clock>(bench: &mut Bench<'_, B>, dim: usize, ffn: usize) {
    let (rows, act) = (B::ROWS, size_of::<B::Act>());
    let shape = format!("{rows}x{ffn}x{dim}");
    let elements = rows * (ffn + dim) + ffn * dim;
    let work = Work::flop(2 * rows * ffn * dim, elements * act);
    let operands = |be: &B| {
        let r = |n| random::<B, B::Act>(be, n);
        (r(rows * ffn), r(rows * dim), r(ffn * dim), be.zeros::<B::Acc>("bench", ffn * dim).expect("device memory"))
    };
    let (many, few, weights) = (rows * ffn, rows * dim, ffn * dim);
    bench.run("linear_fwd", &shape, work, operands, |be, (y, x, w, _)| {
        let (x, w) = (be.view(x, 0..few), be.view(w, 0..weights));
        be.linear_fwd(LinearFwd { y: be.view_mut(y, 0..many), x, w, out: ffn, inp: dim, write: Write::Set })
            .expect("linear_fwd");
    });
    bench.run("linear_bwd_input", &shape, work, operands, |be, (dy, dx, w, _)| {
        let (dy, w) = (be.view(dy, 0..many), be.view(w, 0..weights));
        be.linear_bwd_input(LinearBwdInput {
            dx: be.view_mut(dx, 0..few),
            dy,
            w,
            out: ffn,
            inp: dim,
            write: Write::Set,
        })
        .expect("linear_bwd_input");
    });
    bench.run("linear_bwd_weight", &shape, work, operands, |be, (dy, x, _, dw)| {
        let (dy, x) = (be.view(dy, 0..many), be.view(x, 0..few));
        be.linear_bwd_weight(LinearBwdWeight {
            dw: be.view_mut(dw, 0..weights),
            dy,
            x,
            out: ffn,
            inp: dim,
            write: Write::Add,
        })
        .expect("linear_bwd_weight");
    });
}

fn bias<B: Clock>(bench: &mut Bench<'_, B>, dim: usize) {
    let (rows, act) = (B::ROWS, size_of::<B::Act>());
    let (shape, n) = (format!("{rows}x{dim}"), rows * dim);
    let set = |be: &B| {
        (random::<B, B::Act>(be, n), random::<B, B::Act>(be, dim), be.zeros::<B::Acc>("bench", dim).expect("memory"))
    };
    bench.run("bias_fwd", &shape, Work::bytes((2 * n + dim) * act), set, |be, (y, bias, _)| {
        be.bias_fwd(BiasFwd { y: be.view_mut(y, 0..n), bias: be.view(bias, 0..dim) }).expect("bias_fwd");
    });
    bench.run("bias_bwd", &shape, Work::bytes(n * act + 8 * dim), set, |be, (dy, _, dbias)| {
        be.bias_bwd(BiasBwd { dbias: be.view_mut(dbias, 0..dim), dy: be.view(dy, 0..n) }).expect("bias_bwd");
    });
}

/// One new token for each of many sequences.
fn decode<B: Clock>(bench: &mut Bench<'_, B>, s: AttnShape) {
    let (act, sequences, stride) = (size_of::<B::Act>(), B::ROWS / 128, 512);
    let (cache, wide, narrow) = (sequences * stride * s.kv_width(), sequences * s.qkv_width(), sequences * s.q_width());
    let lens = vec![stride as u32; sequences];
    let dst: Vec<u32> = (1..=sequences as u32).map(|i| i * stride as u32 - 1).collect();
    let shape = format!("{sequences}x{stride} {}/{}x{}", s.heads, s.kv_heads, s.head_dim);
    let set = |be: &B| {
        let r = |n| random::<B, B::Act>(be, n);
        (r(cache), r(cache), r(wide), r(narrow))
    };
    let bytes = (2 * cache + narrow * 2) * act;
    bench.run("attention_decode", &shape, Work::bytes(bytes), set, |be, (k, v, qkv, out)| {
        let (k, v, qkv) = (be.view(k, 0..cache), be.view(v, 0..cache), be.view(qkv, 0..wide));
        be.attention_decode(AttentionDecode {
            out: be.view_mut(out, 0..narrow),
            qkv,
            k,
            v,
            lens: &lens,
            stride,
            shape: s,
        })
        .expect("attention_decode");
    });
    let work = Work::bytes(4 * sequences * s.kv_width() * act).within(2 * cache * act);
    bench.run("kv_store", &shape, work, set, |be, (k, v, qkv, _)| {
        let (k, v) = (be.view_mut(k, 0..cache), be.view_mut(v, 0..cache));
        be.kv_store(KvStore { k, v, qkv: be.view(qkv, 0..wide), dst: &dst, shape: s }).expect("kv_store");
    });
}

fn updates<B: Clock>(bench: &mut Bench<'_, B>) {
    let (n, act) = (B::PARAMETERS, size_of::<B::Act>());
    let set = |be: &B| {
        let r = |n| random::<B, B::Acc>(be, n);
        // Second moments are sums of squares: the buffer starts at 0, not at random.
        let v = be.zeros::<B::Acc>("bench", n).expect("device memory");
        let norm = be.zeros::<f64>("bench", 1).expect("memory");
        (random::<B, B::Act>(be, n), B::MASTER_WEIGHTS.then(|| r(n)), r(n), v, r(n), norm)
    };
    let shape = format!("{n}");
    bench.run("grad_norm", &shape, Work::bytes(4 * n), set, |be, (_, _, _, _, g, norm)| {
        be.grad_norm(GradNorm { norm: be.view_mut(norm, 0..1), g: be.view(g, 0..n) }).expect("grad_norm");
    });
    let lane = |be: &B| (be.zeros::<B::Acc>("bench", n).expect("memory"), random::<B, B::Acc>(be, n));
    bench.run("add", &shape, Work::bytes(12 * n), lane, |be, (to, from)| {
        be.add(Add { to: be.view_mut(to, 0..n), from: be.view(from, 0..n) }).expect("add");
    });
    let adamw = Rule::AdamW { lr: 1e-6, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 5 };
    let rmsprop = Rule::RmsProp { lr: 1e-6, alpha: 0.99, eps: 1e-8, weight_decay: 0.0 };
    // Weights, moments: read and written; gradients read. With a master, bf16 weights are only written.
    let weights = if B::MASTER_WEIGHTS { 8 + act } else { 8 };
    for (name, update, moments) in [("adamw", adamw, 16), ("rmsprop", rmsprop, 8)] {
        let work = Work::bytes((weights + moments + 4) * n);
        bench.run(name, &shape, work, set, |be, (w, master, m, v, g, norm)| {
            let master = master.as_mut().map(|b| be.view_mut(b, 0..n));
            let (w, m, v) = (be.view_mut(w, 0..n), be.view_mut(m, 0..n), be.view_mut(v, 0..n));
            be.update(Update {
                w,
                master,
                m,
                v,
                g: be.view(g, 0..n),
                norm: be.view(norm, 0..1),
                max_grad_norm: 1.0,
                rule: update,
            })
            .expect("update");
        });
    }
}

/// An adapter of gates and ups, rank 16: what it adds to the step's products, each by itself.
fn adapter<B: Clock>(bench: &mut Bench<'_, B>, dim: usize, ffn: usize) {
    let (rows, act, rank, out) = (B::ROWS, size_of::<B::Act>(), 16, 2 * ffn);
    let columns = [0..ffn, ffn..out];
    let parts = AdapterParts { columns: &columns, rank, out, inp: dim, scale: 2.0 };
    let (many, few, low) = (rows * out, rows * dim, rows * parts.low());
    let (a_len, b_len) = (parts.low() * dim, out * rank);
    let set = |be: &B| {
        let r = |n| random::<B, B::Act>(be, n);
        (r(many), r(low), r(few), (r(a_len), r(b_len)), be.zeros::<B::Acc>("bench", b_len).expect("memory"))
    };
    let shape = format!("{rows}x{out}x{dim}, rank {rank}");
    let (down, up) = (2 * few * parts.low(), 2 * many * rank);
    bench.run("adapter_fwd", &shape, Work::flop(down + up, (few + 2 * many) * act), set, |be, (y, l, x, (a, b), _)| {
        be.adapter_fwd(AdapterFwd {
            y: be.view_mut(y, 0..many),
            low: be.view_mut(l, 0..low),
            x: be.view(x, 0..few),
            a: be.view(a, 0..a_len),
            b: be.view(b, 0..b_len),
            parts,
        })
        .expect("adapter_fwd");
    });
    bench.run("adapter_bwd_low", &shape, Work::flop(up, many * act), set, |be, (dy, dlow, _, (_, b), _)| {
        let (dlow, dy, b) = (be.view_mut(dlow, 0..low), be.view(dy, 0..many), be.view(b, 0..b_len));
        be.adapter_bwd_low(AdapterBwdLow { dlow, dy, b, parts }).expect("adapter_bwd_low");
    });
    let work = Work::flop(down + up, (few + many) * act);
    bench.run("adapter_bwd_weight", &shape, work, set, |be, (dy, l, x, (a, _), db)| {
        be.adapter_bwd_weight(AdapterBwdWeight {
            db: be.view_mut(db, 0..b_len),
            low: be.view_mut(l, 0..low),
            dy: be.view(dy, 0..many),
            x: be.view(x, 0..few),
            a: be.view(a, 0..a_len),
            parts,
        })
        .expect("adapter_bwd_weight");
    });
}

/// A weight made dense of four bits with double quantisation: gates and ups of Llama-3.2-1B.
fn quantized<B: Clock>(bench: &mut Bench<'_, B>) {
    let (n, act) = (2 * 8192 * 2048, size_of::<B::Act>());
    let blocks = n / 64;
    let set = |be: &B| {
        let bytes = |len| be.zeros::<u8>("bench", len).expect("memory");
        let floats = |len| be.zeros::<f32>("bench", len).expect("memory");
        let w = be.zeros::<B::Act>("bench", n).expect("memory");
        (w, bytes(n / 2), bytes(blocks), floats(blocks / 256), floats(256), floats(1))
    };
    let work = Work::bytes(n * act + n / 2 + blocks + blocks / 64);
    bench.run("dequantize_nf4", &format!("{n}"), work, set, |be, (w, codes, nested, absmax, map, offset)| {
        let absmax = Nf4Absmax::Nested {
            codes: be.view(nested, 0..blocks),
            absmax: be.view(absmax, 0..blocks / 256),
            map: be.view(map, 0..256),
            offset: be.view(offset, 0..1),
        };
        let (w, codes) = (be.view_mut(w, 0..n), be.view(codes, 0..n / 2));
        be.dequantize_nf4(DequantizeNf4 { w, codes, absmax, round: fusedpo::quant::Precision::Bf16 })
            .expect("dequantize_nf4");
    });
}

/// AdamW on weights that are their own master, gradients in bf16.
fn small_states<B: Clock>(bench: &mut Bench<'_, B>) {
    if !B::MASTER_WEIGHTS {
        return; // kernels of bf16 weights alone
    }
    let (n, act, blocks) = (B::PARAMETERS, size_of::<B::Act>(), code8::blocks(B::PARAMETERS));
    let rule = Rule::AdamW { lr: 1e-6, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 5 };
    let (shape, rounding) = (format!("{n}"), Rounding::of(1, 5, 0));
    let set = |be: &B| {
        let zeros = |len| be.zeros::<u8>("bench", len).expect("device memory");
        let scales = || be.zeros::<f32>("bench", blocks).expect("device memory");
        let moments = (be.zeros::<bf16>("bench", n).expect("memory"), be.zeros::<bf16>("bench", n).expect("memory"));
        let coded = ((zeros(n), scales()), (zeros(n), scales()));
        let norm = be.zeros::<f64>("bench", 1).expect("memory");
        (random::<B, B::Act>(be, n), moments, coded, random::<B, bf16>(be, n), norm)
    };
    bench.run("grad_norm_narrow", &shape, Work::bytes(2 * n), set, |be, (_, _, _, g, norm)| {
        let (norm, matrices) = (be.view_mut(norm, 0..1), be.view(g, 0..n));
        let none = be.zeros::<B::Acc>("bench", 0).expect("memory");
        be.grad_norm_narrow(GradNormNarrow { norm, matrices, vectors: be.view(&none, 0..0) })
            .expect("grad_norm_narrow");
    });
    bench.run("update_bf16", &shape, Work::bytes((2 * act + 8 + 2) * n), set, |be, (w, (m, v), _, g, norm)| {
        be.update_bf16(UpdateBf16 {
            w: be.view_mut(w, 0..n),
            m: be.view_mut(m, 0..n),
            v: be.view_mut(v, 0..n),
            g: be.view(g, 0..n),
            norm: be.view(norm, 0..1),
            max_grad_norm: 1.0,
            rule,
            rounding,
        })
        .expect("update_bf16");
    });
    let work = Work::bytes((2 * act + 4 + 2) * n + 16 * blocks);
    bench.run("update_8bit", &shape, work, set, |be, (w, _, ((m, m_scale), (v, v_scale)), g, norm)| {
        be.update_8bit(Update8bit {
            w: be.view_mut(w, 0..n),
            m: be.view_mut(m, 0..n),
            m_scale: be.view_mut(m_scale, 0..blocks),
            v: be.view_mut(v, 0..n),
            v_scale: be.view_mut(v_scale, 0..blocks),
            g: be.view(g, 0..n),
            norm: be.view(norm, 0..1),
            max_grad_norm: 1.0,
            rule,
            rounding,
        })
        .expect("update_8bit");
    });
}
