//! A panel: one quantity over the steps, of one or several runs.

use super::path::{SHAPES, STYLE, class, line, marker};
use super::scale::{Scale, short};
use super::series::{Bucket, Series, smoothed};
use std::fmt::Write;

/// A panel's width, in units of its picture.
pub const WIDTH: f64 = 440.0;
/// Its height.
pub const HEIGHT: f64 = 226.0;
/// Where its plot lies: left, top, right, bottom.
pub const BOX: [f64; 4] = [54.0, 10.0, 430.0, 200.0];
/// Most points of a held-out line that are marked.
const MARKED: usize = 60;
/// Times the usual values' range that the picture may be high; what lies beyond is said.
const BEYOND: f64 = 4.0;
/// Share of a series' values, at each end, that are not usual.
const UNUSUAL: f64 = 0.02;

/// A line of a panel.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// Its run, by number: its colour.
    pub run: usize,
    /// The run's name, for what is said of it.
    pub name: &'a str,
    /// Held-out set by number, drawn as points; `None`: of training, drawn raw and smoothed.
    pub set: Option<usize>,
    /// What is drawn.
    pub series: &'a Series,
}

/// What is to be drawn.
#[derive(Clone, Debug)]
pub struct Chart<'a> {
    /// What it shows.
    pub title: &'a str,
    /// Its lines; those without a number are left out.
    pub lines: Vec<Line<'a>>,
    /// Whether values that differ by large factors may have an axis of powers.
    pub may_be_log: bool,
    /// A range that is to be seen, whatever the values: two panels that are to be compared have the same.
    pub range: Option<(f64, f64)>,
    /// Share of the steps that a value is smoothed over, both ways.
    pub smoothing: f64,
}

/// A panel, drawn.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// What is inside its `<svg>`.
    pub inner: String,
    /// In words, for who cannot see it.
    pub words: String,
    /// Where steps lie.
    pub x: Scale,
    /// Where values lie.
    pub y: Scale,
    /// What the picture cannot show: values beyond it, steps without a number.
    pub notes: Vec<String>,
    /// Whether values lie beyond it.
    pub beyond: bool,
}

impl Drawn {
    /// The picture, for a page that has [`STYLE`](super::STYLE). `id`: its own on that page.
    pub fn svg(&self, id: &str, words: &str) -> String {
        format!(
            "<svg class=\"chart\" id=\"{id}\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-label=\"{words}\">\n{}</svg>",
            self.inner
        )
    }
}

