#!/usr/bin/env python3
"""What the compiler made of the CUDA kernels: registers, stack, spills, shared memory, occupancy, widths of global accesses,
tensor-core instructions, issue slots (issue_slots.py says what they are), per kernel and target. Needs nvcc, cuobjdump and
nvdisasm (scripts/install_nvcc.sh), no GPU.

    scripts/kernel_report.py --cuda DIR/nvidia/cu13 [--markdown docs/kernels.md] [--targets 80,90a,100,120] [--only norm]
    scripts/kernel_report.py --built target --targets 80,90a --check docs/kernels.md     what scripts/check.sh runs
    scripts/kernel_report.py --root OTHER_CHECKOUT --built OTHER_TARGET --markdown docs/kernels.md --baseline   the columns to compare with

Exits 1 where a kernel uses local memory (stack or spills) and is not in ALLOWED with a reason, where ALLOWED names one
that does not, and with --check where the page's table is another one or a kernel issues over 5 % more slots than it says.
--markdown refuses to write such a figure without --accept-growth."""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import issue_slots

ROOT = Path(__file__).resolve().parent.parent
# Kernel (as a regular expression) -> why it may use local memory.
ALLOWED = {}
# Per compute capability: registers, shared memory in bytes, threads and blocks of a multiprocessor.
MULTIPROCESSOR = {
    "80": (65536, 164 * 1024, 2048, 32),
    "90a": (65536, 228 * 1024, 2048, 32),
    "100": (65536, 228 * 1024, 2048, 32),
    "120": (65536, 100 * 1024, 1536, 24),
}
PAGE_TARGETS = ("80", "90a")
BEGIN, END = "<!-- kernel_report: begin -->", "<!-- kernel_report: end -->"


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def compile_cubin(tools, source, dtype, target, folder):
    cubin = Path(folder) / f"{source.stem}.{dtype}.{target}.cubin"
    flag = {"bf16": "-DSTORAGE_BF16", "f32": "-DSTORAGE_FLOAT"}[dtype]
    run(tools / "nvcc", "-std=c++17", "-O3", "-cubin", flag, "-gencode", f"arch=compute_{target},code=sm_{target}", source, "-o", cubin)
    return cubin


class Built:
    """Images that `cargo build` left under a target folder, as long as they come from the sources of today."""

    def __init__(self, folder, root):
        self.stamps = sorted(Path(folder).glob("*/build/fusedpo-*/out/*.inputs"), key=lambda p: -p.stat().st_mtime) if folder else []
        self.headers = "".join(p.read_text() for p in sorted((root / "kernels").glob("*.cuh")))

    def cubin(self, tools, source, dtype, target, folder):
        """The image for `target`, or None: build.rs writes beside each what it was made from."""
        inputs = self.headers + source.read_text()
        for stamp in self.stamps:
            if stamp.name != f"{source.stem}.{dtype}.inputs":
                continue
            text = stamp.read_text()
            if text.endswith(inputs) and f'"{target}"' in text[: len(text) - len(inputs)]:
                place = Path(folder) / f"{source.stem}.{dtype}"
                place.mkdir(exist_ok=True)
                subprocess.run([tools / "cuobjdump", "--extract-elf", "all", stamp.with_suffix(".fatbin")], cwd=place, capture_output=True)
                found = list(place.glob(f"*sm_{target}.cubin"))
                return found[0] if found else None
        return None


def resources(tools, cubin):
    """Kernel -> registers, stack, shared and local bytes, from the cubin's own records."""
    text = run(tools / "cuobjdump", "--dump-resource-usage", cubin)
    found = {}
    for name, usage in re.findall(r"Function (\w+):\s*\n\s*(REG:.*)", text):
        found[name] = {k: int(v) for k, v in re.findall(r"(\w+)(?:\[\d+\])?:(\d+)", usage)}
    return found


def instructions(text):
    """Kernel -> counts of what matters in its machine code, as nvdisasm -c prints it."""
    counts, name = {}, None
    for line in text.splitlines():
        section = re.match(r"\s*\.section\s+\.text\.(\w+)", line)
        if section:
            name = section.group(1)
            counts[name] = Counter()
        op = re.match(r"\s*(?:/\*[0-9a-f]+\*/)?\s*(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.[A-Za-z0-9_]+)*)", line)
        if not op or name is None:
            continue
        parts = op.group(1).split(".")
        width = next((int(p) for p in parts if p in ("64", "128", "256")), 32)
        width = next(({"8": 8, "16": 16}[p[1:]] for p in parts if p in ("U8", "S8", "U16", "S16")), width)
        c = counts[name]
        c["instructions"] += 1
        if parts[0] in ("LDG", "STG"):
            c[f"{parts[0]}.{width}"] += 1
        elif parts[0] in ("LDL", "STL"):
            c["local"] += 1
        elif parts[0] == "LDGSTS":
            c["cp.async"] += 1
        elif parts[0] in ("HMMA", "HGMMA", "LDSM", "BAR", "MUFU", "SHFL"):
            c[parts[0]] += 1
        elif parts[0] in ("ATOMG", "RED"):
            c["atomics"] += 1
    return counts


