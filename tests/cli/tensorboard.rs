//! A run's event file, read here by nothing of the program: what `metrics.jsonl` says, step by step, and what a run that goes on
//! leaves of it. scripts/tensorboard_test.sh has the real TensorBoard, and one that looks on.

use crate::cli_common;

use cli_common::*;
use serde_json::Value;

const FILE: &str = "events.out.tfevents.fusedpo";

/// CRC-32C, bit by bit, masked.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F63B78 } else { crc >> 1 };
        }
    }
    let crc = !crc;
    crc.rotate_right(15).wrapping_add(0xA282EAD8)
}

/// A field of a message: its number, and its value as bytes (of a varint, in 8).
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut n, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            n |= u64::from(byte & 127) << shift;
            shift += 7;
            if byte < 128 {
                return n;
            }
        }
    }
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                all.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            kind => panic!("wire type {kind}"),
        };
        all.push((key >> 3, bytes[..length].to_vec()));
        bytes = &bytes[length..];
    }
    all
}

fn field(all: &[(u64, Vec<u8>)], number: u64) -> Option<&Vec<u8>> {
    all.iter().find(|(n, _)| *n == number).map(|(_, value)| value)
}

/// The events of a file, each as its fields. Panics where a record is not whole.
fn events(mut bytes: &[u8]) -> Vec<Vec<(u64, Vec<u8>)>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let at = |i: usize| u32::from_le_bytes(bytes[i..i + 4].try_into().unwrap());
        assert_eq!((at(8), at(12 + n)), (crc(&bytes[..8]), crc(&bytes[12..12 + n])));
        all.push(fields(&bytes[12..12 + n]));
        bytes = &bytes[16 + n..];
    }
    all
}

/// Of each event of scalars its step, and its tags with their values.
fn scalars(cli: &Cli, run: &str) -> Vec<(u64, Vec<(String, f32)>)> {
    let all = events(&cli.bytes(&format!("{run}/{FILE}")));
    assert_eq!(field(&all[0], 3).map(Vec::as_slice), Some(&b"brain.Event:2"[..]));
    let text = fields(&fields(field(&all[1], 5).unwrap())[0].1);
    assert_eq!(field(&text, 1).map(Vec::as_slice), Some(&b"args/text_summary"[..]));
    let said = String::from_utf8(field(&fields(field(&text, 8).unwrap()), 8).unwrap().clone()).unwrap();
    assert!(said.contains("| `learning_rate` | `") && !said.contains("/m"), "{said}");
    let scalar = |(number, bytes): &(u64, Vec<u8>)| {
        let value = fields(bytes);
        assert_eq!(*number, 1);
        let tag = String::from_utf8(field(&value, 1).unwrap().clone()).unwrap();
        (tag, f32::from_le_bytes(field(&value, 2).unwrap()[..].try_into().unwrap()))
    };
    let of = |event: &Vec<(u64, Vec<u8>)>| {
        let time = f64::from_le_bytes(field(event, 1).unwrap()[..].try_into().unwrap());
        assert!((1.7e9..1e11).contains(&time), "{time}");
        let step = u64::from_le_bytes(field(event, 2).unwrap()[..].try_into().unwrap());
        (step, fields(field(event, 5).unwrap()).iter().map(scalar).collect())
    };
    all[2..].iter().map(of).collect()
}

/// The same from `metrics.jsonl`, by transformers' rule.
fn wanted(cli: &Cli, run: &str) -> Vec<(u64, Vec<(String, f32)>)> {
    let tag = |key: &String| key.strip_prefix("eval_").map_or(format!("train/{key}"), |key| format!("eval/{key}"));
    // Intervals, which have two ends, are no scalars.
    let of = |row: &Value| {
        let row = row.as_object().unwrap();
        let scalars = row.iter().filter(|(key, x)| *key != "step" && !x.is_array());
        (row["step"].as_u64().unwrap(), scalars.map(|(key, x)| (tag(key), x.as_f64().unwrap() as f32)).collect())
    };
    cli.json_lines(&format!("{run}/metrics.jsonl")).iter().map(of).collect()
}

