"""A Hub on this machine, as far as publishing and opening by name ask for it.

It takes every file within the commit, so that no other storage is needed, but large files by git-lfs where a test asks
for that. Anything that it does not know is answered by
501 and kept in `unknown`.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
import yaml


TOKEN = "hf_right"


@dataclass
class Repository:
    """Files of each commit, and which commit branches and tags name."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        """Add a commit to the main branch."""
        name = hashlib.sha1(f"{len(self.commits)} {id(self)}".encode()).hexdigest()
        self.commits[name] = files
        self.branches["main"] = name
        return name

    def resolve(self, revision: str) -> str | None:
        """Return the commit that a revision names."""
        return revision if revision in self.commits else {**self.branches, **self.tags}.get(revision)


@dataclass
class LocalHub:
    """Contents of the server, and the requests to it.

    Attributes:
        repositories: By kind and name, such as "models/org/name".
        requests: Method and path of each.
        unknown: Those that it has no answer to.
        faults: What goes wrong with the next requests whose path fits, used up once each: a pattern, and a status to
            answer, "drop" to close the connection, or "lost" to close it when all is done, in place of the answer;
            "8 s" to answer after so many seconds.
        large: Endings of the names of files that must be sent before the commit.
        stored: Content of these files by SHA-256.
    """

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    large: tuple[str, ...] = ()
    stored: dict[str, bytes] = field(default_factory=dict)


def object_id(content: bytes) -> str:
    """Return git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _front_matter(text: str) -> dict[str, str] | None:
    """Return the fields of a card."""
    found = re.match(r"---\n(.*?)^---$", text, re.DOTALL | re.MULTILINE)
    return None if found is None else yaml.safe_load(found[1])


