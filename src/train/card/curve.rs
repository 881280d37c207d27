//! A run's curves as a picture: SVG that needs nothing else, in the reader's light or dark colours.

use std::fmt::Write;

/// Points of a line at most: what lies between them is averaged.
const MOST: usize = 240;
/// Where a panel's plot begins, in pixels.
const LEFT: f64 = 64.0;
/// How wide it is.
const WIDTH: f64 = 640.0;
/// How high.
const HEIGHT: f64 = 130.0;
/// From its end to the next.
const GAP: f64 = 46.0;

const STYLE: &str = "<style>text{font:12px system-ui,sans-serif;fill:#333}.g{stroke:#ddd}.t{stroke:#2563eb;stroke-width:1.5;fill:none}\
.e{stroke:#d97706;stroke-dasharray:4 3;fill:none}.d{fill:#d97706}\
@media (prefers-color-scheme:dark){text{fill:#ccc}.g{stroke:#444}.t{stroke:#60a5fa}.e{stroke:#fbbf24}.d{fill:#fbbf24}}</style>\n";

/// A quantity over the steps, of training and of what was held out: (step, value).
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Curve {
    /// What it is.
    pub title: &'static str,
    /// While training.
    pub train: Vec<(f64, f64)>,
    /// Held out.
    pub held_out: Vec<(f64, f64)>,
}

impl Curve {
    fn values(&self) -> impl Iterator<Item = f64> + Clone {
        self.train.iter().chain(&self.held_out).map(|(_, y)| *y)
    }

    fn last_step(&self) -> f64 {
        self.train.iter().chain(&self.held_out).map(|(x, _)| *x).fold(1.0, f64::max)
    }
}

/// The means of at most [`MOST`] parts of a line, as even as they can be.
fn thinned(line: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let parts = line.len().min(MOST);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        (part.iter().map(|p| p.0).sum::<f64>() / n, part.iter().map(|p| p.1).sum::<f64>() / n)
    };
    (0..parts).map(|i| mean(&line[i * line.len() / parts..(i + 1) * line.len() / parts])).collect()
}

/// A number in four digits.
pub(super) fn short(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        size if !(1e-3..1e5).contains(&size) => format!("{x:.2e}"),
        size => format!("{x:.0$}", (3.0 - size.log10().floor()).clamp(0.0, 4.0) as usize),
    }
}

/// The curves that have a line, one below the other; `None`: none has.
pub(super) fn svg(curves: &[Curve]) -> Option<String> {
    let finite = |line: &[(f64, f64)]| line.iter().copied().filter(|(_, y)| y.is_finite()).collect::<Vec<_>>();
    let curves =
        curves.iter().map(|c| Curve { title: c.title, train: finite(&c.train), held_out: finite(&c.held_out) });
    let curves: Vec<Curve> = curves.filter(|c| c.train.len() + c.held_out.len() > 1).collect();
    let (width, height) = (LEFT + WIDTH + 16.0, curves.len() as f64 * (HEIGHT + GAP) + 8.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-label=\"{}, over steps\">\n{STYLE}",
        curves.iter().map(|c| c.title).collect::<Vec<_>>().join(", ")
    );
    for (i, curve) in curves.iter().enumerate() {
        panel(&mut out, curve, 24.0 + i as f64 * (HEIGHT + GAP));
    }
    out += "</svg>\n";
    (!curves.is_empty()).then_some(out)
}

fn panel(out: &mut String, curve: &Curve, top: f64) {
    let (low, high) = curve.values().fold((f64::MAX, f64::MIN), |(l, h), y| (l.min(y), h.max(y)));
    // A line that never moves lies in the middle.
    let (low, high) = if high > low { (low, high) } else { (low - 0.5, high + 0.5) };
    let last = curve.last_step();
    let at = |(x, y): (f64, f64)| (LEFT + WIDTH * x / last, top + HEIGHT * (1.0 - (y - low) / (high - low)));
    let points = |line: &[(f64, f64)]| {
        let points = line.iter().map(|p| at(*p)).map(|(x, y)| format!("{x:.1},{y:.1}"));
        points.collect::<Vec<_>>().join(" ")
    };
    // Writing to text does not fail.
    let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"{}\">{}</text>", top - 8.0, curve.title);
    for value in [low, (low + high) / 2.0, high] {
        let y = at((0.0, value)).1;
        let _ = writeln!(
            out,
            "<line class=\"g\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT + WIDTH,
            LEFT - 8.0,
            y + 4.0,
            short(value)
        );
    }
    let (right, below) = (LEFT + WIDTH, top + HEIGHT + 15.0);
    let _ = writeln!(out, "<text x=\"{right}\" y=\"{below}\" text-anchor=\"end\">step {last}</text>");
    let _ = writeln!(out, "<polyline class=\"t\" points=\"{}\"/>", points(&thinned(&curve.train)));
    let held_out = thinned(&curve.held_out);
    if !held_out.is_empty() {
        let _ = writeln!(out, "<polyline class=\"e\" points=\"{}\"/>", points(&held_out));
        for (x, y) in held_out.into_iter().map(at) {
            let _ = writeln!(out, "<circle class=\"d\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (x, want) in [
            (0.0, "0"),
            (std::f64::consts::LN_2, "0.6931"),
            (-1.5, "-1.500"),
            (1234.5, "1234"),
            (1e-5, "1.00e-5"),
            (2.5e6, "2.50e6"),
        ] {
            assert_eq!(short(x), want);
        }
    }

    /// Every point lies in its panel; what is no number is left out; lines are no longer than a picture can show.
    #[test]
    fn lines_lie_in_their_panels() {
        let train = (1..=100_000).map(|i| (f64::from(i), if i == 7 { f64::NAN } else { f64::from(i).sin() })).collect();
        let loss = Curve { title: "loss", train, held_out: vec![(0.0, 0.7), (100_000.0, 0.1)] };
        let flat = Curve { title: "flat", train: vec![(1.0, 2.0), (2.0, 2.0)], held_out: vec![] };
        let text = svg(&[loss, flat, Curve { title: "empty", ..Default::default() }]).unwrap();
        assert!(text.len() < 20_000 && !text.contains("NaN") && !text.contains("empty"), "{} bytes", text.len());
        for (points, top) in text.split("points=\"").skip(1).zip([24.0, 24.0, 24.0 + HEIGHT + GAP]) {
            let points: Vec<&str> = points.split('"').next().unwrap().split(' ').collect();
            assert!(points.len() <= MOST);
            for (x, y) in points.iter().map(|p| p.split_once(',').unwrap()) {
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((LEFT..=LEFT + WIDTH).contains(&x) && (top - 0.1..=top + HEIGHT + 0.1).contains(&y), "{x} {y}");
            }
        }
        assert_eq!(svg(&[Curve::default()]), None);
    }
}
