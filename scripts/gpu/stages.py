"""What check.py runs: stages of commands, and what is read off their output.

Usage:   from stages import STAGES, Place      (a module; it has no command line)
A stage plans steps (commands) and judges their outputs. Planning runs nothing, so that `check.py --dry-run` can show it.
"""

import csv
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

from place import TIMES, Bad, Place, Stage, Step, digest, metrics  # noqa: F401 (Place: for those who import this)
from predicted import NONE, PEERS, kernel_share, step_share
from ranks import judge_ranks, plan_ranks

OURS = r"_(bf16|f32)$"  # names of our kernels, for the tools that look at one kernel at a time


def tests_env(place):
    env = {"FUSEDPO_REQUIRE_GPU": "only" if place.device == "cuda" else "", "CARGO_MANIFEST_DIR": str(place.bundle / "project"),
           "CARGO_BIN_EXE_fusedpo": str(place.fusedpo)}
    if place.manifest["data"]["model"] == "stories260k":
        env["FUSEDPO_TEST_DATA"] = str(place.bundle)
    return env


ROWS = "rows_alone"  # the test that a row's bits do not depend on how many rows there are


def plan_rows(place):
    """What the exact start of DPO hangs on, and nobody has seen on a GPU: products that give a row the same bits in any company."""
    if place.stand_in:
        return "products of real size take the stand-ins too long"
    return [Step("kernels", [place.programs / "tests/kernels", ROWS, "--test-threads=4"], tests_env(place))]


def plan_kernels(place):
    left_out = ["--skip", ROWS, "--skip", "many_rows"] if place.stand_in else []
    return [Step(name, [place.programs / "tests" / name, "--test-threads=4", *left_out], tests_env(place), alone=True)
            for name in place.manifest["tests"]]


def judge_kernels(place, outputs):
    rows = []
    for name, text in outputs.items():
        result = re.search(r"test result: ok\. (\d+) passed; 0 failed.*finished in ([\d.]+)s", text)
        if not result:
            raise Bad(f"{name}: no `test result: ok`")
        if "skipped: no GPU" in text and place.device == "cuda":
            raise Bad(f"{name}: it ran without a GPU")
        if result.group(1) == "0":
            raise Bad(f"{name}: no test ran")
        rows.append([name, result.group(1), result.group(2)])
    return ["test", "passed", "seconds"], rows


def plan_step0(place):
    pack, data = place.pack()
    make, large = place.random_model("smollm2-135m")
    runs = [place.dpo(model, data, place.work / f"step0-{name}-{dtype}", dtype, "--max-steps", 2, "--learning-rate", "1e-4")
            for name, model in (("small", place.small), ("135m", large)) for dtype in ("f32", "bf16")]
    return [pack, *make, *runs]


def judge_step0(place, outputs):
    rows = []
    for name in ("small", "135m"):
        for dtype in ("f32", "bf16"):
            first, second = metrics(place.work / f"step0-{name}-{dtype}")[:2]
            off = abs(first["loss"] - math.log(2))
            if off > 1e-12 or first["rewards/margins"] != 0:
                raise Bad(f"{name} in {dtype}: loss {first['loss']!r}, margin {first['rewards/margins']!r} at step 0")
            if not math.isfinite(second["loss"]) or second["loss"] == first["loss"]:
                raise Bad(f"{name} in {dtype}: the step changed nothing: loss {second['loss']!r} after it")
            rows.append([name, dtype, f"{first['loss']:.15f}", f"{first['rewards/margins']:g}", f"{second['loss']:.6f}"])
    return ["model", "dtype", "loss at step 0", "margin", "loss at step 1"], rows


def plan_determinism(place):
    make, large = place.random_model("smollm2-135m")
    steps = list(make)
    for run in ("a", "b"):  # shards of its own, so that each computes its own reference
        pack, data = place.pack(f"pairs-{run}")
        steps += [pack, place.dpo(place.small, data, place.work / f"small-{run}", "f32", "--max-steps", 6),
                  place.dpo(large, data, place.work / f"135m-{run}", "bf16", "--max-steps", 4)]
    return steps


