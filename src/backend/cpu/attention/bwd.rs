//! The backward pass: dQ by query block, then dK and dV by key block.

use super::softmax::{copy_scaled, delta_row, ds_by_column, p_and_ds_by_row};
use super::stacks::{
    Geometry, Heads, check_out, check_qkv, check_stat, key_tiles, mask_by_column, mask_by_row, query_tiles,
};
use crate::backend::cpu::batch::{Block, CpuBatch, KEY_BLOCK, QUERY_BLOCK, block_rows};
use crate::backend::cpu::device::Cpu;
use crate::backend::cpu::gemm::matrix::Mat;
use crate::backend::cpu::gemm::panels::Side;
use crate::backend::cpu::gemm::setup::Gemm;
use crate::backend::cpu::real::Real;
use crate::backend::cpu::scratch::{carve, padded};
use crate::backend::cpu::{check, par};
use crate::backend::ops::attention::AttentionBwd;
use crate::batch::Segment;
use crate::error::Result;

/// Inputs of the backward pass.
#[derive(Clone, Copy)]
struct BwdIn<'a, S> {
    qkv: Heads<'a, S>,
    dout: Heads<'a, S>,
    lse: Heads<'a, S>,
    delta: Heads<'a, S>,
}

/// See [`AttentionBwd`].
pub(super) fn run<S: Real>(g: &Gemm, op: AttentionBwd<'_, Cpu<S>>) -> Result<()> {
    const OP: &str = "attention_bwd";
    let AttentionBwd { dqkv, delta, partial: _, dout, out, lse, qkv, batch, shape } = op;
    check_qkv(OP, qkv, batch, &shape)?;
    check::len(OP, "dqkv", dqkv.len(), &[("rows", batch.rows()), ("qkv_width", shape.qkv_width())])?;
    check_stat(OP, "delta", delta.len(), batch, &shape)?;
    check_stat(OP, "lse", lse.len(), batch, &shape)?;
    check_out(OP, "dout", dout.len(), batch, &shape)?;
    check_out(OP, "out", out.len(), batch, &shape)?;
    let (width, heads) = (shape.q_width(), shape.heads);
    par::rows(delta, heads, |t, x| {
        delta_row(g.level, x, &dout[t * width..][..width], &out[t * width..][..width], shape.head_dim)
    });
    let geo = Geometry::new::<S>(g, shape);
    let of = |data, width| Heads { data, width };
    let io =
        BwdIn { qkv: of(qkv, shape.qkv_width()), dout: of(dout, width), lse: of(lse, heads), delta: of(delta, heads) };
    let segment = |b: &Block| batch.micro.segments().get(b.segment as usize);
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
    let (rows, d) = (b.start as usize..(b.start + b.len) as usize, geo.d);
    let stacked = geo.group * rows.len();
    let (n, keys_max) = (stacked.next_multiple_of(geo.cols_unit), KEY_BLOCK.next_multiple_of(geo.rows_unit));
    let by_query = S::packed_len(g, Side::B, stacked, d);
    let by_key = S::packed_len(g, Side::A, KEY_BLOCK, d);
    let by_column = S::packed_len(g, Side::A, d, KEY_BLOCK);
    let ds_len = S::operand_len(g, Side::B, stacked, KEY_BLOCK);
    let tiles = [stacked * d, keys_max * n, keys_max * n, geo.d_rows * n, n, n];
    let sizes = [by_query, by_query, by_key, by_key, by_column, ds_len];
    let len = |sizes: &[usize]| sizes.iter().map(|s| padded::<S>(*s)).sum::<usize>();
    g.scratch.with(len(&tiles) + len(&sizes), |mut rest: &mut [S]| {
        let [qp, dop, kp, vp, kcp, dsp] = sizes.map(|s| carve(&mut rest, s));
        let [by_row, st, dpt, dqt, lse, delta] = tiles.map(|s| carve(&mut rest, s));
        for kv in 0..geo.shape.kv_heads {
            let head = kv * geo.group;
            io.qkv.stack(g.level, (by_row, d), &rows, geo.q_at(head), geo, geo.scale());
            let q = S::pack(g, qp, Side::B, Mat::by_line(by_row, d), stacked, d);
            io.dout.stack(g.level, (by_row, d), &rows, geo.q_at(head), geo, S::ONE);
            let dout = S::pack(g, dop, Side::B, Mat::by_line(by_row, d), stacked, d);
            io.lse.stack_numbers(lse, &rows, head, geo);
            io.delta.stack_numbers(delta, &rows, head, geo);
            dqt.fill(S::ZERO);
            for (keys, crosses) in key_tiles(seg, &rows) {
                let k = S::pack(g, kp, Side::A, io.qkv.by_row(&keys, geo.k_at(kv)), keys.len(), d);
                let v = S::pack(g, vp, Side::A, io.qkv.by_row(&keys, geo.v_at(kv)), keys.len(), d);
                let k_columns = S::pack(g, kcp, Side::A, io.qkv.by_column(&keys, geo.k_at(kv)), d, keys.len());
                S::product(g, st, n, k, q, [keys.len(), stacked, d], false);
                S::product(g, dpt, n, v, dout, [keys.len(), stacked, d], false);
                let st = &mut st[..keys.len() * n];
                if crosses {
                    mask_by_column(st, n, &keys, &rows, geo.group);
                }
                ds_by_column(g.level, st, dpt, lse, delta);
                let ds = S::operand(g, dsp, Side::B, st, n, stacked, keys.len());
                S::product(g, dqt, n, k_columns, ds, [d, stacked, keys.len()], true);
            }
            S::transpose(g, by_row, d, dqt, n, d, stacked);
            for (h, x) in by_row.chunks_exact(rows.len() * d).enumerate() {
                for (out, x) in dqkv.chunks_exact_mut(geo.shape.qkv_width()).zip(x.chunks_exact(d)) {
                    copy_scaled(g.level, &mut out[geo.q_at(head + h)..][..d], d, x, d, d, geo.scale());
                }
            }
        }
    });
}

