//! `fusedpo report`: what stands on the page, what of strangers does not, its size, and that it is always the same.

use crate::cli_common::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const STEPS: &str = "--model m --data d --max-steps 4 --token-budget 64 --batch-size 2 --learning-rate 1e-3 --device cpu --eval-steps 2";

/// `n` rows of steps, with an evaluation at both ends.
fn metrics(n: usize) -> String {
    let mut text = String::new();
    for step in 0..=n {
        let x = step as f64 / n as f64;
        let noise = ((step * 7919) % 1009) as f64 / 1009.0;
        if step > 0 {
            let row = json!({
                "step": step, "loss": 0.69 - 0.3 * x + 0.1 * noise, "grad_norm": 3.0 + 40.0 * noise * noise,
                "learning_rate": 1e-5 * (1.0 - x), "epoch": x, "num_tokens": step * 1000, "entropy": 2.0 - x + noise / 7.0,
                "mean_token_accuracy": 0.5 + noise / 10.0, "rewards/chosen": x + noise, "rewards/rejected": -x - noise,
                "rewards/accuracies": 0.5 + 0.4 * x, "rewards/margins": 2.0 * x, "logps/chosen": -90.0 - 10.0 * noise,
                "logps/rejected": -95.0 - 30.0 * x, "step_seconds": 0.1 + noise / 30.0, "tokens_per_second": 9000.0 + 800.0 * noise,
                "pairs_per_second": 80.0 + noise, "samples_per_second": 80.0 + noise,
            });
            text += &format!("{row}\n");
        }
        if step == 0 || step == n {
            let row = json!({"step": step, "eval_loss": 0.69 - 0.2 * x, "eval_rewards/accuracies": 0.5 + 0.3 * x,
                "eval_rewards/accuracies_ci95": [0.4 + 0.3 * x, 0.6 + 0.3 * x], "eval_other_loss": 0.7});
            text += &format!("{row}\n");
        }
    }
    text
}

fn folder(cli: &Cli, name: &str, metrics: &str) {
    std::fs::create_dir_all(cli.path(name)).unwrap();
    cli.write(&format!("{name}/metrics.jsonl"), metrics);
}

/// Tags that are opened and never closed, or closed in another order; void ones apart.
fn unbalanced(page: &str) -> Vec<String> {
    let (mut open, mut bad) = (Vec::new(), Vec::new());
    let body = page.split("<script").next().unwrap();
    for tag in body.split('<').skip(1) {
        let inside = tag.split('>').next().unwrap();
        let name = inside.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap().to_owned();
        if inside.starts_with('!') || inside.ends_with('/') || ["meta", "input", "br"].contains(&name.as_str()) {
            continue;
        }
        match inside.starts_with('/') {
            false => open.push(name),
            true if open.last() == Some(&name) => drop(open.pop()),
            true => bad.push(format!("</{name}> within {open:?}")),
        }
    }
    // The page is cut at its scripts.
    open.retain(|name| !["html", "body"].contains(&name.as_str()));
    bad.extend(open);
    bad
}

/// What the script reads.
fn numbers(page: &str) -> Value {
    let text = page.split("id=\"numbers\">").nth(1).unwrap().split("</script>").next().unwrap();
    serde_json::from_str(text).unwrap()
}

