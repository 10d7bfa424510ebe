"""
A Hugging Face Hub on loopback, in memory: enough of it for the real `huggingface_hub` client, and no more.

    with LocalHub() as hub:
        subprocess.run([...], env=hub.environment(home))

Model, dataset and Space repositories with branches, tags and commits, Git LFS uploads checked by hash, Range requests,
paged listings, tokens and private repositories; the metadata of cards are checked as far as it is known what the Hub
checks (`metadata_errors`). The client reads the Hub's address when it is imported, so that it has to be in a process
of its own. Xet is switched off there: the client then uploads by plain LFS.
"""

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import yaml

TOKEN, USER = "hf_LocalHubTestsOnlyToken0123456789", "user"
LFS_SUFFIXES = (".safetensors", ".parquet", ".mp4", ".bin", ".pt", ".pkl")
ENTRIES_PER_PAGE = 5  # the Hub's is 1000; few, so that listings have pages

# /[datasets/ or spaces/]NAMESPACE/NAME, as files are addressed, and /api/KINDs/NAMESPACE/NAME, as everything else is.
_REPOSITORY = r"(?P<id>[\w.-]+/[\w.-]+)"
_FILES, _API = rf"/(?P<kind>datasets|spaces)?/?{_REPOSITORY}", rf"/api/(?P<kind>models|datasets|spaces)/{_REPOSITORY}"


