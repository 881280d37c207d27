//! Shapes that other programs write: each gives the token ids of the same rows in TRL's form.

use super::pack_common::Random;
use super::pack_common::place::*;
use super::*;
use fusedpo::data::input::FieldMap;
use fusedpo::data::text::TemplateChoice;

/// Shows every key of every message, and the tools.
const TEMPLATE: &str = "{% if tools %}T{{ tools | tojson }}{% endif %}{% for m in messages %}<|turn|>{{ m['role'] }}:{{ m | tojson }}</s>{% endfor %}{% if add_generation_prompt %}<|turn|>assistant:{% endif %}";

/// Groups of `rows`, as lines of text, and the shapes that the report names.
fn shown(rows: &[Value]) -> (Vec<String>, Vec<String>) {
    let place = Place::new();
    let mut o = place.options("rows.jsonl", lines(rows));
    o.tokenizer_options.chat_template = TemplateChoice::File(place.write("t.jinja", TEMPLATE));
    o.max_length = 0;
    let report = pack(&o, &mut |_| Ok(())).unwrap_or_else(|e| panic!("{e} in {rows:?}"));
    assert_eq!(report.rows_kept as usize, rows.len(), "{report}");
    (place.contents(&o.out, Split::Train), report.shapes.into_keys().collect())
}

/// Rows of some shape, and the same in TRL's form.
#[derive(Default)]
struct Both {
    rows: Vec<Value>,
    trl: Vec<Value>,
    shapes: std::collections::BTreeSet<String>,
}

impl Both {
    fn add(&mut self, row: Value, trl: &Value, shape: &str) {
        self.rows.push(row);
        self.trl.push(trl.clone());
        self.shapes.insert(shape.to_owned());
    }

    /// All give the same tokens, and the report calls them by their shapes.
    fn check(self) {
        let ((got, shapes), (want, _)) = (shown(&self.rows), shown(&self.trl));
        let differs = got.iter().zip(&want).position(|(a, b)| a != b);
        if let Some(at) = differs {
            let row: usize = got[at].split('.').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            panic!("{}\n{}\n{}\n{}", got[at], want[at], self.rows[row], self.trl[row]);
        }
        assert_eq!(got.len(), want.len());
        assert_eq!(shapes, self.shapes.into_iter().collect::<Vec<_>>());
    }
}

/// `row` gives what `trl` gives, and the report calls it `shape`.
#[track_caller]
fn same(row: Value, trl: &Value, shape: &str) {
    let mut both = Both::default();
    both.add(row, trl, shape);
    both.check();
}

fn text(random: &mut Random) -> String {
    const WORDS: [&str; 12] =
        ["the", "in ", "é", "\n\n", "\"", "{{ x }}", "日本", " a", "</s>", "\\", "Human:", "\u{1f600}"];
    let n = 1 + random.below(5);
    format!("w{}", (0..n).map(|_| WORDS[random.below(WORDS.len())]).collect::<String>())
}

fn from(messages: &[Value]) -> Vec<Value> {
    let name = |role: &str| match role {
        "user" => "human".to_owned(),
        "assistant" => "gpt".to_owned(),
        "tool" => "observation".to_owned(),
        other => other.to_owned(),
    };
    let one = |m: &Value| match m.get("tool_calls") {
        Some(calls) => {
            json!({"from": "function_call", "value": calls[0]["function"].to_string()})
        }
        None => json!({"from": name(m["role"].as_str().unwrap()), "value": m["content"]}),
    };
    messages.iter().map(one).collect()
}

