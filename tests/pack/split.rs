//! What `pack --eval-fraction` promises: rows that show the same prompt, however they give it, are all on one side of the
//! split, and which side it is depends on the prompts alone.

use crate::pack_common;

use fusedpo::data::pack::pack;
use fusedpo::data::shard::{Dataset, Split};
use fusedpo::data::text::{TextTokenizer, TokenizerOptions};
use pack_common::Random;
use pack_common::place::Place;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Words that answers may begin with.
const WORDS: [&str; 6] = [" I", " the", " a t", " in", " on", " re"];

/// A dialogue up to the assistant's turn.
fn dialogue(d: usize) -> String {
    format!("\n\nHuman: question {d}?\n\nAssistant:")
}

/// One row about dialogue `d`, and the prompt that a reader would say it has.
fn row(d: usize, tok: &TextTokenizer, random: &mut Random, n: usize) -> (String, Value) {
    let prompt = dialogue(d);
    // Different in every row, so that no pair repeats.
    let (yes, no) = (format!(" yes {n}"), format!(" no {n}"));
    let words: String = (0..random.below(4)).map(|_| WORDS[random.below(WORDS.len())]).collect();
    match random.below(5) {
        // As HH has it: the whole dialogue twice. The answers may share their first words.
        0 | 1 => (
            prompt.clone(),
            json!({"chosen": format!("{prompt}{words}{yes}"), "rejected": format!("{prompt}{words}{no}")}),
        ),
        2 => (prompt.clone(), json!({"prompt": prompt, "chosen": yes, "rejected": no})),
        // Ids show the same prompt as other rows with the same ids, which is looked for apart.
        3 => {
            let ids = |text: &str| tok.encode(text).unwrap();
            (
                format!("ids of {prompt}"),
                json!({"prompt_ids": ids(&prompt), "chosen_ids": ids(&yes), "rejected_ids": ids(&no)}),
            )
        }
        // The beginning of the answer is given. `he` merges with it, so the ids of the prompt differ from row to row.
        _ => {
            let given = format!("{prompt} a t");
            let chosen = if random.below(2) == 0 { format!("he{yes}") } else { yes };
            (given.clone(), json!({"prompt": given, "chosen": chosen, "rejected": no}))
        }
    }
}

/// Which side each input row fell on, and the prompt ids that it got.
fn packed(place: &Place, rows: &[Value], fraction: f64, seed: u64) -> Vec<(Split, Vec<u32>)> {
    let text: String = rows.iter().map(|r| format!("{r}\n")).collect();
    let mut o = place.options("rows.jsonl", text);
    (o.eval_fraction, o.seed, o.overwrite) = (fraction, seed, true);
    pack(&o, &mut |_| Ok(())).unwrap();
    let mut sides = BTreeMap::new();
    for split in [Split::Train, Split::Eval] {
        let data = Dataset::open(&o.out, split).unwrap();
        for g in (0..data.num_groups()).map(|id| data.group(id)) {
            for r in g.responses() {
                let seen = sides.insert(r.row as usize, (split, g.prompt().to_vec()));
                assert!(seen.is_none_or(|(s, _)| s == split), "row {} is on both sides", r.row);
            }
        }
    }
    assert_eq!(sides.keys().copied().collect::<Vec<_>>(), (0..rows.len()).collect::<Vec<_>>(), "every row once");
    sides.into_values().collect()
}

#[test]
fn a_prompt_is_on_one_side_however_it_is_given() {
    let place = Place::new();
    let tok = TextTokenizer::load(&place.model, &TokenizerOptions::default()).unwrap();
    let mut random = Random(0x5851_f42d_4c95_7f2d);
    for seed in 0..8 {
        let mut rows: Vec<(String, Value)> = (0..240).map(|n| row(n % 40, &tok, &mut random, n)).collect();
        for i in (1..rows.len()).rev() {
            rows.swap(i, random.below(i + 1));
        }
        let values: Vec<Value> = rows.iter().map(|(_, v)| v.clone()).collect();
        let got = packed(&place, &values, 0.4, seed);
        let (mut by_text, mut by_ids) = (BTreeMap::new(), BTreeMap::new());
        for ((prompt, row), (side, ids)) in rows.iter().zip(&got) {
            let first = *by_text.entry(prompt).or_insert(*side);
            assert_eq!(*side, first, "seed {seed}: {row} and another row with the prompt {prompt:?} are on two sides");
            let first = *by_ids.entry(ids).or_insert(*side);
            assert_eq!(*side, first, "seed {seed}: {row} and another row with its prompt's tokens are on two sides");
        }
        let held_out = got.iter().filter(|(s, _)| *s == Split::Eval).count();
        assert!((40..160).contains(&held_out), "seed {seed}: {held_out} of 240 rows held out, not near 0.4");

        // In another order every row falls on the same side.
        let reversed: Vec<Value> = values.iter().rev().cloned().collect();
        let mut again = packed(&place, &reversed, 0.4, seed);
        again.reverse();
        for ((row, a), b) in values.iter().zip(&got).zip(&again) {
            assert_eq!(a.0, b.0, "seed {seed}: {row} changes its side when the rows come in another order");
        }
    }
}

/// HH alone: one dialogue, answers whose common beginnings vary, so that TRL's implicit prompts all differ.
#[test]
fn common_first_words_of_answers_do_not_hold_a_dialogue_apart() {
    let place = Place::new();
    let mut rows = Vec::new();
    for d in 0..40 {
        for words in ["", " I", " I the", " the", " in the", " on a"] {
            let text = |end: &str| format!("{}{words}{end}", dialogue(d));
            rows.push(json!({"chosen": text(" yes"), "rejected": text(" no")}));
        }
    }
    let got = packed(&place, &rows, 0.5, 3);
    let prompts: BTreeSet<&Vec<u32>> = got.iter().map(|(_, ids)| ids).collect();
    assert!(prompts.len() >= 200, "the implicit prompts differ: {}", prompts.len());
    for (d, sides) in got.chunks(6).enumerate() {
        assert!(sides.iter().all(|(s, _)| *s == sides[0].0), "dialogue {d} is on both sides");
    }
    let held_out = got.chunks(6).filter(|s| s[0].0 == Split::Eval).count();
    assert!((10..=30).contains(&held_out), "{held_out} of 40 dialogues held out, not near half");
}

/// The seed moves prompts from one side to the other, the fraction only adds to the held-out side.
#[test]
fn the_split_is_a_function_of_fraction_and_seed() {
    let place = Place::new();
    let rows: Vec<Value> =
        (0..60).map(|d| json!({"prompt": dialogue(d), "chosen": " yes", "rejected": " no"})).collect();
    let eval = |fraction: f64, seed: u64| -> BTreeSet<usize> {
        let sides = packed(&place, &rows, fraction, seed);
        (0..60).filter(|i| sides[*i].0 == Split::Eval).collect()
    };
    let (few, many, other) = (eval(0.2, 1), eval(0.6, 1), eval(0.2, 2));
    assert_eq!(few, eval(0.2, 1));
    assert!(few.is_subset(&many) && few.len() < many.len());
    assert_ne!(few, other);
}
