//! Softmax attention over segments with a shared prefix: tiles, no mask tensor, no rows x rows memory.
//!
//! Forward and dQ walk over the keys of one query tile (prompt first, then the segment's own), dK/dV over the queries of
//! one key tile (the segment's own, then those of every continuation). The query heads of a key/value head share its
//! tiles. Tiles start at segment starts and sums run in one order, so a row does not depend on what is packed beside it.
//! Products keep the vector lanes along query rows (forward, dQ: softmax has no horizontal step) or along keys (dK/dV).

use super::batch::{Block, KEY_BLOCK, QUERY_BLOCK, block_rows};
use super::real::dot;
use super::scratch::{carve, padded};
use super::simd::simd_fn;
use super::{CpuBatch, Gemm, Level, Real, check, par};
use crate::backend::AttnShape;
use crate::data::batch::Segment;
use crate::error::Result;
use std::ops::Range;

simd_fn! {
    /// Turns a tile of scores into `exp(s - m)` under the running maximum `m`, adds to the running sum `l`, and leaves
    /// in `alpha` what earlier results must be multiplied by. `st`: keys x `r`.
    fn online_softmax<S>(st: &mut [S], m: &mut [S], l: &mut [S], alpha: &mut [S]) {
        let r = m.len();
        alpha.copy_from_slice(m);
        for s in st.chunks_exact(r) {
            m.iter_mut().zip(s).for_each(|(m, s)| *m = if *s > *m { *s } else { *m });
        }
        for ((a, m), l) in alpha.iter_mut().zip(&*m).zip(l.iter_mut()) {
            *a = (*a - *m).exp();
            *l *= *a;
        }
        for s in st.chunks_exact_mut(r) {
            for ((s, m), l) in s.iter_mut().zip(&*m).zip(l.iter_mut()) {
                *s = (*s - *m).exp();
                *l += *s;
            }
        }
    }
}
simd_fn! {
    /// Multiplies every row of `x` by `by`, element by element.
    fn scale_columns<S>(x: &mut [S], by: &[S]) {
        for x in x.chunks_exact_mut(by.len()) {
            x.iter_mut().zip(by).for_each(|(x, a)| *x *= *a);
        }
    }
}
simd_fn! {
    /// `p = exp(s - lse)`, `ds = p (dp - delta)`, with a number per column: `s` becomes `ds`.
    fn ds_by_column<S>(s: &mut [S], dp: &[S], lse: &[S], delta: &[S]) {
        let r = lse.len();
        for (s, dp) in s.chunks_exact_mut(r).zip(dp.chunks_exact(r)) {
            for (((s, dp), lse), delta) in s.iter_mut().zip(dp).zip(lse).zip(delta) {
                *s = (*s - *lse).exp() * (*dp - *delta);
            }
        }
    }
}
simd_fn! {
    /// As [`ds_by_column`] with a number per row: `s` becomes `p`, `dp` becomes `ds`.
    fn p_and_ds_by_row<S>(s: &mut [S], dp: &mut [S], width: usize, lse: &[S], delta: &[S]) {
        for (((s, dp), lse), delta) in s.chunks_exact_mut(width).zip(dp.chunks_exact_mut(width)).zip(lse).zip(delta) {
            for (s, dp) in s.iter_mut().zip(dp) {
                *s = (*s - *lse).exp();
                *dp = *s * (*dp - *delta);
            }
        }
    }
}
simd_fn! {
    fn delta_row<S>(delta: &mut [S], dout: &[S], out: &[S], d: usize) {
        for ((x, a), b) in delta.iter_mut().zip(dout.chunks_exact(d)).zip(out.chunks_exact(d)) {
            *x = dot(a, b);
        }
    }
}

/// Geometry of tiles: sizes rounded up to what the micro-kernel takes.
#[derive(Clone, Copy)]
struct Geometry {
    level: Level,
    shape: AttnShape,
    /// Query heads of a key/value head.
    group: usize,
    d: usize,
    /// `head_dim` as rows, and as columns, of a tile product.
    d_rows: usize,
    d_cols: usize,
    rows_unit: usize,
    cols_unit: usize,
}

