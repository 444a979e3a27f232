"""A small model hub on loopback, for tests: standard library only.

It speaks what `huggingface_hub` and `datasets` ask for: repository information, the file tree,
paths-info, and files by HEAD and GET with ranges, large ones behind a redirect as on the hub.
Faults can be set: gated repositories, downloads that break off, a hub that is down or silent.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

SETTINGS = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "RERANK_PROFILE", "RERANK_ALLOW_PICKLE")
"""How the environment variables begin that change what the clients of a hub do."""
LARGE = (".safetensors", ".bin", ".onnx", ".parquet", ".pt")
API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+))?(.*)"
)
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
BLOB = re.compile(r"/blobs/([0-9a-f]{64})")


@dataclass
class Hub:
    """What the hub holds and how it misbehaves.

    Attributes:
        repositories: ("models" or "datasets", name) -> path in the repository -> bytes.
        gated: names that want a token; `tokens` are those that open them.
        breaks: sha256 of large files of which half is sent, once, before the line goes dead.
        requests: (method, path, Range header or "") of all requests, in order.
    """

    repositories: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    breaks: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str]] = field(default_factory=list)

    def add_folder(self, kind: str, name: str, folder: Path) -> None:
        files = [path for path in folder.rglob("*") if path.is_file()]
        self.repositories[kind, name] = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in files
        }

    def commit(self, kind: str, name: str) -> str:
        """A commit hash that changes with the contents."""
        files = self.repositories[kind, name]
        return hashlib.sha1(repr(sorted(files)).encode() + b"".join(files.values())).hexdigest()

    def blobs(self) -> dict[str, bytes]:
        files = [data for files in self.repositories.values() for data in files.values()]
        return {hashlib.sha256(data).hexdigest(): data for data in files}

    def sent(self, method: str = "GET") -> list[str]:
        """The paths asked for with this method."""
        return [path for verb, path, _ in self.requests if verb == method]


def etag(path: str, data: bytes) -> str:
    """The sha256 of a large file, git's sha1 of a small one, as on the hub."""
    if path.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self):
        self.answer()

    do_GET = do_POST = do_HEAD

    def log_message(self, *args):
        """Requests are recorded, not printed."""

    def answer(self):
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.requests.append((self.command, path, self.headers.get("Range") or ""))
        form = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if match := API.fullmatch(path):
            self.api(*match.groups(), parse_qs(url.query), parse_qs(form))
        elif match := RESOLVE.fullmatch(path):
            self.resolve("datasets" if match[1] else "models", match[2], match[3], match[4])
        elif match := BLOB.fullmatch(path):
            self.blob(match[1])
        else:
            self.reply(200 if path == "/" else 404)

    def refused(self, kind: str, name: str, revision: str | None, contents: bool) -> bool:
        """Answer for a repository that does not exist, or whose contents are gated."""
        if (kind, name) not in self.hub.repositories:
            self.fail(401, "RepoNotFound", "Invalid username or password.")
        elif revision not in (None, "main", self.hub.commit(kind, name)):
            self.fail(404, "RevisionNotFound", "Invalid rev id")
        elif contents and name in self.hub.gated and not self.token_opens():
            status = 403 if self.headers.get("Authorization") else 401
            self.fail(status, "GatedRepo", f"Access to {kind} {name} is restricted.")
        else:
            return False
        return True

    def token_opens(self) -> bool:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") in self.hub.tokens

    def api(self, kind, name, what, revision, rest, query, form):
        if self.refused(kind, name, revision, contents=what in ("tree", "paths-info")):
            return
        files = self.hub.repositories[kind, name]
        if what == "tree":
            self.json(self.tree(files, rest.strip("/"), query))
        elif what == "paths-info":
            wanted = form.get("paths", [])
            tree = self.tree(files, "", {"recursive": ["true"]})
            self.json([entry for entry in tree if entry["path"] in wanted])
        else:
            gated = "auto" if name in self.hub.gated else False
            siblings = [{"rfilename": path} for path in files]
            about = {"id": name, "sha": self.hub.commit(kind, name), "siblings": siblings}
            self.json(about | {"private": False, "gated": gated, "tags": []})

    def tree(self, files, folder, query):
        """The files below a folder, and the folders, as the hub lists them."""
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        prefix = f"{folder}/" if folder else ""
        entries = {}
        for path, data in files.items():
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                parent = prefix + "/".join(parts[:depth])
                oid = hashlib.sha1(parent.encode()).hexdigest()
                entries[parent] = {"type": "directory", "path": parent, "oid": oid, "size": 0}
            if recursive or len(parts) == 1:
                entry = {"type": "file", "path": path, "size": len(data), "oid": etag("", data)}
                if path.endswith(LARGE):
                    lfs = {"oid": etag(path, data), "size": len(data), "pointerSize": 134}
                    entry["lfs"] = lfs
                entries[path] = entry
        return list(entries.values())

    def resolve(self, kind, name, revision, path):
        if self.refused(kind, name, revision, contents=True):
            return
        commit = {"X-Repo-Commit": self.hub.commit(kind, name)}
        files = self.hub.repositories[kind, name]
        if path not in files:
            self.fail(404, "EntryNotFound", "Entry not found", commit)
            return
        data = files[path]
        tag = f'"{etag(path, data)}"'
        if path.endswith(LARGE):
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": tag}
            store = f"http://localhost:{self.server.server_port}"  # another host, as on the hub
            where = {"Location": f"{store}/blobs/{hashlib.sha256(data).hexdigest()}"}
            self.reply(302, commit | linked | where)
        else:
            self.file(data, commit | {"ETag": tag})

    def blob(self, digest):
        data = self.hub.blobs()[digest]
        if digest in self.hub.breaks and self.command == "GET":
            if digest not in self.hub.broken:
                self.hub.broken.add(digest)
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.file(data, {"ETag": f'"{digest}"'})

    def file(self, data: bytes, headers: dict[str, str]):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            self.reply(200, headers | {"Accept-Ranges": "bytes"}, data)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        span = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        self.reply(206, headers | span, data[first : last + 1])

    def json(self, value):
        self.reply(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def fail(self, status, code, message, headers=None):
        said = {"X-Error-Code": code, "X-Error-Message": message}
        self.reply(status, said | (headers or {}), json.dumps({"error": message}).encode())

    def reply(self, status: int, headers: dict[str, str] | None = None, body: bytes = b""):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class HubServer:
    """The hub, served in threads: `with HubServer(hub) as server: server.url`."""

    def __init__(self, hub: Hub, port: int = 0):
        handler = type("BoundHandler", (Handler,), {"hub": hub})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()


class SilentServer:
    """Accepts connections and never answers."""

    def __enter__(self) -> SilentServer:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        return self

    def __exit__(self, *exception) -> None:
        self.socket.close()
