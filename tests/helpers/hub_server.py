"""A small Hub on 127.0.0.1: serves folders as repositories, for the real huggingface_hub.

It knows what `snapshot_download` and `hf_hub_download` ask for: repository info, the file tree, and
the files with their ETag and commit, at any revision, for models and datasets. Unknown repositories
and revisions, gated repositories and a broken service answer as the Hub does. Uploads are in
`hub_writes`.

    with HubServer() as hub:
        hub.add("user/adapter", folder)
        subprocess.run([...], env=os.environ | hub.env(tmp_path))
"""

import hashlib
import json
import re
import tempfile
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from hub_writes import Writes

API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
    r"(/(?P<what>revision|tree)/(?P<revision>[^/]+))?"
)
FILE = re.compile(
    r"/((?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
)


@dataclass
class Repo:
    """A repository: revision -> folder, and who may see it."""

    gated: bool = False
    private: bool = False
    folders: dict[str, Path] = field(default_factory=dict)


class HubServer:
    """The server; a context manager that runs it in a thread.

    - requests: (method, path) of every request so far.
    - tokens: login -> the user whose repositories it may write.
    - messages: of the commits so far.
    - fail_with: an HTTP status that every request is answered with, when set.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.tokens: dict[str, str] = {}
        self.messages: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self._storage = tempfile.TemporaryDirectory()
        self.fail_with: int | None = None
        handler = type("Handler", (_Handler,), {"hub": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self._storage.cleanup()

    def new_folder(self) -> Path:
        """An empty folder that lives as long as the server."""
        return Path(tempfile.mkdtemp(dir=self._storage.name))

    def add(
        self,
        repo_id: str,
        folder: Path,
        *,
        revision: str = "main",
        repo_type: str = "model",
        gated: bool = False,
    ) -> str:
        """Serves a folder as a revision of a repository; returns its commit."""
        repo = self.repos.setdefault((repo_type + "s", repo_id), Repo())
        repo.gated = gated
        repo.folders[revision] = folder
        return commit_of(folder)

    def env(self, home: Path, *, offline: bool = False, token: str = "") -> dict[str, str]:
        """Environment variables for a process that is to use this server and a cache of its own."""
        return {
            "HF_TOKEN": token,
            "HF_HUB_DISABLE_XET": "1",  # uploads by LFS, which is all that this server knows
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }


def files_of(folder: Path) -> dict[str, Path]:
    """Paths inside the repository -> files on disk."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files}


def commit_of(folder: Path) -> str:
    """Forty hex digits that change with any file."""
    digest = hashlib.sha1()
    for name, path in files_of(folder).items():
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class _Handler(Writes, BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Stays silent."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if self.hub.fail_with is not None:
            self._error(self.hub.fail_with, "", "the service is broken on purpose")
        elif found := API.fullmatch(path):
            self._info(found["kind"], found["repo"], found["what"], found["revision"] or "main")
        elif found := FILE.fullmatch(path):
            kind = found["kind"] or "models"
            self._file(kind, found["repo"], found["revision"], found["path"])
        else:
            self._error(404, "", f"no such page: {path}")

    def _folder(self, kind: str, repo_id: str, revision: str) -> Path | None:
        """The folder of a revision (branch, tag or commit); answers and returns None if none."""
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None:
            self._error(404, "RepoNotFound", "Repository not found")
            return None
        for name, folder in repo.folders.items():
            if revision in (name, commit_of(folder)):
                return folder
        self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _info(self, kind: str, repo_id: str, what: str | None, revision: str) -> None:
        folder = self._folder(kind, repo_id, revision)
        if folder is None:
            return
        files = files_of(folder)
        if what == "tree":
            self._json([_tree_entry(name, path) for name, path in files.items()])
            return
        gated = self.hub.repos[kind, repo_id].gated
        self._json(
            {
                "id": repo_id,
                "modelId": repo_id,
                "sha": commit_of(folder),
                "siblings": [{"rfilename": name} for name in files],
                "private": self.hub.repos[kind, repo_id].private,
                "gated": "manual" if gated else False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "lastModified": "2026-01-01T00:00:00.000Z",
            }
        )

    def _file(self, kind: str, repo_id: str, revision: str, name: str) -> None:
        folder = self._folder(kind, repo_id, revision)
        if folder is None:
            return
        if self.hub.repos[kind, repo_id].gated and "Authorization" not in self.headers:
            self._error(401, "GatedRepo", f"Access to {repo_id} is restricted.")
            return
        path = files_of(folder).get(name)
        if path is None:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        self._send(
            200,
            path.read_bytes(),
            {"ETag": f'"{_blob_id(path)}"', "X-Repo-Commit": commit_of(folder)},
            kind="application/octet-stream",
        )

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {})

    def _error(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], kind: str = "application/json"
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _tree_entry(name: str, path: Path) -> dict[str, str | int]:
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": _blob_id(path)}


def _blob_id(path: Path) -> str:
    """The id git gives a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