class Refused(Exception):
    """An answer other than success: a status, and the code that the client tells errors apart by."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


@dataclass
class Repository:
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # hash -> path -> content
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        number = f"{len(self.commits)} {id(self)}"
        commit = self.branches[branch] = hashlib.sha1(number.encode()).hexdigest()
        self.commits[commit] = files
        return commit

    def resolve(self, revision: str) -> str:
        commit = self.branches.get(revision) or self.tags.get(revision) or revision
        if commit not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit


class LocalHub:
    """`repositories` by (kind, id); `requests`: (method, path); `forbidden`: patterns of paths to answer with 403."""

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by sha256
        self.requests: list[tuple[str, str]] = []
        self.forbidden: set[str] = set()
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """The environment of a process whose Hub is this one, and whose caches are all in `home`."""
        outer = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
        off = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS")
        # With the last, transformers would have a Space turn pickles into safetensors: that is elsewhere.
        switched_off = dict.fromkeys([*off, "DISABLE_SAFETENSORS_CONVERSION"], "1")
        return outer | own | switched_off | {"OMP_NUM_THREADS": "1"} | ({"HF_TOKEN": token} if token else {})

    def url_of(self, kind: str, name: str) -> str:
        return f"{self.url}/{name}" if kind == "models" else f"{self.url}/{kind}/{name}"

    def files(self, repository: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        held = self.repositories[kind, repository]
        return held.commits[held.resolve(revision)]

    # ---------------------------------------------------------------- what is asked
    def find(self, asked: "_Handler", kind: str, name: str, to_write: bool = False) -> Repository:
        known = asked.is_user()
        if to_write and not known:
            raise Refused(401, "Invalid username or password.")
        found = self.repositories.get((kind, name))
        if found is None or (found.private and not known):
            raise Refused(404, "Repository not found", "RepoNotFound")
        return found

    def create(self, asked: "_Handler"):
        if not asked.is_user():
            raise Refused(401, "Invalid username or password.")
        wanted = asked.json()
        kind, name = wanted.get("type", "model") + "s", f"{wanted['organization'] or USER}/{wanted['name']}"
        url = self.url_of(kind, name)
        if (kind, name) in self.repositories:
            return 409, {"error": "You already created this repo", "url": url}
        new = self.repositories[kind, name] = Repository(wanted.get("visibility") == "private")
        new.commit("main", {".gitattributes": b""})
        return 200, {"url": url, "name": name}

    def whoami(self, asked: "_Handler"):
        if not asked.is_user():
            raise Refused(401, "Invalid username or password.")
        return 200, {"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}}

    def validate_yaml(self, asked: "_Handler"):
        given = asked.json()
        errors = [{"message": message} for message in metadata_errors(given["content"], given["repoType"])]
        return 400 if errors else 200, {"errors": errors, "warnings": []}

    def info(self, asked: "_Handler", kind: str, id: str, revision: str = "main"):
        found = self.find(asked, kind, id)
        commit = found.resolve(revision)
        names = [{"rfilename": path} for path in sorted(found.commits[commit])]
        return 200, {"id": id, "sha": commit, "private": found.private, "tags": [], "downloads": 0, "siblings": names}

    def refs(self, asked: "_Handler", kind: str, id: str):
        found = self.find(asked, kind, id)

        def listed(of: dict[str, str], where: str) -> list[dict]:
            return [{"name": name, "ref": f"refs/{where}/{name}", "targetCommit": to} for name, to in of.items()]

        return 200, {"branches": listed(found.branches, "heads"), "tags": listed(found.tags, "tags"), "converts": []}

    def branch(self, asked: "_Handler", kind: str, id: str, name: str):
        found = self.find(asked, kind, id, to_write=True)
        if name in found.branches:
            raise Refused(409, "Reference already exists")
        found.branches[name] = found.resolve(asked.json().get("startingPoint") or "main")
        return 201, {}

    def tag(self, asked: "_Handler", kind: str, id: str, revision: str):
        found = self.find(asked, kind, id, to_write=True)
        found.tags[asked.json()["tag"]] = found.resolve(revision)
        return 201, {}

    def preupload(self, asked: "_Handler", kind: str, id: str, revision: str):
        self.find(asked, kind, id, to_write=True).resolve(revision)
        paths = [file["path"] for file in asked.json()["files"]]
        modes = {path: "lfs" if path.endswith(LFS_SUFFIXES) else "regular" for path in paths}
        files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        return 200, {"files": files}

    def lfs_batch(self, asked: "_Handler", kind: str | None, id: str):
        self.find(asked, kind or "models", id, to_write=True)
        wanted = [{"oid": file["oid"], "size": file["size"]} for file in asked.json()["objects"]]
        for file in wanted:
            if file["oid"] not in self.objects:
                file["actions"] = {"upload": {"href": f"{self.url}/lfs/{file['oid']}"}}
        return 200, {"transfer": "basic", "objects": wanted}

    def lfs_put(self, asked: "_Handler", oid: str):
        if hashlib.sha256(asked.body).hexdigest() != oid:
            raise Refused(400, "the content does not have the hash it was announced with")
        self.objects[oid] = asked.body
        return 200, {}

    def commit(self, asked: "_Handler", kind: str, id: str, revision: str):
        found = self.find(asked, kind, id, to_write=True)
        if revision not in found.branches:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files = dict(found.commits[found.branches[revision]])
        for line in asked.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            elif item["key"] == "deletedFolder":
                files = {path: held for path, held in files.items() if not path.startswith(value["path"])}
        commit = found.commit(revision, files)
        return 200, {"commitUrl": f"{self.url_of(kind, id)}/commit/{commit}", "commitOid": commit}

    def tree(self, asked: "_Handler", kind: str, id: str, revision: str, path: str = ""):
        found = self.find(asked, kind, id)
        files, prefix = found.commits[found.resolve(revision)], f"{path}/" if path else ""
        below = {name: entry(name, held) for name, held in files.items() if name.startswith(prefix)}
        if not below:
            raise Refused(404, f"{path} does not exist", "EntryNotFound")
        for name in list(below):
            folders = name.removeprefix(prefix).split("/")[:-1]
            for depth in range(len(folders)):
                below.setdefault(folder := prefix + "/".join(folders[: depth + 1]), entry(folder, None))
        names = sorted(below)
        if asked.query.get("recursive") != "true":
            names = [name for name in names if "/" not in name.removeprefix(prefix)]
        begin = int(asked.query.get("cursor", 0))
        end = begin + ENTRIES_PER_PAGE
        if end < len(names):
            query = urlencode({**asked.query, "cursor": end})
            asked.answer_headers["Link"] = f'<{self.url}{quote(asked.route)}?{query}>; rel="next"'
        return 200, [below[name] for name in names[begin:end]]

    def paths_info(self, asked: "_Handler", kind: str, id: str, revision: str):
        found = self.find(asked, kind, id)
        files, wanted = found.commits[found.resolve(revision)], parse_qs(asked.body.decode())["paths"]
        folders = [path for path in wanted if any(name.startswith(f"{path}/") for name in files)]
        there = [path for path in wanted if path in files]
        return 200, [entry(path, files.get(path)) for path in folders + there]

    def file(self, asked: "_Handler", kind: str | None, id: str, revision: str, path: str):
        found = self.find(asked, kind or "models", id)
        commit = found.resolve(revision)
        asked.answer_headers["X-Repo-Commit"] = commit
        if path not in found.commits[commit]:
            raise Refused(404, "Entry not found", "EntryNotFound")
        content, oids = found.commits[commit][path], entry(path, found.commits[commit][path])
        oid = oids.get("lfs", oids)["oid"]
        asked.answer_headers |= {"ETag": f'"{oid}"', "X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("Range", "")):
            begin, end = int(wanted[1]), min(int(wanted[2] or len(content)) + 1, len(content))
            asked.answer_headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
            return 206, content[begin:end]
        return 200, content


def entry(path: str, content: bytes | None) -> dict:
    """What listings say of a file, or of a folder (None)."""
    if content is None:
        return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    described = {"type": "file", "path": path, "oid": git, "size": len(content)}
    if path.endswith(LFS_SUFFIXES):
        described["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return described


# ---------------------------------------------------------------- metadata of cards
# As the Hub itself listed them in May 2026 (huggingface_hub, issue 4218).
_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
other
"""
_TASKS = """
any-to-any audio-classification audio-text-to-text audio-to-audio automatic-speech-recognition depth-estimation
document-question-answering feature-extraction fill-mask image-classification image-feature-extraction
image-segmentation image-text-to-text image-to-image image-to-text image-to-video keypoint-detection mask-generation
multiple-choice object-detection other question-answering reinforcement-learning robotics sentence-similarity
summarization table-question-answering text-classification text-generation text-ranking text-to-image text-to-speech
text-to-video token-classification translation video-classification video-text-to-text visual-document-retrieval
visual-question-answering zero-shot-classification zero-shot-image-classification zero-shot-object-detection
"""
LICENSES, TASKS = _LICENSES.split(), _TASKS.split()
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")
RELATIONS = ("adapter", "finetune", "merge", "quantized")
_TEXTS = ("tags", "datasets", "metrics", "language", "task_categories", "size_categories", "base_model")


