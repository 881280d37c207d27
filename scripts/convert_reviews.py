#!/usr/bin/env python3
"""Convert film reviews with their sentiment into judged continuations for `fusedpo pack`.

Usage:   python scripts/convert_reviews.py INPUT... --out FILE [--prompt-words 8] [--desired positive|negative]
Input:   folders with a review a file in pos/ and neg/ (Large Movie Review Dataset's train/, NLTK's movie_reviews/), or rows with
         text and label (1 or "pos" for a positive review, 0 or "neg" for a negative one).
Output:  {"prompt": the first words of a review, "completion": the rest, "label": whether its sentiment is the desired one}.
         Nobody compared two endings of one beginning: that is a judgement of each text by itself, for the unpaired loss (kto).
         Reviews that have no word after their beginning are dropped and counted.
Needs:   Python alone.
"""

import re

from rows import InputError, decode, field, read_rows, run

LABELS = {1: True, 0: False, "pos": True, "neg": False}


def reviews(path):
    """Rows of a file, or of the files in pos/ and neg/ of a folder, in the order of their names."""
    if not path.is_dir():
        yield from read_rows(path)
        return
    for label in ("pos", "neg"):
        if not (path / label).is_dir():
            raise InputError(f"{path}: no folder {label} in it; expected pos/ and neg/")
        for file in sorted((path / label).glob("*.txt")):
            yield str(file), {"text": re.sub(r"<br\s*/?>", "\n", decode(file.read_bytes(), file)), "label": label}


def convert(row, where, args, drop):
    text, label = field(row, "text", str, where), field(row, "label", (int, str), where)
    if label not in LABELS:
        raise InputError(f"{where}: label is {label!r}; expected 1 or 'pos', 0 or 'neg'")
    beginning = re.match(r"\s*" + r"\s+".join([r"\S+"] * args.prompt_words), text)
    rest = text[beginning.end():] if beginning else ""
    if not rest.strip():
        drop("too short")
        return
    yield {"prompt": beginning[0].lstrip(), "completion": rest.rstrip(), "label": LABELS[label] == (args.desired == "positive")}


def words(text):
    count = int(text)
    if not 1 <= count <= 1000:
        raise ValueError
    return count


def options(parser):
    parser.add_argument("--prompt-words", type=words, default=8, help="words of a beginning, 1 to 1000")
    parser.add_argument("--desired", choices=["positive", "negative"], default="positive", help="which sentiment is good")


if __name__ == "__main__":
    run(__doc__, convert, options, reviews)
