//! Chat templates: what people met in their own, which template of several a row takes, and what strangers' may not do.

use crate::pack_common;

use fusedpo::choice::Choice;
use fusedpo::data::input::{FieldMap, parse};
use fusedpo::data::text::{
    BuiltInTemplate, ChatTemplate, PromptBoundary, Sources, TextTokenizer, TokenizerOptions, tokenise,
};
use pack_common::tiny_model;
use serde_json::{Map, Value, json};
use std::path::Path;

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source.into(), vec![("bos_token".into(), "<s>".into())], Path::new("t.jinja")).unwrap()
}

fn render(source: &str, messages: Value) -> Result<String, String> {
    template(source).render(messages.as_array().unwrap(), false, None, &Map::new())
}

fn hi() -> Value {
    json!([{"role": "user", "content": "an apple a day"}])
}

/// The template's one line about a single message, so that a table reads well.
fn said(expression: &str) -> String {
    render(&format!("{{% for m in messages %}}{{{{ {expression} }}}}{{% endfor %}}"), hi()).unwrap()
}

#[test]
fn line_ends_are_those_of_jinja() {
    for end in ["\r\n", "\r", "\n"] {
        let source = format!("{{% for m in messages %}}{end}<s>{{{{ m.role }}}}{end}{{% endfor %}}{end}a{end}{end}");
        assert_eq!(render(&source, hi()).unwrap(), "<s>user\na\n", "{end:?}");
    }
    // A row's own stay.
    assert_eq!(render("{{ messages[0].content }}", json!([{"role": "u", "content": "a\r\nb\r"}])).unwrap(), "a\r\nb\r");
}

#[test]
fn numbers_are_written_as_python_writes_them() {
    let row = r#"{"prompt": [{"role": "user", "content": "a", "x": 1e+16}], "tools":
        [{"a": 1e-05, "b": 2e-07, "c": 12345678901234567890123, "d": -0, "e": -0.0, "f": 1e22, "g": 0.1, "h": 100.0}],
        "chosen": [{"role": "assistant", "content": "y"}], "rejected": [{"role": "assistant", "content": "n"}]}"#;
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.jsonl");
    std::fs::write(&input, row.replace('\n', "")).unwrap();
    let reading = fusedpo::data::input::open(&input, Default::default()).unwrap();
    let fields = reading.into_iter().next().unwrap().unwrap().fields().unwrap();
    let row = parse(fields, &FieldMap::default()).unwrap();
    let source = "{{ tools|tojson }}|{{ tools }}|{{ messages[0].x }}|{{ tools[0].c // 10 }}";
    let messages = match &row.prompt {
        fusedpo::data::input::Prompt::Text(fusedpo::data::input::Text::Chat(messages)) => messages.clone(),
        other => panic!("{other:?}"),
    };
    let got = template(source).render(&messages, false, row.tools.as_ref(), &Map::new()).unwrap();
    let json = r#"[{"a": 1e-05, "b": 2e-07, "c": 12345678901234567890123, "d": 0, "e": -0.0, "f": 1e+22, "g": 0.1, "h": 100.0}]"#;
    assert_eq!(got, format!("{json}|{}|1e+16|1234567890123456789012", json.replace('"', "'")));
}

#[test]
fn keys_of_messages_that_are_null_are_not_there() {
    let source = "{% for m in messages %}{% if m.content is defined %}{{ m.content }}{% endif %}{% if 'tool_calls' in m %}[CALLS]{{ m.tool_calls[0].x }}{% endif %}{% endfor %}";
    let messages = json!([
        {"role": "user", "content": "hi", "tool_calls": null},
        {"role": "assistant", "content": null, "tool_calls": [{"x": null}]},
    ]);
    assert_eq!(render(source, messages).unwrap(), "hi[CALLS]None");
    let order = "{{ messages[0] }}";
    let messages = json!([{"role": "a", "reasoning": "r", "thinking": null, "content": "c"}]);
    let want = "{'thinking': 'r', 'role': 'a', 'reasoning': 'r', 'content': 'c', 'reasoning_content': 'r'}";
    assert_eq!(render(order, messages).unwrap(), want);
}

