"""Cards: what stands in them is what was measured, the Hub takes them, and what is not known is not said."""

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import jinja2.meta
import numpy as np
import pytest
import torch
import yaml
from datasets import load_dataset
from forked import LIBRARIES_PYTHON
from huggingface_hub import DatasetCard, ModelCard, ModelCardData, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from local_hub import LocalHub, metadata_errors
from support import BACKBONE, ROOT, VIDEO_ENCODER, perturb, run_here
from test_hub import python
from test_report import cells, section, write_result

from gazeqwen.backbones_gazeqwen import FAMILIES
from gazeqwen.evaluation.report import model_index
from gazeqwen.evaluation.results import read_result
from gazeqwen.model_card import card as model_card
from gazeqwen.model_card import sections
from gazeqwen.model_card.card import render_card, render_model_card
from gazeqwen.model_card.frozen_models import license_of
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.questions import dataset_folder
from gazeqwen.questions.dataset_folder import render_dataset_card
from gazeqwen.questions.tasks import TASKS
from gazeqwen.toyworld.trained import ADAPTER_DIR
from gazeqwen.training.recipe import Recipe
from gazeqwen.utils.files import write_json
from gazeqwen.utils.hub import digest_of_adapter
from gazeqwen.utils.settings import read_recipe

QWEN_7B, QWEN_3B = "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"
RECALL = "past_scene_recall"


@pytest.fixture(scope="module")
def saved(toy_model, toy_processor, tmp_path_factory) -> Path:
    """An adapter on disk, on the toy backbone."""
    folder = tmp_path_factory.mktemp("adapter")
    toy_model.save_pretrained(folder)
    toy_processor.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(saved, tmp_path) -> Path:
    """A copy of it that says it is Qwen2.5-VL-7B's: base weights are none of the files."""
    folder = tmp_path / "run" / "best"
    folder.mkdir(parents=True)
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    change_config(folder, base_model_name_or_path=QWEN_7B, video_encoder_name_or_path="user/vjepa2_1_vitb")
    return folder


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def result_of(
    folder: Path, out: Path, name: str = "result", conditions=("gaze", "none", "shuffled", "centre"), **changes
) -> Path:
    """An invented result of the adapter in a folder, on StreamGaze's tasks, as eval.py would write it."""
    path = write_result(out, name, tasks=changes.pop("tasks", tuple(TASKS)), predictions=False, **changes)
    value, config = json.loads(path.read_text()), json.loads((folder / "config.json").read_text())
    value["scores"] |= dict.fromkeys(("shuffled", "centre"), value["scores"]["none"])
    value["scores"] = {condition: value["scores"][condition] for condition in conditions}
    about = {
        "adapter": config,
        "weights": digest_of_adapter(folder),
        "model": str(folder),
        "prompt_style": "reference",
    }
    value["settings"] = about | value["settings"]
    write_json(path, value)
    return path


