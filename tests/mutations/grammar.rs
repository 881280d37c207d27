//! Chat templates at random: every construct of the language, nested, with arguments of every size.

use super::Rng;

const NAMES: [&str; 16] = [
    "messages",
    "m",
    "m.content",
    "m['role']",
    "tools",
    "bos_token",
    "eos_token",
    "add_generation_prompt",
    "loop.index0",
    "loop.last",
    "ns.x",
    "x",
    "messages[0]",
    "messages[-1].content",
    "undefined",
    "documents",
];
const LITERALS: [&str; 22] = [
    "0",
    "1",
    "-1",
    "2.5",
    "1e308",
    "9223372036854775807",
    "99999999999999999999",
    "true",
    "false",
    "none",
    "'a'",
    "\"\"",
    "'\\n\\u1f600'",
    "[]",
    "[1, 'a', none]",
    "{}",
    "{'a': [1], 1: 2}",
    "(1, 2)",
    "range(3)",
    "range(1000000000)",
    "'ab' * 1000",
    "[0] * 100000000",
];
const FILTERS: [&str; 40] = [
    "length",
    "trim",
    "upper",
    "lower",
    "title",
    "capitalize",
    "string",
    "int",
    "float",
    "list",
    "first",
    "last",
    "reverse",
    "sort",
    "unique",
    "join",
    "join(', ')",
    "tojson",
    "tojson(indent=2)",
    "tojson(indent=100000000)",
    "default('x')",
    "replace('a', 'bb')",
    "replace('', 'long')",
    "indent(4)",
    "indent(100000000)",
    "batch(3)",
    "batch(1000000000)",
    "slice(2)",
    "slice(1000000000)",
    "map(attribute='role')",
    "map('upper')",
    "selectattr('role', 'equalto', 'user')",
    "rejectattr('content')",
    "select('string')",
    "items",
    "dictsort",
    "safe",
    "format(1, 2)",
    "wordcount",
    "nonsense",
];
const METHODS: [&str; 20] = [
    "strip()",
    "split()",
    "split('a')",
    "split('', 3)",
    "startswith('a')",
    "endswith(('a', 'b'))",
    "upper()",
    "replace('a', 'b')",
    "get('role')",
    "get('x', {})",
    "items()",
    "keys()",
    "values()",
    "rstrip('\\n')",
    "lstrip()",
    "title()",
    "append(1)",
    "nonsense()",
    "join(['a'])",
    "format(1)",
];
const TESTS: [&str; 14] = [
    "defined",
    "not defined",
    "none",
    "string",
    "mapping",
    "iterable",
    "sequence",
    "number",
    "boolean",
    "true",
    "odd",
    "divisibleby 3",
    "in [1, 2]",
    "nonsense",
];
const OPERATORS: [&str; 16] =
    ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", ">=", "and", "or", "in", "not in"];

/// A template.
pub fn template(rng: &mut Rng) -> String {
    let deep = |rng: &mut Rng, open: &str, close: &str| {
        let n = *rng.pick(&[50, 500, 5000]);
        format!("{{{{ {}1{} }}}}", open.repeat(n), close.repeat(n))
    };
    let mut out = String::new();
    match rng.below(24) {
        0 => out += &deep(rng, "(", ")"),
        1 => out += &deep(rng, "[", "]"),
        2 => out += &deep(rng, "not ", ""),
        3 => out += &deep(rng, "-", ""),
        4 => out += &deep(rng, "1 + ", ""),
        5 => {
            let n = *rng.pick(&[20, 200, 2000]);
            out += &("{% if x %}".repeat(n) + &"{% endif %}".repeat(n));
        }
        6 => out += "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        7 => {
            out += "{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}"
        }
        8 => {
            out += "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}"
        }
        _ => {}
    }
    for _ in 0..1 + rng.below(4) {
        statement(rng, 3, &mut out);
    }
    out
}

