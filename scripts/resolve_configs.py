#!/usr/bin/env python3
"""Random configurations of the families that load, and what transformers makes of each: what tests/model/configs.rs compares with.

Usage:   python scripts/resolve_configs.py --count 200 --seed 1 [--out FILE] [--forward]
Input:   none. Configuration I of a seed is the same everywhere.
Output:  a line each: {"config": ..., "resolved": {...}} or {"config": ..., "refused": "why"}; `resolved` has the fields that
         a forward pass uses and, for rows of each `length`, the rotary frequencies and the factor on cosines and sines.
Needs:   transformers 5.23.0 and numpy. transformers' own code computes the frequencies, with numpy in torch's place where
         there is no torch. --forward (torch) also builds each small model and runs it, to see that nothing else refuses it.
"""

import argparse
import json
import logging
import math
import os
import random
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.simplefilter("ignore")
try:
    import numpy as np
    import transformers
    from transformers import AutoConfig, modeling_rope_utils
except ImportError as error:
    sys.exit(f"resolve_configs: {error}; install: python -m pip install numpy transformers==5.23.0")

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
VERSION = "5.23.0"


# ---- configurations

def rope_fields(draw, dim):
    """One object of rotary parameters: mostly sound, sometimes with a field missing, null, or odd."""
    kind = draw.choice(["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional", "proportional", None, "mrope"]
                       if draw.random() < 0.4 else ["linear", "dynamic", "yarn", "longrope", "llama3"])
    out = {}
    if kind is not None:
        out[draw.choice(["rope_type", "rope_type", "type"])] = kind
        if draw.random() < 0.05:
            out["type"] = draw.choice(["linear", "su", None])
    some = lambda name, values, chance: out.__setitem__(name, draw.choice(values)) if draw.random() < chance else None
    some("rope_theta", [100.0, 10000.0, 500000, 1e6, None] if draw.random() < 0.1 else [100.0, 10000.0, 5e5], 0.5)
    some("factor", [1.0, 2.0, 4, 8.0, 2.5, 0.5, None], 0.95 if kind in ("linear", "dynamic", "yarn", "llama3") else 0.4)
    some("original_max_position_embeddings", [16, 32, 64, 100, 16.0, None] if draw.random() < 0.1 else [16, 32, 64, 100],
         0.6 if kind in ("yarn", "longrope", "llama3") else 0.1)
    if kind == "yarn":
        some("attention_factor", [1.0, 1.25, 0.7, 2, None], 0.3)
        some("beta_fast", [32, 8.0, 2, None, 0], 0.4)
        some("beta_slow", [1, 0.5, 2, None], 0.4)
        some("mscale", [1.0, 0.707, 0, None], 0.4)
        some("mscale_all_dim", [1.0, 0.5, 0, None], 0.4)
        some("truncate", [True, False, None], 0.4)
    if kind == "longrope":
        half = dim // 2 + (draw.choice([-1, 1]) if draw.random() < 0.05 else 0)
        for name in ("short_factor", "long_factor"):
            if draw.random() < 0.97:
                out[name] = [round(draw.uniform(0.8, 6), 3) for _ in range(half)]
        some("attention_factor", [1.0, 1.19, None], 0.3)
    if kind == "llama3":
        some("low_freq_factor", [1.0, 1, 2.0], 0.97)
        some("high_freq_factor", [4.0, 4, 8.0, 1.0], 0.97)
    some("partial_rotary_factor", [1.0, 0.5, 0.25, None], 0.6 if kind == "proportional" else 0.05)
    some("mrope_section", [[2, 2, 4]], 0.02)
    return out


