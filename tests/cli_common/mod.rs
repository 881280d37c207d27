//! The built binary in a fresh folder: one helper for every test of the command line.
#![allow(dead_code)] // each test program uses its own part

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use tempfile::TempDir;

/// Bytes of a tiny model that the project keeps: 97 words `w3`..`w96` and three special tokens.
pub fn golden(name: &str) -> PathBuf {
    // Where cargo runs the test, or where whoever carried it elsewhere says that the project lies.
    let root = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(root).join("tests/golden").join(name)
}

/// Metrics of a run without those of time and memory.
pub fn rows(cli: &Cli, out: &str) -> Vec<Value> {
    let mut rows = cli.json_lines(&format!("{out}/metrics.jsonl"));
    for row in rows.iter_mut().filter_map(Value::as_object_mut) {
        row.retain(|key, _| ["_seconds", "_per_second", "_bytes"].iter().all(|end| !key.ends_with(end)));
    }
    rows
}

/// Judgements, as KTO reads them.
pub fn judgements(n: usize) -> Vec<Value> {
    let row = |(i, mut row): (usize, Value)| {
        let row = row.as_object_mut().unwrap();
        let completion = row.remove(if i % 2 == 0 { "chosen" } else { "rejected" }).unwrap();
        json!({"prompt": row["prompt"], "completion": completion, "label": i % 2 == 0})
    };
    pairs(n).into_iter().enumerate().map(row).collect()
}

/// A small disk, mounted until the test ends.
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts one at `at`; `None` where this user may not, and then says that `what` is skipped.
    pub fn new(at: &Path, options: &str, what: &str) -> Option<Mount> {
        std::fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).output();
        if mounted.is_ok_and(|o| o.status.success()) {
            return Some(Mount(at.to_owned()));
        }
        println!("skipped: {what} (this user may not mount a tmpfs)");
        None
    }

    pub fn remount(&self, options: &str) {
        assert!(Command::new("mount").args(["-o", options]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// What no command under way takes: one that has not ended by then is ended, and its test fails.
const LONGEST: Duration = Duration::from_secs(120);

/// A folder with a model `m` and, after [`Cli::with_data`], rows and shards `d`. Commands run in it, so that their
/// messages name relative paths.
pub struct Cli {
    pub dir: TempDir,
}

/// A command that ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    fn of(o: std::process::Output) -> Ran {
        let text = |b: Vec<u8>| String::from_utf8(b).expect("output is UTF-8");
        // A signal has no code.
        Ran { code: o.status.code().unwrap_or(-1), out: text(o.stdout), err: text(o.stderr) }
    }

    /// The one JSON object on stdout.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// A command under way. A test that fails ends it.
pub struct Running(Option<Child>);

impl Running {
    pub fn wait_with_output(mut self) -> std::io::Result<Output> {
        self.0.take().expect("under way").wait_with_output()
    }
}

impl From<Child> for Running {
    fn from(child: Child) -> Self {
        Running(Some(child))
    }
}

impl Deref for Running {
    type Target = Child;
    fn deref(&self) -> &Child {
        self.0.as_ref().expect("under way")
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        self.0.as_mut().expect("under way")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // One that has ended already is no error.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Cli {
    pub fn new() -> Cli {
        let cli = Cli { dir: TempDir::new().unwrap() };
        cli.model("m", "llama");
        cli
    }

    /// With 24 pairs packed into `d`, six of them held out.
    pub fn with_data() -> Cli {
        let cli = Cli::new();
        cli.write_rows("rows.jsonl", &pairs(24));
        cli.ok("pack --tokenizer m --input rows.jsonl --out d --eval-fraction 0.25");
        cli
    }

    /// A copy of a golden model that may be changed.
    pub fn model(&self, name: &str, golden_name: &str) {
        std::fs::create_dir(self.path(name)).unwrap();
        for entry in std::fs::read_dir(golden(golden_name)).unwrap() {
            let entry = entry.unwrap();
            // Written, not copied: the source may be read-only.
            self.write(&format!("{name}/{}", entry.file_name().display()), std::fs::read(entry.path()).unwrap());
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }
    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.bytes(name)).unwrap()
    }
    pub fn json_lines(&self, name: &str) -> Vec<Value> {
        self.text(name).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }
    pub fn edit_json(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut v: Value = serde_json::from_slice(&self.bytes(name)).unwrap();
        edit(&mut v);
        self.write(name, v.to_string());
    }
    pub fn write_rows(&self, name: &str, rows: &[Value]) {
        self.write(name, rows.iter().map(|r| format!("{r}\n")).collect::<String>());
    }

    /// The command, not started. Arguments are split at spaces.
    pub fn command(&self, args: &str) -> Command {
        let program = std::env::var_os("CARGO_BIN_EXE_fusedpo").unwrap_or_else(|| env!("CARGO_BIN_EXE_fusedpo").into());
        let mut c = Command::new(program);
        c.args(args.split_whitespace()).current_dir(self.dir.path()).stdin(Stdio::null());
        // The CPU everywhere: these tests are about files and messages.
        c.env("RAYON_NUM_THREADS", "2").env_remove("RUST_BACKTRACE");
        // Nobody outside is asked, whatever a test calls what is not there.
        c.env("HF_HUB_OFFLINE", "1");
        c
    }
    pub fn run(&self, args: &str) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }
    pub fn spawn(&self, args: &str) -> Running {
        Running(Some(self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()))
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub fn ok(&self, args: &str) -> Ran {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{args}: {ran:?}");
        assert!(!ran.err.contains("internal error"), "{args}: {ran:?}");
        ran
    }

    /// Runs a command that must end with `code` and the one line `fusedpo: want`, and change nothing in the folder.
    #[track_caller]
    pub fn bad(&self, args: &str, code: i32, want: &str) {
        let before = self.tree();
        self.bad_leaving(args, code, want);
        assert_eq!(self.tree(), before, "{args}: leaves files behind");
    }

    /// [`Cli::bad`] for commands that keep what they had done (sidecars, metrics).
    #[track_caller]
    pub fn bad_leaving(&self, args: &str, code: i32, want: &str) -> Ran {
        let ran = self.run(args);
        one_line(args, &ran, code, want);
        ran
    }

    /// Every path below the folder.
    pub fn tree(&self) -> BTreeSet<PathBuf> {
        fn walk(dir: &Path, out: &mut BTreeSet<PathBuf>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, out);
                }
                out.insert(path);
            }
        }
        let mut out = BTreeSet::new();
        walk(self.dir.path(), &mut out);
        out
    }

    /// Names in a folder that begin so.
    pub fn names(&self, dir: &str, part: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(dir)).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.filter(|n| n.contains(part)).collect();
        names.sort();
        names
    }
}

