"""Every family of base models: its prompts, its positions, the hooks on it, and what is kept of a video."""

import re

import numpy as np
import pytest
import torch
from bases import Base, make_clip, with_gaze
from support import ROOT, perturb
from transformers import AutoModel, AutoProcessor, Qwen3_5Config

from gazeqwen.backbones_gazeqwen import FAMILIES, family_of
from gazeqwen.evaluation.baselines import video_metadata
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.video_gazeqwen import Clip


@pytest.fixture(params=list(FAMILIES))
def base(request, bases) -> Base:
    return bases(request.param)


# ---------------------------------------------------------------- prompts
@pytest.mark.parametrize("image", [False, True])
def test_prompts_are_those_of_the_familys_own_processor(base, image):
    clip, prompt = make_clip(), base.prompt(image=image)
    frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
    if base.family.seconds_in_text:  # as trained, which transformers 5 does not do: no wrapper around the steps' own
        prompt = prompt.replace("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>")
    own = base.own_processor(
        images=[np.full((64, 64, 3), 200, np.uint8)] if image else None,
        text=[prompt],
        videos=[frames],
        do_sample_frames=False,
        video_metadata=[video_metadata(clip)],
        return_tensors="pt",
    )
    ours = base.inputs(image=image)
    assert ours["input_ids"].tolist() == own["input_ids"].tolist()
    assert ours["mm_token_type_ids"].tolist() == own["mm_token_type_ids"].tolist()
    for name in ("video_grid_thw", "pixel_values_videos", *(("pixel_values", "image_grid_thw") if image else ())):
        assert torch.equal(ours[name], own[name]), name
    assert ("second_per_grid_ts" in ours) == base.family.seconds_in_positions
    assert (ours["input_ids"] == base.processor.video_token_id).sum() == 3 * 4