#[test]
fn pythons_methods_and_jinjas_filters_are_there() {
    for (expression, want) in [
        ("m.content.rsplit(' ', 1)[0]", "an apple a"),
        ("m.content.removeprefix('an ')", "apple a day"),
        ("m.content.partition(' ')", "('an', ' ', 'apple a day')"),
        ("m.content.replace('a', 'b', 1)", "bn apple a day"),
        ("'%s!' % m.content", "an apple a day!"),
        ("messages|join(',', attribute='role')", "user"),
        ("m.content.index('p')", "4"),
        ("m.content.zfill(16)", "00an apple a day"),
        ("m.content.split(sep=' ')[1]", "apple"),
        ("m is callable", "False"),
        ("m.content|wordcount", "4"),
        ("m.content|truncate(8, leeway=0)", "an..."),
        ("strftime_now('%F')|length", "10"),
        ("'{:>6}|{!r}'.format('é', 'x')", "     é|'x'"),
        ("-2 ** m.content|length", "-16384"),
        ("9 ** 40", "147808829414345923316083210206383297601"),
    ] {
        assert_eq!(said(expression), want, "{expression}");
    }
}

#[test]
fn what_differs_is_refused_by_name() {
    for (source, name) in [
        ("{{ [1, 2]|random }}", "the filter random"),
        ("{{ lipsum() }}", "the function lipsum()"),
        ("{{ 'x'|urlize }}", "the filter urlize"),
        ("{{ messages|map(attribute='x') }}", "printing a generator"),
        ("{{ 'x'.encode() }}", "the method encode() of str"),
        ("{% block a %}{% endblock %}", "the tag {% block %}"),
        ("{% autoescape true %}{% endautoescape %}", "the tag {% autoescape %}"),
        ("{{ (-8.0) ** 0.5 }}", "a complex number"),
        ("{{ 'nan'|float }}", "NaN"),
        ("{{ 1e999 }}", "greater than the greatest float"),
    ] {
        let made = ChatTemplate::new(source.into(), vec![], Path::new("t.jinja"));
        let why = match made {
            Ok(template) => template.render(hi().as_array().unwrap(), false, None, &Map::new()).unwrap_err(),
            Err(e) => e.to_string(),
        };
        assert!(why.contains(name) && why.contains("is not supported in chat templates here"), "{source}: {why}");
        assert!(why.contains("t.jinja") && !why.contains('\n'), "{source}: {why}");
    }
}

#[test]
fn a_row_with_tools_takes_the_template_that_transformers_takes() {
    let named = |names: &[&str]| {
        let named = names.iter().map(|n| ((*n).to_owned(), format!("{n}:{{{{ tools }}}}{{{{ documents }}}}")));
        ChatTemplate::from_sources(Sources::Named(named.collect()), vec![], Path::new("c.json")).unwrap()
    };
    let both = named(&["default", "tool_use", "rag"]);
    let rendered = |t: &ChatTemplate, tools: Option<Value>, kwargs: Value| {
        t.render(hi().as_array().unwrap(), false, tools.as_ref(), kwargs.as_object().unwrap())
    };
    assert_eq!(rendered(&both, None, json!({})).unwrap(), "default:NoneNone");
    assert_eq!(rendered(&both, Some(json!(null)), json!({})).unwrap(), "default:NoneNone");
    assert_eq!(rendered(&both, Some(json!([])), json!({})).unwrap(), "tool_use:[]None");
    let documents = json!({"chat_template": "rag", "documents": [{"text": "t"}]});
    assert_eq!(rendered(&both, Some(json!([{"a": 1}])), documents).unwrap(), "rag:[{'a': 1}][{'text': 't'}]");
    assert_eq!(rendered(&both, None, json!({"chat_template": "{{ x }}", "x": 5})).unwrap(), "5");
    let why = rendered(&named(&["a", "tool_use"]), None, json!({})).unwrap_err();
    assert!(why.contains("none is named `default`: a, tool_use"), "{why}");
    for (kwargs, what) in [
        (json!({"messages": []}), "sets `messages`"),
        (json!({"add_generation_prompt": true}), "sets `add_generation_prompt`"),
        (json!({"padding": true}), "`padding`"),
        (json!({"documents": ["a"]}), "`documents` must be a list of objects"),
        (json!({"chat_template": "{% x %}"}), "unknown tag"),
    ] {
        let why = rendered(&both, None, kwargs).unwrap_err();
        assert!(why.contains(what), "{why}");
    }
    assert!(rendered(&both, Some(json!(["a"])), json!({})).unwrap_err().contains("`tools` must be"));
}

