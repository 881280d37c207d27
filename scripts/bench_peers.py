#!/usr/bin/env python3
"""One peer configuration of bench_trl.py, in a process of its own: TRL's DPOTrainer, or a plain torch loop.

Usage:   python scripts/bench_peers.py NAME-PRECISION SPEC.json     (bench_trl.py calls it)
         NAME is trl-default, trl-best, torch-shared or torch-compile (GPU only); PRECISION is f32 or bf16.
Input:   SPEC.json: model, data (JSONL of {"prompt", "responses", "pairs"}), batch_size, micro_batch, max_length,
         learning_rate, beta, device, threads, work.
Output:  one line "RESULT {json}" on stdout: steps (seconds each), losses, reference_s, on a GPU gpu_gb (torch's own peak), and
         what was run.
Needs:   torch, transformers; for trl-* also trl and datasets.

trl-default   DPOTrainer as it comes: reference model in memory and in every step, gradient checkpointing
trl-best      DPOTrainer with the reference precomputed and checkpointing off; on a GPU also FlashAttention and rows without
              padding where flash_attn is installed, else SDPA, and fused AdamW
torch-shared  the strongest plain loop we know: a step packed into rows without padding, each prompt once, its responses
              beside it under a block mask; head on completions only; reference precomputed; fused AdamW
torch-compile the same loop on rows padded to the step's longest, causal attention without a mask, model under torch.compile;
              compiling is not timed
"""

import importlib.util
import json
import os
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def read_groups(spec):
    with open(spec["data"], encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def run_trl(name, precision, spec):
    import datasets
    import torch
    import transformers
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(spec["threads"])
    datasets.disable_progress_bars()
    datasets.disable_caching()  # else TRL finds an earlier run's reference pass and skips its own
    transformers.utils.logging.disable_progress_bar()
    pairs = [{"prompt": g["prompt"], "chosen": g["responses"][c], "rejected": g["responses"][r]}
             for g in read_groups(spec) for c, r in g["pairs"]]
    best = name == "trl-best"
    tuned = {"gradient_checkpointing": False, "precompute_ref_log_probs": True} if best else {}
    attention = "default"
    if best and spec["device"] == "cuda":
        flash = precision == "bf16" and importlib.util.find_spec("flash_attn") is not None
        attention = "flash_attention_2" if flash else "sdpa"
        tuned |= {"model_init_kwargs": {"attn_implementation": attention}, "optim": "adamw_torch_fused"}
        if flash and "padding_free" in DPOConfig.__dataclass_fields__:
            tuned["padding_free"] = True
    micro = min(spec["micro_batch"], spec["batch_size"])
    args = DPOConfig(output_dir=os.path.join(spec["work"], "trl"), use_cpu=spec["device"] == "cpu", bf16=precision == "bf16",
                     max_length=spec["max_length"], beta=spec["beta"], learning_rate=spec["learning_rate"],
                     lr_scheduler_type="constant", per_device_train_batch_size=micro,
                     gradient_accumulation_steps=spec["batch_size"] // micro, num_train_epochs=1, logging_steps=1,
                     report_to="none", save_strategy="no", train_sampling_strategy="sequential", disable_tqdm=True, **tuned)
    steps, reference = [], [0.0]

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            synchronise(spec)
            steps.append(time.perf_counter() - self.start)

    class Trainer(DPOTrainer):  # DPOTrainer with a clock around its reference pass
        def _precompute_ref_logps(self, *positional, **named):
            start = time.perf_counter()
            result = super()._precompute_ref_logps(*positional, **named)
            reference[0] += time.perf_counter() - start
            return result

    trainer = Trainer(spec["model"], args=args, train_dataset=datasets.Dataset.from_list(pairs),
                      processing_class=AutoTokenizer.from_pretrained(spec["model"]), callbacks=[Clock()])
    kept = len(trainer.train_dataset)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tokens = sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in trainer.train_dataset)
    return {"steps": steps, "losses": losses, "reference_s": reference[0], "pairs": kept, "pair_tokens": tokens,
            "note": f"micro-batch {micro}, weights {trainer.model.dtype}" + ("" if attention == "default" else f", {attention}")}


