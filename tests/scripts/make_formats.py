"""Writes Parquet files of many kinds, and beside each the rows that pyarrow reads from it.

    python make_formats.py FOLDER [--seed N] [--small]

FOLDER/NAME.parquet has its rows in FOLDER/NAME.rows, a JSON object a line, without columns whose names start with `unused`.
The files are pyarrow's, polars's and DuckDB's; what pyarrow cannot read is left out. --small writes the few short files of
tests/formats. The same seed gives the same files.
"""

import argparse
import datetime
import decimal
import itertools
import json
import random
import sys
import uuid
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq

CODECS = ["none", "snappy", "gzip", "brotli", "lz4", "zstd"]
PIECES = ["a", "b", " ", "é", "中", "\n", '"', "\\", "🙂", "xxx", "{", "["]
INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
INNER = pa.struct([("x", pa.float64()), ("y", pa.list_(pa.struct([("z", pa.bool_())])))])
MESSAGE = pa.struct([
    ("role", pa.string()), ("content", pa.string()), ("n", pa.int64()), ("tags", pa.list_(pa.string())), ("inner", INNER),
])  # fmt: skip
SCALARS = pa.struct([
    ("date", pa.date32()), ("ms", pa.timestamp("ms")), ("us", pa.timestamp("us")), ("utc", pa.timestamp("us", "UTC")),
    ("time", pa.time64("us")), ("dec", pa.decimal128(18, 2)), ("big", pa.decimal128(38, 3)), ("whole", pa.decimal128(18, 0)),
    ("bytes", pa.binary()),
])  # fmt: skip
ENCODINGS = {
    "prompt": ["DELTA_BYTE_ARRAY"],
    "rejected": ["DELTA_LENGTH_BYTE_ARRAY"],
    "chosen.list.element.content": ["DELTA_BYTE_ARRAY"],
    "chosen.list.element.role": ["DELTA_LENGTH_BYTE_ARRAY"],
    "chosen.list.element.n": ["DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"],
    "scores.list.element": ["BYTE_STREAM_SPLIT"],
    "responses_ids.list.element.list.element": ["DELTA_BINARY_PACKED"],
}
# What the small files have beside prompts and answers, one after the other: all of it would make every footer long.
EXTRAS = [
    ["scores", "label", "prompt_ids"],
    ["responses_ids", "weight", "tools"],
    ["chat_template_kwargs", "unused"],
    ["chosen", "scores", "unused_duration"],
    ["chosen", "responses_ids"],
]
DUCKDB_COLUMNS = """*, 'a'::varchar as completion, row(1, 'x') as functions, '{id}'::uuid as history,
    interval 3 day as unused_interval, 'b'::enum('a', 'b') as input, 12345678901234567890123::hugeint as unused_hugeint,
    '12:30:00'::time as output, '2020-01-01 00:00:00+00'::timestamptz as response"""