def run_of(folder: Path, source: str, from_hub: bool = False, **changes) -> None:
    """What a run of train.py on videos from `source` would have left around an adapter."""
    recipe = dataclasses.asdict(read_recipe(Recipe, ROOT / "recipes" / "gazeqwen-7b.yaml"))
    for key, value in changes.items():
        recipe[key] |= value
    (folder.parent / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_json(folder.parent / "provenance.json", {"dataset_from_hub": from_hub, "sources": [source]})
    tasks = {RECALL: {"total": 4, "correct": 3, "accuracy": 0.75}}
    write_json(folder.parent / "validation.json", {"tasks": tasks, "macro": 0.75, "stage": 1, "epoch": 2})
    line = {"key": "k", "video_name": "a.mp4", "task": RECALL, "answer": 0, "options": 2, "logits": [1.0, 0.0]}
    (folder.parent / "validation_predictions.jsonl").write_text(json.dumps(line | {"condition": "gaze"}) + "\n")


# ------------------------------------------------------------------ what the Hub reads
def test_the_metadata_are_valid_and_hold_the_results(adapter, tmp_path):
    path = result_of(adapter, tmp_path)
    run_of(adapter, "egtea")
    card = render_model_card(adapter, [path], "user/gaze")
    (tmp_path / "README.md").write_text(str(card))
    data = metadata_load(tmp_path / "README.md")
    assert metadata_errors(str(card), "model") == []
    index = data.pop("model-index")
    assert data == {
        "base_model": QWEN_7B,
        "base_model_relation": "adapter",
        "datasets": ["danaleee/StreamGaze"],
        "language": "en",
        "library_name": "transformers",
        "license": "apache-2.0",
        "metrics": ["accuracy"],
        "pipeline_tag": "video-text-to-text",
        "tags": ["gaze", "eye-tracking", "egocentric-video", "qwen2.5-vl"],
    }
    name, found = model_index_to_eval_results(index)
    _, expected = model_index_to_eval_results(model_index([read_result(path)]))
    assert name == "gaze" and found == expected and len(found) == 11
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.eval_results == expected and loaded.content == str(card)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"license": "my-own"}, '"license" must be one of'),
        ({"license": "apache-2.0", "license_name": "x"}, '"license_name" is allowed'),
        ({"license": "other", "license_name": "My Own"}, '"license_name" must be in lower case'),
        ({"pipeline_tag": "gaze-to-text"}, '"pipeline_tag" must be one of'),
        ({"base_model": "/models/qwen"}, '"base_model" with value "/models/qwen" is not valid'),
        ({"base_model_relation": "friend"}, '"base_model_relation" must be one of'),
        ({"datasets": [{"name": "x"}]}, '"datasets" must be a string or an array of strings'),
        ({"model-index": [{"name": "x", "results": [{"task": {}}]}]}, r'results\[0\].dataset.name" is required'),
        ({"model-index": 5}, '"model-index" must be an array'),
    ],
)
def test_the_local_hub_finds_fault_with_metadata(changes, message):
    """Or its word on ours would be worth nothing."""
    content = f"---\n{yaml.safe_dump({'library_name': 'transformers'} | changes)}---\n"
    assert any(re.search(message, error) for error in metadata_errors(content, "model"))
    assert metadata_errors("---\nlibrary_name: transformers\n---\n", "model") == []


ROUND_TRIP = """
import sys
from huggingface_hub import ModelCard
from gazeqwen.utils.hub import publish, publish_card
folder, results = sys.argv[1:]
publish(folder, "user/gaze")
assert ModelCard.load("user/gaze").data.eval_results is None
sys.argv = ["model_card", folder, "--results", results, "--push", "user/gaze"]
from gazeqwen.model_card.__main__ import main
main()
card = ModelCard.load("user/gaze")
assert card.content == open(folder + "/README.md").read()
assert [row.metric_value for row in card.data.eval_results][-1] == float(%r)
print(card.data.model_name, card.data.base_model)

card.data.license = "my-own"
try:
    publish_card(card, "user/gaze")
except ValueError as error:
    print(error)
sys.argv[-1] = "user/none"
try:
    main()
except OSError as error:
    print(error)
"""


def test_a_card_goes_to_the_hub_and_comes_back(adapter, tmp_path):
    """First the card without results, as train.py publishes; then, after an evaluation, the one with them."""
    path = result_of(adapter, tmp_path)
    (adapter / "README.md").write_text(str(render_model_card(adapter, repository="user/gaze")))
    macro = json.loads(path.read_text())["scores"]["gaze"]["macro"]
    with LocalHub() as hub:
        said = python(ROUND_TRIP % macro, adapter, path, environment=hub.environment(tmp_path / "home"))
        assert hub.files("user/gaze")["README.md"].decode() == (adapter / "README.md").read_text()
    assert "published: http" in said and f"\ngaze {QWEN_7B}\n" in said
    assert '"license" must be one of' in said
    assert "user/none: cannot be written to on the Hub" in said


