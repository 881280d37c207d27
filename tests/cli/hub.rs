//! Models and data sets of the hub's, from a server of one's own: what is downloaded, what is kept, what is said when it fails.

use crate::cli_common::{Cli, Ran, finish, golden, one_line, pairs, signal};
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
fn model() -> Files {
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
struct Place {
    cli: Cli,
    hub: Server,
}

impl Place {
    fn new() -> Self {
        let hub = Server::start();
        hub.put("models/org/llama", "main", COMMIT, model());
        Self { cli: Cli::new(), hub }
    }

    fn with_data() -> Self {
        Self { cli: Cli::with_data(), ..Self::new() }
    }

    fn command(&self, args: &str, env: &[(&str, &str)]) -> Command {
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

    fn run(&self, args: &str, env: &[(&str, &str)]) -> Ran {
        finish(self.command(args, env).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    #[track_caller]
    fn ok(&self, args: &str) -> Ran {
        let ran = self.run(args, &[]);
        assert_eq!(ran.code, 0, "{args}: {ran:?}");
        ran
    }

    #[track_caller]
    fn bad(&self, args: &str, env: &[(&str, &str)], code: i32, want: &str) {
        one_line(args, &self.run(args, env), code, want);
    }

    fn cached(&self, name: &str) -> String {
        format!("hf/hub/models--org--llama/{name}")
    }

    /// What lies in the cache, without locks.
    fn files(&self) -> Vec<String> {
        let root = self.cli.path("hf/hub");
        let tree = self.cli.tree();
        let files = tree.iter().filter(|p| !p.is_dir()).filter_map(|p| p.strip_prefix(&root).ok());
        files.map(|p| p.display().to_string()).filter(|p| !p.starts_with(".locks")).collect()
    }
}

fn paths(asked: &[Asked]) -> Vec<&str> {
    asked.iter().map(|a| a.path.as_str()).collect()
}

const SCORE: &str = "score --data d --out - --model";

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

/// A case of the test below, in the order in which it takes it apart.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, usize, Option<Fault>, i32, String);

#[test]
fn what_fails_says_so_in_a_line_and_leaves_nothing() {
    let p = Place::with_data();
    p.hub.put(
        "models/org/bin",
        "main",
        COMMIT,
        [("config.json".into(), b"{}".to_vec()), ("pytorch_model.bin".into(), vec![0; 9])],
    );
    p.hub.put("models/org/gated", "main", COMMIT, model());
    p.hub.gate("models/org/gated");
    let (at, sha) = (p.hub.address(), sha256(&model()["model.safetensors"]));
    let content = format!("/content/{sha}");
    let weights = "org/llama/model.safetensors: cannot download";
    let other = sha256(&model()["model.safetensors"].iter().map(|b| b ^ 1).collect::<Vec<u8>>());
    let no_token = [].as_slice();
    let bad_token = [("HF_TOKEN", "hf_bad")].as_slice();
    let cases: Vec<Case> = vec![
        (
            "org/none", no_token, "", 0, None, 2,
            "org/none: is no model that 127.0.0.1 knows, and no path that is here; check the name, or it is private: then set \
             HF_TOKEN".into(),
        ),
        (
            "org/none", bad_token, "", 0, None, 2,
            "org/none: is no model that 127.0.0.1 knows, and no path that is here; check the name, or the token that is set may not \
             read it".into(),
        ),
        (
            "org/llama", bad_token, "/api/", 1,
            Some(Fault::Status(401, "X-Error-Message: Invalid credentials in Authorization header\r\n")), 2,
            "org/llama: the hub does not know the token that is set (HF_TOKEN, or the file that `hf auth login` wrote)".into(),
        ),
        (
            "org/llama@v9", no_token, "", 0, None, 2,
            "org/llama@v9: the model has no revision `v9`; name a branch, a tag or a commit of it".into(),
        ),
        (
            "org/bin", no_token, "", 0, None, 2,
            "org/bin: has no model.safetensors, and is no model that can be read (weights are read as safetensors alone; \
             transformers saves a model so): it holds config.json, pytorch_model.bin".into(),
        ),
        (
            "org/gated", no_token, "", 0, None, 2,
            format!("org/gated/additional_chat_templates/tool.jinja: is gated: accept its conditions at {at}/org/gated, and set \
                     HF_TOKEN to a token of that account"),
        ),
        (
            "org/gated", bad_token, "", 0, None, 2,
            format!("org/gated/additional_chat_templates/tool.jinja: is gated: accept its conditions at {at}/org/gated, and set \
                     HF_TOKEN to a token of that account; the token that is set is not one of an account that did"),
        ),
        ("org/llama", no_token, "resolve/", 9, Some(Fault::Status(404, "X-Error-Code: EntryNotFound\r\n")), 2,
            "org/llama/additional_chat_templates/tool.jinja: is listed, and not there (404): try again later".into()),
        ("org/llama", no_token, "/api/", 1, Some(Fault::Status(403, "X-Error-Message: banned\r\n")), 2,
            "org/llama: 127.0.0.1 forbids it (403): banned".into()),
        ("org/llama", no_token, "/api/", 9, Some(Fault::Status(429, "Retry-After: 400\r\n")), 1,
            "org/llama: cannot download: 127.0.0.1 asks to be left alone for 400 s (429); try again later".into()),
        ("org/llama", no_token, "/api/", 9, Some(Fault::Status(503, "Retry-After: 0\r\n")), 1,
            "org/llama: cannot download: 127.0.0.1 answers 503 Service Unavailable".into()),
        ("org/llama", no_token, "/api/", 9, Some(Fault::Page), 2,
            format!("{at}: answers with something that is no JSON: is a page of a proxy in between, or HF_ENDPOINT not a hub's?")),
        ("org/llama", no_token, &content, 1, Some(Fault::Content), 1,
            format!("{weights}: what came has the hash {other}, and the hub lists {sha}; nothing of it was kept")),
        ("org/llama", no_token, &content, 1, Some(Fault::Length(90000)), 1,
            format!("{weights}: localhost has 90000 bytes of it, and 87992 are to come: not the file that the hub lists")),
        ("org/llama", no_token, "resolve/", 99, Some(Fault::To(format!("{at}/org/llama/resolve/x"))), 2,
            format!("{at}: sends from one place to another without an end")),
        ("org/llama", no_token, "resolve/", 9, Some(Fault::To("ftp://u:SECRET@x/y?sig=SECRET".into())), 2,
            format!("{at}: sends to `ftp://x/y`, which is no address")),
        ("org/llama", no_token, "tree/", 1, Some(Fault::List(json!([{"type": "file", "path": "../../x", "size": 1, "oid": blob(b"")}]))), 2,
            "org/llama: the hub lists a file `../../x`, which would lie outside the repository's folder: nothing of it is taken".into()),
        ("org/llama", no_token, "tree/", 1, Some(Fault::List(json!([{"type": "file", "path": "/etc/x", "size": 1, "oid": blob(b"")}]))), 2,
            "org/llama: the hub lists a file `/etc/x`, which would lie outside the repository's folder: nothing of it is taken".into()),
        ("org/llama", no_token, "tree/", 1, Some(Fault::List(json!([{"type": "file", "path": "x", "size": 1, "oid": "../../y"}]))), 2,
            "org/llama: the hub lists the file `x` without its size and hash".into()),
        ("org/llama", no_token, "revision/", 1, Some(Fault::List(json!({"sha": "../../../x"}))), 2,
            "org/llama: the hub names no commit for the revision".into()),
        ("org/llama", &[("HF_HUB_OFFLINE", "1")], "", 0, None, 2,
            format!("org/llama: is not in the cache ({}), and the hub is not asked, as HF_HUB_OFFLINE says: unset it, or download \
                     the repository first", p.cli.path("hf/hub/models--org--llama").display())),
        ("org/llama", &[("HF_ENDPOINT", "hub")], "", 0, None, 2,
            "HF_ENDPOINT is `hub`, which is no address such as https://huggingface.co".into()),
        ("org/llama", &[("HF_ENDPOINT", "https://user:PASSWORD@hub.example/x?sig=SECRET")], "", 0, None, 2,
            "HF_ENDPOINT is `https://hub.example/x`, which is no address such as https://huggingface.co; a user in it is not \
             supported, a token is".into()),
        ("org/llama", &[("HF_TOKEN", "a b")], "", 0, None, 2,
            "the token of the hub (HF_TOKEN, or its file) has characters that no token has".into()),
    ];
    for (named, env, part, times, fault, code, want) in cases {
        p.hub.mend();
        if let Some(fault) = fault {
            p.hub.fail(part, times, fault);
        }
        p.bad(&format!("{SCORE} {named}"), env, code, &want);
        let files = p.files();
        // What came whole before it failed is no half of anything.
        let half =
            files.iter().filter(|f| f.contains("incomplete") || f.contains("refs") || f.contains("model.safetensors"));
        assert_eq!(half.count(), 0, "{want}: {files:?}");
        let _ = std::fs::remove_dir_all(p.cli.path("hf"));
    }
}

#[test]
fn what_passes_is_tried_again() {
    let p = Place::with_data();
    p.hub.fail("/api/", 1, Fault::Status(500, ""));
    p.hub.fail("resolve/", 1, Fault::Status(429, "Retry-After: 0\r\n"));
    p.hub.fail("resolve/", 1, Fault::Status(429, "RateLimit: \"resolvers\";r=0;t=0\r\n"));
    let ran = p.ok(&format!("{SCORE} org/llama"));
    assert!(ran.err.contains("127.0.0.1 answers 500 Internal Server Error; trying again in 0.5 s"), "{ran:?}");
    assert_eq!(ran.err.matches("answers 429 Too Many Requests; trying again in 0 s").count(), 2, "{ran:?}");
}

#[test]
fn a_download_goes_on_where_it_ended() {
    let p = Place::with_data();
    let (weights, sha) = (&model()["model.safetensors"], sha256(&model()["model.safetensors"]));
    let content = format!("/content/{sha}");
    let partial = p.cached(&format!("blobs/{sha}.incomplete"));
    let ranges = |p: &Place| -> Vec<Option<String>> {
        p.hub.asked().into_iter().filter(|a| a.elsewhere).map(|a| a.range).collect()
    };
    // Cut once: it goes on by itself.
    p.hub.fail(&content, 1, Fault::Cut(1000));
    p.ok(&format!("{SCORE} org/llama"));
    assert_eq!(ranges(&p), [None, Some("bytes=1000-".into())]);
    std::fs::remove_dir_all(p.cli.path("hf")).unwrap();
    // Cut for good: what came is kept, and the next goes on.
    p.hub.fail(&content, 1, Fault::Cut(1000));
    p.hub.fail(&content, 9, Fault::Status(404, ""));
    let said = "org/llama/model.safetensors: is listed, and not there (404): try again later; 1000 B of 85.9 KiB are kept, and the same \
                command goes on from there";
    p.bad(&format!("{SCORE} org/llama"), &[], 2, said);
    assert_eq!(p.cli.bytes(&partial), weights[..1000]);
    p.hub.mend();
    ranges(&p);
    p.ok(&format!("{SCORE} org/llama"));
    assert_eq!(ranges(&p), [Some("bytes=1000-".into())]);
    assert!(!p.cli.path(&partial).exists());
    // What is there is wrong, or too long, or the server knows no ranges: from the beginning.
    let wrong = vec![b'x'; 2000];
    for (there, fault, want) in [
        (wrong.clone(), None, vec![Some("bytes=2000-".into()), None]),
        (vec![b'x'; 99999], None, vec![None]),
        (weights[..2000].to_vec(), Some(Fault::Whole), vec![Some("bytes=2000-".into())]),
        (weights.clone(), None, vec![]),
    ] {
        std::fs::remove_file(p.cli.path(&p.cached(&format!("blobs/{sha}")))).unwrap();
        p.cli.write(&partial, there);
        if let Some(fault) = fault {
            p.hub.fail(&content, 1, fault);
        }
        p.ok(&format!("{SCORE} org/llama"));
        assert_eq!(ranges(&p), want);
        assert_eq!(&p.cli.bytes(&p.cached(&format!("blobs/{sha}"))), weights);
    }
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

#[cfg(unix)]
#[test]
fn a_download_ends_where_somebody_says_so() {
    let p = Place::with_data();
    p.hub.fail("/content/", 1, Fault::Slow(Duration::from_millis(700)));
    let mut command = p.command(&format!("{SCORE} org/llama"), &[]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = std::time::Instant::now();
    while !p.hub.asked().iter().any(|a| a.elsewhere) {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
    }
    signal(&child, "INT");
    let ran = finish(child);
    let want = "stopped; what was downloaded is kept, and the same command goes on with it";
    one_line("Ctrl-C", &ran, 130, want);
    assert!(p.files().iter().any(|f| f.ends_with(".incomplete")), "{:?}", p.files());
    p.ok(&format!("{SCORE} org/llama"));
    assert!(p.files().iter().all(|f| !f.ends_with(".incomplete")), "{:?}", p.files());
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

#[test]
fn data_sets() {
    let p = Place::new();
    let parquet = |name: &str| std::fs::read(format!("{}/tests/formats/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let converted = "refs/convert/parquet";
    let lines = |from: usize| -> Vec<u8> {
        pairs(12)[from..from + 6].iter().map(|r| format!("{r}\n")).collect::<String>().into_bytes()
    };
    // Contents that are the same would come once.
    let tables = ["zstd", "gzip", "lz4", "snappy"].map(|codec| parquet(&format!("pyarrow-{codec}-1.parquet")));
    let names = ["default/test/0000", "default/train/0000", "default/train/0001", "more/partial-train/0000"];
    let names = names.map(|name| format!("{name}.parquet"));
    p.hub.put("datasets/org/rows", converted, OTHER, names.into_iter().zip(tables));
    let own = [("data/a.jsonl", lines(0)), ("data/b.jsonl", lines(6)), ("README.md", b"x".to_vec())];
    p.hub.put("datasets/org/rows", "main", COMMIT, own.clone().map(|(name, bytes)| (name.to_owned(), bytes)));
    p.hub.put("datasets/org/own", "main", COMMIT, own.map(|(name, bytes)| (name.to_owned(), bytes)));
    let pack = |input: &str, out: &str| format!("pack --tokenizer org/llama --input {input} --out {out}");

    // Files of its own: a pattern, a folder, one file; the same bytes as of files that are here.
    p.cli.write("rows.jsonl", [lines(0), lines(6)].concat());
    p.cli.ok("pack --tokenizer m --input rows.jsonl --out want");
    let want = p.cli.bytes("want/train-00000.pref");
    for (i, input) in ["hf://datasets/org/own@main/data/*.jsonl", "hf://datasets/org/own@main/data", "org/own@main"]
        .iter()
        .enumerate()
    {
        p.ok(&pack(input, &format!("own{i}")));
        assert_eq!(p.cli.bytes(&format!("own{i}/train-00000.pref")), want);
    }
    p.ok(&pack("hf://datasets/org/own/data/a.jsonl hf://datasets/org/own/data/b.jsonl", "two"));
    assert_eq!(p.cli.bytes("two/train-00000.pref"), want);
    assert!(p.files().iter().all(|f| !f.contains("README") && !f.contains("safetensors")), "{:?}", p.files());
    p.ok("generate --model m --max-new-tokens 1 --input hf://datasets/org/own/data/a.jsonl");

    // What the hub converted: `train` where nobody chose.
    p.hub.asked();
    let contents = |p: &Place| -> Vec<String> {
        let asked = p.hub.asked();
        let names =
            paths(&asked).into_iter().filter_map(|a| Some(a.split_once("/resolve/")?.1.split_once('/')?.1.to_owned()));
        names.filter(|n| n.ends_with(".parquet")).collect()
    };
    let run = |input: &str| {
        let _ = std::fs::remove_dir_all(p.cli.path("hf/hub/datasets--org--rows"));
        let ran = p.run(&format!("{} --on-bad-row drop", pack(input, "d")), &[]);
        (ran, contents(&p))
    };
    let train = ["default/train/0000.parquet", "default/train/0001.parquet"];
    let (ran, asked) = run("org/rows");
    assert_eq!(asked, train, "{ran:?}");
    let said = format!("hf://datasets/org/rows@{OTHER}: default/train is taken, of 2 configurations and 2 splits");
    assert!(ran.err.contains(&said), "{ran:?}");
    for (input, want) in [
        ("hf://datasets/org/rows/default/test", &["default/test/0000.parquet"][..]),
        ("hf://datasets/org/rows/test", &["default/test/0000.parquet"]),
        ("hf://datasets/org/rows/default", &train),
        ("hf://datasets/org/rows@~parquet/more/partial-train", &["more/partial-train/0000.parquet"]),
        (&format!("hf://datasets/org/rows@{OTHER}/default/train"), &train),
    ] {
        let (ran, asked) = run(input);
        assert_eq!(asked, want, "{input}: {ran:?}");
    }
    let of = format!("hf://datasets/org/rows@{converted}");
    for (input, code, want) in [
        ("hf://datasets/org/rows/none/train", 2, format!("{of}: has no configuration `none`: it has default, more")),
        ("hf://datasets/org/rows/default/none", 2, format!("{of}: `default` has no split `none`: it has test, train")),
        (
            "hf://datasets/org/rows/more/train",
            2,
            format!(
                "{of}: `more` has no split `train`: it has partial-train; partial-train is the beginning of it, as the hub converts no \
                 more: name that, or the data set's own files"
            ),
        ),
        ("hf://datasets/org/rows/more", 2, format!("{of}: has the splits partial-train: name one, as in .../more/partial-train")),
        (
            "org/own",
            2,
            "hf://datasets/org/own: the hub made no Parquet files of it; name files of its own, such as \
             hf://datasets/org/own@main/data/a.jsonl: it has data/a.jsonl, data/b.jsonl"
                .into(),
        ),
        (
            "hf://datasets/org/own@main/none.csv",
            2,
            "hf://datasets/org/own@main: has no rows `none.csv`, as a file, a folder or a pattern: it has data/a.jsonl, data/b.jsonl"
                .into(),
        ),
        (
            "org/none",
            2,
            format!(
                "{}: is no data set that 127.0.0.1 knows, and no path that is here; check the name, or it is private: then set HF_TOKEN",
                "hf://datasets/org/none@refs/convert/parquet"
            ),
        ),
        ("rows.jsonl.gz", 2, "rows.jsonl.gz: cannot open: No such file or directory (os error 2)".into()),
    ] {
        p.bad(&pack(input, "x"), &[], code, &want);
    }
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
