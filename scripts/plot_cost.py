#!/usr/bin/env python3
"""Measure what a token of a DPO step costs, over model size and row length, and plot it against the FLOP count.

Usage:   python scripts/plot_cost.py --out docs/results/NAME [--fusedpo target/release/fusedpo] [--dtype f32]
         [--sizes 64x2 128x4 256x6 384x12] [--lengths 64 128 256 512 1024] [--tokens 2048] [--steps 4]
Input:   none: models have random weights (HIDDENxLAYERS, heads of 32, vocabulary 8192), rows have random tokens, half of
         them prompt, a quarter each response.
Output:  NAME.md (a table) and NAME.svg (time over FLOP a token, both logarithmic, with the line of the best rate).
Needs:   numpy.

A token's FLOP count: 6 for each weight of the blocks (2 forward, 4 backward), 6 for each weight of the head for the share
of tokens that are responses, and 12 x hidden x layers for each earlier position that attention reads.
"""

import argparse
import datetime
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    import numpy as np
except ImportError:
    sys.exit("plot_cost: needs numpy; install it with: python -m pip install numpy")

from word_tokenizer import write_tokenizer

VOCAB, HEAD_DIM = 8192, 32


def config_of(hidden, layers):
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": hidden,
            "intermediate_size": hidden * 8 // 3 // 32 * 32, "num_hidden_layers": layers, "head_dim": HEAD_DIM,
            "num_attention_heads": hidden // HEAD_DIM, "num_key_value_heads": hidden // HEAD_DIM, "hidden_act": "silu",
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
            "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"}


def shapes_of(config):
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    shapes = {"model.embed_tokens.weight": (VOCAB, hidden), "model.norm.weight": (hidden,)}
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}"
        shapes.update({f"{base}.self_attn.{x}_proj.weight": (hidden, hidden) for x in "qkvo"})
        shapes.update({f"{base}.mlp.{x}_proj.weight": (ffn, hidden) for x in ("gate", "up")})
        shapes[f"{base}.mlp.down_proj.weight"] = (hidden, ffn)
        shapes.update({f"{base}.{x}_layernorm.weight": (hidden,) for x in ("input", "post_attention")})
    return shapes


