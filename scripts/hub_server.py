#!/usr/bin/env python3
"""A hub on this machine: serves folders as repositories, as far as huggingface_hub and fusedpo ask.

Reads:   folders.
Writes:  nothing.
Needs:   Python alone.

    scripts/hub_server.py --model org/name=FOLDER --dataset org/name=FOLDER [--port 8000]
    HF_ENDPOINT=http://127.0.0.1:8000 fusedpo generate --model org/name --prompt Hello

Every repository has one commit, made from its files' hashes, and the branch `main`; a data set's files below CONFIG/SPLIT/ are on
`refs/convert/parquet` too. Files of a megabyte and more are listed as large ones are, by their SHA-256.
"""

import argparse
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = 1 << 20
PIECE = 1 << 20


def entry(root: Path, path: Path) -> dict:
    """A file as the hub lists it."""
    size = path.stat().st_size
    sha1, sha256 = hashlib.sha1(b"blob %d\0" % size), hashlib.sha256()
    with path.open("rb") as f:
        while piece := f.read(PIECE):
            sha1.update(piece)
            sha256.update(piece)
    found = {"type": "file", "path": path.relative_to(root).as_posix(), "size": size, "oid": sha1.hexdigest()}
    if size >= LARGE:
        found["lfs"] = {"oid": sha256.hexdigest(), "size": size, "pointerSize": 134}
    return found


class Repo:
    """A folder."""

    def __init__(self, root: Path):
        self.root = root
        files = sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))
        self.files = {e["path"]: e for e in (entry(root, p) for p in files)}
        self.commit = hashlib.sha1(json.dumps(list(self.files.values())).encode()).hexdigest()

    def is_revision(self, revision: str) -> bool:
        converted = any(re.fullmatch(r"[^/]+/[^/]+/\d+\.parquet", p) for p in self.files)
        return revision in ("main", self.commit) or revision == "refs/convert/parquet" and converted


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repos: dict = {}

    def log_message(self, *_):
        pass

    def say(self, code: int, body: bytes = b"", **headers: str):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if m := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/(revision|tree)/(.+)", path):
            kind, name, what, revision = m.groups()
            repo = self.repos.get((kind, name))
            if repo is None:
                return self.say(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            if not repo.is_revision(revision):
                return self.say(404, X_Error_Code="RevisionNotFound")
            found = {"id": name, "sha": repo.commit} if what == "revision" else list(repo.files.values())
            return self.say(200, json.dumps(found).encode(), Content_Type="application/json")
        if m := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/(refs/convert/parquet|[^/]+)/(.+)", path):
            kind, name, revision, file = m.groups()
            repo = self.repos.get(("datasets" if kind else "models", name))
            if repo is None or not repo.is_revision(revision) or file not in repo.files:
                return self.say(404, X_Error_Code="EntryNotFound")
            return self.content(repo, repo.files[file])
        return self.say(404)

    def content(self, repo: Repo, found: dict):
        size = found["size"]
        m = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(m.group(1)) if m else 0
        if begin and begin >= size:
            return self.say(416)
        self.send_response(206 if m else 200)
        if m:
            self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - begin))
        self.send_header("X-Repo-Commit", repo.commit)
        self.send_header("ETag", '"%s"' % found.get("lfs", found)["oid"])
        self.end_headers()
        if self.command == "HEAD":
            return None
        with (repo.root / found["path"]).open("rb") as f:
            f.seek(begin)
            while piece := f.read(PIECE):
                self.wfile.write(piece)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", action="append", default=[], metavar="ORG/NAME=FOLDER")
    parser.add_argument("--dataset", action="append", default=[], metavar="ORG/NAME=FOLDER")
    parser.add_argument("--port", type=int, default=8000, help="0: any; the first line says which")
    args = parser.parse_args()
    for kind, named in (("models", args.model), ("datasets", args.dataset)):
        for text in named:
            name, _, folder = text.partition("=")
            Handler.repos[kind, name] = Repo(Path(folder).resolve())
    server = ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
