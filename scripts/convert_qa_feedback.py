#!/usr/bin/env python3
"""Convert the preference feedback of QA-Feedback (FineGrainedRLHF) into scored-response rows for `fusedpo pack`.

Usage:   python scripts/convert_qa_feedback.py INPUT... --out FILE [--messages]
Input:   rows with question, passages ([title, sentence, ...] each), "prediction 1" to "prediction 4" and preference: of the
         pairs (1,2) (1,3) (1,4) (2,3) (2,4) (3,4) which is better, 1 the first, 2 the second, 0 neither (train_feedback.json,
         dev_feedback.json).
Output:  {"prompt": passages and question, "responses", "scores": comparisons won, and half of those that nobody won}. The
         pairs that `pack` makes are of that count: a response that won more is better, also where people judged the two equal.
Needs:   Python alone.
"""

from rows import InputError, assistant, field, run, user

PAIRS = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


def passage(parts, where):
    """Title, and the sentences on one line."""
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
        raise InputError(f"{where}: a passage is not a list of a title and its sentences")
    return f"{parts[0]}\n{' '.join(parts[1:])}"


def scores(preferences, where):
    if len(preferences) != len(PAIRS) or not all(type(p) is int and 0 <= p <= 2 for p in preferences):
        raise InputError(f"{where}: preference is {preferences}; expected six of 0 (neither), 1 (first) or 2 (second)")
    won = [0.0] * 4
    for pair, preference in zip(PAIRS, preferences):
        for place, response in enumerate(pair, 1):
            won[response] += 0.5 if preference == 0 else float(preference == place)
    return won


def convert(row, where, args, drop):
    question = field(row, "question", str, where)
    passages = "\n\n".join(passage(parts, where) for parts in field(row, "passages", list, where))
    responses = [field(row, f"prediction {i}", str, where) for i in (1, 2, 3, 4)]
    won = scores(field(row, "preference", list, where), where)
    if len(set(won)) == 1:
        drop("no response is better than another")
        return
    if args.messages:
        prompt, responses = [user(f"{passages}\n\nQuestion: {question}")], [assistant(text) for text in responses]
    else:
        prompt, responses = f"{passages}\n\nQuestion: {question}\nAnswer:", [f" {text.strip()}" for text in responses]
    yield {"prompt": prompt, "responses": responses, "scores": won}


def options(parser):
    parser.add_argument("--messages", action="store_true", help="chat messages instead of Question/Answer text")


if __name__ == "__main__":
    run(__doc__, convert, options)
