"""
Baselines of five families, tiny and random, saved to a folder and loaded as any model of the Hub: each with its own
tokenizer, processor and chat template, in transformers' own classes.
"""

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import BACKBONE, ROOT, tiny_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    MiniCPMV4_6Config,
    MiniCPMV4_6ImageProcessor,
    MiniCPMV4_6Processor,
    MiniCPMV4_6VideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from gazeqwen.eval import read_settings
from gazeqwen.evaluation.baselines import Baseline, BaselineItem, is_gazeqwen, video_metadata
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.pipeline.answers import option_logits
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.questions.prompts import chat_message
from gazeqwen.training.recipe import Recipe
from gazeqwen.utils.settings import read_recipe
from gazeqwen.video_gazeqwen import Clip

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl", "minicpmv4_6")

# As the families' own: VIDEO and IMAGE are where one stands.
CHAT_TEMPLATE = """\
{%- for message in messages -%}<|im_start|>{{ message['role'] }}
{% for item in message['content'] -%}
{%- if item['type'] == 'video' -%}VIDEO
{%- elif item['type'] == 'image' -%}IMAGE
{%- else -%}{{ item['text'] }}{%- endif -%}
{%- endfor -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "initializer_range": 0.3,  # random models that do attend to what they are given
    "tie_word_embeddings": False,
}


def byte_tokenizer(*special: str, **named: str) -> PreTrainedTokenizerFast:
    """Byte-level: every letter is one token, no word is. `named`: special tokens that a processor asks for by name."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special, *named.values()]
    vocabulary = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_specific_special_tokens=named,
        clean_up_tokenization_spaces=False,
    )
    fast.add_special_tokens({"additional_special_tokens": tokens})
    return fast


def chat_template(video: str, image: str) -> str:
    return CHAT_TEMPLATE.replace("VIDEO", video).replace("IMAGE", image)


def qwen3_vl():
    named = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = byte_tokenizer(*named)
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(named))
    size = {"shortest_edge": 64 * 64 * 2, "longest_edge": 64 * 64 * 2 * 100}
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(size=size, patch_size=16),
        tokenizer,
        Qwen3VLVideoProcessor(size=size),
        chat_template=chat_template(
            "<|vision_start|><|video_pad|><|vision_end|>", "<|vision_start|><|image_pad|><|vision_end|>"
        ),
    )
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 8, "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
            "initializer_range": 0.3,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return config, processor


def llava_onevision():
    tokenizer = byte_tokenizer("<image>", "<video>")
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    size = {"height": 32, "width": 32}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[32, 32]]),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=chat_template("<video>\n", "<image>\n"),
    )
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "vision_use_head": False,
        },
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=[[32, 32]],
    )
    return config, processor


def internvl():
    tokenizer = byte_tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    size = {"height": 32, "width": 32}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=chat_template("<video>\n", "<IMG_CONTEXT>\n"),
    )
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [32, 32],
            "patch_size": [8, 8],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return config, processor


def minicpmv4_6():
    """Three of its four layers are linear attention, where padding must not reach the state."""
    tokenizer = byte_tokenizer(
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        image_start_token="<image>",
        image_end_token="</image>",
        slice_start_token="<slice>",
        slice_end_token="</slice>",
        image_id_start_token="<image_id>",
        image_id_end_token="</image_id>",
    )
    sizes = {"scale_resolution": 64, "max_slice_nums": 1}
    processor = MiniCPMV4_6Processor(
        MiniCPMV4_6ImageProcessor(**sizes),
        MiniCPMV4_6VideoProcessor(**sizes),
        tokenizer,
        chat_template=chat_template("<|video_pad|>\n", "<|image_pad|>\n"),
    )
    text = {**TEXT, "num_hidden_layers": 4, "initializer_range": 0.1, "head_dim": 16}
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
    config = MiniCPMV4_6Config(
        text_config={"model_type": "qwen3_5_text", **text, **heads, "linear_value_head_dim": 8},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 112,
            "patch_size": 14,
        },
        insert_layer_id=0,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
    )
    return config, processor


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {"qwen2_5_vl": BACKBONE}
    for make in (qwen3_vl, llava_onevision, internvl, minicpmv4_6):
        config, processor = make()
        folder = found[make.__name__] = tmp_path_factory.mktemp(make.__name__)
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
        # What checkpoints ship with: settings under which text is no longer greedy.
        model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=1.5)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return found


@pytest.fixture(scope="module")
def baselines(folders):
    return {family: Baseline.from_pretrained(folder) for family, folder in folders.items()}


@pytest.fixture(params=FAMILIES)
def baseline(request, baselines):
    return baselines[request.param]