def declared_threads(root):
    """Kernel (without its dtype) -> most threads a block, from KERNEL(threads, name) and the macros that use it."""
    threads, shared_constants = {}, {}
    for source in sorted((root / "kernels").glob("*.cuh")) + sorted((root / "kernels").glob("*.cu")):
        text = source.read_text()
        constants = {k: v for k, v in re.findall(r"constexpr int (\w+) = ([^;]+);", text)}
        if source.suffix == ".cuh":
            shared_constants.update(constants)
        constants = {**shared_constants, **constants}
        for count, name in re.findall(r"\b(?:DENSE_)?KERNEL\(([^,()]+),(?:[^,()]+,)?\s*([\w#]+)\)", text):
            while known := re.search(r"\b(" + "|".join(constants) + r")\b", count) if constants else None:
                count = count.replace(known.group(), constants[known.group()])
            if re.fullmatch(r"[\d\s*+]+", count):
                for name in names_by_macro(text, name):
                    threads[name] = eval(count)  # digits and operators only
    return threads


def names_by_macro(text, name):
    """The names that a kernel gets whose own is a macro's first parameter: one a call; else its name."""
    macros = re.findall(rf"^#define (\w+)\({re.escape(name)}\b.*\\$", text, re.M)
    return [call for macro in macros for call in re.findall(rf"^{macro}\((\w+)", text, re.M)] or [name]


def threads_of(name, declared):
    op = re.sub(r"_(bf16|f32)$", "", name)
    if op in declared:
        return declared[op]
    for pattern, count in declared.items():
        if "##" in pattern and re.fullmatch(re.sub(r"##\w+", r"\\w+", pattern), op):
            return count
    return None


