#!/usr/bin/env python3
"""What logits in bf16 cost: errors of log-probs and of the head's gradient against f64, for a real model over real pairs.

Input:   MODEL: a Hugging Face directory; PAIRS: JSONL with `prompt`, `chosen`, `rejected` texts (goldens/hh64.jsonl).
Output:  a line for each way to keep logits: error of a token's log-prob and of a response's sum (nats: RMS, mean, largest), and
         the relative error of the gradient by the head's input, |dx - exact| / |exact| a prediction.
Needs:   torch, transformers.

All start from the same operands: the model's hidden rows (computed in f32) and its head, both rounded to bf16, as a GPU has them.
Exact is their product and everything after it in f64. The gradient of a logit is rounded to bf16, as the engine keeps it."""

import argparse
import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def ways(hidden, head, target):
    """Name -> logits as kept, and the target's logit as the loss reads it."""
    exact = hidden.float() @ head.float().T
    aim = exact.gather(1, target[:, None])
    narrow = exact.bfloat16().float()
    return {
        "f32": exact,
        "bf16, all": narrow,
        "bf16, target in f32": narrow.scatter(1, target[:, None], aim),
    }


def gradient(logits, target, head):
    """log p(target), and d log p / d hidden with the logits' gradient rounded to bf16 (f64: not rounded)."""
    logp = torch.log_softmax(logits, -1)
    g = -logp.exp()
    g[torch.arange(len(target)), target] += 1
    if logits.dtype != torch.float64:
        g = g.bfloat16()
    return logp.gather(1, target[:, None])[:, 0].double(), g.double() @ head.double()


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("pairs")
    parser.add_argument("--rows", type=int, default=64, help="pairs to read")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a row")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    head = model.get_output_embeddings().weight.detach().bfloat16()
    with open(args.pairs, encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(args.rows), file)]
    errors, predictions = {}, 0
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        for response in (row["chosen"], row["rejected"]):
            ids = torch.tensor((prompt + tokenizer(response)["input_ids"])[: args.max_length])
            target = ids[len(prompt) :]
            if not len(target):
                continue
            hidden = model.model(ids[None]).last_hidden_state[0, len(prompt) - 1 : -1].bfloat16()
            logp, dx = gradient(hidden.double() @ head.double().T, target, head)
            predictions += len(target)
            for name, logits in ways(hidden, head, target).items():
                l, d = gradient(logits, target, head)
                each = errors.setdefault(name, ([], [], []))
                each[0].append(l - logp)
                each[1].append((l - logp).sum()[None])
                each[2].append((d - dx).norm(dim=-1) / dx.norm(dim=-1))
    print(f"{predictions} predictions")
    for name, parts in errors.items():
        token, response, grad = (torch.cat(part) for part in parts)
        rms = [x.square().mean().sqrt().item() for x in (token, response, grad)]
        print(
            f"{name}: token {rms[0]:.1e} (mean {token.mean():+.1e}, largest {token.abs().max():.1e}), response {rms[1]:.3f} "
            f"(mean {response.mean():+.3f}, largest {response.abs().max():.3f}), dx {rms[2]:.1e} (largest {grad.max():.1e})"
        )


if __name__ == "__main__":
    main()
