//! Lines, points and their colours.

use std::fmt::Write;

/// What the pictures look like: the page that they stand in needs it once, a picture of its own brings it.
pub const STYLE: &str = include_str!("style.css");
/// Runs that have a colour of their own; the next as many have the same ones, dashed.
pub const COLOURS: usize = 6;
/// Held-out sets that have a shape of their own; those after them share.
pub const SHAPES: usize = 4;

/// The classes of run `run`: its colour, its dashes, and its own name, by which a page may hide it.
pub fn class(run: usize) -> String {
    let dashed = if run / COLOURS % 2 == 1 { " d1" } else { "" };
    format!("c{}{dashed} r{run}", run % COLOURS)
}

/// A line through points of a picture; `None` begins it anew. Points that fall together are one.
pub(super) fn line(points: impl Iterator<Item = Option<(f64, f64)>>) -> String {
    let mut text = String::new();
    let (mut draws, mut before) = (false, (i64::MIN, i64::MIN));
    for point in points {
        let Some((x, y)) = point else {
            draws = false;
            continue;
        };
        let at = ((x * 10.0).round() as i64, (y * 10.0).round() as i64);
        if draws && at == before {
            continue;
        }
        // Writing to text does not fail.
        let (x, y) = (tenths(at.0), tenths(at.1));
        // A point without neighbours is a dot.
        let _ = if draws { write!(text, "L{x} {y}") } else { write!(text, "M{x} {y}h0") };
        (draws, before) = (true, at);
    }
    text
}

fn tenths(n: i64) -> String {
    match n % 10 {
        0 => (n / 10).to_string(),
        _ => format!("{:.1}", n as f64 / 10.0),
    }
}

/// The outline of a point of held-out set `shape` at a place.
pub fn marker(shape: usize, (x, y): (f64, f64)) -> String {
    let steps = match shape % SHAPES {
        0 => "m-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0z",
        1 => "m0 -4.2l4.2 4.2l-4.2 4.2l-4.2 -4.2z",
        2 => "m-3 -3h6v6h-6z",
        _ => "m0 -4l4 7h-8z",
    };
    format!("M{x:.1} {y:.1}{steps}")
}

/// A little picture for a legend: the line of run `run`, or the points of a held-out set.
pub fn swatch(run: usize, shape: Option<usize>) -> String {
    let class = class(run);
    let drawn = match shape {
        None => format!("<path class=\"line {class}\" d=\"M1 6H25\"/>"),
        Some(shape) => format!(
            "<path class=\"held {class}\" d=\"M1 6H25\"/><path class=\"mark {class}\" d=\"{}\"/>",
            marker(shape, (13.0, 6.0))
        ),
    };
    format!("<svg class=\"swatch\" viewBox=\"0 0 26 12\" width=\"26\" height=\"12\" aria-hidden=\"true\">{drawn}</svg>")
}