#[test]
fn it_says_what_the_metrics_say_after_whatever_became_of_the_run() {
    let cli = Cli::with_data();
    let run = |stage: &str, out: &str, more: &str| {
        cli.ok(&format!("{stage} --model m --data d --batch-size 3 --eval-steps 2 --save-steps 2 --save-total-limit 0 {more} --out {out}"))
    };
    for stage in ["sft", "dpo"] {
        run(stage, stage, "--max-steps 6 --lr-scheduler-type constant");
        assert_eq!(scalars(&cli, stage), wanted(&cli, stage), "{stage}");
        assert_eq!(scalars(&cli, stage).len(), 6 + 4, "{stage}");
    }
    let whole = cli.bytes(&format!("dpo/{FILE}"));
    // From a checkpoint of its own: cut, and written again; with damage before or after it, too.
    for damage in [None, Some(whole.len() / 5), Some(whole.len() - 9)] {
        let mut bytes = whole.clone();
        damage.iter().for_each(|at| bytes[*at] ^= 4);
        cli.write(&format!("dpo/{FILE}"), bytes);
        run("dpo", "dpo", "--max-steps 6 --lr-scheduler-type constant --resume dpo/checkpoint-4");
        assert_eq!(scalars(&cli, "dpo"), wanted(&cli, "dpo"), "{damage:?}");
        assert_eq!(cli.bytes(&format!("dpo/{FILE}")).len(), whole.len());
    }
    // The times of what stays are those of then.
    let first = |bytes: &[u8]| events(bytes)[..4].to_vec();
    let again = cli.bytes(&format!("dpo/{FILE}"));
    cli.write(&format!("dpo/{FILE}"), &again);
    run("dpo", "dpo", "--max-steps 6 --lr-scheduler-type constant --resume dpo/checkpoint-2");
    assert_eq!(first(&cli.bytes(&format!("dpo/{FILE}"))), first(&again));
    // Without anybody to write it is cut; with somebody again, all is there.
    run("dpo", "dpo", "--max-steps 6 --lr-scheduler-type constant --resume dpo/checkpoint-4 --report-to none");
    let (cut, all) = (scalars(&cli, "dpo"), wanted(&cli, "dpo"));
    assert_eq!(cut[..], all[..cut.len()]);
    assert!(cut.last().unwrap().0 <= 4 && all.last().unwrap().0 == 6);
    run("dpo", "dpo", "--max-steps 6 --lr-scheduler-type constant --resume dpo/checkpoint-6");
    assert_eq!(scalars(&cli, "dpo"), wanted(&cli, "dpo"));
    // Elsewhere it begins where the metrics do.
    run("dpo", "other", "--max-steps 6 --lr-scheduler-type constant --resume dpo/checkpoint-4");
    assert_eq!(scalars(&cli, "other"), wanted(&cli, "other"));
    assert!(scalars(&cli, "other")[0].0 >= 4);
    real(&cli, &["sft", "dpo", "other"]);
}

/// TensorBoard itself, where it is installed.
fn real(cli: &Cli, runs: &[&str]) {
    let Some(python) = std::env::var_os("FUSEDPO_PYTHON") else {
        return println!("skipped: TensorBoard itself (FUSEDPO_PYTHON is not set)");
    };
    let import = std::process::Command::new(&python).args(["-c", "import tensorboard"]).output().unwrap();
    if !import.status.success() {
        return println!("skipped: TensorBoard itself (none in FUSEDPO_PYTHON; scripts/tensorboard_test.sh gets one)");
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/tensorboard_check.py");
    let ran = std::process::Command::new(python).arg(script).args(runs).current_dir(cli.dir.path()).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
}

#[test]
fn what_it_refuses() {
    let cli = Cli::with_data();
    let base = "dpo --model m --data d --out r --max-steps 1";
    for name in ["wandb", "all", "tensorboard,wandb"] {
        let ran = cli.run(&format!("{base} --report-to {name}"));
        let said = ran.err.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(ran.code == 2 && said.contains("scripts/log_to.py gives its metrics to wandb, mlflow"), "{ran:?}");
    }
    cli.write("c.yaml", "model_name_or_path: m\ndata: d\noutput_dir: r\nmax_steps: 1\nreport_to: [wandb]\n");
    cli.bad(
        "dpo --config c.yaml",
        2,
        "c.yaml: `report_to` wandb: event files for TensorBoard are all that a run writes; scripts/log_to.py gives its metrics to \
         wandb, mlflow and trackio while it goes on or later: write tensorboard or none",
    );
    // Not through a link that somebody planted.
    cli.ok(base);
    #[cfg(unix)]
    {
        std::fs::remove_file(cli.path(&format!("r/{FILE}"))).unwrap();
        std::os::unix::fs::symlink("m/config.json", cli.path(&format!("r/{FILE}"))).unwrap();
        let before = cli.bytes("m/config.json");
        let want = format!("r/{FILE}: is not a regular file");
        std::fs::remove_file(cli.path("r/run.json")).unwrap();
        let ran = cli.run(&format!("{base} --resume auto"));
        assert!(ran.code == 2 && ran.err.lines().last() == Some(&format!("fusedpo: {want}")), "{ran:?}");
        assert_eq!(cli.bytes("m/config.json"), before);
    }
}
