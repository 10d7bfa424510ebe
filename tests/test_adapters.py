"""Whose code runs when an adapter is loaded: the package's, unless the stored code is asked for."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from forked import LIBRARIES_PYTHON
from support import BACKBONE, VIDEO_ENCODER, index_frames, run_here, write_fixations, write_video
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

import gazeqwen
from gazeqwen.adapter_files_gazeqwen import AUTO_CLASSES
from gazeqwen.evaluation.baselines import Baseline
from gazeqwen.evaluation.evaluators import AdapterEvaluator
from gazeqwen.evaluation.settings import EvaluationSettings
from gazeqwen.inference.explorer import Explorer
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.toyworld.trained import ADAPTER_DIR
from gazeqwen.utils import adapters
from gazeqwen.utils.adapters import is_in_4bit, load_model, load_processor
from gazeqwen.video_gazeqwen import Clip


def change_json(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def add_a_line(folder: Path, line: str) -> None:
    for file in folder.glob("*_gazeqwen.py"):
        file.write_text(f"{file.read_text()}\n{line}\n")


def name_another_file(folder: Path, line: str) -> None:
    (folder / "another.py").write_text(f"{line}\n\nclass Another: pass\n")
    names = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
    change_json(folder / "config.json", lambda c: c["auto_map"].update(dict.fromkeys(names, "another.Another")))


def name_it_for_the_processor(folder: Path, line: str) -> None:
    (folder / "another.py").write_text(f"{line}\n\nclass Another: pass\n")
    parts = {"image_processor": "AutoImageProcessor", "video_processor": "AutoVideoProcessor"}

    def change(config: dict) -> None:
        config["auto_map"] = {"AutoProcessor": "another.Another"}
        for part, auto_class in parts.items():
            config[part]["auto_map"] = {auto_class: "another.Another"}

    change_json(folder / "processor_config.json", change)
    tokenizer = {"AutoTokenizer": [None, "another.Another"], "AutoProcessor": "another.Another"}
    change_json(folder / "tokenizer_config.json", lambda c: c.update(auto_map=tokenizer))


def name_a_foreign_folder(folder: Path, line: str) -> None:
    """In every config of the adapter, and of copies of the frozen models, which it then names instead."""
    foreign = folder.parent / "repo"
    foreign.mkdir()
    (foreign / "evil.py").write_text(f"{line}\n\nclass Evil: pass\n")
    reference = f"{foreign}--evil.Evil"
    names = (*AUTO_CLASSES, "AutoConfig", "AutoProcessor", "AutoImageProcessor", "AutoVideoProcessor")
    auto_map = {**dict.fromkeys(names, reference), "AutoTokenizer": [reference, reference]}
    models = {"base_model": BACKBONE, "video_encoder": VIDEO_ENCODER}
    for name, source in models.items():
        shutil.copytree(source, folder / name)
    sources = {f"{name}_name_or_path": str(folder / name) for name in models}
    change_json(folder / "config.json", lambda config: config.update(sources))
    trained_on = {"base_model_name_or_path": sources["base_model_name_or_path"]}
    change_json(folder / "lora" / "adapter_config.json", lambda config: config.update(trained_on))

    def change(config: dict) -> None:
        config["auto_map"] = auto_map
        for part in ("image_processor", "video_processor"):
            config.get(part, {})["auto_map"] = auto_map

    for file in [*folder.rglob("*config.json")]:
        change_json(file, change)
    parts = json.loads((folder / "processor_config.json").read_text())
    for place in (folder, folder / "base_model"):  # as transformers 4 wrote them
        (place / "preprocessor_config.json").write_text(json.dumps(parts["image_processor"]))
        (place / "video_preprocessor_config.json").write_text(json.dumps(parts["video_processor"]))


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """An adapter with its code beside it, as it is published."""
    folder = tmp_path_factory.mktemp("stored")
    load_model(ADAPTER_DIR).save_pretrained(folder)
    load_processor(ADAPTER_DIR).save_pretrained(folder)
    return folder


CHANGES = (add_a_line, name_another_file, name_it_for_the_processor, name_a_foreign_folder)


@pytest.fixture(scope="module")
def foreign(stored, tmp_path_factory) -> dict[str, Path]:
    """The same adapter with code that leaves a file `marker` beside it when it runs, in four ways."""
    folders = {}
    for change in CHANGES:
        folder = tmp_path_factory.mktemp("foreign") / change.__name__
        shutil.copytree(stored, folder)
        change(folder, f"open({str(folder / 'marker')!r}, 'w').close()")
        folders[change.__name__] = folder
    return folders


@pytest.mark.parametrize("change", [change.__name__ for change in CHANGES])
def test_no_command_runs_the_code_stored_with_an_adapter(foreign, change, tmp_path):
    folder = foreign[change]
    video = write_video(tmp_path / "v.mp4", index_frames(40, 112, 112))
    table = write_fixations(tmp_path / "f.csv", [(0.5, 2.5, 0.2, 0.3)])
    question = ("--question", "Which object?", "--options", "cup", "knife")
    assert "with gaze:" in run_here("ask.py", "--model", folder, "--video", video, "--scanpath", table, *question)
    evaluated = AdapterEvaluator(EvaluationSettings(model=str(folder), data="none", cache="none"), Accelerator())
    assert type(evaluated.model) is GazeQwenForConditionalGeneration
    assert type(evaluated.processor) is GazeQwenProcessor
    Explorer(folder)
    assert not (folder / "marker").exists()


@pytest.mark.parametrize("change", [change.__name__ for change in CHANGES])
def test_no_part_of_a_processor_runs_the_code_stored_with_it(foreign, change):
    """Nor does a new adapter run what is stored with its base model."""
    folder = foreign[change]
    for trusted in ({}, {"trust_remote_code": True}):
        for auto_class in (AutoModel, AutoProcessor):  # which know the package, and load with its classes
            auto_class.from_pretrained(folder, **trusted)
    base_model = str(folder / "base_model" if change == name_a_foreign_folder.__name__ else BACKBONE)
    assert GazeQwenProcessor.from_base(base_model).base_model_type == "qwen2_5_vl"
    GazeQwenForConditionalGeneration.from_base(base_model, resampler_type="none")
    assert not (folder / "marker").exists()


LOAD_WITH_CODE = """
import sys
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.utils import adapters
from gazeqwen.utils.adapters import is_in_4bit, load_model, load_processor
stored, *others = sys.argv[1:]
for load, own in ((load_model, GazeQwenForConditionalGeneration), (load_processor, GazeQwenProcessor)):
    kind = type(load(stored, trust_remote_code=True))
    assert kind.__name__ == own.__name__ and kind is not own
    for other in others:
        try:
            load(other, trust_remote_code=True)
        except (AttributeError, TypeError) as error:  # a class that is no model
            print(other, error)
