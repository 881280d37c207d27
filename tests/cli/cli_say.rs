//! How much is said, where it is kept, and with how many threads the work is done.

use crate::cli_common;

use cli_common::*;

/// `--quiet` and `--log-level` take lines from stderr, never a result from stdout nor a line from the run's log.
#[test]
fn a_quiet_program_says_warnings_and_errors_alone() {
    let cli = Cli::with_data();
    let run = "dpo --model m --data d --device cpu --max-steps 2 --learning-rate 0";
    // The reference's log-probs are found from here on.
    cli.ok("reference --model m --data d --device cpu");
    let loud = cli.ok(&format!("{run} --out loud"));
    let warning = "warning: the learning rate is 0: no weight will change; give a larger --learning-rate\n";
    let untimed = |text: &str| text.lines().next().unwrap().split(" in ").next().unwrap().to_owned();
    for (level, stderr) in [
        ("--quiet", warning),
        ("-q", warning),
        ("--log-level warning", warning),
        ("--log-level warn", warning),
        ("--log-level error", ""),
    ] {
        let out = level.trim_start_matches('-').replace(' ', "-");
        let ran = cli.ok(&format!("{run} --out {out} {level}"));
        assert_eq!(ran.err, stderr, "{level}");
        assert_eq!(
            (ran.out.lines().count(), untimed(&ran.out)),
            (loud.out.lines().count(), untimed(&loud.out)),
            "{level}"
        );
        // The log has what a terminal would have had.
        let texts = |run: &str| -> Vec<String> {
            let log = cli.text(&format!("{run}/run.log"));
            let words =
                log.lines().map(|l| l.split_once(' ').unwrap().1).filter(|l| !l.contains(" s") && !l.contains("MiB"));
            words.map(|l| l.replace(run, "RUN")).collect()
        };
        assert_eq!(texts(&out).len(), texts("loud").len(), "{level}: {:?}", texts(&out));
        assert!(cli.bytes(&format!("{out}/model.safetensors")) == cli.bytes("loud/model.safetensors"), "{level}");
    }
    assert_eq!(cli.ok(&format!("{run} --out info --log-level info")).err.lines().count(), loud.err.lines().count());
    // Before the command as behind it; an error is always said.
    cli.bad(
        "--quiet dpo --model none --data d --out r",
        2,
        "none: no such directory; expected a Hugging Face model directory with config.json and model.safetensors, or a name on the hub: org/name",
    );
    let ran = cli.run("dpo --model m --data d --out r --quiet --log-level info");
    assert!(ran.code == 2 && ran.err.contains("cannot be used with"), "{ran:?}");
    assert_eq!(cli.ok("pack --tokenizer m --input rows.jsonl --out e -q").err, "");
    assert_eq!(cli.ok("eval --model m --data d -q").err, "");
}

/// What was said of a run stands in its folder, with the time; of one that could not begin nothing stands anywhere.
#[test]
fn a_run_keeps_what_it_said() {
    let cli = Cli::with_data();
    let ran = cli.ok("dpo --model m --data d --device cpu --max-steps 4 --save-steps 2 --out r");
    let log = cli.text("r/run.log");
    let lines: Vec<(&str, &str)> = log.lines().map(|l| l.split_once(' ').unwrap()).collect();
    for (stamp, _) in &lines {
        let time = chrono::DateTime::parse_from_rfc3339(stamp).unwrap();
        assert!(
            stamp.len() == 20 && stamp.ends_with('Z') && (chrono::Utc::now() - time.to_utc()).num_seconds() < 120,
            "{stamp}"
        );
    }
    let command = lines[0].1;
    assert!(
        command.starts_with("fusedpo 0.")
            && command.ends_with("dpo --model m --data d --device cpu --max-steps 4 --save-steps 2 --out r"),
        "{command}"
    );
    // Every line of both streams, in order.
    let mut all = lines[1..].iter().map(|(_, text)| *text);
    for line in ran.err.lines() {
        assert!(all.any(|text| text == line), "{line} in {log}");
    }
    for line in ran.out.lines() {
        assert!(all.any(|text| text == line), "{line} in {log}");
    }
    // A run that goes on adds to it.
    cli.ok("dpo --config r/config.toml --resume r/checkpoint-2 --out r");
    let more = cli.text("r/run.log");
    assert!(more.starts_with(&log) && more[log.len()..].contains("going on after step 2"), "{more}");
    // Not through a link that somebody planted, and not at the cost of the run.
    #[cfg(unix)]
    {
        std::fs::remove_file(cli.path("r/run.log")).unwrap();
        cli.write("mine", "mine");
        std::os::unix::fs::symlink("../mine", cli.path("r/run.log")).unwrap();
        let ran = cli.ok("dpo --config r/config.toml --resume r/checkpoint-2 --out r");
        assert!(ran.err.contains("warning: r/run.log: is not a regular file; the run goes on without it\n"), "{ran:?}");
        assert_eq!(cli.text("mine"), "mine");
    }
    cli.bad("dpo --model m --data d --out new --max-steps 2 --token-budget 3 --device cpu", 2, &{
        let ran = cli.run("dpo --model m --data d --out new --max-steps 2 --token-budget 3 --device cpu");
        ran.err.trim_end().rsplit("fusedpo: ").next().unwrap().to_owned()
    });
}

#[test]
fn threads_change_no_result() {
    let cli = Cli::with_data();
    let run = |args: &str, out: &str| {
        cli.ok(&format!("dpo --model m --data d --device cpu --max-steps 3 --learning-rate 1e-3 {args} --out {out}"))
            .err
    };
    let said = [1, 2, 5].map(|n| run(&format!("--threads {n}"), &format!("r{n}")));
    for (n, said) in [1, 2, 5].iter().zip(&said) {
        assert!(said.contains(&format!("CPU, {n} thread")), "{n}: {said}");
        assert!(cli.bytes(&format!("r{n}/model.safetensors")) == cli.bytes("r1/model.safetensors"), "{n}");
        assert_eq!(rows(&cli, &format!("r{n}")), rows(&cli, "r1"), "{n}");
    }
    // It wins over the environment, which the tests set.
    assert!(run("", "r").contains("CPU, 2 threads"));
    let ran = cli.run("doctor --threads 100000");
    assert!(ran.code == 2 && ran.err.starts_with("fusedpo: --threads 100000: at most "), "{ran:?}");
    for bad in ["0", "x", "1.5", "99999999999999999999"] {
        let ran = cli.run(&format!("doctor --threads {bad}"));
        assert!(ran.code == 2 && ran.err.contains("give a whole number, 1 or more"), "{ran:?}");
    }
}
