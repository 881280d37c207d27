#!/usr/bin/env python3
"""Draws every loss of the program's table, and its gradient, over the margin of a pair.

Usage:   python scripts/plot_losses.py [--out docs/losses] [--fusedpo target/release/fusedpo] [--check]
Reads:   `fusedpo loss list --json` and `fusedpo loss explain NAME --json`: nothing is computed here.
Writes:  OUT/NAME.svg for every loss, and removes pictures of losses that are no more; with --check nothing, and it fails where
         a picture is missing, left over, or shows other values.
Needs:   a built program.

The pair: reference log-probs of -40 in both responses, 10 tokens each, scores 8 and 6. The margin is given half by the chosen
response, half by the rejected one: the policy's log-probs are -40 + h/2 and -40 - h/2. Options have their defaults.
"""

import argparse
import concurrent.futures
import json
import math
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARGINS = list(range(-60, 61, 2))
START, LENGTH, SCORES = -40, 10, (8, 6)
WIDTH, HEIGHT, GAP = 330, 190, 40


def fail(why):
    sys.exit(f"plot_losses: {why}")


def said(fusedpo, *args):
    result = subprocess.run([fusedpo, "loss", *args, "--json"], capture_output=True, text=True)
    if result.returncode:
        fail(f"fusedpo loss {' '.join(args)} ended with {result.returncode}: {result.stderr.strip()}")
    return json.loads(result.stdout)


def pair(loss, margin):
    """What `explain` is told of the pair with that margin: no more than the loss reads."""
    values = {"chosen": START + margin / 2, "rejected": START - margin / 2}
    if loss["reference"]:
        values.update(ref_chosen=START, ref_rejected=START)
    if loss["lengths"] != "none":
        values.update(chosen_len=LENGTH, rejected_len=LENGTH)
    if loss["scores"]:
        values.update(chosen_score=SCORES[0], rejected_score=SCORES[1])
    return [part for name, x in values.items() for part in ("--" + name.replace("_", "-"), repr(x))]


def points_of(fusedpo, loss):
    """(margin, loss, d_chosen, d_rejected) at each margin."""
    at = lambda margin: said(fusedpo, "explain", loss["name"], *pair(loss, margin))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        values = list(pool.map(at, MARGINS))
    return [(margin, v["loss"], v["d_chosen"], v["d_rejected"]) for margin, v in zip(MARGINS, values)]


def ticks(low, high):
    """Round numbers from `low` to `high`, three to six of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 5)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def label(x):
    return f"{x:.6g}" if x else "0"


def without_middle_of_lines(points):
    """Points that lie between their neighbours add nothing."""
    kept = points[:1]
    for i in range(1, len(points) - 1):
        (x0, y0), (x, y), (x1, y1) = kept[-1], points[i], points[i + 1]
        if abs(y0 + (y1 - y0) * (x - x0) / (x1 - x0) - y) > 0.05:
            kept.append(points[i])
    return kept + points[-1:]


def panel(left, title, margins, curves):
    """Curves over the margin, with their axes, from `left` on."""
    values = [y for _, ys in curves for y in ys]
    low, high = min(values + [0.0]), max(values + [0.0])
    if high == low:
        high = low + 1
    x0, x1, y0, y1 = left + GAP + 10, left + WIDTH - 10, HEIGHT - GAP, GAP - 10
    at_x = lambda m: x0 + (m - margins[0]) / (margins[-1] - margins[0]) * (x1 - x0)
    at_y = lambda v: y0 + (v - low) / (high - low) * (y1 - y0)
    out = [f'<text x="{(x0 + x1) / 2:.0f}" y="16" text-anchor="middle">{title}</text>']
    for m in ticks(margins[0], margins[-1]):
        out.append(f'<line x1="{at_x(m):.1f}" y1="{y0}" x2="{at_x(m):.1f}" y2="{y1}" stroke="#ddd"/>'
                   f'<text x="{at_x(m):.1f}" y="{y0 + 15}" text-anchor="middle">{label(m)}</text>')
    for v in ticks(low, high):
        out.append(f'<line x1="{x0}" y1="{at_y(v):.1f}" x2="{x1}" y2="{at_y(v):.1f}" stroke="{"#999" if not v else "#ddd"}"/>'
                   f'<text x="{x0 - 5}" y="{at_y(v) + 4:.1f}" text-anchor="end">{label(v)}</text>')
    out.append(f'<text x="{(x0 + x1) / 2:.0f}" y="{y0 + 31}" text-anchor="middle">margin h, nats</text>')
    for colour, ys in curves:
        line = without_middle_of_lines([(at_x(m), at_y(y)) for m, y in zip(margins, ys)])
        at = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
        out.append(f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return out


def svg(points):
    margins = [p[0] for p in points]
    column = lambda i: [p[i] for p in points]
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="11">',
           '<rect width="100%" height="100%" fill="white"/>']
    out += panel(0, "loss", margins, [("#333", column(1))])
    gradient = 'gradient by <tspan fill="#1a7f37">chosen</tspan> and <tspan fill="#cf222e">rejected</tspan>'
    out += panel(WIDTH, gradient, margins, [("#1a7f37", column(2)), ("#cf222e", column(3))])
    return "\n".join([*out, "</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fusedpo", type=Path, default=ROOT / "target/release/fusedpo")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/losses")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if not args.fusedpo.is_file():
        fail(f"--fusedpo {args.fusedpo}: no such file; run: cargo build --release")
    pictures = {f"{loss['name']}.svg": svg(points_of(args.fusedpo, loss)) for loss in said(args.fusedpo, "list")}
    there = {path.name for path in args.out.glob("*.svg")}
    changed = [n for n, text in pictures.items() if n not in there or (args.out / n).read_text() != text]
    left_over = sorted(there - set(pictures))
    if args.check and (changed or left_over):
        fail(f"{args.out}: not what the losses give: {', '.join(changed + left_over)}; run: python3 scripts/plot_losses.py")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in changed:
        part = args.out / f".{name}.part"
        part.write_text(pictures[name])
        os.replace(part, args.out / name)
    for name in left_over:
        (args.out / name).unlink()


if __name__ == "__main__":
    main()
