//! Models and data sets of the hub's, from a server of one's own: what is downloaded, what is kept, what is said when it fails.

use crate::cli_common::{Cli, Ran, finish, golden, one_line};
use crate::hub_server::{Asked, COMMIT, Fault, OTHER, Server, blob, sha256};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

type Files = BTreeMap<String, Vec<u8>>;

fn files_of(folder: PathBuf) -> Files {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

/// The golden model, with what nobody wants beside it.
pub fn model() -> Files {
    let mut files = files_of(golden("llama"));
    for (name, bytes) in [
        ("README.md", b"hello".to_vec()),
        ("pytorch_model.bin", vec![7; 5000]),
        ("onnx/model.onnx", vec![8; 5000]),
        ("additional_chat_templates/tool.jinja", b"{{ messages }}".to_vec()),
        ("generation_config.json", b"{}".to_vec()),
    ] {
        files.insert(name.to_owned(), bytes);
    }
    files
}

/// A folder, and a hub with `org/llama`.
pub struct Place {
    pub cli: Cli,
    pub hub: Server,
}

impl Place {
    pub fn new() -> Self {
        let hub = Server::start();
        hub.put("models/org/llama", "main", COMMIT, model());
        Self { cli: Cli::new(), hub }
    }

    pub fn with_data() -> Self {
        Self { cli: Cli::with_data(), ..Self::new() }
    }

    pub fn command(&self, args: &str, env: &[(&str, &str)]) -> Command {
        let mut command = self.cli.command(args);
        for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("HF_") || n.to_lowercase().ends_with("_proxy"))
        {
            command.env_remove(name);
        }
        command.env_remove("HF_HUB_OFFLINE");
        command.env("HF_ENDPOINT", self.hub.address()).env("HF_HOME", self.cli.path("hf")).env("NO_PROXY", "*");
        command.env_remove("TRANSFORMERS_OFFLINE").envs(env.iter().copied());
        command
    }

    pub fn run(&self, args: &str, env: &[(&str, &str)]) -> Ran {
        finish(self.command(args, env).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    #[track_caller]
    pub fn ok(&self, args: &str) -> Ran {
        let ran = self.run(args, &[]);
        assert_eq!(ran.code, 0, "{args}: {ran:?}");
        ran
    }

    #[track_caller]
    pub fn bad(&self, args: &str, env: &[(&str, &str)], code: i32, want: &str) {
        one_line(args, &self.run(args, env), code, want);
    }

    pub fn cached(&self, name: &str) -> String {
        format!("hf/hub/models--org--llama/{name}")
    }

    /// What lies in the cache, without locks.
    pub fn files(&self) -> Vec<String> {
        let root = self.cli.path("hf/hub");
        let tree = self.cli.tree();
        let files = tree.iter().filter(|p| !p.is_dir()).filter_map(|p| p.strip_prefix(&root).ok());
        files.map(|p| p.display().to_string()).filter(|p| !p.starts_with(".locks")).collect()
    }
}

pub fn paths(asked: &[Asked]) -> Vec<&str> {
    asked.iter().map(|a| a.path.as_str()).collect()
}

pub const SCORE: &str = "score --data d --out - --model";

#[test]
fn a_model_comes_once_and_only_what_is_wanted_of_it() {
    let p = Place::with_data();
    let want = p.cli.ok(&format!("{SCORE} m")).out;
    let first = p.ok(&format!("{SCORE} org/llama"));
    assert_eq!(first.out, want);
    let said = format!("org/llama@{COMMIT}: 6 files, 88.1 KiB, from 127.0.0.1");
    assert!(first.err.contains(&said), "{}", first.err);
    let asked = p.hub.asked();
    let names: Vec<&str> = paths(&asked).iter().filter_map(|a| Some(a.split_once(COMMIT)?.1)).collect();
    for unwanted in ["README", ".bin", "onnx"] {
        assert!(names.iter().all(|n| !n.contains(unwanted)), "{names:?}");
    }
    assert!(names.contains(&"/additional_chat_templates/tool.jinja"), "{names:?}");

    // As `huggingface_hub` has it: contents by their hashes, names as links by relative ways, the branch's commit, the list.
    let weights = &model()["model.safetensors"];
    assert_eq!(&p.cli.bytes(&p.cached(&format!("blobs/{}", sha256(weights)))), weights);
    let config = p.cli.path(&p.cached(&format!("snapshots/{COMMIT}/config.json")));
    assert_eq!(
        std::fs::read_link(config).unwrap(),
        PathBuf::from(format!("../../blobs/{}", blob(&model()["config.json"])))
    );
    assert_eq!(p.cli.text(&p.cached("refs/main")), COMMIT);
    let files = p.files();
    assert!(files.iter().all(|f| !f.contains("incomplete") && !f.contains(".tmp")), "{files:?}");

    // Again: the hub is asked what `main` is now, and nothing comes.
    assert_eq!(p.ok(&format!("{SCORE} org/llama")).out, want);
    let asked = p.hub.asked();
    assert!(paths(&asked).iter().all(|a| a.starts_with("/api/")), "{asked:?}");
    // A commit never changes: nobody is asked.
    assert_eq!(p.ok(&format!("{SCORE} hf://models/org/llama@{COMMIT}")).out, want);
    assert!(p.hub.asked().is_empty());
    // Nor without a network, nor where HF_HUB_OFFLINE says so.
    for env in [("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_OFFLINE", "yes")] {
        let offline = p.run(&format!("{SCORE} org/llama"), &[env]);
        assert_eq!((offline.code, &offline.out), (0, &want), "{offline:?}");
        assert!(!offline.err.contains("warning"), "{offline:?}");
    }
    assert!(p.hub.asked().is_empty());
    let alone = p.run(&format!("{SCORE} org/llama"), &[("HF_ENDPOINT", "http://127.0.0.1:1")]);
    assert_eq!((alone.code, &alone.out), (0, &want), "{alone:?}");
    assert!(alone.err.contains("warning: org/llama: cannot download: 127.0.0.1: "), "{alone:?}");
    assert!(alone.err.contains("what is in the cache (commit 01234567) is used"), "{alone:?}");
    assert_eq!(p.files(), files);

    // A branch that moved brings what changed, and keeps the rest.
    let mut moved = model();
    moved.insert("generation_config.json".into(), br#"{"eos_token_id": 2}"#.to_vec());
    p.hub.put("models/org/llama", "main", OTHER, moved);
    p.ok(&format!("{SCORE} org/llama"));
    let asked = p.hub.asked();
    let contents: Vec<&str> = paths(&asked).into_iter().filter(|a| !a.starts_with("/api/")).collect();
    assert_eq!(contents, [format!("/org/llama/resolve/{OTHER}/generation_config.json")]);
    assert_eq!(p.cli.text(&p.cached("refs/main")), OTHER);

    // A file that somebody cut short in the cache comes again.
    p.cli.write(&p.cached(&format!("blobs/{}", sha256(weights))), "short");
    assert_eq!(p.ok(&format!("{SCORE} org/llama")).out, want);
}

#[test]
fn a_path_that_exists_is_a_path() {
    let p = Place::with_data();
    for folder in ["org", "org/llama"] {
        let _ = std::fs::create_dir(p.cli.path(folder));
        let want = match folder {
            "org" => {
                "org/llama: no such directory; expected a Hugging Face model directory with config.json and model.safetensors, or \
                      a name on the hub: org/name, or hf://org/name where the folder org is here too"
            }
            _ => {
                "org/llama: no config.json; expected a Hugging Face model directory with config.json and model.safetensors"
            }
        };
        p.bad(&format!("{SCORE} org/llama"), &[], 2, want);
        assert!(p.hub.asked().is_empty());
    }
    p.ok(&format!("{SCORE} hf://org/llama"));
    p.hub.asked();
    for named in ["llama", "./org/model", "org/llama/", "nowhere/at/all"] {
        let ran = p.run(&format!("{SCORE} {named}"), &[]);
        assert_eq!(ran.code, 2, "{ran:?}");
    }
    assert!(p.hub.asked().is_empty());
    let page = format!("{SCORE} https://huggingface.co/org/llama");
    let want = "https://huggingface.co/org/llama: is the address of a page; give the hub's name for it, such as org/name or \
                org/name@revision";
    p.bad(&page, &[], 2, want);
}

#[test]
fn the_token_is_told_to_the_hub_alone() {
    let p = Place::with_data();
    p.hub.gate("models/org/llama");
    std::fs::create_dir(p.cli.path("hf")).unwrap();
    p.cli.write("hf/token", "hf_good\n");
    p.ok(&format!("{SCORE} org/llama"));
    let asked = p.hub.asked();
    let (elsewhere, hub): (Vec<_>, Vec<_>) = asked.iter().partition(|a| a.elsewhere);
    assert!(hub.len() > 5 && hub.iter().all(|a| a.token.as_deref() == Some("Bearer hf_good")), "{hub:?}");
    assert!(elsewhere.len() == 1 && elsewhere[0].token.is_none(), "{elsewhere:?}");
    // Back from another host, it is not told any more.
    std::fs::remove_dir_all(p.cli.path("hf/hub")).unwrap();
    let file = format!("org/llama/resolve/{COMMIT}/config.json");
    p.hub.fail(&file, 1, Fault::To(format!("{}/away", p.hub.elsewhere())));
    p.hub.fail("/away", 1, Fault::To(format!("{}/{file}", p.hub.address())));
    let ran = p.run(&format!("{SCORE} org/llama"), &[]);
    assert_eq!(ran.code, 2, "{ran:?}");
    let back: Vec<_> = p.hub.asked().into_iter().filter(|a| a.path.ends_with(&file)).map(|a| a.token).collect();
    assert_eq!(back, [Some("Bearer hf_good".to_owned()), None]);
}

#[test]
fn two_processes_download_once() {
    let p = Place::with_data();
    p.hub.fail("config.json", 1, Fault::Slow(Duration::from_millis(400)));
    let command =
        || p.command(&format!("{SCORE} org/llama"), &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let both = [command(), command()].map(finish);
    assert!(both.iter().all(|ran| ran.code == 0), "{both:?}");
    assert_eq!(both[0].out, both[1].out);
    let asked = p.hub.asked();
    let contents: Vec<&str> = paths(&asked).into_iter().filter(|a| !a.starts_with("/api/")).collect();
    let once: std::collections::BTreeSet<_> = contents.iter().collect();
    assert_eq!(contents.len(), once.len(), "{contents:?}");
}

#[test]
fn a_run_writes_down_which_commit_it_was_made_from() {
    let p = Place::with_data();
    let mut adapter = files_of(golden("adapters/llama-all"));
    adapter.insert("README.md".into(), b"x".to_vec());
    p.hub.put("models/org/adapter", "main", OTHER, adapter);
    let named = format!("org/llama@{COMMIT}");
    p.ok("dpo --model org/llama --data d --out one --max-steps 1 --learning-rate 1e-3");
    p.cli.ok("dpo --model m --data d --out two --max-steps 1 --learning-rate 1e-3");
    assert_eq!(p.cli.bytes("one/model.safetensors"), p.cli.bytes("two/model.safetensors"));
    let config = p.cli.text("one/config.toml");
    assert!(config.contains(&format!("model = \"{named}\"")), "{config}");
    let card = p.cli.text("one/README.md");
    assert!(card.contains("base_model: org/llama\n") && card.contains(&format!("at `{COMMIT}`")), "{card}");
    let record: serde_json::Value = serde_json::from_slice(&p.cli.bytes("one/run.json")).unwrap();
    assert_eq!(record["options"]["model"], json!(named));
    p.hub.asked();
    // The branch moves; the run's own configuration does not, and needs no network.
    p.hub.put("models/org/llama", "main", OTHER, [("config.json".into(), b"{}".to_vec())]);
    p.ok("dpo --config one/config.toml --out again");
    assert_eq!(p.cli.bytes("again/model.safetensors"), p.cli.bytes("one/model.safetensors"));
    assert_eq!(p.cli.bytes("again/config.toml"), p.cli.bytes("one/config.toml"));
    let done = p.ok("dpo --config one/config.toml --out one --resume auto");
    assert!(done.out.contains("one"), "{done:?}");
    // `eval` finds the reference that it names.
    let eval = p.ok("eval --model one --data d --kl-samples 0");
    assert!(eval.err.contains(&format!("reference: {named} (from one/config.toml)")), "{eval:?}");
    assert!(p.hub.asked().is_empty());
    // An adapter of the hub's beside a model of the hub's, and what PEFT is told of a new one's base.
    let score = p.ok(&format!("score --data d --out - --model {named} --adapter org/adapter")).out;
    let here = golden("adapters/llama-all");
    assert_eq!(score, p.cli.ok(&format!("score --data d --out - --model m --adapter {}", here.display())).out);
    p.ok(&format!("sft --model {named} --data d --out lora --lora-r 2 --max-steps 1"));
    let peft: serde_json::Value = serde_json::from_slice(&p.cli.bytes("lora/adapter_config.json")).unwrap();
    assert_eq!((&peft["base_model_name_or_path"], &peft["revision"]), (&json!("org/llama"), &json!(COMMIT)));
    // Other commands take names too; a plan takes the shape alone.
    std::fs::remove_dir_all(p.cli.path("hf")).unwrap();
    p.ok(&format!("plan --model {named} --data d"));
    assert!(p.files().iter().all(|f| !f.contains("safetensors")), "{:?}", p.files());
    p.ok(&format!("quantize --model {named} --out q"));
    p.ok(&format!("merge --model {named} --adapter hf://org/adapter --out merged"));
    p.ok(&format!("generate --model {named} --prompt w3 --max-new-tokens 2 --chat-template none"));
    p.ok(&format!("reference --model {named} --data d"));
}

/// Who downloaded does not matter.
#[test]
fn the_cache_is_that_of_the_python_package() {
    let Some(python) = std::env::var_os("FUSEDPO_PYTHON") else {
        return println!("skipped: the_cache_is_that_of_the_python_package (FUSEDPO_PYTHON is not set)");
    };
    let p = Place::with_data();
    let script = "import sys\nfrom huggingface_hub import snapshot_download, hf_hub_download, scan_cache_dir, get_cached_repo_tree\n\
                  if sys.argv[1] == 'all':\n    print(snapshot_download('org/llama'))\nelse:\n    \
                  for name in ['config.json', 'model.safetensors', 'additional_chat_templates/tool.jinja']:\n        \
                  print(open(hf_hub_download('org/llama', name), 'rb').read().hex()[:20])\n    \
                  print(len(get_cached_repo_tree('org/llama')))\n    \
                  print(snapshot_download('org/llama', allow_patterns=['*.json', 'model.safetensors']))\n    \
                  info = scan_cache_dir()\n    print(len(info.warnings), [r.repo_id for r in info.repos])\n";
    let ask = |what: &str, env: &[(&str, &str)]| {
        let mut command = Command::new(&python);
        for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("HF_") || n.to_lowercase().ends_with("_proxy"))
        {
            command.env_remove(name);
        }
        command.args(["-c", script, what]).env("HF_ENDPOINT", p.hub.address()).env("HF_HOME", p.cli.path("hf"));
        command.env("NO_PROXY", "*").env("HF_HUB_DISABLE_TELEMETRY", "1").envs(env.iter().copied());
        let ran = command.output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    };
    // Ours, found by it without a network.
    let want = p.ok(&format!("{SCORE} org/llama")).out;
    let found = ask("ours", &[("HF_HUB_OFFLINE", "1")]);
    let lines: Vec<&str> = found.lines().collect();
    assert_eq!(lines[3], model().len().to_string());
    assert!(lines[4].ends_with(&format!("hf/hub/models--org--llama/snapshots/{COMMIT}")), "{found}");
    assert_eq!(lines[5], "0 ['org/llama']");
    // Its own, found by us without one.
    std::fs::remove_dir_all(p.cli.path("hf")).unwrap();
    ask("all", &[]);
    p.hub.asked();
    let offline = p.run(&format!("{SCORE} org/llama"), &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!((offline.code, offline.out), (0, want), "{}", offline.err);
    // And of an older one, which keeps no list.
    std::fs::remove_dir_all(p.cli.path(&p.cached("trees"))).unwrap();
    let older = p.run(&format!("{SCORE} org/llama"), &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(older.code, 0, "{older:?}");
    assert!(p.hub.asked().is_empty());
    std::fs::remove_file(p.cli.path(&p.cached(&format!("snapshots/{COMMIT}/model.safetensors")))).unwrap();
    let want = "org/llama: is in the cache without model.safetensors, and the hub cannot be asked: download it when there is a network, \
                and without HF_HUB_OFFLINE";
    p.bad(&format!("{SCORE} org/llama"), &[("HF_HUB_OFFLINE", "1")], 2, want);
}

/// A content that several repositories share lies in the cache's own folder, as newer versions of the package have it.
#[cfg(unix)]
#[test]
fn contents_that_repositories_share() {
    use std::os::unix::fs::symlink;
    let p = Place::with_data();
    let want = p.ok(&format!("{SCORE} org/llama")).out;
    // Weights may lie anywhere; a large tokenizer may not.
    let sha = blob(&model()["tokenizer.json"]);
    let place = |name: &str| p.cli.path(&format!("hf/hub/blobs{name}"));
    std::fs::create_dir_all(place("/ab")).unwrap();
    let own = p.cli.path(&p.cached(&format!("blobs/{sha}")));
    std::fs::rename(&own, place("/ab/abc")).unwrap();
    symlink("../../blobs/ab/abc", &own).unwrap();
    let score = format!("{SCORE} org/llama@{COMMIT}");
    let ran = p.run(&score, &[]);
    assert_eq!(ran.code, 2, "{ran:?}: a folder that is not marked is nobody's");
    std::fs::write(place("/.huggingface-shared-blobs"), "1\n").unwrap();
    assert_eq!(p.ok(&score).out, want);
}