class Columns:
    """Columns of random values, many of them null."""

    lengths = [0, 1, 7, 100]

    def __init__(self, seed):
        self.rng = random.Random(seed)

    def text(self):
        return "".join(self.rng.choices(PIECES, k=self.rng.choice([0, 1, 5, 40, 300])))

    def maybe(self, make, null=0.2):
        return None if self.rng.random() < null else make()

    def some(self, make, counts):
        return [make() for _ in range(self.rng.choice(counts))]

    def column(self, rows, make, kind, null=0.2):
        return pa.array([self.maybe(make, null) for _ in range(rows)], kind)

    def truth(self):
        return self.rng.random() < 0.5

    def message(self):
        rng, maybe, some = self.rng, self.maybe, self.some
        return {
            "role": rng.choice(["user", "assistant", "system"]),
            "content": maybe(self.text, 0.1),
            "n": maybe(lambda: rng.randrange(-5, 1 << 40)),
            "tags": maybe(lambda: some(lambda: maybe(self.text), [0, 0, 1, 3])),
            "inner": maybe(lambda: {
                "x": maybe(rng.random),
                "y": maybe(lambda: some(lambda: {"z": maybe(self.truth)}, [0, 1, 2])),
            }),
        }  # fmt: skip

    def moment(self, microseconds, zone=None):
        rng = self.rng
        return datetime.datetime(rng.randint(1600, 2500), rng.randint(1, 12), 3, 4, 5, 6, rng.choice([0, microseconds]), zone)

    def number(self, digits, scale):
        return decimal.Decimal(self.rng.randint(-(10**digits), 10**digits)).scaleb(-scale)

    def scalars(self):
        rng = self.rng
        makers = {
            "date": lambda: datetime.date(rng.randint(1, 9999), rng.randint(1, 12), rng.randint(1, 28)),
            "ms": lambda: self.moment(7000),
            "us": lambda: self.moment(7),
            "utc": lambda: self.moment(7, datetime.timezone.utc),
            "time": lambda: datetime.time(rng.randint(0, 23), rng.randint(0, 59), 1, rng.choice([0, 5])),
            "dec": lambda: self.number(15, 2),
            "big": lambda: self.number(30, 3),
            "whole": lambda: self.number(15, 0),
            "bytes": lambda: self.text().encode(),
        }
        return {name: self.maybe(make) for name, make in makers.items()}

    def integers(self, rows):
        kind = self.rng.choice(INTEGERS)
        low = 0 if pa.types.is_unsigned_integer(kind) else -(1 << kind.bit_width - 1)
        high = low + (1 << kind.bit_width) - 1
        value = lambda: self.rng.choice([low, high, self.rng.randint(low, high)])
        return self.column(rows, lambda: self.some(value, self.lengths), pa.list_(kind))

    def prompts(self, rows):
        if self.rng.random() < 0.3:
            return self.column(rows, self.text, pa.string()).dictionary_encode()
        return self.column(rows, self.text, self.rng.choice([pa.string(), pa.large_string(), pa.string_view()]))

    def make(self, rows):
        """All columns, by name."""
        rng, maybe, some = self.rng, self.maybe, self.some
        id_lists = lambda: some(lambda: maybe(lambda: some(lambda: maybe(lambda: rng.randrange(1000)), [0, 1, 3])), [0, 1, 3])
        pairs = lambda: [(key, maybe(self.text)) for key in rng.sample("abcdef", rng.choice([0, 1, 3]))]
        chosen = lambda: some(lambda: maybe(self.message, 0.05), [0, 1, 2, 5])
        scores = lambda: some(lambda: rng.choice([1.5, -2.25, 1e300, 0.1, 3.0]), [0, 1, 4])
        return {
            "prompt": self.prompts(rows),
            "chosen": self.column(rows, chosen, rng.choice([pa.list_, pa.large_list])(MESSAGE)),
            "rejected": self.column(rows, self.text, pa.string(), null=0),
            "scores": self.column(rows, scores, pa.list_(pa.float64())),
            "weight": self.column(
                rows, lambda: rng.choice([0.5, 1.25, -3.0]), rng.choice([pa.float32(), pa.float64(), pa.float16()])
            ),
            "label": self.column(rows, self.truth, pa.bool_()),
            "prompt_ids": self.integers(rows),
            "responses_ids": self.column(rows, id_lists, pa.list_(pa.list_(pa.int32()))),
            "chat_template_kwargs": self.column(rows, self.scalars, SCALARS),
            "tools": self.column(rows, pairs, pa.map_(pa.string(), pa.string())),
            "unused": self.column(rows, lambda: rng.randbytes(5), pa.binary(5), null=0),
            "unused_duration": pa.array([5] * rows, pa.duration("us")),
        }


class ShortColumns(Columns):
    """Columns of few values, with text that repeats itself, so that every codec makes it smaller."""

    lengths = [0, 1, 7, 20]

    def text(self):
        return "".join(self.rng.choices(PIECES, k=self.rng.choice([0, 1, 5, 12])))

    def pick(self, rows, extras):
        columns = self.make(rows)
        repeated = ["".join(self.rng.choices(PIECES, k=14)) * 6 for _ in range(2)]
        columns["prompt"] = pa.array([repeated[0] + self.text() for _ in range(rows)])
        columns["rejected"] = pa.array([self.text() + repeated[1] for _ in range(rows)])
        columns["completion"] = pa.array([repeated[i % 2] for i in range(rows)])
        return pa.table({name: columns[name] for name in ["prompt", "completion", "rejected", *extras]})


