"""A model hub in this process: the part of the hub's HTTP protocol that ``huggingface_hub`` speaks, kept in memory.

Repositories are made, files come by commits (large ones by LFS) and are fetched by commit, branch or tag. As on the
hub, a safetensors file is an LFS object: asked for, it is answered by a redirect to another host, here another name of
this machine, which is to see no token.
"""

from __future__ import annotations

import _socket
import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

# the client's own way to upload a file, which its HTTP library wants otherwise by now
WARNING = "ignore:Use 'content=<...>':DeprecationWarning"
TOKEN = "hf_of_the_owner"
OWNER = "someone"


@dataclass
class Repo:
    """commits: commit -> {path: content}; refs: branch or tag -> commit; lfs: the paths that came by LFS."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        seed = f"{len(self.commits)} {sorted(files)}".encode()
        sha = hashlib.sha1(seed).hexdigest()
        self.commits[sha], self.refs[ref] = dict(files), sha
        return sha

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.refs["main"]]


@dataclass
class LocalHub:
    """What is on it and what was asked. cut: path -> how often its content breaks off half-way, how: "end" or "reset".

    status: what every request is answered with, or None. page: what stands between answers everything with a page.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, bool]] = field(default_factory=list)  # method, path, whether with a token
    cut: dict[str, tuple[int, str]] = field(default_factory=dict)
    status: int | None = None
    page: bool = False
    url: str = ""

    def add(self, name: str, files: dict[str, bytes], **kinds: bool) -> Repo:
        """A repository that is there already."""
        repo = self.repos[name] = Repo(**kinds)
        repo.commit(files)
        repo.lfs = {path for path in files if path.endswith(".safetensors")}
        return repo

    def asked(self, method: str) -> list[str]:
        return [path for one, path, _ in self.requests if one == method]


@contextlib.contextmanager
def running():
    """A LocalHub on a free port of this machine."""
    hub = LocalHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def only_this_machine(monkeypatch):
    """This machine may be spoken to, no other."""

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            raise OSError(f"a test tried to connect to {address}")
        return _socket.socket.connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@contextlib.contextmanager
