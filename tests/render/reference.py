"""Random chat templates and conversations with what transformers makes of them, a JSON object a line.

    reference.py SEED TEMPLATES CONVERSATIONS      random templates, each with so many conversations
    reference.py SEED FOLDER CONVERSATIONS         the .jinja files below a folder, likewise
    reference.py - < CASES                         cases of one's own: lines with template, messages, ...

A line has template, messages, tools, kwargs, prompt (add_generation_prompt), and either text or error. Needs
transformers 5.23.0 and jinja2; torch is not needed.
"""

import json
import os
import pathlib
import random
import sys
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore")  # "str" is callable? a call of a number is what is asked for here

from tokenizers import Tokenizer, models  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def tokenizer():
    words = {word: at for at, word in enumerate(["<s>", "</s>", "<pad>", "<unk>"])}
    bare = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=bare, **SPECIAL)


def rendered(tok, case):
    """The text, or the error; lone surrogates cannot be tokenised and count as errors."""
    kwargs = dict(case["kwargs"])
    template = kwargs.pop("chat_template", case["template"])
    try:
        text = tok.apply_chat_template(
            case["messages"],
            tools=case["tools"],
            chat_template=template,
            add_generation_prompt=case["prompt"],
            tokenize=False,
            **kwargs,
        )
        text.encode()
        return {"text": text}
    except RecursionError:
        return {"error": "RecursionError"}
    except Exception as e:  # whatever Python, Jinja2 or transformers raise
        return {"error": f"{type(e).__name__}: {e}"[:300]}


# Conversations.

WORDS = ["a", "Hello", "wörld", "ß", "ΟΔΟΣ", "日本語", "𝕏🙂", "it's", '"q"', "<b>&", "x\ty", "two\nlines", " pad ", "", "\u00a0", "007",
         "e\u0301", "line\r\nend", "tab\tend\n", "back\\slash", "\u2028", "\x7f", "ǆ", "%d", "{x}", "3.5", "-12", "None", "A-b c"]
NUMBERS = [0, 1, -1, 2, 7, 42, 1000, 123456789, 2**31, 2**53 + 1, -(2**63), 0.0, 0.5, -2.5, 1.0, 3.14159, 1e-5, 1e-4, 123456.789, 1e15,
           1e16, 1.5e300, 5e-324, 0.1 + 0.2, 1e22, 100.0, -0.0]


class Talk:
    def __init__(self, rng):
        self.r = rng

    def text(self, most=5):
        return " ".join(self.r.choice(WORDS) for _ in range(self.r.randint(0, most)))

    def value(self, depth=0):
        pick = self.r.random()
        if depth < 3 and pick < 0.15:
            return [self.value(depth + 1) for _ in range(self.r.randint(0, 3))]
        if depth < 3 and pick < 0.3:
            return {self.key(): self.value(depth + 1) for _ in range(self.r.randint(0, 3))}
        return self.r.choice([None, True, False, self.r.choice(NUMBERS), self.r.choice(NUMBERS), self.text(3), self.text(1)])

    def key(self):
        return self.r.choice(["name", "type", "text", "items", "x", "y", "ключ", "a b", "default", "values", "0", "title"])

    def call(self):
        arguments = {self.key(): self.value(1) for _ in range(self.r.randint(0, 3))}
        function = {"name": self.r.choice(["clock", "get_weather", "поиск"]), "arguments": self.r.choice([arguments, json.dumps(arguments)])}
        call = {"type": "function", "function": function}
        if self.r.random() < 0.5:
            call["id"] = self.r.choice(["call_1", "abc123XYZ", ""])
        return self.r.choice([call, function])

    def content(self):
        pick = self.r.random()
        if pick < 0.7:
            return self.text(6)
        if pick < 0.8:
            return self.r.choice([None, ""])
        parts = [{"type": "text", "text": self.text(3)}, {"type": "image"}, {"type": "text", "text": ""}, self.text(2)]
        return [self.r.choice(parts) for _ in range(self.r.randint(0, 3))]

    def message(self, role):
        message = {"role": role, "content": self.content()}
        if role == "assistant" and self.r.random() < 0.4:
            message["tool_calls"] = self.r.choice([[self.call() for _ in range(self.r.randint(0, 2))], None])
            if self.r.random() < 0.4:
                message["content"] = self.r.choice(["", None])
            if self.r.random() < 0.2:
                del message["content"]
        if role == "tool":
            message.update(self.r.choice([{"name": "clock"}, {"tool_call_id": "call_1"}, {"name": None}]))
        if self.r.random() < 0.15:
            message[self.r.choice(["reasoning_content", "thinking", "reasoning"])] = self.r.choice([self.text(3), None, ""])
        if self.r.random() < 0.15:
            message[self.key()] = self.value()
        if self.r.random() < 0.1:
            items = list(message.items())
            self.r.shuffle(items)
            message = dict(items)
        return message

    def messages(self):
        roles = self.r.choice([["user"], ["user", "assistant"], ["system", "user", "assistant", "user"], ["system", "user"],
                               ["user", "assistant", "tool", "assistant"], ["user", "assistant", "user", "assistant", "user"]])
        return [self.message(role) for role in roles]

    def tool(self):
        parameters = {"type": "object", "properties": {self.key(): {"type": "string", "description": self.text(2)}}}
        if self.r.random() < 0.5:
            parameters["required"] = [self.key()]
        function = {"name": "clock", "description": self.text(3), "parameters": parameters}
        return self.r.choice([{"type": "function", "function": function}, function])

    def case(self, template):
        kwargs = {}
        if self.r.random() < 0.3:
            kwargs["enable_thinking"] = self.r.choice([True, False])
        if self.r.random() < 0.3:
            kwargs["extra"] = self.value()
        if self.r.random() < 0.1:
            kwargs["documents"] = self.r.choice([None, [], [{"title": self.text(1), "text": self.text(3)}]])
        return {
            "template": template,
            "messages": self.messages(),
            "tools": self.r.choice([None, None, [], [self.tool()], [self.tool(), self.tool()]]),
            "kwargs": kwargs,
            "prompt": self.r.random() < 0.5,
        }


