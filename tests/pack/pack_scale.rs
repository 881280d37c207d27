//! `pack` in a memory that does not grow with the rows: whatever does not fit goes to temporary files, and no byte of the result
//! tells. Rows are random; what must come out is also worked out by a naive program.

use crate::pack_common;

use fusedpo::data::pack::{AssistantTurns, PackOptions, PairChoice, Progress, Truncation, pack};
use fusedpo::data::shard::{Dataset, Split};
use fusedpo::error::Error;
use pack_common::Random;
use pack_common::place::{Place, run};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Token ids of a tiny alphabet, so that prompts, responses and pairs come again and again.
fn ids(random: &mut Random, least: usize, most: usize) -> Vec<u32> {
    (0..least + random.below(most - least + 1)).map(|_| 100 + random.below(2) as u32).collect()
}

/// A row that is tokenised already: a pair, scored responses, or a completion; one in ten without a prompt.
fn row(random: &mut Random) -> Value {
    let prompt = if random.below(10) == 0 { vec![] } else { ids(random, 1, 9) };
    match random.below(4) {
        0 => {
            let n = 1 + random.below(5);
            let responses: Vec<_> = (0..n).map(|_| ids(random, 1, 3)).collect();
            let scores: Vec<_> = (0..n).map(|_| random.below(3)).collect();
            json!({"prompt_ids": prompt, "responses_ids": responses, "scores": scores, "weight": 1 + random.below(2)})
        }
        1 => {
            let label = [Some(true), Some(false), None][random.below(3)];
            json!({"prompt_ids": prompt, "completion_ids": ids(random, 1, 3), "label": label})
        }
        _ => json!({"prompt_ids": prompt, "chosen_ids": ids(random, 1, 2), "rejected_ids": ids(random, 1, 3)}),
    }
}

/// Tokens, input row, place in it, score, label.
type Response = (Vec<u32>, u64, u32, Option<f32>, Option<bool>);

/// A prompt, its responses, its pairs.
#[derive(Clone, Debug, Default, PartialEq)]
struct Group {
    prompt: Vec<u32>,
    responses: Vec<Response>,
    pairs: Vec<(usize, usize, f32)>,
}

/// What the naive program makes of rows: groups of both splits; duplicate, contradictory and identical pairs.
#[derive(Debug, Default, PartialEq)]
struct Made {
    splits: [Vec<Group>; 2],
    repeats: [u64; 3],
}

fn tokens(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect()
}

fn sha16(parts: &[&[u8]]) -> [u8; 16] {
    let digest = parts.iter().fold(Sha256::new(), |sha, part| sha.chain_update(part)).finalize();
    std::array::from_fn(|i| digest[i])
}

fn bytes(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|t| t.to_le_bytes()).collect()
}

/// A row's responses and the pairs that it asks for, by the words of docs/data.md.
fn understood(row: &Value, number: u64, choice: PairChoice) -> (Vec<Response>, Vec<(usize, usize)>) {
    let given = |v: &Value, index, score, label| (tokens(v), number, index, score, label);
    if let Some(chosen) = row.get("chosen_ids") {
        return (vec![given(chosen, 0, None, None), given(&row["rejected_ids"], 1, None, None)], vec![(0, 1)]);
    }
    if let Some(completion) = row.get("completion_ids") {
        return (vec![given(completion, 0, None, row["label"].as_bool())], vec![]);
    }
    let scores: Vec<i64> = row["scores"].as_array().unwrap().iter().map(|s| s.as_i64().unwrap()).collect();
    let all = row["responses_ids"].as_array().unwrap().iter().zip(&scores).enumerate();
    let responses = all.map(|(i, (r, s))| given(r, i as u32, Some(*s as f32), None)).collect();
    let n = scores.len();
    let mut pairs: Vec<_> = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))).collect();
    pairs.retain(|&(i, j)| scores[i] != scores[j]);
    pairs.iter_mut().for_each(|p| *p = if scores[p.0] > scores[p.1] { *p } else { (p.1, p.0) });
    if choice == PairChoice::BestWorst {
        let place = |s| scores.iter().position(|x| *x == s).unwrap();
        let (best, worst) = (scores.iter().max().copied().unwrap(), scores.iter().min().copied().unwrap());
        pairs = if best > worst { vec![(place(best), place(worst))] } else { vec![] };
    }
    (responses, pairs)
}

