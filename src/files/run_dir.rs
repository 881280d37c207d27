//! The folder of a run.

use crate::error::{Error, Result};
use crate::files::atomic::{write, write_new};
use crate::files::folder::{AtomicFolder, MadeFolders, refuse_occupied};
use crate::files::grown::{FileMark, Grown, begins_with};
use crate::files::lock;
use crate::files::open::{MOST_TEXT, read_text};
use crate::files::paths::sync_folder;
use serde_json::{Map, Value};
use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.toml";
const METRICS: &str = "metrics.jsonl";
/// Longest line of it that is read as one.
const MOST_LINE: u64 = 1 << 20;
const LEDGER: &str = "ledger.bin";
const RECORD: &str = "run.json";
const LOG: &str = "run.log";
const EVENTS: &str = "events.out.tfevents.fusedpo";
const SAMPLES: &str = "samples.jsonl";
/// A run that went on many thousand times has a long one.
const MOST_RECORD: u64 = 64 << 20;
const CHECKPOINT: &str = "checkpoint-";
const NON_FINITE: &str = "non-finite";
const BATCH: (&str, &str) = ("step-", ".safetensors");

/// A folder that a run fills: `run.json`, `config.toml`, `metrics.jsonl`, checkpoints, and in the end the model. One process
/// at a time has it: `metrics.jsonl` is locked as long as it lives, and is therefore never replaced, only added to and cut.
///
/// A new one that is dropped before its first line of metrics is written takes its files away again: a run that could not
/// begin leaves nothing, and the same command can be given again. One that was opened again keeps all it has.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Open, and locked, as long as the run lives.
    metrics: Grown,
    /// Where the run has one.
    ledger: RefCell<Option<Grown>>,
    begun: Cell<bool>,
    // Dropped after `drop` has removed what lies in them.
    made: RefCell<MadeFolders>,
}

/// A checkpoint of a run, by its name alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointDir {
    /// Steps taken before it.
    pub step: u64,
    /// `RUN/checkpoint-STEP`.
    pub path: PathBuf,
}

impl RunDir {
    /// Makes `path`, which must not exist or be empty, and writes `config.toml`.
    pub fn create(path: &Path, config: &str) -> Result<Self> {
        Self::begin(path, None, config)
    }

    /// [`RunDir::create`], with `record` as `run.json`, which is written first.
    pub fn begin(path: &Path, record: Option<&[u8]>, config: &str) -> Result<Self> {
        Self::refuse_taken(path)?;
        let made = MadeFolders::make(path)?;
        let metrics = Grown::create(&path.join(METRICS))?;
        // From here on its drop takes away what was made.
        let this = Self::of(path, metrics, made);
        if !lock::take(&this.metrics.file, &path.join(METRICS))? {
            // Whoever has it also writes to it: not ours to take away.
            this.begun.set(true);
            return Err(taken(path));
        }
        if let Some(record) = record {
            write_new(&path.join(RECORD), record)?;
        }
        write_new(&path.join(CONFIG), config.as_bytes())?;
        Ok(this)
    }

    /// Opens the folder of a run that ended, however it ended. Nothing in it is changed yet.
    ///
    /// Errors: another process is at it; it is not there, no run's, or cannot be written to.
    pub fn reopen(path: &Path) -> Result<Self> {
        let metrics = path.join(METRICS);
        if !fs::symlink_metadata(&metrics).is_ok_and(|m| m.is_file()) {
            return Err(Error::file(path, format!("is not the folder of a run: it has no {METRICS}; name another")));
        }
        // For writing, too: so it is known before the work that it can be added to.
        let file = Grown::open(&metrics)?;
        if !lock::take(&file.file, &metrics)? {
            return Err(taken(path));
        }
        // The folder itself may be another's.
        tempfile::Builder::new()
            .prefix(".tmp-")
            .suffix(".part")
            .tempfile_in(path)
            .map_err(Error::io(path, "write to"))?;
        let this = Self::of(path, file, MadeFolders::none());
        this.begun.set(true);
        Ok(this)
    }

