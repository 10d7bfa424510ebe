"""Rotary positions: those that Qwen2.5-VL was trained with (golden, of transformers 4.51), wherever they are used."""

import json
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import FIXTURES, tiny_config, tiny_model, video_inputs
from transformers import BatchFeature, DynamicCache, GenerationConfig, Qwen2_5_VLForConditionalGeneration

from gazeqwen.backbones_gazeqwen import token_types, trained_positions
from gazeqwen.configuration_gazeqwen import GazeQwenConfig
from gazeqwen.evaluation.baselines import Baseline
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.positions_gazeqwen import rope_index

GOLDEN = json.loads((FIXTURES / "qwen2_5_vl_positions.json").read_text())
TOKENS, CASES = GOLDEN["tokens"], GOLDEN["cases"]
NAMES = [case["name"] for case in CASES]


def config_of(**kwargs) -> GazeQwenConfig:
    """The tiny config with the fixture's tokens."""
    config = tiny_config(**kwargs)
    backbone = config.backbone_config
    backbone.text_config.vocab_size = 300
    for kind in ("image", "video"):
        setattr(backbone, f"{kind}_token_id", TOKENS[kind])
    for kind in ("vision_start", "vision_end"):
        setattr(backbone, f"{kind}_token_id", TOKENS[kind])
    backbone.vision_config.tokens_per_second = GOLDEN["tokens_per_second"]
    return config


def model_of(**kwargs) -> GazeQwenForConditionalGeneration:
    torch.manual_seed(0)
    return GazeQwenForConditionalGeneration(config_of(**kwargs)).eval()


def inputs_of(case: dict) -> dict:
    """What the processor would give for a case, with pixels of noise."""
    inputs = {name: torch.tensor(case[name]) for name in ("input_ids", "attention_mask")}
    inputs["mm_token_type_ids"] = token_types(config_of().backbone_config, inputs["input_ids"])
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if grids := case[f"{kind}_grid_thw"]:
            inputs[f"{kind}_grid_thw"] = torch.tensor(grids)
            inputs[pixels] = torch.randn(int(torch.tensor(grids).prod(-1).sum()), 1176)
    if case["second_per_grid_ts"]:
        inputs["second_per_grid_ts"] = torch.tensor(case["second_per_grid_ts"])
    return inputs


class Recorder:
    """The positions (3, B, L) that the decoder receives in each of its passes."""

    def __init__(self, backbone):
        self.passes: list[torch.Tensor] = []
        backbone.model.language_model.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, decoder, args, kwargs):
        self.passes.append(kwargs["position_ids"][-3:].clone())


def equal_golden(positions: torch.Tensor, case: dict) -> bool:
    is_token = torch.tensor(case["attention_mask"]).bool()
    return torch.equal(positions[:, is_token], torch.tensor(case["position_ids"])[:, is_token])


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_golden_positions_and_deltas(case):
    inputs = inputs_of(case)
    visual = {name: value for name, value in inputs.items() if "grid" in name}
    types, mask = inputs["mm_token_type_ids"], inputs["attention_mask"]
    positions, deltas = trained_positions(config_of().backbone_config, types, mask, **visual)
    assert equal_golden(positions, case) and deltas.flatten().tolist() == case["rope_deltas"]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_forward_and_generate_hand_them_to_the_base_model(case):
    """With and without mm_token_type_ids; the first generated token follows the largest position of all."""
    model, inputs = model_of(), inputs_of(case)
    recorder = Recorder(model.backbone)
    with torch.no_grad():
        model(**inputs)
        model(**{name: value for name, value in inputs.items() if name != "mm_token_type_ids"})
        model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    first, untyped, prefill, step = recorder.passes
    assert all(equal_golden(positions, case) for positions in (first, untyped, prefill))
    if inputs["attention_mask"][:, -1].all():  # padded right, `generate` goes on after the padding
        expected = torch.tensor(case["rope_deltas"]) + inputs["input_ids"].shape[1]
        assert torch.equal(step[:, :, 0], expected.expand(3, -1))


