"""The tiny backbone of the toy world: real transformers classes, packed pretraining, what the weights can do."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from gazeqwen.backbones_gazeqwen import FAMILIES, decoder_of, family_of, positions_of, token_types, trained_positions
from gazeqwen.questions.prompts import OPTION_LETTERS, format_alert, format_question
from gazeqwen.toyworld.backbone import (
    ANSWER_WORDS,
    BACKBONE_DIR,
    TOY_BACKBONES,
    gazeqwen_processor,
    make_backbone,
    save_backbone,
)
from gazeqwen.toyworld.highlights import Drawer, make_clip
from gazeqwen.toyworld.measure import answer_letters, measure
from gazeqwen.toyworld.packing import GRID_THW, VIDEO_TOKENS, Batches, Packer, packed_forward, patches_of
from gazeqwen.toyworld.pretrain import ALL_KINDS, Phase, imitation_loss, start_from, train
from gazeqwen.toyworld.questions import FRAMES, SCENE_TASKS, TASK_NAMES
from gazeqwen.toyworld.world import FRAME_PX, Scene
from gazeqwen.video_gazeqwen import Clip

FAMILIES_OF_SHAPES = ("qwen2_5_vl", "qwen3_vl")  # backbones of the first world


@pytest.fixture(scope="module", params=FAMILIES_OF_SHAPES)
def backbone(request):
    return make_backbone(0, request.param)


def test_tokenizer(backbone):
    tokenizer = backbone[1].tokenizer
    assert len(tokenizer) <= 1024
    for word in ANSWER_WORDS:
        assert len(tokenizer.encode(f" {word}")) == 1 and len(tokenizer.encode(word)) == 1
    for letter in OPTION_LETTERS:
        (one,) = tokenizer.encode(letter)
        assert tokenizer.encode(f"<|im_start|>assistant\n{letter}")[-1] == one
    for token in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"):
        assert len(tokenizer.encode(token)) == 1
    for text in ("Zebra crossing, 日本 – é\n\tok {a, b}?", "Which object is the user currently gazing at?"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_chat_template_is_qwens_format(backbone):
    content = [{"type": "video"}, {"type": "text", "text": "Hello"}]
    messages = [{"role": "system", "content": "You are"}, {"role": "user", "content": content}]
    text = backbone[1].apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>system\nYou are<|im_end|>\n<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Hello"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


def test_backbone_saves_and_loads(backbone, tmp_path):
    model, processor = backbone
    save_backbone(tmp_path, model, processor)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    frames = np.random.default_rng(0).integers(0, 255, (FRAMES, FRAME_PX, FRAME_PX, 3), dtype=np.uint8)
    item = (frames, 8.0, "", "What color is this object?", ["red", "blue", "green", "white"])
    assert answer_letters(model, processor, [item]) == answer_letters(loaded, again, [item])
    for (name, a), (_, b) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 10e6


def plain_logits(model, drawn: dict, highlights: dict | None = None) -> torch.Tensor:
    """
    What the full model answers to each packed question on its own; hooks on its layers add the `highlights`, see
    `packed_forward`.
    """
    rows, clips = len(drawn["tail_ids"]), len(drawn["prefix_ids"])
    each = rows // clips
    logits = []
    for row in range(rows):
        clip = row // each
        length = int(drawn["last"][row]) + 1
        prefix = drawn["prefix_ids"][clip][drawn["prefix_mask"][clip]]
        ids = torch.cat([prefix, drawn["tail_ids"][row, :length]])[None]
        patches = drawn["pixels"][clip * 4 * VIDEO_TOKENS : (clip + 1) * 4 * VIDEO_TOKENS]
        types, grid = token_types(model.config, ids), drawn["grid_thw"][clip : clip + 1]
        second = drawn["seconds_per_step"][clip : clip + 1]
        positions, _ = trained_positions(model.config, types, video_grid_thw=grid, second_per_grid_ts=second)
        hooks = [
            decoder_of(model)
            .layers[layer]
            .register_forward_hook(add_vector(vector, drawn["heat"][clip], types[0] == 2))
            for layer, vector in (highlights or {}).items()
        ]
        output = model(
            input_ids=ids,
            position_ids=positions,
            pixel_values_videos=patches,
            video_grid_thw=grid,
            mm_token_type_ids=types,
            logits_to_keep=1,
        )
        logits.append(output.logits[0, -1])
        for hook in hooks:
            hook.remove()
    return torch.stack(logits)


def add_vector(vector, heat, is_video):
    """A forward hook that adds a vector, as strongly as `heat` (96,) says, to the video tokens of a layer's output."""

    def hook(module, args, output):
        added = torch.zeros_like(output)
        added[0, is_video] = heat[:, None] * vector
        return output + added

    return hook