# ------------------------------------------------------------------ what people read
def test_every_row_stands_beside_its_controls(adapter, tmp_path):
    path = result_of(adapter, tmp_path)
    scores = json.loads(path.read_text())["scores"]
    text = render_model_card(adapter, [path]).text
    header, *rows = cells(section(text, "## Results"))
    assert header[0] == "gaze given" and len(header) == 12
    labels = ["**its own gaze**", "no gaze: the base model (control)", "another video's gaze (control)"]
    labels += ["gaze held in the middle of the frame (control)", "answers"]
    assert [row[0] for row in rows] == labels
    names = ("gaze", "none", "shuffled", "centre")
    assert [row[-1] for row in rows[:4]] == [f"{100 * scores[name]['macro']:.1f}" for name in names]
    assert rows[-1][1:] == [*["12"] * 10, "120"]
    gain = 100 * (scores["gaze"]["macro"] - scores["none"]["macro"])
    said = section(text, "## Results")
    points = f"{gain:+.1f} points over"
    expected = f"{points} no gaze, {points} another video's gaze and {points} gaze held in the middle of the frame."
    assert expected in said and "constant centre" not in said
    assert "not run" not in said and "code 0123456789, on a GPU" in said


@pytest.mark.parametrize(
    "conditions, absent",
    [
        (("gaze",), "**no gaze** (`none`) and **another video's gaze** (`shuffled`)"),
        (("gaze", "none"), "**another video's gaze** (`shuffled`)"),
        (("gaze", "shuffled"), "**no gaze** (`none`)"),
    ],
)
def test_a_result_without_its_controls_says_so(adapter, tmp_path, conditions, absent):
    text = render_model_card(adapter, [result_of(adapter, tmp_path, conditions=conditions)]).text
    assert f"Controls that were not run: {absent}. Without them" in text


def test_without_the_centre_control_it_is_not_known_what_a_constant_place_explains(adapter, tmp_path):
    text = render_model_card(adapter, [result_of(adapter, tmp_path, conditions=("gaze", "none", "shuffled"))]).text
    assert "Whether a point that never moves does as well is not known: `centre` was not run." in text
    assert "Controls that were not run" not in text


@pytest.mark.parametrize("interval, warned", [([0.0, 1.0], True), ([0.99, 1.0], False), (None, False)])
def test_a_constant_centre_that_is_as_good_is_said(adapter, tmp_path, interval, warned):
    """By the interval of the headline; without one nobody can say."""
    path = result_of(adapter, tmp_path)
    value = json.loads(path.read_text())
    if interval:
        value["scores"]["gaze"]["intervals"] = {"tasks": {}, "macro": interval}
    write_json(path, value)
    assert ("**A constant centre explains the answers as well**" in render_model_card(adapter, [path]).text) == warned


def test_controls_may_come_from_other_files_and_from_the_base_model(adapter, tmp_path):
    own = result_of(adapter, tmp_path, "own", ("gaze",))
    shuffled = result_of(adapter, tmp_path, "control", ("shuffled", "centre"))
    base = result_of(adapter, tmp_path, "base", ("none",), settings={"adapter": None, "model": QWEN_7B})
    card = render_model_card(adapter, [shuffled, base, own])
    rows = [row[0] for row in cells(section(card.text, "## Results"))[1:]]
    assert rows[:3] == ["**its own gaze**", "no gaze: the base model (control)", "another video's gaze (control)"]
    assert "not run" not in card.text
    both = result_of(adapter, tmp_path, "both")
    rows = [row[0] for row in cells(section(render_model_card(adapter, [both, base]).text, "## Results"))[1:]]
    assert rows[1:3] == ["no gaze: the base model (control)", "base model: no gaze"]
    assert card.data.eval_results[0].dataset_args == {"condition": "gaze", "scorer": "strict"}