fn statement(rng: &mut Rng, depth: usize, out: &mut String) {
    let (open, close) = *rng.pick(&[("{% ", " %}"), ("{%- ", " -%}"), ("{% ", " -%}"), ("{%+ ", " %}")]);
    let body = |rng: &mut Rng, out: &mut String| {
        if depth > 0 {
            (0..1 + rng.below(2)).for_each(|_| statement(rng, depth - 1, out));
        }
    };
    match rng.below(14) {
        0 => *out += *rng.pick(&["text", "\n  ", "</s>", "{# no #}", "{", "}}", "\u{1f600}", "\r\n"]),
        1..=4 => *out += &format!("{{{{ {} }}}}", expression(rng, 3)),
        5 | 6 => {
            *out += &format!(
                "{open}for m in {}{close}",
                rng.pick(&["messages", "messages[::-1]", "tools", "range(3)", "m", "x"])
            );
            body(rng, out);
            *out += *rng.pick(&["", "", "{% break %}", "{% continue %}", "{% else %}none"]);
            *out += &format!("{open}endfor{close}");
        }
        7 | 8 => {
            *out += &format!("{open}if {}{close}", expression(rng, 2));
            body(rng, out);
            if rng.below(2) == 0 {
                *out += &format!("{open}elif {}{close}a{open}else{close}b", expression(rng, 1));
            }
            *out += &format!("{open}endif{close}");
        }
        9 => *out += &format!("{open}set x = {}{close}", expression(rng, 3)),
        10 => {
            *out += &format!(
                "{open}set ns = namespace(x={}){close}{open}set ns.x = {}{close}",
                expression(rng, 1),
                expression(rng, 2)
            )
        }
        11 => {
            *out += &format!("{open}macro f(a, b={}){close}", expression(rng, 1));
            body(rng, out);
            *out += &format!("{{{{ a }}}}{open}endmacro{close}{{{{ f({}) }}}}", expression(rng, 2));
        }
        12 => {
            let (begin, end) = *rng.pick(&[
                ("generation", "endgeneration"),
                ("filter upper", "endfilter"),
                ("raw", "endraw"),
                ("with a = 1", "endwith"),
                ("call f(1)", "endcall"),
                ("include 'a'", "x"),
                ("autoescape true", "endautoescape"),
                ("set x", "endset"),
            ]);
            *out += &format!("{open}{begin}{close}");
            body(rng, out);
            *out += &format!("{open}{end}{close}");
        }
        _ => {
            *out += &format!(
                "{{{{ {}({}) }}}}",
                rng.pick(&[
                    "raise_exception",
                    "strftime_now",
                    "range",
                    "namespace",
                    "dict",
                    "cycler",
                    "lipsum",
                    "nonsense",
                    "joiner"
                ]),
                expression(rng, 1)
            )
        }
    }
}

fn expression(rng: &mut Rng, depth: usize) -> String {
    if depth == 0 || rng.below(4) == 0 {
        return if rng.below(3) == 0 { rng.pick(&LITERALS) } else { rng.pick(&NAMES) }.to_string();
    }
    let inner = |rng: &mut Rng| expression(rng, depth - 1);
    match rng.below(9) {
        0 | 1 => format!("{} {} {}", inner(rng), rng.pick(&OPERATORS), inner(rng)),
        2 | 3 => format!("{} | {}", inner(rng), rng.pick(&FILTERS)),
        4 => format!("{}.{}", rng.pick(&NAMES), rng.pick(&METHODS)),
        5 => format!("{} is {}", inner(rng), rng.pick(&TESTS)),
        6 => format!("({} if {} else {})", inner(rng), inner(rng), inner(rng)),
        7 => format!("({})[{}]", inner(rng), rng.pick(&["0", "-1", "1:", "::-1", "'role'", ":100000000000", "::0"])),
        _ => format!("[{}, {{'k': {}}}]", inner(rng), inner(rng)),
    }
}
