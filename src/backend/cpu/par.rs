//! Work over rows on every core. How rows are dealt out never decides a result: a row is computed by itself.

use rayon::prelude::*;

/// Elements that a task should hold at least, so that starting it costs little beside it.
const TASK: usize = 8192;

/// Rows of `width` elements in one task.
fn task_rows(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}

/// `f(row number, row)` for every row of `width` elements.
pub(super) fn rows<T: Send>(data: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let per = task_rows(width);
    let task = |(t, chunk): (usize, &mut [T])| {
        for (i, row) in chunk.chunks_exact_mut(width).enumerate() {
            f(t * per + i, row);
        }
    };
    // One task is sooner done here: generation has many of a row.
    if data.len() <= per * width {
        return task((0, data));
    }
    data.par_chunks_mut(per * width).enumerate().for_each(task);
}

/// As [`rows`] with a second output.
pub(super) fn rows2<T: Send, U: Send>(
    a: (&mut [T], usize),
    b: (&mut [U], usize),
    f: impl Fn(usize, &mut [T], &mut [U]) + Sync,
) {
    let per = task_rows(a.1);
    let task = |(t, (x, y)): (usize, (&mut [T], &mut [U]))| {
        for (i, (x, y)) in x.chunks_exact_mut(a.1).zip(y.chunks_exact_mut(b.1)).enumerate() {
            f(t * per + i, x, y);
        }
    };
    if a.0.len() <= per * a.1 {
        return task((0, (a.0, b.0)));
    }
    a.0.par_chunks_mut(per * a.1).zip(b.0.par_chunks_mut(per * b.1)).enumerate().for_each(task);
}

/// `f(first column, columns)` for blocks of at most 64 of the columns, for sums down the rows.
pub(super) fn columns<T: Send>(data: &mut [T], f: impl Fn(usize, &mut [T]) + Sync) {
    data.par_chunks_mut(64).enumerate().for_each(|(t, cols)| f(t * 64, cols));
}

/// `f(first element, elements)` for large blocks of a flat buffer.
pub(super) fn blocks<T: Send>(data: &mut [T], f: impl Fn(usize, &mut [T]) + Sync) {
    const BLOCK: usize = 1 << 18;
    data.par_chunks_mut(BLOCK).enumerate().for_each(|(t, block)| f(t * BLOCK, block));
}

/// Deals out consecutive items, each of which owns `rows(item)` consecutive rows of `data`.
pub(super) fn spans<I: Sync, T: Send>(
    items: &[I],
    data: &mut [T],
    width: usize,
    rows: &(impl Fn(&I) -> usize + Sync),
    f: &(impl Fn(&I, &mut [T]) + Sync),
) {
    let mut none: [T; 0] = [];
    spans2(items, (data, width), (&mut none, 0), rows, &|i, data, _: &mut [T]| f(i, data));
}

/// As [`spans`] with a second output.
pub(super) fn spans2<I: Sync, T: Send, U: Send>(
    items: &[I],
    a: (&mut [T], usize),
    b: (&mut [U], usize),
    rows: &(impl Fn(&I) -> usize + Sync),
    f: &(impl Fn(&I, &mut [T], &mut [U]) + Sync),
) {
    match items {
        [] => {}
        [item] => f(item, a.0, b.0),
        _ => {
            let (left, right) = items.split_at(items.len() / 2);
            let n = left.iter().map(rows).sum::<usize>();
            let (la, ra) = a.0.split_at_mut(n * a.1);
            let (lb, rb) = b.0.split_at_mut(n * b.1);
            rayon::join(
                || spans2(left, (la, a.1), (lb, b.1), rows, f),
                || spans2(right, (ra, a.1), (rb, b.1), rows, f),
            );
        }
    }
}