@torch.no_grad()
def test_packed_questions_equal_plain_forwards(backbone):
    model, processor = backbone
    batches = Batches(model.config, processor, seed=3, clips=3, questions=3, kinds=ALL_KINDS)
    batches.vector_share = 0.7
    drawn = batches.draw()
    assert (drawn["seconds_per_step"] % 0.5 != 0).any()  # times between two positions
    # Prompts that tell the time differ in length.
    assert bool(drawn["prefix_mask"].all()) != family_of(model.config).seconds_in_text
    plain = plain_logits(model, drawn)
    assert (packed_forward(model, drawn)[0] - plain).abs().max() < 1e-5
    vectors = {layer: torch.randn(96, generator=torch.Generator().manual_seed(layer)) for layer in (0, 1, 3)}
    highlighted = plain_logits(model, drawn, vectors)
    assert (packed_forward(model, drawn, highlights=vectors)[0] - highlighted).abs().max() < 1e-5
    assert (plain - highlighted).abs().max() > 1e-2
    if family_of(model.config).has_deepstack:
        for merger in model.model.visual.deepstack_merger_list:
            merger.norm.bias.add_(1)
        assert (packed_forward(model, drawn)[0] - plain).abs().max() > 1e-2
        assert (packed_forward(model, drawn)[0] - plain_logits(model, drawn)).abs().max() < 1e-5
        for merger in model.model.visual.deepstack_merger_list:
            merger.norm.bias.sub_(1)


def test_patches_equal_the_processors(backbone):
    processor = backbone[1]
    video = np.random.default_rng(1).integers(0, 255, (2, FRAMES, FRAME_PX, FRAME_PX, 3), dtype=np.uint8)
    theirs = processor.video_processor(videos=list(video), return_tensors="pt", do_sample_frames=False)
    ours = patches_of(video.reshape(-1, *video.shape[2:]), processor.video_processor)
    assert (ours - theirs["pixel_values_videos"]).abs().max() < 1e-5


def test_tails_are_the_chat_template(backbone):
    """Prefix + tail is, token by token, what `GazeQwenProcessor` makes of the same message and clip."""
    model, processor = backbone
    packer = Packer(model.config, processor, Scene, GRID_THW, word_dropout=0.0)
    rng = np.random.default_rng(0)
    view, kinds = make_clip(rng), set()
    drawer, prefix = Drawer(rng, view), packer.prefix([view], ["These places are marked: (0.25, 0.50).\n"])
    frames = np.zeros((FRAMES, FRAME_PX, FRAME_PX, 3), np.uint8)
    clip = Clip(frames, view.frame_times_s, view.start_s, view.time_s)
    prompts = gazeqwen_processor(model.config, processor)
    for _ in range(40):
        question = drawer.question(ALL_KINDS)
        kinds.add(question.kind)
        ids, places = packer._tail(question, rng)
        alert = question.options == ["Yes", "No"]
        text = format_alert(question.text)[0] if alert else format_question(question.text, question.options)
        text = f"These places are marked: (0.25, 0.50).\n{text}"
        message = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]
        whole = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        inputs = prompts(text=whole, videos=[clip])
        assert prefix["prefix_ids"][0].tolist() + ids == inputs["input_ids"][0].tolist()
        positions, start = positions_of(model.config, inputs)[:, 0], int(prefix["tail_start"][0])
        assert positions[:, : -len(ids)].equal(prefix["prefix_position"][:, 0])
        assert positions[:, -len(ids) :].equal(torch.arange(start, start + len(ids)).expand(3, -1))
        ends = [processor.tokenizer.decode([ids[p]]).strip() for p in places]
        assert all(option.endswith(end) and end for option, end in zip(question.options, ends, strict=True))
    assert len(kinds) > 6


