"""Fixtures shared by the tests, and how they run."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bases import Base
from forked import SESSION
from hypothesis import HealthCheck, settings
from support import BACKBONE, FIXTURES, VIDEO_ENCODER, index_frames, write_video
from test_baselines import folders as foreign_models  # noqa: F401, a fixture: tiny models of other families
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from gazeqwen.convert import convert_vjepa2_1
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.questions.release import build
from gazeqwen.toyworld.generate import generate

# How long an example takes depends on what else the machine does.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
torch.set_num_threads(1)  # sums of several threads differ in their last bits from run to run


@pytest.fixture(autouse=True)
def same_random_state():
    torch.default_generator.manual_seed(0)  # `torch.manual_seed` formats the stack once per kind of accelerator
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


@pytest.fixture(scope="session")
def toy_model() -> GazeQwenForConditionalGeneration:
    """An untrained adapter on the toy world's backbone; tests that change it make their own."""
    torch.manual_seed(0)
    return GazeQwenForConditionalGeneration.from_base(str(BACKBONE), str(VIDEO_ENCODER), latent_dim=16, num_latents=8)


@pytest.fixture(scope="session")
def toy_processor() -> GazeQwenProcessor:
    return GazeQwenProcessor.from_base(str(BACKBONE), video_encoder_size=64, num_frames=8)


def made_once(name: str, make: Callable[[Path], object], folder: Path) -> Path:
    """Return a copy, `folder`, of what the first worker that asks for `name` makes in the folder that it is given."""
    made, unfinished = SESSION / name, SESSION / f"{name}-unfinished"
    with open(SESSION / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            make(unfinished)
            unfinished.rename(made)
    shutil.copytree(made, folder)
    return folder


@pytest.fixture(scope="session")
def toy_data(toy_world, tmp_path_factory) -> Path:
    """The toy world as a dataset that `load_dataset` opens."""
    folder = tmp_path_factory.mktemp("toy") / "data"
    return made_once("data", lambda made: build(toy_world, made, progress=False), folder)


@pytest.fixture(scope="session")
def toy_world(tmp_path_factory) -> Path:
    """The toy world in StreamGaze's release layout."""
    folder = tmp_path_factory.mktemp("toy") / "world"
    return made_once("world", lambda made: generate(made, train=8, val=4, test=4, seed=3, per_task=1), folder)


@pytest.fixture(scope="session")
def reference_parts(tmp_path_factory) -> tuple[str, str]:
    """What the reference's tiny checkpoint was made on, as folders: a base model of 28 layers, and its encoder."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    text = {
        "hidden_size": 64,
        "num_hidden_layers": 28,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 100,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, video_token_id=98, image_token_id=97)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder / "base")
    convert_vjepa2_1(FIXTURES / "vjepa2_1_tiny_official.pt", folder / "encoder", num_attention_heads=2, image_size=64)
    return str(folder / "base"), str(folder / "encoder")


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """A function from a key of `FAMILIES` to its tiny `Base`."""
    folder, made = tmp_path_factory.mktemp("bases"), {}

    def get(model_type: str) -> Base:
        if model_type not in made:
            made[model_type] = Base(model_type, folder)
        return made[model_type]

    return get


@pytest.fixture(scope="session")
def video(tmp_path_factory) -> Path:
    """Ten frames of 64 x 48, a tenth of a second apart."""
    return write_video(tmp_path_factory.mktemp("a video") / "vidéo 1.mp4", index_frames(10), fps=10)


@pytest.fixture(scope="session")
def uneven_video(tmp_path_factory) -> Path:
    """Frames at 0, 0.1, 0.3 and 0.7 seconds."""
    return write_video(tmp_path_factory.mktemp("video") / "uneven.mp4", index_frames(4), [0.0, 0.1, 0.3, 0.7])


@pytest.fixture(scope="session")
def late_video(tmp_path_factory) -> Path:
    """Ten frames, the first of which is shown at 0.5 seconds."""
    times_s = [0.5 + index / 10 for index in range(10)]
    return write_video(tmp_path_factory.mktemp("video") / "late.mp4", index_frames(10), times_s)
