#!/usr/bin/env python3
"""Licences of what the program is linked from: THIRD-PARTY.md, and the rules that it must keep.

Reads:   `cargo metadata --offline` and the sources of the crates in cargo's own cache. No network.
Writes:  THIRD-PARTY.md beside Cargo.toml; with --check nothing.
Needs:   cargo, after a build.

    scripts/third_party.py            write the file
    scripts/third_party.py --check    fail where it is not up to date, where a licence is none of ALLOWED, where a crate comes
                                      from elsewhere than crates.io, or where it stands there in two versions without a reason

Of a choice of licences the first in ALLOWED is taken. What is used to build and is no part of the program (procedural macros,
build scripts, tests) is left out.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "THIRD-PARTY.md"
PROGRAM = "fusedpo"
PLATFORM = "x86_64-unknown-linux-gnu"
SOURCE = "registry+https://github.com/rust-lang/crates.io-index"

# Permissive ones, the preferred first: the text of Apache-2.0 is the same for everybody, and stands in the file once.
ALLOWED = ["Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "CC0-1.0", "Unicode-3.0", "CDLA-Permissive-2.0"]
# Crates that stand there in two versions, and who asks for the older.
TWICE = {
    "base64": "ureq asks for a newer one than tokenizers",
    "getrandom": "tokenizers' rand and ring ask for older ones than tempfile",
    "hashbrown": "tokenizers' caches ask for an older one than indexmap",
    "rand_core": "tokenizers' rand beside its own generator",
}
# Crates without a text of their own whose authors' other crate, of the same repository, has it.
SAME = {"alloc-stdlib": "alloc-no-stdlib"}
TEXTS = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE")


def fail(why):
    sys.exit(f"third_party: {why}")


def metadata():
    command = ["cargo", "metadata", "--offline", "--locked", "--format-version", "1", "--filter-platform", PLATFORM]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        fail(f"cargo metadata: {result.stderr.strip().splitlines()[-1]}; build once, which downloads the sources")
    return json.loads(result.stdout)


def linked(meta):
    """The crates that the program is linked from, without itself, by name and version."""
    packages = {p["id"]: p for p in meta["packages"]}
    nodes = {n["id"]: n for n in meta["resolve"]["nodes"]}
    root = next(p["id"] for p in meta["packages"] if p["name"] == PROGRAM)
    seen, todo = set(), [root]
    while todo:
        at = todo.pop()
        macro = any("proc-macro" in t["kind"] for t in packages[at]["targets"])
        if at in seen or macro:
            continue
        seen.add(at)
        todo += [d["pkg"] for d in nodes[at]["deps"] if any(k["kind"] is None for k in d["dep_kinds"])]
    return sorted((packages[i] for i in seen if i != root), key=lambda p: (p["name"], p["version"]))


def choose(expression):
    """The licences of an SPDX expression that must be kept, the first of ALLOWED where there is a choice; None: none may."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    if not tokens:
        return None

    def either():
        all_of = [both()]
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            all_of.append(both())
        known = [a for a in all_of if a is not None]
        return min(known, key=lambda a: max(ALLOWED.index(x) for x in a)) if known else None

    def both():
        found = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            right = one()
            found = None if found is None or right is None else sorted(set(found) | set(right))
        return found

    def one():
        token = tokens.pop(0)
        if token == "(":
            found = either()
            tokens.pop(0)
            return found
        if tokens and tokens[0] == "WITH":  # an exception makes another licence of it
            del tokens[:2]
            return None
        return [token] if token in ALLOWED else None

    return either()


def texts(package, licences):
    """Texts to reproduce: (name in the crate, text). Those of other licences of a choice are left out."""
    folder = Path(package["manifest_path"]).parent
    folder = next((f for f in folder.parent.glob(SAME.get(package["name"], "") + "-[0-9]*")), folder) \
        if package["name"] in SAME else folder
    found = []
    for path in sorted(folder.rglob("*")):
        nested = path.parent != folder
        if not path.is_file() or not path.name.upper().startswith(TEXTS) or path.suffix in (".rs", ".py", ".c", ".h"):
            continue
        name = path.name.upper()
        marks = {"APACHE": "Apache-2.0", "MIT": "MIT", "ZLIB": "Zlib", "BSD": "BSD", "BOOST": "BSL", "BSL": "BSL",
                 "UNLICENSE": "Unlicense"}
        of = next((l for mark, l in marks.items() if mark in name), None)
        # Apache's stands in the file once; of what else there is to choose from, what was chosen.
        skip = of is not None and not any(l.startswith(of) for l in licences) or of == "Apache-2.0"
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        if not nested and (skip or licences == ["Apache-2.0"] and not name.startswith("NOTICE")):
            continue
        if nested and "GNU GENERAL PUBLIC LICENSE" in text:
            continue  # zstd is under BSD or GPL
        found.append((str(path.relative_to(folder)), text))
    if licences != ["Apache-2.0"] and not found:
        fail(f"{package['name']} {package['version']}: {package['license']}, and no text of it in the crate")
    return found


def apache(packages):
    """The text of Apache-2.0, from a crate that has it under that name."""
    for package in packages:
        path = Path(package["manifest_path"]).parent / "LICENSE-APACHE"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in text:
            return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
    fail("no crate has the text of Apache-2.0")


def render(packages):
    lines = ["# Third-party notices", "",
             f"What `{PROGRAM}` is linked from, and under which licence, of several the one that is taken. Made by",
             "`scripts/third_party.py` from the crates' own files; the check script fails where it is out of date.", "",
             "| crate | version | licence |", "|---|---|---|"]
    groups = {}
    for package in packages:
        licences = choose(package["license"] or "")
        lines.append(f"| {package['name']} | {package['version']} | {' AND '.join(licences)} |")
        for name, text in texts(package, licences):
            key = re.sub(r"\s+", " ", text)
            groups.setdefault(key, (text, []))[1].append(f"{package['name']} {package['version']} ({name})")
    lines += ["", "## Apache License 2.0", "", "```", apache(packages), "```", ""]
    for text, users in groups.values():
        text = "\n".join(line.rstrip() for line in text.replace("\r", "").splitlines())
        lines += [f"## {', '.join(users)}", "", "````", text, "````", ""]
    return "\n".join(lines)


def refuse(packages):
    wrong = []
    for p in packages:
        name = f"{p['name']} {p['version']}"
        if choose(p["license"] or "") is None:
            wrong.append(f"{name}: licence {p['license']!r} is none of {', '.join(ALLOWED)}")
        if p["source"] != SOURCE:
            wrong.append(f"{name}: comes from {p['source']}, not from crates.io")
    names = [p["name"] for p in packages]
    twice = {n for n in names if names.count(n) > 1}
    wrong += [f"{n}: in {names.count(n)} versions; use one, or say in TWICE why not" for n in sorted(twice - set(TWICE))]
    wrong += [f"{n}: in one version; take it out of TWICE" for n in sorted(set(TWICE) - twice)]
    if wrong:
        fail("; ".join(wrong))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail where the file is out of date")
    args = parser.parse_args()
    packages = linked(metadata())
    refuse(packages)
    text = render(packages)
    if not args.check:
        OUT.write_text(text, encoding="utf-8")
        print(f"{OUT.name}: {len(packages)} crates, {len(text)} bytes")
    elif not OUT.is_file() or OUT.read_text(encoding="utf-8") != text:
        fail(f"{OUT.name} is not what Cargo.lock asks for: run scripts/third_party.py and commit it")


if __name__ == "__main__":
    main()
