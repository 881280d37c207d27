#!/usr/bin/env python3
"""Prove and measure fusedpo on a GPU machine, from the folder that bundle.sh made. check.sh calls it.

Usage:   check.sh [--out RESULTS] [--seconds N] [--again] [--dry-run | --rehearse [LIBRARIES]] [--list] [STAGE..]
Input:   the bundle beside this file (manifest.json).
Output:  RESULTS/check.md, check.json, check.log, all there after each stage; exit status 1 where a stage failed or there is no GPU.
Needs:   Python 3.10 alone; stages look for torch, transformers, trl, ncu, compute-sanitizer and say what they lack.

--dry-run checks that every file and program named exists and prints each command; programs that only a GPU machine has
are told apart. --rehearse runs the same stages on the CPU backend, or on stand-ins for NVIDIA's libraries in the folder
LIBRARIES (kernels/standin): it proves this script, not the kernels.

A stage that RESULTS has as passed, by the same bundle on the same machine, is not run again, unless it is named or --again is given;
one that failed, was skipped or was interrupted is.
"""

import argparse
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from place import Bad, Place, Skipped
from stages import STAGES

TOTAL = 590  # seconds for everything, unless --seconds says otherwise
THERE = {"nvidia-smi", "ncu", "nsys", "compute-sanitizer"}  # programs that a machine without a GPU need not have
QUERY = ("name", "driver_version", "memory.total", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit",
         "temperature.gpu", "mig.mode.current")
BUNDLE = Path(__file__).resolve().parent


