"""Tiny base models of every family, in folders, with their processors and an untrained adapter: for the tests."""

import copy

import numpy as np
import torch
from support import VIDEO_ENCODER, perturb, with_positions
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from gazeqwen.backbones_gazeqwen import FAMILIES, VISUAL_INPUTS
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
        torch.manual_seed(0)
        self._first = perturb(
            GazeQwenForConditionalGeneration.from_base(
                self.folder, str(VIDEO_ENCODER), latent_dim=16, num_latents=4, injection_layers=[0, 2]
            )
        )
        self._random_state = torch.get_rng_state()
        self.model = self.adapter()

    def adapter(self) -> GazeQwenForConditionalGeneration:
        """Return a model of one's own: a copy, since loading one takes ten times as long."""
        torch.set_rng_state(self._random_state)  # as after the first was made
        return copy.deepcopy(self._first)

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