def occupancy(target, threads, registers, shared):
    """Share of a multiprocessor's threads that can be resident, by registers and static shared memory alone."""
    regs, smem, most_threads, most_blocks = MULTIPROCESSOR[target]
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // 256) * 256  # registers are given out 256 a warp
    blocks = min(most_blocks, most_threads // (warps * 32), regs // per_warp // warps)
    if shared:
        blocks = min(blocks, smem // (shared + 1024))  # 1 KB of each block is the system's
    return blocks * warps * 32 / most_threads


def report(tools, targets, only, built, root):
    sources = [s for s in sorted((root / "kernels").glob("*.cu")) if only in s.stem]
    declared, rows = declared_threads(root), []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [(s, d, t) for s in sources for d in ("bf16", "f32") for t in targets]

        def look(job):
            cubin = built.cubin(tools, *job, folder) or compile_cubin(tools, *job, folder)
            text = run(tools / "nvdisasm", "-c", cubin)
            return resources(tools, cubin), instructions(text), issue_slots.figures(text, root / "kernels")

        for (source, dtype, target), (used, code, slots) in zip(jobs, pool.map(look, jobs)):
            for name, r in sorted(used.items()):
                threads = threads_of(name, declared)
                shared = r.get("SHARED", 0)
                if target.startswith(("9", "10", "12")):
                    shared = max(0, shared - 1024)  # sm_90 and later count the system's own 1 KB
                rows.append({
                    "kernel": name, "file": source.name, "target": target, "threads": threads, "registers": r["REG"],
                    "shared": shared, "stack": r.get("STACK", 0), "local": code[name]["local"], "code": code[name],
                    "occupancy": occupancy(target, threads, r["REG"], shared) if threads else None,
                    "slots": slots[name][0], "unit": slots[name][1],
                })
    return rows


def wide(code, kind):
    """`128x4 16x2`: accesses of each width."""
    found = [(w, code[f"{kind}.{w}"]) for w in (256, 128, 64, 32, 16, 8) if code[f"{kind}.{w}"]]
    return " ".join(f"{w}x{n}" for w, n in found) or "-"


def table(rows):
    lines = [
        "| kernel | target | threads | registers | shared, B | occupancy | stack, B | local | loads, bits x count | stores | tensor cores | cp.async |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        c = r["code"]
        occupied = f"{r['occupancy']:.0%}" if r["occupancy"] is not None else "-"
        lines.append(
            f"| {r['kernel']} | {r['target']} | {r['threads'] or '-'} | {r['registers']} | {r['shared']} | {occupied} | {r['stack']} | {r['local']} "
            f"| {wide(c, 'LDG')} | {wide(c, 'STG')} | {c['HMMA'] + c['HGMMA'] or '-'} | {c['cp.async'] or '-'} |")
    return "\n".join(lines)


def problems(rows):
    found, used = [], set()
    for r in rows:
        if r["stack"] or r["local"]:
            reason = next((p for p in ALLOWED if re.fullmatch(p, r["kernel"])), None)
            used.add(reason)
            if reason is None:
                found.append(f"{r['kernel']} ({r['file']}, {r['target']}): {r['stack']} bytes of stack, {r['local']} local accesses")
        if r["code"]["atomics"]:
            found.append(f"{r['kernel']} ({r['file']}, {r['target']}): {r['code']['atomics']} atomic instructions")
        if r["threads"] is None:
            found.append(f"{r['kernel']} ({r['file']}): no KERNEL(threads, ...) found for it")
    found += [f"ALLOWED names `{p}`, which uses no local memory any more" for p in ALLOWED if p not in used]
    return found


def write_markdown(path, text, begin=BEGIN, end=END):
    page = path.read_text() if path.exists() else f"# Kernels\n\n{begin}\n{end}\n"
    if begin not in page or end not in page:
        sys.exit(f"{path}: has no `{begin}` and `{end}` around the table")
    head, tail = page.split(begin)[0], page.split(end)[1]
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f"{head}{begin}\n{text}\n{end}{tail}")
    temporary.replace(path)


def page_text(tools, rows):
    """What stands between the markers of the page."""
    version = re.search(r"release ([\d.]+), V([\d.]+)", run(tools / "nvcc", "--version")).group(2)
    shown = [r for r in rows if r["target"] in PAGE_TARGETS]
    return f"nvcc {version}, `scripts/kernel_report.py --markdown docs/kernels.md`.\n\n{table(shown)}"


def stale(path, text, rows):
    """Why the page's tables are not these; another compiler's are not compared."""
    page = path.read_text()
    shown = page.split(BEGIN)[-1].split(END)[0].strip()
    if shown.split(",")[0] != text.split(",")[0]:
        return []
    grown = issue_slots.grown([r for r in rows if r["target"] in PAGE_TARGETS], page)
    return grown + [f"{path}: its table is not of these kernels; run: scripts/kernel_report.py --markdown {path}"] * (shown != text)


def write_slots(path, rows, baseline, accept):
    """The page's table of issue slots; what grew is refused, unless accepted."""
    rows, page = [r for r in rows if r["target"] in PAGE_TARGETS], path.read_text()
    worse = [] if baseline or accept else [g for g in issue_slots.grown(rows, page) if "has no issue slots" not in g]
    if worse:
        sys.exit("\n".join([*worse, "not written: make it cheaper, or say in the commit why not and give --accept-growth"]))
    write_markdown(path, issue_slots.table(rows, page, PAGE_TARGETS, baseline), issue_slots.BEGIN, issue_slots.END)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", type=Path, default=os.environ.get("CUDA_HOME"), help="toolkit with bin/nvcc, bin/cuobjdump, bin/nvdisasm")
    parser.add_argument("--targets", default="80,90a,100,120")
    parser.add_argument("--only", default="", help="files whose name contains this")
    parser.add_argument("--markdown", type=Path, help="put the table for 80 and 90a between the markers of this page")
    parser.add_argument("--check", type=Path, help="the table between the markers of this page must be this one")
    parser.add_argument("--built", type=Path, help="take what cargo compiled under this folder, where it is current")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout whose kernels are meant")
    parser.add_argument("--baseline", action="store_true", help=f"with --markdown: only the columns of {issue_slots.BASELINE}")
    parser.add_argument("--accept-growth", action="store_true", help="with --markdown: write issue slots that grew by over 5 %%")
    parser.add_argument("--quiet", action="store_true", help="print problems only")
    args = parser.parse_args()
    if args.cuda is None and os.environ.get("FUSEDPO_NVCC"):
        args.cuda = Path(os.environ["FUSEDPO_NVCC"]).resolve().parent.parent
    if args.cuda is None:
        sys.exit("--cuda DIR: where is the toolkit? scripts/install_nvcc.sh gets one")
    tools = Path(args.cuda) / "bin"
    rows = report(tools, args.targets.split(","), args.only, Built(args.built, args.root), args.root)
    if not args.quiet:
        print(table(rows), end="\n\n")
    if args.markdown:
        write_slots(args.markdown, rows, args.baseline, args.accept_growth)
        if not args.baseline:
            write_markdown(args.markdown, page_text(tools, rows))
    bad = problems(rows) + (stale(args.check, page_text(tools, rows), rows) if args.check else [])
    kernels = {r["kernel"] for r in rows}
    print(f"{len(kernels)} kernels, {args.targets}: {len(bad)} problems", *bad, sep="\n")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
