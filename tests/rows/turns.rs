//! Every turn of a conversation, and what `sft` learns.

use super::pack_common::place::*;
use super::*;
use fusedpo::data::pack::{AssistantTurns, DropReason};
use fusedpo::data::plan::{Objective, PlanOptions, Planner};
use fusedpo::data::shard::Dataset;
use fusedpo::data::text::TemplateChoice;

/// Rows of [`packed`] that `sft` learns, by row and place.
fn learned(rows: &[Value], turns: AssistantTurns) -> Vec<(u64, u32)> {
    let place = Place::new();
    let mut o = place.options("rows.jsonl", lines(rows));
    o.assistant_turns = turns;
    run(&o);
    let data = Dataset::open(&o.out, Split::Train).unwrap();
    let o = PlanOptions { objective: Objective::Sft, batch_size: 99, token_budget: None, seed: 1, shuffle: false };
    let plan = Planner::new(&data, &o).unwrap();
    let ids = plan.step(0, 0).unwrap().into_iter().flat_map(|b| b.responses().to_vec()).map(|r| r.id);
    let places: std::collections::HashMap<u64, (u64, u32)> = (0..data.num_groups())
        .flat_map(|g| data.group(g).responses().map(|r| (r.id, (r.row, r.index))).collect::<Vec<_>>())
        .collect();
    let mut all: Vec<_> = ids.map(|id| places[&id]).collect();
    all.sort_unstable();
    assert_eq!(all.len() as u64, plan.units());
    all
}

#[test]
fn sft_learns_every_chosen_and_every_best() {
    let pair = |i: usize| json!({"prompt": "Q", "chosen": format!("a{i}"), "rejected": format!("b{i}")});
    let rows = [
        pair(0),
        pair(1),
        pair(2),
        pair(3),
        json!({"prompt": "S", "responses": ["x", "y", "z"], "scores": [1, 1, 0]}),
        json!({"prompt": "K", "completion": "k", "label": false}),
        json!({"prompt": "K", "completion": "l", "label": true}),
        json!({"prompt": "Q", "completion": "m"}),
    ];
    let want = [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (4, 1), (6, 0), (7, 0)];
    assert_eq!(learned(&rows, AssistantTurns::Last), want);
}

#[test]
fn every_turn_is_learned_after_what_was_said_before_it() {
    let all = |rows: &[Value]| {
        let place = Place::new();
        let mut o = place.options("rows.jsonl", lines(rows));
        o.assistant_turns = AssistantTurns::All;
        pack(&o, &mut |_| Ok(()))
            .map(|report| (place.contents(&o.out, Split::Train), report))
            .map_err(|e| e.to_string())
    };
    let [u, a, v, b] = [("user", "q"), ("assistant", "a"), ("user", "v"), ("assistant", "b")];
    let list = |turns: &[(&str, &str)]| Value::from(turns.iter().map(|(r, t)| say(r, t)).collect::<Vec<_>>());
    let (first, second) = (asked(&[u], "a"), asked(&[u, a, v], "b"));
    let want = [format!("0.0 {first} label true"), format!("0.1 {second} label true")];
    // What stands behind the last of them plays no part.
    for turns in [&[u, a, v, b][..], &[u, a, v, b, u]] {
        let (got, report) = all(&[json!({"messages": list(turns)})]).unwrap();
        assert_eq!(got, want);
        assert_eq!((report.rows_kept, report.assistant_turns), (1, 2));
    }
    // A prompt is not learned, a completion turn by turn; a weight of 0 leaves one out, and places stay.
    let (got, _) = all(&[json!({"prompt": list(&[u, a, v]), "completion": list(&[b])})]).unwrap();
    assert_eq!(got, [want[1].replace("0.1", "0.0")]);
    let (got, _) = all(&[json!({"prompt": list(&[u]), "completion": list(&[a, v, b])})]).unwrap();
    assert_eq!(got, want);
    let weighted = json!([say("user", "q"), {"role": "assistant", "content": "a", "weight": 0}, say("user", "v"),
        {"role": "assistant", "content": "b", "weight": 1}]);
    assert_eq!(all(&[json!({"messages": weighted})]).unwrap().0, want[1..]);
    let history = json!({"instruction": "v", "output": "b", "history": [["q", "a"]]});
    assert_eq!(all(&[history]).unwrap().0, want);
    // A turn that says nothing is dropped by itself.
    let (got, report) =
        all(&[json!({"messages": [say("user", "q"), say("assistant", ""), say("user", "v"), say("assistant", "b")]})])
            .unwrap();
    assert_eq!((got.len(), report.dropped[&DropReason::EmptyResponse].responses, report.rows_kept), (1, 1, 1));
    let dialogue = json!({"messages": list(&[u, a, v, b])});
    assert_eq!(learned(std::slice::from_ref(&dialogue), AssistantTurns::All), [(0, 0), (0, 1)]);
    assert_eq!(learned(std::slice::from_ref(&dialogue), AssistantTurns::Last), [(0, 0)]);
    // What compares or judges is refused, and so is what has no turns.
    for row in [
        json!({"prompt": "p", "chosen": "a", "rejected": "b"}),
        json!({"prompt": "p", "responses": ["a"], "scores": [1]}),
        json!({"prompt": "p", "completion": "a", "label": true}),
        json!({"messages": list(&[u, a]), "label": true}),
    ] {
        let e = all(&[dialogue.clone(), row]).unwrap_err();
        assert!(e.contains("line 2: `options.assistant_turns` all is for demonstrations"), "{e}");
    }
    let e = all(&[json!({"text": "t"})]).unwrap_err();
    assert!(e.ends_with("`options.assistant_turns` all has no effect: no row is a conversation; leave it out"), "{e}");
    let last = refused(&[json!({"messages": [say("user", "q"), {"role": "assistant", "content": "a", "weight": 0}]})]);
    assert!(last.contains("the last of `messages` has weight 0"), "{last}");
}

/// Each turn is rendered as when it was asked: with its own reasoning, and without that of the turns before it.
#[test]
fn a_turn_is_rendered_as_when_it_was_asked() {
    let template = "{% for m in messages %}<|turn|>{{ m['role'] }}\n{% if loop.last and m['thinking'] %}({{ m['thinking'] }})\
        {% endif %}{{ m['content'] }}</s>\n{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}";
    let thought = |text: &str, thinking: &str| json!({"role": "assistant", "content": text, "thinking": thinking});
    let messages = [say("user", "q"), thought("a", "first"), say("user", "v"), thought("b", "second")];
    let place = Place::new();
    let mut o = place.options("rows.jsonl", json!({"messages": messages}).to_string());
    o.tokenizer_options.chat_template = TemplateChoice::File(place.write("t.jinja", template));
    o.assistant_turns = AssistantTurns::All;
    run(&o);
    let want = [
        format!("0.0 {} label true", asked(&[("user", "q")], "(first)a")),
        format!("0.1 {} label true", asked(&[("user", "q"), ("assistant", "a"), ("user", "v")], "(second)b")),
    ];
    assert_eq!(place.contents(&o.out, Split::Train), want);
}
