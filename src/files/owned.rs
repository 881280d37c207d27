//! A folder that several commands fill after one another, one at a time: it is told by a file in it. What lies damaged in it is set aside.

use crate::error::{Error, Result};
use crate::files::atomic::write_new;
use crate::files::folder::{make_folder, refuse_occupied};
use crate::files::leftover::{is_leftover, sweep_files};
use crate::files::lock::Claim;
use crate::files::paths::{folder_of, sync_folder};
use std::fs;
use std::path::{Path, PathBuf};

/// Takes the folder `path` by its file `name`; where there is neither, both are made, the file with `bytes` in it. `None`: another
/// process has it.
///
/// A folder that a killed process made, and in which it had not come to write `name`, is as good as an empty one. Errors: the folder
/// holds what is not of this kind.
pub fn own_folder(path: &Path, name: &str, bytes: &[u8]) -> Result<Option<Claim>> {
    let file = path.join(name);
    if file.symlink_metadata().is_err() {
        if !holds_leftovers_alone(path) {
            refuse_occupied(path)?;
        }
        make_folder(path)?;
        match write_new(&file, bytes) {
            // Another began at the same time: which of them has it, the lock says.
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {}
            written => written?,
        }
    }
    let claim = Claim::take(&file)?;
    if claim.is_some() {
        sweep_files(path);
    }
    Ok(claim)
}

/// Nothing but files that were being written, by this program, under names that are no others'.
fn holds_leftovers_alone(path: &Path) -> bool {
    let own = |entry: std::io::Result<fs::DirEntry>| {
        entry.is_ok_and(|e| e.file_type().is_ok_and(|t| t.is_file()) && is_leftover(&e.file_name().to_string_lossy()))
    };
    fs::read_dir(path).is_ok_and(|mut entries| entries.all(own))
}

/// Gives the file or folder `path` another name beside it, `NAME.damaged` or that with a number, and returns it: what is no longer as it was
/// made is made anew under its own name, and nothing is lost.
pub fn set_aside(path: &Path) -> Result<PathBuf> {
    let named = |n: usize| {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(if n == 1 { ".damaged".to_owned() } else { format!(".damaged-{n}") });
        path.with_file_name(name)
    };
    let free = (1..).map(named).find(|to| to.symlink_metadata().is_err()).expect("numbers do not end");
    fs::rename(path, &free).map_err(Error::io(path, "rename"))?;
    sync_folder(folder_of(&free))?;
    Ok(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_its_owners_however_it_was_begun() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("a/b");
        let text = |name: &str| fs::read_to_string(at.join(name)).unwrap();
        let claim = own_folder(&at, "own", b"1").unwrap();
        assert!(claim.is_some() && own_folder(&at, "own", b"2").unwrap().is_none());
        assert_eq!(text("own"), "1");
        drop(claim);
        assert!(own_folder(&at, "own", b"2").unwrap().is_some() && text("own") == "1");
        // Killed before the file had its name; whoever has that number now.
        fs::rename(at.join("own"), at.join(format!(".tmp-{}-Xy1.part", std::process::id()))).unwrap();
        assert!(own_folder(&at, "own", b"3").unwrap().is_some() && text("own") == "3");
        fs::remove_file(at.join("own")).unwrap();
        fs::write(at.join("mine"), "").unwrap();
        assert!(own_folder(&at, "own", b"4").unwrap_err().to_string().contains("is not empty"));
        assert!(!at.join("own").exists());
    }
    #[test]
    fn what_is_set_aside_is_kept_under_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("a.json");
        for (content, want) in [("1", "a.json.damaged"), ("2", "a.json.damaged-2")] {
            fs::write(&at, content).unwrap();
            let aside = set_aside(&at).unwrap();
            assert_eq!((aside.file_name().unwrap().to_str(), at.exists()), (Some(want), false));
            assert_eq!(fs::read_to_string(aside).unwrap(), content);
        }
        fs::create_dir(&at).unwrap();
        assert!(set_aside(&at).unwrap().is_dir() && set_aside(&at).is_err());
    }
}