impl Chart<'_> {
    /// Draws it; `None` where no line has a number.
    pub fn drawn(&self) -> Option<Drawn> {
        let lines: Vec<&Line<'_>> = self.lines.iter().filter(|l| !l.series.is_empty()).collect();
        let of = |f: fn(&Series) -> Option<(f64, f64)>| lines.iter().filter_map(move |l| f(l.series)).map(|p| p.0);
        let (from, to) = (of(|s| s.first).reduce(f64::min)?, of(|s| s.last).reduce(f64::max)?);
        // Where it begins near 0, it begins there.
        let x = Scale::linear(if from >= 0.0 && from < 0.05 * to { 0.0 } else { from }, to);
        let reach = self.smoothing * (x.high - x.low);
        let (y, beyond) = self.values(&lines)?;
        let within = beyond.then_some((y.low, y.high));
        let smooth = |l: &&Line<'_>| match l.set {
            None => smoothed(l.series.buckets(), reach, within),
            Some(_) => l.series.buckets().iter().map(Bucket::mean).collect(),
        };
        let smooth: Vec<Vec<f64>> = lines.iter().map(smooth).collect();
        let mut inner = axes(x, y);
        for (l, smooth) in lines.iter().zip(&smooth) {
            draw(&mut inner, l, smooth, (x, y));
        }
        let mut notes = if beyond { beyond_notes(&lines, y) } else { Vec::new() };
        notes.extend(self.lines.iter().filter(|l| l.series.lost.0 > 0).map(|l| {
            let (lost, first) = l.series.lost;
            let (steps, have) = if lost == 1 { ("step", "has") } else { ("steps", "have") };
            format!("{}: {lost} {steps} {have} no finite number, the first is step {first}", l.name)
        }));
        let words = self.words(&lines);
        Some(Drawn { inner, words, x, y, notes, beyond })
    }

    /// The axis of values, and whether some lie beyond it.
    fn values(&self, lines: &[&Line<'_>]) -> Option<(Scale, bool)> {
        let buckets = || lines.iter().flat_map(|l| l.series.buckets());
        let mut all: Vec<f64> = buckets().flat_map(|b| [b.low.1, b.high.1]).collect();
        all.sort_by(f64::total_cmp);
        let (low, high) = (*all.first()?, *all.last()?);
        if let Some((low, high)) = self.range {
            return Some((Scale::linear(low, high).padded(0.04), false));
        }
        let peaks = || lines.iter().filter_map(|l| l.series.high()).map(|p| p.1);
        let (least, most) = (peaks().reduce(f64::min)?, peaks().reduce(f64::max)?);
        // Peaks of runs that are far from each other, or steps of one that are.
        let positive: Vec<f64> = buckets().map(Bucket::mean).filter(|y| *y > 0.0).collect();
        let usual = quantiles(positive);
        let far = most > 8.0 * least || low > 0.0 && usual.is_some_and(|(l, h)| h > 50.0 * l);
        if self.may_be_log && least > 0.0 && low >= 0.0 && far {
            let bottom = usual.map_or(high, |(l, _)| l).max(least / 1e4).min(least / 2.0);
            return Some((Scale::logarithmic(bottom, high).padded(0.04), false));
        }
        let (mut usual_low, mut usual_high) = (f64::INFINITY, f64::NEG_INFINITY);
        for l in lines {
            let (a, b) = quantiles(l.series.buckets().iter().flat_map(|b| [b.low.1, b.high.1]).collect())?;
            (usual_low, usual_high) = (usual_low.min(a), usual_high.max(b));
        }
        if high - low > BEYOND * (usual_high - usual_low) && usual_high > usual_low {
            return Some((Scale::linear(usual_low, usual_high).padded(0.1), true));
        }
        Some((Scale::linear(low, high).padded(0.04), false))
    }

    fn words(&self, lines: &[&Line<'_>]) -> String {
        let mut words = format!("{} over steps.", self.title);
        for l in lines.iter().take(12) {
            if let (Some(first), Some(last)) = (l.series.first, l.series.last) {
                let held_out = if l.set.is_some() { ", held out" } else { "" };
                let _ = write!(
                    words,
                    " {}{held_out}: {} at step {}, {} at step {}.",
                    l.name,
                    short(first.1),
                    first.0,
                    short(last.1),
                    last.0
                );
            }
        }
        words
    }
}

/// Between which most of them lie; `None` for none.
fn quantiles(mut values: Vec<f64>) -> Option<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let cut = (last as f64 * UNUSUAL).floor() as usize;
    Some((values[cut], values[last - cut]))
}