impl Geometry {
    fn new<S: Real>(level: Level, shape: AttnShape) -> Self {
        let (rows_unit, cols_unit) = S::tile_units(level);
        let d = shape.head_dim;
        let (d_rows, d_cols) = (d.next_multiple_of(rows_unit), d.next_multiple_of(cols_unit));
        Geometry { level, shape, group: shape.heads / shape.kv_heads, d, d_rows, d_cols, rows_unit, cols_unit }
    }
    /// Rounds up to both units: usable as rows and as columns.
    fn both(&self, n: usize) -> usize {
        n.next_multiple_of(self.rows_unit).next_multiple_of(self.cols_unit)
    }
    /// Largest number of stacked query rows of a tile, rounded.
    fn stacked(&self) -> usize {
        self.both(self.group * QUERY_BLOCK)
    }
    /// First column of query head `h`, and of key and value head `h`, in a row of `qkv`.
    fn q_at(&self, h: usize) -> usize {
        h * self.d
    }
    fn k_at(&self, h: usize) -> usize {
        self.shape.q_width() + h * self.d
    }
    fn v_at(&self, h: usize) -> usize {
        self.k_at(h) + self.shape.kv_width()
    }
    fn scale<S: Real>(&self) -> S {
        S::from_f64(1.0 / (self.d as f64).sqrt())
    }
}

/// Rows of a matrix: `data[row * width + at..][..d]`.
#[derive(Clone, Copy)]
struct Heads<'a, S> {
    data: &'a [S],
    width: usize,
}

impl<'a, S: Real> Heads<'a, S> {
    fn head(&self, row: usize, at: usize, d: usize) -> &'a [S] {
        &self.data[row * self.width + at..][..d]
    }
    /// `out[row][c]` for `rows`, zero beyond `d`.
    fn copy(&self, out: &mut [S], ld: usize, rows: Range<usize>, at: usize, d: usize) {
        for (out, row) in out.chunks_exact_mut(ld).zip(rows) {
            out[..d].copy_from_slice(self.head(row, at, d));
            out[d..].fill(S::ZERO);
        }
    }
    /// `out[c * ld + row]` for `rows`, zero beyond them.
    fn transpose(&self, out: &mut [S], ld: usize, rows: Range<usize>, at: usize, d: usize) {
        for (i, row) in rows.clone().enumerate() {
            for (out, x) in out.chunks_exact_mut(ld).zip(self.head(row, at, d)) {
                out[i] = *x;
            }
        }
        out.chunks_exact_mut(ld).take(d).for_each(|out| out[rows.len()..].fill(S::ZERO));
    }
    /// The heads of a group stacked: `out[c * ld + g * rows + row]`, times `by`, zero beyond.
    fn transpose_group(&self, out: &mut [S], ld: usize, rows: Range<usize>, at: usize, g: &Geometry, by: S) {
        let n = rows.len();
        for h in 0..g.group {
            for (i, row) in rows.clone().enumerate() {
                let head = self.head(row, at + h * g.d, g.d);
                for (out, x) in out.chunks_exact_mut(ld).zip(head) {
                    out[h * n + i] = *x * by;
                }
            }
        }
        out.chunks_exact_mut(ld).take(g.d).for_each(|out| out[g.group * n..].fill(S::ZERO));
    }
    /// The heads of a group stacked: `out[(g * rows + row) * ld + c]`, times `by`, zero beyond `d`.
    fn copy_group(&self, out: &mut [S], ld: usize, rows: Range<usize>, at: usize, g: &Geometry, by: S) {
        let n = rows.len();
        for h in 0..g.group {
            for (i, row) in rows.clone().enumerate() {
                let out = &mut out[(h * n + i) * ld..][..ld];
                out.iter_mut().zip(self.head(row, at + h * g.d, g.d)).for_each(|(o, x)| *o = *x * by);
                out[g.d..].fill(S::ZERO);
            }
        }
    }
    /// One number per stacked row: `out[g * rows + row] = data[row][first + g]`, zero beyond.
    fn stack_numbers(&self, out: &mut [S], rows: Range<usize>, first: usize, g: &Geometry) {
        let n = rows.len();
        for h in 0..g.group {
            for (i, row) in rows.clone().enumerate() {
                out[h * n + i] = self.data[row * self.width + first + h];
            }
        }
        out[g.group * n..].fill(S::ZERO);
    }
}