def test_without_results_the_card_says_what_the_validation_was_and_that_no_control_was_run(adapter):
    run_of(adapter, "egtea")
    card = render_model_card(adapter)
    said = section(card.text, "## Results")
    assert cells(said)[1] == ["**its own gaze**", "75.0", "75.0"] and "(stage 1, epoch\n2)" in said
    assert (
        "**The controls (no gaze, another video's gaze, gaze held in the middle of the frame) were not run**" in said
    )
    assert card.data.eval_results is None
    for name in ("recipe.yaml", "validation.json", "validation_predictions.jsonl"):
        (adapter.parent / name).unlink()
    card = render_model_card(adapter)
    assert "None yet: neither with gaze nor any control." in card.text and "Not recorded beside" in card.text
    assert card.data.datasets is None


def test_gaze_is_treated_as_personal_data(adapter):
    said = section(render_model_card(adapter).text, "### Gaze is personal data")
    for word in ("identify", "consent", "Bystanders", "GDPR", "surveillance", "employees", "emotions", "covert"):
        assert word in said, word


def test_licences_are_the_base_models(adapter):
    def data(base: str) -> ModelCardData:
        change_config(adapter, base_model_name_or_path=base)
        card = render_model_card(adapter)
        assert metadata_errors(str(card), "model") == []
        return card.data

    names = {
        "Qwen/Qwen2-VL-72B-Instruct": "tongyi-qianwen",
        "Qwen/Qwen2.5-VL-72B-Instruct": "qwen",
        "Qwen/Qwen2.5-VL-3B-Instruct": "qwen-research",
    }
    ids = [base for family in FAMILIES.values() for base in family.ids]
    assert len(ids) == 13  # a new one's licence is to be looked up
    for base in ids:
        assert license_of(base, toy=False)[0].get("license_name") == names.get(base), base
    assert data(QWEN_7B).license == "apache-2.0"
    of_72b = data("Qwen/Qwen2.5-VL-72B-Instruct")
    assert (of_72b.license, of_72b.license_name) == ("other", "qwen")
    of_3b = data(QWEN_3B)
    assert (of_3b.license, of_3b.license_name) == ("other", "qwen-research")
    assert "not for commercial use" in section(render_model_card(adapter).text, "## Base model")
    other = data("someone/else")
    assert (other.license, other.license_link) == ("other", "https://huggingface.co/someone/else")


@pytest.mark.parametrize("model_type", list(FAMILIES))
def test_the_card_names_the_family_and_cites_its_report(adapter, model_type):
    """By the id of the base model, and of one by somebody else by what the processor in the folder says."""
    family = FAMILIES[model_type]
    for base in (family.ids[0], "someone/else"):
        change_config(adapter, base_model_name_or_path=base)
        path = adapter / "processor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_type": model_type}))
        card = render_model_card(adapter)
        assert f"for {family.name}. It answers" in card.text
        assert {tag for tag in card.data.tags if "qwen" in tag} == {family.name.lower().replace(" ", "-")}
        assert (
            f"eprint        = {{{family.report.eprint}}}" in card.text and f"@misc{{{family.report.key}," in card.text
        )
        assert card.text.count("Technical Report") == ("Technical Report" in family.report.title)


def test_a_base_model_in_a_folder_is_no_id(adapter, saved, tmp_path):
    """The toy backbone is the toy world's; any other folder makes the adapter one that nobody else can load."""
    (tmp_path / "qwen").mkdir()
    change_config(adapter, base_model_name_or_path=str(tmp_path / "qwen"))
    own, toy = render_model_card(adapter), render_model_card(saved)
    for card in (own, toy):
        assert card.data.base_model is None and "base_model_relation" not in card.data.to_dict()
        assert str(tmp_path) not in str(card) and str(ROOT) not in str(card)
        assert metadata_errors(str(card), "model") == []
    assert "> **Toy world.**" in toy.text and "toy-world" in toy.data.tags and toy.data.license == "apache-2.0"
    assert (
        "Toy world" not in own.text
        and "**Not to be shared as it is.** The base model is a folder (`qwen`)" in own.text
    )
    assert own.data.license == "unknown"


