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
        if self.may_be_log && least > 0.0 && low >= 0.0 && far && high / (least / 1e4) < 1e100 {
            let bottom = usual.map_or(high, |(l, _)| l).max(least / 1e4).min(least / 2.0);
            return Some((Scale::logarithmic(bottom, high).padded(0.04), false));
        }
        let (mut usual_low, mut usual_high) = (f64::INFINITY, f64::NEG_INFINITY);
        for l in lines {
            let (a, b) = quantiles(l.series.buckets().iter().flat_map(|b| [b.low.1, b.high.1]).collect())?;
            (usual_low, usual_high) = (usual_low.min(a), usual_high.max(b));
        }
        match is_beyond((low, high), (usual_low, usual_high)) {
            true => Some((Scale::linear(usual_low, usual_high).padded(0.1), true)),
            false => Some((Scale::linear(low, high).padded(0.04), false)),
        }
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

/// Whether a picture of all values, between `all`, would show next to nothing of the usual ones, which lie between `usual`.
fn is_beyond(all: (f64, f64), usual: (f64, f64)) -> bool {
    all.1 - all.0 > BEYOND * (usual.1 - usual.0) && usual.1 > usual.0
}

/// Between what the usual ones of `values`, which are finite, lie, where a picture of all would show next to nothing of them.
pub fn usual(values: Vec<f64>) -> Option<(f64, f64)> {
    let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
    quantiles(values).filter(|usual| is_beyond((low, high), *usual))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Coordinates of the paths of a class, a list a path.
    fn points(svg: &str, class: &str) -> Vec<Vec<(f64, f64)>> {
        let begin = format!("<path class=\"{class} ");
        let paths = svg.split(&begin).skip(1).map(|p| p.split(" d=\"").nth(1).unwrap());
        let point = |p: &str| {
            let (x, y) = p.trim_end_matches("h0").split_once(' ').unwrap();
            (x.parse().unwrap(), y.parse().unwrap())
        };
        let all = paths.map(|p| p.split('"').next().unwrap().split(['M', 'L']).filter(|p| !p.is_empty()).map(point));
        all.map(Iterator::collect).collect()
    }

    fn chart<'a>(title: &'a str, train: &'a Series, held_out: &'a Series) -> Chart<'a> {
        let lines = vec![
            Line { run: 0, name: "a", set: None, series: train },
            Line { run: 7, name: "b", set: Some(1), series: held_out },
        ];
        Chart { title, lines, may_be_log: true, range: None, smoothing: 0.02 }
    }

    /// Every point lies in its panel; what is no number leaves a gap and is told; what lies far off is told, too; lines are no longer than
    /// a picture can show.
    #[test]
    fn lines_lie_in_their_panels() {
        let (mut train, mut held_out, mut flat) = (Series::new(240), Series::new(240), Series::new(240));
        for i in 1..=100_000 {
            let y = f64::from(i % 997) / 997.0 - 0.5;
            train.add(
                f64::from(i),
                if i == 7 {
                    f64::NAN
                } else if i == 50_000 {
                    1e6
                } else {
                    y
                },
            );
        }
        [(0.0, 0.7), (100_000.0, 0.1)].into_iter().for_each(|(x, y)| held_out.add(x, y));
        [1.0, 2.0].into_iter().for_each(|x| flat.add(x, 2.0));
        let empty = Series::new(8);
        let drawn = chart("loss", &train, &held_out).drawn().unwrap();
        assert!(
            drawn.beyond && drawn.notes.iter().any(|n| n == "a: goes up to 1e6 at step 50000, beyond the picture"),
            "{:?}",
            drawn.notes
        );
        assert!(drawn.notes.iter().any(|n| n.starts_with("a: 1 step has no finite number")), "{:?}", drawn.notes);
        let [left, top, right, bottom] = BOX;
        for class in ["raw", "line", "held"] {
            let all = points(&drawn.inner, class);
            assert!(all.len() == 1 && all[0].len() > 1 && all[0].len() <= 2 * 240, "{class}: {all:?}");
            assert!(all[0].iter().all(|(x, y)| (left..=right).contains(x) && (top..=bottom).contains(y)), "{class}");
        }
        let text =
            stacked(&[chart("loss", &train, &held_out), chart("flat", &flat, &empty), chart("none", &empty, &empty)])
                .unwrap();
        assert!(text.len() < 24_000 && !text.contains("NaN") && !text.contains("none</text>"), "{} bytes", text.len());
        assert!(stacked(&[chart("none", &empty, &empty)]).is_none());
        // A line that never moves lies in the middle.
        let flat = chart("flat", &flat, &empty).drawn().unwrap();
        assert!(points(&flat.inner, "line")[0].iter().all(|p| (p.1 - (top + bottom) / 2.0).abs() < 0.2));
    }
}