    fn of(path: &Path, metrics: Grown, made: MadeFolders) -> Self {
        let (begun, ledger) = (Cell::new(false), RefCell::new(None));
        Self { path: path.to_owned(), metrics, ledger, begun, made: RefCell::new(made) }
    }

    /// Refuses a folder that a run cannot fill, and says so where another is at it: before the work, not after it.
    pub fn refuse_taken(path: &Path) -> Result<()> {
        match lock::taken(&path.join(METRICS)) {
            true => Err(taken(path)),
            false => refuse_occupied(path),
        }
    }

    /// Whether `path` is the folder of a run, whatever became of it.
    pub fn is_there(path: &Path) -> bool {
        fs::symlink_metadata(path.join(METRICS)).is_ok_and(|m| m.is_file())
    }

    /// Whether a process is at work in `path`.
    pub fn is_taken(path: &Path) -> bool {
        lock::taken(&path.join(METRICS))
    }

    /// The text of `path`'s `run.json`; `None` where there is none.
    pub fn read_record(path: &Path) -> Option<String> {
        read_text(&path.join(RECORD), MOST_RECORD).ok()
    }

    /// The text of `path`'s `config.toml`; `None` where there is none.
    pub fn read_config(path: &Path) -> Option<String> {
        read_text(&path.join(CONFIG), MOST_TEXT).ok()
    }

    /// `path`'s `run.log`, to be added to. Errors: it is a link, or cannot be written to.
    pub fn open_log(path: &Path) -> Result<File> {
        let log = path.join(LOG);
        match fs::symlink_metadata(&log) {
            Ok(m) if m.is_file() => File::options().append(true).open(&log).map_err(Error::io(&log, "open")),
            Ok(_) => Err(Error::file(&log, "is not a regular file")),
            Err(_) => Grown::create(&log).map(|log| log.file),
        }
    }

    /// Errors: what lies where the run's event file belongs is none.
    pub fn check_events(&self) -> Result<()> {
        let path = self.path.join(EVENTS);
        match fs::symlink_metadata(&path) {
            Ok(m) if !m.is_file() => Err(Error::file(&path, "is not a regular file")),
            _ => Ok(()),
        }
    }

