//! Reward over KL as a picture: SVG that needs nothing else, in the reader's light or dark colours.

use super::results::{Results, Row};
use crate::chart::Scale;
use crate::units::decimals;
use std::fmt::Write;

const LEFT: f64 = 72.0;
const TOP: f64 = 24.0;
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 360.0;

/// Runs on the frontier that the legend names, and characters of a name.
const NAMED: usize = 16;
const LONGEST: usize = 64;

const STYLE: &str = "<style>text{font:12px system-ui,sans-serif;fill:#333}.g{stroke:#ddd}.f{stroke:#2563eb;stroke-width:1.5;fill:none}\
.w{stroke:#999}.p{fill:#999}.o{fill:#2563eb}\
@media (prefers-color-scheme:dark){text{fill:#ccc}.g{stroke:#444}.f{stroke:#60a5fa}.w{stroke:#777}.p{fill:#888}.o{fill:#60a5fa}}</style>\n";

/// A point with its intervals.
struct Dot<'a> {
    row: &'a Row,
    number: usize,
    kl: [f64; 3],
    reward: [f64; 3],
}

/// The picture; `None` where no run has both. Each point has its number in the table, from 1, and its name where the pointer rests.
pub fn svg(results: &Results) -> Option<String> {
    let mut dots: Vec<Dot<'_>> = results.runs.iter().enumerate().filter_map(|(i, r)| dot(i + 1, r)).collect();
    let scale = |of: fn(&Dot<'_>) -> [f64; 3]| {
        let ends = dots.iter().flat_map(|d| of(d)).fold((f64::MAX, f64::MIN), |(l, h), x| (l.min(x), h.max(x)));
        Scale::linear(ends.0, ends.1).padded(0.05)
    };
    if dots.is_empty() {
        return None;
    }
    let (kl, reward) = (scale(|d| d.kl), scale(|d| d.reward));
    let x = |value: f64| LEFT + WIDTH * kl.at(value);
    let y = |value: f64| TOP + HEIGHT * (1.0 - reward.at(value));
    let legend = legend(&dots);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"reward over KL divergence, \
         {} runs\">\n{STYLE}",
        LEFT + WIDTH + 24.0,
        legend.1,
        dots.len()
    );
    axes(&mut out, kl, reward);
    // Writing to text does not fail.
    dots.sort_by(|a, b| a.kl[1].total_cmp(&b.kl[1]));
    let line = dots.iter().filter(|d| d.row.on_frontier).map(|d| format!("{:.1},{:.1}", x(d.kl[1]), y(d.reward[1])));
    let _ = writeln!(out, "<polyline class=\"f\" points=\"{}\"/>", line.collect::<Vec<_>>().join(" "));
    for d in &dots {
        let (px, py) = (x(d.kl[1]), y(d.reward[1]));
        let class = if d.row.on_frontier { "o" } else { "p" };
        let _ = writeln!(
            out,
            "<g><title>{}: reward {}, KL {}</title>\
             <line class=\"w\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{py:.1}\" y2=\"{py:.1}\"/>\
             <line class=\"w\" x1=\"{px:.1}\" x2=\"{px:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
             <circle class=\"{class}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"4\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
            escaped(&d.row.name),
            decimals(d.reward[1], 3),
            decimals(d.kl[1], 3),
            x(d.kl[0]),
            x(d.kl[2]),
            y(d.reward[0]),
            y(d.reward[2]),
            px + 6.0,
            py - 6.0,
            d.number
        );
    }
    Some(out + &legend.0 + "</svg>\n")
}

