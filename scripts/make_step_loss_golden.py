#!/usr/bin/env python3
"""Make tests/golden/step_losses.json: losses of a whole batch by TRL's own code, that tests/training/step_losses.rs compares with.

Usage:   python scripts/make_step_loss_golden.py --out tests/golden/step_losses.json
Input:   none (fixed seeds).
Output:  OUT: for aot and aot_unpaired log-probs of chosen and rejected responses by policy and reference, options, value and
         derivatives; for kto labels, log-probs of responses and of mismatched rows, options, value, kl and derivatives.
Needs:   torch, trl==1.16.0, transformers==5.23.0 (CPU is enough). Numbers are committed, none of TRL's code.

`DPOTrainer._compute_loss` and `KTOTrainer._compute_loss` with a model that answers with the batch's log-probs, each a response
of one token. Everything runs in float64: where TRL names float32 it gets float64.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

try:
    import torch
    import trl
    from trl.trainer import dpo_trainer, kto_trainer
except ImportError as error:
    sys.exit(f"make_step_loss_golden: {error}; install: python -m pip install torch trl==1.16.0 transformers==5.23.0")


class Torch64:
    """torch, with float64 where its user names float32."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double
dpo_trainer.torch = kto_trainer.torch = Torch64()


def accelerator():
    same = lambda x: x
    return SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same)


def answer(log_probs):
    """One scored position a row, behind a prompt of one token."""
    zero = torch.zeros_like(log_probs)
    return SimpleNamespace(log_probs=log_probs, log_sum_sq_probs=zero, entropy=zero, mean_logits=zero, is_top1=zero > 0)


def inputs(rows):
    ids = torch.zeros(rows, 2).long()
    return {"input_ids": ids, "attention_mask": ids + 1, "completion_mask": torch.tensor([[0, 1]] * rows)}


def aot(name, policy, reference, beta, smoothing):
    policy = torch.tensor(policy).view(-1, 1).requires_grad_()
    reference = torch.tensor(reference).view(-1, 1)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        args=SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None),
        accelerator=accelerator(), aux_loss_enabled=False, precompute_ref_logps=False,
        ref_model=lambda **_: answer(reference), loss_types=[name], loss_weights=[1.0], beta=beta, label_smoothing=smoothing,
        ld_alpha=None, f_divergence_type="reverse_kl", f_alpha_divergence_coef=0.5, use_weighting=False,
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    batch = inputs(len(policy))
    loss = dpo_trainer.DPOTrainer._compute_loss(trainer, lambda **_: answer(policy), batch, False)
    loss.backward()
    return {"value": loss.item(), "by": policy.grad.view(-1).tolist()}


def kto(labels, policy, reference, mismatched, options):
    policy = torch.tensor(policy).view(-1, 1).requires_grad_()
    other, other_reference = [torch.tensor(x) for x in mismatched]
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator(), aux_loss_enabled=False, precompute_ref_logps=True,
        calculate_KL=True, loss_type="kto", _compute_kl_logps=lambda *_: other, _metrics={"train": defaultdict(list)},
        _total_train_tokens=0, _tp_size=1, **options,
    )  # fmt: skip
    batch = inputs(len(labels)) | {"label": torch.tensor(labels), "ref_logps": torch.tensor(reference), "ref_KL_logps": other_reference}
    loss = kto_trainer.KTOTrainer._compute_loss(trainer, lambda **_: answer(policy), batch, False)
    loss.backward()
    return {"value": loss.item(), "kl": trainer._metrics["train"]["kl"][0], "by": policy.grad.view(-1).tolist()}


def drawn(seed, n, scale, low=-60.0):
    g = torch.Generator().manual_seed(seed)
    policy = [round(low * x - 1, 3) for x in torch.rand(n, generator=g).tolist()]
    return policy, [round(p + scale * (2 * x - 1), 3) for p, x in zip(policy, torch.rand(n, generator=g).tolist())]


def cases():
    for name in ["aot", "aot_unpaired"]:
        for seed, (n, scale) in enumerate([(1, 3.0), (2, 3.0), (7, 5.0), (16, 40.0), (5, 0.0), (9, 2e4)]):
            policy, reference = drawn(seed, 2 * n, scale)
            for beta, smoothing in [(0.1, 0.0), (1.5, 0.2)]:
                case = {"loss": name, "policy": policy, "reference": reference, "beta": beta, "label_smoothing": smoothing}
                yield case | aot(name, policy, reference, beta, smoothing)
    for seed, (n, scale, drift) in enumerate([(2, 3.0, 1.0), (6, 5.0, -4.0), (8, 30.0, 9.0), (5, 1e4, 0.0), (4, 0.0, 0.0)]):
        policy, reference = drawn(50 + seed, n, scale)
        other, other_reference = drawn(90 + seed, n, scale)
        other_reference = [round(x - drift, 3) for x in other_reference]
        mixed = [(3 * i + seed) % 5 < 2 for i in range(n)]
        for labels in [mixed, [True] * n, [False] * n]:
            for beta, desirable, undesirable in [(0.1, 1.0, 1.0), (0.8, 1.33, 0.5)]:
                options = {"beta": beta, "desirable_weight": desirable, "undesirable_weight": undesirable}
                case = {"loss": "kto", "labels": labels, "policy": policy, "reference": reference}
                case |= {"mismatched": other, "mismatched_reference": other_reference} | options
                yield case | kto(labels, policy, reference, (other, other_reference), options)


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--out", type=Path, required=True)
    out = args.parse_args().out
    lines = ",\n".join(json.dumps(case) for case in cases())
    made = {"trl": trl.__version__, "torch": torch.__version__.split("+")[0]}
    out.write_text(f'{{"made_with": {json.dumps(made)}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
