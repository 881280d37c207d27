#!/usr/bin/env python3
"""Compares what TensorBoard shows of runs with their metrics.jsonl: every number of every row, in f32.

    scripts/tensorboard_check.py RUN... [--server URL]

Each RUN is read through TensorBoard's own EventAccumulator; with --server, what a TensorBoard that serves their common parent
folder answers over HTTP is compared, too; of times the steps alone, as it keeps those of a call that was killed. Needs
tensorboard. Prints a line a run; exits with 1 at the first difference.
"""

import argparse
import csv
import io
import json
import math
import struct
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path


def f32(x):
    return struct.unpack("f", struct.pack("f", math.nan if x is None else x))[0]


def wanted(run):
    """Tag -> [(step, value)], by transformers' rule, of metrics.jsonl."""
    tags = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for key, value in row.items():
            if key != "step" and (value is None or isinstance(value, (int, float))):
                tag = "eval/" + key[5:] if key.startswith("eval_") else "train/" + key
                tags.setdefault(tag, []).append((row["step"], f32(value)))
    return tags


def difference(got, want, times=True):
    """The first tag that is not equal, NaN being NaN, and where, in words; None where there is none."""
    for tag in {**want, **got}:
        timed = tag.endswith(("_seconds", "_per_second", "_bytes"))
        points = [[(s, "NaN" if v != v else v if times or not timed else "") for s, v in tags.get(tag, [])] for tags in (got, want)]
        if points[0] != points[1]:
            pair = next((p for p in zip(*points) if p[0] != p[1]), [len(p) for p in points])
            return f"{tag}: TensorBoard has {pair[0]}, metrics.jsonl {pair[1]}"
    return None


def accumulated(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    tags = {}
    for tag in events.Tags()["tensors"]:
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            # TensorBoard turns simple values into tensors of rank 0.
            from tensorboard.util import tensor_util

            tags[tag] = [(e.step, float(tensor_util.make_ndarray(e.tensor_proto).item())) for e in events.Tensors(tag)]
    for tag in events.Tags()["scalars"]:
        tags[tag] = [(e.step, e.value) for e in events.Scalars(tag)]
    text = [e.tensor_proto.string_val[0].decode() for e in events.Tensors("args/text_summary")]
    return tags, text


def served(url, run, tags):
    """The same over HTTP; asked again for a while, as a server looks for news every few seconds."""
    of = {}
    for tag in tags:
        query = urllib.parse.urlencode({"tag": tag, "run": run, "format": "csv"})
        with urllib.request.urlopen(f"{url}/data/plugin/scalars/scalars?{query}", timeout=30) as answer:
            rows = list(csv.DictReader(io.StringIO(answer.read().decode())))
        of[tag] = [(int(r["Step"]), f32(float(r["Value"]))) for r in rows]
    return of


def check(run, server):
    want = wanted(run)
    if not want:
        sys.exit(f"{run}: no metrics")
    got, text = accumulated(run)
    if wrong := difference(got, want):
        sys.exit(f"{run}: {wrong}")
    if len(text) != 1 or "`learning_rate`" not in text[0]:
        sys.exit(f"{run}: the text is {text}")
    if server:
        end = time.monotonic() + 60
        while True:
            try:
                wrong = difference(served(server, run.name, want), want, times=False)
                if not wrong:
                    break
            except OSError as e:  # 404 until it has seen the run
                wrong = e
            if time.monotonic() > end:
                sys.exit(f"{run}: over HTTP: {wrong}")
            time.sleep(0.5)
    rows = sum(len(points) for points in want.values())
    print(f"{run}: {len(want)} tags, {rows} numbers{' and over HTTP' if server else ''}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--server", metavar="URL")
    args = parser.parse_args()
    for run in args.runs:
        check(run, args.server)


if __name__ == "__main__":
    main()
