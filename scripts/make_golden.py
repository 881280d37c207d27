#!/usr/bin/env python3
"""Make the tiny golden models and numbers that a fresh clone checks itself against.

Usage:   python scripts/make_golden.py --out tests/golden
Input:   none (fixed seeds).
Output:  OUT/NAME/ (Hugging Face directory of a random 2-layer model, float32) for each of MODELS, and OUT/golden.json
         with token ids, log-probs, losses, gradients and the loss after one optimiser step, all in float64.
Needs:   torch, transformers, safetensors (CPU is enough). The committed files record the versions that made them.

Transformers casts parts of a float64 model down to float32, so the numbers come from a plain float64 forward pass
below. Transformers runs the same pairs in float32; the script refuses to write when the two do not agree.
"""

import argparse
import hashlib
import json
import math
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
try:
    import torch
    import torch.nn.functional as F
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM
except ImportError as error:
    sys.exit(f"make_golden: {error}; install: python -m pip install torch transformers")

from word_tokenizer import EOS, write_tokenizer

VOCAB = 97
BETA, SMOOTHING = 0.1, 0.1
AMPLITUDE, FREQUENCY = 0.05, 0.37
AGREEMENT = 2e-5  # nats between transformers' float32 and our float64; float32 rounding alone gives about 1e-6

COMMON = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 36, "num_hidden_layers": 2,
          "num_attention_heads": 4, "max_position_embeddings": 128, "hidden_act": "silu",
          "bos_token_id": 1, "eos_token_id": EOS}
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32}  # 32: head dim 8 then has frequencies in all three bands

# The first two have a config.json in transformers 4's words, the others in transformers 5's.
MODELS = {
    "llama": {**COMMON, "model_type": "llama", "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
              "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float32"},
    "llama3-tied": {**COMMON, "model_type": "llama", "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "rope_theta": 100.0,
                    "rope_scaling": LLAMA3_ROPE, "tie_word_embeddings": True, "torch_dtype": "float32"},
    "qwen2": {**COMMON, "model_type": "qwen2", "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
              "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "use_sliding_window": False,
              "tie_word_embeddings": False, "dtype": "float32"},
    "qwen3": {**COMMON, "model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 12, "rms_norm_eps": 1e-6,
              "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "attention_bias": False,
              "tie_word_embeddings": True, "dtype": "float32"},
}


# ---- data: rows of token ids

def make_rows():
    """Odd lengths 1..40, an empty prompt, three scored responses, responses that share a beginning."""
    draw = random.Random(7)
    ids = lambda n: [draw.randrange(3, VOCAB) for _ in range(n)]
    ends = lambda n: ids(n - 1) + [EOS]
    shared = ids(4)
    rows = [([1] + ids(4), [ends(7), ends(3)]), (ids(13), [ends(1), ends(40)]), (ids(1), [ids(17), ends(17)]),
            (ids(9), [ends(5), ends(11), ends(23)]), ([], [ends(6), ends(2)]), (ids(40), [shared + ends(3), shared + ends(8)])]
    return [{"prompt_ids": prompt, "responses_ids": responses, "scores": list(range(len(responses) - 1, -1, -1))}
            for prompt, responses in rows]


def pairs_of(rows):
    """[row, chosen, rejected] for every two responses with different scores."""
    return [[r, c, j] for r, row in enumerate(rows) for c, sc in enumerate(row["scores"])
            for j, sj in enumerate(row["scores"]) if sc > sj]


# ---- models

def random_model(name, seed):
    """A model whose weights are large enough to make the logits far from flat, saved and loaded as float32."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**MODELS[name]), attn_implementation="eager")
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.endswith("norm.weight"):
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
            elif key.endswith("bias"):
                weight.copy_(0.3 * torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) * (0.5 if "embed" in key else 1.2 / weight.shape[1] ** 0.5))
    return model.float().eval()


def perturb(weights):
    """policy[i] = f32(w[i] + f32(AMPLITUDE * sin(FREQUENCY * i))), i the flat row-major index, for every tensor."""
    out = {}
    for key, w in weights.items():
        i = torch.arange(w.numel(), dtype=torch.float64).view(w.shape)
        out[key] = w + (AMPLITUDE * torch.sin(FREQUENCY * i)).float()
    return out


def write_model(model, name, folder):
    """Our own config.json replaces transformers' (which is v5 only), then the directory must load again unchanged."""
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = {"architectures": [type(model).__name__], **MODELS[name]}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_tokenizer(folder, VOCAB)
    again = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    if any(not torch.equal(w, again[key]) for key, w in model.named_parameters()):
        sys.exit(f"make_golden: {name}: the saved model differs after loading")


# ---- the float64 truth

