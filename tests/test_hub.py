"""On the Hub and back: the real client against a Hub on loopback, in new processes with empty caches."""

import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from forked import LIBRARIES, PYTHON, write_programs
from local_hub import TOKEN, LocalHub
from support import ROOT, index_frames, tiny_config, write_video
from test_package import HUB_FILES, wheel  # noqa: F401, a fixture
from test_training import recipe_text

from gazeqwen.backbones_gazeqwen import FAMILIES
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.questions.dataset import load_questions
from gazeqwen.training.recipe import DataSettings, ModelSettings, Recipe, StageSettings
from gazeqwen.video_encoders_gazeqwen import video_encoder_config


class Hub(LocalHub):
    """
    A Hub and `python` for it: processes that have the libraries, but not the package. These read on import where the
    Hub and the caches are; so the caches are in what is a link to those of each process.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.home = folder / "home"
        self.program = write_programs(folder / "libraries", LIBRARIES, self.environment(self.home))

    def python(self, *command, environment: dict, **options) -> subprocess.CompletedProcess:
        """Run `python command` in a new process."""
        caches = Path(environment["HF_HOME"])
        caches.mkdir(parents=True, exist_ok=True)
        self.home.unlink(missing_ok=True)
        self.home.symlink_to(caches)
        command = [self.program, *map(str, command)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, **options)

    def run(
        self, code: str, *arguments, environment: dict, path: Path = ROOT / "tests", cwd: Path | None = None
    ) -> str:
        """What a new process prints that runs the code; it can import what is in `path`."""
        result = self.python("-c", code, *arguments, environment=environment | {"PYTHONPATH": str(path)}, cwd=cwd)
        assert result.returncode == 0, result.stderr
        return result.stdout


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


def python(code: str, *arguments, environment: dict, cwd: Path | None = None) -> str:
    """What a new process prints that runs the code, and has imported nothing but torch before."""
    command = [PYTHON, "-c", code, *map(str, arguments)]
    environment = environment | {"PYTHONPATH": str(ROOT / "tests")}
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


# ---------------------------------------------------------------- what is pushed
PUSH = """
import json, sys
from pathlib import Path
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save, save_file
from support import BACKBONE, VIDEO_ENCODER, perturb
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.processing_gazeqwen import GazeQwenProcessor

out, video = Path(sys.argv[1]), sys.argv[2]
api, commits, tensors = HfApi(), {}, {}
for name, source in (("base", BACKBONE), ("encoder", VIDEO_ENCODER)):
    api.create_repo(f"user/{name}", private=True)
    commits[name] = api.upload_folder(repo_id=f"user/{name}", folder_path=source).oid
    zeros = {key: torch.zeros_like(value) for key, value in load_file(source / "model.safetensors").items()}
    moved = save(zeros, metadata={"format": "pt"})  # so that weights of another revision would be noticed
    api.upload_file(path_or_fileobj=moved, path_in_repo="model.safetensors", repo_id=f"user/{name}")
model = GazeQwenForConditionalGeneration.from_base(
    "user/base", "user/encoder", commits["base"], commits["encoder"], latent_dim=16, num_latents=8
)
processor = GazeQwenProcessor.from_base("user/base", commits["base"], video_encoder_size=64, num_frames=8)
chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which object?"}]}]
text = processor.apply_chat_template(chat, add_generation_prompt=True)
inputs = dict(processor(text=text, videos=[video], scanpaths=[[[0.3, 0.4, 1.0, 1.5]]]))

def logits(name):
    with torch.no_grad():
        tensors[name] = model(**inputs).logits

with model.gaze_disabled():
    logits("base")
torch.manual_seed(0)
perturb(model)
logits("stage 1")
model.push_to_hub("user/gazeqwen")
processor.push_to_hub("user/gazeqwen")
commits["stage 1"] = api.model_info("user/gazeqwen").sha
model.add_lora()
perturb(model)
logits("stage 2")
model.push_to_hub("user/gazeqwen")
commits["stage 2"] = api.model_info("user/gazeqwen").sha
model.push_to_hub("user/again")
model.push_to_hub("user/withheld")
model.save_pretrained(out / "saved", push_to_hub=True, repo_id="user/saved", private=True)
stage1 = GazeQwenForConditionalGeneration.from_pretrained("user/gazeqwen", revision=commits["stage 1"])
stage1.push_to_hub("user/again")

