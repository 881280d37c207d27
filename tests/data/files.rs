//! The writers: whole or not at all, in place of what may be replaced and of nothing else.
#![cfg(unix)]

use fusedpo::Error;
use fusedpo::files::{self, AtomicFile, AtomicFolder, MadeFolders, RunDir, Spool, Target};
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn place() -> TempDir {
    TempDir::new().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_file_appears_when_it_is_committed() {
    let dir = place();
    let path = dir.path().join("f");
    let mut file = AtomicFile::create(&path).unwrap();
    file.write_all(b"0123").unwrap();
    file.seek(SeekFrom::Start(1)).unwrap();
    file.write_all(b"x").unwrap();
    assert!(!path.exists());
    assert_eq!((file.path(), file.folder()), (path.as_path(), dir.path()));
    file.commit().unwrap();
    assert_eq!((text(&path), names(dir.path())), ("0x23".to_owned(), vec!["f".to_owned()]));
    // Dropped, it leaves what was there.
    let mut file = AtomicFile::create(&path).unwrap();
    file.write_all(b"half").unwrap();
    drop(file);
    assert_eq!((text(&path), names(dir.path()).len()), ("0x23".to_owned(), 1));
    // A new name is new.
    let e = files::write_new(&path, b"other").unwrap_err();
    assert!(matches!(&e, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists), "{e}");
    assert_eq!((text(&path), names(dir.path()).len()), ("0x23".to_owned(), 1));
    files::write(&path, b"other").unwrap();
    assert_eq!(text(&path), "other");
    let e = AtomicFile::create(&dir.path().join("no/f")).unwrap_err().to_string();
    assert!(e.ends_with("no/f: cannot create: No such file or directory (os error 2)"), "{e}");
}

/// The program's own files take the place of a link: what it leads to is not ours.
#[test]
fn a_written_file_replaces_a_link() {
    let dir = place();
    let (mine, link) = (dir.path().join("mine"), dir.path().join("link"));
    fs::write(&mine, "mine").unwrap();
    symlink(&mine, &link).unwrap();
    files::write(&link, b"new").unwrap();
    assert!(!link.is_symlink());
    assert_eq!((text(&mine), text(&link)), ("mine".to_owned(), "new".to_owned()));
}

#[test]
fn a_folder_appears_when_it_is_committed() {
    let dir = place();
    let out = dir.path().join("a/b/out");
    let fill = |overwrite| {
        let folder = AtomicFolder::create(&out, overwrite).unwrap();
        files::write(&folder.path().join("f"), if overwrite { b"2" } else { b"1" }).unwrap();
        folder
    };
    let half = fill(false);
    assert!(!out.exists() && half.path().exists());
    drop(half);
    assert!(names(dir.path()).is_empty(), "the folders around it were made for it alone");
    fill(false).commit().unwrap();
    assert_eq!((text(out.join("f")), names(&dir.path().join("a/b"))), ("1".to_owned(), vec!["out".to_owned()]));
    let e = AtomicFolder::create(&out, false).unwrap_err().to_string();
    assert!(e.contains("exists and is not empty"), "{e}");
    drop(fill(true));
    assert_eq!(text(out.join("f")), "1");
    fill(true).commit().unwrap();
    assert_eq!((text(out.join("f")), names(&dir.path().join("a/b"))), ("2".to_owned(), vec!["out".to_owned()]));
}

#[test]
fn a_folder_that_came_meanwhile_stays() {
    let dir = place();
    let out = dir.path().join("out");
    let folder = AtomicFolder::create(&out, false).unwrap();
    fs::create_dir(&out).unwrap();
    fs::write(out.join("theirs"), "x").unwrap();
    let e = folder.commit().unwrap_err();
    assert!(e.to_string().contains("out: cannot create: Directory not empty"), "{e}");
    assert_eq!((names(&out), names(dir.path()), e.exit_code()), (vec!["theirs".into()], vec!["out".into()], 2));
}

#[test]
fn a_link_to_a_folder_stays_and_leads_to_the_new_one() {
    let dir = place();
    for (name, target) in [("to-old", "old"), ("dangling", "new")] {
        let link = dir.path().join(name);
        symlink(target, &link).unwrap();
        if name == "to-old" {
            fs::create_dir(dir.path().join(target)).unwrap();
            fs::write(dir.path().join("old/f"), "old").unwrap();
        }
        // With a slash at the end too.
        let folder = AtomicFolder::create(&PathBuf::from(format!("{}/", link.display())), true).unwrap();
        files::write(&folder.path().join("g"), b"new").unwrap();
        folder.commit().unwrap();
        assert!(link.is_symlink());
        assert_eq!(names(&dir.path().join(target)), ["g"]);
    }
    assert_eq!(names(dir.path()), ["dangling", "new", "old", "to-old"]);
}

#[test]
fn made_folders_go_again_unless_something_lies_in_them() {
    let dir = place();
    let path = dir.path().join("a/b/c");
    drop(MadeFolders::make(&path).unwrap());
    assert!(names(dir.path()).is_empty());
    let made = MadeFolders::make(&path).unwrap();
    fs::write(dir.path().join("a/mine"), "x").unwrap();
    drop(made);
    assert_eq!(names(&dir.path().join("a")), ["mine"]);
    let mut made = MadeFolders::make(&path).unwrap();
    made.keep();
    drop(made);
    assert!(path.is_dir());
}

#[test]
fn a_run_that_did_not_begin_leaves_nothing_and_one_that_did_keeps_all() {
    let dir = place();
    let path = dir.path().join("a/run");
    drop(RunDir::create(&path, "seed = 1\n").unwrap());
    assert!(names(dir.path()).is_empty());
    let row = serde_json::Map::from_iter([("step".to_owned(), serde_json::json!(1))]);
    let run = RunDir::create(&path, "seed = 1\n").unwrap();
    run.log(&row).unwrap();
    // Another run in the same process or another one.
    let e = RunDir::refuse_taken(&path).unwrap_err().to_string();
    assert!(e.ends_with("a/run: another run is writing to it; name a new folder"), "{e}");
    run.log(&row).unwrap();
    drop(run);
    assert_eq!(names(&path), ["config.toml", "metrics.jsonl"]);
    assert_eq!(text(path.join("metrics.jsonl")), "{\"step\":1}\n{\"step\":1}\n");
    let e = RunDir::create(&path, "").unwrap_err().to_string();
    assert!(e.ends_with("a/run: the output folder exists and is not empty; name a new one or remove it"), "{e}");
    // An empty folder that was there stays.
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    drop(RunDir::create(&empty, "").unwrap());
    assert!(empty.is_dir() && names(&empty).is_empty());
}

#[test]
fn a_run_says_what_is_in_its_way() {
    let dir = place();
    let at = dir.path().join("run");
    let refused = |want: &str| {
        let before = names(dir.path());
        let e = RunDir::create(&at, "").unwrap_err().to_string();
        assert!(e.ends_with(want), "{e}");
        assert_eq!(names(dir.path()), before);
        fs::remove_file(&at).unwrap();
    };
    fs::write(&at, "").unwrap();
    refused("run: is a file; name a new folder");
    assert!(Command::new("mkfifo").arg(&at).status().unwrap().success());
    refused("run: is no folder; name a new one");
    symlink("nowhere", &at).unwrap();
    refused("run: is a link that leads nowhere; name a new folder");
    symlink("run", &at).unwrap();
    refused("run: is a link that leads nowhere; name a new folder");
    // An empty folder may be named by a link.
    let here = dir.path().join("here");
    fs::create_dir(&here).unwrap();
    symlink(&here, &at).unwrap();
    drop(RunDir::create(&at, "").unwrap());
    assert!(at.is_symlink() && names(&here).is_empty());
}

#[test]
fn an_error_in_a_folder_that_is_not_yet_there_names_its_place() {
    let dir = place();
    let out = dir.path().join("out");
    let folder = AtomicFolder::create(&out, false).unwrap();
    let said = |e: Error| folder.as_named(e).to_string();
    let inside = folder.path().join("a/b");
    assert_eq!(said(Error::file(&inside, "why")), format!("{}: why", out.join("a/b").display()));
    let e = Error::io(folder.path(), "write")(std::io::ErrorKind::StorageFull.into());
    assert!(said(e).starts_with(&format!("{}: cannot write", out.display())));
    assert_eq!(said(Error::file(dir.path(), "why")), format!("{}: why", dir.path().display()));
    assert_eq!(said(Error::usage("no file")), "no file");
}

#[test]
fn a_target_is_a_new_file_or_one_that_may_be_replaced() {
    let dir = place();
    let path = dir.path().join("f");
    let mut new = Target::open(&path, false).unwrap();
    new.put(b"one").unwrap();
    assert_eq!((path.exists(), new.folder()), (false, Some(dir.path())));
    new.commit().unwrap();
    let e = Target::open(&path, false).unwrap_err();
    assert!(e.to_string().ends_with("f: exists; name another file, or `options.overwrite` to replace it"), "{e}");
    let mut other = Target::open(&path, true).unwrap();
    other.put(b"two").unwrap();
    assert_eq!(text(&path), "one");
    other.commit().unwrap();
    assert_eq!((text(&path), names(dir.path()).len()), ("two".to_owned(), 1));
    let refused = |path: &str, want: &str| {
        let e = Target::open(&dir.path().join(path), true).unwrap_err().to_string();
        assert!(e.ends_with(want), "{e}");
    };
    refused("", "is a folder; name a file");
    refused("new/", "is a folder; name a file");
    refused("f/x", "f is no folder; name another");
    refused("no/x", "no does not exist; make it first");
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    refused("socket", "socket: is a socket; name a file");
}

#[test]
fn what_came_meanwhile_is_not_replaced() {
    let dir = place();
    let path = dir.path().join("f");
    let target = Target::open(&path, false).unwrap();
    fs::write(&path, "theirs").unwrap();
    let e = target.commit().unwrap_err().to_string();
    assert!(e.ends_with("f: exists; name another file, or `options.overwrite` to replace it"), "{e}");
    assert_eq!((text(&path), names(dir.path()).len()), ("theirs".to_owned(), 1));
    let target = Target::open(&path, true).unwrap();
    fs::remove_file(&path).unwrap();
    symlink("elsewhere", &path).unwrap();
    let e = target.commit().unwrap_err().to_string();
    assert!(e.ends_with("f: was a file or nothing before, and is neither now; name another"), "{e}");
    assert!(path.is_symlink() && names(dir.path()).len() == 1);
}

#[test]
fn a_target_behind_links_is_written_and_the_links_stay() {
    let dir = place();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("sub")).unwrap();
    // Relative to where each link lies.
    symlink("sub/second", at("first")).unwrap();
    symlink("../file", at("sub/second")).unwrap();
    let mut dangling = Target::open(&at("first"), false).unwrap();
    dangling.put(b"1").unwrap();
    dangling.commit().unwrap();
    assert_eq!(text(at("file")), "1");
    let inode = fs::metadata(at("file")).unwrap().ino();
    assert!(Target::open(&at("first"), false).unwrap_err().to_string().contains("first: exists"));
    let mut again = Target::open(&at("first"), true).unwrap();
    again.put(b"2").unwrap();
    again.commit().unwrap();
    assert_eq!(text(at("file")), "2");
    assert_ne!(fs::metadata(at("file")).unwrap().ino(), inode, "replaced, not written over");
    assert!(at("first").is_symlink() && at("sub/second").is_symlink());
    symlink("b", at("a")).unwrap();
    symlink("a", at("b")).unwrap();
    let e = Target::open(&at("a"), true).unwrap_err().to_string();
    assert!(e.ends_with("a: is a link that leads to itself; name a file"), "{e}");
    // Where a dangling link leads there may be no folder.
    symlink("no/x", at("c")).unwrap();
    let e = Target::open(&at("c"), true).unwrap_err().to_string();
    assert!(e.ends_with("no does not exist; make it first"), "{e}");
    assert_eq!(names(dir.path()), ["a", "b", "c", "file", "first", "sub"]);
}