def synchronise(spec):
    if spec["device"] == "cuda":
        import torch
        torch.cuda.synchronize()


def tokenise(groups, tokenizer, max_length):
    """[prompt ids, response ids..., pairs] of each group, cut like TRL: the start is kept."""
    result = []
    for group in groups:
        prompt = tokenizer(group["prompt"])["input_ids"]
        responses = [tokenizer(group["prompt"] + text + tokenizer.eos_token)["input_ids"][len(prompt):max_length]
                     for text in group["responses"]]
        if len(prompt) < max_length:
            result.append((prompt, [ids[: max_length - len(prompt)] for ids in responses], group["pairs"]))
    return result


def steps_of(groups, batch_size):
    """Whole groups until a step holds at least batch_size pairs."""
    steps, step, count = [], [], 0
    for group in groups:
        step.append(group)
        count += len(group[2])
        if count >= batch_size:
            steps.append(step)
            step, count = [], 0
    return steps + [step] if step else steps


def pack(step, device):
    """One row [prompt | response | response ... | prompt | ...]: ids, positions, mask, predictors, targets, owners, pairs.

    A response's positions restart at its prompt's length; it sees its prompt and itself, so each prompt is computed once.
    """
    import torch
    total = sum(len(prompt) + sum(map(len, responses)) for prompt, responses, _ in step)
    mask = torch.zeros(total, total, dtype=torch.bool)
    ids, positions, predictors, targets, owners, pairs = [], [], [], [], [], []
    response_count = 0
    for prompt, responses, group_pairs in step:
        base = len(ids)
        length = len(prompt)
        mask[base : base + length, base : base + length] = torch.ones(length, length, dtype=torch.bool).tril()
        ids += prompt
        positions += range(length)
        pairs += [(response_count + c, response_count + r) for c, r in group_pairs]
        for response in responses:
            at, n = len(ids), len(response)
            mask[at : at + n, base : base + length] = True
            mask[at : at + n, at : at + n] = torch.ones(n, n, dtype=torch.bool).tril()
            ids += response
            positions += range(length, length + n)
            predictors += [base + length - 1, *range(at, at + n - 1)]
            targets += response
            owners += [response_count] * n
            response_count += 1
    tensors = [torch.tensor(x, device=device) for x in (ids, positions, predictors, targets, owners, pairs)]
    ids, positions, predictors, targets, owners, pairs = tensors
    return ids[None], positions[None], mask[None, None].to(device), predictors, targets, owners, pairs, response_count


