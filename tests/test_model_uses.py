"""The model in the situations in which a transformers model is used: mixed batches, generate, pipelines, training."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    BACKBONE,
    VIDEO_ENCODER,
    VIDEO_TOKEN,
    VISION_END,
    VISION_START,
    index_frames,
    perturb,
    tiny_config,
    tiny_model,
    video_inputs,
    write_fixations,
    write_video,
)
from transformers import DynamicCache, pipeline

from gazeqwen.configuration_gazeqwen import GAZE_ENCODINGS
from gazeqwen.injection_gazeqwen import GazeInjection
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.scanpath_gazeqwen import as_scanpath
from gazeqwen.video_gazeqwen import Clip

LOOK = [[0.2, 0.3, 1.0, 1.0], [0.8, 0.6, 1.6, 0.5]]
IMAGE_TOKEN = 97


def logits(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


# ---------------------------------------------------------------- any batch
grids = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
fixation = st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 3), st.floats(0.1, 2))
scanpaths = st.one_of(st.none(), st.lists(fixation, max_size=3))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(grids, scanpaths, st.integers(1, 6)), min_size=2, max_size=3),
    st.sampled_from(["left", "right"]),
    st.sampled_from(GAZE_ENCODINGS),
    st.booleans(),
)
def test_a_batch_equals_its_samples(samples, padding_side, encoding, lora):
    model = tiny_model(lora=lora, gaze_encoding=encoding)
    sizes, looks, lengths = (list(values) for values in zip(*samples, strict=True))
    batch = video_inputs(sizes, looks, padding_side=padding_side, text_lengths=lengths)
    together = logits(model, batch)
    for index in range(len(samples)):
        one = slice(index, index + 1)
        alone = logits(model, video_inputs(sizes[one], looks[one], seed=index, text_lengths=lengths[one]))[0]
        rows = batch["attention_mask"][index].bool()
        torch.testing.assert_close(together[index, rows], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("given", ["pixels", "features"])
def test_videos_with_gaze_beside_a_larger_one_without_equal_each_alone(given):
    """What is padded to the largest video of the batch is cut to the largest with gaze: rows are counted in these."""
    model = tiny_model(lora=True)
    sizes, looks = [(2, 2, 2), (3, 3, 2), (1, 2, 3)], [LOOK, None, LOOK]

    batch = video_inputs(sizes, looks)
    if given == "features":
        frames = batch.pop("video_encoder_pixel_values")
        batch["video_encoder_features"] = model.encode_video(frames, batch["video_grid_thw"])
    together = logits(model, batch)
    with model.gaze_disabled():
        without = logits(model, batch)
    for index, has_gaze in enumerate((True, False, True)):
        rows = batch["attention_mask"][index].bool()
        alone = video_inputs(sizes[index : index + 1], looks[index : index + 1], seed=index, text_lengths=[4 + index])
        torch.testing.assert_close(together[index, rows], logits(model, alone)[0], atol=1e-5, rtol=1e-4)
        assert torch.equal(together[index, rows], without[index, rows]) != has_gaze


def with_image(inputs: dict, where: str) -> dict:
    """The same prompt with an image of 2x2 tokens before or after the video."""
    ids = inputs["input_ids"][0]
    image = torch.tensor([VISION_START, *[IMAGE_TOKEN] * 4, VISION_END])
    ids = torch.cat([image, ids] if where == "before" else [ids, image])[None]
    types = (ids == IMAGE_TOKEN).int() + 2 * (ids == VIDEO_TOKEN).int()
    pixels = torch.randn(16, 1176, generator=torch.Generator().manual_seed(7))
    grid = torch.tensor([[1, 4, 4]])
    own = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types}
    return {**inputs, **own, "pixel_values": pixels, "image_grid_thw": grid}


@pytest.mark.parametrize("where", ["before", "after"])
def test_images_beside_videos_get_no_residual(where):
    model = tiny_model(injection_layers=[0])
    inputs = with_image(video_inputs([(2, 2, 2)], [LOOK]), where)
    seen = []
    layer = model.backbone.model.language_model.layers[0]
    handle = layer.register_forward_hook(lambda *call: seen.append(call[-1]), with_kwargs=True)
    logits(model, inputs)
    with model.gaze_disabled():
        logits(model, inputs)
    handle.remove()
    moved = (seen[0] - seen[1])[0].abs().sum(-1) > 0
    assert torch.equal(moved, inputs["input_ids"][0] == VIDEO_TOKEN)


def test_several_videos_in_a_prompt_each_get_their_own_gaze():
    """Two videos in one prompt: moving the second one's gaze moves nothing at the first one's tokens."""
    model = tiny_model(injection_layers=[0])
    first, second = video_inputs([(2, 2, 2)], [LOOK]), video_inputs([(1, 3, 2)], [LOOK], seed=5)
    batched = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
    inputs = {name: torch.cat([first[name], second[name]]) for name in batched}
    ids = torch.cat([first["input_ids"], second["input_ids"]], dim=1)
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["mm_token_type_ids"] = 2 * (ids == VIDEO_TOKEN).int()
    frames = second["video_encoder_pixel_values"]
    padded = torch.cat([frames, torch.zeros_like(frames)], dim=1)
    inputs["video_encoder_pixel_values"] = torch.cat([first["video_encoder_pixel_values"], padded])
    spans = torch.tensor([[[0.0, 1.0], [1.0, 2.0]], [[0.0, 1.0], [0.0, 0.0]]])
    layer, seen = model.backbone.model.language_model.layers[0], []
    handle = layer.register_forward_hook(lambda *call: seen.append(call[-1]), with_kwargs=True)
    for x in (0.1, 0.9):
        table = torch.tensor([[[0.5, 0.5, 0.5, 1.0]], [[x, 0.5, 0.5, 1.0]]])
        logits(model, {**inputs, "scanpaths": table, "step_spans_s": spans})
    handle.remove()
    moved = (seen[0] - seen[1])[0].abs().sum(-1) > 1e-6
    is_second = torch.zeros_like(moved)
    is_second[first["input_ids"].shape[1] :] = True
    assert moved.any() and torch.equal(moved, (ids[0] == VIDEO_TOKEN) & is_second)


def test_samples_with_two_one_and_no_videos_and_an_image_equal_each_alone(toy_processor):
    """Through the real processor: clips of different lengths, one video without gaze, one prompt with an image."""
    model = GazeQwenForConditionalGeneration.from_base(str(BACKBONE), str(VIDEO_ENCODER), latent_dim=16)
    model.add_lora()
    perturb(model)
    frames = np.random.default_rng(0).integers(0, 255, (8, 112, 112, 3), dtype=np.uint8)
    clips = [Clip(frames[: 2 * n], np.arange(2.0 * n), 0.0, 2.0 * n) for n in (2, 4, 3)]
    clips = [toy_processor.process_clip(clip) for clip in clips]
    looks = [as_scanpath([[0.2, 0.3, 1.0, 1.0]]), None, as_scanpath([[0.8, 0.6, 1.6, 0.5], [0.1, 0.9, 3.0, 2.0]])]
    image = dict(toy_processor.image_processor(images=[frames[0]], return_tensors="pt"))
    video, picture = toy_processor.video_token, toy_processor.image_token
    samples = [
        (f"{video} then {video} Which object?", [0, 1], None),
        ("Which object is this?", [], None),
        (f"{picture} {video} What color is this object?", [2], image),
    ]
    texts = [text for text, _, _ in samples]
    batch = toy_processor.collate(texts, clips, looks, image, padding_side="left")
    together = logits(model, dict(batch))
    for row, (text, own, own_image) in enumerate(samples):
        one = toy_processor.collate([text], [clips[i] for i in own], [looks[i] for i in own] or None, own_image)
        alone = logits(model, dict(one))[0]
        found = together[row, batch["attention_mask"][row].bool()]
        torch.testing.assert_close(found, alone, atol=1e-5 * alone.abs().max().item(), rtol=0)
        base = {name: value for name, value in one.items() if name != "scanpaths"}
        assert torch.allclose(logits(model, base)[0], alone, atol=1e-3) == (row == 1)


# ---------------------------------------------------------------- prompts in chunks, on one cache
PREFIX = [11, 12, 13]
GAZE = ("scanpaths", "scanpath_mask", "has_scanpath", "video_encoder_pixel_values", "step_spans_s")
VIDEO = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")


def prefixed(looks) -> dict:
    """One prompt for each of `looks`: a few words, a video of 2x2x3 tokens, and a question of 4 tokens."""
    inputs = video_inputs([(2, 2, 3)] * len(looks), looks, text_lengths=[4] * len(looks))
    ids = torch.cat([torch.tensor(PREFIX).expand(len(looks), -1), inputs["input_ids"]], dim=1)
    return {
        **inputs,
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == VIDEO_TOKEN).int(),
    }


def exact_model(lora: bool = False):
    """The base model in float64, in which chunks differ from the whole by rounding alone; the resampler's float32."""
    model = tiny_model(lora=lora)
    model.backbone.double()
    return model


