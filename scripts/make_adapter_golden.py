#!/usr/bin/env python3
"""Makes tests/golden/adapters/ and tests/golden/adapters.json: adapters that PEFT wrote, and what PEFT and torch compute with
them in float64: log-probs of the rows of golden.json, DPO's loss against the base, and the gradients of every A and B. Then
tests/golden/dropout.json: the same of some of them with PEFT's dropout, whose masks are drawn as fusedpo draws them.

Needs peft, torch and transformers. Run from the project's root: python scripts/make_adapter_golden.py
"""
import json
import math
import shutil
from pathlib import Path

import numpy
import peft
import torch
import transformers

GOLDEN = Path("tests/golden")
MODELS = ["llama", "llama3-tied", "qwen2", "qwen3"]
ADAPTERS = {
    "all": dict(r=3, lora_alpha=6, target_modules="all-linear"),
    "some-rslora": dict(r=4, lora_alpha=7, use_rslora=True, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"]),
}
BETA = 0.1
# Share that is dropped, seed and step; of adapters whose dropout is looked at.
DROPOUT = dict(p=0.3, seed=42, step=3)
DROPPING = ["llama-all", "llama3-tied-all", "qwen2-some-rslora", "qwen3-all"]
# Rows of golden.json that tests put into the first of two micro-batches, in which groups and responses are counted from 0.
FIRST = 4
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def logps(model, prompt, response):
    """Log-prob of every token that something predicts."""
    ids = torch.tensor([prompt + response])
    table = model(input_ids=ids).logits.log_softmax(-1)[0]
    first = max(len(prompt), 1)
    return torch.stack([table[i - 1, ids[0, i]] for i in range(first, ids.shape[1])])


def fill(model):
    """Values that are nobody's default: small, and every element another."""
    with torch.no_grad():
        for t, (name, p) in enumerate(sorted((n, p) for n, p in model.named_parameters() if "lora_" in n)):
            i = torch.arange(p.numel(), dtype=torch.float64)
            p.copy_((0.15 * torch.sin(0.61 * i + t)).float().double().reshape(p.shape))


def splitmix(x):
    mask = (1 << 64) - 1
    x = x + 0x9E3779B97F4A7C15 & mask
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return x ^ x >> 31


def lowbias(x):
    x = numpy.asarray(x, dtype=numpy.uint32)
    x = (x ^ x >> 16) * numpy.uint32(0x7FEB352D)
    x = (x ^ x >> 15) * numpy.uint32(0x846CA68B)
    return x ^ x >> 16


def rows_of(group, response, prompt, length):
    """A number for each of `length` tokens, of which the first `prompt` are the prompt's."""
    draws = splitmix(splitmix(DROPOUT["seed"] ^ int.from_bytes(b"dropout\0", "little")) ^ DROPOUT["step"])
    place = splitmix(draws ^ group)
    of = [splitmix(place), splitmix(place ^ response + 1)]
    return [splitmix(of[at >= prompt] ^ at) for at in range(length)]


class Fixed(torch.nn.Module):
    """Dropout of one module of one layer, of the rows that are set."""

    rows = None

    def __init__(self, site):
        super().__init__()
        self.site = numpy.uint32(site * 0x9E3779B9 & 0xFFFFFFFF)

    def forward(self, x):
        below = round(DROPOUT["p"] * 2**32)
        low = lowbias(numpy.array([row & 0xFFFFFFFF for row in Fixed.rows], dtype=numpy.uint32) + self.site)
        high = lowbias(numpy.array([row >> 32 for row in Fixed.rows], dtype=numpy.uint32) ^ low)
        columns = numpy.arange(x.shape[-1], dtype=numpy.uint32)
        draws = lowbias(lowbias(columns[None, :] + low[:, None]) ^ high[:, None])
        return x * torch.tensor(draws >= below, dtype=x.dtype) / (1 - DROPOUT["p"])


def drop(model):
    """Puts the masks in the place of PEFT's dropouts."""
    for name, module in model.named_modules():
        if name.endswith(".lora_dropout"):
            layer, place = int(name.split(".layers.")[1].split(".")[0]), name.split(".")[-2]
            assert isinstance(module["default"], torch.nn.Dropout) and module["default"].p == DROPOUT["p"]
            module["default"] = Fixed(layer * len(MODULES) + MODULES.index(place))


def one(name, kind, golden, dropping=False):
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype=torch.float64, attn_implementation="eager")
    dropout = DROPOUT["p"] if dropping else 0.0
    config = peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=dropout, **ADAPTERS[kind])
    model = peft.get_peft_model(base, config, autocast_adapter_dtype=False).eval()
    model.peft_config["default"].base_model_name_or_path = f"tests/golden/{name}"
    fill(model)
    if dropping:
        drop(model)
    else:
        folder = GOLDEN / "adapters" / f"{name}-{kind}"
        model.float().save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        model.double()
    per_row, reference, response = [], [], 0
    for group, row in enumerate(golden["rows"]):
        per_row.append([])
        response = 0 if group == FIRST else response
        for r in row["responses_ids"]:
            prompt = row["prompt_ids"]
            Fixed.rows = rows_of(group if group < FIRST else group - FIRST, response, len(prompt), len(prompt) + len(r))
            per_row[-1].append(logps(model, prompt, r))
            response += 1
        with model.disable_adapter(), torch.no_grad():
            reference.append([logps(model, row["prompt_ids"], r).sum() for r in row["responses_ids"]])
    losses = []
    for row, chosen, rejected in golden["pairs"]:
        ratio = [per_row[row][i].sum() - reference[row][i] for i in (chosen, rejected)]
        losses.append(-torch.nn.functional.logsigmoid(BETA * (ratio[0] - ratio[1])))
    (sum(losses) / len(losses)).backward()
    gradients = {}
    for full, p in model.named_parameters():
        if "lora_" in full:
            g = p.grad.flatten()
            key = full.replace("base_model.model.", "", 1).replace(".default", "")
            gradients[key] = {"norm": g.norm().item(), "first8": g[:8].tolist()}
    return {
        "logps": [t.sum().item() for row in per_row for t in row],
        "ref_logps": [t.item() for row in reference for t in row],
        "losses": [x.item() for x in losses],
        "gradients": gradients,
    }


def main():
    golden = json.loads((GOLDEN / "golden.json").read_text())
    shutil.rmtree(GOLDEN / "adapters", ignore_errors=True)
    made = {f"{m}-{k}": one(m, k, golden) for m in MODELS for k in ADAPTERS}
    assert all(math.isfinite(x) for v in made.values() for x in v["logps"] + v["losses"])
    made_dropping = {}
    for of in DROPPING:
        name, kind = next((m, k) for m in MODELS for k in ADAPTERS if f"{m}-{k}" == of)
        made_dropping[of] = one(name, kind, golden, dropping=True)
    versions = {"peft": peft.__version__, "torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    (GOLDEN / "adapters.json").write_text(json.dumps({"versions": versions, "adapters": made}) + "\n")
    (GOLDEN / "dropout.json").write_text(json.dumps({"versions": versions, **DROPOUT, "adapters": made_dropping}) + "\n")


if __name__ == "__main__":
    main()
