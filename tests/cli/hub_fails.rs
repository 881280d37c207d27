//! What is said when the hub, or the way to it, fails; and downloads that go on, or end, where somebody says so.

use crate::cli_common::{finish, one_line, signal};
use crate::hub::{Place, SCORE, model};
use crate::hub_server::{COMMIT, Fault, blob, sha256};
use serde_json::json;
use std::process::Stdio;
use std::time::Duration;

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