#[test]
fn a_pipe_is_written_to_and_stays() {
    let dir = place();
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for overwrite in [false, true] {
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || text(pipe)
        });
        let mut target = Target::open(&pipe, overwrite).unwrap();
        assert!(target.folder().is_none());
        target.put(b"through").unwrap();
        target.commit().unwrap();
        assert_eq!(reader.join().unwrap(), "through");
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    }
    assert_eq!(names(dir.path()), ["pipe"]);
}

/// What the shell opened for the program (`3>> log`) is added to, behind what is there.
#[test]
#[cfg(target_os = "linux")]
fn an_open_file_is_added_to() {
    use std::os::fd::AsRawFd;
    let dir = place();
    let path = dir.path().join("log");
    fs::write(&path, "before\n").unwrap();
    let open = fs::File::options().append(true).open(&path).unwrap();
    let inode = open.metadata().unwrap().ino();
    for prefix in ["/dev/fd", "/proc/self/fd"] {
        let mut target = Target::open(&PathBuf::from(format!("{prefix}/{}", open.as_raw_fd())), false).unwrap();
        target.put(b"line\n").unwrap();
        target.commit().unwrap();
    }
    assert_eq!((text(&path), fs::metadata(&path).unwrap().ino()), ("before\nline\nline\n".to_owned(), inode));
}