def metadata_errors(content: str, kind: str) -> list[str]:
    """What the Hub would say against the metadata of a card: types of the keys, known values, what has to be there."""
    found = re.match(r"\s*---\r?\n(.*?)\r?\n---\s*(\n|$)", content, flags=re.DOTALL)
    try:
        data = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    if not isinstance(data, dict):
        return ["metadata must be an object"]
    errors = []

    def expect(right, message: str) -> None:
        if not right:
            errors.append(message)

    listed = {name: data[name] if isinstance(data[name], list) else [data[name]] for name in _TEXTS if name in data}
    for name, values in listed.items():
        expect(all(isinstance(value, str) for value in values), f'"{name}" must be a string or an array of strings')
    for name, known in (("license", LICENSES), ("pipeline_tag", TASKS), ("base_model_relation", RELATIONS)):
        expect(name not in data or data[name] in known, f'"{name}" must be one of [{", ".join(known)}]')
    for name, known in (("task_categories", TASKS), ("size_categories", SIZES)):
        expect(set(listed.get(name, [])) <= set(known), f'"{name}" must be among [{", ".join(known)}]')
    for name in ("base_model", "datasets"):
        for value in listed.get(name, []):
            known = re.fullmatch(r"([\w.-]+/)?[\w.-]+", str(value))
            expect(known, f'"{name}" with value "{value}" is not valid. Use an id from https://hf.co.')
    for value in listed.get("language", []):
        expect(re.fullmatch(r"[a-z]{2,3}(-.+)?|code|multilingual", str(value)), f'"language" {value} is no ISO code')
    for name in ("license_name", "license_link"):
        expect(name not in data or data.get("license") == "other", f'"{name}" is allowed with "license: other" alone')
    name, link = data.get("license_name", "x"), data.get("license_link", "LICENSE")
    expect(re.fullmatch(r"[a-z0-9.-]+", str(name)), '"license_name" must be in lower case, without spaces')
    expect(re.fullmatch(r"LICENSE(\.md)?|https?://\S+", str(link)), '"license_link" must be a URL or LICENSE')
    if kind == "model" and "model-index" in data:
        errors += _model_index_errors(data["model-index"])
    for number, config in enumerate(data.get("configs", [])):
        right = isinstance(config, dict) and isinstance(config.get("config_name"), str) and config.get("data_files")
        expect(right, f'"configs[{number}]" must have a config_name and data_files')
    return errors


