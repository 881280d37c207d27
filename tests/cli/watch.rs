//! `fusedpo watch`, where stdout is no terminal.

use crate::cli_common;

use cli_common::*;

/// `watch` with an environment that says which characters there are.
fn watch(cli: &Cli, args: &str, locale: &str) -> Ran {
    finish(
        cli.command(&format!("watch {args}"))
            .env("LC_ALL", locale)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap(),
    )
}

#[test]
fn curves_of_a_run_that_is_over() {
    let cli = Cli::with_data();
    for (stage, keys) in [("sft", ["loss", "token accuracy"]), ("dpo", ["reward margin", "accuracy"])] {
        cli.ok(&format!("{stage} --model m --data d --max-steps 6 --batch-size 3 --eval-steps 2 --out {stage}"));
        let before = cli.tree();
        for (locale, more) in [("C.UTF-8", ""), ("C.UTF-8", "--ascii"), ("C", "")] {
            let ran = watch(&cli, &format!("{stage} {more}"), locale);
            assert_eq!(ran.code, 0, "{ran:?}");
            let first = ran.out.lines().next().unwrap();
            assert!(first.starts_with(&format!("{stage}: {stage}, step 6 of 6, epoch ")), "{first}");
            assert!(first.ends_with(" s a step: finished"), "{first}");
            for key in keys {
                assert!(
                    ran.out.lines().any(|l| l.starts_with(&format!("{key} ")) && l.contains(", held out ")),
                    "{ran:?}"
                );
            }
            assert_eq!(ran.out.is_ascii(), more == "--ascii" || locale == "C", "{ran:?}");
            assert!(ran.out.lines().all(|l| l.chars().count() <= 80), "{ran:?}");
            // What was learned last stands in the title of its curve.
            let rows = cli.json_lines(&format!("{stage}/metrics.jsonl"));
            let loss = rows.iter().rev().find_map(|r| r.get("loss")?.as_f64()).unwrap();
            assert!(ran.out.contains(&format!("\nloss {loss:.4}, held out ")), "{loss}: {ran:?}");
        }
        assert_eq!(cli.tree(), before, "it only reads");
    }
}

#[test]
fn it_says_how_a_run_is() {
    let cli = Cli::with_data();
    let why = "r: is not the folder of a run: it has no metrics.jsonl";
    cli.bad("watch r --once", 2, why);
    cli.ok("sft --model m --data d --max-steps 3 --out r");
    for (outcome, error, want) in [
        ("running", "", ": killed; --resume auto goes on with it"),
        ("stopped", "", ": stopped; --resume auto goes on with it"),
        ("failed", "a\u{1b}[31m\nb", ": failed: a\\u{1b}[31m\\nb"),
        ("finished", "", ": finished"),
    ] {
        cli.edit_json("r/run.json", |r| {
            r["outcome"] = outcome.into();
            r["error"] = error.into();
        });
        let ran = watch(&cli, "r --once", "C");
        assert!(ran.code == 0 && ran.out.lines().next().unwrap().ends_with(want), "{ran:?}");
    }
    cli.write("r/run.json", "{");
    let ran = watch(&cli, "r --once", "C");
    assert!(ran.out.starts_with("r: at step 3; its run.json cannot be read\n"), "{ran:?}");
    // A line that is being written, and a run that has no line yet.
    cli.write("r/metrics.jsonl", cli.text("r/metrics.jsonl") + "{\"step\": 4, \"lo");
    assert!(watch(&cli, "r --once", "C").out.starts_with("r: at step 3;"));
    cli.write("r/metrics.jsonl", "");
    assert!(watch(&cli, "r --once", "C").out.ends_with("no step yet\n"));
}

#[test]
fn it_follows_a_run_from_before_it_begins() {
    let cli = Cli::with_data();
    let follower = cli.spawn("watch r");
    std::thread::sleep(std::time::Duration::from_millis(300));
    cli.ok("sft --model m --data d --max-steps 3 --out r");
    let ran = finish(follower);
    assert!(ran.code == 0 && ran.out.starts_with("r: not begun\n") && ran.out.contains(": finished\nloss "), "{ran:?}");
    // Ctrl-C ends it in order.
    cli.edit_json("r/run.json", |r| r["outcome"] = "running".into());
    let follower = cli.spawn("watch r");
    std::thread::sleep(std::time::Duration::from_millis(500));
    signal(&follower, "INT");
    let ran = finish(follower);
    assert!(ran.code == 130 && ran.err.ends_with("fusedpo: stopped watching; the run is as it was\n"), "{ran:?}");
}
