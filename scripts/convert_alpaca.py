#!/usr/bin/env python3
"""Convert Alpaca-like instruction files into rows for `fusedpo pack`.

Usage:   python scripts/convert_alpaca.py INPUT... --out FILE [--mode preference|sft] [--messages]
Input:   rows with instruction, optional input, and chosen + rejected (preference) or output (sft).
Output:  {"prompt", "chosen", "rejected"}, or with --mode sft {"prompt", "completion"}. The prompt is Stanford Alpaca's
         template; --messages writes chat messages instead, for models with a chat template.
Needs:   Python alone.
"""

from rows import assistant, field, run, user

TASK = "Below is an instruction that describes a task"
CONTEXT = ", paired with an input that provides further context"
REQUEST = ". Write a response that appropriately completes the request."


def alpaca_prompt(instruction, context):
    """Stanford Alpaca's prompt, which has a form with an input and one without."""
    if context:
        return f"{TASK}{CONTEXT}{REQUEST}\n\n### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:\n"
    return f"{TASK}{REQUEST}\n\n### Instruction:\n{instruction}\n\n### Response:\n"


def prompt_of(row, where, messages):
    instruction = field(row, "instruction", str, where)
    context = field(row, "input", str, where) if row.get("input") else ""
    if messages:
        return [user(f"{instruction}\n\n{context}" if context else instruction)]
    return alpaca_prompt(instruction, context)


def convert(row, where, args, drop):
    names = {"chosen": "chosen", "rejected": "rejected"} if args.mode == "preference" else {"completion": "output"}
    result = {"prompt": prompt_of(row, where, args.messages)}
    for target, source in names.items():
        answer = field(row, source, str, where)
        result[target] = assistant(answer) if args.messages else answer
    yield result


def options(parser):
    parser.add_argument("--mode", choices=["preference", "sft"], default="preference")
    parser.add_argument("--messages", action="store_true", help="chat messages instead of the Alpaca template")


if __name__ == "__main__":
    run(__doc__, convert, options)