#[test]
fn templates_in_files_stand_before_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(dir.path(), false);
    let load = || TextTokenizer::load(&model, &TokenizerOptions::default()).unwrap();
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": {"image_token": "<i>"},
        "chat_template": [{"name": "default", "template": "c"}, {"name": "tool_use", "template": "t{{ image_token }}"}]});
    std::fs::write(model.join("tokenizer_config.json"), config.to_string()).unwrap();
    let _ = std::fs::remove_file(model.join("chat_template.jinja"));
    let rendered = |tools: Option<&Value>| {
        load().template.unwrap().render(hi().as_array().unwrap(), false, tools, &Map::new()).unwrap()
    };
    let tools = json!([{"name": "x"}]);
    assert_eq!((rendered(None).as_str(), rendered(Some(&tools)).as_str()), ("c", "t<i>"));
    assert_eq!(load().config_json()["chat_template"], config["chat_template"]);
    std::fs::create_dir(model.join("additional_chat_templates")).unwrap();
    std::fs::write(model.join("additional_chat_templates/tool_use.jinja"), "file").unwrap();
    std::fs::write(model.join("chat_template.jinja"), "main").unwrap();
    assert_eq!((rendered(None).as_str(), rendered(Some(&tools)).as_str()), ("main", "file"));
    std::fs::remove_dir_all(model.join("additional_chat_templates")).unwrap();
    assert_eq!((rendered(None).as_str(), rendered(Some(&tools)).as_str()), ("main", "main"));
}

#[test]
fn calls_beside_empty_content_are_a_response() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(dir.path(), false);
    std::fs::write(
        model.join("chat_template.jinja"),
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}w{{ c.n }}{% endfor %}{% endfor %}",
    )
    .unwrap();
    let tok = TextTokenizer::load(&model, &TokenizerOptions::default()).unwrap();
    let row = json!({"prompt": [{"role": "user", "content": "w1"}],
        "chosen": [{"role": "assistant", "content": "", "tool_calls": [{"n": 2}]}],
        "rejected": [{"role": "assistant", "content": "w3"}]});
    let row = parse(row.as_object().unwrap().clone(), &FieldMap::default()).unwrap();
    let row = tokenise(row, &tok, PromptBoundary::Trl).unwrap();
    assert_eq!((row.responses.len(), row.unusable.len()), (2, 0));
}

/// Each ends within seconds and a bounded memory, with one line that names the template; on a thread's small stack.
#[test]
fn a_strangers_template_is_bounded() {
    let deep = |open: &str, inner: &str, close: &str, n: usize| [&open.repeat(n), inner, &close.repeat(n)].concat();
    let mut sources = vec![
        "{{ range(10)|batch(1000000000000, 0)|list }}".to_owned(),
        "{{ '%1000000000s'|format('x') }}".into(),
        "{{ '{:>9999999999}'.format('x') }}".into(),
        "{{ 'a\nb'|indent(1000000000000) }}".into(),
        "{% set ns = namespace(x=[1,2,3,4]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}".into(),
        "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}".into(),
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}".into(),
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}".into(),
        "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}".into(),
        "{{ [1]|tojson(indent=1000000000000) }}".into(),
        "{{ [1]|tojson(indent=18446744073709551615) }}".into(),
        "{{ 'a' * 99999999999 }}{{ [1] * 99999999999 }}".into(),
        "{{ 9 ** 99999999 }}".into(),
        "{{ [1, 2]|slice(100000000000)|list }}".into(),
        "{{ 'x'.center(10000000000) }}".into(),
        "{{ 'a'.replace('', 'b' * 60000000).replace('b', 'c' * 60000000) }}".into(),
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}".into(),
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(99) }}".into(),
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}".into(),
        "{% set ns = namespace(g=[1]) %}{% for i in range(9999) %}{% set ns.g = ns.g|map('string') %}{% endfor %}{{ ns.g|list }}".into(),
        "{% set ns = namespace(a=1) %}{% set ns.me = [ns] %}{{ ns }}".into(),
        // What stands in many places at once is as large as all of them.
        "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}".into(),
        "{% set ns = namespace(a=(1,)) %}{% for i in range(60) %}{% set ns.a = (ns.a, ns.a) %}{% endfor %}{{ {ns.a: 1}|length }}".into(),
        "{% set a = [1] * 500000 %}{% set b = [1] * 500000 %}{% for i in range(99999) %}{{ a == b }}{{ a.index(2) if 0 }}{{ 2 in b }}{% endfor %}".into(),
        "{% set s = 'é' * 9999999 %}{% for i in range(99999) %}{{ s|length }}{{ s[0] }}{{ {s: 1}|length }}{% endfor %}".into(),
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ range(99999)|first }}{% endfor %}{% endfor %}".into(),
        (0..30000).map(|i| format!("{{% set a{i} = 1 %}}{{% if a{i} %}}{{% endif %}}")).collect(),
        format!("{{{{ {} }}}}", deep("(", "1", ")", 16000)),
        format!("{{{{ {} }}}}", deep("[", "1", "]", 16000)),
        format!("{{{{ {}1 }}}}", "-".repeat(32000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(32000)),
        format!("{{{{ 1{} }}}}", " + 1".repeat(32000)),
        format!("{{{{ x{} }}}}", ".a".repeat(32000)),
        format!("{{{{ x{} }}}}", "|string".repeat(32000)),
        format!("{{{{ 1{} }}}}", " if 1 else 1".repeat(32000)),
        deep("{% if 1 %}", "x", "{% endif %}", 5000),
        deep("{% macro a() %}", "x", "{% endmacro %}", 5000),
        deep("{% for a in [1] %}", "x", "{% endfor %}", 50),
        "x".repeat(2 << 20),
        format!("{{{{ dict({}) }}}}", (0..100_000).map(|i| format!("a{i}=1,")).collect::<String>()),
        format!("{{% macro m({}) %}}{{% endmacro %}}", (0..100_000).map(|i| format!("a{i},")).collect::<String>().trim_end_matches(',')),
    ];
    // Namespaces in a chain from front to back, and back to front: dropped flat.
    let chain = "{% set ns = namespace(first=namespace(), last=none) %}{% set ns.last = ns.first %}\
                 {% for i in range(99999) %}{% set n = namespace() %}{% set ns.prev = ns.last %}{% set ns.last = n %}";
    sources.push(format!("{chain}{{% endfor %}}{{{{ raise_exception('end') }}}}"));
    for source in sources {
        let began = std::time::Instant::now();
        let made = ChatTemplate::new(source.clone(), vec![], Path::new("t.jinja"));
        let why = match made {
            Ok(template) => template.render(hi().as_array().unwrap(), false, None, &Map::new()),
            Err(e) => Err(e.to_string()),
        };
        let shown: String = source.chars().take(120).collect();
        let why = why.err().unwrap_or_else(|| panic!("rendered: {shown}"));
        assert!(!why.contains('\n') && why.len() < 400, "{shown}: {why}");
        assert!(
            why.contains("t.jinja") || why.contains("end (line") || why.contains("Range too big"),
            "{shown}: {why}"
        );
        assert!(began.elapsed().as_secs() < 20, "{shown}: {:?}", began.elapsed());
    }
}

