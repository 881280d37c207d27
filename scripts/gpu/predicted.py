"""What arithmetic says that a GPU will show, beside which check.py writes what it showed. Every figure here is a prediction.

Usage:   from predicted import kernel_share, step_share, PEERS      (a module; it has no command line)
Source:  counts of instructions and bytes of each kernel on an H100 SXM (docs/kernels.md), published rates of attention, and the
step by arithmetic (benches/step/predict.md).
"""

NONE = "-"

# Share of the ceiling that the bench measures, by op: of bandwidth where an op moves bytes. A head leaves its multiprocessor idle
# between two rows of a block; an optimiser's streams are many.
KERNELS = {
    "head_fwd": "82 to 92 %",
    "rmsnorm_fwd": "87 %",
    "adamw": "85 to 93 %",
    "rope": "90 %",
    "swiglu_fwd": "85 %",
    "swiglu_bwd": "85 %",
}

# Useful TFLOP/s of attention at 0.5B (14/2 heads of 64, 16,384 slots) by its passes, lengths as of HH, TL;DR, UltraFeedback.
ATTENTION = {"attention_fwd": "186 / 238 / 253 TFLOP/s (HH / TL;DR / UF)", "attention_bwd": "144 / 188 / 199 TFLOP/s (HH / TL;DR / UF)"}

# MFU of a whole step: about what published engines keep at these sizes.
STEPS = {"135m": "30 to 41 %", "0.5b": "45 to 50 %", "1b": "52 to 57 %"}

# Of pairs/s, ours over theirs.
PEERS = {"trl-default-bf16": "at least 5x", "trl-best-bf16": "at least 2x", "torch-shared-bf16": "at least 1.5x",
         "torch-compile-bf16": "at least 1.2x"}


def kernel_share(op):
    return KERNELS.get(op) or ATTENTION.get(op, NONE)


def step_share(shape):
    return STEPS.get(shape.lower(), NONE)