def _model_index_errors(index) -> list[str]:
    if not isinstance(index, list) or not all(isinstance(model, dict) for model in index):
        return ['"model-index" must be an array of objects']
    missing = []
    for m, model in enumerate(index):
        results, where = model.get("results"), f"model-index[{m}]"
        if not isinstance(model.get("name"), str) or not isinstance(results, list) or not results:
            missing.append(f"{where}.name and .results")
            continue
        for r, result in enumerate(results):
            at = f"{where}.results[{r}]"
            for part, key in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
                if not isinstance(result.get(part), dict) or not isinstance(result[part].get(key), str):
                    missing.append(f"{at}.{part}.{key}")
            metrics = result.get("metrics") or [{}]
            missing += [f"{at}.metrics: type" for one in metrics if not isinstance(one.get("type"), str)]
            missing += [f"{at}.metrics: value" for one in metrics if one.get("value") is None]
    return [f'"{where}" is required' for where in missing]


_ROUTES = [
    ("POST", "/api/repos/create", LocalHub.create),
    ("GET", "/api/whoami-v2", LocalHub.whoami),
    ("POST", "/api/validate-yaml", LocalHub.validate_yaml),
    ("GET", rf"{_API}(/revision/(?P<revision>[^/]+))?", LocalHub.info),
    ("GET", rf"{_API}/refs", LocalHub.refs),
    ("POST", rf"{_API}/branch/(?P<name>[^/]+)", LocalHub.branch),
    ("POST", rf"{_API}/tag/(?P<revision>[^/]+)", LocalHub.tag),
    ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", LocalHub.preupload),
    ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", LocalHub.commit),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", LocalHub.tree),
    ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", LocalHub.paths_info),
    ("POST", rf"{_FILES}\.git/info/lfs/objects/batch", LocalHub.lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", LocalHub.lfs_put),
    ("GET", rf"{_FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", LocalHub.file),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else content waits 40 ms for the client to acknowledge the headers
    hub: LocalHub

    def is_user(self) -> bool:
        """Whether the request has the token; a wrong one is refused wherever it is sent."""
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {TOKEN}"):
            raise Refused(401, "Invalid credentials in Authorization header")
        return given is not None

    def json(self) -> dict:
        return json.loads(self.body)

    def respond(self) -> None:
        parts = urlsplit(self.path)
        self.route, self.query = parts.path, {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer_headers: dict[str, str] = {}
        with self.hub.lock:
            self.hub.requests.append((self.command, unquote(self.route)))
            try:
                status, content = self._answer()
            except Refused as refused:
                status, content = refused.status, {"error": str(refused)}
                self.answer_headers |= refused.headers
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**self.answer_headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _answer(self):
        if any(re.search(pattern, self.route) for pattern in self.hub.forbidden):
            raise Refused(403, "Forbidden")
        for method, pattern, answer in _ROUTES:
            if method == self.command.replace("HEAD", "GET") and (match := re.fullmatch(pattern, self.route)):
                values = {name: value and unquote(value) for name, value in match.groupdict().items()}
                given = {name: value for name, value in values.items() if value is not None or name == "kind"}
                return answer(self.hub, self, **given)
        raise Refused(404, f"{self.command} {self.route}: not an address of this Hub")

    do_GET = do_HEAD = do_POST = do_PUT = respond

    def log_message(self, *arguments) -> None:
        """Quiet."""