def random_config(draw):
    family = draw.choice(FAMILIES)
    heads = draw.choice([1, 2, 4, 8])
    head_dim = draw.choice([2, 4, 8, 16, 32])
    config = {"model_type": family, "vocab_size": 97, "hidden_size": heads * draw.choice([head_dim, 8]), "intermediate_size": 40,
              "num_hidden_layers": draw.choice([1, 2, 3]), "num_attention_heads": heads,
              "num_key_value_heads": draw.choice([h for h in (1, 2, 4, 8) if heads % h == 0]), "head_dim": head_dim,
              "max_position_embeddings": draw.choice([32, 64, 128, 200]), "rms_norm_eps": draw.choice([1e-5, 1e-6]),
              "hidden_act": "silu", "tie_word_embeddings": draw.random() < 0.5}
    if draw.random() < 0.5:
        config["architectures"] = [{"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family] + "ForCausalLM"]
    # Fields left out, null, or of another value.
    for _ in range(draw.choice([0, 0, 1, 1, 2])):
        name = draw.choice([k for k in config if k not in ("model_type", "architectures")])
        if draw.random() < 0.7:
            config.pop(name, None)
        else:
            config[name] = draw.choice([None, None, config[name], 0, 6, 1.5, "8", True, -1])
    def maybe(name, values, chance):
        if draw.random() < chance:
            config[name] = draw.choice(values)
    maybe("eos_token_id", [2, [2, 5], None, []], 0.4)
    maybe("bos_token_id", [1, None], 0.3)
    maybe("attention_bias", [True, False, None], 0.15)
    maybe("mlp_bias", [True, False, None], 0.08)
    maybe("hidden_act", ["swish", "gelu"], 0.04)
    maybe("dtype", ["float32", "bfloat16", None], 0.2)
    maybe("torch_dtype", ["float16", "float32"], 0.2)
    maybe("sliding_window", [16, 4096, None], 0.35)
    maybe("use_sliding_window", [True, False, None], 0.3)
    maybe("max_window_layers", [0, 1, 2, 28, -1], 0.3)
    layers = config.get("num_hidden_layers") if isinstance(config.get("num_hidden_layers"), int) else 2
    if draw.random() < 0.1:
        kinds = draw.choice([["full_attention"], ["full_attention", "sliding_attention"], ["attention"], ["linear_attention", "full_attention"]])
        config["layer_types"] = [draw.choice(kinds) for _ in range(max(0, layers + draw.choice([0, 0, 0, 0, 1])))]
    maybe("is_causal", [True, False, None], 0.03)
    maybe("per_layer_config", [{}, None, {"0": {"intermediate_size": 20}}], 0.03)
    for name in ("rope_scaling", "rope_parameters"):
        if draw.random() < 0.5:
            config[name] = rope_fields(draw, head_dim) if draw.random() < 0.93 else draw.choice([None, {}, [], "linear", 0, False])
    maybe("rope_theta", [777.0, 10000.0, 1000000, None] if draw.random() < 0.1 else [777.0, 10000.0, 1000000], 0.4)
    maybe("partial_rotary_factor", [1.0, 0.5, None], 0.05)
    maybe("original_max_position_embeddings", [16, 48, None] if draw.random() < 0.1 else [16, 48], 0.2)
    # What no forward pass reads.
    maybe("attention_dropout", [0.0, 0.1], 0.2)
    maybe("use_cache", [True, False], 0.2)
    maybe("pretraining_tp", [1, 2], 0.1)
    maybe("num_labels", [1, 3], 0.05)
    maybe("something_else", [1, "x", {"a": None}], 0.1)
    items = list(config.items())
    draw.shuffle(items)
    return dict(items)


# ---- transformers' own code, with numpy where there is no torch

class Array(np.ndarray):
    """As much of a tensor as the rotary embedding needs."""

    def to(self, *_, dtype=None, **__):
        return self if dtype is None else np.asarray(self, dtype).view(Array)

    def float(self):
        return np.asarray(self, np.float32).view(Array)


class Torch:
    """As much of torch as transformers' rotary functions need, in float32."""

    float32 = float = np.float32
    int64 = np.int64
    Tensor = Array

    @staticmethod
    def arange(*args, dtype=np.int64, device=None):
        return np.arange(*args).astype(dtype).view(Array)

    @staticmethod
    def tensor(values, dtype=None, device=None):
        return np.array(values, dtype).view(Array)

    @staticmethod
    def zeros(n, dtype=None, device=None):
        return np.zeros(n, dtype).view(Array)

    @staticmethod
    def cat(parts, dim=0):
        return np.concatenate(parts).view(Array)

    where = staticmethod(lambda *a: np.where(*a).view(Array))
    clamp = staticmethod(lambda x, low, high: np.clip(x, low, high).view(Array))


try:
    import torch
except ImportError:
    torch = None
    modeling_rope_utils.torch = Torch
    # Scalars of Python are taken as they are, as torch does.
    np.seterr(all="ignore")


def rotary(config, length):
    """Frequencies and factor of a row of `length` tokens evaluated by itself: each family's rotary embedding does this."""
    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return [config.rope_parameters["rope_theta"] ** (-2 * i / dim) for i in range(math.ceil(dim / 2))], 1.0
    init = modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind]
    config.standardize_rope_params()
    switch = {"dynamic": config.max_position_embeddings,
              "longrope": config.rope_parameters.get("original_max_position_embeddings")}.get(kind)
    frequencies, factor = init(config, None, **({"seq_len": length} if switch is not None and length > switch else {}))
    return [float(f) for f in frequencies], float(factor)


def need(condition, why):
    if not condition:
        raise ValueError(why)


def resolve(config):
    """What a forward pass of transformers uses. Raises what transformers would, at the latest in that pass."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        c = AutoConfig.from_pretrained(folder)
    need(c.model_type in FAMILIES, f"taken for {c.model_type}")
    head_dim = getattr(c, "head_dim", c.hidden_size // c.num_attention_heads)
    need(isinstance(head_dim, int) and head_dim > 0, f"head_dim {head_dim}")
    sizes = (c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads)
    need(all(n > 0 for n in sizes), f"sizes {sizes}")
    need(c.num_attention_heads % c.num_key_value_heads == 0, "query heads are no multiple of key heads")
    positions = c.max_position_embeddings
    first, factor = rotary(c, 1)
    original = c.rope_parameters.get("original_max_position_embeddings")
    kind = c.rope_parameters["rope_type"]
    lengths = [1]
    if kind in ("dynamic", "longrope"):
        switch = positions if kind == "dynamic" else int(original)
        lengths = sorted({1, max(1, switch), switch + 1, 3 * switch + 5})
    rope = []
    for length in lengths:
        frequencies, factor = rotary(c, length)
        need(2 * len(frequencies) == head_dim, f"{len(frequencies)} frequencies for heads of {head_dim}")
        need(all(math.isfinite(f) for f in frequencies) and math.isfinite(factor), "frequencies that are not finite")
        rope.append({"length": length, "frequencies": [float(f"{f:.8g}") for f in frequencies], "factor": factor})
    layers = getattr(c, "layer_types", None) if c.model_type.startswith("qwen") else None
    window = getattr(c, "sliding_window", None) if c.model_type != "llama" else None
    if layers is not None:
        need(set(layers) <= {"full_attention", "sliding_attention"}, f"layers {layers}")
        need("sliding_attention" not in layers or window is not None, "sliding layers without a window")
        window = window if "sliding_attention" in layers else None
    need(c.hidden_act in ("silu", "swish", "gelu", "relu"), f"activation {c.hidden_act}")
    need(not c.is_heterogeneous or c._heterogeneity_spec.per_layer_overrides == {}, "layers that differ")
    eos = c.eos_token_id
    bias = c.model_type in ("llama", "qwen3") and c.attention_bias
    return {"vocab_size": c.vocab_size, "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size,
            "num_hidden_layers": c.num_hidden_layers, "num_attention_heads": c.num_attention_heads,
            "num_key_value_heads": c.num_key_value_heads, "head_dim": head_dim, "rms_norm_eps": c.rms_norm_eps,
            "max_position_embeddings": positions, "tie_word_embeddings": c.tie_word_embeddings,
            "hidden_act": c.hidden_act, "mlp_bias": c.model_type == "llama" and c.mlp_bias,
            "qkv_bias": bias or c.model_type == "qwen2", "o_bias": bias, "sliding_window": window,
            "is_causal": bool(getattr(c, "is_causal", True)),
            "layer_types_of_llama": c.model_type == "llama" and set(getattr(c, "layer_types", None) or []) > {"full_attention"},
            "eos_token_id": eos if isinstance(eos, list) else [] if eos is None else [eos], "bos_token_id": c.bos_token_id,
            "dtype": None if c.dtype is None else str(c.dtype).removeprefix("torch."), "rope_type": kind, "rope": rope}


def forward(config, resolved):
    """Runs the model that transformers builds on rows of every length; gives why it could not, or "too large"."""
    if torch is None:
        sys.exit("resolve_configs: --forward needs torch")
    from transformers import AutoModelForCausalLM

    try:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(config))
            c = AutoConfig.from_pretrained(folder)
        if max(c.hidden_size, c.intermediate_size, c.vocab_size // 32) > 1024 or c.num_hidden_layers > 4:
            return "too large"
        c.dtype = torch.float32
        model = AutoModelForCausalLM.from_config(c, attn_implementation="eager", dtype=torch.float32)
        for one in (resolved or {"rope": [{"length": 4}]})["rope"]:
            length = min(one["length"], 700)
            embedding = type(model.model.rotary_emb)(c)
            with torch.no_grad():
                embedding(torch.zeros(1, length, 4), torch.arange(length)[None])
                logits = model(torch.arange(length)[None] % c.vocab_size).logits
            if not torch.isfinite(logits).all():
                return "logits that are not finite"
            if "frequencies" in one and length == one["length"]:
                theirs = embedding.inv_freq.double()
                ours = torch.tensor(one["frequencies"], dtype=torch.float64)
                if not torch.allclose(theirs, ours, rtol=2e-5, atol=1e-12) or embedding.attention_scaling != one["factor"]:
                    sys.exit(f"resolve_configs: the model's frequencies are others: {json.dumps(config)}: {theirs} {ours}")
        return None
    except Exception as error:  # whatever transformers raises is its refusal
        return f"{type(error).__name__}: {error}"


def one(config, run):
    line = {"config": config}
    try:
        line["resolved"] = resolve(config)
    except Exception as error:  # as above
        line["refused"] = f"{type(error).__name__}: {error}".split("\n")[0][:200]
    if run:
        why = forward(config, line.get("resolved"))
        if why != "too large" and ("refused" in line) != (why is not None):
            print(f"model and resolution differ: {json.dumps(config)}: {line.get('refused')} but {why}", file=sys.stderr)
    return line


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file to write instead of standard output")
    parser.add_argument("--forward", action="store_true", help="build and run each small model too (torch)")
    args = parser.parse_args()
    if transformers.__version__ != VERSION:
        sys.exit(f"resolve_configs: transformers {transformers.__version__} is not {VERSION}: python -m pip install transformers=={VERSION}")
    logging.disable(logging.CRITICAL)
    transformers.logging.set_verbosity_error()
    out = args.out.open("w") if args.out else sys.stdout
    for i in range(args.count):
        line = one(random_config(random.Random(f"{args.seed} {i}")), args.forward)
        print(json.dumps(line), file=out)


if __name__ == "__main__":
    main()
