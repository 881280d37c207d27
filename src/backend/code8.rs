//! Eight bits a number: bitsandbytes' dynamic code (Dettmers 2015; Dettmers et al. 2022, arXiv 2110.02861), in blocks that share a
//! scale. A code's numbers lie in seven decades from 1e-6 to 1, twice as many in each as in the one below it: `10^(i-6)` times the
//! middles of equal parts of 0.1 to 1; and 0, and 1. The same in `kernels/small_state.cu`, to the bit.

/// Numbers that share a scale.
pub const BLOCK: usize = 256;

/// Blocks of `len` numbers.
pub fn blocks(len: usize) -> usize {
    len.div_ceil(BLOCK)
}

/// Sizes from 2^-23 on have a cell of their own for the first 8 bits of their fraction; below, all are nearest to 0.
const LOWEST: u32 = (127 - 23) << 8;
const CELLS: usize = 23 * 256 + 1;

/// A code, with what finds the nearest of its numbers.
pub struct Code {
    /// What each byte stands for, in units of its block's scale; rising.
    pub values: [f32; 256],
    /// Its sizes from 0 to 1, how many there are, and where the nearest changes from one to the next.
    sizes: [f32; 256],
    last: usize,
    middles: [f32; 256],
    /// Of each cell the size nearest to its lower end; no cell has more than one middle in it.
    cells: [u8; CELLS],
    signed: bool,
}

/// With a sign: first moments.
pub const SIGNED: &Code = &Code::new(true);
/// From 0 on: second moments.
pub const UNSIGNED: &Code = &Code::new(false);

impl Code {
    const fn new(signed: bool) -> Self {
        let (more, last) = if signed { (0, 128) } else { (1, 255) };
        let (mut sizes, mut middles) = ([0f32; 256], [f32::INFINITY; 256]);
        let mut p = 0;
        while p <= last {
            sizes[p] = magnitude(p as u32, more, last as u32);
            if p > 0 {
                middles[p - 1] = (sizes[p - 1] + sizes[p]) * 0.5;
            }
            p += 1;
        }
        let (mut cells, mut cell, mut p) = ([0; CELLS], 0, 0);
        while cell < CELLS {
            while f32::from_bits((LOWEST + cell as u32) << 15) > middles[p] {
                p += 1;
            }
            cells[cell] = p as u8;
            cell += 1;
        }
        let (mut values, mut p) = (sizes, 0);
        while signed && p <= 128 {
            values[127 + p] = sizes[p];
            if p > 0 && p < 128 {
                values[127 - p] = -sizes[p];
            }
            p += 1;
        }
        Self { values, sizes, last, middles, cells, signed }
    }

    /// The byte whose number is nearest to `x`, within -1 and 1, or 0 and 1: of two that are equally near, the smaller in size. What
    /// is not 0 has another than 0 in a code without a sign: a second moment divides by its root.
    #[inline(always)]
    pub fn nearest(&self, x: f32) -> u8 {
        let cell = (x.abs().to_bits() >> 15).saturating_sub(LOWEST) as usize;
        let below = self.cells[cell.min(CELLS - 1)];
        let p = below + u8::from(x.abs() > self.middles[usize::from(below)]);
        match self.signed {
            false => p.max(u8::from(x > 0.0)),
            true if x < 0.0 => 127 - p.min(127),
            true => 127 + p,
        }
    }

    /// Its sizes, rising, from 0 to 1.
    pub fn sizes(&self) -> &[f32] {
        &self.sizes[..=self.last]
    }
}

/// Size `p` of a code with `2^more` parts in its lowest decade, and `last` the place of 1: a quotient of two whole numbers, rounded
/// once.
const fn magnitude(p: u32, more: u32, last: u32) -> f32 {
    const POWERS: [f32; 7] = [1e6, 1e5, 1e4, 1e3, 1e2, 1e1, 1.0];
    if p == 0 || p == last {
        return if p > 0 { 1.0 } else { 0.0 };
    }
    let n = 1u32 << (p + more).ilog2();
    let (i, j) = (n.ilog2() - more, p + more - n);
    ((2 * n + 18 * j + 9) as f32) / ((20 * n) as f32 * POWERS[i as usize])
}