# Templates.


class Source:
    """Expressions by the type that they most likely have, and statements around them."""

    def __init__(self, rng):
        self.r = rng
        self.depth = 0
        self.names = {"str": [], "int": [], "list": [], "dict": [], "any": ["messages", "tools", "extra", "nothing", "enable_thinking"]}
        self.macros = []
        self.spaces = []
        self.loops = 0

    def one(self, *choices):
        return self.r.choice(choices)

    def expr(self, kind=None):
        kind = kind or self.one("str", "str", "int", "float", "bool", "list", "dict", "any")
        self.depth += 1
        try:
            if self.depth > 5:
                return self.leaf(kind)
            if self.r.random() < 0.03:  # a type that does not fit
                kind = self.one("str", "int", "float", "bool", "list", "dict", "any")
            return getattr(self, kind)()
        finally:
            self.depth -= 1

    def leaf(self, kind):
        if self.names.get(kind) and self.r.random() < 0.5:
            return self.r.choice(self.names[kind])
        return {
            "str": lambda: self.literal(),
            "int": lambda: self.one("0", "1", "2", "-3", "10", "0x1F", "0b101", "0o17", "1_000", "99999999999999999999", "(2)"),
            "float": lambda: self.one("1.5", "0.1", "1e3", "2.0", "1_0.5e-3", "1e16", "-0.0", "12345678.9", "1e-7"),
            "bool": lambda: self.one("true", "false", "True", "False"),
            "list": lambda: self.one("[]", "[3, 1, 2]", "['b', 'A', 'c']", "(1, 2)", "('x',)", "[none, true, 1.0]", "range(4)", "[[1, 2], [3]]", "()"),
            "dict": lambda: self.one("{}", "{'a': 1, 'b': 'two'}", "{'x': [1], 'items': 2}", "{1: 'i', 1.5: 'f', none: 'n', true: 't'}", "messages[0]"),
            "any": lambda: self.one("none", "nothing", "messages", "messages[0]", "messages[-1].content", "tools", "extra", "messages[0].role"),
        }[kind]()

    def literal(self):
        return self.one("'a'", '"b c"', "''", "'Hello World'", r"'\n'", r"'it\'s'", r'"\u00e9\x41\t\101"', "'ß ΑΣ'", "'🙂 x'", "'a,b,,c'", "'con' 'cat'",
                        r"'\d\q'", "'<&>'", "'  pad\t'", "'line\\nline2\\n\\nx'", "'%s-%d'", "'{} {x}'", "'42'", "'3.7'", "'0x1f'", r"'\é'", "'bos_token'")

    def attr(self):
        return self.one("role", "content", "tool_calls", "name", "items", "type", "text", "x", "function", "missing", "keys", "title")

    def str(self):
        s, i, l, d, a = (lambda k: lambda: self.expr(k))("str"), lambda: self.expr("int"), lambda: self.expr("list"), lambda: self.expr("dict"), lambda: self.expr("any")
        e = s()
        return self.one(
            lambda: self.leaf("str"),
            lambda: f"{e} ~ {self.expr()}",
            lambda: f"({e} + {s()})",
            lambda: f"{e} * {self.one('0', '2', '3', '-1', 'true')}",
            lambda: f"({e})[{self.part()}]",
            lambda: f"({e})[{self.one('0', '-1', '2', '1')}]",
            lambda: f"({e}).{self.one('upper', 'lower', 'title', 'capitalize', 'swapcase', 'casefold', 'strip', 'lstrip', 'rstrip')}()",
            lambda: f"({e}).{self.one('strip', 'lstrip', 'rstrip')}({s()})",
            lambda: f"({e}).replace({s()}, {s()}{self.one('', ', 1', ', -1', ', 0')})",
            lambda: f"({e}).{self.one('removeprefix', 'removesuffix')}({s()})",
            lambda: f"({e}).{self.one('center', 'ljust', 'rjust')}({self.one('5', '12', '0', '-2')}{self.one('', ', %r' % '*', ', %r' % 'é')})",
            lambda: f"({e}).zfill({self.one('3', '8')})",
            lambda: f"({e}).expandtabs({self.one('', '4', 'tabsize=2', '0')})",
            lambda: f"({e}).join({self.one('[%s, %s]' % (s(), s()), 'messages[0].keys()', s())})",
            lambda: f"{e}|{self.one('upper', 'lower', 'title', 'capitalize', 'trim', 'string', 'reverse', 'e', 'escape', 'safe', 'forceescape', 'urlencode', 'striptags', 'center(9)', 'first', 'last')}",
            lambda: f"{e}|trim({s()})",
            lambda: f"{e}|replace({s()}, {s()}{self.one('', ', 1', ', count=2')})",
            lambda: f"{e}|indent({self.one('', '2', 'width=3', '2, true', 'first=true', 'blank=True', '%r' % '> ')})",
            lambda: f"{e}|truncate({self.one('5', '3, true', '4, end=%r' % '', '9, leeway=0', 'length=6, killwords=True')})",
            lambda: f"{self.expr()}|string",
            lambda: f"{self.expr()}|tojson{self.json()}",
            lambda: f"{l()}|join{self.one('', '(%r)' % ', ', '(d=%s)' % s(), '(%r, attribute=%r)' % ('|', 'role'), '(attribute=0)')}",
            lambda: f"messages|map(attribute='role')|join({s()})",
            lambda: f"{self.percent()}",
            lambda: f"{self.formatted()}",
            lambda: f"({e} if {self.expr('bool')} else {s()})",
            lambda: f"({e} if {self.expr('bool')})",
            lambda: f"{a()}|default({s()}{self.one('', ', true', ', boolean=True')})",
            lambda: f"({e} or {s()})",
            lambda: f"({e} and {s()})",
            lambda: f"{d()}|xmlattr{self.one('', '(false)', '(autospace=True)')}",
            lambda: f"{self.expr('int')}|filesizeformat{self.one('', '(true)')}",
            lambda: f"messages[{self.one('0', '-1', '1')}].{self.one('role', 'content')}",
            lambda: f"messages[{self.one('0', '-1')}]['{self.attr()}']",
            lambda: f"strftime_now({self.one('%r' % '%Y-%m-%d', '%r' % '%d %B %y %a %j', '%r' % '%A, %-d %b')})",
            lambda: f"({self.r.choice(self.macros) if self.macros else self.leaf('str')})",
            lambda: f"loop.cycle('odd', {s()})" if self.loops else self.leaf("str"),
        )()

    def json(self):
        return self.one("", "", "(indent=2)", "(indent=4)", "(ensure_ascii=true)", "(sort_keys=true)", "(separators=(',', ':'))", "(false, 1)",
                        "(indent='--', ensure_ascii=false)", "(indent=0)", "(separators=[', ', '='], indent=none)")

    def percent(self):
        spec = self.one("s", "r", "d", "i", "5d", "05d", "-6d|", "+d", "x", "#x", "X", "o", "e", "f", ".2f", "8.3f", "g", ".3g", "G", "10s", "-10s|", ".2s", "c", "%", "a",
                        "06.1f", " d", "#o", ".4d", "08.2e", "+.0f")
        if self.r.random() < 0.5:
            return f"'<%{spec}>'|format({self.expr(self.one('int', 'float', 'str', 'any'))})"
        if self.r.random() < 0.5:
            return f"'%(k)s=%(n)5s' % {{'k': {self.expr()}, 'n': {self.expr()}}}"
        return f"'<%{spec}>' % {self.one('(%s,)' % self.expr(), self.expr('int'), self.expr('float'))}"

    def formatted(self):
        spec = self.one("", ":>5", ":<6", ":^7", ":*^9", ":05d", ":+d", ":,", ":_", ":x", ":#b", ":.3f", ":e", ":g", ":.3g", ":%", ":10.2f", ":s", ":.2", "!r", "!s:>8", "!a",
                        ":=+6d", ":08.3f", ":.1%", ":X", ":#o", ":{w}", ":,.2f", ":G", ":n", ":.0f", ":d")
        field = self.one("", "0", "k", "0", "k")
        kind = self.one("int", "float", "str", "any")
        if field == "k":
            return f"'<{{k{spec}}}>'.format(k={self.expr(kind)}, w=4)"
        tail = self.one("", ".role", "[role]", "[0]") if self.r.random() < 0.2 else ""
        return f"'<{{{field}{tail}{spec}}}>'.format({self.one(self.expr(kind), 'messages[0]', self.expr('list'))}, w=6)"

    def part(self):
        p = lambda: self.one("", "", "0", "1", "2", "-1", "-2", "5", "100", "none")  # noqa: E731
        return f"{p()}:{p()}" + self.one("", "", f":{self.one('', '1', '2', '-1', '-2')}")

    def int(self):
        i = lambda: self.expr("int")  # noqa: E731
        e = i()
        return self.one(
            lambda: self.leaf("int"),
            lambda: f"({e} {self.one('+', '-', '*', '//', '%')} {i()})",
            lambda: f"{e} {self.one('+', '-', '*')} {i()}",
            lambda: f"{self.one('2', '(-2)', '-2', '-1', '3')} ** {self.one('2', '3', '10', '(1)', self.expr('list') + '|length')}",
            lambda: f"-{self.leaf('int')}",
            lambda: f"({self.expr('list')})|length",
            lambda: f"{self.expr('str')}|length",
            lambda: f"{self.expr(self.one('str', 'float', 'int', 'bool', 'any'))}|int{self.one('', '(7)', '(default=-1)', '(0, 16)', '(base=8)')}",
            lambda: f"({self.expr('str')}).{self.one('find', 'rfind', 'count', 'index', 'rindex')}({self.expr('str')}{self.one('', ', 1', ', 1, -1', ', -3')})",
            lambda: f"({self.expr('list')}).{self.one('count', 'index')}({self.leaf('int')})",
            lambda: f"{self.expr('list')}|{self.one('sum', 'sum(start=5)', 'min', 'max', 'first', 'last', 'count')}",
            lambda: f"{e}|{self.one('abs', 'round', 'round(-1)', 'int')}",
            lambda: f"{self.expr('str')}|wordcount",
            lambda: f"({e} if {self.expr('bool')} else {i()})",
            lambda: self.one("loop.index", "loop.index0", "loop.revindex", "loop.revindex0", "loop.length", "loop.depth", "loop.depth0") if self.loops else self.leaf("int"),
            lambda: f"({e}).{self.one('real', 'bit_length()', 'imag', 'denominator')}",
        )()

    def float(self):
        f = lambda: self.expr("float")  # noqa: E731
        e = f()
        return self.one(
            lambda: self.leaf("float"),
            lambda: f"({e} {self.one('+', '-', '*', '/', '//', '%')} {self.one(f(), self.expr('int'))})",
            lambda: f"{self.expr('int')} / {self.one('2', '3', '7', '-4', '0.5')}",
            lambda: f"{self.expr(self.one('str', 'int', 'any'))}|float{self.one('', '(1.5)', '(default=0)')}",
            lambda: f"{e}|round({self.one('', '1', '2', '3', '0', '-1', 'precision=1', '1, %r' % 'ceil', '2, %r' % 'floor', 'method=%r' % 'ceil')})",
            lambda: f"-{self.leaf('float')}",
            lambda: f"{e}|abs",
            lambda: f"{e} ** {self.one('2', '0.5', '-1', '3')}",
        )()

    def bool(self):
        e = self.expr()
        test = self.one("defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "mapping", "sequence", "iterable", "callable", "true", "false", "escaped",
                        "lower", "upper")
        return self.one(
            lambda: self.leaf("bool"),
            lambda: f"{e} is {self.one('', 'not ')}{test}",
            lambda: f"({self.expr('int')}) is {self.one('odd', 'even', 'divisibleby 3', 'divisibleby(2)', 'eq 2', 'ne(1)', 'gt 1', 'lt 3', 'ge 2', 'le(4)', 'greaterthan 0', 'lessthan 9')}",
            lambda: f"{self.expr('int')} {self.one('==', '!=', '<', '>', '<=', '>=')} {self.one(self.expr('int'), self.expr('float'))}",
            lambda: f"{self.leaf('int')} < {self.leaf('int')} <= {self.leaf('int')}",
            lambda: f"{e} {self.one('==', '!=')} {self.expr()}",
            lambda: f"{self.expr('str')} {self.one('in', 'not in')} {self.one(self.expr('str'), self.expr('list'), self.expr('dict'))}",
            lambda: f"{e} in {self.expr('list')}",
            lambda: f"{e} is in {self.leaf('list')}",
            lambda: f"not {e}",
            lambda: f"({self.expr('bool')} {self.one('and', 'or')} {self.expr('bool')})",
            lambda: f"{self.one('none', 'true', 'messages', 'messages[0]')} is sameas {self.one('none', 'true', 'messages', 'messages[0]', 'messages[-1]')}",
            lambda: f"({self.expr('str')}).{self.one('startswith', 'endswith')}({self.one(self.expr('str'), '(%s, %s)' % (self.leaf('str'), self.leaf('str')))}{self.one('', ', 1', ', 0, 2')})",
            lambda: f"({self.expr('str')}).{self.one('isalpha', 'isdigit', 'isalnum', 'isspace', 'isupper', 'islower', 'istitle', 'isnumeric', 'isdecimal', 'isascii', 'isprintable')}()",
            lambda: f"'{self.one('upper', 'nofilter', 'tojson')}' is filter",
            lambda: f"'{self.one('odd', 'notest')}' is test",
            lambda: self.one("loop.first", "loop.last", "loop.changed(loop.index // 2)", "loop.previtem is defined", "loop.nextitem is undefined") if self.loops else "add_generation_prompt",
            lambda: f"{self.expr('str')} < {self.expr('str')}",
            lambda: f"{self.leaf('list')} < {self.leaf('list')}",
        )()

    def list(self):
        l = lambda: self.expr("list")  # noqa: E731
        e = l()
        return self.one(
            lambda: self.leaf("list"),
            lambda: f"[{', '.join(self.expr() for _ in range(self.r.randint(0, 3)))}]",
            lambda: f"({self.expr()}, {self.expr()})",
            lambda: f"({e} + {l()})",
            lambda: f"{e} * {self.one('0', '2', '1')}",
            lambda: f"({e})[{self.part()}]",
            lambda: f"range({self.one('3', '1, 5', '5, 0, -2', '0', '2, 3')})",
            lambda: f"({self.expr('str')}).{self.one('split', 'rsplit')}({self.one('', '%r' % ',', '%r' % ' ', 'none, 1', '%r, 1' % 'a', 'maxsplit=1', 'sep=%r' % 'l')})",
            lambda: f"({self.expr('str')}).{self.one('partition', 'rpartition')}({self.one('%r' % ' ', '%r' % 'l', '%r' % ',')})",
            lambda: f"({self.expr('str')}).splitlines({self.one('', 'true', 'keepends=False')})",
            lambda: f"{e}|{self.one('list', 'sort', 'reverse|list', 'unique|list', 'sort(reverse=true)', 'map(%r)|list' % 'string', 'select|list', 'reject(%r)|list' % 'none', 'batch(2)|list', 'batch(2, 0)|list', 'slice(2)|list', 'slice(3, %r)|list' % 'x', 'sort(case_sensitive=true)')}",
            lambda: f"{e}|map({self.one('%r' % 'upper', '%r' % 'tojson', '%r' % 'length', '%r, 2' % 'default', '%r, %r, %r' % ('replace', 'a', 'b'))})|list",
            lambda: f"{e}|{self.one('select', 'reject')}({self.one('%r' % 'string', '%r' % 'odd', '%r, 1' % 'gt', '%r, [1, 2]' % 'in', '%r' % 'defined', '%r, 2' % '==')})|list",
            lambda: f"messages|{self.one('selectattr', 'rejectattr')}({self.one('%r' % 'tool_calls', '%r, %r' % ('tool_calls', 'defined'), '%r, %r, %r' % ('role', 'equalto', 'user'), '%r, %r, [%r]' % ('role', 'in', 'user'))})|list",
            lambda: f"messages|map(attribute={self.one('%r' % 'role', '%r, default=%r' % ('name', 'none'), '%r' % 'content.0.type', '%r' % 'missing')})|list",
            lambda: f"messages|groupby('role'){self.one('', '|map(attribute=0)|list', '|map(attribute=%r)|list' % 'grouper', '|list')}",
            lambda: f"messages|{self.one('sort(attribute=%r)' % 'role', 'map(attribute=%r)|unique|list' % 'role', 'sort(attribute=%r)' % 'role,content')}",
            lambda: f"{self.expr('dict')}|{self.one('dictsort', 'items|list', 'list', 'dictsort(by=%r)' % 'value', 'dictsort(true, reverse=true)', 'reverse|list')}",
            lambda: f"({self.expr('dict')}).{self.one('items', 'keys', 'values')}(){self.one('', '|list')}",
            lambda: f"{self.expr('str')}|list",
            lambda: f"({e} if {self.expr('bool')} else {l()})",
        )()

    def dict(self):
        return self.one(
            lambda: self.leaf("dict"),
            lambda: "{" + ", ".join(f"{self.one(self.literal(), self.leaf('int'), self.literal())}: {self.expr()}" for _ in range(self.r.randint(0, 3))) + "}",
            lambda: f"dict({self.one('', 'a=%s' % self.expr(), '%s, k=1' % self.expr('dict'), '[(%s, 1)]' % self.literal())})",
            lambda: f"({self.expr('dict')}).copy()",
            lambda: "messages[0]",
            lambda: f"dict.fromkeys({self.expr('list')}, 0)",
            lambda: f"({self.expr('list')}|first)",
        )()

    def any(self):
        e = self.expr("dict")
        return self.one(
            lambda: self.leaf("any"),
            lambda: self.expr(self.one("str", "int", "list", "dict", "bool", "float")),
            lambda: f"({e}).{self.attr()}",
            lambda: f"({e})[{self.expr('str')}]",
            lambda: f"({e}).get({self.expr('str')}{self.one('', ', %s' % self.expr())})",
            lambda: f"({self.expr('list')})[{self.one('0', '-1', '1', '9')}]",
            lambda: f"({self.expr('list')})|{self.one('first', 'last', 'min', 'max')}",
            lambda: f"({self.expr('any')})|default({self.expr()})",
            lambda: f"{e}|attr({self.literal()})",
            lambda: f"messages[0].{self.attr()}.{self.attr()}",
            lambda: f"{self.r.choice(self.spaces)}.{self.one('n', 'text', 'found')}" if self.spaces else self.leaf("any"),
            lambda: f"({self.expr('str')}).{self.attr()}",
        )()

    # Statements.

    def tag(self, inner):
        return "{%" + self.one("", "", "-", "+") + self.one(" ", " ", "", "\n") + inner + self.one(" ", " ", "", "\n") + self.one("", "", "-", "+") + "%}"

    def gap(self):
        return self.one("", "", "\n", " ", "\n  ", "  \n\n", "\t", "x", " y ", "\r\n", "|", "é\n")

    def print(self):
        kind = self.one("str", "str", "str", "int", "float", "bool", "list", "dict", "any")
        return "{{" + self.one("", "-", "+") + self.one(" ", "") + self.expr(kind) + " " + self.one("", "-") + "}}"

    def body(self, size=3):
        return "".join(self.gap() + self.statement() for _ in range(self.r.randint(1, size))) + self.gap()

    def inner(self, size=2, **names):
        """A body whose own names are forgotten behind it, most of the time."""
        kept = {k: list(v) for k, v in self.names.items()}
        for name, kind in names.items():
            self.names[kind].append(name)
        self.depth += 1
        try:
            return self.body(size)
        finally:
            self.depth -= 1
            if self.r.random() < 0.8:
                self.names = kept

    def statement(self):
        if self.depth > 3 or self.r.random() < 0.45:
            return self.print()
        return self.one(self.set, self.set, self.loop, self.loop, self.condition, self.condition, self.with_, self.macro, self.call, self.filter, self.block, self.raw, self.comment,
                        self.generation, self.space, self.recursive, self.early, self.objects, self.closure)()

    def name(self, kind):
        name = self.one("a", "b", "c", "item", "x1", "größe", "_u", "total")
        self.names[kind].append(name)
        return name

    def set(self):
        if self.r.random() < 0.15:
            return self.tag(f"set {self.name('any')}, {self.name('any')} = {self.expr()}, {self.expr()}")
        kind = self.one("str", "int", "list", "dict", "any")
        value = self.expr(kind)
        return self.tag(f"set {self.name(kind)} = {value}")

    def block(self):
        flt = self.one("", " | upper", "|trim|replace('a', 'b')", "|length|string", "|tojson")
        inner = self.inner()
        return self.tag(f"set {self.name('str')}{flt}") + inner + self.tag("endset")

    def loop(self):
        over, target, names = self.one(
            (lambda: "messages", "message", {"message": "dict"}),
            (lambda: "messages", "m", {"m": "dict"}),
            (lambda: self.expr("list"), "item", {"item": "any"}),
            (lambda: self.expr("dict") + ".items()", "k, v", {"k": "str", "v": "any"}),
            (lambda: self.expr("dict") + "|items", "k, v", {"k": "str", "v": "any"}),
            (lambda: self.expr("dict"), "k", {"k": "str"}),
            (lambda: self.expr("str"), "ch", {"ch": "str"}),
            (lambda: "messages|groupby('role')", "role, group", {"role": "str", "group": "list"}),
            (lambda: "messages[1:]", "m", {"m": "dict"}),
            (lambda: "tools", "tool", {"tool": "dict"}),
            (lambda: "messages|reverse", "m", {"m": "dict"}),
            (lambda: "messages|rejectattr('role', 'equalto', 'system')", "m", {"m": "dict"}),
        )
        over = over()
        test = f" if {self.one(self.expr('bool'), '%s is string' % list(names)[0], list(names)[0])}" if self.r.random() < 0.25 else ""
        self.loops += 1
        inner = self.inner(3, **names)
        self.loops -= 1
        other = self.tag("else") + self.inner() if self.r.random() < 0.2 else ""
        return self.tag(f"for {target} in {over}{test}") + inner + other + self.tag("endfor")

    def early(self):
        self.loops += 1
        inner = self.inner(2, m="dict")
        self.loops -= 1
        stop = self.tag(f"if {self.one('loop.index == 2', 'm.role == %r' % 'assistant', 'not loop.first')}") + self.tag(self.one("break", "continue")) + self.tag("endif")
        other = self.tag("else") + self.gap() + "none" if self.r.random() < 0.3 else ""
        return self.tag("for m in messages") + stop + inner + other + self.tag("endfor")

    def recursive(self):
        data = self.one("[1, [2, [3, 4]], 5]", "[['a', ['b']], 'c']", "[[]]")
        inner = self.tag("if x is string or x is number") + "{{ x }}" + self.tag("else") + "({{ loop(x) }})" + self.tag("endif") + self.one("", "{{ loop.depth }}", "{{ loop.last }}", "{{ loop.length }}")
        return self.tag(f"for x in {data} recursive") + inner + self.tag("endfor")

    def condition(self):
        other = self.tag(f"elif {self.expr('bool')}") + self.inner() if self.r.random() < 0.3 else ""
        other += self.tag("else") + self.inner() if self.r.random() < 0.5 else ""
        return self.tag(f"if {self.one(self.expr('bool'), self.expr())}") + self.inner() + other + self.tag("endif")

    def with_(self):
        a, b = self.expr("str"), self.expr("int")
        return self.tag(f"with w = {a}, n = {b}") + self.inner(2, w="str", n="int") + self.tag("endwith")

    def macro(self):
        name = self.one("show", "render_one", "m1", "_p")
        kept, loops, self.loops = {k: list(v) for k, v in self.names.items()}, self.loops, 0
        inner = self.inner(2, p="str", q="any")
        extra = self.one("", "", "{{ varargs }}", "{{ kwargs }}", "{{ caller() if caller is defined }}", "{{ varargs|length }}{{ kwargs|tojson }}")
        self.names, self.loops = kept, loops
        out = self.tag(f"macro {name}(p, q={self.expr()})") + inner + extra + self.tag("endmacro")
        calls = [f"{name}({self.leaf('str')})", f"{name}({self.leaf('str')}, {self.leaf('any')})", f"{name}(p={self.leaf('str')})", f"{name}()", f"{name}(q=1, p='z')"]
        if "varargs" in extra:
            calls += [f"{name}(1, 2, 3, 4)", f"{name}(*[1, 2, 3])"]
        if "kwargs" in extra:
            calls += [f"{name}('a', z=1, y=2)", f"{name}('a', **{{'z': 1}})"]
        self.macros += calls
        return out + "{{ " + self.one(*calls) + " }}"

    def call(self):
        define = self.tag("macro wrap(t='T', n=2)") + "<{{ t }}>" + self.one("{{ caller() }}", "{% for i in range(n) %}{{ caller() }}{% endfor %}") + "</{{ t }}>" + self.tag("endmacro")
        return define + self.tag(f"call wrap({self.leaf('str')})") + self.inner() + self.tag("endcall")

    def closure(self):
        define = self.tag("macro each(xs)") + "{% for x in xs %}[{{ caller(x, loop.index) }}]{% endfor %}" + self.tag("endmacro")
        return define + self.tag(f"call(x, i) each({self.expr('list')})") + self.inner(1, x="any", i="int") + self.tag("endcall")

    def filter(self):
        return self.tag(f"filter {self.one('upper', 'trim', 'replace(%r, %r)' % ('a', 'e'), 'indent(2)', 'title|trim', 'length|string', 'e', 'tojson', 'center(20)')}") + self.inner() + self.tag("endfilter")

    def raw(self):
        return self.tag("raw") + self.gap() + self.one("{{ x }}", "{% if %}", "{# c #}", "text") + self.gap() + self.tag("endraw")

    def comment(self):
        return "{#" + self.one("", "-", "+") + self.one(" note ", "\n{{ x }}\n", "", "{% raw %}") + self.one("", "-", "+") + "#}"

    def generation(self):
        return self.tag("generation") + self.inner() + self.tag("endgeneration")

    def space(self):
        name = self.one("ns", "state")
        self.spaces.append(name)
        first = self.tag(f"set {name} = namespace({self.one('n=0, text=%r' % '', 'found=false, n=1', '{%r: 5}' % 'n', 'n=[], text=none')})")
        self.loops += 1
        inner = self.tag(f"set {name}.n = {self.one('%s.n + 1' % name, 'loop.index', self.expr('int'), '%s.n + [1]' % name)}") + self.tag(f"set {name}.text = {self.expr('str')}") + self.inner(1, m="dict")
        self.loops -= 1
        return first + self.tag("for m in messages") + inner + self.tag("endfor") + "{{ " + self.one(f"{name}.n", f"{name}.text", f"{name}.missing", name) + " }}"

    def objects(self):
        return self.one(
            "{% set cy = cycler('a', 'b', 3) %}{{ cy.next() }}{{ cy.next() }}{{ cy.current }}{{ cy.reset() }}{{ cy.next() }}",
            "{% set j = joiner(' & ') %}{% for m in messages %}{{ j() }}{{ m.role }}{% endfor %}",
            "{% set g = messages|map(attribute='role') %}{{ g|first }}{{ g|list }}{{ g|list }}",
            "{% set d = {'b': 1, 'a': 2} %}{% for k in d %}{{ k }}={{ d[k] }};{% endfor %}{{ d.items() }}{{ d.keys()|list }}{{ d.values() }}",
            "{{ [].append }}{{ 'x'.__class__ }}{{ messages[0].pop }}",
            "{{ range(3) }}{{ range(3)[1] }}{{ 2 in range(3) }}{{ range(5)|last }}",
            "{{ 'a' is sameas none }}{{ [1] is sameas [1] }}",
        )

    def template(self):
        out = self.body(4)
        if self.r.random() < 0.1:
            out = out.replace("\n", self.one("\r\n", "\r"))
        return out