def test_what_was_trained_on_the_toy_world_is_not_said_to_know_streamgaze(adapter):
    run_of(adapter, "toyworld", data={"dataset": "data/mine"})
    card = render_model_card(adapter)
    assert "The toy world, split `train`" in card.text and "EGTEA" not in card.text
    for from_hub, ids in ((True, ["user/streamgaze"]), (False, [])):
        run_of(adapter, "egtea", from_hub, data={"dataset": "user/streamgaze"})
        card = render_model_card(adapter)
        assert card.data.datasets == [*ids, "danaleee/StreamGaze"] and "EGTEA" in card.text
    run_of(adapter, "own", data={"dataset": "/home/me/toyworld/toy-car"})
    card = render_model_card(adapter)
    assert card.data.datasets is None and "EGTEA" not in card.text and "/home/me" not in str(card)


def test_terms_of_the_encoder_are_those_of_the_one_that_is_used(adapter):
    assert "facebookresearch/vjepa2" in render_model_card(adapter).text
    change_config(adapter, video_encoder_name_or_path="timm/vit_base_patch14_dinov2.lvd142m")
    text = section(render_model_card(adapter).text, "## Base model")
    assert "vjepa2" not in text and cells(text)[2][-1] == "see its own card"


def test_memory_and_time_are_measured_or_said_not_to_be(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "BENCHMARKS", tmp_path)
    assert "Not measured for a base model of this size" in render_model_card(adapter).text
    benchmark = json.loads((ROOT / "benchmarks" / "results" / "model_tiny_cpu.json").read_text())
    benchmark["settings"]["scale"], benchmark["provenance"]["device"] = "7b", "a GPU"
    benchmark["rows"] = benchmark["rows"][:1]
    benchmark["rows"][0]["gaze"] = {"seconds": 0.5, "peak_memory_gb": 20.25}
    write_json(tmp_path / "model_7b.json", benchmark)
    (row,) = cells(section(render_model_card(adapter).text, "## Memory and time"))[1:]
    assert row[0] == "a GPU" and row[5] == "500.0 (20.2 GB)"
    change_config(adapter, base_model_name_or_path=QWEN_3B)
    assert "Not measured" in render_model_card(adapter).text


def test_the_snippet_runs(saved, toy_world, tmp_path):
    text = render_model_card(saved, repository="user/gaze").text
    load, ask = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len([line for line in load.splitlines() if "from_pretrained" in line]) == 2
    (table, *_) = sorted((toy_world / "metadata").rglob("*.csv"))
    video = toy_world / "videos" / "original_video" / f"{table.parent.name}.mp4"
    snippet = load + ask
    for name, value in {"user/gaze": saved, "VIDEO": video, "FIXATIONS": table}.items():
        assert name in snippet
        snippet = snippet.replace(name, str(value))
    result = subprocess.run([LIBRARIES_PYTHON, "-c", snippet], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0 and len(result.stdout.splitlines()) == 1, result.stderr


@pytest.mark.parametrize(
    ("template", "module"),
    [(model_card.TEMPLATE, "model_card/card.py"), (dataset_folder.CARD_TEMPLATE, "questions/dataset_folder.py")],
)
def test_every_variable_of_a_template_is_given(template, module):
    """Jinja writes nothing for a name that it does not know."""
    wanted = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(template.read_text()))
    source = (ROOT / module).read_text()
    assert wanted and all(name == "card_data" or re.search(rf"^        {name}=", source, re.M) for name in wanted)


def test_the_committed_card_is_what_is_rendered(tmp_path, monkeypatch):
    """
    docs/model_card.md, of the toy world's evidence: `python -m gazeqwen.model_card runs/evidence/gazeqwen-0/best
    --results results/toyworld/gazeqwen.json results/toyworld/frozen.json -o docs/model_card.md`
    """
    monkeypatch.chdir(ROOT)
    recipe, folder = read_recipe(Recipe, ROOT / "recipes" / "toyworld.yaml"), tmp_path / "gazeqwen-0" / "best"
    shutil.copytree(ADAPTER_DIR, folder)  # the adapter of that run
    parts = {"base_model": recipe.model.base_model, "video_encoder": recipe.model.video_encoder}
    change_config(folder, **{f"{part}_name_or_path": path for part, path in parts.items()})
    (folder.parent / "recipe.yaml").write_text(yaml.safe_dump(dataclasses.asdict(recipe)))
    results = [ROOT / "results" / "toyworld" / f"{name}.json" for name in ("gazeqwen", "frozen")]
    assert str(render_model_card(folder, results)) == (ROOT / "docs" / "model_card.md").read_text()


