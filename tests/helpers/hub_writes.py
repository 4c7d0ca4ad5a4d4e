"""What huggingface_hub asks of a Hub to upload: the writing half of `hub_server`.

Making repositories and branches, telling how each file is to come (large ones by LFS, with its
batch and PUT), and the commit. A commit never changes a folder: the branch gets a new one.
"""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

LARGE = (".safetensors", ".npz", ".pt")
WRITE = re.compile(
    r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>preupload|commit|branch)/(?P<revision>.+)"
)
BATCH = re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")


class Writes:
    """Mixin of a request handler with `hub`, `_json`, `_error` and `_folder`."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if self.hub.fail_with is not None:
            self._error(self.hub.fail_with, "", "the service is broken on purpose")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif found := WRITE.fullmatch(path):
            if self._may_write(found["repo"]):
                getattr(self, f"_{found['what']}")(found["repo"], found["revision"], body)
        elif found := BATCH.fullmatch(path):
            if self._may_write(found["repo"]):
                self._batch(json.loads(body)["objects"])
        else:
            self._error(404, "", f"no such page: {path}")

    def do_PUT(self) -> None:
        oid = self.path.rpartition("/")[2]
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.requests.append((self.command, self.path))
        if hashlib.sha256(content).hexdigest() != oid:
            self._error(400, "", "the content has another digest")
            return
        self.hub.blobs[oid] = content
        self._json({})

    def _may_write(self, repo_id: str) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.hub.tokens:
            self._error(401, "", "Invalid credentials in Authorization header")
        elif self.hub.tokens[token] != repo_id.partition("/")[0]:
            self._error(403, "", "You don't have the rights for this namespace")
        else:
            return True
        return False

    def _create(self, asked: dict[str, str]) -> None:
        repo_id = f"{asked['organization']}/{asked['name']}"
        if not self._may_write(repo_id):
            return
        url = f"{self.hub.endpoint}/{repo_id}"
        if ("models", repo_id) in self.hub.repos:
            self._json({"error": "You already created this model repo", "url": url}, 409)
            return
        self.hub.add(repo_id, self.hub.new_folder())
        self.hub.repos["models", repo_id].private = asked.get("visibility") == "private"
        self._json({"url": url})

    def _validate(self, card: str) -> None:
        """Front matter that is no YAML is refused, as it is by the Hub."""
        try:
            yaml.safe_load(card.split("---\n")[1] if card.startswith("---\n") else "")
        except yaml.YAMLError:
            self._json({"errors": [{"message": "bad YAML"}], "warnings": []}, 400)
        else:
            self._json({"errors": [], "warnings": []})

    def _branch(self, repo_id: str, name: str, body: bytes) -> None:
        folders = self.hub.repos["models", repo_id].folders
        if name in folders:
            self._error(409, "", "Reference already exists")
        else:
            folders[name] = folders["main"]
            self._json({})

    def _preupload(self, repo_id: str, revision: str, body: bytes) -> None:
        if self._folder("models", repo_id, revision) is not None:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files})

    def _batch(self, objects: list[dict]) -> None:
        for item in objects:
            href = f"{self.hub.endpoint}/lfs/{item['oid']}"
            item["actions"] = {"upload": {"href": href, "header": {}}}
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repo_id: str, revision: str, body: bytes) -> None:
        before = self._folder("models", repo_id, revision)
        if before is None:
            return
        after = self.hub.new_folder()
        shutil.copytree(before, after, dirs_exist_ok=True)
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "header":
                self.hub.messages.append(item["value"]["summary"])
            else:
                self._put(after, item["key"], item["value"])
        commit = self.hub.add(repo_id, after, revision=revision)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{commit}"
        self._json({"commitUrl": url, "commitOid": commit})

    def _put(self, folder: Path, kind: str, value: dict[str, str]) -> None:
        contents = {
            "file": lambda: base64.b64decode(value["content"]),
            "lfsFile": lambda: self.hub.blobs[value["oid"]],
        }
        (folder / value["path"]).write_bytes(contents[kind]())