/// The naive program: everything in memory, looked for from the beginning on each time.
fn naive(rows: &[Value], o: &PackOptions) -> Made {
    let mut made = Made::default();
    let (mut groups, mut keys): (Vec<Group>, Vec<BTreeSet<[u8; 16]>>) = Default::default();
    for (number, row) in rows.iter().enumerate() {
        let given = tokens(&row["prompt_ids"]);
        let (responses, wanted) = understood(row, number as u64, o.pairs);
        if row.get("chosen_ids").is_some() && responses[0].0 == responses[1].0 {
            continue;
        }
        let longest = responses.iter().map(|r| r.0.len()).max().unwrap();
        let over = if o.max_length == 0 { 0 } else { (given.len() + longest).saturating_sub(o.max_length) };
        let prompt = given[over..].to_vec();
        let key = if given.is_empty() { sha16(&[&bytes(&responses[0].0)]) } else { sha16(&[b"ids\0", &bytes(&given)]) };
        // Responses of at most 3 tokens leave room for a prompt: none is cut to nothing.
        let same = |g: &Group| !given.is_empty() && g.prompt == prompt;
        let at = groups.iter().position(same).unwrap_or_else(|| {
            groups.push(Group { prompt, ..Group::default() });
            keys.push(BTreeSet::new());
            groups.len() - 1
        });
        keys[at].insert(key);
        let before = groups[at].responses.len();
        groups[at].responses.extend(responses);
        for (a, b) in wanted.into_iter().map(|(a, b)| (before + a, before + b)) {
            let g = &groups[at];
            let text = |i: usize| &g.responses[i].0;
            let is = |p: &&(usize, usize, f32), x, y| text(p.0) == text(x) && text(p.1) == text(y);
            if text(a) == text(b) {
                made.repeats[2] += 1;
                continue;
            }
            made.repeats[0] += u64::from(g.pairs.iter().any(|p| is(&p, a, b)));
            made.repeats[1] += u64::from(g.pairs.iter().any(|p| is(&p, b, a)));
            groups[at].pairs.push((a, b, row.get("weight").map_or(1.0, |w| w.as_f64().unwrap() as f32)));
        }
    }
    for (group, held_out) in groups.into_iter().zip(sides(&keys, o)) {
        made.splits[usize::from(held_out)].push(group);
    }
    made
}

/// Which groups are held out: those that have a key in common, perhaps through others, by the smallest of all their keys.
fn sides(keys: &[BTreeSet<[u8; 16]>], o: &PackOptions) -> Vec<bool> {
    let mut least: Vec<_> = keys.iter().map(|k| *k.first().unwrap()).collect();
    loop {
        let mut by_key = BTreeMap::new();
        for (keys, least) in keys.iter().zip(&least) {
            keys.iter().for_each(|k| {
                let known = by_key.entry(*k).or_insert(*least);
                *known = (*known).min(*least);
            });
        }
        let next: Vec<_> = keys.iter().map(|keys| keys.iter().map(|k| by_key[k]).min().unwrap()).collect();
        if next == least {
            break;
        }
        least = next;
    }
    let draw = |key: &[u8; 16]| {
        let first = sha16(&[&o.seed.to_le_bytes(), key]);
        (u64::from_le_bytes(first[..8].try_into().unwrap()) >> 11) as f64 / (1u64 << 53) as f64
    };
    least.iter().map(|key| draw(key) < o.eval_fraction).collect()
}

/// The groups that the shards of a folder hold.
fn read(out: &Path, split: Split) -> Vec<Group> {
    if !Dataset::has_split(out, split) {
        return Vec::new();
    }
    let data = Dataset::open(out, split).unwrap();
    data.verify().unwrap();
    let group = |id| {
        let g = data.group(id);
        let responses = g.responses().map(|r| (r.tokens.to_vec(), r.row, r.index, r.score, r.label));
        let pairs = g.pairs().map(|p| (p.chosen, p.rejected, p.weight));
        Group { prompt: g.prompt().to_vec(), responses: responses.collect(), pairs: pairs.collect() }
    };
    (0..data.num_groups()).map(group).collect()
}

/// Every file of a folder.
fn files(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let entry = |e: std::io::Result<std::fs::DirEntry>| e.unwrap().path();
    let name = |p: &Path| p.file_name().unwrap().to_string_lossy().into_owned();
    std::fs::read_dir(out).unwrap().map(entry).map(|p| (name(&p), std::fs::read(p).unwrap())).collect()
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|r| format!("{r}\n")).collect()
}

