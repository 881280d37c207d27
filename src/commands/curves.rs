//! Curves in characters: braille dots, or stars where a terminal has ASCII alone.

use crate::chart;

/// How a curve is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Characters a line, labels included.
    pub width: usize,
    /// Lines.
    pub height: usize,
    /// Stars for dots.
    pub ascii: bool,
}

/// Characters before the curve: a number and a bar.
const LABEL: usize = 10;

/// The usual values of `points` and the point that lies furthest from them, where a picture of all would show next to nothing else.
pub fn beyond(points: &[(f64, f64)]) -> Option<((f64, f64), (f64, f64))> {
    let finite = || points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite());
    let (low, high) = chart::usual(finite().map(|(_, y)| y).collect())?;
    let by = |y: f64| (low - y).max(y - high);
    Some(((low, high), finite().max_by(|a, b| by(a.1).total_cmp(&by(b.1)))?))
}

/// What is drawn: a line through the means of `points`, and `marks` as circles; of (x, y). What lies [`beyond`] is at the edge. Nothing
/// where no y is finite.
pub fn curve(points: &[(f64, f64)], marks: &[(f64, f64)], look: Look) -> Vec<String> {
    let all = || points.iter().chain(marks).copied().filter(|(x, y)| x.is_finite() && y.is_finite());
    let range = |of: fn((f64, f64)) -> f64| {
        all().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let ((x0, x1), (mut y0, mut y1)) = (range(|p| p.0), range(|p| p.1));
    if x0 > x1 {
        return Vec::new();
    }
    if let Some((usual, _)) = beyond(points) {
        (y0, y1) = usual;
    }
    if y0 == y1 {
        // A flat line is in the middle.
        let half = if y0 == 0.0 { 1.0 } else { y0.abs() / 2.0 };
        (y0, y1) = (y0 - half, y1 + half);
    }
    let (across, down) = if look.ascii { (1, 1) } else { (2, 4) };
    let (cells, lines) = (look.width.saturating_sub(LABEL).max(8), look.height.max(2));
    let (columns, rows) = (cells * across, lines * down);
    let column = |x: f64| if x1 > x0 { ((x - x0) / (x1 - x0) * (columns - 1) as f64).round() as usize } else { 0 };
    // Numbers near the largest have differences and means that are none. What is above is at the top, and below at the bottom.
    let row = |y: f64| (((y1 - y) / (y1 - y0) * (rows - 1) as f64).round() as usize).min(rows - 1);
    let mut dots = vec![false; columns * rows];
    let mut last: Option<(usize, usize)> = None;
    for (at, y) in means(points, columns, column) {
        let to = row(y);
        let (from_column, from) = last.unwrap_or((at, to));
        for c in from_column..=at {
            let along = |c: usize| {
                let share = if at == from_column { 1.0 } else { (c - from_column) as f64 / (at - from_column) as f64 };
                (from as f64 + share * (to as f64 - from as f64)).round() as usize
            };
            // Down to where the column before ended, so that steep lines have no gaps.
            let (a, b) = (along(c), along(c.saturating_sub(1).max(from_column)));
            (a.min(b)..=a.max(b)).for_each(|r| dots[r * columns + c] = true);
        }
        last = Some((at, to));
    }
    let mut cell: Vec<Vec<char>> = (0..lines)
        .map(|line| {
            (0..cells).map(|c| glyph(look.ascii, |x, y| dots[(line * down + y) * columns + c * across + x])).collect()
        })
        .collect();
    for (x, y) in marks.iter().filter(|(x, y)| x.is_finite() && y.is_finite()) {
        cell[row(*y) / down][column(*x) / across] = 'o';
    }
    let label = |line: usize| match line {
        0 => short(y1),
        l if l == lines - 1 => short(y0),
        _ => String::new(),
    };
    let text = |(line, cells): (usize, Vec<char>)| {
        format!("{:>8} |{}", label(line), cells.into_iter().collect::<String>()).trim_end().to_owned()
    };
    cell.into_iter().enumerate().map(text).collect()
}

/// The mean of the finite points of each column that has some.
fn means(points: &[(f64, f64)], columns: usize, column: impl Fn(f64) -> usize) -> Vec<(usize, f64)> {
    let mut sums = vec![(0.0, 0_u32); columns];
    for (x, y) in points.iter().filter(|(x, y)| x.is_finite() && y.is_finite()) {
        let (sum, n) = &mut sums[column(*x)];
        (*sum, *n) = (*sum + y, *n + 1);
    }
    sums.iter().enumerate().filter(|(_, (_, n))| *n > 0).map(|(at, (sum, n))| (at, sum / f64::from(*n))).collect()
}

/// The character of a cell whose dots are these.
fn glyph(ascii: bool, dot: impl Fn(usize, usize) -> bool) -> char {
    if ascii {
        return if dot(0, 0) { '*' } else { ' ' };
    }
    // Bit by bit as Unicode numbers them.
    let order = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)];
    let bits = order.iter().enumerate().map(|(bit, (x, y))| u32::from(dot(*x, *y)) << bit).sum::<u32>();
    if bits == 0 { ' ' } else { char::from_u32(0x2800 + bits).unwrap_or('*') }
}