def taken_for_the_hub(monkeypatch, folder):
    """A LocalHub that huggingface_hub takes for the one, nobody logged in, and an empty cache in the folder."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    monkeypatch.setattr(time, "sleep", lambda _: None)  # before it tries again
    with running() as local:
        for name, value in {
            "ENDPOINT": local.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": local.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(folder / "cache"),
            "HF_TOKEN_PATH": str(folder / "no-token"),
            "HF_STORED_TOKENS_PATH": str(folder / "no-tokens"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        disable_progress_bars()
        yield local
        enable_progress_bars()


def blob_id(content: bytes) -> str:
    """As git names a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Refused(Exception):
    def __init__(self, status: int, code: str | None, words: str) -> None:
        super().__init__(words)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    ROUTES = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", "info"),
        ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", "tree"),
        ("POST", r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", "preupload"),
        ("POST", r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", "commit"),
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(\w+)", "put"),
        ("POST", r"/lfs/verify", "verify"),
        ("(?:GET|HEAD)", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
        ("(?:GET|HEAD)", r"/cdn/([^/]+/[^/]+)/(\w+)/(.+)", "cdn"),
    )

    def log_message(self, *words: object) -> None:
        """Nothing on stderr."""

    def answer(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, unquote(path), "Authorization" in self.headers))
        try:
            if self.hub.status:
                raise Refused(self.hub.status, None, "as it was told")
            if self.hub.page:
                return self.send(b"<html>Please log in to this network</html>", {"Content-Type": "text/html"})
            for method, pattern, name in self.ROUTES:
                found = re.fullmatch(pattern, path)
                if found and re.fullmatch(method, self.command):
                    return getattr(self, name)(body, *(unquote(part or "main") for part in found.groups()))
            raise Refused(404, None, f"this hub knows no {self.command} {path}")
        except Refused as error:
            content = json.dumps({"error": str(error)}).encode()
            headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
            return self.send(content, headers, error.status)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def send(self, content: bytes, headers: dict[str, str] | None = None, status: int = 200, sent: int = -1) -> None:
        """sent: bytes after which the connection breaks off, -1 for never."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content if sent < 0 else content[:sent])

    def send_json(self, content: object) -> None:
        self.send(json.dumps(content).encode(), {"Content-Type": "application/json"})

    # ------------------------------------------------------------------------------------------ who may do what

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def readable(self, name: str) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.token != TOKEN):
            if self.token is None:
                raise Refused(401, "RepoNotFound", "Invalid username or password.")  # as for what is not there
            raise Refused(404, "RepoNotFound", "Repository not found")
        return repo

    def writable(self, name: str) -> Repo:
        if self.token is None:
            raise Refused(401, None, "Invalid username or password.")
        if self.token != TOKEN or not name.startswith(OWNER + "/"):
            raise Refused(403, None, f"You have no right to write to {name}")
        return self.readable(name)

    def snapshot(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repo.commits[sha]

    # ------------------------------------------------------------------------------------------ upload

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        if self.token is None:
            raise Refused(401, None, "Invalid username or password.")
        if self.token != TOKEN or not name.startswith(OWNER + "/"):
            raise Refused(403, None, f"You don't have the rights to create a model under {name}")
        content = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repos:
            return self.send(json.dumps(content | {"error": "You already created it"}).encode(), status=409)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repos[name] = Repo(private=bool(private))
        self.hub.repos[name].commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        return self.send_json(content)

    def validate(self, body: bytes) -> None:
        card = json.loads(body)["content"]
        front = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
        warnings = [] if front else [{"message": "empty or missing yaml metadata in repo card"}]
        try:
            errors = [] if front is None or isinstance(yaml.safe_load(front[1]), dict) else [{"message": "no mapping"}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        content = json.dumps({"errors": errors, "warnings": warnings}).encode()
        self.send(content, status=400 if errors else 200)

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        files = self.snapshot(self.writable(name), revision)[1]
        found = []
        for one in json.loads(body)["files"]:
            mode = "lfs" if one["path"].endswith(".safetensors") else "regular"
            there = files.get(one["path"])
            oid = None if there is None else (hashlib.sha256(there).hexdigest() if mode == "lfs" else blob_id(there))
            found.append({"path": one["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send_json({"files": found})

    def batch(self, body: bytes, name: str) -> None:
        self.writable(name)
        found = []
        for one in json.loads(body)["objects"]:
            actions = {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}
            actions["verify"] = {"href": f"{self.hub.url}/lfs/verify"}
            found.append(one if one["oid"] in self.hub.objects else {**one, "actions": actions})
        self.send_json({"transfer": "basic", "objects": found})

    def put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, None, "the digest differs")
        self.hub.objects[oid] = body
        self.send(b"")

    def verify(self, body: bytes) -> None:
        asked = json.loads(body)
        if len(self.hub.objects.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, None, "the object is not there")
        self.send(b"")

    def commit(self, body: bytes, name: str, revision: str) -> None:
        repo = self.writable(name)
        files = dict(self.snapshot(repo, revision)[1])
        for key, value in ((line["key"], line["value"]) for line in map(json.loads, body.splitlines())):
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
                repo.lfs.add(value["path"])
            elif key == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(files, revision)
        self.send_json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    # ------------------------------------------------------------------------------------------ download

    def info(self, _: bytes, name: str, revision: str) -> None:
        repo = self.readable(name)
        sha, files = self.snapshot(repo, revision)
        siblings = [{"rfilename": path} for path in files]
        self.send_json({"id": name, "sha": sha, "private": repo.private, "tags": [], "siblings": siblings})

    def tree(self, _: bytes, name: str, revision: str) -> None:
        repo = self.readable(name)
        found = []
        for path, content in self.snapshot(repo, revision)[1].items():
            one = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
            if path in repo.lfs:
                digest = hashlib.sha256(content).hexdigest()
                one["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
            found.append(one)
        self.send_json(found)

    def resolve(self, _: bytes, name: str, revision: str, path: str) -> None:
        repo = self.readable(name)
        sha, files = self.snapshot(repo, revision)
        if repo.gated:
            raise Refused(403, "GatedRepo", f"Access to model {name} is restricted")
        if path not in files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        content, headers = files[path], {"X-Repo-Commit": sha}
        if path not in repo.lfs:
            return self.content(path, content, headers | {"ETag": f'"{blob_id(content)}"'})
        elsewhere = self.hub.url.replace("127.0.0.1", "localhost")
        headers |= {"Location": f"{elsewhere}/cdn/{name}/{sha}/{path}", "X-Linked-Size": str(len(content))}
        headers["X-Linked-ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.send(b"", headers, 302)

    def cdn(self, _: bytes, name: str, sha: str, path: str) -> None:
        self.content(path, self.hub.repos[name].commits[sha][path], {})

    def content(self, path: str, content: bytes, headers: dict[str, str]) -> None:
        """A file, or the rest of it, or half of that."""
        status, start = 200, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start:
            status, headers = 206, headers | {"Content-Range": f"bytes {start[1]}-{len(content) - 1}/{len(content)}"}
            content = content[int(start[1]) :]
        left, how = self.hub.cut.get(path, (0, ""))
        if self.command == "HEAD" or not left:
            return self.send(content, headers, status)
        self.hub.cut[path] = (left - 1, how)
        self.send(content, headers, status, len(content) // 2)
        self.wfile.flush()
        if how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = True
        return None