/// The key tiles that the queries `rows` of a segment see: the prompt's, then the segment's own up to the last query.
fn key_tiles(seg: &Segment, rows: &Range<usize>) -> impl Iterator<Item = (Range<usize>, bool)> + use<> {
    let tiles = |r: Range<usize>| r.clone().step_by(KEY_BLOCK).map(move |at| at..(at + KEY_BLOCK).min(r.end));
    let prefix = seg.prefix_start as usize..(seg.prefix_start + seg.prefix_len) as usize;
    let own = seg.start as usize..rows.end;
    let first = rows.start;
    tiles(prefix).map(|t| (t, false)).chain(tiles(own).map(move |t| {
        let crosses = t.end > first + 1;
        (t, crosses)
    }))
}

/// Minus infinity where a key comes after its query; `st`: keys x `ld`, queries stacked by head.
fn mask_by_column<S: Real>(st: &mut [S], ld: usize, keys: &Range<usize>, rows: &Range<usize>, group: usize) {
    for (key, st) in keys.clone().zip(st.chunks_exact_mut(ld)) {
        let hidden = key.saturating_sub(rows.start).min(rows.len());
        for h in 0..group {
            st[h * rows.len()..][..hidden].fill(S::NEG_INFINITY);
        }
    }
}

/// As [`mask_by_column`] with `s`: stacked queries x `ld` keys.
fn mask_by_row<S: Real>(s: &mut [S], ld: usize, keys: &Range<usize>, rows: &Range<usize>, group: usize) {
    for h in 0..group {
        for (i, row) in rows.clone().enumerate() {
            let seen = (row + 1).saturating_sub(keys.start).min(keys.len());
            s[(h * rows.len() + i) * ld..][seen..keys.len()].fill(S::NEG_INFINITY);
        }
    }
}

fn check_common<S>(op: &'static str, qkv: &[S], batch: &CpuBatch, shape: &AttnShape) -> Result<()> {
    check::attn(op, shape)?;
    check::len(op, "qkv", qkv.len(), &[("rows", batch.rows()), ("qkv_width", shape.qkv_width())])
}

fn check_out(op: &'static str, name: &'static str, got: usize, batch: &CpuBatch, shape: &AttnShape) -> Result<()> {
    check::len(op, name, got, &[("rows", batch.rows()), ("q_width", shape.q_width())])
}

fn check_stat(op: &'static str, name: &'static str, got: usize, batch: &CpuBatch, shape: &AttnShape) -> Result<()> {
    check::len(op, name, got, &[("rows", batch.rows()), ("heads", shape.heads)])
}

/// See [`crate::backend::Backend::attention_fwd`].
pub(super) fn fwd<S: Real>(
    g: &Gemm,
    out: &mut [S],
    lse: &mut [S],
    qkv: &[S],
    batch: &CpuBatch,
    shape: AttnShape,
) -> Result<()> {
    const OP: &str = "attention_fwd";
    check_common(OP, qkv, batch, &shape)?;
    check_out(OP, "out", out.len(), batch, &shape)?;
    check_stat(OP, "lse", lse.len(), batch, &shape)?;
    let geo = Geometry::new::<S>(g.level, shape);
    let qkv = Heads { data: qkv, width: shape.qkv_width() };
    par::spans2(
        &batch.query_blocks,
        (out, shape.q_width()),
        (lse, shape.heads),
        &block_rows,
        &|b, out, lse| match batch.micro.segments.get(b.segment as usize) {
            Some(seg) => fwd_block(g, &geo, out, lse, qkv, b, seg),
            None => {
                out.fill(S::ZERO);
                lse.fill(S::ZERO);
            }
        },
    );
    Ok(())
}