    /// The run's event file, to be read and added to; `None` where there is none, unless it is to be `made`. Errors: as of
    /// [`RunDir::check_events`] where it is to be made; it cannot be written to.
    pub fn events(&self, made: bool) -> Result<Option<(File, PathBuf)>> {
        let path = self.path.join(EVENTS);
        let file = match fs::symlink_metadata(&path) {
            Ok(m) if m.is_file() => {
                File::options().read(true).append(true).open(&path).map_err(Error::io(&path, "open"))?
            }
            Ok(_) if made => return self.check_events().map(|()| None),
            Ok(_) => return Ok(None),
            Err(_) if made => Grown::create(&path)?.file,
            Err(_) => return Ok(None),
        };
        Ok(Some((file, path)))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces `run.json`.
    pub fn write_record(&self, record: &[u8]) -> Result<()> {
        write(&self.path.join(RECORD), record)
    }

    /// Replaces `config.toml`.
    pub fn write_config(&self, config: &str) -> Result<()> {
        write(&self.path.join(CONFIG), config.as_bytes())
    }

    /// What the file of that name in the folder says; `None`: there is none. Errors: no text, or too long to be the run's own.
    pub fn text(&self, name: &str) -> Option<Result<String>> {
        let path = self.path.join(name);
        path.symlink_metadata().is_ok().then(|| read_text(&path, MOST_TEXT))
    }

    /// Replaces the file of that name in the folder.
    pub fn write_text(&self, name: &str, text: &str) -> Result<()> {
        write(&self.path.join(name), text.as_bytes())
    }

    /// Calls `f` with every line of `metrics.jsonl`.
    pub fn each_row(&self, f: impl FnMut(&Map<String, Value>)) -> Result<()> {
        Self::each_row_of(&self.path, f)
    }

    /// Calls `f` with every line of `path`'s `metrics.jsonl` that is one of ours: of at most a MiB, and an object.
    pub fn each_row_of(path: &Path, mut f: impl FnMut(&Map<String, Value>)) -> Result<()> {
        let path = path.join(METRICS);
        let file = File::open(&path).map_err(Error::io(&path, "read"))?;
        let (mut from, mut line) = (BufReader::new(file), Vec::new());
        while from.by_ref().take(MOST_LINE).read_until(b'\n', &mut line).map_err(Error::io(&path, "read"))? > 0 {
            serde_json::from_slice(&line).iter().for_each(&mut f);
            line.clear();
        }
        Ok(())
    }

    /// Appends a line to `metrics.jsonl`.
    pub fn log(&self, row: &Map<String, Value>) -> Result<()> {
        let line = serde_json::to_string(row).expect("a map of plain values") + "\n";
        self.metrics.append(line.as_bytes())?;
        self.begun.set(true);
        self.made.borrow_mut().keep();
        Ok(())
    }

    /// Appends lines to `samples.jsonl`, which is made where it is not there.
    pub fn log_samples(&self, rows: &[Map<String, Value>]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let path = self.path.join(SAMPLES);
        let mut file = match fs::symlink_metadata(&path) {
            Ok(m) if m.is_file() => File::options().append(true).open(&path).map_err(Error::io(&path, "open"))?,
            Ok(_) => return Err(Error::file(&path, "is not a regular file")),
            Err(_) => Grown::create(&path)?.file,
        };
        let lines: String =
            rows.iter().map(|row| serde_json::to_string(row).expect("a map of plain values") + "\n").collect();
        file.write_all(lines.as_bytes()).map_err(Error::io(&path, "write"))
    }

    /// Takes from `samples.jsonl` what was sampled after `step` steps and later: a run that goes on from there samples again.
    /// A line that is cut short goes, too.
    pub fn cut_samples(&self, step: u64) -> Result<()> {
        let path = self.path.join(SAMPLES);
        if !fs::symlink_metadata(&path).is_ok_and(|m| m.is_file()) {
            return Ok(());
        }
        let file = File::open(&path).map_err(Error::io(&path, "read"))?;
        let mut kept = Vec::new();
        for line in BufReader::new(file).split(b'\n') {
            let line = line.map_err(Error::io(&path, "read"))?;
            let of = serde_json::from_slice::<Value>(&line).ok().and_then(|row| row.get("step")?.as_u64());
            if of.is_some_and(|of| of < step) {
                kept.extend(line);
                kept.push(b'\n');
            }
        }
        match kept.is_empty() {
            true => fs::remove_file(&path).map_err(Error::io(&path, "remove")),
            false => write(&path, &kept),
        }
    }

    /// Makes `metrics.jsonl` and `ledger.bin` survive the machine.
    pub fn keep_metrics(&self) -> Result<()> {
        self.metrics.keep()?;
        self.ledger.borrow().as_ref().map_or(Ok(()), Grown::keep)
    }

    /// What `metrics.jsonl` holds.
    pub fn metrics_mark(&self) -> FileMark {
        self.metrics.mark()
    }

    /// Whether `metrics.jsonl` still begins with what it held at `mark`.
    pub fn has_metrics(&self, mark: FileMark) -> Result<bool> {
        begins_with(&self.path.join(METRICS), mark)
    }

    /// Cuts from `metrics.jsonl` what came after the first `bytes`. Errors: there are fewer.
    pub fn cut_metrics(&self, bytes: u64) -> Result<()> {
        self.metrics.cut(bytes)
    }

    /// `path`'s `ledger.bin`, whether it is there or not.
    pub fn ledger_of(path: &Path) -> PathBuf {
        path.join(LEDGER)
    }

    /// Begins `ledger.bin` with `header`, in place of one that is there. Without a header there is none from then on.
    pub fn begin_ledger(&self, header: Option<&[u8]>) -> Result<()> {
        let path = Self::ledger_of(&self.path);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(&path, "remove")(e)),
            _ => {}
        }
        let Some(header) = header else { return Ok(()) };
        let ledger = Grown::create(&path)?;
        // From here on a folder that is not begun takes it away.
        self.ledger.replace(Some(ledger));
        self.log_pairs(header)
    }

    /// Goes on with `ledger.bin`: cuts what came after the first `bytes`. Errors: there are fewer.
    pub fn cut_ledger(&self, bytes: u64) -> Result<()> {
        let ledger = Grown::open(&Self::ledger_of(&self.path))?;
        ledger.cut(bytes)?;
        self.ledger.replace(Some(ledger));
        Ok(())
    }

    /// Appends to `ledger.bin`, where there is one.
    pub fn log_pairs(&self, bytes: &[u8]) -> Result<()> {
        self.ledger.borrow().as_ref().map_or(Ok(()), |ledger| ledger.append(bytes))
    }

    /// What `ledger.bin` holds, where there is one.
    pub fn ledger_mark(&self) -> Option<FileMark> {
        self.ledger.borrow().as_ref().map(Grown::mark)
    }

    /// Whether `ledger.bin` still begins with what it held at `mark`.
    pub fn has_ledger(&self, mark: FileMark) -> Result<bool> {
        let path = Self::ledger_of(&self.path);
        Ok(fs::symlink_metadata(&path).is_ok_and(|m| m.is_file()) && begins_with(&path, mark)?)
    }

    /// The checkpoints in `path` by their steps, the first taken first.
    pub fn checkpoints(path: &Path) -> Vec<CheckpointDir> {
        let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
        let mut all: Vec<_> = entries
            .flatten()
            .filter_map(|e| {
                let name = e.file_name().into_string().ok()?;
                let step: u64 = name.strip_prefix(CHECKPOINT)?.parse().ok()?;
                // Not `checkpoint-007`: there is one name for each.
                (name == format!("{CHECKPOINT}{step}") && e.path().is_dir())
                    .then(|| CheckpointDir { step, path: e.path() })
            })
            .collect();
        all.sort_by_key(|c| c.step);
        all
    }

    /// A new checkpoint's folder, to be filled.
    pub fn new_checkpoint(&self, step: u64) -> Result<AtomicFolder> {
        AtomicFolder::create(&self.path.join(format!("{CHECKPOINT}{step}")), false)
    }

    /// Takes a checkpoint away: first its name, so that no half of it is ever taken for a whole.
    pub fn remove_checkpoint(&self, checkpoint: &CheckpointDir) -> Result<()> {
        let away = self.path.join(format!(".{CHECKPOINT}{}.removed.tmp", checkpoint.step));
        let _ = fs::remove_dir_all(&away); // an older one, whose removal did not end
        fs::rename(&checkpoint.path, &away).map_err(Error::io(&checkpoint.path, "remove"))?;
        sync_folder(&self.path)?;
        fs::remove_dir_all(&away).map_err(Error::io(&checkpoint.path, "remove"))
    }

    /// The batches of steps without finite numbers that the run in `path` kept: their steps, in order, and their files.
    pub fn kept_batches(path: &Path) -> Vec<(u64, PathBuf)> {
        let folder = path.join(NON_FINITE);
        // Not through a link: what lies there is another's.
        if !fs::symlink_metadata(&folder).is_ok_and(|m| m.is_dir()) {
            return Vec::new();
        }
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        let step = |name: &str| name.strip_prefix(BATCH.0)?.strip_suffix(BATCH.1)?.parse::<u64>().ok();
        let mut all: Vec<_> = entries
            .flatten()
            .filter_map(|e| Some((step(e.file_name().to_str()?)?, e.path())))
            .filter(|(step, path)| *path == Self::batch_of(path.parent().unwrap_or(path), *step))
            .collect();
        all.sort();
        all
    }

    fn batch_of(folder: &Path, step: u64) -> PathBuf {
        folder.join(format!("{}{step}{}", BATCH.0, BATCH.1))
    }

    /// Keeps the batch of `step`; gives its file. The folder of the run stays from then on.
    pub fn keep_batch(&self, step: u64, bytes: &[u8]) -> Result<PathBuf> {
        let folder = self.path.join(NON_FINITE);
        match fs::create_dir(&folder) {
            // Not through a link.
            Err(_) if fs::symlink_metadata(&folder).is_ok_and(|m| m.is_dir()) => {}
            made => made.map_err(Error::io(&folder, "create"))?,
        }
        let path = Self::batch_of(&folder, step);
        write(&path, bytes)?;
        self.begun.set(true);
        self.made.borrow_mut().keep();
        Ok(path)
    }

    /// Takes away the batches of steps after `step`.
    pub fn forget_batches(&self, step: u64) -> Result<()> {
        for (_, path) in Self::kept_batches(&self.path).into_iter().filter(|(of, _)| *of > step) {
            fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
        }
        // Only where nothing is left in it.
        let _ = fs::remove_dir(self.path.join(NON_FINITE));
        Ok(())
    }

    /// Takes away what a process that was killed had begun to write. Nobody else writes here: the folder is taken.
    pub fn sweep(&self) {
        let batches = self.path.join(NON_FINITE);
        let own = fs::symlink_metadata(&batches).is_ok_and(|m| m.is_dir()).then_some(batches);
        for entry in [Some(self.path.clone()), own].into_iter().flatten().filter_map(|p| fs::read_dir(p).ok()).flatten()
        {
            let Ok(entry) = entry else { continue };
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // What stays costs room alone.
            let _ = match () {
                () if name.starts_with(".tmp-") && name.ends_with(".part") => fs::remove_file(entry.path()),
                () if name.starts_with(&format!(".{CHECKPOINT}")) && name.ends_with(".tmp") => {
                    fs::remove_dir_all(entry.path())
                }
                () => Ok(()),
            };
        }
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if !self.begun.get() {
            // The error that ends the run is the one to report, whatever happens here.
            let ledger = self.ledger.borrow().is_some().then_some(LEDGER);
            for name in [METRICS, CONFIG, RECORD, EVENTS].into_iter().chain(ledger) {
                let _ = fs::remove_file(self.path.join(name));
            }
        }
        // A process that was begun meanwhile may hold the file open: whoever goes on with this run next is not to be told that it is
        // at work. Where there are no locks there is nothing to free.
        let _ = self.metrics.file.unlock();
    }
}

