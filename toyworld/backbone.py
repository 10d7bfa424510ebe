"""The tiny Qwen-VLs of the toy worlds: configurations, tokenizers and processors, all in transformers' own classes.

A visual token is 28x28 pixels: 4x4 of them a temporal step in the first world, 8x8 in the kitchen.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BaseVideoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from gazeqwen.backbones_gazeqwen import FAMILIES
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.questions.question import TOY_SOURCE
from gazeqwen.toyworld.kitchen.scene import FRAME_PX as KITCHEN_FRAME_PX
from gazeqwen.toyworld.kitchen.things import CATEGORIES, NOUNS
from gazeqwen.toyworld.kitchen.things import COLORS as KITCHEN_COLORS
from gazeqwen.toyworld.world import CELL_PX, COLORS, FRAME_PX, NOUN_OF, SHAPES

PATCH_PX = CELL_PX // 2  # two by two patches are merged into a visual token

BACKBONE_DIR = Path(__file__).parent / "backbone"
HUNDREDTHS = tuple(f"{value:02d}" for value in range(100))  # places in a prompt have two decimals


@dataclass(frozen=True)
class ToyBackbone:
    """
    What a tiny model has of its own: its family (`model_type`), transformers' classes, the size of the frames that it
    is shown, what its configuration says beyond `make_config`, and `words` that only its world and prompts hold.
    """

    model_type: str
    folder: Path
    config: type[PreTrainedConfig]
    processor: type[ProcessorMixin]
    video_processor: type[BaseVideoProcessor]
    rope: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    frame_px: int = FRAME_PX


TOY_BACKBONES = {
    "qwen2_5_vl": ToyBackbone(
        "qwen2_5_vl",
        BACKBONE_DIR,
        Qwen2_5_VLConfig,
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
        vision={"depth": 2, "window_size": 112, "fullatt_block_indexes": [0, 1], "tokens_per_second": 2},
    ),
    "qwen3_vl": ToyBackbone(
        "qwen3_vl",
        Path(__file__).parent / "backbone_qwen3_vl",
        Qwen3VLConfig,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
        rope={"mrope_interleaved": True},
        text={"head_dim": 24, "attention_bias": True},  # with biases, to begin from the first family's weights
        vision={"depth": 3, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64},
        words=("seconds",),
    ),
    "kitchen": ToyBackbone(
        "qwen2_5_vl",
        Path(__file__).parent / "kitchen" / "backbone",
        Qwen2_5_VLConfig,
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
        rope={"mrope_section": [4, 6, 6], "rope_theta": 1e6},  # both as Qwen2.5-VL has them, of 16 frequencies
        text={"hidden_size": 160, "intermediate_size": 432, "num_attention_heads": 5, "num_key_value_heads": 5},
        vision={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 320,
            "out_hidden_size": 160,
            "window_size": 112,
            "fullatt_block_indexes": [0, 1, 2, 3],
            "tokens_per_second": 2,
        },
        words=(
            *NOUNS,
            *KITCHEN_COLORS,
            *CATEGORIES,
            "category",
            "places",
            "upper",
            *HUNDREDTHS,
        ),
        frame_px=KITCHEN_FRAME_PX,
    ),
}

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PLACES = ("top", "bottom", "left", "right", "middle", "corner")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
ANSWER_WORDS = (*NOUN_OF.values(), *COLORS, *SHAPES, *NUMBERS, *PLACES, "Yes", "No", "yes", "no", "none")
_PROMPT_TEXT = """
Question Options The best option is system user assistant You are a helpful
Which What Among Is Was Does Did When Where How Monitor Watch Answer Look
object objects color shape this that these those thing user person viewer camera wearer someone
currently now right then there ever never not before after first last next again still always once step time moment
did does do was were has have be been being will would can could should who whom where when how many which what
gaze gazes gazing gazed look looks looking looked watch watches watching watched see sees seen stare staring stared
fixate fixates fixating fixated view viewing viewed eye eyes
point points pointing pointed hold holds holding held touch touches touching touched reach reaches reaching reached
ring rings ringed mark marks marked marking circled highlight highlights highlighted tag tagged choose chosen pick
picked picking name names named show shows shown showing says say select selected
in on at of to from for by with and or the an its it he she they my me and into as if than out up down
visible scene background image video picture frame seen appears appear appeared vanish vanished move moved moving
alert remind transition pattern sequence matches match best gaze's user's following based recent action
present past future among between during while until since group other another same different
only letter given list correct wrong true false option
pattern sequence holding touching reaching marking picking pointing Monitor alert me when I first based recent Based
take wash open action triggered so far should background NOT visible background
"""
PROMPT_WORDS = tuple(_PROMPT_TEXT.split())

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for item in message['content'] -%}
{%- if item['type'] == 'video' or 'video' in item -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif item['type'] == 'image' or 'image' in item or 'image_url' in item -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in item -%}
{{ item['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def make_tokenizer(more_words: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """
    Return a byte-level BPE tokenizer whose vocabulary is the 256 bytes, the toy world's words and `more_words` (with
    and without a leading space), and Qwen's special tokens. A known word is one token, anything else falls back to
    bytes, so every text tokenizes.
    """
    words = dict.fromkeys([*ANSWER_WORDS, *PROMPT_WORDS, *more_words])
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [f"Ġ{word}" for word in words] + [word for word in words if len(word) > 1]
    pieces += [f"Ġ{letter}" for letter in string.ascii_uppercase[:8]] + [
        "Ġ{",
        "},",
        "}?",
        "}>{",
        "Ġ->",
        "Ġ(",
        "),",
        "Ġ<",
        ">.",
        "ĊĊ",
    ]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", "<|endoftext|>")],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=4096,
    )


def make_processor(name: str = "qwen2_5_vl") -> ProcessorMixin:
    """Return a backbone's real processor, which keeps its world's frames as they are."""
    toy = TOY_BACKBONES[name]
    pixels = {
        "size": {"shortest_edge": toy.frame_px**2, "longest_edge": toy.frame_px**2},
        "patch_size": PATCH_PX,
        "image_mean": OPENAI_CLIP_MEAN,
        "image_std": OPENAI_CLIP_STD,
    }
    return toy.processor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=make_tokenizer(toy.words),
        video_processor=toy.video_processor(**pixels, cap_pixels_per_frame=True),
        chat_template=CHAT_TEMPLATE,
    )


def make_config(tokenizer: PreTrainedTokenizerFast, name: str = "qwen2_5_vl") -> PreTrainedConfig:
    """
    Return a backbone's configuration. If it says nothing else: hidden 96, 6 layers, 4 heads; vision blocks of 64: a
    million parameters.
    """
    token_id, toy = tokenizer.convert_tokens_to_ids, TOY_BACKBONES[name]
    return toy.config(
        text_config={
            "vocab_size": -(-len(tokenizer) // 16) * 16,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "initializer_range": 0.06,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 100.0,
                "mrope_section": [4, 4, 4],
                **toy.rope,
            },
            "bos_token_id": token_id("<|endoftext|>"),
            "eos_token_id": token_id("<|im_end|>"),
            "pad_token_id": token_id("<|endoftext|>"),
            "tie_word_embeddings": True,
            **toy.text,
        },
        vision_config={
            "hidden_size": 64,
            "initializer_range": 0.06,
            "intermediate_size": 160,
            "num_heads": 4,
            "out_hidden_size": 96,
            "patch_size": PATCH_PX,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **toy.vision,
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
        trained_on=TOY_SOURCE,
    )


def make_backbone(seed: int = 0, name: str = "qwen2_5_vl") -> tuple[PreTrainedModel, ProcessorMixin]:
    """Return a randomly initialised backbone (in TOY_BACKBONES) and its processor."""
    processor = make_processor(name)
    config = make_config(processor.tokenizer, name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FAMILIES[config.model_type].model_class(config)
    model.generation_config.do_sample = False
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    return model.eval(), processor


def gazeqwen_processor(config: PreTrainedConfig, processor: ProcessorMixin) -> GazeQwenProcessor:
    """Return the processor that makes the prompts of a backbone's family, from the backbone's own."""
    parts = (processor.image_processor, processor.tokenizer, processor.video_processor)
    return GazeQwenProcessor(*parts, chat_template=processor.chat_template, base_model_type=config.model_type)


def save_backbone(folder: str | Path, model, processor) -> None:
    """Write everything that `from_pretrained(folder)` needs."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