def test_the_librarys_are_others():
    """The positive control: under the other convention the same test sees the installed library's positions."""
    model, others = model_of(position_convention="transformers"), []
    for case in CASES:
        recorder, inputs = Recorder(model.backbone), inputs_of(case)
        with torch.no_grad():
            model(**inputs)
            model.generate(**inputs, max_new_tokens=1)
            plain = {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
            expected = model.backbone.model.get_rope_index(mm_token_type_ids=inputs["mm_token_type_ids"], **plain)[0]
        is_token = inputs["attention_mask"].bool()
        assert all(torch.equal(found[:, is_token], expected[:, is_token]) for found in recorder.passes[:2])
        others.append(not equal_golden(recorder.passes[0], case))
    assert sum(others) > len(CASES) // 2


@pytest.mark.parametrize(
    "case", [case for case in CASES if len(case["input_ids"]) == 1], ids=lambda case: case["name"]
)
def test_chunks_on_a_cache_have_them_too(case):
    """Cut before each image or video and after it, and in the middle of the last text."""
    model, inputs = model_of(), inputs_of(case)
    recorder, cache, ids = Recorder(model.backbone), DynamicCache(), inputs["input_ids"][0]
    starts = (ids == TOKENS["vision_start"]).nonzero().flatten().tolist()
    ends = (ids == TOKENS["vision_end"]).nonzero().flatten().tolist()
    cuts = sorted({0, *starts, *(end + 1 for end in ends), len(ids) - 1, len(ids)})
    used = {"image": 0, "video": 0}
    for begin, end in pairwise(cuts):
        chunk = {"input_ids": ids[None, begin:end]}
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if TOKENS[kind] in ids[begin:end]:
                grids = inputs[f"{kind}_grid_thw"]
                sizes, number = grids.prod(-1).tolist(), used[kind]
                chunk[f"{kind}_grid_thw"] = grids[number : number + 1]
                chunk[pixels] = inputs[pixels].split(sizes)[number]
                if kind == "video":
                    chunk["second_per_grid_ts"] = inputs["second_per_grid_ts"][number : number + 1]
                used[kind] += 1
        with torch.no_grad():
            model(**chunk, past_key_values=cache)
    assert len(recorder.passes) > 2 and equal_golden(torch.cat(recorder.passes, dim=-1), case)


def test_a_cropped_cache_goes_on_where_its_last_token_says():
    """Cropped within the text, and to the words before the video: each token knows which position follows it."""
    case = CASES[NAMES.index("one video")]
    model, inputs = model_of(), inputs_of(case)
    golden, cache = torch.tensor(case["position_ids"]), DynamicCache()
    recorder, length = Recorder(model.backbone), inputs["input_ids"].shape[1]
    words = int((inputs["input_ids"][0] == TOKENS["vision_start"]).nonzero())
    with torch.no_grad():
        model(**inputs, past_key_values=cache)
        for end in (length - 2, words):
            cache.crop(end - cache.get_seq_length())
            model(input_ids=torch.tensor([[5]]), past_key_values=cache)
            assert torch.equal(recorder.passes[-1], golden[:, :, end : end + 1])
    foreign, model = DynamicCache(), model_of()
    with torch.no_grad():
        model.backbone(input_ids=torch.tensor([[5, 6]]), past_key_values=foreign)
    with pytest.raises(ValueError, match="cache of 2 positions was not filled by this model.*state position_ids"):
        model(input_ids=torch.tensor([[5]]), past_key_values=foreign)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_baselines_of_the_family_get_them(case):
    """A plain Qwen2.5-VL in eval.py; unless its config says that it was made with the library's."""
    backbone = Qwen2_5_VLForConditionalGeneration(config_of().backbone_config).eval()
    baseline = object.__new__(Baseline)  # without a processor, of which a fixture has none
    baseline.model, recorder, inputs = backbone, Recorder(backbone), inputs_of(case)
    if "image_grid_thw" in inputs:  # no question shows a picture
        return
    with_positions = baseline._with_positions(BatchFeature(dict(inputs)))
    backbone.generate(**with_positions, generation_config=GenerationConfig(max_new_tokens=1))
    assert equal_golden(recorder.passes[0], case) and baseline.position_convention == "qwen"
    backbone.config.position_convention = "transformers"
    assert "position_ids" not in baseline._with_positions(BatchFeature(dict(inputs)))


def naive(blocks, tokens_per_second) -> list[list[int]]:
    """The definition, token by token: blocks are ("text", n) or (kind, (T, H, W), seconds)."""
    positions, following = [], 0
    for kind, size, *seconds in blocks:
        if kind == "text":
            block = [[following + i] * 3 for i in range(size)]
        else:
            steps, height, width = size
            rate = torch.tensor(seconds[0], dtype=torch.float32)
            block = []
            for step in range(steps):
                time = step if kind == "image" or tokens_per_second is None else int(step * rate * tokens_per_second)
                block += [
                    [following + time, following + y, following + x] for y in range(height) for x in range(width)
                ]
        positions += block
        following = max((max(place) for place in block), default=following - 1) + 1
    return positions


grids = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
block = st.one_of(
    st.tuples(st.just("text"), st.integers(1, 5)),
    st.tuples(st.just("video"), grids, st.floats(0.0625, 9, width=32)),
    st.tuples(st.just("image"), grids, st.just(1.0)),
)


@given(st.lists(st.lists(block, min_size=1, max_size=6), min_size=1, max_size=3), st.sampled_from([None, 2, 25]))
def test_any_mix_of_blocks_padded_on_either_side(prompts, tokens_per_second):
    """Also videos that follow each other directly, and prompts that begin or end with one."""
    expected = [naive(blocks, tokens_per_second) for blocks in prompts]
    longest = max(map(len, expected))
    numbers = {"text": 0, "image": 1, "video": 2}
    sizes = [[b[1] if b[0] == "text" else b[1][0] * b[1][1] * b[1][2] for b in blocks] for blocks in prompts]
    rows = [
        torch.tensor([numbers[b[0]] for b in blocks]).repeat_interleave(torch.tensor(own))
        for blocks, own in zip(prompts, sizes, strict=True)
    ]
    of_kind = {kind: [b for blocks in prompts for b in blocks if b[0] == kind] for kind in ("image", "video")}
    images, videos = (torch.tensor([b[1] for b in found]) if found else None for found in of_kind.values())
    seconds = torch.tensor([b[2] for b in of_kind["video"]]) if of_kind["video"] else None
    for side in ("left", "right"):
        types, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest)
        for row, own in enumerate(rows):
            place = slice(longest - len(own), None) if side == "left" else slice(len(own))
            types[row, place], mask[row, place] = own, 1
        positions, deltas = rope_index(types, mask, images, videos, seconds, tokens_per_second)
        for row, own in enumerate(expected):
            assert positions[:, row, mask[row].bool()].T.tolist() == own
            assert int(deltas[row]) == max(map(max, own)) + 1 - longest