def rope_frequencies(config, dim):
    rope = config.get("rope_parameters") or {"rope_theta": config["rope_theta"], **(config["rope_scaling"] or {})}
    freq = rope["rope_theta"] ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if rope.get("rope_type", "default") == "default":
        return freq
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    turns = rope["original_max_position_embeddings"] * freq / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return freq * (smooth + (1 - smooth) / factor)


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def attention(config, p, prefix, x, cos, sin):
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    rows, dim = len(x), config.get("head_dim", config["hidden_size"] // heads)

    def project(which):
        y = F.linear(x, p[f"{prefix}.{which}_proj.weight"], p.get(f"{prefix}.{which}_proj.bias")).view(rows, -1, dim)
        norm = p.get(f"{prefix}.{which}_norm.weight")
        return (y if norm is None else rms_norm(y, norm, config["rms_norm_eps"])).transpose(0, 1)

    q, k, v = rotate(project("q"), cos, sin), rotate(project("k"), cos, sin), project("v")
    k, v = (t.repeat_interleave(heads // kv_heads, 0) for t in (k, v))
    mask = torch.full((rows, rows), -math.inf, dtype=torch.float64).triu(1)
    weights = (q @ k.transpose(1, 2) / math.sqrt(dim) + mask).softmax(-1)
    return F.linear((weights @ v).transpose(0, 1).reshape(rows, -1), p[f"{prefix}.o_proj.weight"])


def token_logps(config, p, prompt, response):
    """log p(y_t | x, y_<t) of each scored response token; without a prompt the first token has no predictor."""
    ids = torch.tensor(prompt + response)
    dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    angle = torch.arange(len(ids), dtype=torch.float64)[:, None] * rope_frequencies(config, dim)
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
    x, eps = p["model.embed_tokens.weight"][ids], config["rms_norm_eps"]
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        x = x + attention(config, p, f"{name}.self_attn", rms_norm(x, p[f"{name}.input_layernorm.weight"], eps), cos, sin)
        h = rms_norm(x, p[f"{name}.post_attention_layernorm.weight"], eps)
        gate, up = F.linear(h, p[f"{name}.mlp.gate_proj.weight"]), F.linear(h, p[f"{name}.mlp.up_proj.weight"])
        x = x + F.linear(F.silu(gate) * up, p[f"{name}.mlp.down_proj.weight"])
    x = rms_norm(x, p["model.norm.weight"], eps)
    logits = F.linear(x, p.get("lm_head.weight", p["model.embed_tokens.weight"]))
    first = max(len(prompt), 1)
    return logits[first - 1 : -1].log_softmax(-1).gather(-1, ids[first:, None])[:, 0]


def all_logps(config, p, rows):
    return {(r, k): token_logps(config, p, row["prompt_ids"], response)
            for r, row in enumerate(rows) for k, response in enumerate(row["responses_ids"])}


def losses(policy, ref, pairs):
    """Per-pair losses from dicts of per-token log-probs; `sft` is a token mean over the best response of each row."""
    total = lambda logps: torch.stack([logps[key].sum() for key in logps])
    order = {key: i for i, key in enumerate(policy)}
    ratio = total(policy) - total(ref)
    count = torch.tensor([len(v) for v in policy.values()], dtype=torch.float64)
    w = torch.tensor([order[r, c] for r, c, _ in pairs])
    l = torch.tensor([order[r, j] for r, _, j in pairs])
    m = BETA * (ratio[w] - ratio[l])
    best = torch.tensor([i for (_, k), i in order.items() if k == 0])
    return {"sigmoid": -F.logsigmoid(m),
            "sigmoid|label_smoothing=0.1": -(1 - SMOOTHING) * F.logsigmoid(m) - SMOOTHING * F.logsigmoid(-m),
            "hinge": torch.relu(1 - m),
            "ipo": (ratio[w] / count[w] - ratio[l] / count[l] - 1 / (2 * BETA)) ** 2,
            "sft": -total(policy)[best].sum() / count[best].sum()}


def step_losses(config, weights, ref, rows, pairs):
    """Gradient of the mean sigmoid loss, and that loss after one step of AdamW and of SGD."""
    out = {}
    for name, make in {"adamw_lr_1e-3": lambda ps: torch.optim.AdamW(ps, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0),
                       "sgd_lr_1e-1": lambda ps: torch.optim.SGD(ps, lr=0.1)}.items():
        p = {key: w.double().requires_grad_() for key, w in weights.items()}
        optimizer = make(list(p.values()))
        losses(all_logps(config, p, rows), ref, pairs)["sigmoid"].mean().backward()
        optimizer.step()
        with torch.no_grad():
            out[name] = losses(all_logps(config, p, rows), ref, pairs)["sigmoid"].mean().item()
    grads = {key: w.grad for key, w in p.items()}
    gradient = {"loss": "sigmoid", "global_norm": math.sqrt(sum(g.pow(2).sum().item() for g in grads.values())),
                "tensors": {key: {"norm": g.norm().item(), "first8": g.flatten()[:8].tolist()} for key, g in grads.items()}}
    return gradient, out


# ---- the check against transformers

def transformers_difference(model, weights, rows, expected):
    """Largest per-token difference between transformers in float32 and the float64 numbers."""
    model.load_state_dict(weights, strict=False)
    worst = 0.0
    for (r, k), truth in expected.items():
        prompt, response = rows[r]["prompt_ids"], rows[r]["responses_ids"][k]
        ids, first = torch.tensor([prompt + response]), max(len(prompt), 1)
        with torch.no_grad():
            logps = model(ids).logits[0, first - 1 : -1].log_softmax(-1).gather(-1, ids[0, first:, None])[:, 0]
        worst = max(worst, (logps.double() - truth).abs().max().item())
    return worst


def golden_of(model, name, rows, pairs):
    config = MODELS[name]
    reference = {key: w.detach().clone() for key, w in model.named_parameters()}
    policy = perturb(reference)
    with torch.no_grad():
        ref_logps = all_logps(config, {k: w.double() for k, w in reference.items()}, rows)
        logps = all_logps(config, {k: w.double() for k, w in policy.items()}, rows)
    difference = max(transformers_difference(model, reference, rows, ref_logps),
                     transformers_difference(model, policy, rows, logps))
    if not difference <= AGREEMENT:
        sys.exit(f"make_golden: {name}: transformers differs from the float64 pass by {difference} nats")
    gradient, after = step_losses(config, policy, ref_logps, rows, pairs)
    digest = hashlib.sha256(b"".join(policy[key].numpy().tobytes() for key in sorted(policy))).hexdigest()
    responses = [{"row": r, "response": k, "num_tokens": len(logps[r, k]), "ref_logp": ref_logps[r, k].sum().item(),
                  "policy_logp": logps[r, k].sum().item(), "ref_token_logps": ref_logps[r, k].tolist(),
                  "policy_token_logps": logps[r, k].tolist()} for r, k in logps]
    table = {key: {"loss": v.mean().item(), "per_pair": v.tolist()} for key, v in losses(logps, ref_logps, pairs).items()}
    table["sft"].pop("per_pair")
    return {"transformers_f32_max_abs_diff": difference, "policy_sha256": digest, "responses": responses,
            "losses": table, "gradient": gradient, "loss_after_one_step": after}


ABOUT = {
    "rows": "token ids; responses in descending score. An empty prompt's responses have no log-prob for their first token.",
    "pairs": "[row, chosen, rejected]; every mean over pairs is over these, with equal weight.",
    "policy": f"policy[i] = f32(w[i] + f32({AMPLITUDE} * sin({FREQUENCY} * i))) for every stored tensor, i the flat row-major "
              "index, sin in float64; policy_sha256 is over the tensors' bytes, concatenated in name order.",
    "reference": "the model as stored",
    "losses": "TRL's; ipo divides each log-ratio by its own response's token count; sft is the token mean over response 0 of "
              "every row.",
    "gradient": "of the mean sigmoid loss at the policy, float64",
    "loss_after_one_step": "mean sigmoid loss after one step from the policy: AdamW (0.9, 0.999, 1e-8, no weight decay), SGD; "
                           "no clipping",
}


def build(folder):
    rows = make_rows()
    pairs = pairs_of(rows)
    made_with = {"command": "python scripts/make_golden.py --out tests/golden", "python": sys.version.split()[0],
                 "torch": torch.__version__, "transformers": transformers.__version__}
    golden = {"about": ABOUT, "made_with": made_with, "beta": BETA, "label_smoothing": SMOOTHING, "rows": rows, "pairs": pairs,
              "models": {}}
    for seed, name in enumerate(MODELS):
        model = random_model(name, seed)
        write_model(model, name, folder / name)
        golden["models"][name] = result = golden_of(model, name, rows, pairs)
        print(f"{name}: sigmoid {result['losses']['sigmoid']['loss']:.6f}, after a step {result['loss_after_one_step']}, "
              f"transformers within {result['transformers_f32_max_abs_diff']:.1e} nat a token")
    (folder / "golden.json").write_text(json.dumps(golden) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write; an older golden there is replaced")
    out = parser.parse_args().out.absolute()
    if out.exists() and any(out.iterdir()) and not (out / "golden.json").is_file():
        sys.exit(f"make_golden: --out {out}: holds other files; name a new folder")
    torch.set_num_threads(1)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".golden.", dir=out.parent) as scratch:
        folder = Path(scratch) / "golden"
        folder.mkdir()
        build(folder)
        if out.exists():
            shutil.rmtree(out)
        os.replace(folder, out)


if __name__ == "__main__":
    main()