/// One error line, the last on stderr, and the exit code; nothing of a panic.
#[track_caller]
pub fn one_line(what: &str, ran: &Ran, code: i32, want: &str) {
    assert_eq!(ran.err.lines().last(), Some(format!("fusedpo: {want}").as_str()), "{what}: {ran:?}");
    assert_eq!(ran.err.matches("fusedpo: ").count(), 1, "{what}: {ran:?}");
    assert_eq!(ran.code, code, "{what}: {ran:?}");
}

/// `kill -NAME` of one child.
pub fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// What a child left; one that goes on for [`LONGEST`] is ended.
pub fn finish(child: impl Into<Running>) -> Ran {
    let child = child.into();
    let pid = child.id().to_string();
    let (done, watch) = mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if watch.recv_timeout(LONGEST) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = Command::new("kill").args(["-KILL", &pid]).status();
        }
    });
    let ran = Ran::of(child.wait_with_output().unwrap());
    drop(done);
    watch.join().unwrap();
    ran
}

/// Some words, the same for the same seed.
pub fn words(seed: usize, n: usize) -> String {
    (0..n).map(|i| format!(" w{}", 3 + (seed * 31 + i * i * 7 + i * 11) % 94)).collect()
}

/// `n` rows of pairs with prompts of their own.
pub fn pairs(n: usize) -> Vec<Value> {
    let row = |i: usize| {
        json!({
            "prompt": format!("w{}{}", 3 + i % 94, words(i + 1, 3 + i % 5)),
            "chosen": words(i + 100, 2 + i % 7),
            "rejected": words(i + 200, 1 + i % 6),
        })
    };
    (0..n).map(row).collect()
}
