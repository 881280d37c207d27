"""What the convert_*.py programs share: reading JSON rows, checking fields, writing JSONL, one line for each error.

Usage:   from rows import field, run            (a module; it has no command line)
Input:   .jsonl, or .json holding one array; either may be gzipped (told by content, not by name).
Output:  one JSON object per line, UTF-8; the file appears whole or not at all.
Needs:   Python 3.9 or newer, nothing else.
"""

import argparse
import collections
import gzip
import json
import os
import sys
import tempfile
import zlib
from pathlib import Path

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class InputError(ValueError):
    """The input cannot be used; the message says where and why."""


def reject_constant(text):
    raise ValueError(f"{text} is not JSON")


def parse(text, where):
    try:
        return json.loads(text, parse_constant=reject_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: malformed JSON: {error}") from None


def decode(data, where):
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 at byte {error.start}") from None


def read_array(file, path):
    items = parse(decode(file.read(), path), path)
    for number, item in enumerate(items):
        yield f"{path}: item {number}", item


def read_lines(file, path):
    # Bytes, because text lines would also end at U+2028 and its like, which JSON strings may hold.
    for number, line in enumerate(file, 1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, parse(decode(line, where), where)


def read_rows(path):
    """Yield (where, row) for every row of a file; `where` names file and line for messages."""
    with open(path, "rb") as plain:
        zipped = plain.read(2) == b"\x1f\x8b"
    with (gzip.open if zipped else open)(path, "rb") as file:
        try:
            start = file.read(64)
            mark = len(BYTE_ORDER_MARK) if start.startswith(BYTE_ORDER_MARK) else 0
            file.seek(mark)
            start = start[mark:].lstrip()
            for where, row in (read_array if start.startswith(b"[") else read_lines)(file, path):
                yield where, row
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path}: damaged gzip: {error}") from None


def field(row, name, kind, where):
    """row[name], which must be there and of the given type (or tuple of types)."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object, found {type(row).__name__}")
    if name not in row:
        raise InputError(f"{where}: no field '{name}'; found {', '.join(sorted(row)) or 'none'}")
    value = row[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    # bool is an int in Python, but not in anybody's data.
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(k.__name__ for k in kinds)
        raise InputError(f"{where}: field '{name}' is {type(value).__name__}, expected {expected}")
    return value


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    """A response as a message list. Anything but a string is passed on as it is: `pack` counts and reports it."""
    return [{"role": "assistant", "content": text.strip()}] if isinstance(text, str) else text


def write_rows(out, rows):
    """Write rows to `out` by way of a temporary file beside it; returns how many."""
    count = 0
    with tempfile.NamedTemporaryFile("wb", dir=out.parent, prefix=f".{out.name}.", delete=False) as file:
        try:
            for where, row in rows:
                try:
                    file.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")
                except UnicodeEncodeError:
                    raise InputError(f"{where}: holds half of a surrogate pair (\\ud800..\\udfff), which is no text") from None
                count += 1
            if not count:
                raise InputError("no rows are left to write")
            file.close()
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(file.name, 0o666 & ~umask)  # temporary files are private; the result is an ordinary file
            os.replace(file.name, out)
        except BaseException:
            file.close()
            os.unlink(file.name)
            raise
    return count


def run(doc, convert, options=None, rows_of=read_rows):
    """The command line of a converter.

    `convert(row, where, args, drop)` yields output rows and calls drop(reason) for what it leaves out; `options(parser)`
    adds options of its own; `rows_of(path)` yields (where, row) of an input.
    """
    program = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(prog=program, description=doc.splitlines()[0])
    parser.add_argument("input", type=Path, nargs="+", help=".jsonl or .json, plain or gzipped")
    parser.add_argument("--out", type=Path, required=True, help="the JSONL file to write")
    if options:
        options(parser)
    args = parser.parse_args()
    dropped, read = collections.Counter(), 0

    def drop(reason):
        dropped[reason] += 1

    def rows():
        nonlocal read
        for path in args.input:
            for where, row in rows_of(path):
                read += 1
                for result in convert(row, where, args, drop):
                    yield where, result

    try:
        if not args.out.parent.is_dir():
            raise InputError(f"--out {args.out}: there is no folder {args.out.parent}")
        if args.out.exists() and any(os.path.samefile(args.out, path) for path in args.input if path.exists()):
            raise InputError(f"--out {args.out}: is also an input; name another file")
        written = write_rows(args.out, rows())
    except (InputError, OSError) as error:
        reasons = "".join(f"; {count} dropped: {reason}" for reason, count in dropped.items())
        sys.exit(f"{program}: {error}{reasons}")
    reasons = "".join(f", {count} dropped ({reason})" for reason, count in sorted(dropped.items()))
    print(f"{program}: {read} rows read, {written} written{reasons}", file=sys.stderr)