def up_to_question(inputs: dict) -> dict:
    """What `forward` is given of `prefixed` prompts without their questions."""
    by_position = ("input_ids", "attention_mask", "mm_token_type_ids")
    return {name: value[:, :17] if name in by_position else value for name, value in inputs.items()}


@torch.no_grad()
def logits_and_cache(model, inputs: dict) -> tuple[torch.Tensor, DynamicCache]:
    output = model(**inputs)  # the decoder makes the cache
    return output.logits, output.past_key_values


@torch.no_grad()
def in_chunks(model, inputs: dict, cuts, has_gaze=None) -> torch.Tensor:
    """(B, L, vocabulary) of a prompt that `forward` sees up to each of the `cuts`, then to its end, on one cache."""
    cache, edges, parts = DynamicCache(), [0, *cuts, inputs["input_ids"].shape[1]], []
    for begin, end in pairwise(edges):
        ids = inputs["input_ids"][:, begin:end]
        own = {name: inputs[name] for name in VIDEO + GAZE if name in inputs} if (ids == VIDEO_TOKEN).any() else {}
        parts.append(
            model(
                input_ids=ids,
                attention_mask=inputs["attention_mask"][:, :end],
                past_key_values=cache,
                has_gaze=has_gaze,
                **own,
            ).logits
        )
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("looks", [[LOOK], [LOOK, None, []]], ids=["one", "batch"])
@pytest.mark.parametrize("lora", [False, True])
def test_chunks_on_one_cache_equal_the_whole(lora, looks):
    """Words before the video, the video, the question, and its last word apart: gaze and LoRA as in one forward."""
    model, inputs = exact_model(lora), prefixed(looks)
    whole = logits(model, inputs)
    stated = torch.tensor([look is not None for look in looks])
    chunked = in_chunks(model, inputs, [3, 17, 20], has_gaze=stated)
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=0)
    first = in_chunks(model, inputs, [17, 20])  # the video in the first chunk: nothing has to be stated
    torch.testing.assert_close(first, whole, atol=1e-5, rtol=0)
    with model.gaze_disabled():
        base = logits(model, inputs)
        torch.testing.assert_close(in_chunks(model, inputs, [3, 17, 20]), base, atol=1e-5, rtol=0)
    assert (whole - base)[0, -1].abs().max() > 1e-3


