"""scripts/gpu: a bundle of stand-ins through check.sh: dry run, no GPU, a rehearsal with verdicts; and what it reads off outputs."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts/gpu"))

import stages  # noqa: E402

STAND_IN = """#!{python}
import json, os, sys
from pathlib import Path
arg = lambda name: sys.argv[sys.argv.index(name) + 1]
if "SAY_DEFECT" in os.environ:
    Path(os.environ["STANDIN_LOG"]).write_text("stand-in: DEFECT: planted" + chr(10))
if "--test-threads=4" in sys.argv:
    print("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s")
elif "--json" in sys.argv:
    case = dict(shape="26m", mix="hh", seconds=0.5, pairs_per_second=8.0, tokens_per_second=900.0, mfu=0.25, used_bytes=2e9,
                family_seconds=dict(products=0.3, attention=0.1))
    Path(arg("--json")).write_text(json.dumps(case) + chr(10))
elif "--bench" in sys.argv:
    print("no GPU is timed here: none")
    print("swiglu_fwd 1x2: 1.5000 GB/s, 50.0 % of the 3.0000 measured, 2.00 us")
elif sys.argv[1] == "pack":
    Path(arg("--out")).mkdir()
elif sys.argv[1] == "score":
    Path(arg("--out")).write_text("".join(json.dumps({{"logp": -1.0}}) + chr(10) for _ in range(3)))
elif int(os.environ.get("WORLD_SIZE", 1)) > 1 and "REFUSES" in os.environ:
    os.write(1, ("fusedpo: " + os.environ["REFUSES"] + chr(10)).encode())  # at once, as the program does: ranks share the file
    sys.exit(1)
elif os.environ.get("RANK", "0") != "0":
    assert os.environ["FUSEDPO_COMM_ADDRESS"].startswith("127.0.0.1:") and os.environ["LOCAL_RANK"] == os.environ["RANK"]
elif sys.argv[1] == "dpo":
    assert "LOCAL_WORLD_SIZE" not in os.environ or os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]
    out = Path(arg("--out"))
    out.mkdir()
    (out / "model.safetensors").write_text({weights})
    loss = [0.6931471805599453, 0.5]
    rows = [{{"loss": x, "rewards/margins": {margin} * (i == 0), "step_seconds": hash(out)}} for i, x in enumerate(loss)]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in rows))
