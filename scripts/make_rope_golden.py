#!/usr/bin/env python3
"""Make tests/golden/rope.json: log-probs of transformers for the golden models under other rotary embeddings and windows.

Usage:   python scripts/make_rope_golden.py --golden tests/golden
Input:   the models and rows of tests/golden (make_golden.py).
Output:  GOLDEN/rope.json: a list of cases, each with the model whose weights it uses, the fields of config.json that it
         sets (null takes a field out), and the log-prob of every response, each row evaluated by itself in float32.
Needs:   torch, transformers, safetensors (CPU is enough).
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
try:
    import torch
    import transformers
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM
except ImportError as error:
    sys.exit(f"make_rope_golden: {error}; install: python -m pip install torch transformers")

SHORT, LONG = [1.0, 1.2, 1.9, 2.8], [1.5, 3.0, 5.5, 9.0]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

# Name, model, fields.
CASES = [
    ("rope_scaling replaces rope_parameters", "llama",
     {"rope_theta": 777.0, "rope_scaling": {"type": "linear", "factor": 4.0},
      "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}}),
    ("an empty rope_scaling does not", "llama",
     {"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}}),
    ("original positions at top level", "llama",
     {"rope_theta": 100.0, "original_max_position_embeddings": 16, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}}),
    ("the model's own positions", "llama3-tied", {"rope_scaling": LLAMA3}),
    ("yarn", "llama", {"rope_theta": 100.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}),
    ("yarn, every field", "qwen2",
     {"rope_parameters": {"rope_type": "yarn", "factor": 8.0, "rope_theta": 1000.0, "original_max_position_embeddings": 16,
                          "beta_fast": 4, "beta_slow": 0.5, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False}}),
    ("yarn, its attention factor, positions for its factor", "qwen3",
     {"rope_parameters": {"rope_type": "yarn", "factor": None, "attention_factor": 1.3, "rope_theta": 100.0,
                          "original_max_position_embeddings": 32}}),
    ("dynamic, no row long enough", "llama", {"rope_theta": 100.0, "rope_scaling": {"type": "dynamic", "factor": 4.0}}),
    ("longrope, every row short", "llama",
     {"rope_theta": 100.0, "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG, "factor": 4.0}}),
    ("longrope, rows of both kinds", "llama",
     {"rope_theta": 100.0, "original_max_position_embeddings": 20,
      "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG}}),
    ("proportional", "qwen2",
     {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 100.0, "factor": 2.0}}),
    ("a part of the head with the plain kind: not read", "llama", {"partial_rotary_factor": 0.5}),
    ("a window in layers that there are not", "qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    ("biases that the family has not: not read", "qwen2", {"attention_bias": False, "mlp_bias": True}),
    ("swish", "qwen3", {"hidden_act": "swish"}),
]


def edited(config, fields):
    config = {**config, **fields}
    return {key: value for key, value in config.items() if value is not None or key not in fields}


def log_probs(golden, name, fields, rows):
    config = edited(json.loads((golden / name / "config.json").read_text()), fields)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        config = AutoConfig.from_pretrained(folder)
    weights = load_file(golden / name / "model.safetensors")
    out = []
    for row in rows:
        for response in row["responses_ids"]:
            # A model for each row: a dynamic embedding remembers the longest that it saw.
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
            missing, unexpected = model.load_state_dict(weights, strict=False)
            if set(missing) - {"lm_head.weight"} or unexpected:
                sys.exit(f"make_rope_golden: {name}: {missing} missing, {unexpected} unexpected")
            model.tie_weights()
            ids, first = torch.tensor([row["prompt_ids"] + response]), max(len(row["prompt_ids"]), 1)
            with torch.no_grad():
                logps = model(ids).logits[0, first - 1 : -1].double().log_softmax(-1).gather(-1, ids[0, first:, None])
            out.append(logps.sum().item())
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=Path, required=True, help="folder of make_golden.py")
    golden = parser.parse_args().golden
    torch.set_num_threads(1)
    rows = json.loads((golden / "golden.json").read_text())["rows"]
    cases = [{"name": name, "model": model, "fields": fields, "logps": log_probs(golden, model, fields, rows)}
             for name, model, fields in CASES]
    made_with = {"command": "python scripts/make_rope_golden.py --golden tests/golden", "python": sys.version.split()[0],
                 "torch": torch.__version__, "transformers": transformers.__version__}
    (golden / "rope.json").write_text(json.dumps({"made_with": made_with, "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