def pad(step, device):
    """A row for each response of each pair, padded at its end: ids, predictors, targets, owners, pairs, rows. Without a mask,
    as causal attention never looks at what comes after."""
    import torch
    rows = [(prompt, responses[i]) for prompt, responses, group_pairs in step for pair in group_pairs for i in pair]
    width = max(len(prompt) + len(response) for prompt, response in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    predictors, targets, owners = [], [], []
    for at, (prompt, response) in enumerate(rows):
        ids[at, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        first = at * width + len(prompt) - 1
        predictors += range(first, first + len(response))
        targets += response
        owners += [at] * len(response)
    pairs = [(at, at + 1) for at in range(0, len(rows), 2)]
    ids, predictors, targets, owners, pairs = (torch.as_tensor(x, device=device) for x in (ids, predictors, targets, owners, pairs))
    return ids, predictors, targets, owners, pairs, len(rows)


def token_sums(hidden, weight, predictors, targets, owners, count):
    """Log-prob of each response: the head on the rows that predict one of its tokens."""
    import torch
    import torch.nn.functional as F
    token = -F.cross_entropy(F.linear(hidden[predictors], weight).float(), targets, reduction="none")
    return torch.zeros(count, device=token.device).index_add(0, owners, token)


def load_torch(spec):
    """(model in float32, tokenised groups); autocast makes it bf16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    torch.set_num_threads(spec["threads"])
    if spec["device"] == "cpu":
        torch.set_float32_matmul_precision("medium")  # on CPU: f32 GEMMs by oneDNN, about twice MKL's speed on AMD
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32).to(spec["device"]).train()
    return model, tokenise(read_groups(spec), tokenizer, spec["max_length"])


def train(spec, model, groups, batches, logps, note):
    """Reference pass, then a step a batch. `logps(batch)` gives the responses' log-probs, `batch[-2]` has the pairs."""
    import torch
    import torch.nn.functional as F
    start = time.perf_counter()
    with torch.no_grad():
        references = [logps(batch) for batch in batches]
    synchronise(spec)
    reference_s = time.perf_counter() - start
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec["learning_rate"], weight_decay=0.0, fused=True)
    steps, losses = [], []
    for batch, reference in zip(batches, references):
        start = time.perf_counter()
        ratio, pairs = logps(batch) - reference, batch[-2]
        loss = -F.logsigmoid(spec["beta"] * (ratio[pairs[:, 0]] - ratio[pairs[:, 1]])).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        synchronise(spec)
        steps.append(time.perf_counter() - start)
    tokens = sum(2 * len(p) + len(rs[c]) + len(rs[r]) for p, rs, pairs in groups for c, r in pairs)
    return {"steps": steps, "losses": losses, "reference_s": reference_s, "pairs": sum(len(g[2]) for g in groups),
            "pair_tokens": tokens, "note": note}


def run_shared(precision, spec):
    import torch
    model, groups = load_torch(spec)
    batches = [pack(step, spec["device"]) for step in steps_of(groups, spec["batch_size"])]

    def logps(batch):
        ids, positions, mask, predictors, targets, owners, _, count = batch
        with torch.autocast(spec["device"], torch.bfloat16, enabled=precision == "bf16"):
            hidden = model.model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False).last_hidden_state[0]
            return token_sums(hidden, model.get_output_embeddings().weight, predictors, targets, owners, count)

    return train(spec, model, groups, batches, logps, "prompt shared, no padding")


def run_compiled(precision, spec):
    import torch
    if spec["device"] != "cuda":
        sys.exit("bench_peers: torch-compile is for --device cuda")
    model, groups = load_torch(spec)
    batches = [pad(step, spec["device"]) for step in steps_of(groups, spec["batch_size"])]
    compiled = torch.compile(model.model, dynamic=True)

    def logps(batch):
        ids, predictors, targets, owners, _, count = batch
        with torch.autocast(spec["device"], torch.bfloat16, enabled=precision == "bf16"):
            hidden = compiled(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
            return token_sums(hidden, model.get_output_embeddings().weight, predictors, targets, owners, count)

    start = time.perf_counter()
    for batch in batches[:2]:  # two shapes, with and without a gradient: all that there is to compile
        with torch.no_grad():
            logps(batch)
        logps(batch).sum().backward()
    model.zero_grad()
    synchronise(spec)
    return train(spec, model, groups, batches, logps, f"padded, compiled in {time.perf_counter() - start:.0f} s")


def run(name, precision, spec):
    runs = {"torch-shared": run_shared, "torch-compile": run_compiled}
    result = runs[name](precision, spec) if name in runs else run_trl(name, precision, spec)
    if spec["device"] == "cuda":
        import torch
        result["gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return result


def main():
    if len(sys.argv) != 3:
        sys.exit("bench_peers: usage: bench_peers.py NAME-PRECISION SPEC.json")
    name, _, precision = sys.argv[1].rpartition("-")
    with open(sys.argv[2], encoding="utf-8") as file:
        spec = json.load(file)
    try:
        result = run(name, precision, spec)
    except ImportError as error:
        sys.exit(f"bench_peers: {error}; install: python -m pip install torch transformers trl")
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
