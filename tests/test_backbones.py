"""Every family of base models: its prompts, its positions, the hooks on it, and what is kept of a video."""

import re

import numpy as np
import pytest
import torch
from support import ROOT, VIDEO_ENCODER, perturb, with_positions
from transformers import (
    AutoModel,
    AutoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from gazeqwen.backbones_gazeqwen import FAMILIES, VISUAL_INPUTS, family_of
from gazeqwen.evaluation.baselines import video_metadata
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.toyworld.backbone import CHAT_TEMPLATE, make_tokenizer
from gazeqwen.video_gazeqwen import Clip

CONFIGS = {
    "qwen2_vl": Qwen2VLConfig,
    "qwen2_5_vl": Qwen2_5_VLConfig,
    "qwen3_vl": Qwen3VLConfig,
    "qwen3_vl_moe": Qwen3VLMoeConfig,
}
PROCESSORS = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor}
SCANPATH = [[0.2, 0.3, 0.4, 0.8], [0.7, 0.6, 1.6, 1.0]]


def tiny_config(model_type: str, tokenizer):
    """A base model's config of width 32 with 4 layers, and a vision tower of 4."""
    new = FAMILIES[model_type].has_deepstack
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.2,
    }
    vision = {"depth": 4, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "initializer_range": 0.2}
    if model_type == "qwen2_vl":
        vision |= {"embed_dim": 32, "mlp_ratio": 2}
    elif new:
        vision |= {"out_hidden_size": 32, "deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 64}
    else:
        vision |= {"out_hidden_size": 32, "fullatt_block_indexes": [1]}
    if model_type == "qwen3_vl_moe":
        text |= {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    token_id = tokenizer.convert_tokens_to_ids
    return CONFIGS[model_type](
        text_config=text,
        vision_config=vision,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
    )


def base_processor(model_type: str, tokenizer):
    """The family's own processor, which makes frames of 2x2 tokens out of small ones."""
    side = 2 * FAMILIES[model_type].pixels_per_token
    if FAMILIES[model_type].seconds_in_text:
        size = {"shortest_edge": 2 * side**2, "longest_edge": 16 * side**2}
        images = Qwen2VLImageProcessor(size={"shortest_edge": side**2, "longest_edge": side**2}, patch_size=16)
        videos = Qwen3VLVideoProcessor(size=size, cap_pixels_per_frame=True)
    else:
        size = {"shortest_edge": side**2, "longest_edge": side**2}
        images = Qwen2VLImageProcessor(size=size)
        videos = Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=True)
    return PROCESSORS.get(model_type, Qwen3VLProcessor)(images, tokenizer, videos, chat_template=CHAT_TEMPLATE)


class Base:
    """A base model's folder, with the adapter's processor and an untrained adapter on it."""

    def __init__(self, model_type: str, folder):
        torch.manual_seed(0)
        tokenizer = make_tokenizer()
        self.family = FAMILIES[model_type]
        self.own_processor = base_processor(model_type, tokenizer)
        model = self.family.model_class(tiny_config(model_type, tokenizer)).eval()
        model.generation_config.do_sample = False
        self.folder = str(folder / model_type)
        model.save_pretrained(self.folder)
        self.own_processor.save_pretrained(self.folder)
        self.processor = GazeQwenProcessor.from_base(self.folder, video_encoder_size=64)
        self.model = self.adapter()

    def adapter(self) -> GazeQwenForConditionalGeneration:
        torch.manual_seed(0)
        return perturb(
            GazeQwenForConditionalGeneration.from_base(
                self.folder, str(VIDEO_ENCODER), latent_dim=16, num_latents=4, injection_layers=[0, 2]
            )
        )

    def prompt(self, question="Which object?", image=False) -> str:
        content = [{"type": "video"}, {"type": "text", "text": question}]
        if image:
            content.insert(0, {"type": "image"})
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def inputs(self, clips=None, scanpaths=None, questions=None, image=False, **kwargs):
        clips = clips or [make_clip()]
        questions = questions or ["Which object?"] * len(clips)
        images = [np.full((64, 64, 3), 200, np.uint8)] * len(clips) if image else None
        texts = [self.prompt(question, image) for question in questions]
        return self.processor(images=images, text=texts, videos=clips, scanpaths=scanpaths, **kwargs)

    def plain(self, inputs: dict) -> dict:
        """The inputs of the base model itself, with the positions that it was trained with."""
        names = ("input_ids", "attention_mask", "pixel_values", "pixel_values_videos", "mm_token_type_ids")
        return with_positions(self.model, {n: inputs[n] for n in (*names, *VISUAL_INPUTS) if n in inputs})


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("bases"), {}

    def get(model_type: str) -> Base:
        if model_type not in made:
            made[model_type] = Base(model_type, folder)
        return made[model_type]

    return get


@pytest.fixture(params=list(FAMILIES))
def base(request, bases) -> Base:
    return bases(request.param)


def make_clip(frames: int = 6, start_s: float = 30.0, seed: int = 0, side: int = 64) -> Clip:
    """Frames at uneven times, a clip from the middle of a video."""
    draw = np.random.default_rng(seed)
    times = start_s + np.cumsum(draw.integers(100, 900, frames)) / 1000
    pixels = draw.integers(0, 255, (frames, side, side, 3), dtype=np.uint8)
    return Clip(pixels, times, start_s, float(times[-1] + 0.1))


def scanpath_of(clip: Clip) -> np.ndarray:
    return np.array(SCANPATH) + np.array([0, 0, clip.start_s, 0])


def with_gaze(base: Base, clips=None, **kwargs):
    clips = clips or [make_clip()]
    return base.inputs(clips, [scanpath_of(clip) for clip in clips], **kwargs)


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


def test_the_readme_lists_the_table_of_families():
    rows = {}
    for line in (ROOT / "README.md").read_text().splitlines():
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
