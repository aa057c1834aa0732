"""A server on this machine that speaks the hub's protocol: repositories with branches, commits, large files, tokens."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKENS = {"hf_writer": ("me", True), "hf_reader": ("me", False)}  # account and whether it may write
LARGE = (".safetensors", ".bin", ".png")  # what travels apart from the commit, as on the hub


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Repository:
    """Files by revision; every commit has a number of its own."""

    def __init__(self, private: bool) -> None:
        self.private, self.commits, self.branches = private, {}, {}
        self.proposals = 0
        self.branches["main"] = self.commit({})

    def commit(self, files: dict[str, bytes]) -> str:
        number = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[number] = files
        return number

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        number = self.branches.get(revision, revision)
        return (number, self.commits[number]) if number in self.commits else None


class FakeHub(ThreadingHTTPServer):
    """The server and what it keeps."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def running():
    """Serve in a thread."""
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *_):
        pass

    def _answer(self, status=200, content=b"", **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value, status=200, **headers):
        self._answer(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _refuse(self, status, code, message):
        self._json({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _account(self):
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        return TOKENS.get(token, (None, False))

    def _repository(self, name):
        found = self.server.repositories.get(name)
        if found is None or (found.private and self._account()[0] is None):
            self._refuse(404 if self._account()[0] else 401, "RepoNotFound", "Repository not found")
            return None
        return found

    def _route(self):
        body, path = self._body(), unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        for pattern, method in _ROUTES:
            command, _, expression = pattern.partition(" ")
            match = re.fullmatch(expression, path)
            if match and self.command in command.split("|"):
                return method(self, body, **match.groupdict())
        return self._refuse(404, "EntryNotFound", f"no such address: {path}")

    do_GET = do_HEAD = do_POST = do_PUT = _route

    def _create(self, body):
        asked = json.loads(body)
        if not self._account()[1]:
            return self._json({"error": "You have no right to create"}, 401 if not self._account()[0] else 403)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        answer = {"url": f"{self.server.address}/{name}", "name": name, "id": name}
        if name in self.server.repositories:
            return self._json(answer | {"error": "You already created this"}, 409)
        self.server.repositories[name] = Repository(bool(asked.get("private")) or asked.get("visibility") == "private")
        return self._json(answer)

    def _validate(self, body):
        import yaml

        metadata = yaml.safe_load(json.loads(body)["content"].split("---")[1])
        wrong = metadata.get("license", "mit") not in ("mit", "apache-2.0", "other")
        errors = [{"message": '"license" must be one of [apache-2.0, mit, other]'}] if wrong else []
        return self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _branch(self, body, name, revision):
        repository = self._repository(name)
        if repository is None:
            return None
        if revision in repository.branches:
            return self._json({"error": "Reference already exists"}, 409)
        repository.branches[revision] = repository.branches["main"]
        return self._json({})

    def _info(self, body, name, revision="main"):
        repository = self._repository(name)
        found = repository and repository.files(revision)
        if not found:
            return repository and self._refuse(404, "RevisionNotFound", "Invalid rev id")
        number, files = found
        siblings = [{"rfilename": file} for file in sorted(files)]
        return self._json({"id": name, "modelId": name, "sha": number, "private": repository.private,
                           "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})  # fmt: skip

    def _tree(self, body, name, revision, folder=""):
        repository = self._repository(name)
        found = repository and repository.files(revision)
        if not found:
            return repository and self._refuse(404, "RevisionNotFound", "Invalid rev id")
        return self._json([_listed(file, content) for file, content in sorted(found[1].items())])

    def _preupload(self, body, name, revision):
        if self._repository(name) is None:
            return None
        files = [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
             "shouldIgnore": False, "oid": None}
            for file in json.loads(body)["files"]
        ]  # fmt: skip
        return self._json({"files": files})

    def _batch(self, body, name):
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.server.address}/upload/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        return self._json({"transfer": "basic", "objects": objects})

    def _upload(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return self._answer(400)
        self.server.large[oid] = body
        return self._answer()

    def _commit(self, body, name, revision):
        repository = self._repository(name)
        if repository is None:
            return None
        if not self._account()[1]:
            return self._json({"error": "This token may not write"}, 403)
        files = dict(repository.files(revision)[1])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        number, proposal = repository.commit(files), None
        if "create_pr=1" in urlsplit(self.path).query:
            repository.proposals += 1
            repository.branches[f"refs/pr/{repository.proposals}"] = number
            proposal = f"{self.server.address}/{name}/discussions/{repository.proposals}"
        else:
            repository.branches[revision] = number
        address = f"{self.server.address}/{name}/commit/{number}"
        return self._json({"success": True, "commitUrl": address, "commitOid": number, "pullRequestUrl": proposal})

    def _resolve(self, body, name, revision, file):
        repository = self._repository(name)
        found = repository and repository.files(revision)
        if not found:
            return repository and self._refuse(404, "RevisionNotFound", "Invalid rev id")
        number, files = found
        if file not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        return self._answer(content=files[file], ETag=f'"{_etag(file, files[file])}"', X_Repo_Commit=number)


def _etag(file: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if file.endswith(LARGE) else git_hash(content)


def _listed(file: str, content: bytes) -> dict:
    entry = {"type": "file", "path": file, "size": len(content), "oid": git_hash(content)}
    if file.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
_ROUTES = [
    ("POST /api/repos/create", _Handler._create),
    ("POST /api/validate-yaml", _Handler._validate),
    (rf"POST /api/models/{_NAME}/branch/(?P<revision>.+)", _Handler._branch),
    (rf"POST /api/models/{_NAME}/preupload/(?P<revision>.+)", _Handler._preupload),
    (rf"POST /api/models/{_NAME}/commit/(?P<revision>.+)", _Handler._commit),
    (rf"GET /api/models/{_NAME}", _Handler._info),
    (rf"GET /api/models/{_NAME}/revision/(?P<revision>.+)", _Handler._info),
    (rf"GET /api/models/{_NAME}/tree/(?P<revision>refs/pr/\d+|[^/]+)(/(?P<folder>.*))?", _Handler._tree),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler._batch),
    (r"PUT /upload/(?P<oid>\w+)", _Handler._upload),
    (rf"GET|HEAD /{_NAME}/resolve/(?P<revision>refs/pr/\d+|[^/]+)/(?P<file>.+)", _Handler._resolve),
]
