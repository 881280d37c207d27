#!/usr/bin/env python3
"""Make tests/golden/losses.json: losses and gradients of TRL's own code, in float64, that tests/losses.rs compares with.

Usage:   python scripts/make_loss_golden.py --out tests/golden/losses.json
Input:   none (fixed seeds).
Output:  OUT: batches of log-probs token by token, and cases: a loss of TRL's with its options on one of them, its value,
         and its derivative by the sum of log-probs of every chosen and every rejected response. null: TRL's number is not
         finite.
Needs:   torch, trl==1.16.0, transformers==5.23.0 (CPU is enough). Numbers are committed, none of TRL's code.

DPO's losses: `DPOTrainer._compute_loss` with a model that answers with the batch's log-probs. CPO's and ORPO's:
`get_batch_loss_metrics` of their trainers, one pair at a time (over a batch TRL takes one mean of the chosen tokens'
losses, we take one a pair), with a forward pass that answers with sums, or means where the trainer asks for them.
Everything runs in float64: where TRL names float32 it gets float64.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

try:
    import torch
    import transformers
    import trl
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer
    from trl.trainer import dpo_trainer
except ImportError as error:
    sys.exit(f"make_loss_golden: {error}; install: python -m pip install torch trl==1.16.0 transformers==5.23.0")

PROMPT = 2
# What the trainers have beside a case's options, at TRL's defaults.
DEFAULTS = {"beta": 0.1, "label_smoothing": 0.0, "discopop_tau": 0.05, "ld_alpha": None, "f_divergence_type": "reverse_kl",
            "f_alpha_divergence_coef": 0.5, "use_weighting": False}  # fmt: skip


class Torch64:
    """torch, with float64 where its user names float32."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def everything_in_float64():
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    dpo_trainer.torch = Torch64()


class Batch:
    """Log-probs of chosen responses, then those of rejected ones, token by token."""

    def __init__(self, policy, reference, log_sum_p2):
        self.policy, self.reference, self.log_sum_p2 = policy, reference, log_sum_p2
        self.lengths = [len(r) for r in policy]
        self.pairs = len(policy) // 2

    def padded(self, rows):
        width = PROMPT - 1 + max(self.lengths)
        return torch.tensor([[0.0] * (PROMPT - 1) + r + [0.0] * (width - PROMPT + 1 - len(r)) for r in rows])

    def mask(self):
        width = PROMPT + max(self.lengths)
        return torch.tensor([[PROMPT <= i < PROMPT + n for i in range(width)] for n in self.lengths]).long()

    def json(self):
        return {"policy": self.policy, "reference": self.reference, "log_sum_p2": self.log_sum_p2}


def drawn(seed, lengths, drift):
    """Tokens of plausible log-probs, the reference's `drift` away."""
    g = torch.Generator().manual_seed(seed)
    row = lambda n, low, high: [round(low + (high - low) * x, 3) for x in torch.rand(n, generator=g).tolist()]
    policy = [row(n, -3.0, -0.02) for n in lengths]
    reference = [[round(min(p + d, -0.001), 3) for p, d in zip(r, row(len(r), -drift, drift))] for r in policy]
    return Batch(policy, reference, [row(n, -2.5, -0.05) for n in lengths])


def batches():
    # The start of a run: the reference is the policy.
    start = drawn(3, [4, 7, 7, 2], 0.0)
    # Log-ratios of thousands of nats, either way, on one token and on some.
    far = [[-10000.0], [-3.0], [-2000.0, -2000.0, -6000.0], [-0.5, -0.5]]
    far_rejected = [[-2.0], [-10000.0], [-1.0, -1.0], [-9000.0, -1000.0, -1.0]]
    near = [[-1.0] * len(r) for r in far + far_rejected]
    extreme = Batch(far + far_rejected, near, near)
    return [drawn(1, [5, 1, 9, 3, 6, 2, 1, 4, 8, 6], 0.6), drawn(2, [3, 12, 1, 10, 1, 1], 3.0), start, extreme]


