//! The pipeline.

use super::admit::Admission;
use super::exclude::Excluded;
use super::groups::Groups;
use super::options::PackOptions;
use super::report::PackReport;
use super::stream::{Outcome, read_all, tokenise_all};
use super::write::{SIDE_FILES, meta, write_shards, write_side_files};
use crate::data::input::Reading;
use crate::data::sidecar::Kept;
use crate::data::text::TextTokenizer;
use crate::error::{Error, Result};
use crate::files::AtomicFolder;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;

/// How far [`pack`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read of the input files.
    pub bytes: u64,
    /// Bytes of the input files.
    pub total_bytes: u64,
    /// Rows grouped.
    pub rows: u64,
    /// Tokens of their prompts and responses.
    pub tokens: u64,
    /// Groups written; 0 until all rows are grouped.
    pub written: u64,
}

/// Groups written between two calls.
const TOLD_EVERY: u64 = 64;

/// Is told now and then how far [`pack`] is; an error ends it.
pub type OnProgress<'a> = dyn FnMut(&Progress) -> Result<()> + Send + 'a;

/// Packs the rows of `o.inputs` into `o.out`; `progress` is called now and then, perhaps from another thread.
///
/// Errors: any input file or row that cannot be used (file and line are named), an output folder that exists, no row left,
/// and what `progress` answers. Nothing is left behind then.
pub fn pack(o: &PackOptions, progress: &mut OnProgress<'_>) -> Result<PackReport> {
    o.check()?;
    let excluded = o.exclude.as_deref().map(Excluded::read).transpose()?;
    let tok = TextTokenizer::load(&o.tokenizer, &o.tokenizer_options)?;
    let total_bytes = o
        .inputs
        .iter()
        .map(|p| std::fs::metadata(p).map(|m| m.len()).map_err(Error::io(p, "open")))
        .sum::<Result<u64>>()?;
    if o.overwrite {
        kept_of(&o.out)?;
    }
    let out = AtomicFolder::create(&o.out, o.overwrite)?;
    let groups = Groups::new(out.path(), o.memory, o.eval_fraction > 0.0);
    let mut admission = Admission::new(o, &tok, groups, excluded);
    let bytes = Arc::new(AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (raw_to, raw_from) = sync_channel(2);
        let (row_to, row_from) = sync_channel::<Result<Vec<Outcome>>>(2);
        let how = Reading { map: o.map.clone(), limits: o.limits, bytes_read: bytes.clone() };
        let (admission, progress) = (&mut admission, &mut *progress);
        scope.spawn(move || read_all(&o.inputs, &how, &raw_to));
        let admitting = scope.spawn(move || -> Result<()> {
            for batch in row_from {
                for outcome in batch? {
                    admission.row(outcome)?;
                }
                let (rows, tokens) = (admission.report.rows_read, admission.tokens);
                progress(&Progress { bytes: bytes.load(Ordering::Relaxed), total_bytes, rows, tokens, written: 0 })?;
            }
            Ok(())
        });
        tokenise_all(o, &tok, raw_from, row_to);
        admitting.join().expect("admitting rows does not panic")
    })
    .map_err(|e| out.as_named(e))?;
    admission.finish()?;
    let Admission { mut report, mut groups, used_template, plain_rows, tokens, .. } = admission;
    if groups.is_empty() {
        let why = report.dropped.iter().map(|(reason, d)| format!("{}: {}", reason.text(), d.rows)).collect::<Vec<_>>();
        let why = if why.is_empty() { "the input has no rows".to_owned() } else { why.join(", ") };
        return Err(Error::file(&o.inputs[0], format!("nothing left to pack of {} rows ({why})", report.rows_read)));
    }
    let mut at = Progress { bytes: total_bytes, total_bytes, rows: report.rows_read, tokens, written: 0 };
    groups.seal(&mut || progress(&at)).map_err(|e| out.as_named(e))?;
    let families = groups.families(&mut || progress(&at)).map_err(|e| out.as_named(e))?;
    let repeats = groups.counts();
    (report.duplicate_pairs, report.contradictory_pairs) = (repeats.duplicate, repeats.contradictory);
    let mut wrote = || {
        at.written += 1;
        if at.written.is_multiple_of(TOLD_EVERY) { progress(&at) } else { Ok(()) }
    };
    write_shards(o, &meta(o, &tok, used_template), (&groups, families), out.path(), &mut report, &mut wrote)
        .map_err(|e| out.as_named(e))?;
    drop(groups);
    report.warn();
    report.warnings.extend(tok.warnings());
    if o.overwrite {
        // Asked again: packing takes its time.
        let kept = kept_of(&o.out)?;
        kept.iter().try_for_each(|name| out.carry(name))?;
        if !kept.is_empty() {
            report.warnings.push(format!(
                "{} reference sidecars of the replaced shards are kept; only shards of the same content use them",
                kept.len()
            ));
        }
    }
    report.note_plain_rows(plain_rows, tok.template.is_some());
    let prompts = prompts(used_template, plain_rows);
    write_side_files(&tok, prompts, out.path(), &report).map_err(|e| out.as_named(e))?;
    out.commit()?;
    Ok(report)
}