def judge_determinism(place, outputs):
    rows = []
    for name in ("small", "135m"):
        a, b = (place.work / f"{name}-{run}" for run in ("a", "b"))
        drop = lambda rows: [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
        if drop(metrics(a)) != drop(metrics(b)):
            raise Bad(f"{name}: metrics of the two runs differ")
        one, two = digest(a / "model.safetensors"), digest(b / "model.safetensors")
        if one != two:
            raise Bad(f"{name}: weights of the two runs differ")
        rows.append([name, len(metrics(a)), f"{metrics(a)[-1]['loss']:.6f}", one[:16]])
    return ["model", "steps", "last loss, both runs", "sha256 of the weights, both runs"], rows


# ---- learning

def plan_learning(place):
    pack, data = place.pack("learn", "learn.jsonl", "--eval-fraction", "0.1", "--max-length", 120 if place.small.name == "llama" else 512)
    how = ["--num-train-epochs", 1, "--learning-rate", "3e-4", "--batch-size", 8]
    runs = [("cpu", "f32"), (place.device, "f32"), (place.device, "bf16")]
    return [pack, *(place.dpo(place.small, data, place.work / f"learn-{i}", dtype, *how, device=device)
                    for i, (device, dtype) in enumerate(runs))]


def judge_learning(place, outputs):
    """A real run learns what the CPU's learns: held-out accuracy within 0.05."""
    rows = []
    for i, name in enumerate(("CPU f32", "f32", "bf16")):
        text = (place.work / f"learn-{i}/metrics.jsonl").read_text()
        held_out = [row for row in map(json.loads, text.splitlines()) if "eval_rewards/accuracies" in row]
        accuracy = held_out[-1]["eval_rewards/accuracies"]
        rows.append([name, f"{held_out[-1]['eval_loss']:.4f}", f"{held_out[0]['eval_rewards/accuracies']:.3f}", f"{accuracy:.3f}"])
        if not abs(accuracy - float(rows[0][3])) <= 0.05:
            raise Bad(f"{name}: held-out accuracy {accuracy:.3f}, the CPU's run reaches {rows[0][3]}")
    return ["run", "held-out loss", "accuracy before", "after"], rows


# ---- sanitizer

def plan_sanitizer(place):
    if place.rehearsal:
        return "compute-sanitizer looks at a GPU"
    ours = ["--kernel-name", f"regex={OURS}"]
    memory = ["--report-api-errors", "no", "--padding", "256"]  # the driver may be asked for a kernel in another image
    # Not the other tests: the same kernels again, and drivers opened by the dozen. Nor the library's products, which are not ours: they take
    # these tools longest, and racecheck ends itself in them on an H100 ("failed to handle a hardware exception").
    own = ["--skip", "products::"]
    without = [*own, "--skip", "head::", "--skip", "linear"]
    tools = [("memcheck", memory, [("kernels", own), ("kernels_attention", []), ("kernels_step", [])]),
             ("racecheck", ours, [("kernels", without), ("kernels_attention", [])]),
             ("synccheck", ours, [("kernels", own), ("kernels_attention", [])])]
    return [Step(f"{tool} {test}", ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *more,
                                    place.programs / "tests" / test, *which, "--test-threads=1"], tests_env(place), alone=True)
            for tool, more, tests in tools for test, which in tests if test in place.manifest["tests"]]


def judge_sanitizer(place, outputs):
    rows = []
    for name, text in outputs.items():
        summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", text)
        if not summary or not summary[-1].startswith("0 "):
            raise Bad(f"{name}: {summary[-1] if summary else 'no summary'}")
        rows.append([*name.split(), summary[-1]])
    return ["tool", "test", "summary"], rows


def plan_parity(place):
    if not place.has_module("torch"):
        return "python3 has no torch"
    pack, data = place.pack()
    steps = [pack]
    for dtype, device in (("f32", "cpu"), ("f32", place.device), ("bf16", place.device)):
        out = place.work / f"scores-{device}-{dtype}.jsonl"
        steps.append(Step(f"score {device} {dtype}", [place.fusedpo, "score", "--model", place.small, "--data", data, "--out", out, "--overwrite",
                                                     "--dtype", dtype, "--device", device], makes=out))
    oracles = ["torch", "transformers"] if place.has_module("transformers") else ["torch"]
    torch_device = "cpu" if place.rehearsal else "cuda"
    for oracle in oracles:
        for dtype, rule in (("float32", ["--tolerance", "1e-3"]), ("bfloat16", ["--twice-plain"])):
            ours = place.work / f"scores-{place.device}-{'f32' if dtype == 'float32' else 'bf16'}.jsonl"
            steps.append(Step(f"{oracle} {dtype}", [*place.script("check_transformers.py"), "--oracle", oracle, "--model", place.small,
                                                    "--scores", ours, "--data-jsonl", place.bundle / "data/ids.jsonl",
                                                    "--dtype", dtype, "--device", torch_device, *rule]))
    return steps


