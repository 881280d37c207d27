#!/usr/bin/env python3
"""Plant small faults in the source, one at a time, and tell which of them the tests do not see.

Usage:   python scripts/mutants.py [LIST...] [--only WORD] [--tree DIR] [--target DIR] [--jobs N] [--list]
Input:   LIST: TOML files of faults (tests/mutants/*.toml where none is given); this working tree, changes and all.
Output:  a line a fault: killed, survived, did not apply, did not build. Exit code 1 unless every one is killed.
Needs:   Python 3.11, cargo for faults in Rust; FUSEDPO_TEST_DATA and FUSEDPO_TEST_MODEL for those that only real data show.

A fault is the text OLD, which must stand exactly once in the files that its list searches, and the text NEW to put in its place,
or in the place of what OLD has between « and ». No paths and no line numbers: the list survives code that moves. In a list:

    in = ["src/**/*.rs"]              # where OLD is looked for
    [[mutant]]
    name = "schedule: one step late"  # unique
    old = "self.schedule.at(«step - 1»)"
    new = "step"
    tests = ["run_truth", "cli the_whole_way", "lib values_of", "python test_converters"]
    form = "expression"               # or "statement", "item"; "expression" where it is left out
    in = ["src/train/**/*.rs"]        # where the list's own would find OLD more than once

`tests` are test programs of cargo with an optional filter ("lib": the unit tests), and `python MODULE` for tests/scripts/MODULE.py.
A fault is killed when any of them fails, or takes longer than --seconds.

Faults in Rust are compiled in all at once: an expression becomes `(if crate::mutant(7) { NEW } else { OLD })`, a statement the
same without parentheses (an empty NEW leaves it out), and the environment variable FUSEDPO_MUTANT chooses. An item cannot be
switched; it, and whatever the compiler does not take as a switch, gets a build of its own. So does a fault in another language.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FORMS = ("expression", "statement", "item")
SWITCH = '''
/// Whether the fault of this number is planted: `FUSEDPO_MUTANT`.
#[doc(hidden)]
pub fn mutant(number: u32) -> bool {
    static ON: std::sync::OnceLock<Option<u32>> = std::sync::OnceLock::new();
    *ON.get_or_init(|| std::env::var("FUSEDPO_MUTANT").ok()?.parse().ok()) == Some(number)
}
'''


class ListError(Exception):
    """A list that cannot be used."""


@dataclass
class Mutant:
    number: int
    name: str
    old: str
    new: str
    tests: list
    places: list
    form: str = "expression"
    file: str = ""  # where OLD stands, once found
    at: tuple = (0, 0)  # its first and past its last character
    verdict: str = ""
    why: str = ""
    seconds: float = 0.0

    def switches(self):
        return self.form != "item" and self.file.endswith(".rs")


def read_lists(paths):
    """The faults of all lists, numbered."""
    mutants, names = [], set()
    for path in paths:
        try:
            table = tomllib.loads(Path(path).read_text())
        except (OSError, tomllib.TOMLDecodeError) as e:
            raise ListError(f"{path}: {e}") from None
        for entry in table.get("mutant", []):
            here = f"{path}: {entry.get('name', entry)}"
            unknown = set(entry) - {"name", "old", "new", "tests", "in", "form"}
            missing = {"name", "old", "new", "tests"} - set(entry)
            if unknown or missing:
                raise ListError(f"{here}: unknown {sorted(unknown)}, missing {sorted(missing)}")
            mutant = Mutant(len(mutants) + 1, entry["name"], entry["old"], entry["new"], entry["tests"],
                            entry.get("in", table.get("in", [])), entry.get("form", "expression"))
            if mutant.name in names or not mutant.tests or not mutant.places or not mutant.old.strip():
                raise ListError(f"{here}: a second one of this name, or an empty `old`, `tests` or `in`")
            if mutant.form not in FORMS or mutant.old == mutant.new:
                raise ListError(f"{here}: `form` is none of {', '.join(FORMS)}, or `new` is `old`")
            names.add(mutant.name)
            mutants.append(mutant)
    return mutants


def pattern_of(old):
    """OLD as a regular expression, a group around what is replaced: any white space for white space, so that no formatter hides it."""
    before, what, after = re.fullmatch(r"(?s)(?:(.*)«)?(.*?)(?:»(.*))?", old).groups(default="")
    text = lambda part: r"\s+".join(re.escape(word) for word in part.split())
    gap = lambda a, b: r"\s*" if a and b else ""
    return re.compile(text(before) + gap(before, what) + "(" + text(what) + ")" + gap(what, after) + text(after))


def locate(mutants, tree):
    """Finds every OLD; what is not there exactly once did not apply. The text of every file with a fault."""
    texts = {}
    for m in mutants:
        pattern, found = pattern_of(m.old), []
        for path in sorted({p for place in m.places for p in tree.glob(place) if p.is_file()}):
            name = str(path.relative_to(tree))
            if name not in texts:
                texts[name] = path.read_text()
            found += [(name, match.span(1)) for match in pattern.finditer(texts[name])]
        if len(found) == 1:
            (m.file, m.at), = found
        else:
            m.verdict, m.why = "did not apply", f"`old` stands {len(found)} times in {' '.join(m.places)}"
    return {name: text for name, text in texts.items() if any(m.file == name for m in mutants)}


def render(text, mutants, forced=None):
    """`text` with the faults that switch as switches, and `forced` as plain text. A fault may stand inside another."""
    def part(start, end, inside):
        out, at = [], start
        rest = sorted(inside, key=lambda m: (m.at[0], -m.at[1], m.number))
        while rest:
            first = rest[0]
            same = [m for m in rest if m.at == first.at]
            nested = [m for m in rest if m not in same and m.at[1] <= first.at[1]]
            rest = [m for m in rest if m not in same and m not in nested]
            out.append(text[at:first.at[0]])
            at = first.at[1]
            if forced in same:
                out.append(forced.new)
                continue
            old = part(*first.at, nested)
            for m in same:
                if m.form == "statement":
                    new = f"if crate::mutant({m.number}) {{ {m.new} }} else {{ {old} }}"
                else:
                    new = f"(if crate::mutant({m.number}) {{ {m.new} }} else {{ {old} }})"
                old = new
            out.append(old)
        return "".join([*out, text[at:end]])

    # One that begins inside another and ends outside of it cannot be a switch beside it.
    whole = [forced] if forced else []
    for m in sorted(mutants, key=lambda m: m.number):
        crosses = any(a[0] < b[0] < a[1] < b[1] for o in whole for a, b in ((o.at, m.at), (m.at, o.at)))
        if m is not forced and m.switches() and not crosses:
            whole.append(m)
    return part(0, len(text), whole), whole


def write(path, text):
    """Writes what differs, so that cargo builds no more than it must."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def copy_tree(tree):
    """A copy of what git knows or would add; what is not there any more goes."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            check=True, capture_output=True, text=True).stdout
    names = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    tree.mkdir(parents=True, exist_ok=True)
    for path in [p for p in tree.rglob("*") if p.is_file()]:
        if str(path.relative_to(tree)) not in names and path.relative_to(tree).parts[0] not in ("target", ".git"):
            path.unlink()
    for name in names:
        source, copy = ROOT / name, tree / name
        if not copy.exists() or copy.read_bytes() != source.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)


@dataclass
class Builder:
    """Builds test programs in a tree, and runs them."""
    tree: Path
    target: Path
    seconds: float
    opt_level: str
    programs: dict = field(default_factory=dict)

    def build(self, names):
        """Builds the test programs `names`; the compiler's errors, by (file, line), or nothing."""
        if not names:
            return []
        which = [w for n in sorted(names) for w in (["--lib"] if n == "lib" else ["--test", n])]
        level = f"profile.release.package.fusedpo.opt-level={self.opt_level}"
        run = subprocess.run(["cargo", "test", "--release", "--no-run", "--message-format=json", "--config", level, *which],
                             cwd=self.tree, env=os.environ | {"CARGO_TARGET_DIR": str(self.target)},
                             capture_output=True, text=True)
        errors = []
        for line in run.stdout.splitlines():
            message = json.loads(line) if line.startswith("{") else {}
            if message.get("reason") == "compiler-artifact" and message.get("executable"):
                kind = message["target"]["kind"]
                name = "lib" if "lib" in kind else message["target"]["name"]
                if message["profile"]["test"]:
                    self.programs[name] = message["executable"]
            said = message.get("message") if message.get("reason") == "compiler-message" else None
            if said and said["level"] == "error":
                spans = [(s["file_name"], s["line_start"], s["line_end"]) for s in said["spans"]]
                errors.append((spans, said["message"]))
        if run.returncode != 0 and not errors:
            raise SystemExit(f"cargo failed:\n{run.stderr[-4000:]}")
        return errors

    def fails(self, test, number):
        """What `test` says where it fails with this fault, else nothing."""
        words = test.split()
        env = os.environ | {"FUSEDPO_MUTANT": str(number), "CARGO_MANIFEST_DIR": str(self.tree)}
        if words[0] == "python":
            command = [sys.executable, "-m", "unittest", "discover", "-s", "tests/scripts", "-p", f"{words[1]}.py"]
        else:
            command = [self.programs[words[0]], *words[1:]]
        # A session of its own, so that what the test had started ends with it.
        run = subprocess.Popen(command, cwd=self.tree, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               errors="replace", stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            said, _ = run.communicate(timeout=self.seconds)
        except subprocess.TimeoutExpired:
            return f"{test}: longer than {self.seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        if run.returncode == 0:
            ran = re.findall(r"(?:test result: ok\. |^Ran )(\d+)", said, re.M)
            return "" if any(int(n) > 0 for n in ran) else f"{test}: no such test"
        failed = re.findall(r"^(?:test (\S+) \.\.\. FAILED|(?:FAIL|ERROR): (\S+))", said, re.M)
        return f"{test}: " + (", ".join(sorted({a or b for a, b in failed})) or f"exit code {run.returncode}")


def judge(mutant, builder):
    begun = time.monotonic()
    for test in mutant.tests:
        mutant.why = builder.fails(test, mutant.number)
        if mutant.why:
            break
    mutant.verdict = "killed" if mutant.why else "survived"
    mutant.seconds = time.monotonic() - begun
    report(mutant)


def report(m):
    print(f"{m.verdict:<14} {m.name}  [{m.why or ', '.join(m.tests)}]" + (f"  {m.seconds:.1f} s" if m.seconds else ""), flush=True)


def broken(errors, mutants, texts):
    """The faults whose switches stand on the lines that the compiler complains about."""
    found = set()
    for spans, _ in errors:
        for file, first, last in spans:
            lines = texts.get(file, "").split("\n")[first - 1:last]
            numbers = {int(n) for n in re.findall(r"crate::mutant\((\d+)\)", "\n".join(lines))}
            found |= {m.number for m in mutants if m.number in numbers}
    return found


def plant(tree, texts, mutants, forced=None):
    """Writes every file with its switches; the text of each, and the faults that are switches."""
    written, whole = {}, []
    for name, text in texts.items():
        rendered, here = render(text, [m for m in mutants if m.file == name], forced if forced and forced.file == name else None)
        if name == "src/lib.rs" or (name.endswith(".rs") and not (tree / "src/lib.rs").exists()):
            rendered += SWITCH
        write(tree / name, rendered)
        written[name] = rendered
        whole += here
    return written, whole


def run(mutants, builder, jobs):
    """Judges every fault that applies."""
    tree, here = builder.tree, [m for m in mutants if not m.verdict]
    texts = locate(here, tree)
    [report(m) for m in here if m.verdict]
    here = [m for m in here if not m.verdict]
    if not here:
        return
    lib = tree / "src/lib.rs"
    if any(m.file.endswith(".rs") for m in here):
        texts.setdefault("src/lib.rs", lib.read_text())
    cargo = {t.split()[0] for m in here for t in m.tests if t.split()[0] != "python"}
    alone, switched = [m for m in here if not m.switches()], [m for m in here if m.switches()]
    while True:
        written, whole = plant(tree, texts, switched)
        alone += [m for m in switched if m not in whole]
        switched = [m for m in switched if m in whole]
        errors = builder.build(cargo)
        if not errors:
            break
        bad = broken(errors, switched, written)
        if not bad:
            raise SystemExit("the tree does not build:\n" + "\n".join(f"{spans[:1]}: {why}" for spans, why in errors[:5]))
        alone += [m for m in switched if m.number in bad]
        switched = [m for m in switched if m.number not in bad]
    for test in sorted({t for m in here for t in m.tests}):
        why = builder.fails(test, 0)
        if why:
            raise SystemExit(f"fails without any fault: {why}")
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda m: judge(m, builder), switched))
    for m in sorted(alone, key=lambda m: m.number):
        plant(tree, texts, switched, forced=m)
        errors = builder.build({t.split()[0] for t in m.tests if t.split()[0] != "python"})
        if errors:
            m.verdict, m.why = "did not build", errors[0][1]
            report(m)
        else:
            judge(m, builder)
        # The next one's build begins from what is right.
        (tree / m.file).write_text(texts[m.file])


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", nargs="*", metavar="LIST", type=Path)
    parser.add_argument("--only", metavar="WORD", help="faults with this in their name")
    parser.add_argument("--tree", metavar="DIR", type=Path, default=ROOT / "target/mutants/tree", help="where the copy goes")
    parser.add_argument("--target", metavar="DIR", type=Path, default=ROOT / "target/mutants/target", help="cargo's for it")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time")
    parser.add_argument("--seconds", type=float, default=300, help="longest that one test may take")
    parser.add_argument("--opt-level", default="1", help="of this crate's own code: less compiles faster")
    parser.add_argument("--list", action="store_true", help="say where each fault stands, and stop")
    a = parser.parse_args(args)
    try:
        mutants = read_lists(a.lists or sorted((ROOT / "tests/mutants").glob("*.toml")))
    except ListError as e:
        sys.exit(f"mutants: {e}")
    mutants = [m for m in mutants if not a.only or a.only in m.name]
    if not mutants:
        sys.exit("mutants: no fault to plant")
    if a.list:
        texts = locate(mutants, ROOT)
        for m in mutants:
            line = texts[m.file].count("\n", 0, m.at[0]) + 1 if m.file else 0
            print(f"{m.file}:{line}  {m.name}" if m.file else f"did not apply  {m.name}: {m.why}")
        return 1 if any(m.verdict for m in mutants) else 0
    copy_tree(a.tree.resolve())
    builder = Builder(a.tree.resolve(), a.target.resolve(), a.seconds, a.opt_level)
    run(mutants, builder, a.jobs)
    count = {v: sum(m.verdict == v for m in mutants) for v in ("killed", "survived", "did not apply", "did not build")}
    print(", ".join(f"{n} {v}" for v, n in count.items() if n or v == "killed"))
    return 0 if count["killed"] == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