#[test]
fn a_spool_gives_back_in_order() {
    let dir = place();
    let mut spool = Spool::new(dir.path(), Path::new("out")).unwrap();
    assert!(spool.is_empty());
    let n = 1000u32;
    for i in 0..n {
        let key = i * 389 % n;
        spool.put(key, format!("{key};").repeat(key as usize % 300).as_bytes()).unwrap();
    }
    // Equal keys keep the order in which they came.
    spool.put(7, b"later").unwrap();
    assert_eq!((spool.len(), names(dir.path()).len()), (n as usize + 1, 0));
    let mut all = String::new();
    spool.drain(|b| std::str::from_utf8(b).map(|s| all.push_str(s)).map_err(|e| Error::usage(e.to_string()))).unwrap();
    let mut want = String::new();
    for key in 0..n {
        want += &format!("{key};").repeat(key as usize % 300);
        want += if key == 7 { "later" } else { "" };
    }
    assert!(all == want);
}

#[test]
fn scratch_is_seen_by_nobody() {
    let dir = place();
    let mut file = files::scratch_file(dir.path()).unwrap();
    file.write_all(b"x").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut back = String::new();
    file.read_to_string(&mut back).unwrap();
    assert_eq!((back.as_str(), names(dir.path()).len()), ("x", 0));
    let e = files::scratch_file(&dir.path().join("no")).unwrap_err().to_string();
    assert!(e.ends_with("no: cannot create a temporary file in: No such file or directory (os error 2)"), "{e}");
}