# ------------------------------------------------------------------ what is refused
def test_a_result_of_another_adapter_is_refused(adapter, tmp_path):
    path = result_of(adapter, tmp_path)
    model = GazeQwenForConditionalGeneration.from_base(str(BACKBONE), str(VIDEO_ENCODER), latent_dim=16, num_latents=8)
    torch.manual_seed(1)
    perturb(model).save_pretrained(tmp_path / "other")
    change_config(tmp_path / "other", base_model_name_or_path=QWEN_7B, video_encoder_name_or_path="user/vjepa2_1_vitb")
    with pytest.raises(
        ValueError, match=rf"result.json: a result of {adapter}, .*another .*other \(weights: '\w{{16}}'"
    ):
        render_model_card(tmp_path / "other", [path])
    change_config(adapter, gaze_encoding="coord_pe", base_model_name_or_path=QWEN_3B)
    shown = rf"base_model_name_or_path: '{QWEN_7B}' there, '{QWEN_3B}' here; gaze_encoding: 'foveated' there"
    with pytest.raises(ValueError, match=shown):
        render_model_card(adapter, [path])


def test_results_that_do_not_belong_together_are_refused(adapter, tmp_path):
    own = result_of(adapter, tmp_path, "own")

    def refused(message: str, *results: Path) -> None:
        with pytest.raises(ValueError, match=message):
            render_model_card(adapter, [own, *results])

    base = {"adapter": None, "model": QWEN_7B}
    refused("again.json: both hold the condition 'gaze'", result_of(adapter, tmp_path, "again"))
    other = result_of(adapter, tmp_path, "b", ("none",), settings=base | {"model": QWEN_3B})
    refused(f"b.json: a result of {QWEN_3B}, expected one of the adapter in .* or of its base model {QWEN_7B}", other)
    other = result_of(adapter, tmp_path, "b", ("none",), settings=base | {"split": "validation"})
    refused("b.json: a result of the base model, with none of the adapter on the same data", other)
    other = result_of(adapter, tmp_path, "b", ("none",), settings=base | {"prompt_style": "streamgaze"})
    refused("own.json and .*b.json do not compare: prompt_style: 'reference' and 'streamgaze'", other)
    other = result_of(adapter, tmp_path, "b", ("none",), settings=base, videos=11)
    refused("own.json and .*b.json do not compare: questions of .*: 12 and 11", other)
    refused(
        "own.json and .*b.json: both on StreamGaze, default, test",
        result_of(adapter, tmp_path, "b", scorer="streamgaze"),
    )
    refused("published.json: published rows", ROOT / "results" / "published.json")


