//! Ops that follow a micro-batch: embedding, RoPE by itself and behind the q/k norm, gather and scatter, attention over a shared prefix.

use crate::clock::{Bench, Clock, Work, random};
use fusedpo::backend::*;
use fusedpo::batch::{Builder, Chunk, MicroBatch};

/// Query heads and keys of Qwen2.5-0.5B.
pub const HEADS: AttnShape = AttnShape { heads: 14, kv_heads: 2, head_dim: 64 };

pub fn benches<B: Clock>(bench: &mut Bench<'_, B>) {
    let groups = Groups::new(bench.be, 256, 256, 49152, HEADS);
    rows(bench, &groups, 896);
    dropout(bench, &groups, 896);
    rope(bench, &groups);
    // A prompt and two responses: 512, 768 and 1024 tokens of a group, half to three quarters of them responses.
    for (prompt, response) in [(192, 160), (256, 256), (384, 320)] {
        attention(bench, &Groups::new(bench.be, prompt, response, 1000, HEADS), HEADS);
    }
    let wide = AttnShape { heads: 16, kv_heads: 8, head_dim: 128 }; // Qwen3-0.6B
    let groups = Groups::new(bench.be, 256, 256, 1000, wide);
    qk_norm(bench, &groups, wide);
    attention(bench, &groups, wide);
}

/// Equal groups of a prompt and two responses, as many as fill [`Clock::ROWS`].
pub struct Groups<B: Backend> {
    pub micro: MicroBatch,
    pub batch: B::Batch,
    pub chunk: Chunk,
    name: String,
    prompt: usize,
    response: usize,
    vocab: usize,
}

impl<B: Clock> Groups<B> {
    pub fn new(be: &B, prompt: usize, response: usize, vocab: usize, heads: AttnShape) -> Self {
        let count = (B::ROWS / (prompt + 2 * response)).max(1);
        let micro = micro_batch(count as u32, prompt as u32, response as u32, vocab as u32);
        let (capacity, predictions) = (micro.capacity(), micro.predictions().len());
        let mut batch = be.new_batch(capacity, heads).expect("device memory");
        be.load_batch(&mut batch, &micro).expect("a sound batch");
        let chunk = Chunk { responses: 0..2 * count, predictions: 0..predictions, pairs: 0..count };
        Groups { batch, chunk, name: format!("{count}x({prompt}+2x{response})"), prompt, response, vocab, micro }
    }

    /// Pairs of a query and a key that it sees.
    fn scores(&self) -> usize {
        let (p, r) = (self.prompt, self.response);
        self.micro.groups().len() * (p * (p + 1) / 2 + 2 * (r * p + r * (r + 1) / 2))
    }
}

/// `count` groups of a prompt of `prompt` tokens and two responses of `response` tokens.
fn micro_batch(count: u32, prompt: u32, response: u32, vocab: u32) -> MicroBatch {
    let rows = prompt + 2 * response;
    let mut b = Builder::with_capacity((count * rows) as usize);
    let tokens = |from: u32, len: u32| (from..from + len).map(move |i| i.wrapping_mul(2654435761) % vocab);
    let sound = "a sound group";
    for g in 0..count {
        let (start, id) = (g * rows, u64::from(g));
        b.group(id, tokens(start, prompt)).expect(sound);
        b.response(2 * id, tokens(start + prompt, response)).expect(sound);
        b.response(2 * id + 1, tokens(start + prompt + response, response)).expect(sound);
        b.pair(0, 1, 1.0, id).expect(sound);
    }
    b.finish((count * rows) as usize).expect("no more than there are slots")
}

/// Whole rows from and to a table, or from and to the rows that predict.
fn rows<B: Clock>(bench: &mut Bench<'_, B>, groups: &Groups<B>, dim: usize) {
    let (act, vocab, m) = (size_of::<B::Act>(), groups.vocab, &groups.micro);
    let (n, predictions) = (m.used() * dim, m.predictions().len() * dim);
    let mut distinct = m.tokens().to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let touched = distinct.len() * dim;
    let shape = format!("{} {dim}", groups.name);
    let set = |be: &B| (random::<B, B::Act>(be, n), random::<B, B::Act>(be, vocab * dim));
    let work = Work::bytes((n + touched) * act).within((n + vocab * dim) * act);
    bench.run("embed_fwd", &shape, work, set, |be, (x, table)| {
        let table = be.view(table, 0..vocab * dim);
        be.embed_fwd(EmbedFwd { x: be.view_mut(x, 0..n), table, batch: &groups.batch, dim }).expect("embed_fwd");
    });
    let set = |be: &B| (random::<B, B::Act>(be, n), be.zeros::<B::Acc>("bench", vocab * dim).expect("device memory"));
    let work = Work::bytes(n * act + 8 * touched).within(n * act + 4 * vocab * dim);
    bench.run("embed_bwd", &shape, work, set, |be, (dx, dtable)| {
        let dtable = be.view_mut(dtable, 0..vocab * dim);
        be.embed_bwd(EmbedBwd { dtable, dx: be.view(dx, 0..n), batch: &groups.batch, dim }).expect("embed_bwd");
    });
    let set = |be: &B| (random::<B, B::Act>(be, n), random::<B, B::Act>(be, predictions));
    bench.run("gather_rows", &shape, Work::bytes(2 * predictions * act), set, |be, (x, out)| {
        let out = be.view_mut(out, 0..predictions);
        be.gather_rows(GatherRows { out, x: be.view(x, 0..n), batch: &groups.batch, dim }).expect("gather_rows");
    });
    bench.run("scatter_rows", &shape, Work::bytes((predictions + n) * act), set, |be, (dx, dout)| {
        let dout = be.view(dout, 0..predictions);
        be.scatter_rows(ScatterRows { dx: be.view_mut(dx, 0..n), dout, batch: &groups.batch, dim })
            .expect("scatter_rows");
    });
}