def read_manifest():
    try:
        return json.loads((BUNDLE / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"check: {BUNDLE} is no bundle ({error}); scripts/gpu/bundle.sh DIR makes one")


def damaged(manifest):
    """Files of the bundle that are missing or have another size."""
    wrong = lambda name, info: not (BUNDLE / name).is_file() or (BUNDLE / name).stat().st_size != info["bytes"]
    return [name for name, info in manifest["files"].items() if wrong(name, info)]


def unpack(manifest, folder):
    """The bundle's programs, ready to run."""
    for name in manifest["files"]:
        if name.startswith("programs/"):
            target = folder / name.removesuffix(".xz")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(lzma.decompress((BUNDLE / name).read_bytes()))
            target.chmod(0o755)
    return folder / "programs"


# ---- the machine

def said(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    return (done.stdout.strip(), None) if done.returncode == 0 else (None, (done.stdout + done.stderr).strip())


def gpu_facts():
    """What nvidia-smi says of GPU 0, or exit."""
    text, why = said(["nvidia-smi", "--id=0", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"])
    if not text:
        sys.exit(f"check: no GPU: nvidia-smi: {why or 'it printed nothing'}")
    return dict(zip(QUERY, (part.strip() for part in text.splitlines()[0].split(","))))


def machine_facts(place):
    facts = {} if place.rehearsal else gpu_facts()
    if place.stand_in:
        facts["stand-ins"] = "no GPU: libraries that look like NVIDIA's"
    facts["python"] = said([place.python, "-c", "import sys; print(sys.version.split()[0])"])[0]
    for name in ("torch", "transformers", "trl"):
        facts[name] = said([place.python, "-c", f"import importlib.metadata as m; print(m.version({name!r}))"])[0] or "not installed"
    return facts


def library_path(place):
    """LD_LIBRARY_PATH with the folders that have cuBLASLt or NCCL: those of pip's packages first, so that torch finds its own."""
    code = "import site, sys; print('\\n'.join([*site.getsitepackages(), site.getusersitepackages(), *sys.path]))"
    packages = (said([place.python, "-c", code])[0] or "").splitlines()
    folders = [folder for package in packages if package for folder in Path(package).glob("nvidia/*/lib")]
    folders += [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "lib64", *Path("/usr/local").glob("cuda-1*/lib64")]
    with_it = [str(folder) for folder in dict.fromkeys(folders) if any(any(folder.glob(f"{name}.so*")) for name in ("libcublasLt", "libnccl"))]
    return ":".join(with_it + [part for part in [os.environ.get("LD_LIBRARY_PATH")] if part])


# ---- running

def what_failed(text):
    """The tests that failed, or else the line of an output that says most about why its program failed."""
    tests = re.findall(r"^test (\S+) \.\.\. FAILED$", text, re.M)
    lines = [line for line in text.strip().splitlines() if line.strip()] or ["it printed nothing"]
    said = [f"{line} {after}".strip() if line.startswith("thread '") else line for line, after in zip(lines, [*lines[1:], ""])
            if line.startswith(("thread '", "fusedpo:")) or "Error" in line] or lines
    # The first panic: after a kernel's fault every other test of the process fails too.
    first = next((line for line in said if line.startswith("thread '")), said[-1])
    return (f"{len(tests)} tests failed: {', '.join(tests)}: {first}" if tests else first)[:500]


def run_step(step, log, seconds, environment):
    """(output of a step, None), or what it printed and why it failed or was stopped."""
    command = [str(part) for part in step.command]
    with open(log, "a", encoding="utf-8") as out:
        out.write(f"$ {' '.join(command)}\n")
        out.flush()
        start = out.tell()
        try:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**environment, **step.env},
                                       cwd=log.parent, start_new_session=True)
        except OSError as error:
            return "", f"{step.name}: {command[0]} does not start: {error.strerror}"
        try:
            status = process.wait(timeout=max(1, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            status = None
    with open(log, encoding="utf-8", errors="replace") as file:
        file.seek(start)
        text = file.read()
    if status is None:
        return text, f"{step.name}: not done after {seconds:.0f} s"
    return text, f"{step.name}: ended with {status}: {what_failed(text)}" if status else None


def run_steps(steps, log, end, environment):
    """({name: output}, [why a step failed]). Steps behind one that failed run only where it says that it stands alone."""
    outputs, failures = {}, []
    for i, step in enumerate(steps):
        if step.makes and step.makes.exists():
            continue
        left = end - time.monotonic()
        text, why = run_step(step, log, left / 2 if step.alone and i + 1 < len(steps) else left, environment)
        if not why or step.partial or step.weighed:
            outputs[step.name] = f"{text}\n{why}" if why and step.weighed else text
        if why and not step.weighed:
            failures.append(why)
            if not step.alone:
                break
    return outputs, failures


def run_stage(stage, place, out, deadline, environment):
    """{name, status, seconds, why, header, rows} of a stage."""
    begun, result = time.monotonic(), {"name": stage.name, "limit": stage.limit, "why": "", "header": [], "rows": []}
    end = min(begun + stage.limit * place.patience, deadline)
    log = out / "check.log"
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"\n==== {stage.name}\n")
    failures = []
    try:
        if end - begun < 2:
            raise Bad("no time left")
        steps = stage.plan(place)
        if isinstance(steps, str):
            result.update(status="skipped", why=steps)
        else:
            outputs, failures = run_steps(steps, log, end, environment)
            result["header"], result["rows"] = stage.judge(place, outputs)  # of a stage that failed: what there is
            result["status"] = "passed"
    except Bad as error:
        result.update(status="skipped" if isinstance(error, Skipped) else "failed", why=str(error))
        result["header"], result["rows"] = error.table or ([], [])
    except Exception as error:  # output that the judge did not expect: a failure of this stage, not of the others
        result.update(status="failed", why=f"{type(error).__name__}: {error}")
    if failures:
        result.update(status="failed", why="; ".join(failures))
    result["seconds"] = round(time.monotonic() - begun, 1)
    return result


def dry_run(stages, place):
    """Prints every command; returns what is missing."""
    missing = [f"{name}: missing or of another size" for name in damaged(place.manifest)]
    for stage in stages:
        print(f"{stage.name} (at most {stage.limit} s)")
        steps = stage.plan(place)
        if isinstance(steps, str):
            print(f"  skipped here: {steps}")
            continue
        for step in steps:
            command = [str(part) for part in step.command]
            print("  $ " + " ".join([*(f"{k}={v}" for k, v in step.env.items()), *command]))
            paths = [Path(part) for part in command if part.startswith(f"{BUNDLE}/")]
            packed = lambda path: path.with_name(path.name + ".xz")
            missing += [f"{path}: no such file" for path in paths if not path.exists() and not packed(path).exists()]
            for program in {command[0], *(part for part in command if part in THERE)}:
                if "/" in program or shutil.which(program):
                    continue
                if program in THERE:
                    print(f"    ({program} is not on this machine; a GPU machine has it)")
                else:
                    missing.append(f"{program}: no such program")
    return missing


# ---- report

def with_earlier(report, before):
    """The report, with stages that passed in an earlier call and whose turn has not come."""
    there = {result["name"]: result for result in report["stages"]}
    order = [stage.name for stage in STAGES]
    whole = {**before, **there}
    return {**report, "seconds": report.get("seconds", 0.0), "stages": sorted(whole.values(), key=lambda s: order.index(s["name"]))}


def markdown(report):
    cell = lambda x: str(x).replace("|", "/").replace("\n", " ")
    table = lambda header, rows: "\n".join("| " + " | ".join(map(cell, r)) + " |" for r in (header, ["---"] * len(header), *rows)) + "\n"
    bundle = report["bundle"]
    text = ["# fusedpo on a GPU\n" if not report["rehearsal"] else "# Rehearsal on the CPU: this says nothing about a GPU\n",
            f"{report['date']}, commit {bundle['commit']}{' with changes' if bundle['changed'] else ''}, code for {bundle['archs']}, "
            f"data: {bundle['data']['model']}, {bundle['data']['pairs']}; {report['seconds']} s in all\n",
            table(["machine", ""], report["machine"].items()),
            table(["stage", "result", "seconds", "limit", ""],
                  [[s["name"], s["status"], s["seconds"], s["limit"], s["why"]] for s in report["stages"]])]
    for stage in report["stages"]:
        if stage["rows"]:
            text += [f"## {stage['name']}\n", table(stage["header"], stage["rows"])]
    return "\n".join(text)


STEADY = ("name", "driver_version", "memory.total", "mig.mode.current", "stand-ins")  # what makes a machine the same one


def done_before(out, report):
    """{name: result} of stages that passed in an earlier call, with the same bundle on the same machine."""
    try:
        old = json.loads((out / "check.json").read_text())
        same = all(old[key] == report[key] for key in ("rehearsal", "bundle"))
        same &= all(old["machine"].get(key) == report["machine"].get(key) for key in STEADY)
        return {s["name"]: s for s in old["stages"] if same and s["status"] == "passed"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_report(out, report):
    for name, text in (("check.json", json.dumps(report, indent=1)), ("check.md", markdown(report))):
        scratch = out / f".{name}.part"
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, out / name)


def parse_args():
    parser = argparse.ArgumentParser(prog="check.sh", description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(stage.name for stage in STAGES))
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--seconds", type=int, default=TOTAL, help="for all stages together [%(default)s]; each has a limit of its own")
    parser.add_argument("--python", default=sys.executable, help="interpreter with torch, transformers, trl")
    parser.add_argument("--dry-run", action="store_true", help="run nothing")
    parser.add_argument("--again", action="store_true", help="run what has passed before, too")
    parser.add_argument("--rehearse", nargs="?", const="", metavar="LIBRARIES",
                        help="the same on the CPU backend, or on the stand-ins in a folder, to try the script")
    parser.add_argument("--list", action="store_true", help="name the stages")
    args = parser.parse_args()
    if args.rehearse in [stage.name for stage in STAGES]:  # the name of a stage, not of a folder
        args.stages, args.rehearse = [args.rehearse, *args.stages], ""
    if args.rehearse and not (Path(args.rehearse) / "libcuda.so.1").exists():
        parser.error(f"{args.rehearse} has no libcuda.so.1; kernels/standin/build.sh makes it")
    names = [stage.name for stage in STAGES]
    unknown = [name for name in args.stages if name not in names]
    if unknown:
        parser.error(f"no stage `{unknown[0]}`; there are: {', '.join(names)}")
    return args


def main():
    args = parse_args()
    stages = [stage for stage in STAGES if not args.stages or stage.name in args.stages]
    if args.list:
        print(*(stage.name for stage in stages), sep="\n")
        return
    manifest = read_manifest()
    if args.dry_run:
        missing = dry_run(stages, Place(BUNDLE, BUNDLE / "programs", Path("WORK"), args.python, manifest))
        sys.exit("\n".join(f"check: {line}" for line in missing) if missing else 0)
    broken = damaged(manifest)
    if broken:
        sys.exit(f"check: {broken[0]}: missing or of another size; make the bundle again")
    begun = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    out = args.out.resolve()
    with tempfile.TemporaryDirectory(prefix="fusedpo-check-") as work:
        place = Place(BUNDLE, unpack(manifest, Path(work)), Path(work), args.python, manifest,
                      args.rehearse is not None, bool(args.rehearse))
        report = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "rehearsal": place.rehearsal,
                  "bundle": {key: value for key, value in manifest.items() if key != "files"},
                  "machine": machine_facts(place), "stages": []}
        environment = {**os.environ, "LD_LIBRARY_PATH": library_path(place), "HF_HUB_OFFLINE": "1"}
        if place.stand_in:
            seen = out / "stand-in.log"
            seen.unlink(missing_ok=True)
            # A test's own device is never closed.
            environment.update({"LD_LIBRARY_PATH": str(Path(args.rehearse).resolve()), "STANDIN_LOG": str(seen), "STANDIN_LEAKS": "1"})
        before = {} if args.again else done_before(out, report)
        if not before:
            (out / "check.log").write_text("")
        doctor = subprocess.run([place.fusedpo, "doctor"], capture_output=True, text=True, env=environment).stdout
        report["machine"].update({f"fusedpo doctor, {line[:3]}": line[8:] for line in doctor.splitlines() if line[:3] in ("cpu", "gpu")})
        report["machine"].update({"NCCL": line.split("nccl: ")[1] for line in doctor.splitlines() if "nccl: " in line})
        for stage in stages:
            if stage.name in before and stage.name not in args.stages:
                report["stages"].append(before[stage.name])
                print(f"{stage.name}: passed before", flush=True)
                continue
            result = run_stage(stage, place, out, begun + args.seconds * place.patience, environment)
            defects = [line for line in seen.read_text().splitlines() if "DEFECT" in line] if place.stand_in and seen.exists() else []
            if defects:
                result.update(status="failed", why=defects[0])
                seen.unlink()
            print(f"{stage.name}: {result['status']} in {result['seconds']} s {result['why']}", flush=True)
            report["stages"].append(result)
            report["seconds"] = round(time.monotonic() - begun, 1)
            write_report(out, with_earlier(report, before))  # after each, so that a run that is cut short leaves what it had
        report = with_earlier(report, before)
        if not place.rehearsal:
            report["machine"].update({f"{key} after": value for key, value in gpu_facts().items() if key in ("clocks.sm", "temperature.gpu")})
            write_report(out, report)
    print((out / "check.md").read_text())
    sys.exit(any(result["status"] == "failed" for result in report["stages"]))


if __name__ == "__main__":
    main()
