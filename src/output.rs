//! Files of a run, and numbers for people.

use crate::backend::DeviceMemory;
use crate::error::{Error, Result};
use crate::note;
use serde_json::{Map, Value};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A new folder that a run fills: `config.toml`, `metrics.jsonl`, and in the end the model.
///
/// Dropped before its first line of metrics, it takes its files away again: a run that could not begin leaves nothing,
/// and the same command can be given again.
pub struct RunDir {
    path: PathBuf,
    metrics: File,
    /// Whether the folder was there before.
    existed: bool,
    begun: bool,
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.begun {
            return;
        }
        // The error that ends the run is the one to report, whatever happens here.
        for name in ["metrics.jsonl", "config.toml"] {
            let _ = fs::remove_file(self.path.join(name));
        }
        if !self.existed {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

impl RunDir {
    /// Makes `path`, which must not exist or be empty, and writes `config.toml`.
    pub fn create(path: &Path, config: &str) -> Result<Self> {
        let existed = path.exists();
        create_empty_dir(path)?;
        let file = path.join("metrics.jsonl");
        let metrics = match File::create(&file).map_err(Error::io(&file, "create")) {
            Ok(metrics) => metrics,
            Err(e) => {
                if !existed {
                    let _ = fs::remove_dir(path);
                }
                return Err(e);
            }
        };
        let this = Self { path: path.to_owned(), metrics, existed, begun: false };
        write_atomic(&path.join("config.toml"), config.as_bytes())?;
        Ok(this)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line to `metrics.jsonl`.
    pub fn log(&mut self, row: &Map<String, Value>) -> Result<()> {
        self.begun = true;
        let line = serde_json::to_string(row).expect("a map of plain values") + "\n";
        self.metrics.write_all(line.as_bytes()).map_err(Error::io(self.path.join("metrics.jsonl"), "write"))
    }
}

/// Makes `path`; refuses one that holds anything.
pub fn create_empty_dir(path: &Path) -> Result<()> {
    refuse_occupied(path)?;
    fs::create_dir_all(path).map_err(Error::io(path, "create the folder"))
}

/// Refuses a file, or a folder that holds anything: said before the work, not after it.
pub fn refuse_occupied(path: &Path) -> Result<()> {
    let why = match fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            Some(_) => "the output folder exists and is not empty; name a new one or remove it",
            None => return Ok(()),
        },
        Err(_) if path.is_file() => "is a file; name a new folder",
        Err(_) if path.exists() => "exists and cannot be read; name a new folder",
        Err(_) => return Ok(()),
    };
    Err(Error::file(path, why))
}

/// Writes a sibling, then renames it: readers see the old file or the new one.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut tmp = beside(path)?;
    tmp.write_all(bytes).map_err(Error::io(path, "write"))?;
    tmp.as_file().sync_all().map_err(Error::io(path, "write"))?;
    tmp.persist(path).map_err(|e| Error::io(path, "rename into place")(e.error))?;
    Ok(())
}

/// Refuses a path that no file can be written to: said before the work, not after it.
pub fn check_target(path: &Path) -> Result<()> {
    beside(path).map(drop)
}

/// A temporary file that can be renamed to `path`; gone when dropped.
fn beside(path: &Path) -> Result<tempfile::NamedTempFile> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() {
        return Err(Error::file(path, "is a folder; name a file"));
    }
    if !dir.is_dir() {
        return Err(Error::file(path, format!("its folder {} does not exist; make it first", dir.display())));
    }
    tempfile::NamedTempFile::new_in(dir).map_err(Error::io(path, "write a file beside"))
}

/// `1.5 GiB`.
pub fn bytes(n: usize) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = (0..units.len() - 1).take_while(|i| n as f64 >= 1024f64.powi(*i as i32 + 1)).count();
    format!("{:.*} {}", usize::from(step > 0), n as f64 / 1024f64.powi(step as i32), units[step])
}

/// Prints what a run is about to take: the sum, what is in use and free on the device, and the largest parts.
pub fn print_memory(table: &[(String, usize)], device: Option<DeviceMemory>) {
    let mib = |bytes: usize| bytes >> 20;
    let beside = device.map_or_else(String::new, |d| {
        format!(", {} MiB in use already (program and data), {} MiB free", mib(d.used), mib(d.free))
    });
    note!("memory: {} MiB planned{beside}", mib(table.iter().map(|(_, b)| b).sum()));
    for (name, size) in largest(table, 8) {
        note!("  {:>10}  {name}", bytes(size));
    }
}

/// The `n` largest entries of a memory table, equal names added up, the rest as one.
fn largest(table: &[(String, usize)], n: usize) -> Vec<(String, usize)> {
    let mut sums: Vec<(String, usize)> = Vec::new();
    for (name, bytes) in table {
        match sums.iter_mut().find(|(k, _)| k == name) {
            Some((_, sum)) => *sum += bytes,
            None => sums.push((name.clone(), *bytes)),
        }
    }
    sums.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let rest: usize = sums.iter().skip(n).map(|(_, b)| b).sum();
    sums.truncate(n);
    if rest > 0 {
        sums.push(("everything else".into(), rest));
    }
    sums
}