/// Output rows of one query block, all heads.
fn fwd_block<S: Real>(
    g: &Gemm,
    geo: &Geometry,
    out: &mut [S],
    lse: &mut [S],
    qkv: Heads<'_, S>,
    b: &Block,
    seg: &Segment,
) {
    let rows = b.start as usize..(b.start + b.len) as usize;
    let n = (geo.group * rows.len()).next_multiple_of(geo.cols_unit);
    let keys_max = KEY_BLOCK.next_multiple_of(geo.rows_unit);
    let sizes = [geo.d * n, geo.d * keys_max, KEY_BLOCK * geo.d_rows, keys_max * n, geo.d_rows * n, n, n, n];
    g.scratch.with(sizes.iter().map(|s| padded::<S>(*s)).sum(), |mut rest: &mut [S]| {
        let [qt, kt, v, st, ot, m, l, alpha] = sizes.map(|s| carve(&mut rest, s));
        for kv in 0..geo.shape.kv_heads {
            qkv.transpose_group(qt, n, rows.clone(), geo.q_at(kv * geo.group), geo, geo.scale());
            m.fill(S::NEG_INFINITY);
            l.fill(S::ZERO);
            ot.fill(S::ZERO);
            for (keys, crosses) in key_tiles(seg, &rows) {
                let k_rows = keys.len().next_multiple_of(geo.rows_unit);
                qkv.transpose(&mut kt[..geo.d * k_rows], k_rows, keys.clone(), geo.k_at(kv), geo.d);
                qkv.copy(v, geo.d_rows, keys.clone(), geo.v_at(kv), geo.d);
                S::tile_gemm(geo.level, st, n, kt, k_rows, qt, n, keys.len(), n, geo.d, false);
                let st = &mut st[..keys.len() * n];
                if crosses {
                    mask_by_column(st, n, &keys, &rows, geo.group);
                }
                online_softmax(geo.level, st, m, l, alpha);
                scale_columns(geo.level, ot, alpha);
                S::tile_gemm(geo.level, ot, n, v, geo.d_rows, st, n, geo.d, n, keys.len(), true);
            }
            for h in 0..geo.group {
                for i in 0..rows.len() {
                    let (r, head) = (h * rows.len() + i, kv * geo.group + h);
                    let out = &mut out[i * geo.shape.q_width() + head * geo.d..][..geo.d];
                    out.iter_mut().zip(ot.chunks_exact(n)).for_each(|(o, t)| *o = t[r] / l[r]);
                    lse[i * geo.shape.heads + head] = S::from_f64(m[r].to_f64() + l[r].to_f64().ln());
                }
            }
        }
    });
}

/// Inputs of the backward pass.
#[derive(Clone, Copy)]
struct BwdIn<'a, S> {
    qkv: Heads<'a, S>,
    dout: Heads<'a, S>,
    lse: Heads<'a, S>,
    delta: Heads<'a, S>,
}

/// See [`crate::backend::Backend::attention_bwd`].
#[allow(clippy::too_many_arguments)]
pub(super) fn bwd<S: Real>(
    g: &Gemm,
    dqkv: &mut [S],
    delta: &mut [S],
    dout: &[S],
    out: &[S],
    lse: &[S],
    qkv: &[S],
    batch: &CpuBatch,
    shape: AttnShape,
) -> Result<()> {
    const OP: &str = "attention_bwd";
    check_common(OP, qkv, batch, &shape)?;
    check::len(OP, "dqkv", dqkv.len(), &[("rows", batch.rows()), ("qkv_width", shape.qkv_width())])?;
    check_stat(OP, "delta", delta.len(), batch, &shape)?;
    check_stat(OP, "lse", lse.len(), batch, &shape)?;
    check_out(OP, "dout", dout.len(), batch, &shape)?;
    check_out(OP, "out", out.len(), batch, &shape)?;
    let (width, heads) = (shape.q_width(), shape.heads);
    par::rows(delta, heads, |t, x| {
        delta_row(g.level, x, &dout[t * width..][..width], &out[t * width..][..width], shape.head_dim)
    });
    let geo = Geometry::new::<S>(g.level, shape);
    let of = |data, width| Heads { data, width };
    let io =
        BwdIn { qkv: of(qkv, shape.qkv_width()), dout: of(dout, width), lse: of(lse, heads), delta: of(delta, heads) };
    let segment = |b: &Block| batch.micro.segments.get(b.segment as usize);
    par::spans(&batch.query_blocks, dqkv, shape.qkv_width(), &block_rows, &|b, dqkv| match segment(b) {
        Some(seg) => dq_block(g, &geo, dqkv, io, b, seg),
        None => dqkv.fill(S::ZERO),
    });
    par::spans(&batch.key_blocks, dqkv, shape.qkv_width(), &block_rows, &|b, dqkv| {
        if segment(b).is_some() {
            dkv_block(g, &geo, dqkv, io, b, batch);
        }
    });
    Ok(())
}