"""


def test_asked_for_stored_code_does_run(stored, foreign):
    folders = [str(folder) for folder in (stored, *foreign.values())]
    result = subprocess.run([LIBRARIES_PYTHON, "-c", LOAD_WITH_CODE, *folders], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert all((folder / "marker").exists() for folder in foreign.values())


def test_auto_classes_load_adapters_with_the_package(stored):
    """Whatever is said of remote code; what the package makes is then what the processor takes."""
    for trusted in ({}, {"trust_remote_code": True}):
        config = AutoConfig.from_pretrained(stored, **trusted)
        assert type(config) is gazeqwen.GazeQwenConfig
        for auto_class in (AutoModel, AutoModelForImageTextToText):
            model = auto_class.from_pretrained(stored, **trusted)
            assert type(model) is GazeQwenForConditionalGeneration
        processor = AutoProcessor.from_pretrained(stored, **trusted)
        assert type(processor) is GazeQwenProcessor
    clip = Clip(np.zeros((4, 56, 56, 3), dtype=np.uint8), np.arange(4.0), 0.0, 4.0)
    scanpath = Scanpath.from_array([[0.2, 0.3, 1.0, 1.0]])
    inputs = processor(text=processor.video_token, videos=[clip], scanpaths=[scanpath])
    assert inputs["scanpaths"].shape == (1, 1, 4)


def test_the_package_is_light_until_a_class_is_asked_for():
    light = "import sys, gazeqwen; assert gazeqwen.__version__ and not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", light], check=True)


ORDERS = (
    "from gazeqwen import GazeQwenProcessor; from transformers import AutoModel, AutoProcessor",
    "import gazeqwen; from transformers import AutoModel, AutoProcessor",
    "from gazeqwen.processing_gazeqwen import GazeQwenProcessor; from transformers import AutoModel, AutoProcessor",
    "from gazeqwen.modeling_vjepa2_1 import VJEPA21Model; from transformers import AutoModel, AutoProcessor",
    "from transformers import AutoModel, AutoProcessor; import gazeqwen",
)


def test_in_whatever_order_they_are_imported_the_package_is_registered(stored):
    """
    Without `trust_remote_code`: unregistered, transformers would refuse. `transformers` itself is imported in this
    order; its parts, which take seconds, have been imported before.
    """
    before = "import sys; del sys.modules['transformers']; assert 'gazeqwen' not in sys.modules"
    after = (
        "classes = [type(cls.from_pretrained(sys.argv[1])) for cls in (AutoModel, AutoProcessor)]; "
        "print(*(cls.__module__ for cls in classes))"
    )
    running = [
        subprocess.Popen(
            [LIBRARIES_PYTHON, "-c", f"{before}\n{order}\n{after}", stored],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        for order in ORDERS
    ]
    for order, process in zip(ORDERS, running, strict=True):
        stdout, stderr = process.communicate(timeout=300)
        assert stdout.split() == ["gazeqwen.modeling_gazeqwen", "gazeqwen.processing_gazeqwen"], f"{order}: {stderr}"


@pytest.mark.parametrize("name", ["adapter", "backbone", "video_encoder"])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_attention_that_is_code_of_a_repository_is_refused(tmp_path, name, key):
    """transformers would fetch it from the Hub and run it, where the package `kernels` is installed."""
    for source in (ADAPTER_DIR, BACKBONE, VIDEO_ENCODER):  # which the adapter names by ../
        shutil.copytree(source, tmp_path / source.name)
    change_json(tmp_path / name / "config.json", lambda config: config.update({key: {"": "user/kernel"}}))
    with pytest.raises(ValueError, match=f"{tmp_path / name}: (config.json: )?{key}: got 'user/kernel'"):
        load_model(tmp_path / "adapter")
    if name == "backbone":
        with pytest.raises(ValueError, match="user/kernel"):
            Baseline.from_pretrained(str(tmp_path / name))


def test_an_adapter_trained_on_four_bits_is_asked_on_four_bits(tmp_path, monkeypatch):
    """The base model's class is told so, which is as far as this goes without bitsandbytes and a GPU."""
    for source in (ADAPTER_DIR, BACKBONE, VIDEO_ENCODER):
        shutil.copytree(source, tmp_path / source.name)
    adapter, told = tmp_path / "adapter", []
    assert not is_in_4bit(load_model(adapter))
    change_json(adapter / "config.json", lambda config: config.update(load_in_4bit=True))
    with pytest.raises(
        ValueError, match="load_in_4bit: got the device 'cpu', expected one of CUDA; --no-load_in_4bit"
    ):
        load_model(adapter)
    monkeypatch.setattr(adapters, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="load_in_4bit needs: pip install bitsandbytes; --no-load_in_4bit"):
        adapters.check_4bit("cuda")
    monkeypatch.setattr(adapters, "check_4bit", lambda _: None)
    kind = type(load_model(adapter, load_in_4bit=False).backbone)
    load = kind.from_pretrained.__func__

    def spy(cls, *args, **kwargs):
        told.append((kwargs.pop("quantization_config", None), kwargs.get("device_map")))
        return load(cls, *args, **kwargs)

    monkeypatch.setattr(kind, "from_pretrained", classmethod(spy))
    load_model(adapter)
    load_model(adapter, load_in_4bit=False)
    Explorer(adapter, load_in_4bit=None)
    (trained, placed), told_not, page = told
    assert isinstance(trained, BitsAndBytesConfig) and trained.load_in_4bit and trained.bnb_4bit_quant_type == "nf4"
    assert placed == {"": "cpu"} and told_not == (None, None) and page[0].load_in_4bit


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="'gazeqwen' has no attribute 'Nothing'"):
        _ = gazeqwen.Nothing
