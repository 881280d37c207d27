//! The pictures, and the numbers that the page's script reads.

use super::html;
use super::keys::{KNOWN, Known, OTHER, SAME_SCALE, known};
use super::run::Run;
use crate::chart::{BOX, Chart, Drawn, HEIGHT, Line, Series, WIDTH, short, swatch};
use serde_json::{Value, json};
use std::fmt::Write;

/// Share of the steps that a value is smoothed over, both ways, until a reader asks for another.
const SMOOTHING: f64 = 0.02;
/// What a reader may ask for.
const SMOOTHINGS: [f64; 8] = [0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32];

/// A quantity to be drawn.
struct Quantity {
    key: String,
    title: String,
    about: String,
    group: &'static str,
    log: bool,
}

/// HTML of the section, empty where no run has a number; and what the script reads.
pub(super) fn section(runs: &[Run]) -> (String, Value) {
    let sets = sets(runs);
    let mut charts = Vec::new();
    let mut out = String::new();
    let mut group = "";
    for q in quantities(runs) {
        let lines = lines(runs, &q.key, &sets);
        let chart = Chart {
            title: &q.title,
            range: range(runs, &q.key, &sets),
            lines,
            may_be_log: q.log,
            smoothing: SMOOTHING,
        };
        let Some(drawn) = chart.drawn() else { continue };
        if q.group != group {
            let end = if group.is_empty() { "" } else { "</div>\n" };
            let _ = write!(out, "{end}<h3>{}</h3>\n<div class=\"panels\">\n", q.group);
            group = q.group;
        }
        out += &figure(&q, &chart, &drawn, charts.len(), &sets);
        charts.push(numbers(&q, &chart, &drawn));
    }
    if charts.is_empty() {
        return (String::new(), json!({ "charts": [] }));
    }
    let names: Vec<String> = runs.iter().map(|r| crate::say::one_line(&r.name)).collect();
    let numbers = json!({
        "runs": names,
        "sets": sets.iter().map(|s| crate::say::one_line(&set_name(s))).collect::<Vec<_>>(),
        "box": BOX, "width": WIDTH, "height": HEIGHT, "smoothings": SMOOTHINGS,
        "charts": charts,
    });
    (controls(runs, &sets) + &out + "</div>\n", numbers)
}

/// Held-out sets of all runs, each once.
fn sets(runs: &[Run]) -> Vec<String> {
    let mut sets: Vec<String> = Vec::new();
    for set in runs.iter().flat_map(|r| &r.held_out).map(|h| &h.set) {
        if !sets.contains(set) {
            sets.push(set.clone());
        }
    }
    sets
}

fn set_name(set: &str) -> String {
    if set.is_empty() { "held out".to_owned() } else { format!("held out: {set}") }
}

/// Those that are known, in their order, then what else the runs wrote down.
fn quantities(runs: &[Run]) -> Vec<Quantity> {
    let there = |key: &str| runs.iter().any(|r| r.curves.iter().any(|c| c.key == key));
    let of = |k: &Known| Quantity {
        key: k.key.to_owned(),
        title: k.title.to_owned(),
        about: k.about.to_owned(),
        group: k.group,
        log: k.log,
    };
    let mut all: Vec<Quantity> = KNOWN.iter().filter(|k| there(k.key)).map(of).collect();
    let mut others: Vec<&str> = Vec::new();
    for curve in runs.iter().flat_map(|r| &r.curves).filter(|c| known(&c.key).is_none()) {
        if !others.contains(&curve.key.as_str()) {
            others.push(&curve.key);
        }
    }
    // Time and memory stand with their like.
    let speed = |key: &str| ["_bytes", "_seconds", "_per_second"].iter().any(|end| key.ends_with(end));
    let group = KNOWN.last().map_or(OTHER, |k| k.group);
    let other = |key: &str, group| Quantity {
        key: key.to_owned(),
        title: key.to_owned(),
        about: String::new(),
        group,
        log: false,
    };
    all.extend(others.iter().filter(|k| speed(k)).map(|k| other(k, group)));
    all.extend(others.iter().filter(|k| !speed(k)).map(|k| other(k, OTHER)));
    all
}

fn lines<'a>(runs: &'a [Run], key: &str, sets: &[String]) -> Vec<Line<'a>> {
    let mut lines = Vec::new();
    for (number, run) in runs.iter().enumerate() {
        let mut put = |set: Option<usize>, series: Option<&'a Series>| {
            lines.extend(series.map(|series| Line { run: number, name: &run.name, set, series }));
        };
        put(None, run.series(key, None));
        for (i, set) in sets.iter().enumerate() {
            put(Some(i), run.series(key, Some(set)));
        }
    }
    lines
}

/// Of two keys that are compared the values of both; of others what the picture chooses.
fn range(runs: &[Run], key: &str, sets: &[String]) -> Option<(f64, f64)> {
    let pair = SAME_SCALE.iter().find(|pair| pair.contains(&key))?;
    let all: Vec<Line<'_>> = pair.iter().flat_map(|key| lines(runs, key, sets)).collect();
    let low = all.iter().filter_map(|l| l.series.low()).map(|p| p.1).reduce(f64::min)?;
    let high = all.iter().filter_map(|l| l.series.high()).map(|p| p.1).reduce(f64::max)?;
    Some((low, high))
}