def test_frames_have_at_most_their_pixels_however_many_there_are(base):
    """Qwen3-VL's own setting counts all frames of a video together, ours those of each."""
    side = base.family.pixels_per_token
    processor = GazeQwenProcessor.from_base(base.folder, max_pixels_per_frame=4 * side**2)
    for frames, height, width in ((2, 8 * side, 8 * side), (16, 8 * side, 8 * side), (4, 2 * side, 16 * side)):
        clip = make_clip(frames)
        clip = Clip(np.zeros((frames, height, width, 3), np.uint8), clip.timestamps_s, clip.start_s, clip.end_s)
        tokens = processor.process_clip(clip)["video_grid_thw"] // torch.tensor([1, 2, 2])
        assert tokens.tolist() == [frames // 2, *((2, 2) if height == width else (1, 5))]
        assert torch.equal(processor.video_grid(frames, height, width) // torch.tensor([1, 2, 2]), tokens)
        larger = processor.process_clip(clip, max_pixels=16 * side**2)["video_grid_thw"] // torch.tensor([1, 2, 2])
        assert larger.tolist() == [frames // 2, *((4, 4) if height == width else (1, 11))]


def test_steps_are_told_their_time_since_the_clips_start(bases):
    base = bases("qwen3_vl")
    clip = Clip(np.zeros((4, 64, 64, 3), np.uint8), np.array([30.0, 30.5, 31.2, 33.2]), 30.0, 34.0)
    text = base.processor.tokenizer.decode(base.inputs([clip])["input_ids"][0])
    assert "<0.2 seconds>" in text and "<2.2 seconds>" in text
    assert text.count("<|vision_start|>") == text.count("<|vision_end|>") == 2  # one for each step, none around them


def test_a_processor_is_saved_and_loaded_with_its_family(base, tmp_path):
    base.processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is GazeQwenProcessor and loaded.family is base.family
    assert type(loaded.video_processor) is type(base.processor.video_processor)
    expected = base.inputs()
    again = loaded(text=[base.prompt()], videos=[make_clip()])
    assert set(again) == set(expected) and all(torch.equal(again[name], expected[name]) for name in again)


# ---------------------------------------------------------------- the model
def test_without_gaze_it_is_the_base_model(base):
    inputs = base.inputs(image=True)
    with torch.no_grad():
        ours = base.model(**inputs).logits
        plain = base.model.backbone(**base.plain(inputs)).logits
    assert torch.equal(ours, plain)


def test_hooks_add_the_residuals_after_their_layers(base):
    """Against a forward in which they are added by hand, by hooks of this test, to the base model's layers."""
    inputs = with_gaze(base)
    model, layers = base.model, base.model.backbone.model.language_model.layers
    with torch.no_grad():
        ours = model(**inputs).logits
        residuals = model.gaze_residuals(**inputs)  # (2, 1, T, N, D)
        is_video = inputs["input_ids"] == model.backbone.config.video_token_id

        def adding(residual):
            def hook(layer, args, output):
                output = output.clone()
                output[is_video] += residual.flatten(0, 2).to(output)
                return output

            return hook

        model.detach_gaze()
        handles = [
            layers[index].register_forward_hook(adding(residual))
            for index, residual in zip([0, 2], residuals, strict=True)
        ]
        try:
            by_hand = model.backbone(**base.plain(inputs)).logits
        finally:
            for handle in handles:
                handle.remove()
            model.attach_gaze()
        plain = model.backbone(**base.plain(inputs)).logits
    torch.testing.assert_close(ours, by_hand, atol=1e-5, rtol=0)
    assert (ours - plain).abs().max() > 0.01


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_batch_equals_its_parts(base, padding_side):
    clips = [make_clip(6), make_clip(4, seed=1)]
    questions = ["Which object?", "Which object is the red ring that the user holds now?"]
    batch = with_gaze(base, clips, questions=questions, padding_side=padding_side)
    with torch.no_grad():
        together = base.model(**batch).logits
        for row, (clip, question) in enumerate(zip(clips, questions, strict=True)):
            alone = base.model(**with_gaze(base, [clip], questions=[question])).logits[0]
            own = together[row][batch["attention_mask"][row].bool()]
            torch.testing.assert_close(own, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("image", [False, True])
def test_kept_embeddings_give_what_pixels_give(base, image):
    inputs = with_gaze(base, image=image)
    with torch.no_grad():
        expected = base.model(**inputs).logits
        pixels = inputs.pop("pixel_values_videos")
        embeds = base.model.embed_video(pixels, inputs["video_grid_thw"])
        kept = base.model(**inputs, video_embeds=embeds).logits
    assert embeds.shape[-1] == (32 * 4 if base.family.has_deepstack else 32)
    torch.testing.assert_close(kept, expected, atol=1e-6, rtol=1e-5)


def test_embeddings_without_their_deepstack_maps_are_off_and_refused(bases):
    base = bases("qwen3_vl")
    inputs = base.inputs()
    with torch.no_grad():
        expected = base.model(**inputs).logits
        embeds = base.model.embed_video(inputs.pop("pixel_values_videos"), inputs["video_grid_thw"])
        without = base.model(**inputs, video_embeds=embeds * (torch.arange(128) < 32)).logits
        assert (without - expected).abs().max() > 0.1
        with pytest.raises(ValueError, match=r"video_embeds are \(12, 32\), expected \(12, 128\)"):
            base.model(**inputs, video_embeds=embeds[:, :32])


def test_saved_and_loaded_with_lora(base, tmp_path):
    model = base.adapter()
    inputs = with_gaze(base)
    with torch.no_grad():
        without_lora = model(**inputs).logits
        model.add_lora(rank=2, alpha=4)
        perturb(model).eval()
        expected = model(**inputs).logits
        plain = base.inputs()
        assert (expected - without_lora).abs().max() > 0.01
        assert torch.equal(model(**plain).logits, base.model(**plain).logits)  # without gaze LoRA is off
        model.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path)
        assert type(loaded) is GazeQwenForConditionalGeneration
        assert torch.equal(loaded(**inputs).logits, expected)


def test_generate_is_a_greedy_loop_over_forward(base):
    inputs = with_gaze(base)
    generated = base.model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    ids, mask, types = inputs["input_ids"], inputs["attention_mask"], inputs["mm_token_type_ids"]
    excluded = base.model.generation_config.eos_token_id
    for _ in range(4):
        with torch.no_grad():
            step = {**inputs, "input_ids": ids, "attention_mask": mask, "mm_token_type_ids": types}
            logits = base.model(**step).logits[:, -1]
        if excluded is not None:
            logits[:, excluded] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        mask, types = torch.nn.functional.pad(mask, (0, 1), value=1), torch.nn.functional.pad(types, (0, 1))
    assert generated.tolist() == ids.tolist()


def test_linear_attention_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match="'qwen3_5' with layers of linear_attention.*cache cannot be cropped"):
        family_of(Qwen3_5Config())


def test_the_guide_lists_the_table_of_families():
    rows = {}
    for line in (ROOT / "docs" / "guides" / "python.md").read_text().splitlines():
        if "Qwen/" in line and line.startswith("|"):
            name, ids, time, pixels = (cell.strip() for cell in line.strip("|").split("|"))
            start, sizes, end = re.fullmatch(r"`(.*)\{(.*)\}(.*)`", ids).groups()
            time = "text" in time, "rotary" in time
            rows[name] = (tuple(f"{start}{size}{end}" for size in sizes.split(",")), time, int(pixels))
    assert rows == {
        family.name: (family.ids, (family.seconds_in_text, family.seconds_in_positions), family.pixels_per_token)
        for family in FAMILIES.values()
    }


def test_what_the_processor_cannot_do_is_refused_by_name(bases):
    base = bases("qwen2_5_vl")
    for videos in ([np.zeros((4, 64, 64, 3), np.uint8)], [torch.zeros(4, 3, 64, 64)], [[np.zeros((64, 64, 3))] * 4]):
        with pytest.raises(ValueError, match="expected a path or a `Clip`"):
            base.processor(text=[base.prompt()], videos=videos)
    with pytest.raises(ValueError, match="padding: got 'max_length'"):
        base.inputs(padding="max_length")
    chat = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    with pytest.raises(ValueError, match="return_assistant_tokens_mask"):
        base.processor.apply_chat_template(chat, tokenize=True, return_assistant_tokens_mask=True)
    assert "mm_token_type_ids" not in base.inputs(return_mm_token_type_ids=False)
    assert "input_ids" in base.inputs(audio=None)