fn beyond_notes(lines: &[&Line<'_>], y: Scale) -> Vec<String> {
    let mut notes = Vec::new();
    for l in lines {
        for (way, extreme) in [("up", l.series.high()), ("down", l.series.low())] {
            if let Some((step, value)) = extreme.filter(|(_, v)| !(y.low..=y.high).contains(v)) {
                notes.push(format!("{}: goes {way} to {} at step {step}, beyond the picture", l.name, short(value)));
            }
        }
    }
    notes
}

fn axes(x: Scale, y: Scale) -> String {
    let [left, top, right, bottom] = BOX;
    let mut out = String::new();
    // Writing to text does not fail.
    for (value, name) in y.ticks(4) {
        let at = bottom - (bottom - top) * y.at(value);
        let _ = writeln!(
            out,
            "<path class=\"grid\" d=\"M{left} {at:.1}H{right}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
            left - 7.0,
            at + 4.0
        );
    }
    for (value, name) in x.ticks(5) {
        let at = left + (right - left) * x.at(value);
        let anchor = if at > right - 12.0 { "end" } else { "middle" };
        let _ = writeln!(
            out,
            "<path class=\"axis\" d=\"M{at:.1} {bottom}v4\"/><text x=\"{at:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{name}</text>",
            bottom + 17.0
        );
    }
    let _ = writeln!(out, "<path class=\"axis\" d=\"M{left} {bottom}H{right}\"/>");
    out
}

fn place((x, y): (Scale, Scale), (step, value): (f64, f64)) -> (f64, f64) {
    let [left, top, right, bottom] = BOX;
    // What lies beyond goes along the edge; at NaN, of a logarithm, too.
    let share = |at: f64| if at > 0.0 { at.min(1.0) } else { 0.0 };
    (left + (right - left) * share(x.at(step)), bottom - (bottom - top) * share(y.at(value)))
}

fn draw(out: &mut String, l: &Line<'_>, smooth: &[f64], scales: (Scale, Scale)) {
    let class = class(l.run);
    let buckets = l.series.buckets();
    let middles = || buckets.iter().zip(smooth).map(|(b, y)| (b.after_gap, place(scales, (b.middle(), *y))));
    if let Some(set) = l.set {
        let class = format!("{class} s{}", set % SHAPES);
        let points = middles().map(|(_, at)| at);
        let _ = write!(out, "<path class=\"held {class}\" d=\"{}\"/>", line(points.clone().map(Some)));
        let marks: String = points.map(|at| marker(set, at)).collect();
        if buckets.len() <= MARKED {
            let _ = write!(out, "<path class=\"mark {class}\" d=\"{marks}\"/>");
        }
        out.push('\n');
        return;
    }
    let raw = buckets.iter().flat_map(|b| {
        let (a, z) = if b.low.0 <= b.high.0 { (b.low, b.high) } else { (b.high, b.low) };
        [b.after_gap.then_some(None), Some(Some(place(scales, a))), (b.count > 1).then(|| Some(place(scales, z)))]
    });
    let _ = writeln!(out, "<path class=\"raw {class}\" d=\"{}\"/>", line(raw.flatten()));
    let smooth = middles().flat_map(|(gap, at)| [gap.then_some(None), Some(Some(at))]).flatten();
    let _ = writeln!(out, "<path class=\"line {class}\" d=\"{}\"/>", line(smooth));
    let lost: String = l
        .series
        .lost_at
        .iter()
        .map(|step| place(scales, (*step, scales.1.high)).0)
        .map(|x| format!("M{x:.1} {}v7", BOX[1]))
        .collect();
    if !lost.is_empty() {
        let _ = writeln!(out, "<path class=\"lost {class}\" d=\"{lost}\"/>");
    }
}

/// Several, one below the other, as a file that needs nothing else.
pub fn stacked(charts: &[Chart<'_>]) -> Option<String> {
    let drawn: Vec<(&str, Drawn)> = charts.iter().filter_map(|c| Some((c.title, c.drawn()?))).collect();
    let each = HEIGHT + 26.0;
    let titles: Vec<&str> = drawn.iter().map(|(title, _)| *title).collect();
    let mut out = format!(
        "<svg class=\"chart\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{}, over steps\">\n\
         <style>\n{}</style>\n",
        drawn.len() as f64 * each,
        titles.join(", "),
        STYLE
    );
    for (i, (title, drawn)) in drawn.iter().enumerate() {
        let top = i as f64 * each;
        let _ = writeln!(
            out,
            "<text class=\"name\" x=\"{}\" y=\"{}\">{title}</text>\n<g transform=\"translate(0 {})\">\n{}</g>",
            BOX[0],
            top + 18.0,
            top + 24.0,
            drawn.inner
        );
    }
    out += "</svg>\n";
    (!drawn.is_empty()).then_some(out)
}
