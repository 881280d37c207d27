//! A file of tuned choices: which algorithm each shape of product runs by, on one device with one version of the library.
//!
//! A choice decides the last bits of a result, and which algorithm is fastest is a matter of a run's luck. So a choice is made
//! once, by whoever needs it first, and never changes: runs that name the same file compute the same bits. Lines are added
//! under a lock, so that runs side by side agree too.
//! ```text
//! fusedpo matmul plans 1
//! sm_90-NVIDIA_H100-cublaslt130100
//! m896 n4864 k2048 ... <tab> 16 hexadecimal digits, eight times <tab> checksum
//! ```

use crate::error::{Error, Result};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const HEAD: &str = "fusedpo matmul plans 1";

/// An algorithm, as the library describes it to itself.
pub(super) type Choice = [u64; 8];

/// An open file of choices.
pub(super) struct Plans {
    path: PathBuf,
    file: File,
    device: String,
    known: HashMap<String, Choice>,
}

impl Plans {
    /// Opens `path`, or makes it, for `device` (which names the library's version too). Errors: a file of another device, or
    /// one that is damaged.
    pub fn open(path: &Path, device: &str) -> Result<Plans> {
        let file = File::options().read(true).append(true).create(true).open(path).map_err(Error::io(path, "open"))?;
        // Reading a pipe would wait for its other end.
        if !file.metadata().map_err(Error::io(path, "open"))?.is_file() {
            return Err(Error::file(path, "is not a regular file; name another"));
        }
        let mut this = Plans { path: path.to_owned(), file, device: device.to_owned(), known: HashMap::new() };
        this.locked(|this| this.read())?;
        Ok(this)
    }

    /// The choice for `shape`: the one in the file, or what `tune` finds, from then on the one in the file.
    pub fn choose(&mut self, shape: &str, tune: impl FnOnce() -> Result<Choice>) -> Result<Choice> {
        debug_assert!(!shape.contains(['\t', '\n']));
        if let Some(choice) = self.known.get(shape) {
            return Ok(*choice);
        }
        self.locked(|this| {
            // Somebody else may have been faster.
            this.read()?;
            if let Some(choice) = this.known.get(shape) {
                return Ok(*choice);
            }
            let choice = tune()?;
            let words: String = choice.iter().map(|w| format!("{w:016x}")).collect();
            let line = format!("{shape}\t{words}");
            this.append(&format!("{line}\t{:08x}\n", crc32fast::hash(line.as_bytes())))?;
            this.known.insert(shape.to_owned(), choice);
            Ok(choice)
        })
    }

    fn locked<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.file.lock().map_err(Error::io(&self.path, "lock"))?;
        let done = f(self);
        let unlocked = self.file.unlock().map_err(Error::io(&self.path, "unlock"));
        done.and_then(|done| unlocked.map(|()| done))
    }

    fn append(&mut self, line: &str) -> Result<()> {
        self.file.write_all(line.as_bytes()).map_err(Error::io(&self.path, "write"))
    }

    /// Reads all of it; an empty file is begun. The caller holds the lock.
    fn read(&mut self) -> Result<()> {
        let mut text = String::new();
        self.file.seek(SeekFrom::Start(0)).map_err(Error::io(&self.path, "read"))?;
        self.file.read_to_string(&mut text).map_err(Error::io(&self.path, "read"))?;
        // Whoever wrote the last line may have been killed half-way; nobody has used such a choice.
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        if whole < text.len() {
            self.file.set_len(whole as u64).map_err(Error::io(&self.path, "write"))?;
        }
        let mut lines = text[..whole].lines();
        let bad = |why: String| Error::file(&self.path, why);
        match (lines.next(), lines.next()) {
            (None, _) => {
                let device = &self.device;
                return self.append(&format!("{HEAD}\n{device}\n"));
            }
            (Some(HEAD), None) => {
                let device = format!("{}\n", self.device);
                return self.append(&device);
            }
            (Some(HEAD), Some(device)) if device == self.device => {}
            (Some(HEAD), Some(device)) => {
                let why = format!("has plans for {device}, this is {}; name another file", self.device);
                return Err(bad(why));
            }
            _ => return Err(bad("is not a file of matmul plans; name another".into())),
        }
        for (i, line) in lines.enumerate() {
            let (shape, choice) = entry(line)
                .ok_or_else(|| bad(format!("line {} is damaged; remove the file, or name another", i + 3)))?;
            self.known.insert(shape.to_owned(), choice);
        }
        Ok(())
    }
}