def clip(count: int, seed: int = 0, start_s: float = 0.0, step_s: float = 2.0, size: int = 112) -> Clip:
    frames = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return Clip(frames, start_s + (np.arange(count) + 0.5) * step_s, start_s, start_s + count * step_s)


def items() -> list[BaselineItem]:
    """Different lengths of clips, prompts and lists of answers; two share their number of frames, one has no clip."""
    return [
        BaselineItem(clip(4, 0), "Which?", ["A", "B", "C", "D"]),
        BaselineItem(clip(6, 1, 30.0), "What was seen before that?\nA. box\nB. cup", ["A", "B"]),
        BaselineItem(clip(4, 2), "Which object was seen for longest, and where did it go then?", ["A", "B", "C"]),
        BaselineItem(None, "Which one is most likely?", ["A", "B", "C"]),
    ]


# ------------------------------------------------------------------ every family
def test_scores_are_finite_where_answers_are_offered(baseline):
    scores = baseline.scores(items())
    assert scores.shape == (4, 4) and scores.dtype == torch.float32
    offered = torch.tensor([[True] * len(item.answers) + [False] * (4 - len(item.answers)) for item in items()])
    assert scores[offered].isfinite().all() and (scores[~offered] == float("-inf")).all()


def test_scores_depend_on_pixels_prompt_and_the_order_of_frames(baseline):
    item = items()[0]
    black = replace(item.clip, frames=np.zeros_like(item.clip.frames))
    backwards = replace(item.clip, frames=item.clip.frames[::-1].copy())
    same, *others = baseline.scores(
        [
            item,
            replace(item, clip=black),
            replace(item, clip=backwards),
            replace(item, prompt="Where?"),
            replace(item, clip=None),
        ]
    )
    torch.testing.assert_close(same, baseline.scores([item])[0], atol=1e-4, rtol=1e-4)
    for other in others:
        assert (other - same).abs().max() > 1e-2


def test_a_batch_gives_what_each_item_gives_alone(baseline):
    together = baseline.scores(items())
    for item, row in zip(items(), together, strict=True):
        alone = baseline.scores([item])[0]
        torch.testing.assert_close(row[: len(alone)], alone, atol=1e-4, rtol=0)
    assert baseline.generate(items(), 6) == [baseline.generate([item], 6)[0] for item in items()]


def test_scores_are_the_logits_of_an_ordinary_forward(baseline):
    item = items()[0]
    inputs = baseline.inputs([item])
    with torch.no_grad():
        logits = baseline.model(**inputs).logits[0, -1]
    tokens = baseline.processor.tokenizer.convert_tokens_to_ids(["A", "B", "C", "D"])
    torch.testing.assert_close(baseline.scores([item])[0], logits[tokens], atol=1e-4, rtol=0)


def test_generated_text_is_new_greedy_and_without_special_tokens(baseline):
    (text,) = baseline.generate([items()[0]], 8)
    inputs = baseline.inputs([items()[0]])
    ids = inputs["input_ids"]
    prompt_length = ids.shape[1]
    for _ in range(8):  # greedy decoding spelt out, without a cache
        grown = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in inputs:
            types = inputs["mm_token_type_ids"]
            grown["mm_token_type_ids"] = torch.nn.functional.pad(types, (0, ids.shape[1] - prompt_length))
        if "position_ids" in inputs:
            positions = inputs["position_ids"]
            more = torch.arange(1, ids.shape[1] - prompt_length + 1)
            grown["position_ids"] = torch.cat([positions, positions[..., -1:] + more], dim=-1)
        with torch.no_grad():
            best = baseline.model(**grown).logits[0, -1].argmax()
        if best == baseline.processor.tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, best.view(1, 1)], dim=1)
    tokenizer = baseline.processor.tokenizer
    assert text == tokenizer.decode(ids[0, prompt_length:], skip_special_tokens=True).strip()
    assert not any(token in text for token in tokenizer.all_special_tokens)
    assert not text.startswith("Which")