def test_what_does_not_fit_is_refused():
    types = torch.tensor([[0, 2, 2, 0, 2, 2]])
    with pytest.raises(ValueError, match="the prompts hold 4 video tokens, the grids stand for 6"):
        rope_index(types, video_grids=torch.tensor([[1, 2, 3]]))
    with pytest.raises(ValueError, match="not in a row in one prompt"):
        rope_index(types, video_grids=torch.tensor([[1, 2, 2]]))
    with pytest.raises(ValueError, match="position_convention: got 'other'"):
        GazeQwenConfig(position_convention="other")


# ---------------------------------------------------------------- which convention
def test_a_config_says_which_and_an_old_one_keeps_the_librarys(tmp_path, caplog):
    tiny_config().save_pretrained(tmp_path / "new")
    config = GazeQwenConfig.from_pretrained(tmp_path / "new")
    assert config.position_convention is None and config.resolved_position_convention() == "qwen"
    values = json.loads((tmp_path / "new" / "config.json").read_text())
    del values["position_convention"]  # as adapters were saved before
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text(json.dumps(values))
    old = GazeQwenConfig.from_pretrained(tmp_path / "old")
    assert old.resolved_position_convention() == "transformers"
    old.save_pretrained(tmp_path / "again")
    assert GazeQwenConfig.from_pretrained(tmp_path / "again").position_convention == "transformers"


def test_a_base_model_made_under_another_says_so():
    config = tiny_config()
    config.backbone_config.position_convention = "transformers"
    model = GazeQwenForConditionalGeneration(config)
    assert model.config.position_convention == "transformers"
    assert tiny_model().config.position_convention == "qwen"


def test_a_prompt_of_embeddings_needs_its_token_types():
    model, inputs = tiny_model(), video_inputs([(2, 2, 2)], [None])
    types = inputs.pop("mm_token_type_ids")
    ids = inputs.pop("input_ids")
    inputs["inputs_embeds"] = model.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match="inputs_embeds with images or videos need input_ids, mm_token_type_ids"):
        model(**inputs)
    with torch.no_grad():
        recorder = Recorder(model.backbone)
        model(**inputs, mm_token_type_ids=types)
        text = SimpleNamespace(**inputs).inputs_embeds[:, -4:]
        model(inputs_embeds=text)
    model_types = token_types(model.backbone.config, ids)
    visual = {name: inputs[name] for name in ("video_grid_thw", "second_per_grid_ts")}
    assert torch.equal(recorder.passes[0], trained_positions(model.backbone.config, model_types, **visual)[0])
    assert torch.equal(recorder.passes[1], torch.arange(4).expand(3, 1, 4))