#[test]
fn no_byte_depends_on_the_memory() {
    let mut seen = [0u64; 4];
    for seed in 1..=30u64 {
        let mut random = Random(seed * 0x9e37_79b9);
        let rows: Vec<_> = (0..20 + random.below(300)).map(|_| row(&mut random)).collect();
        let place = Place::new();
        let mut o = place.options("rows.jsonl", lines(&rows));
        o.overwrite = true;
        o.truncation = Truncation::PromptLeft;
        o.max_length = [0, 5, 8][random.below(3)];
        o.eval_fraction = [0.0, 0.4][random.below(2)];
        o.seed = seed;
        o.pairs = [PairChoice::All, PairChoice::BestWorst][random.below(2)];
        o.shard_bytes = [1 << 30, 2000][random.below(2)];
        let report = run(&o);
        let want = files(&o.out);
        let made = naive(&rows, &o);
        let got = Made {
            splits: [Split::Train, Split::Eval].map(|s| read(&o.out, s)),
            repeats: [report.duplicate_pairs, report.contradictory_pairs, report.identical_pairs],
        };
        assert_eq!(got, made, "seed {seed}");
        for (sum, n) in seen.iter_mut().zip(made.repeats.iter().chain([&(made.splits[1].len() as u64)])) {
            *sum += n;
        }
        // From everything on the disk to nearly everything in memory; whole words, whole prints, and neither.
        for (i, memory) in [0, 700, 3000, 20_001, 100_000].into_iter().enumerate() {
            o.memory = memory;
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1 + (i + seed as usize) % 3).build().unwrap();
            assert_eq!(pool.install(|| run(&o)), report, "seed {seed}, memory {memory}");
            assert!(files(&o.out) == want, "seed {seed}, memory {memory}: other bytes");
        }
    }
    assert!(seen.iter().all(|n| *n > 100), "the rows try everything: {seen:?}");
}

/// Texts: prompts that are cut where tokens merge, rows without a prompt, conversations.
#[test]
fn texts_too() {
    let mut random = Random(77);
    let word = |random: &mut Random| ["the ", "the", " in", "on", "re "][random.below(5)];
    let mut text = |least: usize| (0..least + random.below(3)).map(|_| word(&mut random)).collect::<String>();
    let mut rows: Vec<Value> = Vec::new();
    for i in 0..600 {
        let turn = |role: &str, text: String| json!([{"role": role, "content": text}]);
        rows.push(match i % 4 {
            0 => json!({"text": text(1)}),
            1 => json!({"prompt": turn("user", text(1)), "chosen": turn("assistant", text(1)), "rejected": turn("assistant", text(2))}),
            2 => json!({"chosen": format!("{}\n\nAssistant:{}", text(0), text(1)), "rejected": text(1)}),
            _ => json!({"prompt": text(0), "chosen": text(1), "rejected": text(1)}),
        });
    }
    let place = Place::new();
    let mut o = place.options("rows.jsonl", lines(&rows));
    (o.eval_fraction, o.overwrite) = (0.3, true);
    let report = run(&o);
    assert!(report.rows_with_moved_boundary > 20 && report.eval.groups > 50, "{report}");
    let want = files(&o.out);
    for memory in [0, 5000, 50_000] {
        o.memory = memory;
        assert_eq!((run(&o), files(&o.out) == want), (report.clone(), true), "memory {memory}");
    }
}

/// A row that gives several rows of ids, some of them of the same group.
#[test]
fn every_turn_of_a_row() {
    let mut random = Random(9);
    let turn = |role: &str, text: &str| json!({"role": role, "content": text});
    let mut row = |_| {
        let mut turns = Vec::new();
        for _ in 0..1 + random.below(4) {
            turns.push(turn("user", ["a", "b"][random.below(2)]));
            turns.push(turn("assistant", ["c", "d"][random.below(2)]));
        }
        json!({"messages": turns})
    };
    let rows: Vec<_> = (0..400).map(&mut row).collect();
    let place = Place::new();
    let mut o = place.options("rows.jsonl", lines(&rows));
    (o.overwrite, o.assistant_turns, o.eval_fraction) = (true, AssistantTurns::All, 0.3);
    // Cut on the left, turns of one row have the same prompt.
    (o.truncation, o.max_length) = (Truncation::PromptLeft, 40);
    let report = run(&o);
    let groups = [Split::Train, Split::Eval].map(|s| read(&o.out, s)).concat();
    let twice = |g: &Group| g.responses.windows(2).any(|r| r[0].1 == r[1].1);
    assert!(report.assistant_turns > 800 && groups.iter().filter(|g| twice(g)).count() > 0, "{report}");
    let want = files(&o.out);
    for memory in [0, 4000, 40_000] {
        o.memory = memory;
        assert_eq!((run(&o), files(&o.out) == want), (report.clone(), true), "memory {memory}");
    }
}