/// dQ of one query block, all heads.
fn dq_block<S: Real>(g: &Gemm, geo: &Geometry, dqkv: &mut [S], io: BwdIn<'_, S>, b: &Block, seg: &Segment) {
    let rows = b.start as usize..(b.start + b.len) as usize;
    let n = (geo.group * rows.len()).next_multiple_of(geo.cols_unit);
    let keys_max = KEY_BLOCK.next_multiple_of(geo.rows_unit);
    let by_key = geo.d * keys_max;
    let sizes = [
        geo.d * n,
        geo.d * n,
        by_key,
        by_key,
        KEY_BLOCK * geo.d_rows,
        keys_max * n,
        keys_max * n,
        geo.d_rows * n,
        n,
        n,
    ];
    g.scratch.with(sizes.iter().map(|s| padded::<S>(*s)).sum(), |mut rest: &mut [S]| {
        let [qt, dot, kt, vt, k, st, dpt, dqt, lse, delta] = sizes.map(|s| carve(&mut rest, s));
        for kv in 0..geo.shape.kv_heads {
            let head = kv * geo.group;
            io.qkv.transpose_group(qt, n, rows.clone(), geo.q_at(head), geo, geo.scale());
            io.dout.transpose_group(dot, n, rows.clone(), geo.q_at(head), geo, S::ONE);
            io.lse.stack_numbers(lse, rows.clone(), head, geo);
            io.delta.stack_numbers(delta, rows.clone(), head, geo);
            dqt.fill(S::ZERO);
            for (keys, crosses) in key_tiles(seg, &rows) {
                let k_rows = keys.len().next_multiple_of(geo.rows_unit);
                io.qkv.transpose(&mut kt[..geo.d * k_rows], k_rows, keys.clone(), geo.k_at(kv), geo.d);
                io.qkv.transpose(&mut vt[..geo.d * k_rows], k_rows, keys.clone(), geo.v_at(kv), geo.d);
                io.qkv.copy(k, geo.d_rows, keys.clone(), geo.k_at(kv), geo.d);
                S::tile_gemm(geo.level, st, n, kt, k_rows, qt, n, keys.len(), n, geo.d, false);
                S::tile_gemm(geo.level, dpt, n, vt, k_rows, dot, n, keys.len(), n, geo.d, false);
                let st = &mut st[..keys.len() * n];
                if crosses {
                    mask_by_column(st, n, &keys, &rows, geo.group);
                }
                ds_by_column(geo.level, st, dpt, lse, delta);
                S::tile_gemm(geo.level, dqt, n, k, geo.d_rows, st, n, geo.d, n, keys.len(), true);
            }
            let scale = geo.scale::<S>();
            for h in 0..geo.group {
                for i in 0..rows.len() {
                    let r = h * rows.len() + i;
                    let out = &mut dqkv[i * geo.shape.qkv_width() + geo.q_at(head + h)..][..geo.d];
                    out.iter_mut().zip(dqt.chunks_exact(n)).for_each(|(o, t)| *o = t[r] * scale);
                }
            }
        }
    });
}

