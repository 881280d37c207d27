//! Plans of judgements: every one once, beside a response to another prompt, within capacity, and the same whenever asked.

use crate::shards;

use fusedpo::batch::{MicroBatch, Outline, Role};
use fusedpo::data::plan::{Mismatch, Objective, PlanOptions, Planner};
use fusedpo::data::shard::{Dataset, Split};
use proptest::prelude::*;
use shards::{Own, meta, own_group, write};
use std::collections::BTreeMap;
use tempfile::TempDir;

fn dataset(groups: &[Own], max_length: u32) -> (TempDir, Dataset) {
    let dir = tempfile::tempdir().unwrap();
    let cut = groups.len() / 2;
    let meta = fusedpo::data::shard::format::Meta { max_length, ..meta(3000) };
    write(&dir.path().join("train-00000.pref"), &meta, &groups[..cut]);
    write(&dir.path().join("train-00001.pref"), &meta, &groups[cut..]);
    let data = Dataset::open(dir.path(), Split::Train).unwrap();
    data.verify().unwrap();
    (dir, data)
}

fn options(batch_size: usize, token_budget: Option<usize>, shuffle: bool) -> PlanOptions {
    PlanOptions { objective: Objective::Judgement, batch_size, token_budget, seed: 42, shuffle }
}

/// Judgements of the data by response: weight as desirable, as undesirable.
fn expected(data: &Dataset) -> BTreeMap<u64, [f32; 2]> {
    let mut all: BTreeMap<u64, [f32; 2]> = BTreeMap::new();
    for g in (0..data.num_groups()).map(|i| data.group(i)) {
        let mut judge = |i: usize, desirable: bool, weight: f32| {
            let r = g.response(i);
            if !g.prompt().is_empty() || r.tokens.len() > 1 {
                all.entry(r.id).or_default()[usize::from(!desirable)] += weight;
            }
        };
        (0..g.num_responses()).filter_map(|i| Some((i, g.response(i).label?))).for_each(|(i, l)| judge(i, l, 1.0));
        for p in g.pairs() {
            judge(p.chosen, true, p.weight);
            judge(p.rejected, false, p.weight);
        }
    }
    all
}

/// What stands in the batches: (group, response, tokens, role), with the group's prompt right before.
fn rows(batches: &[MicroBatch], data: &Dataset) -> Vec<(u64, u64, Vec<u32>, Role)> {
    let mut all = Vec::new();
    for mb in batches {
        for g in mb.groups() {
            let prompt = data.group(g.id).prompt().to_vec();
            assert_eq!(mb.tokens()[g.prompt.start as usize..g.prompt.end as usize], prompt);
            let first = g.segments.start as usize + usize::from(!prompt.is_empty());
            for (segment, i) in (first..).zip(g.responses.clone()) {
                let s = mb.segments()[segment];
                let slot = &mb.responses()[i as usize];
                let tokens = mb.tokens()[s.start as usize..(s.start + s.len) as usize].to_vec();
                all.push((g.id, slot.id, tokens, slot.role));
            }
        }
    }
    all
}