/// Runs of both kinds, as they are: every section, one bold line a run and quantity, options that differ, and the same bytes again.
#[test]
fn a_page_of_runs() {
    let cli = Cli::with_data();
    cli.ok(&format!("sft {STEPS} --out s"));
    cli.ok(&format!("dpo {STEPS} --out a"));
    cli.ok(&format!("dpo {STEPS} --out b --beta 0.37"));
    let said = cli.ok("report s a b --out page.html");
    assert!(
        said.out.starts_with("a page of 3 runs, ") && said.out.ends_with(": page.html\n") && said.err.is_empty(),
        "{said:?}"
    );
    let page = cli.text("page.html");
    assert_eq!(unbalanced(&page), [""; 0]);
    for id in ["overview", "curves", "held-out", "pairs", "configuration", "data"] {
        assert!(page.contains(&format!("<section id=\"{id}\"")), "{id}");
    }
    assert!(!page.contains("<section id=\"samples\"") && !page.contains("http-equiv=\"refresh\""));
    for outside in ["src=", "url(", "@import", "<link", "<iframe", "style=\""] {
        assert!(!page.contains(outside), "{outside}");
    }
    let numbers = numbers(&page);
    assert_eq!(numbers["runs"], json!(["s", "a", "b"]));
    let charts = numbers["charts"].as_array().unwrap();
    let titles: BTreeSet<&str> = charts.iter().map(|c| c["title"].as_str().unwrap()).collect();
    for title in
        ["Loss", "Accuracy", "Reward margin", "Log-prob, chosen", "Learning rate", "Gradient norm", "Tokens a second"]
    {
        assert!(titles.contains(title), "{titles:?}");
    }
    assert_eq!(page.matches("<figure ").count(), charts.len());
    assert_eq!(page.matches("class=\"chart\"").count(), charts.len());
    // Of the loss three lines of training and three of held-out rows, with the runs' own numbers.
    for (run, name) in ["s", "a", "b"].iter().enumerate() {
        let line =
            charts[0]["lines"].as_array().unwrap().iter().find(|l| l["run"] == run && l["set"].is_null()).unwrap();
        let want: Vec<f64> = rows(&cli, name).iter().filter_map(|r| r.get("loss")?.as_f64()).collect();
        let is: Vec<f64> = line["mean"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        assert!(
            want.len() == 4 && want.iter().zip(&is).all(|(a, b)| (a - b).abs() <= 1e-4 * a.abs()),
            "{want:?} {is:?}"
        );
    }
    assert_eq!(charts[0]["lines"].as_array().unwrap().len(), 6);
    let differ = page.split("Options that differ</h3>").nth(1).unwrap().split("<details>").next().unwrap();
    assert!(differ.contains(">beta<") && differ.contains("0.37") && !differ.contains(">batch_size<"), "{differ}");
    assert!(page.contains(cli.json_lines("a/metrics.jsonl").len().to_string().as_str()));
    // Of both ledgers the hardest pairs, as `analyze` has them; sft has none.
    let pairs = page.split("<section id=\"pairs\"").nth(1).unwrap().split("</section>").next().unwrap();
    assert_eq!(pairs.matches("The hardest pairs").count(), 2, "{pairs}");
    for run in ["a", "b"] {
        let hardest = cli.ok(&format!("analyze {run} --json --show 8")).json()["hardest"]["examples"].clone();
        for e in hardest.as_array().unwrap() {
            let (row, step) = (&e["row"], &e["step"]);
            assert!(
                pairs.contains(&format!("<h4>Row {row}, loss ")) && pairs.contains(&format!(" at step {step}, ")),
                "{e}"
            );
            assert!(pairs.contains(e["prompt"].as_str().unwrap().trim()), "{e}");
        }
    }
    let hash =
        serde_json::from_str::<Value>(&cli.text("a/run.json")).unwrap()["sha256"]["data"].as_str().unwrap().to_owned();
    assert!(page.contains(&hash) && page.contains("responses cut") == page.contains("cut at the longest"), "{hash}");
    assert_eq!(cli.ok("report s a b --out -").out, page);
    cli.bad("report a --out page.html", 2, "page.html: exists; name another file, or --overwrite to replace it");
    cli.ok("report a --out page.html --overwrite");
    assert!(cli.text("page.html").contains("<dl class=\"tiles\">"));
}

/// The best evaluation, what ended the run early, sets by name, memory: all that a run says of its evaluations.
#[test]
fn what_followed_from_evaluations_is_shown() {
    let cli = Cli::with_data();
    let often = "dpo --model m --data d --device cpu --dtype f32 --learning-rate 0.02 --lr-scheduler-type constant --batch-size 3 \
                 --token-budget 64 --eval-steps 2 --max-steps 40 --eval-data it=d";
    let out = cli.ok(&format!("{often} --load-best-model-at-end --early-stopping-patience 3 --out a")).out;
    // The set is the held-out split once more: what is said of either is of the same model.
    let said = |of: &str| out.lines().find_map(|line| line.strip_prefix(of)).map(|line| line.trim().to_owned());
    let [own, set] =
        ["held-out after:", "held-out it, after:"].map(|of| said(of).unwrap_or_else(|| panic!("{of} {out}")));
    assert_eq!(own, set);
    let run: Value = serde_json::from_str(&cli.text("a/run.json")).unwrap();
    let (best, done) = (run["best"]["step"].as_u64().unwrap(), run["steps_done"].as_u64().unwrap());
    assert!(0 < best && best < done && done < 40, "{run}");
    cli.ok("report a --out page.html");
    let page = cli.text("page.html");
    assert_eq!(unbalanced(&page), [""; 0]);
    let overview = page.split("<section id=\"overview\"").nth(1).unwrap().split("</section>").next().unwrap();
    let value = fusedpo::chart::short(run["best"]["value"].as_f64().unwrap());
    let said = format!("step {best} <small>eval_loss {value}; the model is that of it</small>");
    assert!(overview.contains(&said), "{said}: {overview}");
    let loss = format!("<dt>Held-out loss</dt><dd>{value} <small>from ");
    assert!(overview.contains(&loss), "{loss}: {overview}");
    let early = format!("it ended at step {done} of 40: 3 evaluations in a row without a better eval_loss");
    assert!(overview.contains(&early) && overview.contains(">Memory, at most<"), "{early}: {overview}");
    let held_out = page.split("<section id=\"held-out\"").nth(1).unwrap().split("</section>").next().unwrap();
    for set in ["The held-out split", "Set it"] {
        let table = held_out.split(&format!("<h3>{set}</h3>")).nth(1).unwrap_or_else(|| panic!("{set}: {held_out}"));
        let head = format!("step 0</th><th scope=\"col\">step {best}, the best</th><th scope=\"col\">step {done}</th>");
        assert!(table.contains(&head) && table.contains("colspan=\"3\""), "{set}: {table}");
        let row = table.split("<th scope=\"row\">Loss</th>").nth(1).unwrap().split("</tr>").next().unwrap();
        assert_eq!(row.matches("<td").count(), 3, "{row}");
        assert!(row.contains(&format!("<td>{value} ")), "{row}: {value}");
    }
    let hash = run["sha256"]["eval_sets"]["it"].as_str().unwrap();
    let row = page.split(">set it<").nth(1).unwrap().split("</tr>").next().unwrap();
    assert!(row.contains(hash), "{row}");
    // Memory has its picture.
    let charts = numbers(&page);
    let charts = charts["charts"].as_array().unwrap();
    let memory = charts.iter().find(|c| c["title"] == "Memory, bytes").unwrap();
    let most = memory["lines"][0]["mean"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).fold(0.0, f64::max);
    assert!((1e6..1e10).contains(&most), "{memory}");
    // Not the one that the model is of, where that was not asked for; best and last are one column where they are one.
    cli.ok(&format!("{} --early-stopping-patience 9 --out b", often.replace("--max-steps 40", "--max-steps 2")));
    cli.ok("report b --out b.html");
    let page = cli.text("b.html");
    assert!(page.contains("step 2 <small>eval_loss ") && page.contains("; the model is that of the last step</small>"));
    assert!(page.contains("step 0</th><th scope=\"col\">step 2, the best</th></tr>"), "{page}");
}

/// A line that is too long to be one counts as one, wherever its pieces end.
#[test]
fn lines_that_are_too_long_are_one_each() {
    let cli = Cli::new();
    let row = |step: usize| format!("{{\"step\": {step}, \"loss\": 0.5}}");
    const MIB: usize = 1 << 20;
    for long in [MIB - 1, MIB, MIB + 1, 2 * MIB - 1, 2 * MIB, 3 * MIB + 7] {
        // What its last piece holds would be a row by itself.
        let long = format!("{}{}", " ".repeat(long - row(3).len()), row(3));
        folder(&cli, "a", &format!("{}\n{long}\n{}\nbad\n{}\n", row(1), row(4), row(5)));
        let ran = cli.ok("report a --out page.html --overwrite");
        let (bad, first) = if long.len() < MIB { (1, 4) } else { (2, 2) };
        let said = format!("{bad} lines cannot be read, the first is line {first}; they are left out");
        assert!(ran.err.contains(&said), "{}: {said}: {ran:?}", long.len());
        let loss = numbers(&cli.text("page.html"))["charts"][0]["lines"][0]["from"].clone();
        assert_eq!(loss, if long.len() < MIB { json!([1, 3, 4, 5]) } else { json!([1, 4, 5]) }, "{}", long.len());
    }
    // The last of a file, without its end.
    folder(&cli, "a", &format!("{}\n{}", row(1), "x".repeat(2 * MIB + 3)));
    let ran = cli.ok("report a --out page.html --overwrite");
    assert!(ran.err.contains("1 lines cannot be read, the first is line 2;"), "{ran:?}");
}

/// What strangers wrote is text, wherever it stands.
#[test]
fn what_strangers_wrote_is_text() {
    let cli = Cli::with_data();
    cli.ok(&format!("dpo {STEPS} --out a"));
    let hostile =
        "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"' onload='x' \u{202e}\u{2028}\u{7}&lt;";
    cli.edit_json("a/run.json", |r| {
        r["options"][hostile] = hostile.into();
        r["command"] = json!([hostile]);
        r["error"] = hostile.into();
        r["device"] = hostile.into();
        r["machine"]["host"] = hostile.into();
    });
    let mut all = cli.text("a/metrics.jsonl");
    all += &format!(
        "{}\n",
        json!({"step": 4, hostile: 1.5, format!("eval_{hostile}_loss"): 1.5, format!("eval_{hostile}"): 2})
    );
    cli.write("a/metrics.jsonl", all);
    let sample = json!({"step": 4, "row": 3, "prompt": hostile, "policy": hostile, "reference": format!("x {hostile}"),
        "policy_tokens": 7, "policy_finished": false, "reference_tokens": 9, "reference_finished": true});
    cli.write("a/samples.jsonl", format!("{sample}\n{{\"step\": 4, \"pro"));
    cli.write_rows("d/report.json", &[]);
    // The folder itself has such a name.
    let name = "<script>alert(2)<\u{202e}b>\"'";
    std::fs::rename(cli.path("a"), cli.path(name)).unwrap();
    let ran = cli.command("report").arg(name).args(["--out", "page.html"]).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    let page = cli.text("page.html");
    assert_eq!(page.matches("<script").count(), 2, "the page's own");
    assert_eq!(page.matches("</script").count(), 2);
    // In what the script reads quotes end nothing.
    let shown = page.split("<script").next().unwrap();
    assert!(!shown.contains("onload='") && !shown.contains("onerror=\""));
    for tag in ["<img", "\u{202e}", "\u{2028}", "\u{7}"] {
        assert!(!page.contains(tag), "{tag:?}");
    }
    assert!(
        page.contains("&lt;/script&gt;&lt;script&gt;alert(1)")
            && page.contains("\\u{202e}")
            && page.contains("&amp;lt;")
    );
    assert_eq!(unbalanced(&page), [""; 0]);
    // Parsed again, the names that the script shows have nothing in them that deceives.
    assert!(!numbers(&page).to_string().contains(['\u{202e}', '\u{2028}']));
    assert!(
        page.contains("<section id=\"samples\"")
            && page.contains("7 tokens, without an end")
            && page.contains("<del>x ")
    );
}

/// 100,000 steps: under 3 MB, the extremes there, and the numbers that are none told.
#[test]
fn a_long_run_is_a_small_page() {
    let cli = Cli::new();
    let text = metrics(100_000);
    let spike = |line: &str| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        if row["step"] == 77_777 && row.get("loss").is_some() {
            row["loss"] = 123.5.into();
        }
        if row["step"] == 50_000 && row.get("loss").is_some() {
            row["loss"] = Value::Null;
        }
        format!("{row}\n")
    };
    folder(&cli, "long", &text.lines().map(spike).collect::<String>());
    let begin = std::time::Instant::now();
    let ran = cli.ok("report long --out page.html");
    let page = cli.text("page.html");
    println!("{} bytes, {:.2} s", page.len(), begin.elapsed().as_secs_f64());
    assert!(page.len() < 3_000_000, "{}", page.len());
    assert!(ran.err.contains("warning: long: run.json is missing, so its configuration is not known"), "{ran:?}");
    assert!(page.contains("goes up to 123.5 at step 77777, beyond the picture"));
    assert!(
        page.contains("1 step has no finite number, the first is step 50000") || page.contains("1 step have"),
        "lost"
    );
    assert!(page.contains("[0.7, 0.9]") && page.contains("Set other"));
    let loss = &numbers(&page)["charts"][0]["lines"][0];
    assert!((400..=800).contains(&loss["mean"].as_array().unwrap().len()));
    let high = loss["high"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).fold(0.0, f64::max);
    assert_eq!(high, 123.5);
    // Twelve of them are no larger than that.
    for i in 0..12 {
        folder(&cli, &format!("r{i}"), &metrics(3000));
    }
    let names: Vec<String> = (0..12).map(|i| format!("r{i}")).collect();
    cli.ok(&format!("report {} --out twelve.html", names.join(" ")));
    assert!(cli.bytes("twelve.html").len() < 6_000_000, "{}", cli.bytes("twelve.html").len());
}