for file in ("model.safetensors", "lora/adapter_model.safetensors"):
    weights = load_file(out / "saved" / file)
    first = sorted(weights)[0]
    missing = {name: value for name, value in weights.items() if name != first}
    for change, changed in (("missing", missing), ("unexpected", weights | {"stray": torch.zeros(1)})):
        branch = f"{change}-{file.split('/')[0]}"
        api.create_branch("user/gazeqwen", branch=branch)
        api.upload_file(path_or_fileobj=save(changed), path_in_repo=file, repo_id="user/gazeqwen", revision=branch)
        commits[branch] = "stray" if change == "unexpected" else first.removeprefix("base_model.model.")

torch.save(model.backbone.state_dict(), out / "pytorch_model.bin")
api.create_repo("user/pickled")
for name in ("pytorch_model.bin", "config.json"):
    file = out / name if name.endswith("bin") else BACKBONE / name
    api.upload_file(path_or_fileobj=file, path_in_repo=name, repo_id="user/pickled")
saved = json.loads((out / "saved" / "config.json").read_text())
for branch, base in (("pickled", "user/pickled"), ("folder", str(BACKBONE)), ("upwards", "../backbone")):
    config = json.dumps(saved | {"base_model_name_or_path": base, "base_model_revision": None}).encode()
    api.create_branch("user/gazeqwen", branch=branch)
    api.upload_file(path_or_fileobj=config, path_in_repo="config.json", repo_id="user/gazeqwen", revision=branch)
save_file(tensors, out / "logits.safetensors")
save_file(inputs, out / "inputs.safetensors")
(out / "commits.json").write_text(json.dumps(commits))
"""


@pytest.fixture(scope="module")
def pushed(hub, toy_world, tmp_path_factory) -> Path:
    """A folder with inputs, logits and commits of what was pushed: base, encoder, and stages 1 and 2 of an adapter."""
    out = tmp_path_factory.mktemp("pushed")
    hub.run(PUSH, out, toy_video(toy_world), environment=hub.environment(out / "home"))
    hub.forbidden.add("/user/withheld/.*/lora/adapter_config.json")
    return out


def toy_video(toy_world: Path) -> Path:
    return sorted((toy_world / "videos" / "original_video").glob("*.mp4"))[0]


def test_the_repository_holds_the_adapter_its_code_and_no_pickle(hub, pushed):
    files = hub.files("user/gazeqwen")
    weights = {name: len(content) for name, content in files.items() if not name.endswith((".py", ".json", ".jinja"))}
    assert set(weights) == {
        *(".gitattributes", "README.md", "model.safetensors", "lora/adapter_model.safetensors"),
    }
    assert {path.name for path in HUB_FILES} == {name for name in files if name.endswith(".py")}
    config = json.loads(files["config.json"])
    commits = json.loads((pushed / "commits.json").read_text())
    assert (config["base_model_name_or_path"], config["base_model_revision"]) == ("user/base", commits["base"])
    assert (config["video_encoder_name_or_path"], config["video_encoder_revision"]) == (
        "user/encoder",
        commits["encoder"],
    )
    lora = json.loads(files["lora/adapter_config.json"])
    assert (lora["base_model_name_or_path"], lora["revision"]) == ("user/base", commits["base"])
    everything = b"".join(files.values())
    assert TOKEN.encode() not in everything and str(pushed).encode() not in everything
    assert hub.files("user/saved").keys() >= {"lora/adapter_config.json", "lora/adapter_model.safetensors"}
    newest = ("/user/base/resolve/main/", "/user/encoder/resolve/main/")  # as PEFT would ask
    assert not [path for _, path in hub.requests if path.startswith(newest)]


# ---------------------------------------------------------------- what is pulled
PULL = """
import json, os, pickle, sys
import torch
if sys.argv[2] == "code alone":
    sys.modules["gazeqwen"] = None  # as on a machine where the package is not installed
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor, pipeline

