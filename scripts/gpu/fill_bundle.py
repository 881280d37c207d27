#!/usr/bin/env python3
"""Copy what was built, scripts and small data into a bundle folder, and write its manifest. bundle.sh calls it.

Usage:   fill_bundle.py --messages CARGO.jsonl --out DIR --archs LIST --tests NAME.. --benches NAME..
Input:   cargo's --message-format=json, which says where each executable lies; FUSEDPO_TEST_DATA where set.
Output:  DIR with programs/ (each stripped and packed by xz), scripts/, project/, data/, the licences of all that is in the
         programs, and manifest.json (commit, sizes and sha256 of every file).
Needs:   Python alone; `strip` where there is one.
"""

import argparse
import datetime
import hashlib
import json
import lzma
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("bench_peers.py", "bench_report.py", "bench_trl.py", "check_transformers.py", "plain_llama.py", "random_model.py", "rows.py")
WORDS = ("once upon a time there was little girl boy named Lily Tom she he liked to play in the park with big red ball and dog cat "
         "one day they saw tree bird was very happy sad said mom let us go home friend smiled").split()


def executables(messages):
    """(kind, name) -> path, the newest message winning."""
    found = {}
    for line in messages.read_text().splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message.get("executable"):
            found[message["target"]["kind"][0], message["target"]["name"]] = Path(message["executable"])
    return found


def put_program(source, target):
    """A program without its symbols, packed: check.py unpacks it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "program"
        shutil.copyfile(source, copy)
        if shutil.which("strip"):
            subprocess.run(["strip", str(copy)], check=True)
        target.with_name(target.name + ".xz").write_bytes(lzma.compress(copy.read_bytes(), preset=3))


def token_rows(vocabulary, count, prompts, responses, seed):
    """Pairs of random tokens with a shared prompt, of lengths within two ranges."""
    draw = random.Random(seed)
    ids = lambda lengths: [draw.randrange(3, vocabulary) for _ in range(draw.randint(*lengths))]
    return [{"prompt_ids": ids(prompts), "chosen_ids": ids(responses), "rejected_ids": ids(responses)} for _ in range(count)]


def text_rows(count, seed):
    """Stand-ins for preference pairs; a polite answer is preferred, so that something can be learned."""
    draw = random.Random(seed)
    words = lambda low, high: " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))
    return [{"prompt": words(8, 60), "chosen": f" {words(4, 30)}, thank you.", "rejected": f" {words(4, 30)}."} for _ in range(count)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def put_data(folder):
    """The small model, its token pairs and text pairs; returns what they are."""
    folder.mkdir()
    shared = os.environ.get("FUSEDPO_TEST_DATA")
    shared = Path(shared) if shared else None
    model = shared / "data/stories260k" if shared else ROOT / "tests/golden/llama"
    (folder / model.name).mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, folder / model.name / name)
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    write_jsonl(folder / "ids.jsonl", token_rows(vocabulary, 48, (4, 70), (2, 50), 1))
    # UltraFeedback's lengths about its medians.
    write_jsonl(folder / "long.jsonl", token_rows(vocabulary, 64, (60, 180), (150, 430), 2))
    if not shared:
        write_jsonl(folder / "text.jsonl", text_rows(64, 3))
        write_jsonl(folder / "learn.jsonl", text_rows(600, 4))
        return {"model": model.name, "pairs": "made-up sentences"}
    shutil.copyfile(shared / "goldens/hh64.jsonl", folder / "text.jsonl")
    polite = shared / "data/rasbt-polite/instruction-data-with-preference.json"
    convert = [sys.executable, ROOT / "scripts/convert_alpaca.py", polite, "--mode", "preference", "--out", folder / "learn.jsonl"]
    subprocess.run([str(part) for part in convert], check=True, stdout=sys.stderr)
    return {"model": model.name, "pairs": "hh64.jsonl, polite rewrites"}


def git(*arguments):
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--archs", required=True)
    parser.add_argument("--tests", nargs="+", required=True)
    parser.add_argument("--benches", nargs="+", required=True)
    args = parser.parse_args()
    built = executables(args.messages)
    wanted = {"bin/fusedpo": ("bin", "fusedpo")}
    wanted |= {f"tests/{name}": ("test", name) for name in args.tests}
    wanted |= {f"benches/{name}": ("bench", name) for name in args.benches}
    missing = [key for key in wanted.values() if key not in built]
    if missing:
        sys.exit(f"fill_bundle: cargo built no {' '.join(missing[0])}")
    args.out.mkdir(parents=True)
    for target, key in wanted.items():
        put_program(built[key], args.out / "programs" / target)
    for name in ("check.sh", "check.py", "launch.py", "place.py", "stages.py", "ranks.py", "predicted.py"):
        shutil.copy(ROOT / "scripts/gpu" / name, args.out / name)
    for name in ("LICENSE", "THIRD-PARTY.md"):
        shutil.copy(ROOT / name, args.out / name)
    (args.out / "scripts").mkdir()
    for name in SCRIPTS:
        shutil.copy(ROOT / "scripts" / name, args.out / "scripts" / name)
    shutil.copytree(ROOT / "tests/golden", args.out / "project/tests/golden")
    data = put_data(args.out / "data")
    files = {str(p.relative_to(args.out)): {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
             for p in sorted(args.out.rglob("*")) if p.is_file()}
    manifest = {"commit": git("rev-parse", "HEAD") or "unknown", "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
                "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "archs": args.archs,
                "tests": args.tests, "benches": args.benches, "data": data, "files": files}
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=1))


if __name__ == "__main__":
    main()