/// What is long and deep, and still right, is rendered.
#[test]
fn long_conversations_and_deep_values_render() {
    let many: Vec<Value> =
        (0..5000).map(|i| json!({"role": "user", "content": format!("{i} {}", "x".repeat(200))})).collect();
    let grows = "{% set ns = namespace(out='') %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.out = ns.out ~ m.role %}{% endif %}{{ m.content|trim }}{% endfor %}{{ ns.out|length }}";
    assert!(render(grows, many.into()).unwrap().ends_with("20000"));
    let nested = (0..120).fold(json!(1), |inner, _| json!([inner]));
    let messages = json!([{"role": "user", "content": "x", "deep": nested}]);
    let text = render("{{ messages[0].deep }}|{{ messages[0].deep|tojson }}", messages).unwrap();
    assert_eq!(text.len(), 2 * 241 + 1);
    let macros = "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{% else %}end{% endif %}{% endmacro %}{{ m(120) }}";
    assert_eq!(render(macros, hi()).unwrap(), "end");
}

/// Those that come with the program, as Qwen's, Zephyr's and Alpaca's models were taught; a prompt is the beginning of its answer.
#[test]
fn templates_that_come_with_the_program() {
    let say = |role: &str, content: &str| json!({"role": role, "content": content});
    let turns = [say("system", "Be brief."), say("user", "Hi\n"), say("assistant", "Hello.")];
    for (name, want) in [
        (
            "chatml",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n",
        ),
        ("zephyr", "<|system|>\nBe brief.</s>\n<|user|>\nHi\n</s>\n<|assistant|>\nHello.</s>\n"),
        ("alpaca", "Be brief.\n\n### Instruction:\nHi\n\n\n### Response:\nHello.</s>\n\n"),
    ] {
        let source = BuiltInTemplate::named(name).unwrap().source().to_owned();
        let template = ChatTemplate::new(source, vec![("eos_token".into(), "</s>".into())], Path::new(name)).unwrap();
        let render = |turns: &[Value], prompt| template.render(turns, prompt, None, &Map::new());
        assert_eq!(render(&turns, false).unwrap(), want, "{name}");
        let prompt = render(&turns[..2], true).unwrap();
        assert!(want.starts_with(&prompt) && want[prompt.len()..].starts_with("Hello."), "{name}: {prompt}");
        let tool = render(&[say("tool", "x")], false);
        assert_eq!(tool.is_err(), name == "alpaca", "{tool:?}");
    }
    assert_eq!(BuiltInTemplate::ALL.len(), 3);
}