def refuse(*_, **__):
    raise AssertionError("something was unpickled")

pickle.load = pickle.loads = torch.load = refuse
pickle.Unpickler = type("Unpickler", (pickle.Unpickler,), {"__init__": refuse})
folder, kind, *rest = sys.argv[1:]
commits = json.load(open(folder + "/commits.json"))
inputs, expected = load_file(folder + "/inputs.safetensors"), load_file(folder + "/logits.safetensors")
token = os.environ.pop("HF_TOKEN")  # base and encoder are private
known = {"trust_remote_code": True, "local_files_only": kind == "offline", "token": token}

def check(model, name, lora=True):
    assert type(model).__name__ == "GazeQwenForConditionalGeneration" and model.has_lora == lora
    with torch.no_grad():
        found = model(**inputs).logits
    assert (found - expected[name]).abs().max() <= 1e-5, (name, (found - expected[name]).abs().max())
    assert all((found - other).abs().max() > 1e-3 for key, other in expected.items() if key != name), name
    return model

processor = AutoProcessor.from_pretrained("user/gazeqwen", **known)
assert type(processor).__name__ == "GazeQwenProcessor" and processor.num_frames == 8
model = check(AutoModel.from_pretrained("user/gazeqwen", **known), "stage 2")
older = AutoModel.from_pretrained("user/gazeqwen", revision=commits["stage 1"], **known)
check(older, "stage 1", lora=False)
"""

ONLINE = """
for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
    check(auto.from_pretrained("user/gazeqwen", **known), "stage 2")
check(AutoModel.from_pretrained("user/saved", **known), "stage 2")
check(AutoModel.from_pretrained("user/again", **known), "stage 1", lora=False)

content = [{"type": "video", "video": rest[0], "scanpath": rest[1]}, {"type": "text", "text": "Which object?"}]
chat = [{"role": "user", "content": content}]
settings = {"max_new_tokens": 6, "do_sample": False}
asked = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
answer = model.generate(**asked, **settings)[:, asked["input_ids"].shape[1] :]
answer = processor.batch_decode(answer, skip_special_tokens=True)[0]
for task in ("image-text-to-text", "any-to-any"):
    ask = pipeline(task, model="user/gazeqwen", trust_remote_code=True, token=token)
    assert ask(chat, return_full_text=False, generate_kwargs=settings)[0]["generated_text"] == answer

def refused(revision, repository="user/gazeqwen", **more):
    # By the code that is loaded already: the branches differ in weights and configs alone.
    code = {"code_revision": commits["stage 2"]} if repository == "user/gazeqwen" else {}
    try:
        AutoModel.from_pretrained(repository, revision=revision, **code | known | more)
    except (ValueError, OSError) as error:
        return str(error)

for branch, key in commits.items():
    if branch.startswith(("missing", "unexpected")):
        change, name = branch.split("-")[0], key
        assert f"{change} ['{name}']" in refused(branch), (branch, refused(branch))
assert "does not appear to have a file named model.safetensors" in refused("pickled")
for branch in ("folder", "upwards"):
    assert "in its config, expected an id on the Hub" in refused(branch), refused(branch)

# The Hub does not say whether this one has LoRA, which transformers takes for a no.
assert "couldn't connect" in refused("main", "user/withheld")