def test_what_is_not_there_is_named(adapter, tmp_path):
    error = run_here("gazeqwen.model_card", adapter, "--results", tmp_path / "none.json", expect=1)
    assert "none.json" in error and error.count("\n") == 1
    assert not (adapter / "README.md").exists()
    with pytest.raises(FileNotFoundError, match="neither an adapter .config.json. nor a built dataset"):
        render_card(tmp_path)
    (adapter / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors: not there"):
        render_model_card(adapter)
    change_config(adapter, model_type="qwen2_5_vl")
    with pytest.raises(ValueError, match="config.json: model_type is 'qwen2_5_vl', expected 'gazeqwen'"):
        render_model_card(adapter)
    with pytest.raises(FileNotFoundError, match="no adapter here, expected config.json"):
        render_model_card(tmp_path)


# ------------------------------------------------------------------ datasets
def test_the_toy_worlds_dataset_card(toy_data):
    card = DatasetCard.load(toy_data / "README.md")
    assert metadata_errors(str(card), "dataset") == []
    assert (card.data.license, card.data.pretty_name) == ("apache-2.0", "GazeQwen's toy world")
    assert card.data.size_categories == "n<1K" and {"synthetic", "toy-world"} < set(card.data.tags)
    assert "no person was recorded" in card.text and "GDPR" in card.text and "EGTEA" not in card.text
    header, *rows = cells(section(card.text, "## Splits"))
    assert header == ["config", "split", "questions", "videos", "gaze from the middle", "within .1", "within .2"]
    for config, split, questions, videos, *central in rows:
        data = load_dataset(str(toy_data), config.strip("`"), split=split)
        assert (len(data), len(set(data["video_name"]))) == (int(questions), int(videos))
        videos_once = {row["video_name"]: row["scanpath"] for row in data}
        x, y, _, durations_s = np.concatenate(list(videos_once.values())).T
        distances = np.hypot(x - 0.5, y - 0.5)
        shares = (100 * durations_s[distances <= radius].sum() / durations_s.sum() for radius in (0.1, 0.2))
        mean = (distances * durations_s).sum() / durations_s.sum()
        assert central == [f"{mean:.2f}", *(f"{share:.0f} %" for share in shares)]
    assert "x in frame widths and y in frame heights" in card.text and "under `centre` beside `gaze`" in card.text
    assert {(row[0], row[1]) for row in rows} >= {("`default`", "train"), ("`participants`", "test")}
    columns = set(re.findall(r"`(\w+)`", " ".join(row[0] for row in cells(section(card.text, "## Columns"))[1:])))
    assert columns == set(data.column_names)


def test_a_dataset_card_is_written_again_for_its_repository(toy_data):
    before = DatasetCard.load(toy_data / "README.md")
    again = render_card(toy_data, repository="user/toyworld")
    assert again.data.to_dict() == before.data.to_dict()  # load_dataset reads the configs of it
    assert 'load_dataset("user/toyworld")' in again.text
    assert str(again).replace("user/toyworld", "path/to/this/folder") == str(before)
    with pytest.raises(ValueError, match="a dataset, of which there are no results"):
        render_card(toy_data, ["results.json"])


def test_the_card_of_a_dataset_that_an_earlier_version_built_does_not_know_how_central_gaze_is(toy_data, tmp_path):
    report = json.loads((toy_data / "report.json").read_text())
    for splits in report["splits"].values():
        for about in splits.values():
            assert about.pop("gaze_centrality")["fixation_s"] > 0
    write_json(tmp_path / "report.json", report)
    card = render_dataset_card(tmp_path, DatasetCard.load(toy_data / "README.md").data.configs)
    assert all(row[-3:] == ["–"] * 3 for row in cells(section(card.text, "## Splits"))[1:])


def test_whose_videos_a_dataset_holds_decides_its_licence(toy_data, tmp_path):
    configs = DatasetCard.load(toy_data / "README.md").data.configs
    report = json.loads((toy_data / "report.json").read_text())

    def card(*sources: str) -> DatasetCard:
        names = zip(report["videos"], sources * len(report["videos"]), strict=False)
        videos = {name: report["videos"][name] | {"source": source} for name, source in names}
        write_json(tmp_path / "report.json", report | {"videos": videos})
        found = render_dataset_card(tmp_path, configs)
        assert metadata_errors(str(found), "dataset") == []
        return found

    real = card("egtea", "holoassist")
    assert (real.data.license, real.data.license_name) == ("other", "streamgaze-and-its-videos")
    assert "CC-BY-4.0" in real.text and "(EGTEA Gaze+, HoloAssist)" in real.text and "no person" not in real.text
    own = card("egtea", "holiday")
    assert own.data.license == "unknown" and "CC-BY-4.0" not in own.text and tmp_path.name not in str(own)
    with pytest.raises(FileNotFoundError, match=r"README.md: not there"):
        render_dataset_card(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    with pytest.raises(ValueError, match=r"README.md: configs are None"):
        render_dataset_card(tmp_path)
