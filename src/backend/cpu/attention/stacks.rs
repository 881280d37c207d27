//! What attention multiplies: heads of rows, stacked by group, and which tiles of queries and keys meet.

use super::softmax::copy_scaled;
use crate::backend::cpu::batch::{Block, CpuBatch, KEY_BLOCK, QUERY_BLOCK};
use crate::backend::cpu::check;
use crate::backend::cpu::gemm::matrix::Mat;
use crate::backend::cpu::gemm::setup::Gemm;
use crate::backend::cpu::real::Real;
use crate::backend::cpu::simd::Level;
use crate::backend::ops::device::AttnShape;
use crate::batch::Segment;
use crate::error::Result;
use std::ops::Range;

/// Checks the geometry, and that `qkv` has the batch's rows.
pub(super) fn check_qkv<S>(op: &'static str, qkv: &[S], batch: &CpuBatch, shape: &AttnShape) -> Result<()> {
    check::attn(op, shape)?;
    check::len(op, "qkv", qkv.len(), &[("rows", batch.rows()), ("qkv_width", shape.qkv_width())])
}

/// Checks an argument of rows x q_width.
pub(super) fn check_out(
    op: &'static str,
    name: &'static str,
    got: usize,
    batch: &CpuBatch,
    shape: &AttnShape,
) -> Result<()> {
    check::len(op, name, got, &[("rows", batch.rows()), ("q_width", shape.q_width())])
}

/// Checks an argument of rows x heads.
pub(super) fn check_stat(
    op: &'static str,
    name: &'static str,
    got: usize,
    batch: &CpuBatch,
    shape: &AttnShape,
) -> Result<()> {
    check::len(op, name, got, &[("rows", batch.rows()), ("heads", shape.heads)])
}

/// Geometry of tiles: sizes rounded up to what the micro-kernel takes.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    pub shape: AttnShape,
    /// Query heads of a key/value head.
    pub group: usize,
    pub d: usize,
    /// `head_dim` as rows, and as columns, of a tile product.
    pub d_rows: usize,
    pub d_cols: usize,
    pub rows_unit: usize,
    pub cols_unit: usize,
}

impl Geometry {
    pub fn new<S: Real>(g: &Gemm, shape: AttnShape) -> Self {
        let (rows_unit, cols_unit) = S::tile_units(g);
        let d = shape.head_dim;
        let (d_rows, d_cols) = (d.next_multiple_of(rows_unit), d.next_multiple_of(cols_unit));
        Geometry { shape, group: shape.heads / shape.kv_heads, d, d_rows, d_cols, rows_unit, cols_unit }
    }
    /// Rounds up to both units: usable as rows and as columns.
    pub fn both(&self, n: usize) -> usize {
        n.next_multiple_of(self.rows_unit).next_multiple_of(self.cols_unit)
    }
    /// First column of query head `h`, and of key and value head `h`, in a row of `qkv`.
    pub fn q_at(&self, h: usize) -> usize {
        h * self.d
    }
    pub fn k_at(&self, h: usize) -> usize {
        self.shape.q_width() + h * self.d
    }
    pub fn v_at(&self, h: usize) -> usize {
        self.k_at(h) + self.shape.kv_width()
    }
    pub fn scale<S: Real>(&self) -> S {
        S::from_f64(1.0 / (self.d as f64).sqrt())
    }
}

/// Rows of a matrix, `width` elements each.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a, S> {
    pub data: &'a [S],
    pub width: usize,
}

impl<'a, S: Real> Heads<'a, S> {
    fn from(&self, rows: &Range<usize>, at: usize) -> &'a [S] {
        &self.data[rows.start * self.width + at..]
    }
    /// The head at column `at` as an operand whose lines are `rows`, summed over the head's columns.
    pub fn by_row(&self, rows: &Range<usize>, at: usize) -> Mat<'a, S> {
        Mat::by_line(self.from(rows, at), self.width)
    }
    /// The head at column `at` as an operand whose lines are the head's columns, summed over `rows`.
    pub fn by_column(&self, rows: &Range<usize>, at: usize) -> Mat<'a, S> {
        Mat::by_k(self.from(rows, at), self.width)
    }
    /// The heads of a group stacked: `out[(h * rows + row) * ld + c]`, times `by`, zero from `d` to `ld`.
    pub fn stack(
        &self,
        level: Level,
        (out, ld): (&mut [S], usize),
        rows: &Range<usize>,
        at: usize,
        g: &Geometry,
        by: S,
    ) {
        for (h, out) in out.chunks_exact_mut(rows.len() * ld).take(g.group).enumerate() {
            copy_scaled(level, out, ld, self.from(rows, at + h * g.d), self.width, g.d, by);
        }
    }
    /// One number per stacked row: `out[h * rows + row] = data[row][first + h]`, zero beyond.
    pub fn stack_numbers(&self, out: &mut [S], rows: &Range<usize>, first: usize, g: &Geometry) {
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
pub(super) fn key_tiles(seg: &Segment, rows: &Range<usize>) -> impl Iterator<Item = (Range<usize>, bool)> + use<> {
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
pub(super) fn mask_by_column<S: Real>(st: &mut [S], ld: usize, keys: &Range<usize>, rows: &Range<usize>, group: usize) {
    for (key, st) in keys.clone().zip(st.chunks_exact_mut(ld)) {
        let hidden = key.saturating_sub(rows.start).min(rows.len());
        for h in 0..group {
            st[h * rows.len()..][..hidden].fill(S::NEG_INFINITY);
        }
    }
}

/// As [`mask_by_column`] with `s`: stacked queries x `ld` keys.
pub(super) fn mask_by_row<S: Real>(s: &mut [S], ld: usize, keys: &Range<usize>, rows: &Range<usize>, group: usize) {
    for h in 0..group {
        for (i, row) in rows.clone().enumerate() {
            let seen = (row + 1).saturating_sub(keys.start).min(keys.len());
            s[(h * rows.len() + i) * ld..][seen..keys.len()].fill(S::NEG_INFINITY);
        }
    }
}

/// The query tiles that see a key tile, and whether they are of its own segment (else of a continuation): the segment's
/// own from the tile that holds the first key, then all of every continuation.
pub(super) fn query_tiles<'a>(
    batch: &'a CpuBatch,
    keys: &Block,
) -> impl Iterator<Item = (Range<usize>, bool)> + use<'a> {
    let segments = batch.micro.segments();
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