def write_model(folder, config):
    folder.mkdir()
    draw, header, blobs, offset = np.random.default_rng(0), {}, [], 0
    for name, shape in shapes_of(config).items():
        weight = draw.normal(0, 0.02, shape) if len(shape) == 2 else np.ones(shape)
        blobs.append(weight.astype("<f4").tobytes())
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + len(blobs[-1])]}
        offset += len(blobs[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(folder, VOCAB)


def write_rows(path, length, count):
    """`count` pairs of `length` tokens: a prompt and two responses."""
    draw = random.Random(length)
    ids = lambda n: [draw.randrange(3, VOCAB) for _ in range(n)]
    prompt, response = length - 2 * (length // 4), length // 4
    rows = [{"prompt_ids": ids(prompt), "chosen_ids": ids(response), "rejected_ids": ids(response)} for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def flop_per_token(config, length):
    """FLOP of forward and backward, a token of a pair whose prompt is computed once."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    response = length // 4
    prompt = length - 2 * response
    blocks = sum(math.prod(shape) for name, shape in shapes_of(config).items() if "proj" in name)
    # positions read: 1 + .. + prompt, and for each response token the prompt and its own beginning
    reads = prompt * (prompt + 1) / 2 + 2 * (response * prompt + response * (response + 1) / 2)
    return 6 * blocks + 6 * hidden * VOCAB * 2 * response / length + 12 * hidden * layers * reads / length


def command(*parts):
    result = subprocess.run([str(part) for part in parts], capture_output=True, text=True)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["it printed nothing"]
        sys.exit(f"plot_cost: fusedpo {parts[1]} ended with {result.returncode}: {lines[-1]}")


def measure(args, model, work, length):
    """Seconds a token of a step, the median after the first step."""
    pairs = max(1, args.tokens // length)
    write_rows(work / "rows.jsonl", length, pairs * args.steps)
    data, run = work / f"data-{length}", work / f"run-{length}"
    command(args.fusedpo, "pack", "--tokenizer", model, "--input", work / "rows.jsonl", "--out", data, "--max-length", 4096)
    command(args.fusedpo, "dpo", "--model", model, "--data", data, "--out", run, "--batch-size", pairs, "--max-steps",
            args.steps, "--token-budget", max(args.tokens, length), "--dtype", args.dtype, "--device", args.device)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [row["pairs_per_second"] for row in rows if "pairs_per_second" in row]
    return 1 / (statistics.median(rates[1:] or rates) * length)


def measure_all(args):
    points = []
    with tempfile.TemporaryDirectory(prefix="fusedpo-cost-") as folder:
        for size in args.sizes:
            hidden, layers = (int(x) for x in size.split("x"))
            config = config_of(hidden, layers)
            model = Path(folder) / size
            write_model(model, config)
            for length in args.lengths:
                work = Path(tempfile.mkdtemp(dir=folder))
                seconds = measure(args, model, work, length)
                flop = flop_per_token(config, length)
                points.append({"size": size, "length": length, "flop": flop, "seconds": seconds})
                rate = f"{seconds * 1e6:.1f} us a token, {flop / seconds / 1e9:.0f} GFLOP/s"
                print(f"{size} length {length}: {rate}", file=sys.stderr)
    return points


def table(points):
    lines = ["| model | row length | MFLOP/token | us/token | GFLOP/s |", "| --- | --- | --- | --- | --- |"]
    for p in points:
        flop, seconds = p["flop"], p["seconds"]
        numbers = f"{flop / 1e6:.2f} | {seconds * 1e6:.2f} | {flop / seconds / 1e9:.1f}"
        lines.append(f"| {p['size']} | {p['length']} | {numbers} |")
    return "\n".join(lines) + "\n"


def svg(points, width=720, height=480, margin=60):
    """A plot with logarithmic axes; one colour for each model size, the line is the best rate seen."""
    spread = lambda values: (math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9))
    (x0, x1), (y0, y1) = spread([p["flop"] for p in points]), spread([p["seconds"] for p in points])
    at_x = lambda flop: margin + (math.log10(flop) - x0) / (x1 - x0) * (width - 2 * margin)
    at_y = lambda s: height - margin - (math.log10(s) - y0) / (y1 - y0) * (height - 2 * margin)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
           '<rect width="100%" height="100%" fill="white"/>']
    for power in range(x0, x1 + 1):
        x = at_x(10.0**power)
        out.append(f'<line x1="{x:.1f}" y1="{margin}" x2="{x:.1f}" y2="{height - margin}" stroke="#ddd"/>'
                   f'<text x="{x:.1f}" y="{height - margin + 18}" text-anchor="middle">1e{power}</text>')
    for power in range(y0, y1 + 1):
        y = at_y(10.0**power)
        out.append(f'<line x1="{margin}" y1="{y:.1f}" x2="{width - margin}" y2="{y:.1f}" stroke="#ddd"/>'
                   f'<text x="{margin - 6}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>')
    best = max(p["flop"] / p["seconds"] for p in points)
    low, high = max(10.0**x0, best * 10.0**y0), min(10.0**x1, best * 10.0**y1)
    out.append(f'<line x1="{at_x(low):.1f}" y1="{at_y(low / best):.1f}" x2="{at_x(high):.1f}" y2="{at_y(high / best):.1f}" stroke="#888" '
               f'stroke-dasharray="4"/><text x="{margin}" y="{margin - 12}">dashed: {best / 1e9:.0f} GFLOP/s, the best rate seen</text>')
    sizes = list(dict.fromkeys(p["size"] for p in points))
    colours = [f"hsl({360 * i // len(sizes)},70%,45%)" for i in range(len(sizes))]
    for p in points:
        out.append(f'<circle cx="{at_x(p["flop"]):.1f}" cy="{at_y(p["seconds"]):.1f}" r="4" fill="{colours[sizes.index(p["size"])]}">'
                   f'<title>{p["size"]}, length {p["length"]}</title></circle>')
    for i, (size, colour) in enumerate(zip(sizes, colours)):
        out.append(f'<text x="{width - margin + 6}" y="{margin + 16 * i}" fill="{colour}">{size}</text>')
    out.append(f'<text x="{width / 2}" y="{height - 14}" text-anchor="middle">FLOP a token</text>'
               f'<text x="16" y="{height / 2}" text-anchor="middle" transform="rotate(-90 16 {height / 2})">seconds a token</text></svg>')
    return "\n".join(out) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .md and .svg are added")
    parser.add_argument("--fusedpo", type=Path, default=Path("target/release/fusedpo"))
    parser.add_argument("--sizes", nargs="+", default=["64x2", "128x4", "256x6", "384x12"], metavar="HIDDENxLAYERS")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--tokens", type=int, default=2048, help="a step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if not args.fusedpo.is_file():
        sys.exit(f"plot_cost: --fusedpo {args.fusedpo}: no such file; run: cargo build --release")
    for size in args.sizes:
        hidden, _, layers = size.partition("x")
        if not (hidden.isdigit() and layers.isdigit() and int(layers) and int(hidden) and int(hidden) % HEAD_DIM == 0):
            sys.exit(f"plot_cost: --sizes {size}: expected HIDDENxLAYERS with a hidden size divisible by {HEAD_DIM}")
    if min(args.lengths) < 8:
        sys.exit("plot_cost: --lengths: rows need at least 8 tokens")
    points = measure_all(args)
    title = (f"# Cost of a token of a DPO step, {datetime.date.today().isoformat()}\n\n{args.dtype} on {args.device}, "
             f"{len(os.sched_getaffinity(0))} cores, {args.tokens} tokens a step, head of {VOCAB} words\n\n![plot]({args.out.name}.svg)\n\n")
    for ending, text in ((".svg", svg(points)), (".md", title + table(points))):
        path = args.out.with_name(args.out.name + ending)
        path.with_name(f".{path.name}.part").write_text(text)
        os.replace(path.with_name(f".{path.name}.part"), path)


if __name__ == "__main__":
    main()
