//! Operands of a product.

/// A matrix operand: element `(line, k)` at `data[line * line_step + k * k_step]`, where `k` is the summed index.
#[derive(Clone, Copy)]
pub struct Mat<'a, S> {
    pub(super) data: &'a [S],
    pub(super) line_step: usize,
    pub(super) k_step: usize,
}

impl<'a, S> Mat<'a, S> {
    /// Each line is contiguous along the summed index: `lines x k`, row-major.
    pub fn by_line(data: &'a [S], k: usize) -> Self {
        Mat { data, line_step: k, k_step: 1 }
    }
    /// Each `k` is contiguous along the lines: `k x lines`, row-major.
    pub fn by_k(data: &'a [S], lines: usize) -> Self {
        Mat { data, line_step: 1, k_step: lines }
    }
    /// Elements that lines, not none, of `k`, not none, reach over.
    pub(super) fn reach(&self, lines: usize, k: usize) -> usize {
        (lines - 1) * self.line_step + (k - 1) * self.k_step + 1
    }
}

/// What the product is added to.
#[derive(Clone, Copy)]
pub enum Base<'a, S> {
    /// Nothing.
    Zero,
    /// The previous content of the output.
    Output,
    /// This matrix, of the output's shape.
    Other(&'a [S]),
}
