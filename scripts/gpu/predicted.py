"""What arithmetic says that a GPU will show, beside which check.py writes what it showed. Every figure here is a prediction.

Usage:   from predicted import kernel_share, step_share, PEERS      (a module; it has no command line)
Source:  said at each table. All are for an H100 SXM.
"""

NONE = "-"

# Share of the ceiling that the bench measures, by op: of bandwidth where an op moves bytes. Head: the time that a multiprocessor
# idles between two rows (kernels/head.cu, "Predicted"), at 49k and 152k logits. Norm, optimiser: reads on their way against the
# 16 KB a multiprocessor that an H100 needs, and the instructions of their loops. The others are guesses: nothing that was
# counted keeps them from a copy's speed.
KERNELS = {
    "head_fwd": "82 to 92 %",
    "rmsnorm_fwd": "87 %",
    "adamw": "85 to 93 %",
    "rope": "90 % (a guess)",
    "swiglu_fwd": "85 % (a guess)",
    "swiglu_bwd": "85 % (a guess)",
}

# Useful TFLOP/s of attention at 0.5B (14/2 heads of 64, 16,384 slots) by its passes: scripts/attention_schedule.py.
ATTENTION = {"attention_fwd": "203 / 262 / 279 TFLOP/s (HH / TL;DR / UF)", "attention_bwd": "138 / 181 / 190 TFLOP/s (HH / TL;DR / UF)"}

# MFU of a whole step: docs/step-model.md's "at most", times what it says of real products (78 %; 135M half; 1B and more up to 86 %,
# as published engines keep more there).
STEPS = {"135m": "20 to 22 %", "0.5b": "37 to 41 %", "1b": "44 to 54 %"}

# Of pairs/s, ours over theirs: what we aim at, not the outcome of a calculation.
PEERS = {"trl-default-bf16": "5x (the aim)", "trl-best-bf16": "2.5x (the aim)", "torch-shared-bf16": "1.5x (the aim)",
         "torch-compile-bf16": "1.2x (the aim)"}


def kernel_share(op):
    return KERNELS.get(op) or ATTENTION.get(op, NONE)


def step_share(shape):
    return STEPS.get(shape.lower(), NONE)