def frames_seen(family: str, baseline: Baseline, inputs) -> int:
    """From the pixels, checked against the placeholders in the prompt."""
    processor, config = baseline.processor, baseline.model.config
    ids = inputs["input_ids"]
    if family.startswith("qwen"):
        steps, height, width = inputs["video_grid_thw"][0].tolist()
        assert int((ids == config.video_token_id).sum()) == steps * height * width // 4
        return steps * processor.video_processor.temporal_patch_size
    if family == "internvl":
        frames = len(inputs["pixel_values"])
        assert int((ids == config.image_token_id).sum()) == frames * processor.image_seq_length
        return frames
    if family == "minicpmv4_6":
        sizes = inputs["target_sizes_videos"]  # (frames, 2) patches
        assert int((ids == config.video_token_id).sum()) == int(sizes.prod(-1).sum()) // 16
        return len(sizes)
    frames = inputs["pixel_values_videos"].shape[1]
    assert int((ids == config.video_token_id).sum()) == frames * 4 + 1  # 2x2 after pooling, and a newline
    return frames


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [2, 4, 10])
def test_all_frames_given_are_seen_and_no_other(family, count, baselines):
    baseline = baselines[family]
    inputs = baseline.inputs([BaselineItem(clip(count), "Which?", ["A"])])
    assert frames_seen(family, baseline, inputs) == count


def test_text_only_has_no_video_in_it(baseline):
    inputs = baseline.inputs([items()[3]])
    assert not [name for name in inputs if "pixel" in name or "video" in name]
    text = baseline.processor.tokenizer.decode(inputs["input_ids"][0])
    assert text == "<|im_start|>user\nWhich one is most likely?<|im_end|>\n<|im_start|>assistant\n"


def test_dtype_is_the_models_and_times_stay_exact(folders):
    baseline = Baseline.from_pretrained(folders["qwen2_5_vl"], dtype=torch.bfloat16)
    inputs = baseline.inputs([BaselineItem(clip(4, step_s=1.37), "Which?", ["A"])])
    assert inputs["pixel_values_videos"].dtype == torch.bfloat16
    assert inputs["second_per_grid_ts"].tolist() == pytest.approx([2.74], abs=1e-6)
    assert baseline.scores(items()).dtype == torch.float32


# ------------------------------------------------------------------ one family
def test_plain_qwen2_5_vl_is_gazeqwens_base_model(baselines):
    """The row `Qwen2.5-VL` and GazeQwen without gaze are the same inputs and logits, also on uneven times."""
    frames, times = clip(6).frames, np.array([0.3, 0.9, 4.0, 6.5, 6.6, 9.9])
    uneven = Clip(frames, times, 0.0, 10.0)
    item = BaselineItem(uneven, "Which?", ["A", "B"])
    processor, baseline = GazeQwenProcessor.from_base(str(BACKBONE)), baselines["qwen2_5_vl"]
    text = processor.apply_chat_template(chat_message(item.prompt), add_generation_prompt=True)
    theirs = processor(text=text, videos=[uneven])
    ours = baseline.inputs([item])
    assert set(ours) == {*theirs, "position_ids"}
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0, check_dtype=False)
    tokens = processor.tokenizer.convert_tokens_to_ids(["A", "B"])
    model = GazeQwenForConditionalGeneration.from_base(str(BACKBONE), resampler_type="none")
    with torch.no_grad():
        torch.testing.assert_close(baseline.scores([item]), option_logits(model, theirs, [tokens]))


def test_times_in_the_prompt_are_the_frames_own(baselines):
    """Qwen3-VL writes the time of each pair of frames into the prompt: true on uneven times, from the clip's begin."""
    baseline = baselines["qwen3_vl"]
    uneven = Clip(clip(4).frames, np.array([59.5, 61.0, 65.0, 69.0]), 60.0, 70.0)
    ids = baseline.inputs([BaselineItem(uneven, "Which?", ["A"])])["input_ids"][0]
    text = baseline.processor.tokenizer.decode(ids)
    assert [part.split(" seconds>")[0] for part in text.split("<")[1:] if " seconds>" in part] == ["0.5", "7.0"]


def test_pixels_of_long_videos_are_bounded_where_a_checkpoint_does_not_say(baselines):
    """Qwen2.5-VL's own checkpoints do not; its authors' code and GazeQwenProcessor bound them."""
    processor = AutoProcessor.from_pretrained(BACKBONE)
    for said, used in ((None, True), (False, False)):
        processor.video_processor.cap_pixels_per_frame = said
        Baseline(baselines["qwen2_5_vl"].model, processor)
        assert processor.video_processor.cap_pixels_per_frame is used


def test_metadata_is_true():
    metadata = video_metadata(Clip(clip(3).frames, np.array([29.9, 31.25, 33.3]), 30.0, 40.0))
    assert metadata.timestamps == [0.0, 1.25, 3.3] and metadata.duration == 10.0
    assert metadata.sampled_fps == pytest.approx(0.3) and (metadata.height, metadata.width) == (112, 112)