/// Whatever became of a folder: what can be shown is, with what a reader should know; what is no run's is refused.
#[test]
fn folders_of_all_kinds() {
    let cli = Cli::with_data();
    cli.ok(&format!("dpo {STEPS} --out a"));
    let page = |cli: &Cli| cli.text("page.html");
    let report = |args: &str| cli.ok(&format!("report {args} --out page.html --overwrite"));
    // Killed in the middle of a line.
    let whole = cli.text("a/metrics.jsonl");
    folder(&cli, "killed", &whole[..whole.len() - 9]);
    cli.write("killed/run.json", cli.text("a/run.json").replace("\"finished\"", "\"running\""));
    let ran = report("killed");
    assert!(ran.err.contains("is cut short") && page(&cli).contains(">killed</span>"), "{ran:?}");
    // Rubbish between rows, steps that go back, a record that is none.
    folder(&cli, "worn", &format!("{whole}no json\n[1]\n{}", whole.lines().next().unwrap()));
    cli.write("worn/run.json", "{\"version\": 7");
    let ran = report("worn");
    for said in ["2 lines cannot be read, the first is line", "run.json is damaged", "not after the one before"] {
        assert!(ran.err.contains(said) && page(&cli).contains(said), "{said}: {ran:?}");
    }
    // No step yet.
    folder(&cli, "new", "");
    assert!(report("new").err.contains("no step has been written down") && !page(&cli).contains("<figure"));
    // Nothing but what is no number.
    folder(&cli, "nan", "{\"step\": 1, \"loss\": null}\n{\"step\": 2, \"loss\": null}\n");
    report("nan a");
    // Two of one name.
    std::fs::create_dir(cli.path("x")).unwrap();
    folder(&cli, "x/a", &whole);
    report("a x/a");
    assert_eq!(numbers(&page(&cli))["runs"][1], "x/a");
    // Data that is no longer there, and other data in its place.
    std::fs::rename(cli.path("d"), cli.path("e")).unwrap();
    report("a");
    assert!(!page(&cli).contains("<section id=\"data\""));
    std::fs::remove_file(cli.path("page.html")).unwrap();
    cli.bad("report a ./a --out page.html", 2, "./a is named twice; name each run once");
    cli.bad("report m --out page.html", 2, "m: is not the folder of a run: it has no metrics.jsonl");
    cli.bad("report none --out page.html", 2, "none: is not the folder of a run: it has no metrics.jsonl");
    folder(&cli, "foreign", "epoch,loss\n1,2\n");
    cli.bad(
        "report foreign --out page.html",
        2,
        "foreign/metrics.jsonl: none of its 2 lines is a row of a run: a JSON object with a `step`",
    );
    cli.edit_json("a/run.json", |r| r["version"] = "99.1.0".into());
    let ours = env!("CARGO_PKG_VERSION");
    let why = format!("a/run.json: was written by fusedpo 99.1.0, and this is {ours}: a newer version reads it");
    cli.bad("report a --out page.html", 2, &why);
    for command in ["analyze a", "watch a --once", "replay a 1", "dpo --config a/config.toml --out a --resume auto"] {
        cli.bad(command, 2, &why);
    }
    let many = (0..13).map(|i| format!("r{i}")).collect::<Vec<_>>().join(" ");
    cli.bad(&format!("report {many} --out page.html"), 2, "13 runs: a page shows 1 to 12; name fewer");
}
