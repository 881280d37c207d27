#!/usr/bin/env python3
"""Writes what docs/memory.md says of models that nobody here can hold, by `fusedpo plan`.

Usage:   python scripts/memory_table.py [--fusedpo target/release/fusedpo] [--check] [--root DIR]
Reads:   `fusedpo plan --json` for every model, method and memory below, and the page.
Writes:  the text between `<!-- memory: table -->` and `<!-- memory: end -->`; with --check nothing, and it fails where the page is
         not up to date.
Needs:   a built program. No weights, no GPU, no data.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = "docs/memory.md"
BLOCK = re.compile(r"(<!-- memory: table -->\n)(.*?)(<!-- memory: end -->\n)", re.S)


def qwen(hidden, ffn, layers, heads, kv_heads, vocab, tied):
    return {"model_type": "qwen2", "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab, "tie_word_embeddings": tied,
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6}


def llama(hidden, ffn, layers, heads, kv_heads, head_dim, tied):
    return {"model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": 128256,
            "tie_word_embeddings": tied, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 5e5}


# As their config.json has them.
MODELS = {
    "Qwen2.5 0.5B": qwen(896, 4864, 24, 14, 2, 151936, True),
    "Llama 3.2 1B": llama(2048, 8192, 16, 32, 8, 64, True),
    "Qwen2.5 1.5B": qwen(1536, 8960, 28, 12, 2, 151936, True),
    "Qwen2.5 3B": qwen(2048, 11008, 36, 16, 2, 151936, True),
    "Llama 3.2 3B": llama(3072, 8192, 28, 24, 8, 128, True),
    "Qwen2.5 7B": qwen(3584, 18944, 28, 28, 4, 152064, False),
    "Llama 3.1 8B": llama(4096, 14336, 32, 32, 8, 128, False),
    "Qwen2.5 14B": qwen(5120, 13824, 48, 40, 8, 152064, False),
}

RECOMPUTE = ["--gradient-checkpointing"]
# What is trained, and how. A method whose options the program does not have is left out.
METHODS = {
    "full": [],
    "full, recomputed": RECOMPUTE,
    "bf16 states": ["--optim", "adamw_bf16", "--gradient-dtype", "bf16", *RECOMPUTE],
    "8-bit states": ["--optim", "adamw_8bit", "--gradient-dtype", "bf16", *RECOMPUTE],
    "LoRA": ["--lora-r", "16"],
    "LoRA, recomputed": ["--lora-r", "16", *RECOMPUTE],
    "QLoRA": ["--lora-r", "16", "--quantize", "nf4"],
    "QLoRA, recomputed": ["--lora-r", "16", "--quantize", "nf4", *RECOMPUTE],
}
MEMORIES = ["24GB", "48GB", "80GB"]
LENGTHS = "ultrafeedback"


class Failed(Exception):
    """Why a plan could not be made, in one line."""


def plan(fusedpo, config, options):
    """The plan of a run, as `fusedpo plan --json` prints it; one that does not fit is a plan too."""
    command = [fusedpo, "plan", "--model", config, "--lengths", LENGTHS, "--device", "cuda", "--json", *options]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode not in (0, 1) or not ran.stdout:
        raise Failed(f"{' '.join(map(str, command))} ended with {ran.returncode}: {ran.stderr.strip()}")
    return json.loads(ran.stdout)


def known(fusedpo, methods):
    """The methods whose options, and their values, the program has."""
    text = subprocess.run([fusedpo, "plan", "--help"], capture_output=True, text=True).stdout
    words = set(re.findall(r"[\w-]+", text))
    return {name: options for name, options in methods.items() if all(o in words for o in options if not o.isdigit())}


def cell(plan):
    """The largest token budget that fits; a dash where none does."""
    return f"{plan['largest']['token_budget']:,}" if plan["largest"] else "-"


def tables(fusedpo, folder, methods):
    """A table for each size of memory: models by methods."""
    configs = {}
    for name, config in MODELS.items():
        configs[name] = Path(folder) / (name.replace(" ", "-") + ".json")
        configs[name].write_text(json.dumps(config))
    wanted = [(memory, name, method) for memory in MEMORIES for name in MODELS for method in methods]
    one = lambda w: plan(fusedpo, configs[w[1]], ["--device-memory", w[0], *methods[w[2]]])  # noqa: E731
    with ThreadPoolExecutor(2) as pool:
        plans = dict(zip(wanted, pool.map(one, wanted)))
    out = []
    for memory in MEMORIES:
        out += [f"**{memory.replace('GB', ' GB')}**", "", "| model | " + " | ".join(methods) + " |", "| --- |" + " ---: |" * len(methods)]
        for name in MODELS:
            out.append(f"| {name} | " + " | ".join(cell(plans[memory, name, method]) for method in methods) + " |")
        out.append("")
    first = plans[wanted[0]]
    out += [f"No pair of these lengths needs more than {first['least_token_budget']:,} slots: less than that holds no run. A step of "
            f"{first['batch_size']} of them takes {first['at']['slots_per_step']:,.0f} slots on average.", ""]
    return "\n".join(out) + "\n"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fusedpo", type=Path, default=ROOT / "target/release/fusedpo")
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(argv)
    if not args.fusedpo.is_file():
        sys.exit(f"memory_table: --fusedpo {args.fusedpo}: no such file; run: cargo build --release")
    page = args.root / PAGE
    old = page.read_text()
    if not BLOCK.search(old):
        sys.exit(f"memory_table: {page} has no <!-- memory: table --> ... <!-- memory: end -->")
    with tempfile.TemporaryDirectory() as folder:
        try:
            text = tables(args.fusedpo, folder, known(args.fusedpo, METHODS))
        except Failed as e:
            sys.exit(f"memory_table: {e}")
    new = BLOCK.sub(lambda m: m[1] + text + m[3], old)
    if args.check and new != old:
        sys.exit(f"memory_table: {page} is not up to date; run: python scripts/memory_table.py")
    if not args.check:
        page.write_text(new)


if __name__ == "__main__":
    main()