"""


def make_bundle(folder, margin=0, weights="'same'"):
    """What bundle.sh would make, with one program in the place of all."""
    binary = STAND_IN.format(python=sys.executable, margin=margin, weights=weights)
    messages = folder / "messages"
    built = []
    for kind, name in (("bin", "fusedpo"), ("test", "kernels"), ("test", "kernels_attention"), ("bench", "kernels"),
                       ("bench", "step")):
        path = folder / f"{kind}-{name}"
        path.write_text(binary)
        built.append({"reason": "compiler-artifact", "target": {"kind": [kind], "name": name}, "executable": str(path)})
    messages.write_text("".join(json.dumps(m) + "\n" for m in built))
    bundle = folder / "bundle"
    # A stand-in is no program that strip knows.
    tools = folder / "tools"
    tools.mkdir()
    (tools / "strip").write_text("#!/bin/sh\n")
    (tools / "strip").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    environment.pop("FUSEDPO_TEST_DATA", None)
    command = [sys.executable, "-B", str(ROOT / "scripts/gpu/fill_bundle.py"), "--messages", str(messages), "--out", str(bundle), "--archs",
               "90a", "--tests", "kernels", "kernels_attention", "--benches", "kernels", "step"]
    subprocess.run(command, check=True, env=environment)
    return bundle


class CheckTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def check(self, bundle, *arguments):
        """check.sh on a machine without a GPU, whatever machine this is."""
        tools = self.folder / "no-gpu"
        tools.mkdir(exist_ok=True)
        (tools / "nvidia-smi").write_text("#!/bin/sh\necho no devices were found\nexit 6\n")
        (tools / "nvidia-smi").chmod(0o755)
        environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run([str(bundle / "check.sh"), *arguments], capture_output=True, text=True, env=environment)

    def test_dry_run_prints_every_command(self):
        bundle = make_bundle(self.folder)
        for name in ("LICENSE", "THIRD-PARTY.md"):
            self.assertEqual((bundle / name).read_bytes(), (ROOT / name).read_bytes())
        result = self.check(bundle, "--dry-run")
        self.assertEqual(result.returncode, 0, result.stderr)
        for stage in stages.STAGES:
            self.assertIn(f"{stage.name} (at most {stage.limit} s)", result.stdout)
        for part in ("FUSEDPO_REQUIRE_GPU=only", "--device cuda", "compute-sanitizer --tool racecheck", "ncu --clock-control none"):
            self.assertIn(part, result.stdout)
        self.assertFalse((bundle / "gpu-results").exists())

    def test_dry_run_misses_a_file(self):
        bundle = make_bundle(self.folder)
        (bundle / "programs/tests/kernels.xz").unlink()
        result = self.check(bundle, "--dry-run")
        self.assertEqual(result.returncode, 1)
        self.assertIn("programs/tests/kernels.xz: missing", result.stderr)

    def test_no_gpu_is_a_failure(self):
        bundle = make_bundle(self.folder)
        result = self.check(bundle, "--out", str(self.folder / "out"), "kernels")
        self.assertEqual(result.returncode, 1)
        self.assertEqual(result.stderr.strip(), "check: no GPU: nvidia-smi: no devices were found")

    def test_unknown_stage(self):
        result = self.check(make_bundle(self.folder), "speed")
        self.assertEqual(result.returncode, 2)
        self.assertIn("no stage `speed`", result.stderr)

    def rehearse(self, *stage_names, **faults):
        out = self.folder / "out"
        result = self.check(make_bundle(self.folder, **faults), "--rehearse", "--out", str(out), *stage_names)
        return result, json.loads((out / "check.json").read_text()), (out / "check.md").read_text()

    def test_rehearsal(self):
        result, report, page = self.rehearse("kernels", "step0", "determinism", "sanitizer", "kernel-bench", "step-bench")
        self.assertEqual([s["status"] for s in report["stages"]], ["passed"] * 5 + ["skipped"], page)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("| kernels_attention | 3 | 0.01 |", page)
        self.assertIn("predicted (not measured)", page)
        self.assertIn("| swiglu_fwd | 1x2 | 1.5000 GB/s | 50.0 % | 3.0000 | 2.00 | 85 % (a guess) |", page)
        self.assertIn("| 26m | hh | 500.0 | 8.0 | 900 | 25.0 % | - | 2.0 | products 75 %, attention 25 % |", page)
        self.assertIn("this says nothing about a GPU", page)

    def test_what_passed_is_not_run_again_and_what_did_not_is(self):
        out, bundle = self.folder / "out", make_bundle(self.folder)
        run = lambda *more: self.check(bundle, "--rehearse", "--out", str(out), *more)
        self.assertEqual(run("rows", "step0").returncode, 0)
        report = json.loads((out / "check.json").read_text())
        report["stages"][1]["status"] = "failed"
        report["stages"][0]["seconds"] = 1234
        (out / "check.json").write_text(json.dumps(report))
        log = (out / "check.log").read_text()
        names = ["rows", "step0", "kernels"]
        self.assertIn("rows: passed before", run().stdout)
        after = {s["name"]: s for s in json.loads((out / "check.json").read_text())["stages"]}
        self.assertEqual([after[name]["status"] for name in names], ["passed"] * 3)
        self.assertEqual(after["rows"]["seconds"], 1234, "kept as it was")
        self.assertTrue((out / "check.log").read_text().startswith(log))
        run("rows")
        stages_now = json.loads((out / "check.json").read_text())["stages"]
        self.assertNotEqual(stages_now[0]["seconds"], 1234, "named: run again")
        self.assertIn("kernels", [s["name"] for s in stages_now], "and the others stay in the report")
        # Another bundle's results are no results.
        report = json.loads((out / "check.json").read_text())
        report["bundle"]["commit"] = "0" * 40
        (out / "check.json").write_text(json.dumps(report))
        self.assertNotIn("passed before", run("--seconds", "1").stdout)

    def test_rehearsal_on_libraries_that_are_none(self):
        result = self.check(make_bundle(self.folder), "--rehearse", str(self.folder), "step0")
        self.assertEqual(result.returncode, 2)
        self.assertIn("has no libcuda.so.1", result.stderr)

    def test_a_defect_that_the_stand_ins_saw_fails_the_stage(self):
        libraries = self.folder / "libraries"
        libraries.mkdir()
        (libraries / "libcuda.so.1").write_text("")
        out = self.folder / "out"
        bundle = make_bundle(self.folder)
        run = lambda: self.check(bundle, "--rehearse", str(libraries), "--out", str(out), "step0")
        self.assertEqual(run().returncode, 0)
        page = (out / "check.md").read_text()
        self.assertIn("no GPU: libraries that look like NVIDIA's", page)
        os.environ["SAY_DEFECT"] = "1"
        self.addCleanup(os.environ.pop, "SAY_DEFECT")
        self.assertEqual(run().returncode, 1)
        self.assertIn("DEFECT: planted", (out / "check.md").read_text())

    def test_a_margin_at_step_0_fails(self):
        result, report, _ = self.rehearse("step0", margin=1e-9)
        self.assertEqual((result.returncode, report["stages"][0]["status"]), (1, "failed"))
        self.assertIn("margin 1e-09 at step 0", report["stages"][0]["why"])

    def test_several_ranks(self):
        result, report, page = self.rehearse("ranks")
        self.assertEqual((result.returncode, report["stages"][0]["status"]), (0, "passed"), page)
        rows = report["stages"][0]["rows"]
        self.assertEqual([row[:3] for row in rows], [[m, d, n] for m, d in (("small", "f32"), ("135m", "bf16")) for n in (1, 2)])
        self.assertEqual({row[-1] for row in rows}, {"-", "2 on the CPU"})

    def test_several_ranks_with_other_weights_fail(self):
        result, report, _ = self.rehearse("ranks", weights="os.environ.get('WORLD_SIZE', '1')")
        self.assertEqual((result.returncode, report["stages"][0]["why"]), (1, "small: weights of 2 ranks are not those of one"))
        self.assertEqual(len(report["stages"][0]["rows"]), 1, "what there was is shown")

    def refused(self, why, gpus):
        """The ranks stage on stand-ins of so many GPUs, where several processes end with `why`."""
        libraries, out = self.folder / "libraries", self.folder / f"out-{gpus}"
        libraries.mkdir(exist_ok=True)
        (libraries / "libcuda.so.1").write_text("")
        environment = {"REFUSES": why, "STANDIN_GPUS": str(gpus)}
        os.environ.update(environment)
        self.addCleanup(lambda: [os.environ.pop(name, None) for name in environment])
        bundle = self.folder / "bundle"
        bundle = bundle if bundle.exists() else make_bundle(self.folder)
        result = self.check(bundle, "--rehearse", str(libraries), "--out", str(out), "ranks")
        return result.returncode, json.loads((out / "check.json").read_text())["stages"][0]

    def test_nccl_that_refuses_one_gpu_is_named_and_no_failure(self):
        duplicate = "cannot join the GPUs of the other ranks: NCCL: invalid usage (5): Duplicate GPU detected"
        code, stage = self.refused(duplicate, 1)
        self.assertEqual((code, stage["status"], stage["why"]), (0, "skipped", duplicate))
        self.assertEqual([row[3] == "-" for row in stage["rows"]], [False, True] * 2, "one rank's runs are shown")
        # With a GPU each there is nothing that it may refuse.
        code, stage = self.refused(duplicate, 2)
        self.assertEqual((code, stage["status"]), (1, "failed"))
        self.assertIn("small on 2 ranks: cannot join the GPUs", stage["why"])
        missing = "rank 0 has no NCCL by which GPUs reach each other (libnccl.so.2: not found): install NCCL"
        self.assertEqual(self.refused(missing, 2)[1]["status"], "skipped")
        # What fails once they have joined is no refusal.
        code, stage = self.refused("cannot add up gradients: NCCL: unhandled cuda error (1)", 1)
        self.assertEqual((code, stage["status"]), (1, "failed"))
        self.assertIn("small on 2 ranks: ", stage["why"])
        code, stage = self.refused("the sum is not finite", 1)
        self.assertEqual((code, stage["status"]), (1, "failed"))
        self.assertIn("small on 2 ranks: ", stage["why"])

    def test_other_weights_fail(self):
        result, report, _ = self.rehearse("determinism", weights="str(out)")
        self.assertEqual(result.returncode, 1)
        self.assertIn("weights of the two runs differ", report["stages"][0]["why"])


class RunningTest(unittest.TestCase):
    def run_stage(self, steps, judge, limit=20):
        sys.path.insert(0, str(ROOT / "scripts/gpu"))
        import check
        with tempfile.TemporaryDirectory() as folder:
            place = stages.Place(Path("/b"), Path("/b/programs"), Path(folder), sys.executable, {})
            stage = stages.Stage("s", limit, lambda _: steps, judge)
            result = check.run_stage(stage, place, Path(folder), check.time.monotonic() + 100, dict(os.environ))
            return result, (Path(folder) / "check.log").read_text()

    def python(self, name, code, **more):
        return stages.Step(name, [sys.executable, "-c", code], **more)

    def test_what_stands_alone_runs_though_another_fails(self):
        bad = "print('test one::two ... FAILED'); print(\"thread 'one' panicked at x.rs:3:\"); print('no bits'); exit(101)"
        steps = [self.python("bad", bad, alone=True), self.python("good", "print('fine')", alone=True)]
        result, log = self.run_stage(steps, lambda _, outputs: (["name"], [[name] for name in outputs]))
        self.assertEqual((result["status"], result["rows"]), ("failed", [["good"]]))
        self.assertEqual(result["why"], "bad: ended with 101: 1 tests failed: one::two: thread 'one' panicked at x.rs:3: no bits")
        self.assertIn("==== s\n", log)
        self.assertIn("fine\n", log)
        steps = [self.python("bad", "exit(1)"), self.python("good", "print('fine')")]
        result, log = self.run_stage(steps, lambda _, outputs: ([], [[outputs["good"]]]))
        self.assertEqual((result["why"], "fine\n" in log), ("bad: ended with 1: it printed nothing", False))

    def test_what_hangs_leaves_time_for_the_rest(self):
        steps = [self.python("stuck", "import time; time.sleep(60)", alone=True), self.python("good", "print('fine')", alone=True)]
        result, _ = self.run_stage(steps, lambda _, outputs: ([], [[name] for name in outputs]), limit=6)
        self.assertEqual((result["why"], result["rows"]), ("stuck: not done after 3 s", [["good"]]))

    def test_what_was_printed_in_time_is_judged(self):
        code = "import time; print('swiglu_fwd 1x2: 1.5 GB/s, 50.0 % of the 3.0 measured, 2.00 us', flush=True); time.sleep(60)"
        result, _ = self.run_stage([self.python("kernels", code, partial=True)], stages.judge_kernel_bench, limit=3)
        self.assertEqual((result["status"], result["why"]), ("failed", "kernels: not done after 3 s"))
        self.assertEqual(result["rows"], [["swiglu_fwd", "1x2", "1.5 GB/s", "50.0 %", "3.0", "2.00", "85 % (a guess)"]])

    def test_peers_that_ran_are_shown_beside_one_that_failed(self):
        run = {"config": "fusedpo-bf16", "step_s": 0.5, "pairs": 8, "steps_s": 2.0, "reference_s": 1.0, "gpu_gb": 3.0,
               "losses": [0.69, 0.6], "note": "-"}
        report = {"results": [run], "failed": {"torch-compile-bf16": "no compiler"}}
        with tempfile.TemporaryDirectory() as folder:
            place = stages.Place(Path("/b"), Path("/b/programs"), Path(folder), sys.executable, {})
            (Path(folder) / "peers.json").write_text(json.dumps(report))
            with self.assertRaises(stages.Bad) as caught:
                stages.judge_peers(place, {})
        self.assertEqual(str(caught.exception), "torch-compile-bf16: no compiler")
        self.assertEqual(caught.exception.table[1][0][:3], ["fusedpo-bf16", "0.500", "4.00"])


class ReadingTest(unittest.TestCase):
    def place(self):
        return stages.Place(Path("/b"), Path("/b/programs"), Path("/w"), sys.executable, {"tests": [], "benches": [], "data": {"model": "llama"}})

    def test_limits_fit(self):
        self.assertLessEqual(sum(stage.limit for stage in stages.STAGES), 590)

    def test_sanitizer(self):
        good = {"memcheck kernels": "========= ERROR SUMMARY: 0 errors", "racecheck kernels":
                "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"}
        self.assertEqual(len(stages.judge_sanitizer(self.place(), good)[1]), 2)
        for text in ("========= ERROR SUMMARY: 2 errors", ""):
            with self.assertRaises(stages.Bad):
                stages.judge_sanitizer(self.place(), {"memcheck kernels": text})

    def test_tests_that_ran_without_a_gpu_fail(self):
        text = "skipped: no GPU for the cuda column: none\ntest result: ok. 1 passed; 0 failed; 0 ignored; finished in 0.1s"
        with self.assertRaises(stages.Bad):
            stages.judge_kernels(self.place(), {"kernels": text})

    def test_profile(self):
        names = ",".join(f'"{m}"' for m in stages.METRICS)
        lines = ["==PROF== Connected", f'"ID","Kernel Name",{names}', '"","","ns","%","%"',
                 '"0","attention_fwd_hd64_bf16","3,000","10","50"', '"1","attention_fwd_hd32_bf16","1000","10","50"',
                 '"2","sm90_xmma_gemm(params)","6000","40","90"']
        header, rows = stages.judge_profile(self.place(), {"profile": "\n".join(lines)})
        self.assertEqual(rows, [["products (cuBLASLt)", 1, "6.0", "60.0 %", "40 %", "90 %"],
                                ["attention_fwd", 2, "4.0", "40.0 %", "10 %", "50 %"]])

    def test_families(self):
        for kernel, name in {"rmsnorm_bwd_2_bf16": "rmsnorm_bwd", "attention_bwd_dkv_plain_f32": "attention_bwd_dkv", "adamw_bf16": "adamw",
                             "cutlass_80_tensorop_bf16_s16816gemm": "products (cuBLASLt)"}.items():
            self.assertEqual(stages.family(kernel), name)


class RandomModelTest(unittest.TestCase):
    @unittest.skipIf(importlib.util.find_spec("numpy") is None, "numpy is not installed")
    def test_weights(self):
        sys.path.insert(0, str(ROOT / "scripts"))
        import numpy
        import random_model
        config = {**random_model.SHAPES["qwen2.5-0.5b"], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
                  "num_attention_heads": 4, "vocab_size": 128}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            count = random_model.write_weights(path, config, 0)
            data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        self.assertEqual(max(info["data_offsets"][1] for info in header.values()), 2 * count)
        self.assertEqual(header["model.layers.0.self_attn.k_proj.bias"]["shape"], [32])
        self.assertEqual(random_model.bf16(numpy, numpy.float32([1.0, 1.00390625, 1.01171875])).tolist(), [0x3F80, 0x3F80, 0x3F82])
        shape = random_model.SHAPES["smollm2-135m"]
        self.assertEqual(sum(a * (b[0] if b else 1) for _, (a, *b) in random_model.tensors(shape)), 134_515_008)


if __name__ == "__main__":
    unittest.main()