def test_a_copied_cache_answers_a_second_question_with_lora():
    """The cache carries the gaze state of its prompts, also through a copy and a crop."""
    model, inputs = exact_model(lora=True), prefixed([LOOK])
    whole = logits(model, inputs)[:, 17:]
    cache = logits_and_cache(model, up_to_question(inputs))[1]
    with torch.no_grad():
        question = {"input_ids": inputs["input_ids"][:, 17:]}
        copied = model(**question, past_key_values=copy.deepcopy(cache)).logits
        model(input_ids=torch.tensor([[5, 6]]), past_key_values=cache)
        cache.crop(-2)
        cropped = model(**question, past_key_values=cache).logits
    torch.testing.assert_close(copied, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(cropped, whole, atol=1e-5, rtol=0)


def test_a_question_without_gaze_leaves_the_cache_as_it_was_filled_and_a_new_prompt_does_not():
    """A cache is marked by what fills it from its first position on, and by nothing after that."""
    model, inputs = exact_model(lora=True), prefixed([LOOK])
    whole, cache = logits(model, inputs)[:, 17:], logits_and_cache(model, up_to_question(inputs))[1]
    question = {"input_ids": inputs["input_ids"][:, 17:]}
    with torch.no_grad():
        with model.gaze_disabled():
            model(**question, past_key_values=cache)
        cache.crop(-4)
        torch.testing.assert_close(model(**question, past_key_values=cache).logits, whole, atol=1e-5, rtol=0)
        cache.crop(-cache.get_seq_length())
        words = torch.tensor([PREFIX])
        base = model(input_ids=words).logits
        model(input_ids=words[:, :2], past_key_values=cache)
        last = model(input_ids=words[:, 2:], past_key_values=cache).logits
    torch.testing.assert_close(last, base[:, 2:], atol=1e-5, rtol=0)


def test_what_a_cache_does_not_tell_is_asked_for():
    model, inputs = exact_model(lora=True), prefixed([LOOK])
    with pytest.raises(ValueError, match="prompt 0 has a scanpath.*state has_gaze from the first chunk on"):
        in_chunks(model, inputs, [3])  # LoRA was off for the words before the video
    filled = logits_and_cache(model, inputs)[1]
    with pytest.raises(ValueError, match=r"has_gaze is \[False\], expected \[True\]: so was the cache filled"):
        model(input_ids=torch.tensor([[5]]), past_key_values=filled, has_gaze=torch.tensor([False]))
    with pytest.raises(ValueError, match="the cache holds 1 prompts, expected 2"):
        model(input_ids=torch.tensor([[5], [5]]), past_key_values=filled)
    with pytest.raises(ValueError, match=r"has_gaze is \(2,\), expected \(1,\)"):
        in_chunks(model, inputs, [3], has_gaze=torch.tensor([True, True]))
    foreign = DynamicCache()
    with model.gaze_disabled(), torch.no_grad():
        model.backbone(input_ids=torch.tensor([PREFIX]), past_key_values=foreign)
    with pytest.raises(ValueError, match=r"cache of 3 positions.*state has_gaze \(B,\)"):
        model(input_ids=torch.tensor([[5]]), past_key_values=foreign)
    with pytest.raises(ValueError, match="cache of 3 positions.*state position_ids"):
        exact_model()(**inputs, past_key_values=foreign)
    library = tiny_model(position_convention="transformers")
    cache = logits_and_cache(library, {"input_ids": torch.tensor([PREFIX])})[1]
    with pytest.raises(ValueError, match="a video or an image in a later chunk needs position_ids"):
        library(**inputs, past_key_values=cache)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("how", [{}, {"num_beams": 2, "num_return_sequences": 2}], ids=["greedy", "beams"])
def test_generate_goes_on_from_a_cache_that_holds_the_video(lora, how):
    """Whole prompt or its last chunk alone, the answer is that of one `generate`."""
    model, inputs = exact_model(lora), prefixed([LOOK])
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, **how}
    expected = model.generate(**inputs, **settings)
    with model.gaze_disabled():
        assert not torch.equal(model.generate(**inputs, **settings), expected)
    repeats = how.get("num_beams", 1)
    for ids in (inputs["input_ids"], inputs["input_ids"][:, 17:]):
        cache = logits_and_cache(model, up_to_question(inputs))[1]
        cache.batch_repeat_interleave(repeats)
        found = model.generate(ids, attention_mask=inputs["attention_mask"], past_key_values=cache, **settings)
        assert torch.equal(found[:, ids.shape[1] :], expected[:, inputs["input_ids"].shape[1] :])