/// The legend, which hides runs where there is a script, and how much is smoothed.
fn controls(runs: &[Run], sets: &[String]) -> String {
    let mut out = String::from("<div class=\"controls\">\n<ul class=\"legend\" aria-label=\"Runs\">\n");
    for (i, run) in runs.iter().enumerate() {
        let _ = writeln!(
            out,
            "<li><label><input type=\"checkbox\" checked hidden data-hides=\"hide{i}\"> {} {}</label></li>",
            swatch(i, None),
            html::text(&run.name)
        );
    }
    for (i, set) in sets.iter().enumerate() {
        let _ = writeln!(
            out,
            "<li><label><input type=\"checkbox\" checked hidden data-hides=\"without{}\"> {} {}</label></li>",
            i % crate::chart::SHAPES,
            swatch(0, Some(i)),
            html::text(&set_name(set))
        );
    }
    let at = SMOOTHINGS.iter().position(|s| *s == SMOOTHING).unwrap_or_default();
    let _ = write!(
        out,
        "</ul>\n<label class=\"smoothing\" hidden>Smoothed over <input type=\"range\" id=\"smoothing\" min=\"0\" max=\"{}\" step=\"1\" \
         value=\"{at}\"> <output for=\"smoothing\">{} %</output></label>\n</div>\n\
         <p class=\"quiet\">Faint: every step, or the least and the largest of neighbours. Bold: their mean, each neighbour weighing less the \
         further it is. Points: held-out rows.</p>\n",
        SMOOTHINGS.len() - 1,
        100.0 * SMOOTHING
    );
    out
}

fn figure(q: &Quantity, chart: &Chart<'_>, drawn: &Drawn, number: usize, sets: &[String]) -> String {
    let (title, about) = (html::text(&q.title), html::text(&q.about));
    let mut out = format!(
        "<figure class=\"panel\" data-chart=\"{number}\">\n<figcaption><h4>{title}</h4><p>{about}</p></figcaption>\n\
         <div class=\"plot\">{}</div>\n",
        drawn.svg(&format!("chart{number}"), &html::text(&drawn.words))
    );
    if !drawn.notes.is_empty() {
        let items: String = drawn.notes.iter().map(|n| format!("<li>{}</li>", html::text(n))).collect();
        let _ = writeln!(out, "<ul class=\"notes\">{items}</ul>");
    }
    let head = ["", "first", "last", "least", "largest"].map(str::to_owned);
    let at = |point: Option<(f64, f64)>| {
        point.map_or("–".to_owned(), |(x, y)| format!("{} <small>at {x}</small>", short(y)))
    };
    let row = |l: &Line<'_>| {
        let set = l.set.map_or_else(String::new, |i| format!(", {}", html::text(&set_name(&sets[i]))));
        let s = l.series;
        let name = format!("{} {}{set}", swatch(l.run, l.set), html::text(l.name));
        vec![name, at(s.first), at(s.last), at(s.low()), at(s.high())]
    };
    let rows: Vec<Vec<String>> = chart.lines.iter().map(row).collect();
    let _ = writeln!(
        out,
        "<div class=\"under\"><details><summary>Numbers</summary>{}</details>\
         <button type=\"button\" class=\"save\" hidden aria-label=\"Save SVG: {title}\">Save SVG</button></div>\n</figure>",
        html::table(&format!("Numbers of {}", q.title), &head, &rows)
    );
    out
}

/// What the script needs of a panel: scales, and per line the buckets.
fn numbers(q: &Quantity, chart: &Chart<'_>, drawn: &Drawn) -> Value {
    let line = |l: &Line<'_>| {
        let b = l.series.buckets();
        let of = |f: fn(&crate::chart::Bucket) -> f64| b.iter().map(|b| number(f(b))).collect::<Vec<Value>>();
        let mut line = json!({
            "run": l.run,
            "set": l.set,
            "from": b.iter().map(|b| exact(b.first)).collect::<Vec<Value>>(),
            "mean": of(crate::chart::Bucket::mean),
            "width": l.series.width(),
            "end": b.last().map(|b| b.count),
        });
        if l.series.width() > 1 {
            line["to"] = b.iter().map(|b| exact(b.last)).collect();
            (line["low"], line["high"]) = (of(|b| b.low.1).into(), of(|b| b.high.1).into());
        }
        let gaps: Vec<usize> = (0..b.len()).filter(|i| b[*i].after_gap).collect();
        if !gaps.is_empty() {
            line["gaps"] = json!(gaps);
        }
        line
    };
    let scale = |s: crate::chart::Scale| json!([exact(s.low), exact(s.high), s.log]);
    json!({
        "title": crate::say::one_line(&q.title),
        "x": scale(drawn.x),
        "y": scale(drawn.y),
        "beyond": drawn.beyond,
        "lines": chart.lines.iter().filter(|l| !l.series.is_empty()).map(line).collect::<Vec<_>>(),
    })
}

/// Five digits are more than a picture shows.
fn number(x: f64) -> Value {
    exact(format!("{x:.4e}").parse().unwrap_or(x))
}

/// A whole number is written without its `.0`.
fn exact(x: f64) -> Value {
    match x.fract() == 0.0 && x.abs() < 9e15 {
        true => json!(x as i64),
        false => json!(x),
    }
}