fn entry(line: &str) -> Option<(&str, Choice)> {
    let (body, sum) = line.rsplit_once('\t')?;
    let (shape, words) = body.split_once('\t')?;
    if u32::from_str_radix(sum, 16).ok()? != crc32fast::hash(body.as_bytes()) || words.len() != 128 {
        return None;
    }
    let mut choice = [0; 8];
    for (i, word) in choice.iter_mut().enumerate() {
        *word = u64::from_str_radix(words.get(16 * i..16 * (i + 1))?, 16).ok()?;
    }
    Some((shape, choice))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn never() -> Result<Choice> {
        panic!("tuned what is known")
    }

    #[test]
    fn a_choice_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plans");
        let choice = [u64::MAX, 0, 1, 2, 3, 4, 5, 0x8000_0000_0000_0000];
        let mut one = Plans::open(&path, "gpu-a").unwrap();
        let mut other = Plans::open(&path, "gpu-a").unwrap();
        assert_eq!(one.choose("m1 n2", || Ok(choice)).unwrap(), choice);
        assert_eq!(one.choose("m1 n2", never).unwrap(), choice);
        assert_eq!(other.choose("m1 n2", never).unwrap(), choice, "opened before it was made");
        assert_eq!(Plans::open(&path, "gpu-a").unwrap().choose("m1 n2", never).unwrap(), choice);
        let refused = one.choose("m3", || Err(Error::Device("no".into()))).unwrap_err();
        assert_eq!(refused.to_string(), "no");
        assert_eq!(other.choose("m3", || Ok([7; 8])).unwrap(), [7; 8], "a failed choice leaves no lock and no line");
    }

    #[test]
    fn runs_side_by_side_agree() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plans");
        let luck = AtomicU64::new(0);
        let run = || {
            let mut plans = Plans::open(&path, "gpu").unwrap();
            let tune = || Ok([luck.fetch_add(1, Ordering::Relaxed); 8]);
            (0..20).map(|i| plans.choose(&format!("shape {i}"), tune).unwrap()).collect::<Vec<_>>()
        };
        let all: Vec<_> = std::thread::scope(|s| {
            let runs: Vec<_> = (0..4).map(|_| s.spawn(run)).collect();
            runs.into_iter().map(|r| r.join().unwrap()).collect()
        });
        assert!(all.iter().all(|r| *r == all[0]));
        assert_eq!(luck.into_inner(), 20, "every shape was tuned once");
    }

    #[test]
    fn other_devices_other_files_and_damage_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plans");
        Plans::open(&path, "gpu-a").unwrap().choose("m1", || Ok([1; 8])).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let why = |text: &str, device: &str| {
            std::fs::write(&path, text).unwrap();
            let error = Plans::open(&path, device).err().expect("refused");
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        assert!(why(&text, "gpu-b").ends_with("plans: has plans for gpu-a, this is gpu-b; name another file"));
        assert!(why("[model]\n", "gpu-a").contains("is not a file of matmul plans"));
        assert!(why(&text.replace("m1\t0000", "m1\t0001"), "gpu-a").contains("line 3 is damaged"));
        assert!(why(&(text.clone() + "\n"), "gpu-a").contains("line 4 is damaged"));
        assert!(why(&text, "gpu-c").contains("this is gpu-c"));
        #[cfg(target_os = "linux")]
        {
            let pipe = dir.path().join("pipe");
            assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
            let error = Plans::open(&pipe, "gpu-a").err().expect("refused").to_string();
            assert!(error.ends_with("pipe: is not a regular file; name another"), "{error}");
        }
        let nowhere = Plans::open(&dir.path().join("no/plans"), "gpu").err().unwrap();
        assert_eq!(nowhere.exit_code(), 2);
    }

    #[test]
    fn a_line_that_was_cut_off_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plans");
        Plans::open(&path, "gpu").unwrap().choose("m1", || Ok([1; 8])).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for cut in [text.len() - 1, text.len() - 100, 30, 24, 5, 0] {
            std::fs::write(&path, &text[..cut]).unwrap();
            assert_eq!(Plans::open(&path, "gpu").unwrap().choose("m1", || Ok([2; 8])).unwrap(), [2; 8], "cut at {cut}");
            assert_eq!(Plans::open(&path, "gpu").unwrap().choose("m1", never).unwrap(), [2; 8]);
        }
    }
}