# ---------------------------------------------------------------- generate
def test_each_position_receives_its_own_row_in_every_pass_and_beam():
    """Two prompts, a cache that holds 10 positions before theirs, two beams each: neighbours are beams of a prompt."""
    rows, has_gaze = torch.tensor([[-1, 0, 1, -1], [2, -1, 3, 4]]), torch.tensor([True, False])
    injection = GazeInjection(rows, has_gaze, factors="factors", start=10)
    whole = injection.at(10, 2, 4)
    assert whole.positions.tolist() == [1, 2, 4, 6, 7] and whole.source.tolist() == [0, 1, 2, 3, 4]
    later = injection.at(11, 4, 2)  # the second and third position of each prompt, twice
    assert later.positions.tolist() == [0, 1, 2, 3, 5, 7] and later.source.tolist() == [0, 1, 0, 1, 3, 3]
    assert later.lora_gate.tolist() == later.has_gaze.tolist() == [True, True, False, False]
    answer = injection.at(14, 2, 1)  # after the prompts
    assert not len(answer.positions) and answer.factors is None and whole.factors == "factors"
    beyond = injection.at(13, 2, 3)
    assert beyond.positions.tolist() == [3] and beyond.source.tolist() == [4]
    assert not later.starts_cache and GazeInjection(rows, None).at(0, 2, 4).starts_cache
    assert GazeInjection(rows, torch.tensor([True, True])).at(0, 2, 4).lora_gate is None
    with pytest.raises(ValueError, match="got position 9 of the cache, expected the call's own, from 10 on"):
        injection.at(9, 2, 4)
    with pytest.raises(ValueError, match="got a batch of 3, expected a multiple of the 2 prompts"):
        injection.at(10, 3, 4)