/// dK and dV of one key block, all heads.
fn dkv_block<S: Real>(g: &Gemm, geo: &Geometry, dqkv: &mut [S], io: BwdIn<'_, S>, b: &Block, batch: &CpuBatch) {
    let keys = b.start as usize..(b.start + b.len) as usize;
    let (n, r_max) = (geo.both(keys.len()), geo.stacked());
    let (by_key, by_query) = (n * geo.d_cols, r_max * geo.d_cols);
    let sizes = [
        geo.d * n,
        geo.d * n,
        by_key,
        by_key,
        geo.d * r_max,
        geo.d * r_max,
        by_query,
        by_query,
        r_max * n,
        r_max * n,
        r_max,
        r_max,
    ];
    g.scratch.with(sizes.iter().map(|s| padded::<S>(*s)).sum(), |mut rest: &mut [S]| {
        let [kt, vt, dk, dv, qt, dot, q, dout, s, dp, lse, delta] = sizes.map(|s| carve(&mut rest, s));
        for kv in 0..geo.shape.kv_heads {
            let head = kv * geo.group;
            io.qkv.transpose(kt, n, keys.clone(), geo.k_at(kv), geo.d);
            io.qkv.transpose(vt, n, keys.clone(), geo.v_at(kv), geo.d);
            dk.fill(S::ZERO);
            dv.fill(S::ZERO);
            for (rows, own) in query_tiles(batch, b) {
                let stacked = geo.group * rows.len();
                let r = stacked.next_multiple_of(geo.rows_unit);
                io.qkv.transpose_group(&mut qt[..geo.d * r], r, rows.clone(), geo.q_at(head), geo, geo.scale());
                io.dout.transpose_group(&mut dot[..geo.d * r], r, rows.clone(), geo.q_at(head), geo, S::ONE);
                io.qkv.copy_group(q, geo.d_cols, rows.clone(), geo.q_at(head), geo, geo.scale());
                io.dout.copy_group(dout, geo.d_cols, rows.clone(), geo.q_at(head), geo, S::ONE);
                io.lse.stack_numbers(lse, rows.clone(), head, geo);
                io.delta.stack_numbers(delta, rows.clone(), head, geo);
                S::tile_gemm(geo.level, s, n, qt, r, kt, n, stacked, n, geo.d, false);
                S::tile_gemm(geo.level, dp, n, dot, r, vt, n, stacked, n, geo.d, false);
                if own && rows.start + 1 < keys.end {
                    mask_by_row(s, n, &keys, &rows, geo.group);
                }
                p_and_ds_by_row(geo.level, &mut s[..stacked * n], &mut dp[..stacked * n], n, lse, delta);
                S::tile_gemm(geo.level, dv, geo.d_cols, s, n, dout, geo.d_cols, keys.len(), geo.d, stacked, true);
                S::tile_gemm(geo.level, dk, geo.d_cols, dp, n, q, geo.d_cols, keys.len(), geo.d, stacked, true);
            }
            for (at, x) in [(geo.k_at(kv), &*dk), (geo.v_at(kv), &*dv)] {
                for (row, x) in dqkv.chunks_exact_mut(geo.shape.qkv_width()).zip(x.chunks_exact(geo.d_cols)) {
                    row[at..at + geo.d].copy_from_slice(&x[..geo.d]);
                }
            }
        }
    });
}

/// The query tiles that see a key tile, and whether they are of its own segment (else of a continuation): the segment's
/// own from the tile that holds the first key, then all of every continuation.
fn query_tiles<'a>(batch: &'a CpuBatch, keys: &Block) -> impl Iterator<Item = (Range<usize>, bool)> + use<'a> {
    let segments = &batch.micro.segments;
    let seg = segments[keys.segment as usize];
    let skipped = (keys.start - seg.start) as usize / QUERY_BLOCK * QUERY_BLOCK;
    let tiles = |r: Range<usize>| r.clone().step_by(QUERY_BLOCK).map(move |at| at..(at + QUERY_BLOCK).min(r.end));
    let own = tiles(seg.start as usize + skipped..(seg.start + seg.len) as usize).map(|t| (t, true));
    let more = batch.continuations[keys.segment as usize].clone();
    own.chain(more.flat_map(move |s| {
        let seg = segments[s as usize];
        tiles(seg.start as usize..(seg.start + seg.len) as usize).map(|t| (t, false))
    }))
}