def plain(value, kind):
    """A value of pyarrow as the JSON that fusedpo makes of it."""
    if value is None:
        return None
    if pa.types.is_dictionary(kind):
        return plain(value, kind.value_type)
    if pa.types.is_map(kind):
        return {key: plain(item, kind.item_type) for key, item in value}
    if pa.types.is_struct(kind):
        return {field.name: plain(value[field.name], field.type) for field in kind}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [plain(item, kind.value_type) for item in value]
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, decimal.Decimal):
        return int(value) if kind.scale == 0 else float(value)
    if isinstance(value, (datetime.date, datetime.time, uuid.UUID)):
        return str(value)
    return value


def save(path, table=None):
    """Writes the rows of the file at `path` beside it; `table` are its rows where pyarrow does not read them plainly."""
    table = pq.read_table(path) if table is None else table
    kinds = {field.name: field.type for field in table.schema if not field.name.startswith("unused")}
    with open(path.with_suffix(".rows"), "w", encoding="utf-8", newline="\n") as out:
        for row in table.to_pylist():
            out.write(json.dumps({name: plain(row[name], kind) for name, kind in kinds.items()}, ensure_ascii=False) + "\n")


def skip(path, error):
    path.unlink(missing_ok=True)
    print(f"{path.name} is left out: {str(error)[:200]}", file=sys.stderr)


def encodings(rng):
    return {path: rng.choice(kinds) for path, kinds in ENCODINGS.items()}


def pyarrow_files(folder, columns):
    rng = columns.rng
    cases = itertools.product(CODECS, ["1.0", "2.4", "2.6"], ["1.0", "2.0"], [True, False], [1, 100, 3000])
    for i, (codec, version, page, dictionary, rows) in enumerate(cases):
        table = pa.table(columns.make(rows))
        encoded = not dictionary and rng.random() < 0.6 and not pa.types.is_dictionary(table.schema.field("prompt").type)
        options = {
            "column_encoding": encodings(rng) if encoded else None,
            "row_group_size": rng.choice([None, 7, 1000]) or rows,
            "data_page_size": rng.choice([100, 1 << 20]),
            "use_compliant_nested_type": rng.random() < 0.7 or encoded,
            "write_statistics": rng.random() < 0.5,
            "store_decimal_as_integer": rng.random() < 0.5,
        }
        path = folder / f"pyarrow-{i:03}.parquet"
        try:
            pq.write_table(
                table, path, compression=codec, version=version, data_page_version=page, use_dictionary=dictionary, **options
            )
        except (pa.ArrowException, OSError) as e:
            skip(path, e)
            continue
        save(path)


def polars_file(path, table, codec, **options):
    codec = "uncompressed" if codec == "none" else codec
    polars.from_arrow(table).write_parquet(path, compression=codec, **options)
    save(path)


def polars_files(folder, columns):
    cases = itertools.product(CODECS, [0, 1, 500], [True, False], [None, 200], [None, 64])
    for i, (codec, rows, statistics, page, group) in enumerate(cases):
        table = pa.table(columns.make(rows)).drop_columns(["tools", "unused", "unused_duration"])
        path = folder / f"polars-{i:03}.parquet"
        try:
            polars_file(path, table, codec, statistics=statistics, data_page_size=page, row_group_size=group)
        except polars.exceptions.PolarsError as e:
            skip(path, e)


def duckdb_file(path, table, codec, version, group, id):
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'; set threads = 1")
        connection.register("rows", table)
        options = f"format parquet, codec {codec}, parquet_version {version}, row_group_size {group}"
        connection.execute(f"copy (select {DUCKDB_COLUMNS.format(id=id)} from rows) to '{path}' ({options})")
    save(path)