elsewhere = {"cache_dir": os.environ["HF_HOME"] + "/elsewhere"}
assert "user/base" in refused("main", token=None, **elsewhere)
check(AutoModel.from_pretrained("user/gazeqwen", **known, **elsewhere), "stage 2")
"""


def test_remote_code_alone_loads_everything_and_then_offline(hub, pushed, toy_world, tmp_path):
    """Auto classes, pipelines, a pinned revision, adapters that do not fit, tokens; then again without the Hub."""
    home, video = tmp_path / "home", toy_video(toy_world)
    table = next(toy_world.glob(f"metadata/**/{video.stem}_fixation_filtered.csv"))
    hub.run(PULL + ONLINE, pushed, "code alone", video, table, environment=hub.environment(home), cwd=tmp_path)
    requests = len(hub.requests)
    hub.run(PULL, pushed, "offline", environment=hub.environment(home), cwd=tmp_path)
    assert requests == len(hub.requests)


def test_an_installed_wheel_behaves_the_same(hub, pushed, wheel, tmp_path):  # noqa: F811
    """Through the Auto classes, which run the repository's code, and through the package's own class."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    own = """
import gazeqwen.modeling_gazeqwen as package
assert package.__file__.startswith(rest[0]), package.__file__
check(package.GazeQwenForConditionalGeneration.from_pretrained("user/gazeqwen", token=token), "stage 2")
"""
    environment = hub.environment(tmp_path / "home")
    hub.run(PULL + own, pushed, "wheel", tmp_path, environment=environment, path=tmp_path / "site", cwd=tmp_path)


# ---------------------------------------------------------------- every family
OTHER_FAMILIES = [family for family in FAMILIES if family != "qwen2_5_vl"]  # of which the tests above are
PUSH_FAMILIES = """
import sys
from pathlib import Path
import torch
from bases import Base
from huggingface_hub import HfApi
from safetensors.torch import save_file
from support import VIDEO_ENCODER, perturb
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.processing_gazeqwen import GazeQwenProcessor

out, video, families, api = Path(sys.argv[1]), sys.argv[2], sys.argv[3:], HfApi()
api.create_repo("user/video_encoder")
api.upload_folder(repo_id="user/video_encoder", folder_path=VIDEO_ENCODER)
for family in families:
    base, adapter = f"user/base_{family}", f"user/adapter_{family}"
    api.create_repo(base)
    api.upload_folder(repo_id=base, folder_path=Base(family, out).folder)
    model = GazeQwenForConditionalGeneration.from_base(base, "user/video_encoder", latent_dim=16, num_latents=4)
    model.add_lora()
    perturb(model).push_to_hub(adapter)
    processor = GazeQwenProcessor.from_base(base, video_encoder_size=64, num_frames=8)
    processor.push_to_hub(adapter)
    chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which object?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = dict(processor(text=text, videos=[video], scanpaths=[[[0.3, 0.4, 1.0, 1.5]]]))
    with torch.no_grad():
        logits = {"with gaze": model(**inputs).logits}
        with model.gaze_disabled():
            logits["without gaze"] = model(**inputs).logits
    save_file(inputs, out / f"inputs_{family}.safetensors")
    save_file(logits, out / f"logits_{family}.safetensors")
"""
PULL_FAMILIES = """
import sys
sys.modules["gazeqwen"] = None  # as on a machine where the package is not installed
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

out, video, *families = sys.argv[1:]
for family in families:
    adapter = f"user/adapter_{family}"
    model = AutoModel.from_pretrained(adapter, trust_remote_code=True)
    assert model.has_lora and model.backbone.config.model_type == family
    processor = AutoProcessor.from_pretrained(adapter, trust_remote_code=True)
    chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which object?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = dict(processor(text=text, videos=[video], scanpaths=[[[0.3, 0.4, 1.0, 1.5]]]))
    pushed, expected = (load_file(f"{out}/{name}_{family}.safetensors") for name in ("inputs", "logits"))
    assert inputs.keys() == pushed.keys() and all(torch.equal(inputs[name], pushed[name]) for name in pushed), family
    with torch.no_grad():
        logits = model(**inputs).logits
    with model.gaze_disabled(), torch.no_grad():
        plain = model(**inputs).logits
    assert torch.equal(logits, expected["with gaze"]) and torch.equal(plain, expected["without gaze"]), family
    assert (logits - plain).abs().max() > 1e-2, family
    print(family)
