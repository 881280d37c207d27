#!/usr/bin/env python3
"""Convert OpenAssistant message trees into scored-response rows for `fusedpo pack`.

Usage:   python scripts/convert_oasst.py INPUT... --out FILE [--lang en]
Input:   one message tree per row: {"prompt": {"text", "role", "rank", "replies": [...]}} (oasst *.trees.jsonl).
Output:  one row for every user turn with two or more ranked replies: {"prompt": all messages so far,
         "responses": one message list per reply, "scores": 0 for the worst rank, higher is better}. Deleted and
         unranked replies are left out of the responses; the conversation is still followed through unranked ones.
Needs:   Python alone.
"""

from rows import InputError, assistant, field, run

ROLES = {"prompter": "user", "assistant": "assistant"}


def message(node, where):
    role = field(node, "role", str, where)
    if role not in ROLES:
        raise InputError(f"{where}: role '{role}'; expected prompter or assistant")
    return {"role": ROLES[role], "content": field(node, "text", str, where)}


def nodes(root, where):
    """Yield (messages up to and with this node, its replies), in document order, without recursion."""
    stack = [([], root)]
    while stack:
        before, node = stack.pop()
        if not isinstance(node, dict):
            raise InputError(f"{where}: a message is {type(node).__name__}, expected an object")
        if node.get("deleted"):
            continue
        history = before + [message(node, where)]
        replies = field(node, "replies", list, where)
        yield history, replies
        stack.extend((history, reply) for reply in reversed(replies))


def ranked(replies, where):
    """Replies that were ranked and not deleted, best first."""
    found = []
    for reply in replies:
        if isinstance(reply, dict) and not reply.get("deleted") and reply.get("rank") is not None:
            found.append((field(reply, "rank", int, where), field(reply, "text", str, where)))
    return sorted(found, key=lambda pair: pair[0])


def convert(row, where, args, drop):
    root = field(row, "prompt", dict, where)
    if args.lang and root.get("lang") != args.lang:
        drop("other language")
        return
    for history, replies in nodes(root, where):
        if history[-1]["role"] != "user" or not replies:
            continue
        found = ranked(replies, where)
        if len(found) < 2:
            drop("user turns with fewer than two ranked replies")
            continue
        worst = found[-1][0]
        yield {"prompt": history, "responses": [assistant(text) for _, text in found],
               "scores": [worst - rank for rank, _ in found]}


def options(parser):
    parser.add_argument("--lang", help="keep trees in this language only, such as en")


if __name__ == "__main__":
    run(__doc__, convert, options)