def answer(log_probs, log_sum_p2):
    zero = torch.zeros_like(log_probs)
    return SimpleNamespace(log_probs=log_probs, log_sum_sq_probs=log_sum_p2, entropy=zero, mean_logits=zero, is_top1=zero > 0)


def accelerator():
    same = lambda x: x
    return SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same)


def dpo(batch, case):
    """Value and derivatives of DPOTrainer's loss."""
    options = DEFAULTS | case["options"]
    policy, reference = batch.padded(batch.policy).requires_grad_(), batch.padded(batch.reference)
    p2, mask = batch.padded(batch.log_sum_p2), batch.mask()
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        args=SimpleNamespace(discopop_tau=options["discopop_tau"], gradient_checkpointing_kwargs=None),
        accelerator=accelerator(),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        ref_model=lambda **_: answer(reference, p2),
        loss_types=case["loss"],
        loss_weights=case["weights"],
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **{k: v for k, v in options.items() if k != "discopop_tau"},
    )
    inputs = {"input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    loss = dpo_trainer.DPOTrainer._compute_loss(trainer, lambda **_: answer(policy, p2), inputs, False)
    loss.backward()
    return loss.item(), by_sums(batch, policy.grad, options["ld_alpha"], "sft" in case["loss"])


def by_sums(batch, grad, ld_alpha, mixed):
    """The derivative by each response's first token: that by its sum, as every token of it has the same one (under
    LD-DPO those beyond the shorter response ld_alpha times that)."""
    out = []
    for r, n in enumerate(batch.lengths):
        row = grad[r, PROMPT - 1 : PROMPT - 1 + n].tolist()
        shared = min(n, batch.lengths[(r + batch.pairs) % (2 * batch.pairs)])
        if not mixed:
            want = [row[0] * (1.0 if t < shared or ld_alpha is None else ld_alpha) for t in range(n)]
            assert all(a == b or math.isclose(a, b, rel_tol=1e-12) or a != a for a, b in zip(row, want)), (row, want)
        out.append(row[0])
    return [out[: batch.pairs], out[batch.pairs :]]


def single_pairs(batch, case):
    """Mean over the pairs of the value that CPOTrainer or ORPOTrainer gives each alone, and derivatives."""
    options = {"beta": 0.1, "label_smoothing": 0.0, "cpo_alpha": 0.0, "simpo_gamma": 0.5, "alpha": 0.0} | case["options"]
    sums = torch.tensor([sum(r) for r in batch.policy]).requires_grad_()
    name, total = case["loss"][0], torch.tensor(0.0)
    trainer_of = ORPOTrainer if name == "orpo" else CPOTrainer
    for i in range(batch.pairs):
        w, l = i, i + batch.pairs
        mean = name in ("simpo", "alphapo", "orpo")

        def forward(_model, _batch):
            by = [batch.lengths[r] if mean else 1 for r in (w, l)]
            nll = -sums[w] / batch.lengths[w]
            return (sums[w] / by[0]).view(1), (sums[l] / by[1]).view(1), torch.zeros(1), torch.zeros(1), nll

        trainer = SimpleNamespace(accelerator=accelerator(), aux_loss_enabled=False, concatenated_forward=forward,
                                  loss_type={"cpo": "sigmoid"}.get(name, "simpo"), **options)  # fmt: skip
        for method in ("cpo_loss", "odds_ratio_loss"):
            if hasattr(trainer_of, method):
                setattr(trainer, method, getattr(trainer_of, method).__get__(trainer))
        loss, _ = trainer_of.get_batch_loss_metrics(trainer, None, None)
        total = total + loss / batch.pairs
    total.backward()
    grad = sums.grad.tolist()
    return total.item(), [grad[: batch.pairs], grad[batch.pairs :]]


def cases():
    """(loss types, options, weights) of every case of DPOTrainer, then of the others."""
    smoothed = {"robust": [0.1, 0.35], "exo_pair": [1e-3, 0.2]}
    plain = ["sigmoid", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "discopop", "sigmoid_norm"]
    for name in plain + list(smoothed):
        for e in smoothed.get(name, [0.0]):
            for beta in [0.1, 2.5]:
                options = {"beta": beta} | ({"label_smoothing": e} if e else {})
                for b in range(4):
                    if b == 0 or beta == 0.1:
                        yield dpo, b, [name], options, [1.0]
    yield dpo, 0, ["robust"], {"label_smoothing": 0.0}, [1.0]
    yield dpo, 0, ["discopop"], {"beta": 0.7, "discopop_tau": 1.3}, [1.0]
    # f-divergences: the losses that TRL allows them.
    under = [("forward_kl", 0.5), ("js_divergence", 0.5), ("alpha_divergence", 0.3), ("alpha_divergence", 1.0),
             ("alpha_divergence", 1.7)]  # fmt: skip
    for name in ["sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop"]:
        for f, alpha in under if name in ("sigmoid", "ipo") else under[:3]:
            options = {"beta": 0.4, "f_divergence_type": f, "f_alpha_divergence_coef": alpha}
            yield dpo, 0, [name], options | ({"label_smoothing": 0.15} if name in smoothed else {}), [1.0]
    # LD-DPO and WPO.
    for name in ["sigmoid", "ipo", "nca_pair", "apo_down", "sppo_hard", "sigmoid_norm"]:
        for alpha in [0.0, 0.4]:
            yield dpo, 1, [name], {"ld_alpha": alpha}, [1.0]
        yield dpo, 1, [name], {"use_weighting": True}, [1.0]
    yield dpo, 1, ["sigmoid"], {"ld_alpha": 0.3, "use_weighting": True, "f_divergence_type": "js_divergence"}, [1.0]
    # sft beside pairs (alone, it is about single responses here).
    for b in range(4):
        yield dpo, b, ["sft", "sigmoid"], {}, [1.0, 0.0]
    # Sums. (TRL weighs sft's mean by WPO's mean weight, we weigh pair by pair: no case.)
    yield dpo, 0, ["sigmoid", "sft"], {}, [1.0, 0.5]
    yield dpo, 1, ["sigmoid", "bco_pair", "sft"], {"ld_alpha": 0.6}, [0.8, 0.2, 1.0]
    yield dpo, 0, ["hinge", "robust", "sppo_hard"], {"label_smoothing": 0.2}, [0.1, 2.0, 0.01]
    for b in range(4):
        for e in [0.0, 0.1] if b == 0 else [0.0]:
            yield single_pairs, b, ["cpo"], {"cpo_alpha": 1.0, "label_smoothing": e}, [1.0]
            yield single_pairs, b, ["simpo"], {"beta": 2.0, "simpo_gamma": 0.9, "label_smoothing": e}, [1.0]
            yield single_pairs, b, ["alphapo"], {"beta": 2.5, "simpo_gamma": 0.4, "alpha": 0.25, "label_smoothing": e}, [1.0]
        yield single_pairs, b, ["alphapo"], {"beta": 0.1, "simpo_gamma": 0.5, "alpha": -0.5}, [1.0]
        yield single_pairs, b, ["orpo"], {"beta": 0.1}, [1.0]
        yield single_pairs, b, ["orpo"], {"beta": 3.0}, [1.0]


def number(x):
    return float(f"{x:.13g}") if math.isfinite(x) else None


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--out", type=Path, required=True)
    out = args.parse_args().out
    everything_in_float64()
    data, lines = batches(), []
    for run, b, loss, options, weights in cases():
        case = {"batch": b, "loss": loss, "weights": weights, "options": options}
        value, by = run(data[b], case)
        lines.append(json.dumps(case | {"value": number(value), "by": [[number(x) for x in r] for r in by]}))
    made = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    text = [f'{{"made_with": {json.dumps(made)},', ' "batches": [']
    text.append(",\n".join(json.dumps(b.json()) for b in data) + "],")
    text += [' "cases": [', ",\n".join(lines) + "]}", ""]
    out.write_text("\n".join(text))


if __name__ == "__main__":
    main()
