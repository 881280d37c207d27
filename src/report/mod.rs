//! Runs as a page: one HTML file that needs no network, no script to be read, and no trust in what the runs' data says.
//!
//! [`page`] reads the folders of runs, whatever became of them, and writes the same bytes for the same folders. Pictures are drawn here
//! ([`chart`]); a small script adds what a picture cannot do: pointing, smoothing, hiding runs, saving a picture. The
//! page's policy forbids every other script, and every request.

mod config;
mod curves;
mod data;
mod diff;
mod held_out;
mod html;
mod keys;
mod overview;
mod pairs;
mod run;
mod samples;

use crate::chart;
use crate::error::{Error, Result};
use crate::observe::{Event, Observe};
use run::Run;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// Runs on one page, at most: twice as many as there are colours.
pub const MOST_RUNS: usize = 2 * chart::COLOURS;

/// Buckets of a series, of all runs of a page together: what keeps it small.
const BUCKETS: usize = 1600;
/// Of one run.
const BUCKETS_OF_ONE: usize = 800;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page of the runs in `folders`, in their order. What a reader should know of a folder stands on it, and `observe` is warned.
/// `typed` turns names of options, as the library writes them in a data report's warnings, into what its user types.
///
/// # Errors
/// [`Error::Usage`] for no run, one that is named twice, or more than [`MOST_RUNS`]; [`Error::File`] for a folder that is no run's, whose
/// metrics cannot be read, or that a newer version wrote.
pub fn page(folders: &[PathBuf], typed: &dyn Fn(&str) -> String, observe: &mut dyn Observe) -> Result<String> {
    if folders.is_empty() || folders.len() > MOST_RUNS {
        let why = format!("{} runs: a page shows 1 to {MOST_RUNS}; name fewer", folders.len());
        return Err(Error::usage(why));
    }
    let names = run::names(folders)?;
    let most = (BUCKETS / folders.len()).min(BUCKETS_OF_ONE);
    let mut runs = Vec::new();
    for (folder, name) in folders.iter().zip(names) {
        let mut run = Run::read(folder, most)?;
        run.name = name;
        for note in &run.notes {
            observe.tell(&Event::Warning(&format!("{}: {note}", folder.display())))?;
        }
        runs.push(run);
    }
    Ok(written(&runs, typed))
}

fn written(runs: &[Run], typed: &dyn Fn(&str) -> String) -> String {
    let (curves, numbers) = curves::section(runs);
    let sections = [
        ("overview", "Overview", overview::inner(runs)),
        ("curves", "Curves", curves),
        ("held-out", "Held out", held_out::inner(runs)),
        ("samples", "Samples", samples::inner(runs)),
        ("pairs", "Pairs", pairs::inner(runs)),
        ("configuration", "Configuration", config::inner(runs)),
        ("data", "Data", data::inner(runs, typed)),
    ];
    let there: Vec<_> = sections.into_iter().filter(|(_, _, inner)| !inner.is_empty()).collect();
    let names: Vec<String> = runs.iter().map(|r| html::text(&r.name)).collect();
    let title = match names.as_slice() {
        [name] => name.clone(),
        names => format!("{} runs: {}", names.len(), names.join(", ")),
    };
    let links: String = there.iter().map(|(id, title, _)| format!("<li><a href=\"#{id}\">{title}</a></li>")).collect();
    let body: String = there.iter().map(|(id, title, inner)| html::section(id, title, inner)).collect();
    let style = format!("{}{STYLE}", chart::STYLE);
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        digest(&style),
        digest(SCRIPT)
    );
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"generator\" content=\"fusedpo {}\">\n\
         <title>{title} - fusedpo report</title>\n<style>{style}</style>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#main\">To the content</a>\n<header>\n<p class=\"brand\">fusedpo report</p>\n<h1>{title}</h1>\n\
         <nav aria-label=\"Sections\"><ul>{links}</ul></nav>\n</header>\n<main id=\"main\">\n{body}</main>\n\
         <script type=\"application/json\" id=\"numbers\">{}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION"),
        html::json(&numbers)
    )
}

/// SHA-256 in base64, as a page's policy names what may stand in it.
fn digest(text: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let hash = Sha256::digest(text);
    let sextets = |three: &[u8]| {
        let bits = three.iter().chain([0; 2].iter()).take(3).fold(0u32, |all, byte| all << 8 | u32::from(*byte));
        let letters = (0..4).map(move |i| LETTERS[(bits >> (18 - 6 * i)) as usize & 63] as char);
        letters.take(three.len() + 1).chain("==".chars().take(3 - three.len())).collect::<String>()
    };
    hash.chunks(3).map(sextets).collect()
}

#[cfg(test)]
mod tests {
    /// By `openssl dgst -sha256 -binary | base64`.
    #[test]
    fn a_policy_names_a_hash() {
        assert_eq!(super::digest(""), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
        assert_eq!(super::digest("abc"), "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
    }
}
