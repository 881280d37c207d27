//! `pack` on real preference data: counts, savings, oddities and truncation that were checked against other programs.

use crate::pack_common;

use fusedpo::data::input::FieldMap;
use fusedpo::data::pack::{DropReason, PackOptions, PackReport, pack};
use fusedpo::data::shard::{Dataset, Split};
use pack_common::test_data;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Packs `input` with the SmolLM2 tokenizer into `dir`/out, without a length limit unless `change` sets one.
fn run(data: &Path, dir: &Path, input: &str, change: impl FnOnce(&mut PackOptions)) -> PackReport {
    let mut o = PackOptions::new(
        data.join("data/tokenizers/smollm2.json"),
        vec![data.join("data").join(input)],
        dir.join("out"),
    );
    o.tokenizer_options.eos_token = Some("<|im_end|>".into());
    (o.max_length, o.overwrite) = (0, true);
    change(&mut o);
    let report = pack(&o, &mut |_| Ok(())).unwrap();
    Dataset::open(&o.out, Split::Train).unwrap().verify().unwrap();
    report
}

fn dropped(report: &PackReport, reason: DropReason) -> u64 {
    report.dropped.get(&reason).map_or(0, |d| d.rows)
}

#[test]
fn real_data_sets_give_known_counts_and_savings() {
    let Some(data) = test_data("real_data_sets_give_known_counts_and_savings") else { return };
    let dir = tempfile::tempdir().unwrap();
    let saving = |report: &PackReport, want: f64| {
        let got = report.train.saving_percent();
        assert!((got - want).abs() <= 0.5, "{got:.1} %, expected {want} %");
    };
    let hh = run(&data, dir.path(), "hh-harmless/test.jsonl.gz", |_| {});
    assert_eq!((hh.rows_read, hh.train.pairs, hh.train.responses), (2312, 2312, 4624));
    saving(&hh, 37.0);
    let uf = run(&data, dir.path(), "ultrafeedback-1200/train_clean.jsonl.gz", |o| {
        o.inputs.push(data.join("data/ultrafeedback-1200/eval_clean.jsonl.gz"));
    });
    assert_eq!((uf.rows_read, dropped(&uf, DropReason::ChosenEqualsRejected)), (1200, 5));
    saving(&uf, 20.0);
    let qa = run(&data, dir.path(), "qa-feedback/scored.jsonl.gz", |_| {});
    assert_eq!((qa.rows_read, qa.train.groups, qa.train.responses), (500, 500, 2000));
    assert!(qa.train.saving_percent() > 79.0, "{:.1} %", qa.train.saving_percent());
    let gsm = run(&data, dir.path(), "gsm8k/scored.jsonl.gz", |_| {});
    assert_eq!((gsm.rows_read, gsm.train.responses), (1319, 5276));
    let persona = run(&data, dir.path(), "persona/agreeableness.jsonl", |o| {
        o.map =
            FieldMap::parse("prompt=question,chosen=answer_matching_behavior,rejected=answer_not_matching_behavior")
                .unwrap();
    });
    assert_eq!(persona.rows_kept, persona.rows_read);
    assert_eq!(persona.response_lengths.max, 2, "one token and EOS");
    let text = run(&data, dir.path(), "movie-reviews/movie_reviews.jsonl.gz", |_| {});
    assert_eq!((text.train.groups, text.train.pairs), (2000, 0));
}

#[test]
fn pandalms_unusable_responses_are_counted() {
    let Some(data) = test_data("pandalms_unusable_responses_are_counted") else { return };
    let dir = tempfile::tempdir().unwrap();
    let report = run(&data, dir.path(), "pandalm/testset-v1.json", |o| {
        o.map = FieldMap::parse("prompt=instruction,chosen=response1,rejected=response2").unwrap();
    });
    let drops = |reason| dropped(&report, reason);
    assert_eq!((drops(DropReason::EmptyResponse), drops(DropReason::NonStringResponse)), (54, 6));
}

#[test]
fn truncation_keeps_what_trl_keeps() {
    let Some(data) = test_data("truncation_keeps_what_trl_keeps") else { return };
    let golden = std::fs::read(data.join("goldens/golden_tokenization.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let input: PathBuf = dir.path().join("row.jsonl");
    // A second, short row keeps the data set from being empty where the first is dropped.
    let other = r#"{"prompt":"x","chosen":" y","rejected":" z"}"#;
    std::fs::write(&input, format!("{}\n{other}\n", golden["truncation"]["input"])).unwrap();
    for case in golden["truncation"]["cases"].as_array().unwrap() {
        let max = case["max_length"].as_u64().unwrap() as usize;
        run(&data, dir.path(), "", |o| {
            o.max_length = max;
            o.inputs = vec![input.clone()];
        });
        let packed = Dataset::open(&dir.path().join("out"), Split::Train).unwrap();
        let kept = case["kept"].as_bool().unwrap();
        assert_eq!(packed.num_groups(), 1 + u64::from(kept), "max_length {max}");
        if !kept {
            continue;
        }
        let group = packed.group(0);
        assert_eq!(group.prompt().len() as u64, case["prompt_len"].as_u64().unwrap());
        for (i, r) in group.responses().enumerate() {
            let ids: Vec<u32> = group.prompt().iter().chain(r.tokens.iter()).collect();
            assert_eq!(serde_json::json!(ids), case["input_ids"][i], "max_length {max}, response {i}");
        }
    }
}