def judge_parity(place, outputs):
    read = lambda name: [json.loads(line)["logp"] for line in (place.work / name).read_text().splitlines()]
    cpu, gpu = read("scores-cpu-f32.jsonl"), read(f"scores-{place.device}-f32.jsonl")
    worst = max(abs(a - b) for a, b in zip(cpu, gpu, strict=True))
    if not worst <= 1e-3:
        raise Bad(f"f32: {worst:.3e} nat from the CPU backend")
    rows = [["the CPU backend", "f32", f"{worst:.3e} nat at most"]]
    for name, text in outputs.items():
        said = re.search(r"(largest difference of a response: .*|error against float64: .*)", text)
        if said and name.split()[0] in ("torch", "transformers"):
            rows.append([*name.split(), re.sub(r" \(.*", "", said.group(1))])
    return ["oracle", "dtype", "difference"], rows


# ---- benches, peers, profile

def plan_kernel_bench(place):
    if place.stand_in:
        return "kernels of real size take the stand-ins too long, and have no speed there"
    quick = ["--warm-up-time", "0.1", "--measurement-time", "0.3", "--nresamples", "1000"]
    return [Step("kernels", [place.programs / "benches/kernels", "--bench", *quick], {"CRITERION_HOME": str(place.work / "criterion")},
                 partial=True)]


def judge_kernel_bench(place, outputs):
    """Lines of benches/kernels: `name shape: rate unit, share % of the ceiling measured, time us`."""
    text = outputs["kernels"]
    if "no GPU is timed here" in text and not place.rehearsal:
        raise Bad("the bench found no GPU")
    line = r"^(\w+) (.+): ([\d.]+ (?:GB|TFLOP)/s), ([\d.]+ %) of the ([\d.]+) measured, ([\d.]+) us$"
    rows = [[*found, kernel_share(found[0])] for found in re.findall(line, text, re.M)]
    if not rows:
        raise Bad("the bench printed no result")
    return ["op", "shape", "rate", "share", "of measured", "us", "predicted (not measured)"], rows


def plan_step_bench(place):
    if place.stand_in:
        return "steps of real size take the stand-ins too long, and have no speed there"
    if "step" not in place.manifest["benches"]:
        return "the bundle has no bench `step`"
    how = ["--shapes", "26m", "--mixes", "hh", "--pairs", 4, "--steps", 2] if place.rehearsal else ["--shapes", "135m,0.5b,1b", "--steps", 3]
    return [Step("step", [place.programs / "benches/step", "--bench", "--device", place.device, "--json", place.work / "step.jsonl", *how])]


def judge_step_bench(place, outputs):
    cases = [json.loads(line) for line in (place.work / "step.jsonl").read_text().splitlines()]
    if not cases:
        raise Bad("the bench timed no step")
    rows = []
    for c in cases:
        families = sorted(c["family_seconds"].items(), key=lambda item: -item[1])[:4]
        whole = sum(c["family_seconds"].values()) or 1.0
        rows.append([c["shape"], c["mix"], f"{1e3 * c['seconds']:.1f}", f"{c['pairs_per_second']:.1f}", f"{c['tokens_per_second']:.0f}",
                     f"{100 * c['mfu']:.1f} %", step_share(c["shape"]), f"{c['used_bytes'] / 1e9:.1f}",
                     ", ".join(f"{name} {100 * seconds / whole:.0f} %" for name, seconds in families)])
    return ["shape", "lengths", "ms a step", "pairs/s", "tokens/s", "MFU, of the measured ceiling", "MFU, predicted (not measured)",
            "memory, GB", "most time"], rows


def plan_peers(place):
    if place.stand_in:
        return "peers need a GPU, and stand-ins have no speed to compare"
    if not place.has_module("torch") or not place.has_module("transformers"):
        return "python3 has no torch or no transformers"
    make, model = place.random_model("qwen2.5-0.5b")
    trl = ["trl-default", "trl-best"] if place.has_module("trl") else []
    peers = ["torch-shared", *trl, "torch-compile"]  # what may compile for longer than there is time comes last
    only = [f"{name}-bf16" for name in ("fusedpo", *peers) if not (place.rehearsal and name == "torch-compile")]
    length, pairs = (256, 8) if place.rehearsal else (1024, 32)
    command = [*place.script("bench_trl.py"), "--model", model, "--data", place.bundle / "data/text.jsonl", "--device", place.device,
               "--pairs", pairs, "--batch-size", 8, "--max-length", length, "--token-budget", 1024 if place.rehearsal else 4096,
               "--fusedpo", place.fusedpo, "--python", place.python, "--only", *only, "--work", place.work,
               "--trl-micro-batch", 8, "--out", place.work / "peers.md", "--json", place.work / "peers.json"]
    return [*make, Step("peers", command)]