def duckdb_files(folder, columns):
    codecs = ["uncompressed", "snappy", "gzip", "brotli", "zstd", "lz4", "lz4_raw"]
    cases = itertools.product(codecs, [0, 1, 500], ["V1", "V2"], [2048, 122880])
    for i, (codec, rows, version, group) in enumerate(cases):
        table = pa.table(columns.make(rows)).drop_columns(["weight", "unused", "unused_duration"])
        path = folder / f"duckdb-{i:03}.parquet"
        try:
            duckdb_file(path, table, codec, version, group, uuid.UUID(int=columns.rng.getrandbits(128)))
        except (duckdb.Error, OSError) as e:  # DuckDB writes deltas of 32-bit integers that neither pyarrow nor fusedpo reads
            skip(path, e)


def edge_files(folder):
    """Files of no column, thousands of columns, a million rows, nulls only, long values, and old kinds of values."""

    def write(name, table, read=None, **options):
        path = folder / f"edge-{name}.parquet"
        pq.write_table(table, path, **options)
        save(path, table if read is None else read(path))

    write("zero", pa.table({}))
    write("wide", pa.table({**{f"unused{i}": pa.array([i]) for i in range(5000)}, "prompt": ["x"], "completion": ["y"]}))
    big = range(1_000_000)
    write("big", pa.table({"prompt": [f"p{i % 7}" for i in big], "label": [i % 2 == 0 for i in big]}), row_group_size=1 << 20)
    messages = pa.array([None] * 49 + [[]], pa.list_(MESSAGE))
    write("null", pa.table({"prompt": pa.nulls(50, pa.string()), "completion": pa.nulls(50), "messages": messages}))
    ids = [[1, 2], [3, 4], None]
    prompt = pa.array(["a" * 10] * 3, pa.large_string())
    fixed = pa.table({"prompt_ids": pa.array(ids, pa.list_(pa.int32(), 2)), "prompt": prompt})
    write("fixed", fixed, lambda _: pa.table({"prompt_ids": pa.array(ids, pa.list_(pa.int32())), "prompt": prompt}))
    write("long", pa.table({"prompt": ["y" * 3_000_000, "z"] * 3, "prompt_ids": [list(range(300_000)), []] * 3}))
    when = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
    old = pa.table({"prompt": ["a"], "messages": [[{"role": "user", "content": "x", "t": when}]]})
    read = lambda path: pq.read_table(path, coerce_int96_timestamp_unit="us")
    write("int96", old, read, use_deprecated_int96_timestamps=True)


def small_files(folder, columns):
    """For each codec one file of each page version, with dictionaries and other encodings, and one of polars; two of DuckDB."""
    rng, extras = columns.rng, itertools.cycle(EXTRAS)
    for (i, codec), page in itertools.product(enumerate(CODECS), ["1.0", "2.0"]):
        table = columns.pick(rng.randint(3, 6), next(extras))
        encoded = {path: kind for path, kind in encodings(rng).items() if path.split(".")[0] in table.column_names}
        pq.write_table(
            table, folder / f"pyarrow-{codec}-{page[0]}.parquet", compression=codec, version=["1.0", "2.4", "2.6"][i % 3],
            data_page_version=page, use_dictionary=["completion"], column_encoding=encoded, write_statistics=i % 2 == 0,
            row_group_size=4 if i == 1 else None, store_schema=any(name.startswith("unused") for name in table.column_names),
        )  # fmt: skip
        save(folder / f"pyarrow-{codec}-{page[0]}.parquet")
    for i, codec in enumerate(CODECS):
        extra = ["scores", "label"] if i % 2 else ["prompt_ids", "responses_ids"]
        polars_file(folder / f"polars-{codec}.parquet", columns.pick(rng.randint(1, 5), extra), codec, statistics=False)
    for version, codec in (("V1", "snappy"), ("V2", "zstd")):
        id = uuid.UUID(int=rng.getrandbits(128))
        table = columns.pick(4, ["tools"]).drop_columns(["completion"])
        duckdb_file(folder / f"duckdb-{version[1]}.parquet", table, codec, version, 2048, id)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--small", action="store_true", help="the few short files of tests/formats")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.small:
        small_files(arguments.folder, ShortColumns(arguments.seed))
        return
    columns = Columns(arguments.seed)
    pyarrow_files(arguments.folder, columns)
    polars_files(arguments.folder, columns)
    duckdb_files(arguments.folder, columns)
    edge_files(arguments.folder)


if __name__ == "__main__":
    main()
