"""On the Hub and back: the real client against a Hub on loopback, in new processes with empty caches."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from local_hub import TOKEN, LocalHub
from support import ROOT
from test_package import HUB_FILES, wheel  # noqa: F401, a fixture

REPOSITORY = "user/gazeqwen"


@pytest.fixture(scope="module")
def hub():
    with LocalHub() as hub:
        yield hub


def python(code: str, *arguments, environment: dict, path: Path = ROOT / "tests", cwd: Path | None = None) -> str:
    """What a new process prints that runs the code; it can import what is in `path`."""
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment | {"PYTHONPATH": str(path)},
    )
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
model.push_to_hub("user/again")
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
api.create_branch("user/gazeqwen", branch="pickled")
config = json.loads((out / "saved" / "config.json").read_text())
config |= {"base_model_name_or_path": "user/pickled", "base_model_revision": None}
config = json.dumps(config).encode()
api.upload_file(path_or_fileobj=config, path_in_repo="config.json", repo_id="user/gazeqwen", revision="pickled")
save_file(tensors, out / "logits.safetensors")
save_file(inputs, out / "inputs.safetensors")
(out / "commits.json").write_text(json.dumps(commits))
"""


@pytest.fixture(scope="module")
def pushed(hub, toy_world, tmp_path_factory) -> Path:
    """A folder with inputs, logits and commits of what was pushed: base, encoder, and stages 1 and 2 of an adapter."""
    out = tmp_path_factory.mktemp("pushed")
    python(PUSH, out, toy_video(toy_world), environment=hub.environment(out / "home"))
    return out


def toy_video(toy_world: Path) -> Path:
    return sorted((toy_world / "videos" / "original_video").glob("*.mp4"))[0]


def test_the_repository_holds_the_adapter_its_code_and_no_pickle(hub, pushed):
    files = hub.files(REPOSITORY)
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
known = {"trust_remote_code": True, "local_files_only": kind == "offline"}

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
    ask = pipeline(task, model="user/gazeqwen", trust_remote_code=True)
    assert ask(chat, return_full_text=False, generate_kwargs=settings)[0]["generated_text"] == answer

def refused(revision, **more):
    try:
        AutoModel.from_pretrained("user/gazeqwen", revision=revision, **known, **more)
    except (ValueError, OSError) as error:
        return str(error)

for branch, key in commits.items():
    if branch.startswith(("missing", "unexpected")):
        change, name = branch.split("-")[0], key
        assert f"{change} ['{name}']" in refused(branch), (branch, refused(branch))
assert "safetensors" in refused("pickled"), refused("pickled")

# Base and encoder are private.
token, elsewhere = os.environ.pop("HF_TOKEN"), {"cache_dir": os.environ["HF_HOME"] + "/elsewhere"}
assert "user/base" in refused("main", **elsewhere)
check(AutoModel.from_pretrained("user/gazeqwen", token=token, **elsewhere, **known), "stage 2")
"""


def test_remote_code_alone_loads_everything_and_then_offline(hub, pushed, toy_world, tmp_path):
    """Auto classes, pipelines, a pinned revision, adapters that do not fit, tokens; then again with the Hub gone."""
    home, video = tmp_path / "home", toy_video(toy_world)
    table = next(toy_world.glob(f"metadata/**/{video.stem}_fixation_filtered.csv"))
    python(PULL + ONLINE, pushed, "code alone", video, table, environment=hub.environment(home), cwd=tmp_path)
    with LocalHub() as stopped:
        pass
    python(PULL, pushed, "offline", environment=stopped.environment(home), cwd=tmp_path)
