//! What a process that was killed left behind: temporary files and folders are named after their process and locked by it,
//! so that the next that works at the same place can tell them from those of a living one, and takes them away.

use std::fs::{self, File};
use std::path::Path;

/// Before the name of a temporary file.
pub(crate) fn file_prefix() -> String {
    format!(".tmp-{}-", std::process::id())
}

/// After it.
pub(crate) const FILE_SUFFIX: &str = ".part";

/// Before the name of a folder among the system's temporary ones.
pub(crate) fn scratch_prefix() -> String {
    format!("fusedpo-{}-", std::process::id())
}

/// Takes a new temporary, until the handle is closed. One that cannot be locked is never taken for a dead process's.
pub(crate) fn hold(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    file.try_lock().ok()?;
    Some(file)
}

/// Removes what dead processes left of files that were being written in `folder`. A failure leaves it to the next.
pub fn sweep_files(folder: &Path) {
    sweep(folder, &writer);
}

/// The process that was writing a file under that temporary name.
fn writer(name: &str) -> Option<&str> {
    name.strip_prefix(".tmp-")?.strip_suffix(FILE_SUFFIX)?.split_once('-').map(|(pid, _)| pid)
}

/// Whether that is the name of a file that was being written.
pub(crate) fn is_leftover(name: &str) -> bool {
    writer(name).is_some_and(|pid| pid.parse::<u32>().is_ok())
}

/// Likewise of scratch folders.
pub(crate) fn sweep_scratch(folder: &Path) {
    sweep(folder, &|name| name.strip_prefix("fusedpo-")?.split_once('-').map(|(pid, _)| pid));
}

/// Likewise of the temporary siblings of the folder `out` in `folder`, `.OUT.PID-N.tmp`. One that stood in the way of a
/// replacement, `.OUT.PID-N.old`, is put back where nothing took its place.
pub(crate) fn sweep_folders(folder: &Path, out: &str) {
    let pid = |name: &str, end: &str| {
        let rest = name.strip_prefix('.')?.strip_prefix(out)?.strip_prefix('.')?.strip_suffix(end)?;
        rest.split_once('-').map(|(pid, _)| pid.to_owned())
    };
    for path in dead(folder, &|name| pid(name, ".old")) {
        if folder.join(out).symlink_metadata().is_err() {
            let _ = fs::rename(path, folder.join(out));
        } else {
            let _ = fs::remove_dir_all(path);
        }
    }
    for path in dead(folder, &|name| pid(name, ".tmp")) {
        let _ = fs::remove_dir_all(path);
    }
}

fn sweep(folder: &Path, pid: &dyn Fn(&str) -> Option<&str>) {
    for path in dead(folder, &|name| pid(name).map(str::to_owned)) {
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
}

/// What `pid` finds a process's number in the names of, where that process is gone and nobody holds the lock: the number
/// alone means nothing on a disk that several machines or containers share, and the lock nothing in the instant before it is
/// taken.
fn dead(folder: &Path, pid: &dyn Fn(&str) -> Option<String>) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let gone = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let of = name.to_str().and_then(pid).and_then(|pid| pid.parse::<u32>().ok());
        let own = entry.file_type().is_ok_and(|kind| kind.is_file() || kind.is_dir());
        own && of.is_some_and(|pid| !lives(pid)) && hold(&entry.path()).is_some()
    };
    entries.flatten().filter(gone).map(|entry| entry.path()).collect()
}

/// Whether there is such a process; yes, where that cannot be told.
fn lives(pid: u32) -> bool {
    !cfg!(target_os = "linux") || Path::new("/proc").join(pid.to_string()).exists()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Nobody has it: numbers end at 2^22.
    const DEAD: u32 = 5_000_000;

    #[test]
    fn only_what_a_dead_process_left_goes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let living = std::process::id();
        let stay = [
            format!(".tmp-{living}-a.part"),
            format!(".tmp-{DEAD}-held.part"),
            ".tmp-abc.part".to_owned(),
            format!("tmp-{DEAD}-a.part"),
            format!(".tmp-{DEAD}-a"),
            format!(".tmp-x{DEAD}-a.part"),
        ];
        let gone = [format!(".tmp-{DEAD}-a.part"), format!(".tmp-{DEAD}-b-c.part")];
        stay.iter().chain(&gone).for_each(|name| fs::write(at(name), "x").unwrap());
        let held = hold(&at(&stay[1])).unwrap();
        std::os::unix::fs::symlink(&stay[0], at(&format!(".tmp-{DEAD}-link.part"))).unwrap();
        sweep_files(dir.path());
        assert!(stay.iter().all(|name| at(name).exists()) && gone.iter().all(|name| !at(name).exists()));
        assert!(at(&format!(".tmp-{DEAD}-link.part")).is_symlink(), "nobody here makes links");
        drop(held);
        sweep_files(dir.path());
        assert!(!at(&stay[1]).exists());
    }

    #[test]
    fn a_folder_that_was_to_be_replaced_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in [format!(".d.{DEAD}-0.tmp"), format!(".d.{DEAD}-0.old"), format!(".e.{DEAD}-0.tmp")] {
            fs::create_dir(at(&name)).unwrap();
            fs::write(at(&name).join("file"), &name).unwrap();
        }
        sweep_folders(dir.path(), "d");
        assert_eq!(fs::read_to_string(at("d/file")).unwrap(), format!(".d.{DEAD}-0.old"));
        assert!(!at(&format!(".d.{DEAD}-0.tmp")).exists() && at(&format!(".e.{DEAD}-0.tmp")).exists());
        // Where something took its place, it is in the way.
        fs::create_dir(at(&format!(".d.{DEAD}-1.old"))).unwrap();
        sweep_folders(dir.path(), "d");
        assert!(!at(&format!(".d.{DEAD}-1.old")).exists() && at("d/file").exists());
    }
}