def judge_peers(place, outputs):
    report = json.loads((place.work / "peers.json").read_text())
    memory = lambda r: f"{r['gpu_gb']:.2f}" if r["gpu_gb"] is not None else "-"
    rows = [[r["config"], f"{r['step_s']:.3f}", f"{r['pairs'] / r['steps_s']:.2f}", f"{r['reference_s']:.2f}", memory(r),
             f"{r['losses'][0]:.6f}", f"{r['losses'][-1]:.6f}", PEERS.get(r["config"], NONE), r["note"]] for r in report["results"]]
    rows += [] if place.has_module("trl") else [["trl-*", *["-"] * 7, "skipped: python3 has no trl"]]
    header = ["configuration", "s/step", "pairs/s", "reference, s", "peak GPU memory, GB", "first loss", "last loss",
              "ours faster, predicted (not measured)", "note"]
    if report["failed"]:
        raise Bad("; ".join(f"{name}: {why}" for name, why in report["failed"].items()), (header, rows))
    return header, rows


PROFILED = ("--launch-skip", "500", "--launch-count", "200")
METRICS = ("gpu__time_duration.sum", *(f"{unit}__throughput.avg.pct_of_peak_sustained_elapsed" for unit in ("dram", "sm")))


def plan_profile(place):
    if place.rehearsal:
        return "ncu looks at a GPU"
    make, model = place.random_model("smollm2-135m")
    pack, data = place.pack("pairs-profile", "long.jsonl")
    how = ["--max-steps", 1, "--batch-size", 16, "--token-budget", 16384]  # one micro-batch: ncu runs each kernel several times
    # The first leaves the reference beside the shards.
    warm, step = (place.dpo(model, data, place.work / name, "bf16", *how) for name in ("profile-warm", "profile"))
    if shutil.which("ncu") or not shutil.which("nsys"):
        # A whole step (700 launches and more) was not done in 44 s: its middle, where forward ends and backward begins.
        step.command = ["ncu", "--clock-control", "none", *PROFILED, "--csv", "--page", "raw", "--print-units", "base", "--metrics", ",".join(METRICS), *step.command]
    else:
        step.command = ["nsys", "profile", "--stats=true", "--force-overwrite=true", "--output", str(place.work / "profile-nsys"), *step.command]
    step.name = "profile"
    return [*make, pack, warm, step]


def family(kernel):
    """One name for the tiles and storage types of an op; products of the library are one family."""
    ours = re.match(r"(\w+?)(?:_hd\d+|_plain|_\d)?_(?:bf16|f32)$", kernel)
    return ours.group(1) if ours else "products (cuBLASLt)"


def judge_profile(place, outputs):
    text = outputs["profile"]
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        if "CUDA GPU Kernel Summary" in text or "cuda_gpu_kern_sum" in text:
            return ["nsys"], [[line] for line in lines[-60:]]
        raise Bad(f"ncu printed no table: {lines[-1] if lines else 'nothing'}")
    table = list(csv.DictReader(line for line in lines[start:] if line.startswith('"')))
    number = lambda row, name: float((row.get(name) or "nan").replace(",", ""))
    found = {}  # the first row has the units
    for row in table[1:]:
        f = found.setdefault(family(row["Kernel Name"].split("(")[0]), [0, 0.0, 0.0, 0.0])
        time = number(row, METRICS[0]) / 1e3  # base unit: ns
        f[0], f[1] = f[0] + 1, f[1] + time
        f[2], f[3] = f[2] + time * number(row, METRICS[1]), f[3] + time * number(row, METRICS[2])
    whole = sum(f[1] for f in found.values())
    if not whole > 0:
        raise Bad("ncu timed no kernel")
    longest = sorted(found.items(), key=lambda item: -item[1][1])
    show = lambda f: [f[0], f"{f[1]:.1f}", f"{100 * f[1] / whole:.1f} %", f"{f[2] / f[1]:.0f} %", f"{f[3] / f[1]:.0f} %"]
    return ["kernels of a part of a step", "launches", "us", "share", "of peak DRAM", "of peak SM"], [[name, *show(f)] for name, f in longest]


# What decides most comes first: whether products keep rows apart, on which the exact start hangs; the start itself; each kernel;
# then speed. What is slow and seldom finds anything comes last.
STAGES = [
    Stage("rows", 25, plan_rows, judge_kernels),
    Stage("step0", 25, plan_step0, judge_step0),
    Stage("kernels", 80, plan_kernels, judge_kernels),
    Stage("kernel-bench", 55, plan_kernel_bench, judge_kernel_bench),
    Stage("step-bench", 45, plan_step_bench, judge_step_bench),
    Stage("peers", 90, plan_peers, judge_peers),
    Stage("parity", 60, plan_parity, judge_parity),
    Stage("determinism", 25, plan_determinism, judge_determinism),
    Stage("ranks", 40, plan_ranks, judge_ranks),
    Stage("learning", 25, plan_learning, judge_learning),
    Stage("profile", 40, plan_profile, judge_profile),
    Stage("sanitizer", 80, plan_sanitizer, judge_sanitizer),
]