/// A random conversation up to the user's turn (or a tool's answer), without a system turn.
fn conversation(random: &mut Random, tools: bool) -> Vec<Value> {
    let mut turns = Vec::new();
    for _ in 0..random.below(3) {
        turns.extend([say("user", &text(random)), say("assistant", &text(random))]);
    }
    turns.push(say("user", &text(random)));
    if tools {
        let call = json!({"name": "f", "arguments": {"x": random.below(9)}});
        turns.push(json!({"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}));
        turns.push(say("tool", &text(random)));
    }
    turns
}

/// Joins rows of two objects.
fn with(a: Value, b: &Value) -> Value {
    let mut a = a.as_object().unwrap().clone();
    a.extend(b.as_object().unwrap().clone());
    a.into()
}

fn history(turns: &[Value]) -> Vec<Value> {
    turns.chunks(2).filter(|c| c.len() == 2).map(|c| json!([c[0]["content"], c[1]["content"]])).collect()
}

#[test]
fn random_conversations_round_trip() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let tries = std::env::var("FUSEDPO_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let mut both = Both::default();
    for i in 0..tries {
        let tools = i % 4 == 3;
        let turns = conversation(&mut random, tools);
        let system = (random.below(2) == 0).then(|| text(&mut random));
        let (a, b) = (text(&mut random), format!("{} no", text(&mut random)));
        let begun: Vec<Value> = system.iter().map(|s| say("system", s)).chain(turns.clone()).collect();
        let column = system.as_ref().map_or(json!({"system": null}), |s| json!({"system": s}));
        let schemas = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
        let toolbox = if tools { json!({"tools": schemas}) } else { json!({}) };
        let (good, bad) = (say("assistant", &a), say("assistant", &b));
        let row = |r: Value| with(r, &toolbox);
        let whole = |last: &Value| [&begun[..], std::slice::from_ref(last)].concat();
        pairs(&mut both, &begun, &turns, &column, (&good, &bad), &toolbox);
        let trl = row(json!({"prompt": begun, "completion": [good]}));
        both.add(row(json!({"messages": whole(&good)})), &trl, "messages");
        both.add(row(json!({"messages": from(&whole(&good)), "id": 7})), &trl, "messages");
        both.add(row(json!({"conversations": from(&whole(&good))})), &trl, "conversations");
        both.add(row(json!({"conversations": Value::from(from(&whole(&good))).to_string()})), &trl, "conversations");
        both.add(row(json!({"conversations": whole(&good)})), &trl, "conversations");
        let rest = [&turns[..], std::slice::from_ref(&good)].concat();
        both.add(row(with(json!({"conversations": from(&rest)}), &column)), &trl, "conversations");
        let judged = with(trl.clone(), &json!({"label": false}));
        both.add(row(json!({"messages": whole(&good), "label": false})), &judged, "messages, label");
        both.add(row(json!({"conversations": from(&whole(&good)), "kto_tag": false})), &judged, "conversations, label");
        if !tools {
            requests(&mut both, &begun, &turns, &column, (&a, &b));
        }
    }
    both.check();
}

/// A pair in every shape.
fn pairs(
    both: &mut Both,
    begun: &[Value],
    turns: &[Value],
    system: &Value,
    (good, bad): (&Value, &Value),
    tools: &Value,
) {
    let trl = with(json!({"prompt": begun, "chosen": [good], "rejected": [bad]}), tools);
    let mut check = |row: Value, shape: &str| both.add(with(row, tools), &trl, shape);
    let whole = |last: &Value| [begun, std::slice::from_ref(last)].concat();
    let (g, b) = (&from(std::slice::from_ref(good))[0], &from(std::slice::from_ref(bad))[0]);
    let named = "conversations, chosen, rejected";
    check(json!({"conversations": from(begun), "chosen": g, "rejected": b}), named);
    check(json!({"conversations": from(begun), "chosen": [g], "rejected": [b]}), named);
    check(json!({"conversations": from(begun), "chosen": good["content"], "rejected": bad["content"]}), named);
    check(with(json!({"conversations": from(turns), "chosen": g, "rejected": b}), system), named);
    check(json!({"messages": begun, "chosen": good, "rejected": bad}), "messages, chosen, rejected");
    check(json!({"prompt": begun, "chosen": good, "rejected": bad}), "prompt, chosen, rejected");
    check(json!({"prompt": begun, "chosen": good["content"], "rejected": bad["content"]}), "prompt, chosen, rejected");
    check(json!({"prompt": begun, "chosen": whole(good), "rejected": whole(bad)}), "prompt, chosen, rejected");
    check(json!({"chosen": whole(good), "rejected": whole(bad), "score_chosen": 1.0}), "chosen, rejected");
    check(json!({"chosen": from(&whole(good)), "rejected": from(&whole(bad)), "question": "?"}), "chosen, rejected");
    // H4's, whose string is the first or the last of the user's turns.
    for asked in begun.iter().filter(|m| m["role"] == "user") {
        let row = json!({"prompt": asked["content"], "prompt_id": "1", "chosen": whole(good), "rejected": whole(bad),
            "messages": whole(good), "score_chosen": 8.0, "score_rejected": 2.0});
        check(row, "prompt, chosen, rejected");
    }
    check(json!({"messages": whole(good), "rejected_response": bad["content"]}), "messages, rejected_response");
    let preferred = "input, preferred_output, non_preferred_output";
    let input = with(json!({"messages": begun, "parallel_tool_calls": true, "tools": []}), tools);
    both.add(json!({"input": input, "preferred_output": [good], "non_preferred_output": [bad]}), &trl, preferred);
    both.add(
        json!({"input": input, "preferred_output": good, "non_preferred_output": bad["content"]}),
        &trl,
        preferred,
    );
}

/// Requests and answers in every shape, with what was said before in `history`.
fn requests(both: &mut Both, begun: &[Value], turns: &[Value], system: &Value, (a, b): (&str, &str)) {
    let (Some((asked, before)), [good, bad]) = (turns.split_last(), [a, b].map(|t| say("assistant", t))) else {
        return;
    };
    let text = asked["content"].as_str().unwrap();
    let with_history = |row: Value| with(with(row, system), &json!({"history": history(before)}));
    let trl = json!({"prompt": begun, "completion": [good]});
    both.add(with_history(json!({"instruction": text, "input": "", "output": a})), &trl, "instruction, output");
    both.add(with_history(json!({"query": text, "response": a})), &trl, "query, response");
    both.add(with_history(json!({"question": text, "answer": a})), &trl, "question, answer");
    both.add(with_history(json!({"input": text, "output": a})), &trl, "input, output");
    if let Some((first, rest)) = text.split_once('\n').filter(|(_, rest)| !rest.is_empty()) {
        let row = with_history(json!({"instruction": first, "input": rest, "output": a, "text": "all of it"}));
        both.add(row, &trl, "instruction, output");
    }
    let judged = with(trl, &json!({"label": true}));
    both.add(
        with_history(json!({"instruction": text, "output": a, "kto_tag": true})),
        &judged,
        "instruction, output, label",
    );
    let trl = json!({"prompt": begun, "chosen": [good], "rejected": [bad]});
    let pair = with_history(json!({"instruction": text, "chosen": a, "rejected": b, "output": "other"}));
    both.add(pair, &trl, "instruction, chosen, rejected");
    both.add(with_history(json!({"instruction": text, "output": [a, b]})), &trl, "instruction, output");
    both.add(with_history(json!({"question": text, "chosen": a, "rejected": b})), &trl, "question, chosen, rejected");
    both.add(
        with_history(json!({"input": text, "chosen": a, "rejected": b, "generations": [a, b], "rating": [2, 1]})),
        &trl,
        "input, chosen, rejected",
    );
    both.add(
        with_history(json!({"question": text, "response_j": a, "response_k": b})),
        &trl,
        "question, response_j, response_k",
    );
    let argilla = json!({"instruction": text, "chosen_response": a, "rejected_response": b, "chosen-rating": 5.0});
    both.add(with_history(argilla), &trl, "instruction, chosen_response, rejected_response");
    let swift = with_history(json!({"query": text, "response": a, "rejected_response": b}));
    both.add(swift, &trl, "query, response, rejected_response");
    let trl = json!({"prompt": begun, "responses": [[good], [bad]], "scores": [4, 2.5]});
    let rated =
        with_history(json!({"instruction": text, "generations": [a, b], "ratings": [4, 2.5], "rationales": ["", ""]}));
    both.add(rated, &trl, "instruction, generations, ratings");
    // A system column beside a string makes a conversation of it.
    if before.is_empty() && !system["system"].is_null() {
        let trl = json!({"prompt": begun, "chosen": [good], "rejected": [bad]});
        both.add(with(json!({"prompt": text, "chosen": a, "rejected": b}), system), &trl, "prompt, chosen, rejected");
        let other = json!({"prompt": text, "chosen": a, "rejected": b, "system_prompt": system["system"]});
        both.add(other, &trl, "prompt, chosen, rejected");
    }
}

#[test]
fn calls_and_tools_of_other_programs() {
    let call = |arguments: Value| json!({"type": "function", "function": {"name": "f", "arguments": arguments}});
    let trl = |calls: Value, tools: Value| json!({"prompt": [say("user", "q")], "completion": [{"role": "assistant", "content": "", "tool_calls": calls}], "tools": tools});
    let shape = |value: Value| json!({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": value}]});
    let arguments = json!({"a": 1});
    let both = json!([call(arguments.clone()), call(json!({}))]);
    let one = r#"{"name": "f", "arguments": {"a": 1}}"#;
    same(shape(one.into()), &trl(json!([call(arguments.clone())]), Value::Null), "conversations");
    same(shape(format!("[{one}, {{\"name\": \"f\"}}]").into()), &trl(both.clone(), Value::Null), "conversations");
    // Tools as JSON text, and OpenAI's older functions.
    let function = json!({"name": "f", "parameters": {}});
    let tools = json!([{"type": "function", "function": function}]);
    let want = trl(both.clone(), tools.clone());
    let messages = json!([say("user", "q"), {"role": "assistant", "content": "", "tool_calls": both}]);
    same(json!({"messages": messages, "tools": tools.to_string(), "parallel_tool_calls": false}), &want, "messages");
    same(json!({"messages": messages, "functions": [function]}), &want, "messages");
    same(json!({"messages": messages, "functions": "", "tools": ""}), &trl(both, Value::Null), "messages");
}

/// Two readings of one row are an error that names both; what no text model can take is named too.
#[test]
fn what_is_ambiguous_or_not_for_us_is_refused() {
    let dialogue = json!([say("user", "q"), say("assistant", "a")]);
    let cases = [
        (json!({"question": "a", "query": "b", "answer": "c"}), "both `question` and `query` could be the request"),
        (json!({"question": "a", "answer": "b", "response": "c"}), "both `response` and `answer` could be the answer"),
        (
            json!({"messages": dialogue, "conversations": [{"from": "human", "value": "x"}]}),
            "`messages` and `conversations` hold different dialogues",
        ),
        (
            json!({"conversations": dialogue, "chosen": "a", "rejected": "b"}),
            "`conversations` ends with the assistant's turn",
        ),
        (
            json!({"messages": dialogue, "system": "a", "system_prompt": "b"}),
            "`system` and `system_prompt` say different things",
        ),
        (json!({"messages": dialogue, "label": true, "kto_tag": false}), "`kto_tag` and `label` say different things"),
        (
            json!({"question": "q", "chosen": "\n\nHuman: x\n\nAssistant: a", "rejected": "\n\nHuman: x\n\nAssistant: b"}),
            "the answers are whole transcripts",
        ),
        (
            json!({"prompt": "p", "completions": ["a", "b"], "labels": [true, false]}),
            "`prompt`, `completions` and `labels` judge the steps of one answer",
        ),
        (
            json!({"prompt": "p", "chosen": "a", "rejected": "b", "images": ["x.png"]}),
            "`images` holds pictures or sounds",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, say("assistant", "a")]}),
            "message 0 of `messages` holds a part of type `image_url`",
        ),
        (
            json!({"conversations": [{"from": "alien", "value": "x"}]}),
            "message 0 of `conversations` is from \"alien\"; known are human, gpt",
        ),
        (
            json!({"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "f(x)"}]}),
            "message 1 of `conversations` is a call that is not {\"name\", \"arguments\"}",
        ),
        (json!({"conversations": []}), "`conversations` is empty"),
        (json!({"conversations": "x"}), "`conversations` must be a list of messages, found a string"),
        (
            json!({"conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]}),
            "the last of `conversations` must be the assistant's",
        ),
        (json!({"instruction": "", "output": "a"}), "`instruction` is empty"),
        (json!({"instruction": "q", "output": "a", "history": ["x"]}), "`history` must be a list of [request, answer]"),
        (
            json!({"instruction": "q", "generations": ["a"], "ratings": [null]}),
            "`ratings` holds null; a score must be a finite number",
        ),
        (json!({"instruction": "q", "output": "a", "system": 7}), "`system` must be a string, found a number"),
        (
            json!({"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []}),
            "`input.messages` is empty",
        ),
    ];
    for (row, why) in cases {
        let e = refused(std::slice::from_ref(&row));
        assert!(e.starts_with(&format!("line 1: {why}")), "{row}: {e}");
    }
    // No picture is there.
    for nothing in [json!([]), json!(null), json!([null]), json!("")] {
        assert_eq!(packed(&[json!({"prompt": "p", "completion": "c", "images": nothing})]).0, ["0.0 p>c</s>"]);
    }
}

/// A map renames columns to fields of every shape, and leaves a column out.
#[test]
fn a_map_names_and_leaves_out() {
    let mapped = |row: Value, map: &str| {
        let place = Place::new();
        let mut o = place.options("rows.jsonl", row.to_string());
        o.map = FieldMap::parse(map).unwrap();
        run(&o);
        place.contents(&o.out, Split::Train)
    };
    let chat = [format!("0.0 {}", asked(&[("user", "q")], "a"))];
    assert_eq!(mapped(json!({"ask": "q", "say": "a"}), "instruction=ask,output=say"), chat);
    assert_eq!(mapped(json!({"question": "q", "query": "x", "answer": "a"}), "query="), chat);
    assert_eq!(
        mapped(
            json!({"thread": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
            "conversations=thread"
        ),
        chat
    );
    assert_eq!(mapped(json!({"prompt": "p", "completion": "c", "images": ["x"]}), "images="), ["0.0 p>c</s>"]);
    assert_eq!(
        mapped(json!({"instruction": "q", "output": "a"}), "prompt=instruction,completion=output"),
        ["0.0 q>a</s>"]
    );
}