"""


def test_every_other_family_comes_back_from_the_hub(hub, toy_world, tmp_path):
    """Adapter with LoRA and processor, pushed, then loaded by remote code alone: same inputs, same logits."""
    video = toy_video(toy_world)
    hub.run(PUSH_FAMILIES, tmp_path, video, *OTHER_FAMILIES, environment=hub.environment(tmp_path / "home"))
    environment = hub.environment(tmp_path / "home2")
    loaded = hub.run(PULL_FAMILIES, tmp_path, video, *OTHER_FAMILIES, environment=environment, cwd=tmp_path)
    assert loaded.split() == OTHER_FAMILIES


# ---------------------------------------------------------------- datasets
@pytest.fixture(scope="module")
def dataset(hub, toy_world, tmp_path_factory) -> Path:
    """The toy world, built and pushed from the command line to a repository that held another dataset."""
    folder = tmp_path_factory.mktemp("dataset")
    earlier = """
from huggingface_hub import HfApi
HfApi().create_repo("user/toyworld", repo_type="dataset")
for name in ("videos/gone.mp4", "gone-test.parquet", "notes.txt"):
    HfApi().upload_file(path_or_fileobj=b"x", path_in_repo=name, repo_id="user/toyworld", repo_type="dataset")
"""
    environment = hub.environment(folder / "home")
    hub.run(earlier, environment=environment)
    command = ["-m", "gazeqwen.questions", toy_world, folder / "data", "--push", "user/toyworld"]
    result = hub.python(*command, environment=environment)
    assert result.returncode == 0 and f"published: {hub.url}" in result.stdout, result.stderr
    return folder / "data"


def test_a_dataset_is_replaced_on_the_hub(hub, dataset):
    built = {str(path.relative_to(dataset)): path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    found = hub.files("user/toyworld", kind="datasets")
    assert found == built | {"notes.txt": b"x", ".gitattributes": b""}


def test_own_questions_go_to_a_private_repository(hub, tmp_path):
    write_video(tmp_path / "my.mp4", index_frames(20), fps=2)
    (tmp_path / "q.csv").write_text("video,time_s,question,answer,split\nmy.mp4,8,What is this?,A cheese.,train\n")
    command = [
        "-m",
        "gazeqwen.questions",
        tmp_path / "q.csv",
        tmp_path / "data",
        "--push",
        "user/mine",
        "--private",
    ]
    environment = hub.environment(tmp_path / "home")
    result = hub.python(*command, environment=environment)
    assert result.returncode == 0, result.stderr
    assert hub.repositories["datasets", "user/mine"].private
    assert b'load_dataset("user/mine")' in hub.files("user/mine", kind="datasets")["README.md"]
    loaded = "from datasets import load_dataset; assert len(load_dataset('user/mine', split='train')) == 1"
    hub.run(loaded, environment=environment)


LOAD_DATASETS = """
import sys
import zipfile
from pathlib import Path
from datasets import Dataset, Video, load_dataset
from huggingface_hub import HfApi
from gazeqwen.questions.dataset import load_questions

def rows(data):
    return [{name: value for name, value in row.items() if name != "video"} for row in data]

local, remote = load_dataset(sys.argv[1]), load_dataset("user/toyworld")
streamed = load_dataset("user/toyworld", streaming=True)
assert set(local) == set(remote) == set(streamed) == {"train", "validation", "test"}
for split in local:
    assert rows(local[split]) == rows(remote[split]) == rows(streamed[split]) and len(local[split]) > 5
    for mine, theirs in zip(local[split], remote[split]):
        assert Path(mine["video"]["path"]).read_bytes() == Path(theirs["video"]["path"]).read_bytes()
first = next(iter(streamed["test"]))["video"]
assert first["path"].startswith("hf://datasets/user/toyworld"), first
mine, theirs = load_questions(sys.argv[1], "test"), load_questions("user/toyworld", "test")
assert [question.key for question in mine] == [question.key for question in theirs]