/// Dropout of an adapter's input, and of its gradient.
fn dropout<B: Clock>(bench: &mut Bench<'_, B>, groups: &Groups<B>, dim: usize) {
    let (n, mut micro) = (groups.micro.used() * dim, groups.micro.clone());
    micro.draw_from(1);
    let mut batch = bench.be.new_batch(micro.capacity(), HEADS).expect("device memory");
    bench.be.make_room(&mut batch, micro.capacity()).expect("device memory");
    bench.be.load_batch(&mut batch, &micro).expect("a sound batch");
    let dropout = Dropout { batch: &batch, predicting: false, site: 7, p: 0.05 };
    let (act, shape) = (size_of::<B::Act>(), format!("{} {dim}", groups.name));
    let set = |be: &B| (random::<B, B::Act>(be, n), random::<B, B::Act>(be, n));
    bench.run("dropout_fwd", &shape, Work::bytes(2 * n * act), set, |be, (y, x)| {
        let (y, x) = (be.view_mut(y, 0..n), be.view(x, 0..n));
        be.dropout_fwd(DropoutFwd { y, x, dim, dropout }).expect("dropout_fwd");
    });
    bench.run("dropout_bwd", &shape, Work::bytes(3 * n * act), set, |be, (dx, dy)| {
        let (dx, dy) = (be.view_mut(dx, 0..n), be.view(dy, 0..n));
        be.dropout_bwd(DropoutBwd { dx, dy, dim, dropout }).expect("dropout_bwd");
    });
}

/// Least traffic: queries and keys read and written.
fn rope<B: Clock>(bench: &mut Bench<'_, B>, groups: &Groups<B>) {
    let (act, rows, s) = (size_of::<B::Act>(), groups.micro.used(), HEADS);
    let (wide, positions) = (rows * s.qkv_width(), groups.prompt + groups.response);
    // Cosines and sines would do no better: a rotation by random numbers costs the same.
    let set = |be: &B| {
        let [table, dbias] = [positions * s.head_dim, s.qkv_width()].map(|n| random::<B, B::Acc>(be, n));
        (random::<B, B::Act>(be, wide), table, random::<B, B::Act>(be, s.qkv_width()), dbias)
    };
    let turned = s.q_width() + s.kv_width();
    let work = |n: usize| Work::bytes(n * rows * act + 4 * positions * s.head_dim);
    let shape = format!("{} {}/{}x{}", groups.name, s.heads, s.kv_heads, s.head_dim);
    bench.run("rope_fwd", &shape, work(2 * turned), set, |be, (qkv, table, ..)| {
        let (qkv, table) = (be.view_mut(qkv, 0..wide), be.view(table, 0..positions * s.head_dim));
        be.rope_fwd(RopeFwd { qkv, bias: None, table, batch: &groups.batch, shape: s }).expect("rope_fwd");
    });
    bench.run("rope_fwd with bias", &shape, work(2 * s.qkv_width()), set, |be, (qkv, table, bias, _)| {
        let (qkv, table) = (be.view_mut(qkv, 0..wide), be.view(table, 0..positions * s.head_dim));
        let bias = Some(be.view(bias, 0..s.qkv_width()));
        be.rope_fwd(RopeFwd { qkv, bias, table, batch: &groups.batch, shape: s }).expect("rope_fwd");
    });
    bench.run("rope_bwd", &shape, work(2 * turned), set, |be, (dqkv, table, ..)| {
        let (dqkv, table) = (be.view_mut(dqkv, 0..wide), be.view(table, 0..positions * s.head_dim));
        be.rope_bwd(RopeBwd { dqkv, dbias: None, table, batch: &groups.batch, shape: s }).expect("rope_bwd");
    });
    bench.run("rope_bwd with bias", &shape, work(turned + s.qkv_width()), set, |be, (dqkv, table, _, dbias)| {
        let (dqkv, table) = (be.view_mut(dqkv, 0..wide), be.view(table, 0..positions * s.head_dim));
        let dbias = Some(be.view_mut(dbias, 0..s.qkv_width()));
        be.rope_bwd(RopeBwd { dqkv, dbias, table, batch: &groups.batch, shape: s }).expect("rope_bwd");
    });
}

