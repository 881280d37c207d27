//! The forward pass, by query block.

use super::softmax::{divide_columns, online_softmax, scale_columns};
use super::stacks::{Geometry, Heads, check_out, check_qkv, check_stat, key_tiles, mask_by_column};
use crate::backend::cpu::batch::{Block, KEY_BLOCK, block_rows};
use crate::backend::cpu::device::Cpu;
use crate::backend::cpu::gemm::matrix::Mat;
use crate::backend::cpu::gemm::panels::Side;
use crate::backend::cpu::gemm::setup::Gemm;
use crate::backend::cpu::par;
use crate::backend::cpu::real::Real;
use crate::backend::cpu::scratch::{carve, padded};
use crate::backend::ops::attention::AttentionFwd;
use crate::batch::Segment;
use crate::error::Result;

/// See [`AttentionFwd`].
pub(super) fn run<S: Real>(g: &Gemm, op: AttentionFwd<'_, Cpu<S>>) -> Result<()> {
    const OP: &str = "attention_fwd";
    let AttentionFwd { out, lse, qkv, batch, shape } = op;
    check_qkv(OP, qkv, batch, &shape)?;
    check_out(OP, "out", out.len(), batch, &shape)?;
    check_stat(OP, "lse", lse.len(), batch, &shape)?;
    let geo = Geometry::new::<S>(g, shape);
    let qkv = Heads { data: qkv, width: shape.qkv_width() };
    par::spans2(
        &batch.query_blocks,
        (out, shape.q_width()),
        (lse, shape.heads),
        &block_rows,
        &|b, out, lse| match batch.micro.segments().get(b.segment as usize) {
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
    let (rows, d) = (b.start as usize..(b.start + b.len) as usize, geo.d);
    let stacked = geo.group * rows.len();
    let (n, keys_max) = (stacked.next_multiple_of(geo.cols_unit), KEY_BLOCK.next_multiple_of(geo.rows_unit));
    let packed = |side, lines, k| S::packed_len(g, side, lines, k);
    let operands = [packed(Side::B, stacked, d), packed(Side::A, KEY_BLOCK, d), packed(Side::A, d, KEY_BLOCK)];
    let p_len = S::operand_len(g, Side::B, stacked, KEY_BLOCK);
    let [q_len, k_len, v_len] = operands;
    let sizes = [q_len, k_len, v_len, p_len, stacked * d, keys_max * n, geo.d_rows * n, n, n, n];
    g.scratch.with(sizes.iter().map(|s| padded::<S>(*s)).sum(), |mut rest: &mut [S]| {
        let [qp, kp, vp, pp, by_row, st, ot, m, l, alpha] = sizes.map(|s| carve(&mut rest, s));
        for kv in 0..geo.shape.kv_heads {
            qkv.stack(g.level, (by_row, d), &rows, geo.q_at(kv * geo.group), geo, geo.scale());
            let q = S::pack(g, qp, Side::B, Mat::by_line(by_row, d), stacked, d);
            m.fill(S::NEG_INFINITY);
            l.fill(S::ZERO);
            ot.fill(S::ZERO);
            for (keys, crosses) in key_tiles(seg, &rows) {
                let k = S::pack(g, kp, Side::A, qkv.by_row(&keys, geo.k_at(kv)), keys.len(), d);
                let v = S::pack(g, vp, Side::A, qkv.by_column(&keys, geo.v_at(kv)), d, keys.len());
                S::product(g, st, n, k, q, [keys.len(), stacked, d], false);
                let st = &mut st[..keys.len() * n];
                if crosses {
                    mask_by_column(st, n, &keys, &rows, geo.group);
                }
                online_softmax(g.level, st, m, l, alpha);
                scale_columns(g.level, ot, alpha);
                let p = S::operand(g, pp, Side::B, st, n, stacked, keys.len());
                S::product(g, ot, n, v, p, [d, stacked, keys.len()], true);
            }
            divide_columns(g.level, ot, l);
            S::transpose(g, by_row, d, ot, n, d, stacked);
            for (r, x) in by_row.chunks_exact(d).enumerate() {
                let (i, head) = (r % rows.len(), kv * geo.group + r / rows.len());
                out[i * geo.shape.q_width() + head * d..][..d].copy_from_slice(x);
                lse[i * geo.shape.heads + head] = S::from_f64(m[r].to_f64() + l[r].to_f64().ln());
            }
        }
    });
}
