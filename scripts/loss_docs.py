#!/usr/bin/env python3
"""Writes what README.md and docs/losses.md say of each loss, from the program's own table.

Usage:   python scripts/loss_docs.py [--fusedpo target/release/fusedpo] [--check] [--root DIR]
Reads:   `fusedpo loss list --json`, and the two pages.
Writes:  the text between `<!-- losses: NAME -->` and `<!-- losses: end -->` in both; with --check nothing, and it fails where a
         page is not up to date.
Needs:   a built program.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/losses.md")
BLOCK = re.compile(r"(<!-- losses: (\w+) -->\n)(.*?)(<!-- losses: end -->\n)", re.S)
WIDTH = 120


def fail(why):
    sys.exit(f"loss_docs: {why}")


def table_of(fusedpo):
    """The losses, as the program lists them."""
    if not fusedpo.is_file():
        fail(f"--fusedpo {fusedpo}: no such file; run: cargo build --release")
    result = subprocess.run([fusedpo, "loss", "list", "--json"], capture_output=True, text=True)
    if result.returncode:
        fail(f"fusedpo loss list ended with {result.returncode}: {result.stderr.strip()}")
    return json.loads(result.stdout)


def number(x):
    return repr(int(x)) if float(x).is_integer() else repr(x)


def flag(option):
    return "--" + option["name"].replace("_", "-")


def options(loss):
    return ", ".join(f"`{flag(o)} {number(o['default'])}`" for o in loss["options"])


def cell(text):
    """Text of a table's cell: a bar there ends it, even in code."""
    return text.replace("|", "\\|")


def wrapped(text, hang=""):
    """In lines, those after the first behind `hang`."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line = hang + word
        else:
            line = f"{line} {word}" if line else word
    return "\n".join([*lines, line])


def reads(loss):
    parts = ["reference"] if loss["reference"] else []
    parts += {"none": [], "chosen": ["chosen length"], "both": ["lengths"]}[loss["lengths"]]
    parts += ["scores"] if loss["scores"] else []
    parts += ["the whole step"] if loss["scope"] == "step" else []
    return ", ".join(parts) or "-"


def overview(losses):
    """The README's table."""
    rows = [f"| `{l['name']}` | {cell(l['about'])} | `{cell(l['formula'])}` |" for l in losses]
    return "\n".join(["| name | what it is | formula |", "| --- | --- | --- |", *rows]) + "\n"


def needs(losses):
    rows = []
    for l in losses:
        divergence = "yes" if l["f_divergence"] and l["reference"] else "-"
        rows.append(f"| [`{l['name']}`](#{l['name']}) | {reads(l)} | {divergence} | {options(l) or '-'} |")
    head = ["| loss | reads, beside the policy's log-probs | f-divergences | options with defaults |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows]) + "\n"


def notation(losses):
    letters = {}
    for loss in losses:
        letters.update(loss["notation"])
    return "\n".join(f"- `{letter}`: {meaning}" for letter, meaning in letters.items()) + "\n"


def section(loss):
    lines = [f"### {loss['name']}", "", wrapped(loss["about"] + "."), "", f"`{loss['formula']}`", ""]
    lines += [wrapped(f"- `{flag(o)} {number(o['default'])}`: {o['about']}; {o['domain']}.", "  ") for o in loss["options"]]
    lines += [""] if loss["options"] else []
    lines += [wrapped(loss["guidance"]), "", wrapped(f"Source: {loss['source']}."), ""]
    lines += [f"![{loss['name']}: loss and gradient over the margin](losses/{loss['name']}.svg)", ""]
    return "\n".join(lines) + "\n"


def each(losses):
    return "\n".join(section(loss).rstrip("\n") + "\n" for loss in losses)


WRITERS = {"overview": overview, "needs": needs, "notation": notation, "each": each}


def written(text, losses, name):
    """`text` with its blocks as `losses` say."""
    def block(match):
        if match[2] not in WRITERS:
            fail(f"{name}: a block `{match[2]}`; known: {', '.join(WRITERS)}")
        return match[1] + WRITERS[match[2]](losses) + match[4]

    new, count = BLOCK.subn(block, text)
    if not count or count != text.count("<!-- losses: end -->"):
        fail(f"{name}: {count} blocks between `<!-- losses: NAME -->` and `<!-- losses: end -->`")
    return new


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fusedpo", type=Path, default=ROOT / "target/release/fusedpo")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of README.md and docs/")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    losses = table_of(args.fusedpo)
    for page in PAGES:
        path = args.root / page
        text = path.read_text()
        new = written(text, losses, page)
        if new == text:
            continue
        if args.check:
            fail(f"{page} is not what the table of losses says; run: python3 scripts/loss_docs.py")
        part = path.with_name(f".{path.name}.part")
        part.write_text(new)
        os.replace(part, path)
        print(f"{page}: written", file=sys.stderr)


if __name__ == "__main__":
    main()