/// Least traffic: queries and keys read, kept and written; backward the kept ones and the gradient read, that written.
fn qk_norm<B: Clock>(bench: &mut Bench<'_, B>, groups: &Groups<B>, s: AttnShape) {
    let (act, rows, hd, batch) = (size_of::<B::Act>(), groups.micro.used(), s.head_dim, &groups.batch);
    let (wide, kept, stats) =
        (rows * s.qkv_width(), rows * (s.q_width() + s.kv_width()), rows * (s.heads + s.kv_heads));
    let turns = (groups.prompt + groups.response) * hd;
    let shape = format!("{} {}/{}x{hd}", groups.name, s.heads, s.kv_heads);
    let set = |be: &B| {
        let r = |n| random::<B, B::Act>(be, n);
        let acc = |n| random::<B, B::Acc>(be, n);
        (r(wide), r(kept), acc(stats), r(2 * hd), acc(2 * hd), acc(turns))
    };
    let work = Work::bytes(3 * kept * act + 4 * stats + 4 * turns);
    bench.run("qk_norm_fwd", &shape, work, set, |be, (qkv, raw, rstd, w, _, table)| {
        let (qkv, raw, rstd) = (be.view_mut(qkv, 0..wide), be.view_mut(raw, 0..kept), be.view_mut(rstd, 0..stats));
        let (w, table) = (be.view(w, 0..2 * hd), be.view(table, 0..turns));
        be.qk_norm_fwd(QkNormFwd { qkv, raw, rstd, w, table, batch, shape: s, eps: 1e-6 }).expect("qk_norm_fwd");
    });
    bench.run("qk_norm_bwd", &shape, work, set, |be, (dqkv, raw, rstd, w, dw, table)| {
        let (dqkv, dw) = (be.view_mut(dqkv, 0..wide), Some(be.view_mut(dw, 0..2 * hd)));
        let (raw, rstd) = (be.view(raw, 0..kept), be.view(rstd, 0..stats));
        let (w, table) = (be.view(w, 0..2 * hd), be.view(table, 0..turns));
        be.qk_norm_bwd(QkNormBwd { dqkv, dw, raw, rstd, w, table, batch, shape: s }).expect("qk_norm_bwd");
    });
}

/// FLOP as the algorithm needs them: two products over the pairs that see one another forward, five backward.
fn attention<B: Clock>(bench: &mut Bench<'_, B>, groups: &Groups<B>, s: AttnShape) {
    let (act, rows, batch) = (size_of::<B::Act>(), groups.micro.used(), &groups.batch);
    let flop = 4 * groups.scores() * s.heads * s.head_dim;
    let (wide, narrow, stat) = (rows * s.qkv_width(), rows * s.q_width(), rows * s.heads);
    let set = |be: &B| {
        let stats = || random::<B, B::Acc>(be, stat);
        let r = |n| random::<B, B::Act>(be, n);
        let scratch = (stats(), random::<B, B::Acc>(be, be.attention_partial(groups.micro.slots(), &s)));
        let mut set = (r(wide), r(narrow), r(narrow), r(wide), stats(), scratch);
        // Backward wants the output and the statistics that belong to the queries and keys.
        let (out, lse) = (be.view_mut(&mut set.1, 0..narrow), be.view_mut(&mut set.4, 0..stat));
        be.attention_fwd(AttentionFwd { out, lse, qkv: be.view(&set.0, 0..wide), batch, shape: s })
            .expect("attention_fwd");
        set
    };
    let shape = format!("{} {}/{}x{}", groups.name, s.heads, s.kv_heads, s.head_dim);
    let work = Work::flop(flop, (wide + narrow) * act + 4 * stat);
    bench.run("attention_fwd", &shape, work, set, |be, (qkv, out, _, _, lse, _)| {
        let (out, lse) = (be.view_mut(out, 0..narrow), be.view_mut(lse, 0..stat));
        be.attention_fwd(AttentionFwd { out, lse, qkv: be.view(qkv, 0..wide), batch, shape: s })
            .expect("attention_fwd");
    });
    let work = Work::flop(flop * 5 / 2, (2 * wide + 2 * narrow) * act + 8 * stat);
    bench.run("attention_bwd", &shape, work, set, |be, (qkv, out, dout, dqkv, lse, (delta, partial))| {
        let (dqkv, delta) = (be.view_mut(dqkv, 0..wide), be.view_mut(delta, 0..stat));
        let len = be.len(partial);
        let partial = be.view_mut(partial, 0..len);
        let (dout, out) = (be.view(dout, 0..narrow), be.view(out, 0..narrow));
        let (lse, qkv) = (be.view(lse, 0..stat), be.view(qkv, 0..wide));
        be.attention_bwd(AttentionBwd { dqkv, delta, partial, dout, out, lse, qkv, batch, shape: s })
            .expect("attention_bwd");
    });
}