def test_pretraining_never_sees_gaze_words_in_its_questions():
    rng = np.random.default_rng(0)
    for _ in range(100):
        text = Drawer(rng, make_clip(rng)).question(ALL_KINDS).text
        assert not any(word in text for word in ("gaz", "look", "fixat", "eye", "stare"))


def test_pretraining_learns_something_in_seconds():
    model, processor = make_backbone(0)
    torch.set_num_threads(1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    record = train(
        model,
        processor,
        [Phase("vision", 4, {}, clips=4), Phase("q", 3, ALL_KINDS, 2, 2, vector_share=0.5, blind_share=1)],
        seed=0,
        log_every=1000,
    )
    assert record["vision"]["steps"] == 4 and record["q"]["steps"] == 3
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert sum(not torch.equal(before[name], p) for name, p in model.named_parameters()) == len(before)


def test_another_family_starts_from_a_backbone():
    """The decoder answers a text nearly as the other's; the vision tower learns to give the other's embeddings."""
    other = AutoModelForImageTextToText.from_pretrained(BACKBONE_DIR).eval()
    others_tokenizer = AutoProcessor.from_pretrained(BACKBONE_DIR).tokenizer
    model, processor = make_backbone(0, "qwen3_vl")
    words = sorted(others_tokenizer.get_vocab())

    @torch.no_grad()
    def text_logits(of, tokenizer) -> torch.Tensor:
        ids = tokenizer("Which option says red? A. blue B. red", return_tensors="pt")["input_ids"]
        positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
        return of(ids, position_ids=positions).logits[0, -1, tokenizer.convert_tokens_to_ids(words)]

    def likeness() -> float:
        pair = text_logits(model, processor.tokenizer), text_logits(other, others_tokenizer)
        return float(torch.corrcoef(torch.stack(pair))[0, 1])

    @torch.no_grad()
    def unlike_tower() -> float:
        drawn = Batches(model.config, processor, 9, 2, 1, {}).draw(vision_only=True)
        towers = model.model.visual, other.model.visual
        return float(
            imitation_loss(*(t(drawn["pixels"], grid_thw=drawn["grid_thw"]).pooler_output for t in towers))[0]
        )

    assert likeness() < 0.3
    start_from(model, processor, other, BACKBONE_DIR)
    assert likeness() > 0.99
    before = unlike_tower()
    train(model, processor, [Phase("vision", 12, {}, clips=2, lr=2.0)], seed=0, tower=other.model.visual)
    assert unlike_tower() < 0.95 * before
    assert likeness() > 0.99  # the decoder has not been touched


@pytest.mark.parametrize("family", FAMILIES_OF_SHAPES)
def test_committed_backbone_answers_with_a_ring(family):
    """Right with a ring under the exact gaze wording; without one at chance where only gaze can tell."""
    folder = TOY_BACKBONES[family].folder
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    report = json.loads((folder / "pretraining.json").read_text())
    assert family_of(model.config) is FAMILIES[family]
    assert sum(p.stat().st_size for p in folder.iterdir()) < 10e6
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    about_gaze = [task for task in TASK_NAMES if task not in SCENE_TASKS and not task.startswith("proactive")]
    result = measure(model, processor, seed=1, videos=12, most=6, tasks=about_gaze, verbs=False)
    total = sum(row["answers"] for row in result.values())
    ring, plain = (
        sum(row[condition] * row["answers"] for row in result.values()) / total
        for condition in ("ring, gaze wording", "no mark, gaze wording")
    )
    assert ring > 0.85 and plain < 0.45, result