def test_a_template_that_can_think_is_told_not_to(folders):
    baseline = Baseline.from_pretrained(folders["llava_onevision"])
    item = items()[0]
    plain, ids = baseline.prompt_text(item), baseline.inputs([item])["input_ids"]
    baseline.processor.chat_template += "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    assert baseline.prompt_text(item) == plain
    assert torch.equal(baseline.inputs([item])["input_ids"], ids)
    assert "<think>" in baseline.processor.apply_chat_template(chat_message("Which?"), add_generation_prompt=True)


def test_answers_that_cannot_be_scored_by_a_token_are_refused(folders, baselines):
    with pytest.raises(ValueError, match="'Yes' into 3 tokens"):
        baselines["internvl"].scores([BaselineItem(clip(2), "Seen?", ["Yes", "No"])])
    with pytest.raises(ValueError, match="no answers offered to 'Seen\\?'"):
        baselines["internvl"].scores([BaselineItem(clip(2), "Seen?")])
    baseline = Baseline.from_pretrained(folders["llava_onevision"])
    baseline.processor.chat_template += "ASSISTANT:"
    with pytest.raises(ValueError, match="ends in .*ASSISTANT:.*score generated text"):
        baseline.scores(items())
    texts = baseline.generate(items(), 2)
    assert len(texts) == 4 and not any(text.startswith(":") for text in texts)  # the prompt's last token


# ------------------------------------------------------------------ what is no baseline
def test_is_gazeqwen(tmp_path, folders):
    tiny_config().save_pretrained(tmp_path)
    assert is_gazeqwen(tmp_path) and not any(is_gazeqwen(folder) for folder in folders.values())
    with pytest.raises(ValueError, match="a GazeQwen, expected a video-text model"):
        Baseline.from_pretrained(tmp_path)


def test_a_language_model_is_refused(tmp_path):
    LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: model_type 'llama' takes no images or video, expected a video"):
        Baseline.from_pretrained(tmp_path)


def test_an_image_model_is_refused(tmp_path):
    LlavaConfig().save_pretrained(tmp_path)
    tokenizer = byte_tokenizer("<image>")
    template = chat_template("<video>", "<image>")
    LlavaProcessor(CLIPImageProcessor(), tokenizer, chat_template=template).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=f"{tmp_path}: cannot be asked about video: its LlavaProcessor lacks video_pr"
    ):
        Baseline.from_pretrained(tmp_path)


def test_a_model_without_a_chat_template_is_refused(tmp_path):
    config, processor = llava_onevision()
    config.save_pretrained(tmp_path)
    processor.chat_template = None
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="LlavaOnevisionProcessor lacks chat_template"):
        Baseline.from_pretrained(tmp_path)


def test_code_of_a_repository_is_not_run_unasked(tmp_path):
    marker = tmp_path / "was_run"
    (tmp_path / "configuration_own.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not is_gazeqwen(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: expected a video-text model.*trust_remote_code=True"):
        Baseline.from_pretrained(tmp_path)
    assert not marker.exists()


# ------------------------------------------------------------------ recipes
RECIPES = sorted((ROOT / "recipes" / "baselines").glob("*.sh"))


def test_there_are_recipes():
    assert {"qwen2_5_vl_7b.sh", "internvl3_5_8b.sh"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_one_command(path, monkeypatch):
    text = path.read_text(encoding="utf-8").replace("\\\n", "")  # as a shell joins lines
    command = shlex.split(text, comments=True)
    assert command[:3] == ["accelerate", "launch", "eval.py"]
    monkeypatch.setattr("sys.argv", command[2:])
    parsed = (
        read_settings()
    )  # eval.py's own: an option that it does not have ends the test, or a value that is not one
    assert parsed.model.count("/") == 1 and parsed.output == f"results/{path.stem}.json"
    assert parsed.gaze == ["none", "overlay", "text"]
    # As GazeQwen is asked, so that rivals do not lose by form.
    ours = read_recipe(Recipe, ROOT / "recipes" / "gazeqwen-7b.yaml", []).model
    assert (parsed.snap_s, parsed.prompt_style) == (ours.snap_s, ours.prompt_style) == (1.0, "streamgaze")
    assert parsed.scoring == "logits" and parsed.scorer == "strict"
    fewer = {"llava_onevision_7b", "minicpm_v_4_6"}  # the README says why
    assert (parsed.num_frames, parsed.max_frames) == ((32, None) if path.stem in fewer else (None, ours.max_frames))


def test_every_recipe_is_explained_and_every_row_accounted_for():
    readme = (ROOT / "recipes" / "baselines" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in RECIPES if path.name not in readme] == []
    published = json.loads((ROOT / "results" / "published.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in published["table_1"]["rows"] if row["method"] not in readme] == []