fn taken(path: &Path) -> Error {
    Error::file(path, "another run is writing to it; name a new folder")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child has what its parent held when it was begun, until it is another program.
    #[test]
    fn a_run_that_ended_is_free_whoever_has_its_files_open() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::create(&dir.path().join("run"), "").unwrap();
        let (path, child) = (run.path().to_owned(), run.metrics.file.try_clone().unwrap());
        run.begun.set(true);
        assert!(RunDir::is_taken(&path));
        drop(run);
        assert!(!RunDir::is_taken(&path));
        drop(child);
    }

    /// Whoever can write to the folder could plant one after it was seen to be empty.
    #[test]
    #[cfg(unix)]
    fn a_planted_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, planted) = (dir.path().join("victim"), dir.path().join(METRICS));
        fs::write(&victim, "mine").unwrap();
        for target in [victim.as_path(), &dir.path().join("new")] {
            std::os::unix::fs::symlink(target, &planted).unwrap();
            let e = Grown::create(&planted).unwrap_err().to_string();
            assert!(e.contains("metrics.jsonl: cannot create: File exists"), "{e}");
            let e = write_new(&planted, b"x").unwrap_err().to_string();
            assert!(e.contains("metrics.jsonl: cannot create: File exists"), "{e}");
            let e = RunDir::reopen(dir.path()).unwrap_err().to_string();
            assert!(e.contains("is not the folder of a run"), "{e}");
            assert!(planted.is_symlink() && !dir.path().join("new").exists());
            fs::remove_file(&planted).unwrap();
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
    }
}
