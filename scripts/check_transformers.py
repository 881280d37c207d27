#!/usr/bin/env python3
"""Check that transformers gives an exported model the same log-probs as `fusedpo score`.

Usage:   python scripts/check_transformers.py --model DIR --scores scores.jsonl --data-jsonl ROWS.jsonl
         [--tolerance 1e-3 | --twice-plain] [--dtype float32|float64|bfloat16] [--oracle transformers|torch] [--limit N]
Input:   DIR, a Hugging Face model directory; ROWS, the file that was packed: tokenised rows of "prompt_ids" with
         "chosen_ids" and "rejected_ids", "responses_ids", or "completion_ids"; scores.jsonl, which `fusedpo score`
         wrote: {"row", "response", "num_tokens", "logp"}, with --per-token also "token_logps".
Output:  the largest differences on stdout; exit status 1 when one is above the tolerance (nats a response).
Needs:   torch (CPU is enough); transformers, or with --oracle torch the forward pass of plain_llama.py.

--twice-plain is the rule for low precision: the scores may be twice as far from float64, by root mean square over the
responses, as the oracle in --dtype is.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
try:
    import torch
except ImportError as error:
    sys.exit(f"check_transformers: {error}; install: python -m pip install torch transformers")

from rows import InputError, field, read_rows


def read_data(path):
    """Prompt and responses, as token ids, of every row."""
    table = []
    for where, row in read_rows(path):
        prompt = field(row, "prompt_ids", list, where)
        if "responses_ids" in row:
            responses = field(row, "responses_ids", list, where)
        else:
            names = ("completion_ids",) if "completion_ids" in row else ("chosen_ids", "rejected_ids")
            responses = [field(row, name, list, where) for name in names]
        table.append((prompt, responses))
    return table


def read_scores(path, table):
    """(where, prompt, response, score line) of every line of scores."""
    for where, line in read_rows(path):
        row, response = field(line, "row", int, where), field(line, "response", int, where)
        if not (0 <= row < len(table) and 0 <= response < len(table[row][1])):
            raise InputError(f"{where}: row {row}, response {response} is not in the data; were these rows packed?")
        field(line, "logp", (int, float), where)
        yield where, table[row][0], table[row][1][response], line


class Transformers:
    """transformers' model of a directory."""

    def __init__(self, directory, dtype, device):
        from transformers import AutoModelForCausalLM
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).to(device).eval()

    def token_logps(self, prompt, response):
        """Log-prob of each response token, float64; without a prompt the first has no predictor and is left out."""
        scored = response if prompt else response[1:]
        ids = torch.tensor([prompt + response], device=self.model.device)
        with torch.no_grad():
            logits = self.model(input_ids=ids, logits_to_keep=len(scored) + 1, use_cache=False).logits[0, :-1]
        target = torch.tensor(scored, device=self.model.device)
        return logits.double().log_softmax(-1).gather(-1, target[:, None])[:, 0].cpu()


def load_oracle(args, dtype):
    if args.oracle == "transformers":
        return Transformers(args.model, dtype, args.device)
    from plain_llama import PlainLlama
    return PlainLlama(args.model, dtype, args.device)


class Worst:
    """The largest difference seen, and where."""

    def __init__(self):
        self.difference, self.where = 0.0, "-"

    def see(self, difference, where):
        if not difference <= self.difference:  # also true for NaN, which then stays
            self.difference, self.where = difference, where


def compare(model, lines):
    """(responses compared, worst difference of a response, worst of a token or None)."""
    count, whole, token, any_token = 0, Worst(), Worst(), False
    for where, prompt, response, line in lines:
        truth = model.token_logps(prompt, response)
        if line.get("num_tokens", len(truth)) != len(truth):
            raise InputError(f"{where}: num_tokens is {line['num_tokens']}, the data has {len(truth)} scored tokens; "
                             "a truncated row cannot be compared, pack with a larger --max-length")
        whole.see(abs(truth.sum().item() - line["logp"]), where)
        if "token_logps" in line:
            if len(line["token_logps"]) != len(truth):
                raise InputError(f"{where}: {len(line['token_logps'])} token_logps for {len(truth)} scored tokens")
            any_token = True
            token.see((truth - torch.tensor(line["token_logps"], dtype=torch.float64)).abs().max().item(), where)
        count += 1
    return count, whole, token if any_token else None


def errors_against_f64(args, lines):
    """Root mean square errors, over responses, against the oracle in float64: of the scores, and of the oracle in --dtype."""
    exact, plain = load_oracle(args, torch.float64), load_oracle(args, getattr(torch, args.dtype))
    ours, theirs = [], []
    for _, prompt, response, line in lines:
        truth = exact.token_logps(prompt, response).sum().item()
        ours.append(line["logp"] - truth)
        theirs.append(plain.token_logps(prompt, response).sum().item() - truth)
    rms = lambda errors: (sum(e * e for e in errors) / len(errors)) ** 0.5
    return rms(ours), rms(theirs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--data-jsonl", type=Path, required=True)
    parser.add_argument("--tolerance", type=float, default=1e-3, help="nats a response")
    parser.add_argument("--twice-plain", action="store_true", help="in place of --tolerance: at most twice the oracle's own error in --dtype")
    parser.add_argument("--oracle", choices=["transformers", "torch"], default="transformers")
    parser.add_argument("--dtype", choices=["float32", "float64", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, help="compare the first N lines of scores only")
    args = parser.parse_args()
    try:
        lines = list(read_scores(args.scores, read_data(args.data_jsonl)))[: args.limit]
        if not lines:
            raise InputError(f"{args.scores}: no lines to compare")
        if not (args.model / "config.json").is_file():
            raise InputError(f"--model {args.model}: no config.json there")
        if args.twice_plain:
            ours, plain = errors_against_f64(args, lines)
            print(f"{len(lines)} responses, {args.oracle} in {args.dtype} on {args.device}")
            print(f"error against float64: {ours:.3e} nat, {args.oracle} itself {plain:.3e} nat")
            sys.exit(None if ours <= 2 * plain else f"check_transformers: {ours:.3e} is above twice {plain:.3e} nat")
        count, whole, token = compare(load_oracle(args, getattr(torch, args.dtype)), lines)
    except ImportError as error:
        sys.exit(f"check_transformers: {error}; install: python -m pip install transformers")
    except (InputError, OSError, ValueError) as error:
        sys.exit(f"check_transformers: {str(error).strip().splitlines()[0]}")
    print(f"{count} responses, {args.oracle} in {args.dtype} on {args.device}")
    print(f"largest difference of a response: {whole.difference:.3e} nat ({whole.where})")
    if token:
        print(f"largest difference of a token:    {token.difference:.3e} nat ({token.where})")
    if not whole.difference <= args.tolerance:
        sys.exit(f"check_transformers: {whole.difference:.3e} is above the tolerance of {args.tolerance:g} nat")


if __name__ == "__main__":
    main()