def test_beams_of_two_prompts_each_see_their_own_gaze():
    """Beams of a batch are those of each prompt alone; the grids differ, their numbers of tokens do not."""
    model, sizes, looks = tiny_model(lora=True), [(2, 2, 3), (2, 3, 2)], [LOOK, [[0.9, 0.1, 0.5, 1.0]]]
    settings = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 4, "min_new_tokens": 4}
    together = model.generate(**video_inputs(sizes, looks, text_lengths=[4, 4]), **settings)
    for index in range(2):
        one = slice(index, index + 1)
        inputs = video_inputs(sizes[one], looks[one], seed=index, text_lengths=[4])
        alone = model.generate(**inputs, **settings)
        assert torch.equal(together[3 * index : 3 * index + 3, -4:], alone[:, -4:])
    swapped = model.generate(**video_inputs(sizes, looks[::-1], text_lengths=[4, 4]), **settings)
    assert not torch.equal(swapped, together)


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": True, "top_k": 20, "temperature": 0.7},
        {"do_sample": True, "num_return_sequences": 3},
        {"do_sample": False, "num_beams": 2},
        {"do_sample": False, "cache_implementation": "static"},
    ],
    ids=["sampling", "several sequences", "beams", "static cache"],
)
def test_generate_in_all_its_forms_uses_gaze(how):
    model, inputs = tiny_model(lora=True), video_inputs([(2, 2, 2), (2, 2, 3)], [LOOK, LOOK])
    outputs = []
    for gaze in (True, True, False):
        torch.manual_seed(3)
        if gaze:
            outputs.append(model.generate(**inputs, **how, max_new_tokens=5))
        else:
            with model.gaze_disabled():
                outputs.append(model.generate(**inputs, **how, max_new_tokens=5))
    assert torch.equal(outputs[0], outputs[1])
    assert outputs[0].shape != outputs[2].shape or not torch.equal(outputs[0], outputs[2])
    if how.get("cache_implementation"):
        dynamic = model.generate(**inputs, do_sample=False, max_new_tokens=5)
        assert torch.equal(outputs[0], dynamic)


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_pipelines(task, toy_processor, tmp_path):
    model = GazeQwenForConditionalGeneration.from_base(str(BACKBONE), str(VIDEO_ENCODER), latent_dim=16)
    perturb(model).save_pretrained(tmp_path / "model")
    toy_processor.save_pretrained(tmp_path / "model")
    video = write_video(tmp_path / "v.mp4", index_frames(40, 112, 112))
    table = write_fixations(tmp_path / "f.csv", [(0.5, 2.5, 0.2, 0.3)])
    pipe = pipeline(task, model=str(tmp_path / "model"), trust_remote_code=True)
    answers = {}
    for name, scanpath in (("gaze", str(table)), ("none", None)):
        content = [{"type": "video", "video": str(video), "scanpath": scanpath}, {"type": "text", "text": "What?"}]
        answers[name] = pipe(
            [{"role": "user", "content": content}],
            return_full_text=False,
            generate_kwargs={"max_new_tokens": 8, "do_sample": False},
        )[0]["generated_text"]
        if task == "any-to-any":  # which also takes text and videos by name, beside the audio that there is none of
            prompt = toy_processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            by_name = pipe(
                text=prompt,
                videos=str(video),
                scanpaths=[scanpath],
                return_full_text=False,
                generate_kwargs={"max_new_tokens": 8, "do_sample": False},
            )
            assert by_name[0]["generated_text"] == answers[name]
    assert answers["gaze"] != answers["none"]