class Handler(BaseHTTPRequestHandler):
    """Answers the requests that huggingface-hub makes."""

    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, format, *args):
        pass

    def _answer(self, status=200, body=None, content=None, headers=None):
        content = json.dumps({} if body is None else body).encode() if content is None else content
        self.send_response(status)
        entries = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
        for name, value in entries.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _missing(self, code, headers=None):
        self._answer(404, {"error": code}, headers={"X-Error-Code": code, **(headers or {})})

    def _handle(self):
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, path))
        fault = next((each for each in self.hub.faults if re.search(each[0], path)), None)
        if fault is not None:
            self.hub.faults.remove(fault)
            if fault[1].endswith(" s"):
                time.sleep(float(fault[1].removesuffix(" s")))
                return self._route(path)
            if fault[1].isdecimal():
                return self._answer(int(fault[1]), {"error": "broken"})
            if fault[1] == "lost":
                self._answer = lambda *_, **__: None
                self._route(path)
            self.close_connection = True
            return self.connection.close()
        if self.command == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials"})
        return self._route(path)

    def _route(self, path):
        for pattern, answer in ROUTES:
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match is not None:
                return answer(self, **match.groupdict())
        self.hub.unknown.append((self.command, path))
        return self._answer(501, {"error": "not served"})

    do_GET = do_POST = do_PUT = do_HEAD = _handle  # noqa: N815  (the names that the base class calls)

    def _create(self):
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        key, url = f"{wanted.get('type', 'model')}s/{name}", f"{self.hub.endpoint}/{name}"
        if key in self.hub.repositories:
            return self._answer(409, {"error": "You already created this repo", "url": url})
        self.hub.repositories[key] = Repository(wanted.get("visibility") == "private" or bool(wanted.get("private")))
        self.hub.repositories[key].commit({".gitattributes": b""})
        return self._answer(body={"url": url, "name": name, "id": name})

    def _validate(self):
        self._answer(body={"errors": [], "warnings": []})

    def _preupload(self, key, revision):
        files = [each["path"] for each in json.loads(self.body)["files"]]
        here = self.hub.repositories[key].commits[self.hub.repositories[key].resolve(revision)]
        rows = [
            {
                "path": name,
                "uploadMode": "lfs" if name.endswith(self.hub.large) else "regular",
                "shouldIgnore": False,
                "oid": object_id(here[name]) if name in here else None,
            }
            for name in files
        ]
        self._answer(body={"files": rows})

    def _store_by(self):
        rows = [
            {**each, "actions": {"upload": {"href": f"{self.hub.endpoint}/stored/{each['oid']}"}}}
            for each in json.loads(self.body)["objects"]
        ]
        self._answer(body={"transfer": "basic", "objects": rows})

    def _store(self, name):
        self.hub.stored[name] = self.body
        self._answer()

    def _commit(self, key, revision):
        repository = self.hub.repositories[key]
        files = dict(repository.commits[repository.resolve(revision)])
        for line in self.body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                files[entry["value"]["path"]] = self.hub.stored[entry["value"]["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(entry["value"]["path"])
        commit = repository.commit(files)
        url = f"{self.hub.endpoint}/{key}/commit/{commit}"
        self._answer(body={"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def _tag(self, key, revision):
        repository, tag = self.hub.repositories[key], json.loads(self.body)["tag"]
        if tag in repository.tags:
            return self._answer(409, {"error": "tag exists"})
        repository.tags[tag] = repository.resolve(revision)
        return self._answer()

    def _refs(self, key):
        repository = self.hub.repositories[key]
        rows = {
            kind: [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit} for name, commit in names.items()
            ]
            for kind, names in (("branches", repository.branches), ("tags", repository.tags))
        }
        self._answer(body={**rows, "converts": [], "pullRequests": []})

    def _info(self, key, revision="main"):
        repository = self.hub.repositories.get(key)
        commit = repository and repository.resolve(revision)
        if not commit:
            return self._missing("RevisionNotFound" if repository else "RepoNotFound")
        name, files = key.partition("/")[2], repository.commits[commit]
        siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
        rows = {
            "id": name,
            "modelId": name,
            "sha": commit,
            "siblings": siblings,
            "private": repository.private,
            "tags": [],
            "cardData": _front_matter(files.get("README.md", b"").decode()),
        }
        return self._answer(body=rows)

    def _tree(self, key, revision, folder=None):
        repository = self.hub.repositories[key]
        files = repository.commits[repository.resolve(revision)]
        start = f"{folder}/" if folder else ""
        rows = [
            {"type": "file", "path": path, "size": len(content), "oid": object_id(content)}
            for path, content in files.items()
            if path.startswith(start)
        ]
        if parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() != "true":
            inside = {f"{start}{row['path'].removeprefix(start).partition('/')[0]}" for row in rows}
            folders = sorted(inside - {row["path"] for row in rows})
            rows = [row for row in rows if row["path"] in inside]
            rows += [
                {"type": "directory", "path": path, "size": 0, "oid": object_id(path.encode())} for path in folders
            ]
        return self._answer(body=rows) if rows or not folder else self._missing("EntryNotFound")

    def _file(self, name, revision, path, kind="models"):
        repository = self.hub.repositories.get(f"{kind or 'models'}/{name}")
        commit = repository and repository.resolve(revision)
        if not commit:
            return self._missing("RevisionNotFound" if repository else "RepoNotFound")
        content = repository.commits[commit].get(path)
        if content is None:
            return self._missing("EntryNotFound", {"X-Repo-Commit": commit})
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{object_id(content)}"',
            "Content-Type": "application/octet-stream",
        }
        return self._answer(content=content, headers=headers)


KEY = r"/api/(?P<key>(?:models|datasets)/[^/]+/[^/]+)"
ROUTES = (
    (r"HEAD /", lambda handler: handler._answer()),  # is it reached?
    (r"GET /api/agent-harnesses", Handler._validate),  # huggingface-hub asks it by itself
    # transformers 5.25 looks for a kernel of flash attention, and its package `kernels` for who publishes it
    (r"GET /api/organizations/[^/]+/overview", lambda handler: handler._missing("RepoNotFound")),
    (r"POST /api/repos/create", Handler._create),
    (r"POST /api/validate-yaml", Handler._validate),
    (rf"POST {KEY}/preupload/(?P<revision>.+)", Handler._preupload),
    (r"POST /(?:datasets/)?[^/]+/[^/]+\.git/info/lfs/objects/batch", Handler._store_by),
    (r"PUT /stored/(?P<name>\w+)", Handler._store),
    (rf"POST {KEY}/commit/(?P<revision>.+)", Handler._commit),
    (rf"POST {KEY}/tag/(?P<revision>.+)", Handler._tag),
    (rf"GET {KEY}/refs", Handler._refs),
    (rf"GET {KEY}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", Handler._tree),
    (rf"GET {KEY}/revision/(?P<revision>.+)", Handler._info),
    (rf"GET {KEY}", Handler._info),
    (
        r"(?:GET|HEAD) /(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        Handler._file,
    ),
)


VISIT = """
import os
import huggingface_hub

constants = huggingface_hub.constants
constants.HF_HUB_OFFLINE, constants.ENDPOINT, constants.HF_HUB_CACHE = False, {endpoint!r}, {home!r} + "/hub"
constants.HUGGINGFACE_CO_URL_TEMPLATE = constants.ENDPOINT + "/{{repo_id}}/resolve/{{revision}}/{{filename}}"
huggingface_hub.hf_api.api.endpoint = constants.ENDPOINT
os.environ.update(HF_ENDPOINT={endpoint!r}, HF_HOME={home!r}, HF_TOKEN={token!r}, HF_HUB_OFFLINE="0")
"""
"""Begins code that asks a Hub of ours, with a cache of its own, in a process that has imported its client before."""


@contextmanager
def hub_in_place(patch: pytest.MonkeyPatch, token: str | None = None) -> Iterator[LocalHub]:
    """Serve an empty Hub that this process asks in place of Hugging Face's, with a token if one is given."""
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    if token is not None:
        patch.setenv("HF_TOKEN", token)
    with local_hub() as hub:
        template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        patch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        # transformers keeps a client of the server that it asked first
        patch.setattr("transformers.utils.hub._hf_api", huggingface_hub.HfApi(endpoint=hub.endpoint), raising=False)
        yield hub
    huggingface_hub.close_session()


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Serve an empty Hub while the context is open."""
    hub = LocalHub()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub})) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()