/// Four digits of a number.
pub fn short(x: f64) -> String {
    match x.abs() {
        0.0 => "0".to_owned(),
        a if !(1e-3..1e5).contains(&a) => format!("{x:.2e}"),
        a if a >= 1000.0 => format!("{x:.0}"),
        a if a >= 10.0 => format!("{x:.2}"),
        _ => format!("{x:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_from_corner_to_corner() {
        let rising: Vec<(f64, f64)> = (0..50).map(|i| (f64::from(i), f64::from(i) * 2.0)).collect();
        for ascii in [true, false] {
            let drawn = curve(&rising, &[], Look { width: 30, height: 5, ascii });
            assert_eq!(drawn.len(), 5);
            assert!(drawn[0].starts_with("   98.00 |") && drawn[4].starts_with("       0 |"), "{drawn:#?}");
            let first = |line: &str| line.chars().skip(LABEL).position(|c| c != ' ').unwrap();
            let at: Vec<usize> = drawn.iter().map(|line| first(line)).collect();
            assert!(at.is_sorted_by(|a, b| a > b) && at[4] == 0, "{at:?}");
            assert_eq!(drawn[0].chars().count(), 30, "{drawn:#?}");
            assert_eq!(drawn.concat().is_ascii(), ascii);
            assert!(drawn.iter().all(|line| line.chars().skip(LABEL).any(|c| c != ' ')), "no gap");
        }
    }

    #[test]
    fn whatever_the_points_are() {
        let look = Look { width: 20, height: 3, ascii: false };
        assert_eq!(curve(&[], &[], look), Vec::<String>::new());
        assert_eq!(curve(&[(1.0, f64::NAN), (f64::INFINITY, 1.0)], &[], look), Vec::<String>::new());
        for points in [&[(1.0, 0.0)][..], &[(1.0, -3.0), (2.0, -3.0)], &[(1.0, 1e300), (2.0, f64::NAN), (3.0, -1e300)]]
        {
            assert_eq!(curve(points, points, look).len(), 3);
            assert!(curve(points, points, look).concat().contains('o'));
        }
        let extremes = [(1.0, -1.7e308), (1.001, -1.7e308), (900.0, 1.7e308)];
        assert_eq!(curve(&extremes, &extremes, look).len(), 3);
        assert_eq!(curve(&[(0.0, 1.0)], &[], Look { width: 0, height: 0, ascii: true }).len(), 2);
    }

    /// One step does not flatten the others.
    #[test]
    fn a_spike_is_at_the_edge() {
        let falls = |i: u32| (f64::from(i), if i == 70 { 1e9 } else { 1.0 - f64::from(i) / 100.0 });
        let points: Vec<(f64, f64)> = (0..100).map(falls).collect();
        let ((low, high), at) = beyond(&points).unwrap();
        assert!(low < 0.05 && (0.95..2.0).contains(&high) && at == (70.0, 1e9), "{low} {high} {at:?}");
        let drawn = curve(&points, &[], Look { width: 60, height: 5, ascii: true });
        assert!(drawn.iter().all(|line| line.contains('*')) && drawn[0].starts_with("  1.0000 |"), "{drawn:#?}");
        assert_eq!(beyond(&points[..70]), None);
    }

    #[test]
    fn braille_dots_have_their_places() {
        let one = |x, y| glyph(false, |a, b| (a, b) == (x, y));
        assert_eq!([one(0, 0), one(1, 0), one(0, 3), one(1, 3)], ['⠁', '⠈', '⡀', '⢀']);
    }
}
