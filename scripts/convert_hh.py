#!/usr/bin/env python3
r"""Convert Anthropic's HH transcripts into preference rows for `fusedpo pack`.

Usage:   python scripts/convert_hh.py INPUT... --out FILE [--messages]
Input:   rows with chosen and rejected, each a whole transcript of "\n\nHuman: ..." and "\n\nAssistant: ..." turns.
Output:  {"prompt", "chosen", "rejected"}, cut after the last "\n\nAssistant:" that both transcripts share; --messages
         writes the turns as chat messages. Rows that share no Assistant turn are dropped and counted.
Needs:   Python alone.

`fusedpo pack` reads the original file too; this is for those who want to see, or filter, the prompts.
"""

import os
import re

from rows import assistant, field, run

MARK = "\n\nAssistant:"
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


def split(chosen, rejected):
    """(prompt, chosen, rejected) at the last common Assistant mark, or None."""
    shared = os.path.commonprefix([chosen, rejected])
    at = shared.rfind(MARK)
    if at < 0:
        return None
    end = at + len(MARK)
    return chosen[:end], chosen[end:], rejected[end:]


def turns(text):
    """Messages of a transcript that begins with a mark."""
    parts = TURN.split(text)
    return [{"role": ROLES[role], "content": content.strip()} for role, content in zip(parts[1::2], parts[2::2])]


def reply(text):
    """A response, which may run on over more turns, as messages."""
    first = TURN.split(text)[0]
    return assistant(first) + turns(text[len(first):])


def convert(row, where, args, drop):
    parts = split(field(row, "chosen", str, where), field(row, "rejected", str, where))
    if parts is None:
        drop("no common Assistant turn")
        return
    prompt, chosen, rejected = parts
    if not args.messages:
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        return
    history = turns(prompt[: -len(MARK)])
    if not history:
        drop("no turn before the answer")
        return
    yield {"prompt": history, "chosen": reply(chosen), "rejected": reply(rejected)}


def options(parser):
    parser.add_argument("--messages", action="store_true", help="chat messages instead of text")


if __name__ == "__main__":
    run(__doc__, convert, options)
