#!/usr/bin/env python3
"""Convert GSM8K's model solutions into scored-response rows for `fusedpo pack`.

Usage:   python scripts/convert_gsm8k.py INPUT... --out FILE [--messages]
Input:   rows with question and four solutions, each {"solution", "is_correct"}, under 6b_finetuning, 6b_verification,
         175b_finetuning and 175b_verification (grade-school-math, example_model_solutions.jsonl).
Output:  {"prompt", "responses", "scores": 1 where the answer is correct, else 0}; questions whose solutions are all correct or all
         wrong are dropped and counted. The questions are those of GSM8K's test split: what is trained on them is not to be
         measured by it.
Needs:   Python alone.
"""

from rows import assistant, field, run, user

SOLVERS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def convert(row, where, args, drop):
    question = field(row, "question", str, where)
    solutions = [field(row, solver, dict, where) for solver in SOLVERS]
    texts = [field(solution, "solution", str, where) for solution in solutions]
    scores = [int(field(solution, "is_correct", bool, where)) for solution in solutions]
    if len(set(scores)) == 1:
        drop("all correct" if scores[0] else "all wrong")
        return
    if args.messages:
        yield {"prompt": [user(question)], "responses": [assistant(text) for text in texts], "scores": scores}
    else:
        responses = [f" {text.strip()}" for text in texts]
        yield {"prompt": f"Question: {question}\nAnswer:", "responses": responses, "scores": scores}


def options(parser):
    parser.add_argument("--messages", action="store_true", help="chat messages instead of Question/Answer text")


if __name__ == "__main__":
    run(__doc__, convert, options)