/// One prompt for all rows: the group is longer than the memory, and is not asked to fit.
#[test]
fn a_group_larger_than_the_memory() {
    let mut random = Random(5);
    let rows: Vec<_> = (0..3000)
        .map(
            |i| json!({"prompt_ids": [100, 101], "chosen_ids": ids(&mut random, 3, 9), "rejected_ids": [100, i % 250]}),
        )
        .collect();
    let place = Place::new();
    let mut o = place.options("rows.jsonl", lines(&rows));
    o.overwrite = true;
    run(&o);
    let want = files(&o.out);
    let groups = read(&o.out, Split::Train);
    assert_eq!((groups.len(), groups[0].responses.len(), groups[0].pairs.len()), (1, 6000, 3000));
    for memory in [0, 10_000] {
        o.memory = memory;
        run(&o);
        assert!(files(&o.out) == want, "memory {memory}");
    }
}

/// Whoever is told how far it is may end it at any time: while rows are read, sorted out, and written. Nothing is left behind.
#[test]
fn it_ends_in_every_phase() {
    let mut random = Random(6);
    let rows: Vec<_> = (0..40_000).map(|_| row(&mut random)).collect();
    let place = Place::new();
    let mut o = place.options("rows.jsonl", lines(&rows));
    (o.memory, o.eval_fraction) = (20_000, 0.2);
    let mut calls = Vec::new();
    pack(&o, &mut |p| {
        calls.push(*p);
        Ok(())
    })
    .unwrap();
    std::fs::remove_dir_all(&o.out).unwrap();
    let reading = calls.iter().filter(|p| p.written == 0).count();
    let between = calls.iter().filter(|p| p.written == 0 && p.rows == 40_000).count();
    // The parts of the repeated pairs and of the prompts, at least.
    assert!(between > 500 && calls.len() > reading, "{reading} {between} of {}", calls.len());
    let beside = || std::fs::read_dir(o.out.parent().unwrap()).unwrap().count();
    let before = beside();
    for at in [0, reading - between, reading - between + 300, reading - 1, reading, calls.len() - 1] {
        let mut n = 0;
        let ended = pack(&o, &mut |_: &Progress| {
            n += 1;
            if n == at + 1 { Err(Error::usage("told to")) } else { Ok(()) }
        });
        assert_eq!(ended.unwrap_err().to_string(), "told to", "call {at}");
        assert_eq!((beside(), o.out.exists(), n), (before, false, at + 1));
    }
}

/// In a process of its own, whose files may not grow beyond a limit.
#[cfg(unix)]
#[test]
fn no_room_for_temporary_files() {
    const LIMITED: &str = "FUSEDPO_TEST_LIMITED_PACK";
    if let Some(dir) = std::env::var_os(LIMITED).map(std::path::PathBuf::from) {
        let mut o = PackOptions::new(dir.join("tiny"), vec![dir.join("rows.jsonl")], dir.join("out"));
        o.memory = 10_000;
        let e = pack(&o, &mut |_| Ok(())).unwrap_err();
        println!("refused: {e} ({})", e.exit_code());
        return;
    }
    let mut random = Random(8);
    let rows: Vec<_> = (0..20_000).map(|_| row(&mut random)).collect();
    let place = Place::new();
    let o = place.options("rows.jsonl", lines(&rows));
    let limited = |blocks: usize| {
        // SIGXFSZ, number 25 where this test runs, would end the process before it can say why.
        let script = format!(
            "trap '' 25; ulimit -f {blocks}; exec \"$0\" --exact pack_scale::no_room_for_temporary_files --nocapture"
        );
        let mut sh = std::process::Command::new("sh");
        sh.args(["-c", &script]).arg(std::env::current_exe().unwrap()).env(LIMITED, place.dir.path());
        String::from_utf8(sh.output().unwrap().stdout).unwrap()
    };
    for blocks in [0, 64, 500] {
        let said = limited(blocks);
        let at = o.out.display();
        let want = format!("refused: {at}: cannot write a temporary file in it after ");
        assert!(said.contains(&want), "{blocks}: {said}");
        let rest =
            "MiB: File too large (os error 27); free some space, or give an `options.out` on a larger disk (2)\n";
        assert!(said.contains(rest), "{blocks}: {said}");
        let left: BTreeSet<_> = std::fs::read_dir(place.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["rows.jsonl", "tiny"].map(Into::into).into());
    }
}