/// What the prompts of the rows are, for the model that is trained on them: nothing is said of rows of ids, or without one.
fn prompts(used_template: bool, plain_rows: u64) -> Option<&'static str> {
    match (used_template, plain_rows) {
        (true, _) => Some("chat"),
        (false, 0) => None,
        (false, _) => Some("plain"),
    }
}

/// Only what `pack` writes is removed, by name: whatever else lies there is refused, as it would go with the folder. Sidecars
/// are kept, as hours may have gone into them, and nobody reads one that is not of his shards: their names.
fn kept_of(out: &Path) -> Result<Vec<String>> {
    let Ok(entries) = std::fs::read_dir(out) else { return Ok(Vec::new()) };
    let entries = entries.filter_map(|e| e.ok());
    // Anything that is no file is nothing that pack made, whatever it is called.
    let file = |e: &std::fs::DirEntry| e.file_type().is_ok_and(|kind| kind.is_file());
    let mut names: Vec<(String, bool)> =
        entries.map(|e| (e.file_name().to_string_lossy().into_owned(), file(&e))).collect();
    names.sort();
    if !names.is_empty() && !names.iter().any(|(n, file)| *file && is_shard(n)) {
        let why = "is not a folder of shards, `options.overwrite` leaves it alone; give another `options.out`";
        return Err(Error::file(out, why));
    }
    let ours = |n: &str| {
        let left = n.starts_with(".tmp-") && n.ends_with(".part");
        is_shard(n) || is_sidecar(n) || left || SIDE_FILES.contains(&n)
    };
    match names.iter().find(|(n, file)| !*file || !ours(n)) {
        Some((n, _)) => Err(Error::file(
            out,
            format!("holds {n}, which `options.overwrite` would remove; take it away, or give another `options.out`"),
        )),
        None => Ok(names.into_iter().map(|(n, _)| n).filter(|n| is_sidecar(n)).collect()),
    }
}

/// `train-00000.pref`, as [`write_shards`] names them.
fn is_shard(name: &str) -> bool {
    let number = ["train-", "eval-"].iter().find_map(|split| name.strip_prefix(split)?.strip_suffix(".pref"));
    number.is_some_and(|n| n.len() >= 5 && n.bytes().all(|b| b.is_ascii_digit()))
}

/// `train-00000.pref.ref-0123456789abcdef`, as `reference` names them; those of other kinds likewise.
fn is_sidecar(name: &str) -> bool {
    let kinds = Kept::ALL.into_iter().map(Kept::name).chain(["ref"]);
    kinds.filter_map(|kind| name.split_once(&format!(".{kind}-"))).any(|(shard, key)| {
        is_shard(shard) && key.len() == 16 && key.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}