/// dK and dV of one key block, all heads.
fn dkv_block<S: Real>(g: &Gemm, geo: &Geometry, dqkv: &mut [S], io: BwdIn<'_, S>, b: &Block, batch: &CpuBatch) {
    let (keys, d) = (b.start as usize..(b.start + b.len) as usize, geo.d);
    let (n, most) = (geo.both(keys.len()), geo.group * QUERY_BLOCK);
    let (r_max, ld) = (most.next_multiple_of(geo.rows_unit), geo.d_cols);
    let (by_key, by_query) = (S::packed_len(g, Side::B, keys.len(), d), S::packed_len(g, Side::A, most, d));
    let (p_len, x_len) = (S::operand_len(g, Side::A, keys.len(), most), S::operand_len(g, Side::B, d, most));
    let tiles = [n * ld, n * ld, r_max * ld, r_max * ld, r_max * n, r_max * n, r_max, r_max];
    let sizes = [by_key, by_key, by_query, by_query, p_len, x_len];
    let len = |sizes: &[usize]| sizes.iter().map(|s| padded::<S>(*s)).sum::<usize>();
    g.scratch.with(len(&tiles) + len(&sizes), |mut rest: &mut [S]| {
        let [kp, vp, qp, dop, pp, xp] = sizes.map(|s| carve(&mut rest, s));
        let [dk, dv, q, dout, s, dp, lse, delta] = tiles.map(|s| carve(&mut rest, s));
        for kv in 0..geo.shape.kv_heads {
            let head = kv * geo.group;
            let k = S::pack(g, kp, Side::B, io.qkv.by_row(&keys, geo.k_at(kv)), keys.len(), d);
            let v = S::pack(g, vp, Side::B, io.qkv.by_row(&keys, geo.v_at(kv)), keys.len(), d);
            dk.fill(S::ZERO);
            dv.fill(S::ZERO);
            for (rows, own) in query_tiles(batch, b) {
                let stacked = geo.group * rows.len();
                io.qkv.stack(g.level, (&mut *q, ld), &rows, geo.q_at(head), geo, geo.scale());
                io.dout.stack(g.level, (&mut *dout, ld), &rows, geo.q_at(head), geo, S::ONE);
                io.lse.stack_numbers(lse, &rows, head, geo);
                io.delta.stack_numbers(delta, &rows, head, geo);
                let q_rows = S::pack(g, qp, Side::A, Mat::by_line(q, ld), stacked, d);
                let dout_rows = S::pack(g, dop, Side::A, Mat::by_line(dout, ld), stacked, d);
                S::product(g, s, n, q_rows, k, [stacked, keys.len(), d], false);
                S::product(g, dp, n, dout_rows, v, [stacked, keys.len(), d], false);
                if own && rows.start + 1 < keys.end {
                    mask_by_row(s, n, &keys, &rows, geo.group);
                }
                p_and_ds_by_row(g.level, &mut s[..stacked * n], &mut dp[..stacked * n], n, lse, delta);
                for (sum, left, right) in [(&mut *dv, &*s, &*dout), (&mut *dk, &*dp, &*q)] {
                    let left = S::operand(g, pp, Side::A, left, n, keys.len(), stacked);
                    let right = S::operand(g, xp, Side::B, right, ld, d, stacked);
                    S::product(g, sum, ld, left, right, [keys.len(), d, stacked], true);
                }
            }
            for (at, x) in [(geo.k_at(kv), &*dk), (geo.v_at(kv), &*dv)] {
                for (row, x) in dqkv.chunks_exact_mut(geo.shape.qkv_width()).zip(x.chunks_exact(ld)) {
                    row[at..at + d].copy_from_slice(&x[..d]);
                }
            }
        }
    });
}
