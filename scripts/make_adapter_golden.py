#!/usr/bin/env python3
"""Makes tests/golden/adapters/ and tests/golden/adapters.json: adapters that PEFT wrote, and what PEFT and torch compute with
them in float64: log-probs of the rows of golden.json, DPO's loss against the base, and the gradients of every A and B.

Needs peft, torch and transformers. Run from the project's root: python scripts/make_adapter_golden.py
"""
import json
import math
import shutil
from pathlib import Path

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


def one(name, kind, golden):
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype=torch.float64, attn_implementation="eager")
    config = peft.LoraConfig(task_type="CAUSAL_LM", **ADAPTERS[kind])
    model = peft.get_peft_model(base, config, autocast_adapter_dtype=False).eval()
    model.peft_config["default"].base_model_name_or_path = f"tests/golden/{name}"
    fill(model)
    folder = GOLDEN / "adapters" / f"{name}-{kind}"
    model.float().save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    model.double()
    per_row, reference, values = [], [], []
    for row in golden["rows"]:
        per_row.append([logps(model, row["prompt_ids"], r) for r in row["responses_ids"]])
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
    versions = {"peft": peft.__version__, "torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    (GOLDEN / "adapters.json").write_text(json.dumps({"versions": versions, "adapters": made}) + "\n")


if __name__ == "__main__":
    main()
