"""A stand-in for the Hugging Face Hub: repositories in memory behind the part of its HTTP interface that clients use.

A process that has ``HF_ENDPOINT`` set to :attr:`HubStub.url` when it imports huggingface_hub creates, commits and downloads as it would at
the real one. Every file is a regular one, so that no storage server for large files is needed.
"""

import base64
import hashlib
import json
import re
import socket
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

import yaml

USER = "someone"


@dataclass
class Repository:
    """Branches point to commits, commits are whole trees."""

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        named = {name: blob_id(content) for name, content in files.items()}
        text = json.dumps([len(self.commits), self.branches.get(branch), message, named], sort_keys=True)
        self.branches[branch] = oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = files
        self.messages.append(message)
        return oid

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[branch]]


def blob_id(content: bytes) -> str:
    """Git's name of a file's content, by which clients know what has not changed."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubStub:
    """A running server; whatever is written to it needs a token.

    ``failing``, which ``POST /switch`` sets from another process, makes commits fail in the middle until it is None again: "drop" breaks
    the connection halfway through the request; ``[status, file]`` answers commits that carry the file with an HTTP status such as 500,
    while others go through, so that a client that commits in parts is left with some of them.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.failing: list | str | None = None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "HubStub":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubStub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        length = int(self.headers.get("Content-Length", 0))
        commit = re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path)
        body = self.rfile.read(length // 2 if commit and self.hub.failing == "drop" else length)
        if path == "/switch":
            self.hub.failing = json.loads(body)
            self.answer({})
        elif path == "/api/validate-yaml":
            self.validate(json.loads(body)["content"])
        elif "Authorization" not in self.headers:
            self.refuse(401, "a token is needed to write")
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif commit:
            self.commit(*commit.groups(), body)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|branch)/([^/]+)", path):
            self.prepare(*found.groups(), json.loads(body))
        else:
            self.refuse(404, f"no such endpoint: {path}")

    def create(self, wanted: dict) -> None:
        name = f"{wanted['organization'] or USER}/{wanted['name']}"
        known = name in self.hub.repositories
        if not known:
            made = self.hub.repositories[name] = Repository(private=wanted.get("visibility") == "private")
            made.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self.answer({"url": f"{self.hub.url}/{name}", "name": name}, status=409 if known else 200)

    def validate(self, content: str) -> None:
        block = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        valid = block is None or isinstance(yaml.safe_load(block[1]), dict)
        self.answer({"errors": [] if valid else [{"message": "not a mapping"}], "warnings": []}, 200 if valid else 400)

    def prepare(self, name: str, what: str, revision: str, wanted: dict) -> None:
        repository, revision = self.hub.repositories[name], unquote(revision)
        if what == "branch":
            known = revision in repository.branches
            repository.branches.setdefault(revision, repository.branches["main"])
            self.answer({}, status=409 if known else 200)
        elif (files := self.tree(name, revision)) is not None:
            ids = {path: blob_id(content) for path, content in files.items()}
            answers = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": ids.get(file["path"])}
                for file in wanted["files"]
            ]
            self.answer({"files": answers})

    def commit(self, name: str, revision: str, body: bytes) -> None:
        if self.hub.failing == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        header, *operations = [json.loads(line) for line in body.splitlines()]
        values = {operation["value"]["path"]: operation for operation in operations}
        status, file = self.hub.failing or (None, None)
        if file in values:
            self.refuse(status, f"broken at {file}")
            return
        repository = self.hub.repositories[name]
        files = dict(repository.files(unquote(revision)))
        for path, operation in values.items():
            if operation["key"] == "deletedFile":
                del files[path]
            else:
                files[path] = base64.b64decode(operation["value"]["content"])
        message = ": ".join(filter(None, (header["value"]["summary"], header["value"]["description"])))
        oid = repository.commit(unquote(revision), files, message)
        self.answer({"commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/api/whoami-v2":
            self.answer({"type": "user", "name": USER, "orgs": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            name, revision = found[1], unquote(found[2] or "main")
            if (files := self.tree(name, revision)) is not None:
                siblings = [{"rfilename": file} for file in files]
                self.answer({"id": name, "sha": self.resolve(name, revision), "siblings": siblings, "tags": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", path):
            files, folder = self.tree(found[1], unquote(found[2])), f"{found[3]}/" if found[3] else ""
            if files is not None:
                listed = {file: content for file, content in files.items() if file.startswith(folder)}
                if listed:
                    self.answer(
                        [
                            {"type": "file", "path": file, "size": len(content), "oid": blob_id(content)}
                            for file, content in listed.items()
                        ]
                    )
                else:
                    self.refuse(404, f"no {folder}", "EntryNotFound")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name, revision, file = found[1], unquote(found[2]), unquote(found[3])
            if (files := self.tree(name, revision)) is not None:
                headers = {"X-Repo-Commit": self.resolve(name, revision)}
                if file in files:
                    self.send(200, files[file], {**headers, "ETag": f'"{blob_id(files[file])}"'})
                else:
                    self.refuse(404, f"no {file}", "EntryNotFound", headers)
        else:
            self.refuse(404, f"no such endpoint: {path}")

    do_HEAD = do_GET

    def resolve(self, name: str, revision: str) -> str:
        return self.hub.repositories[name].branches.get(revision, revision)

    def tree(self, name: str, revision: str) -> dict[str, bytes] | None:
        """The files at a branch or commit; where there is none, the request is answered and None returned."""
        if name not in self.hub.repositories:
            self.refuse(404, f"no repository {name}", "RepoNotFound")
            return None
        files = self.hub.repositories[name].commits.get(self.resolve(name, revision))
        if files is None:
            self.refuse(404, f"no revision {revision}", "RevisionNotFound")
        return files

    def refuse(self, status: int, message: str, code: str | None = None, headers: dict | None = None) -> None:
        self.answer({"error": message}, status, {**(headers or {}), **({"X-Error-Code": code} if code else {})})

    def answer(self, value: object, status: int = 200, headers: dict | None = None) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def send(self, status: int, content: bytes, headers: dict) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
