"""The stage of runs by several processes: two, and four where there are as many GPUs; two on one GPU.

Usage:   from ranks import judge_ranks, plan_ranks      (a module; it has no command line)
"""

from place import TIMES, Bad, Skipped, digest, metrics

HEADER = ["model", "dtype", "ranks", "ms a step", "faster than one", "sha256 of the weights", "where, or why not"]
OPTIONS = ["--lanes", 4, "--max-steps", 4, "--batch-size", 16]  # four steps of the 64 long pairs


def worlds(place):
    """Numbers of ranks: two, on one GPU where NCCL may allow it, and four on as many GPUs."""
    return [n for n in (2, 4) if n <= max(place.gpus, 2)]


def plan_ranks(place):
    make, large = place.random_model("smollm2-135m")
    pack, data = place.pack("pairs-ranks", "ids.jsonl" if place.rehearsal else "long.jsonl")
    # By default NCCL refuses two ranks on one GPU; from 2.30 on it may be asked not to.
    env = {"NCCL_MULTI_RANK_GPU_ENABLE": "1"} if place.gpus == 1 else {}
    steps = [pack, *make]
    for name, model, dtype in (("small", place.small, "f32"), ("135m", large, "bf16")):
        one = place.dpo(model, data, place.work / f"ranks-{name}-1", dtype, *OPTIONS)
        steps.append(one)
        for n in worlds(place):
            step = place.dpo(model, data, place.work / f"ranks-{name}-{n}", dtype, *OPTIONS)
            step.command = [place.python, place.bundle / "launch.py", n, *step.command]
            step.env, step.alone, step.weighed = env, True, True
            steps.append(step)
    return steps


def refusal(text):
    """The line by which a run of several ranks said that NCCL is missing, or joins no two ranks on one GPU. What fails later is no refusal."""
    said = [line.removeprefix("fusedpo: ") for line in text.splitlines() if line.startswith("fusedpo: ") and "NCCL" in line]
    return next((line for line in said if "has no NCCL" in line or "join the GPUs of the other ranks" in line), None)


def median_seconds(run):
    """Of a step behind the first, which warms up."""
    seconds = sorted(row["step_seconds"] for row in metrics(run)[1:])
    return seconds[len(seconds) // 2]


def judge_ranks(place, outputs):
    """Weights and metrics of several ranks are those of one, to the byte. Where NCCL is missing, or refuses what one GPU alone can
    be asked for, that is no failure."""
    rows, refused, joined = [], [], False
    drop = lambda rows: [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
    for name, dtype in (("small", "f32"), ("135m", "bf16")):
        one = place.work / f"ranks-{name}-1"
        alone = median_seconds(one)
        rows.append([name, dtype, 1, f"{1e3 * alone:.1f}", "-", digest(one / "model.safetensors")[:16], "-"])
        for n in worlds(place):
            run = place.work / f"ranks-{name}-{n}"
            text = outputs.get(f"dpo {run.name}", "")
            if not (run / "model.safetensors").exists():
                why = refusal(text)
                if not why or joined or (place.gpus > 1 and "no NCCL" not in why):
                    last = text.strip().splitlines()[-1:] or ["it printed nothing"]
                    raise Bad(f"{name} on {n} ranks: {why or last[0]}", (HEADER, rows))
                refused.append(why)
                rows.append([name, dtype, n, "-", "-", "-", why])
                continue
            if drop(metrics(run)) != drop(metrics(one)):
                raise Bad(f"{name}: metrics of {n} ranks are not those of one", (HEADER, rows))
            if digest(run / "model.safetensors") != digest(one / "model.safetensors"):
                raise Bad(f"{name}: weights of {n} ranks are not those of one", (HEADER, rows))
            joined, seconds = True, median_seconds(run)
            how = f"{n} on one GPU" if place.gpus == 1 else f"{n} GPUs" if place.gpus else f"{n} on the CPU"
            rows.append([name, dtype, n, f"{1e3 * seconds:.1f}", f"{alone / seconds:.2f}", digest(run / "model.safetensors")[:16], how])
    if len(refused) == 2 * len(worlds(place)):
        raise Skipped(refused[0], (HEADER, rows))
    return HEADER, rows