row = local["test"][0] | {"video": {"bytes": None, "path": "/etc/hostname"}}
evil = Dataset.from_list([row], features=local["test"].features)
evil.to_parquet("test.parquet")
HfApi().create_repo("user/evil", repo_type="dataset")
HfApi().upload_file(
    path_or_fileobj="test.parquet", path_in_repo="test.parquet", repo_id="user/evil", repo_type="dataset"
)
try:
    load_questions("user/evil", "test")
except ValueError as error:
    print(error)
"""


def test_a_dataset_comes_back_whole_also_streamed_and_names_no_files_of_this_machine(hub, dataset, tmp_path):
    said = hub.run(LOAD_DATASETS, dataset, environment=hub.environment(tmp_path / "home"), cwd=tmp_path)
    assert "the video of a question is '/etc/hostname', expected a file of the dataset" in said


# ---------------------------------------------------------------- training from the Hub to the Hub
LOAD_TRAINED = """
import sys
import torch
from safetensors.torch import load_file
from transformers import AutoModel
inputs, logits = load_file(sys.argv[1] + "/inputs.safetensors"), []
for source in (sys.argv[2], "user/trained"):
    model = AutoModel.from_pretrained(source, trust_remote_code=True)
    with torch.no_grad():
        logits.append(model(**inputs).logits)
with model.gaze_disabled(), torch.no_grad():
    base = model(**inputs).logits
assert model.has_lora and (logits[0] - logits[1]).abs().max() <= 1e-5 < 1e-3 < (logits[0] - base).abs().max()

from huggingface_hub import ModelCard
card = ModelCard.load("user/trained")
assert (card.data.base_model, card.data.base_model_relation) == ("user/base", "adapter")
assert card.data.datasets == ["user/toyworld"] and card.data.eval_results is None
assert 'from_pretrained("user/trained"' in card.text
assert "**Validation alone.**" in card.text and "were not run**" in card.text
model.push_to_hub("user/trained")  # transformers leaves the card that is there
assert ModelCard.load("user/trained").content == card.content
"""


def test_a_run_reads_from_the_hub_pushes_its_best_adapter_and_keeps_the_token_to_itself(
    hub, pushed, dataset, tmp_path
):
    commits = json.loads((pushed / "commits.json").read_text())
    model = {
        "base_model": "user/base",
        "base_model_revision": commits["base"],
        "video_encoder": "user/encoder",
        "video_encoder_revision": commits["encoder"],
    }
    text = recipe_text(Path("user/toyworld"), tmp_path / "run", push_to_hub="user/trained")
    recipe = yaml.safe_load(text)
    recipe["model"] |= model
    recipe["data"]["tasks"] = ["present_object_identification_easy"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    command = (ROOT / "train.py", tmp_path / "recipe.yaml")
    wrong = hub.python(*command, environment=hub.environment(tmp_path / "home", token="hf_wrongwrongwrong"))
    said = "train.py: user/trained: cannot be written to on the Hub (Client error '401 Unauthorized'"
    assert wrong.returncode == 1 and wrong.stderr.startswith(said) and wrong.stderr.count("\n") == 1, wrong.stderr
    assert not (tmp_path / "run").exists()  # before anything was trained

    environment = hub.environment(tmp_path / "home")
    hub.forbidden.add("/user/trained/commit/")  # something happens just then
    failed = hub.python(*command, environment=environment)
    hub.forbidden.remove("/user/trained/commit/")
    assert failed.returncode == 1 and (tmp_path / "run" / "best").exists(), failed.stderr
    assert "train.py: user/trained: cannot be written to on the Hub" in failed.stderr.splitlines()[-1]
    done = hub.python(*command, environment=environment)
    assert done.returncode == 0 and "this run is finished" in done.stdout, done.stderr
    assert f"published: {hub.url}/user/trained/commit/" in done.stdout

    best = tmp_path / "run" / "best"
    built = {str(path.relative_to(best)): path.read_bytes() for path in best.rglob("*") if path.is_file()}
    assert hub.files("user/trained") == built | {".gitattributes": b""}
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    for run in (wrong, failed, done):
        written += (run.stdout + run.stderr).encode()
    assert TOKEN.encode() not in written and b"hf_wrong" not in written
    hub.run(LOAD_TRAINED, pushed, best, environment=hub.environment(tmp_path / "home2"), cwd=tmp_path)


# ---------------------------------------------------------------- what may be missing, and what may not be there
WITHOUT = """
import sys
for name in ("gazeqwen", "accelerate", "av", "datasets", "evaluate", "matplotlib", "peft", "scipy", "statsmodels",
             "tensorboard", "timm"):
    sys.modules[name] = None  # as if it were not installed
