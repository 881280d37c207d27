//! The demo's folder: made by it, marked as its own, and replaced by the next demo.

use crate::error::{Error, Result};
use crate::files::{self, MOST_TEXT, MadeFolders, refuse_occupied};
use std::fs;
use std::path::{Path, PathBuf};

/// The file that says whose folder it is.
const MARK: &str = "README.txt";
/// What it says; a folder without exactly this file is not touched.
const TEXT: &str = "\
Made by `fusedpo demo`; the next demo replaces what is listed here.

sft.jsonl          reviews from the demo's grammar
sft-data           the same, packed
init               a Llama with random weights, and its tokenizer
sft                the Llama trained on the reviews
preferences.jsonl  prompts, each with four responses of `sft` and their scores
preferences        the same, packed; a tenth of the prompts is held out
dpo                the Llama trained on the preferences
";
/// Everything that a demo makes.
const MADE: [&str; 7] = ["sft.jsonl", "sft-data", "init", "sft", "preferences.jsonl", "preferences", "dpo"];

/// A folder ready for a demo.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes `path`, or empties what an earlier demo left there. Other files in it stay. Errors: [`Error::File`] where
    /// the folder holds something and is not a demo's.
    pub fn create(path: &Path) -> Result<Self> {
        let mark = path.join(MARK);
        if files::read_text(&mark, MOST_TEXT).is_ok_and(|text| text == TEXT) {
            for name in MADE {
                let old = path.join(name);
                let gone = if old.is_dir() { fs::remove_dir_all(&old) } else { fs::remove_file(&old) };
                gone.or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
                    .map_err(Error::io(&old, "remove what the last demo left"))?;
            }
        } else {
            refuse_occupied(path)?;
            let mut made = MadeFolders::make(path)?;
            files::write(&mark, TEXT.as_bytes())?;
            made.keep();
        }
        Ok(Self { path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_replaces_its_own_folder_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let mine = dir.path().join("demo");
        Folder::create(&mine).unwrap();
        fs::create_dir(mine.join("sft")).unwrap();
        fs::write(mine.join("sft/x"), "x").unwrap();
        fs::write(mine.join("sft.jsonl"), "x").unwrap();
        fs::write(mine.join("notes"), "x").unwrap();
        Folder::create(&mine).unwrap();
        assert!(!mine.join("sft").exists() && !mine.join("sft.jsonl").exists());
        assert!(mine.join("notes").exists(), "files that are not the demo's stay");

        let other = dir.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("README.txt"), "my thesis").unwrap();
        assert!(Folder::create(&other).unwrap_err().to_string().contains("not empty"));
        assert_eq!(fs::read_to_string(other.join("README.txt")).unwrap(), "my thesis");
    }

    #[test]
    fn the_readme_lists_everything_that_is_made() {
        for name in MADE {
            assert!(TEXT.lines().any(|l| l.split_whitespace().next() == Some(name)), "{name}");
        }
    }
}