/// The grid, with the ticks' names and the axes'.
fn axes(out: &mut String, kl: Scale, reward: Scale) {
    // Writing to text does not fail.
    let (right, below) = (LEFT + WIDTH, TOP + HEIGHT);
    for (value, name) in reward.ticks(4) {
        let at = TOP + HEIGHT * (1.0 - reward.at(value));
        let _ = writeln!(
            out,
            "<line class=\"g\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
            LEFT - 8.0,
            at + 4.0
        );
    }
    for (value, name) in kl.ticks(5) {
        let (at, low) = (LEFT + WIDTH * kl.at(value), below + 18.0);
        let _ = writeln!(
            out,
            "<line class=\"g\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{below}\"/>\
             <text x=\"{at:.1}\" y=\"{low}\" text-anchor=\"middle\">{name}</text>"
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{}\">reward</text><text x=\"{}\" y=\"{}\" text-anchor=\"end\">KL from the reference, nats a response</text>",
        TOP - 8.0,
        LEFT + WIDTH,
        TOP + HEIGHT + 38.0
    );
}

/// What the signs mean, and the runs on the frontier by their numbers; with the picture's height.
fn legend(dots: &[Dot<'_>]) -> (String, f64) {
    let mut at = TOP + HEIGHT + 62.0;
    let mut out = String::new();
    let mut line = |swatch: &str, text: &str| {
        let (mark, middle) = (LEFT + 5.0, at - 4.0);
        let swatch = match swatch {
            "" => String::new(),
            "w" => format!("<line class=\"w\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{middle}\" y2=\"{middle}\"/>", LEFT + 10.0),
            class => {
                let (left, top) = (mark - 4.0, middle - 4.0);
                format!("<rect class=\"{class}\" x=\"{left}\" y=\"{top}\" width=\"8\" height=\"8\" rx=\"4\"/>")
            }
        };
        let _ = writeln!(out, "{swatch}<text x=\"{}\" y=\"{at}\">{}</text>", LEFT + 18.0, escaped(text));
        at += 18.0;
    };
    line("o", "on the frontier: no other run has at least its reward at no more KL");
    line("p", "another run; numbers are those of the table");
    line("w", "95 % interval");
    let best: Vec<&Dot<'_>> = dots.iter().filter(|d| d.row.on_frontier).collect();
    for d in best.iter().take(NAMED) {
        let name = match d.row.name.char_indices().nth(LONGEST) {
            Some((end, _)) => format!("{}...", &d.row.name[..end]),
            None => d.row.name.clone(),
        };
        let (reward, kl) = (decimals(d.reward[1], 3), decimals(d.kl[1], 3));
        line("", &format!("{}: {name}, reward {reward} at KL {kl}", d.number));
    }
    if best.len() > NAMED {
        line("", &format!("and {} more on it", best.len() - NAMED));
    }
    (out, at)
}

fn dot(number: usize, row: &Row) -> Option<Dot<'_>> {
    let (kl, reward) = row.kl.zip(row.reward)?;
    let (k, r) = (row.kl_ci95.unwrap_or([kl; 2]), row.reward_ci95.unwrap_or([reward; 2]));
    Some(Dot { row, number, kl: [k[0], kl, k[1]], reward: [r[0], reward, r[1]] })
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::options::Stage;

    #[test]
    fn the_picture_has_every_point_and_the_frontier() {
        let row = |name: &str, kl, reward| Row {
            name: name.into(),
            kl: Some(kl),
            kl_ci95: Some([kl - 0.5, kl + 0.5]),
            reward: Some(reward),
            ..Row::default()
        };
        let runs = vec![row("a<b", 1.0, 1.0), row("worse", 3.0, 0.5), Row::default(), row("best", 4.0, 2.0)];
        let mut all = Results { version: 1, stage: Stage::Dpo, varied: Vec::new(), complete: true, runs };
        all.mark_frontier();
        let text = svg(&all).unwrap();
        assert_eq!((text.matches("<circle").count(), text.matches("<circle class=\"o\"").count()), (3, 2));
        assert!(text.contains("a&lt;b: reward 1.000, KL 1.000") && text.contains(">4</text>"), "{text}");
        // Ticks that a person would choose, and what the signs mean.
        for tick in [">1</text>", ">2</text>", ">3</text>", ">4</text>", ">0.5</text>", ">1.5</text>"] {
            assert!(text.contains(tick), "{tick}: {text}");
        }
        for words in [
            "on the frontier: no other run",
            "1: a&lt;b, reward 1.000 at KL 1.000",
            "4: best, reward 2.000",
            "95 % interval",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(!text.contains("2: worse, reward"), "the legend names those on the frontier");
        let points = text.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(points.split(' ').count(), 2, "{points}");
        assert!(!text.contains("NaN") && text.ends_with("</svg>\n"));
        all.runs = vec![Row::default()];
        assert!(svg(&all).is_none());
        all.runs = vec![row("one", 0.0, 0.0)];
        assert!(!svg(&all).unwrap().contains("NaN"));
    }
}