import json
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor
folder = sys.argv[1]
inputs, expected = load_file(folder + "/inputs.safetensors"), load_file(folder + "/logits.safetensors")
stage1 = json.load(open(folder + "/commits.json"))["stage 1"]
processor = AutoProcessor.from_pretrained("user/gazeqwen", trust_remote_code=True)
model = AutoModel.from_pretrained("user/gazeqwen", revision=stage1, trust_remote_code=True)
with torch.no_grad():
    assert (model(**inputs).logits - expected["stage 1"]).abs().max() <= 1e-5
encoders = sys.modules[type(model).__module__.replace("modeling_gazeqwen", "video_encoders_gazeqwen")]
for needs_more in (
    lambda: AutoModel.from_pretrained("user/gazeqwen", trust_remote_code=True),
    lambda: model.add_lora(),
    lambda: processor.read_clip(sys.argv[2]),
    lambda: encoders.video_encoder_config({"architecture": "vit_tiny_patch16_224"}),
):
    try:
        needs_more()
    except ImportError as error:
        print(error)
"""


def test_what_a_part_needs_is_named_when_it_is_missing_and_nothing_else_is_needed(hub, pushed, toy_world, tmp_path):
    said = python(WITHOUT, pushed, toy_video(toy_world), environment=hub.environment(tmp_path), cwd=tmp_path)
    lora, add, video, encoder = said.splitlines()
    assert "this adapter has LoRA, which needs PEFT: pip install peft" in lora
    assert add == "LoRA needs PEFT: pip install peft"
    assert video == "reading videos needs PyAV: pip install av"
    assert encoder == "DINOv2 features need timm: pip install timm"


@pytest.mark.parametrize(
    "values",
    [
        {"architecture": "vit_tiny_patch16_224", "model_args": {"checkpoint_path": "/tmp/any.pt"}},
        {"architecture": "vit_tiny_patch16_224", "model_args": {"pretrained": True}},
        {"architecture": "hf-hub:someone/else"},
        {"architecture": "local-dir:/home"},
    ],
)
def test_a_video_encoders_config_opens_no_other_files(values):
    with pytest.raises(ValueError, match="expected the name of a model of timm, and no files to load"):
        video_encoder_config(values, "user/encoder")


@pytest.mark.parametrize("name", ["../secret.mp4", "/etc/hostname", "videos/../../secret.mp4"])
def test_a_dataset_in_a_folder_opens_no_files_outside_of_it(toy_data, tmp_path, name):
    copy = tmp_path / "data"
    shutil.copytree(toy_data, copy)
    (copy / "secret.mp4").write_bytes(b"x")
    table = copy / "default-test.parquet"
    rows = Dataset.from_parquet(str(table), cache_dir=str(tmp_path / "cache"))
    rows = Dataset.from_list([{**row, "video_name": name} for row in rows], features=rows.features)
    rows.to_parquet(str(table))
    (copy / "README.md").write_text((copy / "README.md").read_text().replace("build ", f"build {name} "))
    with pytest.raises(ValueError, match=f"video_name is '{name}', expected a file's name"):
        load_questions(copy, "test")


# ---------------------------------------------------------------- what is not pushed
def test_frozen_models_in_folders_are_not_pushed(toy_model):
    """Nobody else could load them, and the folder's name is nobody else's business."""
    with pytest.raises(ValueError, match="config.base_model_name_or_path: got .*a folder of this machine"):
        toy_model.push_to_hub("user/never")
    for part in ("base_model", "video_encoder"):
        model = {"base_model": "user/base", "video_encoder": "user/encoder", part: str(ROOT)}
        with pytest.raises(ValueError, match=f"push_to_hub: model.{part}: got {ROOT}, a folder of this machine"):
            Recipe(
                model=ModelSettings(**model),
                data=DataSettings(dataset="user/toyworld"),
                stage1=StageSettings(epochs=1),
                push_to_hub="user/never",
            )


def test_an_adapter_of_the_7b_model_is_54_mb(tmp_path):
    """Both stages, the paper's encoding and latents, V-JEPA 2.1 ViT-L; of the base model and the encoder: shapes."""
    config = tiny_config(latent_dim=256, num_latents=32, gaze_encoding="coord_pe")
    text = config.backbone_config.text_config
    text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads = 3584, 28, 28, 4
    text.layer_types = ["full_attention"] * 28
    text.intermediate_size, config.backbone_config.vision_config.out_hidden_size = 64, 3584
    config.video_encoder_config.hidden_size = 1024
    config.base_model_name_or_path, config.video_encoder_name_or_path = "Qwen/Qwen2.5-VL-7B-Instruct", "user/vjepa"
    with torch.device("meta"):
        model = GazeQwenForConditionalGeneration(config)
        model.add_lora(rank=8)
    model.resampler.to_empty(device="cpu")
    lora = {name: torch.zeros_like(value, device="cpu") for name, value in model.lora_state().items()}
    named = {name.replace(".weight", ".default.weight"): value for name, value in lora.items()}
    model.backbone.load_state_dict(named, strict=False, assign=True)
    model.save_pretrained(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size == pytest.approx(54.5e6, abs=0.2e6)
    trained = model.trained_parameters().values()
    assert sum(value.numel() for value in trained) == 13_588_484 and {v.dtype for v in trained} == {torch.float32}


# ---------------------------------------------------------------- the Hub itself
CLIENT = """
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download
api = HfApi()
assert api.whoami()["name"] == "user"
for _ in range(2):
    api.create_repo("user/files", exist_ok=True)
for name in ("a.txt", "b/c.txt", "b/d/e.txt", "w.safetensors", "x.txt", "y.txt", "z.txt"):
    commit = api.upload_file(path_or_fileobj=name.encode() * 100, path_in_repo=name, repo_id="user/files")
api.create_tag("user/files", tag="v1")
api.create_branch("user/files", branch="other")
api.delete_folder("b", repo_id="user/files", revision="other")
names = " ".join(entry.path for entry in api.list_repo_tree("user/files", recursive=True))
assert names == ".gitattributes a.txt b b/c.txt b/d b/d/e.txt w.safetensors x.txt y.txt z.txt", names
assert [entry.path for entry in api.list_repo_tree("user/files", "b")] == ["b/c.txt", "b/d"]
assert "b/c.txt" in api.list_repo_files("user/files", revision=commit.oid)
assert "b/c.txt" not in api.list_repo_files("user/files", revision="other")
assert [found.blob_id is not None for found in api.get_paths_info("user/files", ["a.txt", "no.txt"])] == [True]
with HfFileSystem().open("user/files@v1/w.safetensors", "rb", block_size=64) as file:
    file.seek(13)
    assert file.read(13) == b"w.safetensors"
for asked in (
    {"repo_id": "user/none", "filename": "a.txt"},
    {"repo_id": "user/files", "filename": "none.txt"},
    {"repo_id": "user/files", "filename": "a.txt", "revision": "none"},
):
    try:
        hf_hub_download(**asked)
    except Exception as error:
        print(type(error).__name__)
try:
    api.create_repo("user/mine", token="hf_wrong")
except Exception as error:
    print(error.response.status_code)
"""


def test_the_clients_own_view_of_the_hub(hub, tmp_path):
    said = python(CLIENT, environment=hub.environment(tmp_path))
    assert said.split() == ["RepositoryNotFoundError", "RemoteEntryNotFoundError", "RevisionNotFoundError", "401"]