def main():
    tok = tokenizer()
    out = sys.stdout
    if sys.argv[1] == "-":
        for line in sys.stdin:
            case = {"tools": None, "kwargs": {}, "prompt": False, **json.loads(line)}
            out.write(json.dumps({**case, **rendered(tok, case)}) + "\n")
        return
    rng = random.Random(int(sys.argv[1]))
    talk = Talk(rng)
    if not sys.argv[2].isdigit():
        for file in sorted(pathlib.Path(sys.argv[2]).rglob("*.jinja*")):
            template = file.read_text(encoding="utf-8")
            for _ in range(int(sys.argv[3])):
                case = talk.case(template)
                out.write(json.dumps({**case, **rendered(tok, case), "file": file.name}) + "\n")
        return
    made = 0
    while made < int(sys.argv[2]):
        template = Source(rng).template()
        if len(template) > 4000:
            continue
        first = talk.case(template)
        answer = rendered(tok, first)
        # What fails at once says little: most of it is left out.
        if "error" in answer and rng.random() > 0.1:
            continue
        made += 1
        out.write(json.dumps({**first, **answer}) + "\n")
        for _ in range(int(sys.argv[3]) - 1):
            case = talk.case(template)
            out.write(json.dumps({**case, **rendered(tok, case)}) + "\n")


main()