fn check_step(
    data: &Dataset,
    planner: &Planner<'_>,
    at: (u64, u64),
    max_length: usize,
    seen: &mut BTreeMap<u64, [f32; 2]>,
) -> Vec<Mismatch> {
    let (own, first) = (planner.step(at.0, at.1).unwrap(), planner.first(at.0, at.1).unwrap());
    assert_eq!(first, planner.first(at.0, at.1).unwrap());
    for mb in own.iter().chain(&first) {
        mb.within(&planner.capacity()).unwrap();
        assert!(mb.groups().iter().all(|g| g.end as usize <= mb.used()));
    }
    let (own, first) = (rows(&own, data), rows(&first, data));
    let sorted = |mut rows: Vec<(u64, u64, Vec<u32>, Role)>| {
        rows.sort_by_key(|r| (r.0, r.1));
        rows
    };
    let (others, of_first): (Vec<_>, Vec<_>) = first.into_iter().partition(|r| r.3.is_mismatched());
    assert_eq!(sorted(own.clone()), sorted(of_first), "the first time has what the second has");
    let groups: std::collections::BTreeSet<u64> = own.iter().map(|r| r.0).collect();
    assert!(groups.len() >= 2, "{groups:?}");
    let mut weights = [0.0f64; 2];
    for (group, id, tokens, role) in own {
        let r = data.group(group).responses().find(|r| r.id == id).expect("a response of its group");
        assert_eq!(tokens, r.tokens.to_vec());
        let Role::Own { desirable, undesirable } = role else { panic!("{role:?}") };
        weights[0] += f64::from(desirable) + f64::from(undesirable);
        assert!(seen.insert(id, [desirable, undesirable]).is_none(), "a response twice");
    }
    let mut all = Vec::new();
    for (group, id, tokens, role) in others {
        let Role::Mismatched { group: said, weight } = role else { panic!("{role:?}") };
        weights[1] += f64::from(weight);
        let of = data.group_of_response(id);
        assert!(said == group && of != group, "response {id} of {of} beside {group}");
        let whole = data.group(of).responses().find(|r| r.id == id).unwrap().tokens.to_vec();
        let prompt = data.group(group).prompt().len();
        let take =
            if max_length == 0 { whole.len() } else { whole.len().min(max_length.saturating_sub(prompt).max(1)) };
        assert_eq!(tokens, whole[..take], "{max_length}");
        assert!(prompt + take <= planner.longest_row());
        all.push((group, id));
    }
    assert!(weights[1] > 0.0 && weights[1] <= weights[0] * 1.00001, "{weights:?}");
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn an_epoch_holds_every_judgement_once(
        groups in prop::collection::vec(own_group(3000), 1..24), batch_size in 2usize..9, tight in any::<bool>(),
        max_length in prop::sample::select(vec![0u32, 9, 13]), shuffle in any::<bool>()
    ) {
        let (_dir, data) = dataset(&groups, max_length);
        let want = expected(&data);
        // 16 slots hold a prompt of 8 and a response of 8.
        let planner = match Planner::new(&data, &options(batch_size, tight.then_some(16), shuffle)) {
            Ok(planner) => planner,
            Err(e) => {
                let groups: std::collections::BTreeSet<u64> = want.keys().map(|id| data.group_of_response(*id)).collect();
                prop_assert!(groups.len() < 2, "{}", e);
                let said = e.to_string();
                prop_assert!(said.contains("no judgement") || said.contains("all judgements are of one prompt"), "{}", said);
                return Ok(());
            }
        };
        for epoch in [0, 2] {
            let (mut seen, mut others) = (BTreeMap::new(), Vec::new());
            for step in 0..planner.steps_in_epoch(epoch) {
                others.extend(check_step(&data, &planner, (epoch, step), max_length as usize, &mut seen));
            }
            prop_assert_eq!(seen.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
            for (id, got) in seen {
                (0..2).for_each(|i| assert!((got[i] - want[&id][i]).abs() < 1e-4, "{id}"));
            }
            others.sort_unstable();
            others.dedup();
            let from = if shuffle { epoch } else { 0 };
            let all = planner.mismatched((from, 0), planner.steps_in_epoch(from));
            prop_assert_eq!(&all, &others);
            let parts = all.chunks(planner.mismatched_at_once());
            let outlines: Vec<Outline> = parts.flat_map(|part| planner.mismatched_rows(part).unwrap()).collect();
            let laid = planner.batches(outlines.clone(), 0..outlines.len()).unwrap().own;
            laid.iter().for_each(|mb| mb.within(&planner.capacity()).unwrap());
            let mut laid: Vec<Mismatch> = rows(&laid, &data).into_iter().map(|r| (r.0, r.1)).collect();
            laid.sort_unstable();
            prop_assert_eq!(laid, all);
        }
    }
}

fn own(prompt: u32, responses: &[(u32, Option<bool>)], pairs: &[(u32, u32)]) -> Own {
    let response = |(i, &(t, label)): (usize, &(u32, Option<bool>))| (vec![t, t], None, label, 40, i as u32);
    Own {
        prompt: vec![prompt; 3],
        responses: responses.iter().enumerate().map(response).collect(),
        pairs: pairs.iter().map(|&(c, r)| (c, r, 1.0)).collect(),
    }
}

fn mismatched(groups: &[Own], batch_size: usize) -> Vec<Vec<(u64, u64, f32)>> {
    let (_dir, data) = dataset(groups, 0);
    let planner = Planner::new(&data, &options(batch_size, None, false)).unwrap();
    let of = |step| {
        let rows = rows(&planner.first(0, step).unwrap(), &data);
        let weight = |role| if let Role::Mismatched { weight, .. } = role { Some(weight) } else { None };
        let mut all: Vec<_> = rows.iter().filter_map(|r| Some((r.0, r.1, weight(r.3)?))).collect();
        all.sort_by_key(|r| (r.0, r.1));
        all
    };
    (0..planner.steps_in_epoch(0)).map(of).collect()
}

/// A prompt a judgement: TRL's cycle within a batch, and the last of five goes with the step before it.
#[test]
fn a_cycle_within_the_step() {
    let groups: Vec<Own> = (0..5).map(|i| own(i + 5, &[(50 + i, Some(i % 2 == 0))], &[])).collect();
    assert_eq!(mismatched(&groups, 2), [vec![(0, 1, 1.0), (1, 0, 1.0)], vec![(2, 4, 1.0), (3, 2, 1.0), (4, 3, 1.0)]],);
}

/// Pairs: chosen responses meet chosen ones, rejected ones rejected ones, as where TRL has unpaired them. A response of two pairs
/// counts twice.
#[test]
fn pairs_are_two_judgements_each() {
    let pair = |i: u32| own(i + 5, &[(50 + i, None), (60 + i, None)], &[(0, 1)]);
    assert_eq!(
        mismatched(&[pair(0), pair(1), pair(2)], 6),
        [vec![(0, 4, 1.0), (0, 5, 1.0), (1, 0, 1.0), (1, 1, 1.0), (2, 2, 1.0), (2, 3, 1.0)]],
    );
    let two = own(5, &[(50, None), (60, None), (70, None)], &[(0, 1), (0, 2)]);
    let one = own(6, &[(51, Some(true))], &[]);
    // Judgements: 0 1 0 2 of the first prompt, 3 of the second, moved by 4 of 5 places: every prompt's but one meet their own.
    assert_eq!(mismatched(&[two, one], 4), [vec![(0, 3, 1.0), (1, 0, 1.0)]]);
}

#[test]
fn what_cannot_be_judged_is_refused() {
    let refusal = |groups: &[Own], o: &PlanOptions| {
        let (_dir, data) = dataset(groups, 0);
        Planner::new(&data, o).map(|_| ()).unwrap_err().to_string()
    };
    let labelled = |i: u32| own(i, &[(9, Some(true))], &[]);
    let why = refusal(&[labelled(1), own(2, &[(3, None)], &[])], &options(4, None, true));
    assert!(why.contains("all judgements are of one prompt"), "{why}");
    let why = refusal(&[own(1, &[(3, None)], &[])], &options(4, None, true));
    assert!(why.contains("no judgement: pack rows with a label"), "{why}");
    let why = refusal(&[labelled(1), labelled(2)], &options(1, None, true));
    assert!(why.contains("`batch_size` 1: kto compares"), "{why}");
    let why = refusal(&[labelled(1), labelled(2)], &options(4, Some(4), true));
    assert!(why.contains("`token_budget` 4 is too small") && why.contains("needs 5 token slots"), "{why}");
    let preference = PlanOptions { objective: Objective::Preference, ..options(4, None, true) };
    let why = refusal(&[labelled(1), labelled(2)], &preference);
    assert!(why.contains("judged one by one") && why.contains("`loss_type` kto"), "{why}");
}