# ---------------------------------------------------------------- training modes
def test_autocast_keeps_the_resampler_in_float32():
    model, inputs = tiny_model(lora=True), video_inputs([(2, 2, 2)], [LOOK])
    exact = logits(model, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**inputs).logits
    output[:, -1].float().square().sum().backward()
    assert output.dtype == torch.bfloat16 and (output.float() - exact).abs().max() < 0.1 * exact.abs().max()
    gradients = [parameter.grad for parameter in model.trained_parameters().values() if parameter.grad is not None]
    assert len(gradients) > 20 and all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    # The residuals themselves are float32 whatever surrounds them.
    features, spans = torch.randn(1, 2, 4, 24), inputs["step_spans_s"]
    arguments = (features, inputs["scanpaths"], inputs["scanpath_mask"], spans, torch.tensor([[2, 2]]))
    plain = model.resampler.factors(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = model.resampler.factors(*arguments)
    assert torch.equal(plain.read, under.read) and torch.equal(plain.latents, under.latents)


@pytest.mark.parametrize("encoding", ["foveated", "coord_pe", "heatmap_decay"])
def test_the_resampler_compiles_as_one_graph(encoding):
    model, inputs = tiny_model(gaze_encoding=encoding), video_inputs([(2, 2, 2)], [LOOK])
    expected = logits(model, inputs)
    model.resampler.factors = torch.compile(model.resampler.factors, fullgraph=True, backend="eager")
    torch.testing.assert_close(logits(model, inputs), expected, atol=1e-5, rtol=1e-5)


def test_accumulated_gradients_are_the_sum():
    model = tiny_model(lora=True)
    parts = [video_inputs([(2, 2, 2)], [LOOK], seed=seed) for seed in (0, 1)]

    def gradients(groups) -> dict[str, torch.Tensor]:
        model.zero_grad()
        for group in groups:
            sum(model(**inputs).logits[:, -1].square().sum() for inputs in group).backward()
        return {name: p.grad.clone() for name, p in model.trained_parameters().items() if p.grad is not None}

    together, one_by_one = gradients([parts]), gradients([[part] for part in parts])
    for name, gradient in together.items():
        torch.testing.assert_close(one_by_one[name], gradient, atol=1e-5, rtol=1e-4)


def test_steps_change_every_trainable_tensor_and_no_frozen_one():
    model, inputs = tiny_model(lora=True, injection_layers=[0, 1, 2]), video_inputs([(2, 3, 3)], [LOOK])
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trained = model.trained_parameters()
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(**inputs).logits[:, -1].square().sum().backward()
        optimizer.step()
    for name, value in model.named_parameters():
        # Queries of the last layer see the answer's position alone, all others the whole prompt.
        assert torch.equal(value, before[name]) == (name not in trained), name


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(implementation):
    expected = logits(tiny_model(), video_inputs([(2, 2, 2)], [LOOK]))
    model = tiny_model()
    model.backbone.set_attn_implementation(implementation)
    torch.testing.assert_close(logits(model, video_inputs([(2, 2, 2)], [LOOK])), expected, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- where the latents look
def test_foveal_latents_attend_to_what_is_fixated():
    """In one video, for two gazes: the foveal half of an untrained model's latents looks there, the others do not."""
    model = tiny_model(perturbed=False, num_latents=8)
    everywhere = []
    for x in (0.125, 0.875):  # the first and the last of four columns
        inputs = video_inputs([(2, 4, 4)], [[[x, 0.125, 2.0, 4.0]]])
        spans = inputs["step_spans_s"]
        inputs["scanpaths"][..., 2:] = torch.stack([spans.mean(), spans.max() - spans.min()])  # all the while
        attention = model.latent_attention(**inputs)
        layers = len(model.config.resolved_injection_layers())
        assert attention.shape == (layers, 1, 2, 8, 16) and (attention >= 0).all()
        assert (attention.sum(-1) <= 1 + 1e-6).all()  # the rest is on the latents themselves
        foveal, others = attention.unflatten(-1, (4, 4)).mean((0, 1, 2)).split(4)
        assert (foveal.flatten(1).argmax(1) == round(4 * x - 0.5)).all()
        assert foveal[:, 0, round(4 * x - 0.5)].min() > 2 * others[:, 0, round(4 * x - 0.5)].max()
        everywhere.append(attention)
    assert (everywhere[0] - everywhere[1]).abs().max() > 0.1
    with pytest.raises(ValueError, match="no latents: resampler_type is 'heatmap_vector'"):
        tiny_model(resampler_type="heatmap_vector").latent_attention(**inputs)


def test_gaze_residuals_are_what_is_added():
    """Against the hidden states after the first injection layer, with gaze and without."""
    model = tiny_model(num_latents=8)
    inputs = video_inputs([(2, 3, 4)], [[[0.3, 0.6, 2.0, 4.0]]])
    after = []
    first = model.config.resolved_injection_layers()[0]
    hook = model.backbone.model.language_model.layers[first].register_forward_hook(lambda m, i, out: after.append(out))
    model(**inputs)
    with model.gaze_disabled():
        model(**inputs)
    hook.remove()
    is_video = inputs["input_ids"] == VIDEO_TOKEN
    residuals = model.gaze_residuals(**inputs)
    assert residuals.shape == (len(model.config.resolved_injection_layers()), 1, 2, 12, 32)
    assert torch.allclose((after[0] - after[1])[is_video], residuals[0].flatten(0, 2), atol=1e-5)
    assert residuals[0].abs().max() > 0.1 and (after[0] == after[1])[~is_video].all()
    with pytest.raises(ValueError, match="nothing is added: resampler_type is 'none'"):
        tiny_model(resampler_type="none").gaze_residuals(**inputs)


# ---------------------------------------------------------------- axes of Table 2
def test_dinov2_features(tmp_path):
    timm_config = {
        "architecture": "vit_small_patch14_dinov2",
        "model_args": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 28},
    }
    config = tiny_config().to_dict() | {"video_encoder_config": timm_config}
    config = {name: config[name] for name in ("backbone_config", "video_encoder_config", "latent_dim", "num_latents")}
    from gazeqwen.configuration_gazeqwen import GazeQwenConfig

    model = perturb(GazeQwenForConditionalGeneration(GazeQwenConfig(**config)).eval())
    assert model.config.load_video_encoder_config().hidden_size == 32
    inputs = video_inputs([(2, 2, 2)], [LOOK])
    inputs["video_encoder_pixel_values"] = torch.randn(1, 4, 3, 42, 56)
    with_gaze = logits(model, inputs)
    with model.gaze_disabled():
        assert not torch.allclose(logits(model, inputs), with_gaze, atol=1e-3)
    frames = inputs["video_encoder_pixel_values"]
    tokens = model.video_encoder(frames).last_hidden_state
    assert tokens.shape == (1, 4 * 3 * 4, 32)
    assert model.video_encoder.token_grid(4, 42, 56) == (4, 3, 4)
    # Each frame by itself: changing one frame changes its tokens alone.
    changed = frames.clone()
    changed[:, 2] = 0
    moved = (model.video_encoder(changed).last_hidden_state - tokens).abs().amax(-1)[0].unflatten(0, (4, 12)) > 1e-6
    assert moved.any(1).tolist() == [False, False, True, False]
    with pytest.raises(ValueError, match="30x42 pixels, expected multiples of 14x14"):
        model(**{**inputs, "video_encoder_pixel_values": torch.randn(1, 4, 3, 30, 42)})
    model.video_encoder.model.save_pretrained(tmp_path)
    from gazeqwen.video_encoders_gazeqwen import load_video_encoder, load_video_encoder_config

    loaded = load_video_encoder(str(tmp_path), load_video_encoder_config(str(tmp_path)))
    torch.testing.assert_close(loaded(frames).last_hidden_state, tokens)


@pytest.mark.parametrize("settings", [{"share_resampler": True}, {"resampler_type": "heatmap_vector"}])
def test_other_resamplers_train_and_survive_a_round_trip(settings, tmp_path):
    model = GazeQwenForConditionalGeneration.from_base(str(BACKBONE), str(VIDEO_ENCODER), latent_dim=16, **settings)
    perturb(model).save_pretrained(tmp_path)
    again = GazeQwenForConditionalGeneration.from_pretrained(tmp_path)
    for name, value in model.resampler.state_dict().items():
        assert torch.equal(again.resampler.state_dict()[name], value)
    assert type(again.resampler) is type(model.resampler)


def test_a_dead_layer_warns_with_the_reason(monkeypatch):
    from gazeqwen import modeling_gazeqwen

    said = []
    monkeypatch.setattr(modeling_gazeqwen.logger, "warning", said.append)
    tiny_model()
    assert not said
    tiny_model(injection_layers=[1, 3])
    assert len(said) == 1 and "layer 3 is the base model's last" in said[0]


# ---------------------------------------------------------------- LoRA merged
def test_merged_lora_gives_the_same_answers_with_gaze_and_cannot_be_saved(tmp_path):
    model, inputs = tiny_model(lora=True), video_inputs([(2, 2, 2)], [LOOK])
    expected = logits(model, inputs)
    model.merge_lora()
    torch.testing.assert_close(logits(model, inputs), expected, atol=1e-5, rtol=1e-4)
    assert not model.has_lora and not any("lora" in name for name, _ in model.named_modules())
    with pytest.raises(ValueError, match="no LoRA to merge"):
        model.merge_lora()
    with pytest.raises(ValueError, match="LoRA was merged"):
        model.save_pretrained(tmp_path)


def test_lora_counts_on_the_7b_shape():
    """Rank 8 on q and v of 28 layers, 3584 -> 3584 and 3584 -> 512: the reference's 2,523,136 parameters."""
    config = tiny_config()
    text = config.backbone_config.text_config
    text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads = 3584, 28, 28, 4
    text.layer_types = ["full_attention"] * 28
    text.intermediate_size, config.backbone_config.vision_config.out_hidden_size = 64, 3584
    with torch.device("meta"):
        model = GazeQwenForConditionalGeneration(config)
        model.add_lora(rank=8)
    assert sum(value.numel() for value in model.lora_state().values()) == 2_523_136
    assert model.config.resolved_injection_layers() == [0, 7, 14, 21]
