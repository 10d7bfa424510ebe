"""The toy world: fair by construction, reproducible, in StreamGaze's layout; and its tiny backbone."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from gazeqwen.streamgaze import OPTION_LETTERS, format_question
from gazeqwen.toyworld.backbone import ANSWER_WORDS, BACKBONE_DIR, make_backbone, save_backbone
from gazeqwen.toyworld.generate import generate, make_entries, make_video
from gazeqwen.toyworld.highlights import make_clip, make_question
from gazeqwen.toyworld.measure import answer, measure
from gazeqwen.toyworld.packing import VIDEO_TOKENS, Batches, packed_forward
from gazeqwen.toyworld.pretrain import ALL_KINDS, Phase, train
from gazeqwen.toyworld.questions import ATTRIBUTE, EASY, HARD, NEVER, TASKS, step_shares
from gazeqwen.toyworld.viewer import COLUMNS
from gazeqwen.toyworld.world import (
    CELL_PX,
    COLORS,
    FPS,
    FRAME_PX,
    KINDS,
    NOUN_OF,
    Highlight,
    draw_frame,
    frame_times_s,
    make_scene,
    write_video,
)
from gazeqwen.video_gazeqwen import read_frames

KIND_OF = {noun: kind for kind, noun in NOUN_OF.items()}
VIDEOS = 400


@pytest.fixture(scope="module")
def world():
    """400 videos without their pictures: {name: (scene, fixations, questions)} and the entries of each task."""
    made = {f"{i}.mp4": make_video(5, "train", i) for i in range(VIDEOS)}
    entries = make_entries(5, "train", {name: questions for name, (_, _, questions) in made.items()}, per_task=4)
    return made, entries


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return generate(tmp_path_factory.mktemp("toy") / "a", train=3, val=1, test=2, seed=1, progress=False)


@pytest.fixture(scope="module")
def backbone():
    return make_backbone(0)


def options_of(entry: dict) -> list[str]:
    return [option[3:] for option in entry["questions"][0]["options"]]


def answer_of(entry: dict) -> str:
    return options_of(entry)["ABCD".index(entry["questions"][0]["answer"])]


def near_chance(hits: int, count: int) -> bool:
    """Within four standard errors of 25 %."""
    return abs(hits / count - 0.25) < 4 * (0.25 * 0.75 / count) ** 0.5


# --- fairness --------------------------------------------------------------------------------------------------------


def test_there_are_enough_questions_of_every_task(world):
    counts = {task: len(pairs) for task, pairs in world[1].items()}
    assert set(counts) == set(TASKS)
    assert min(counts.values()) > 100, counts


def test_letters_are_balanced(world):
    for task, pairs in world[1].items():
        letters = Counter(entry["questions"][0]["answer"] for entry, _ in pairs)
        assert max(letters.values()) - min(letters[letter] for letter in "ABCD") <= 1, (task, letters)


def test_identification_options_are_visible_candidates_of_the_right_likeness(world):
    made, entries = world
    for task in (EASY, HARD):
        for entry, q in entries[task]:
            scene, _, _ = made[entry["video_path"]]
            names = {scene.objects[i].noun for i in scene.visible(q["time_s"])}
            options = options_of(entry)
            assert set(options) <= names and len(set(options)) == 4
            colors, shapes = (Counter(KIND_OF[noun][i] for noun in options) for i in (0, 1))
            if task == EASY:
                assert len(colors) == len(shapes) == 4
            else:
                assert len(colors) == 1 or len(shapes) == 1
            assert answer_of(entry) == entry["questions"][0]["object"]


def test_attribute_options_are_shown_by_equally_many_objects(world):
    made, entries = world
    for entry, q in entries[ATTRIBUTE]:
        scene, _, _ = made[entry["video_path"]]
        question = entry["questions"][0]
        shown = Counter(getattr(scene.objects[i], question["attribute_type"]) for i in scene.visible(q["time_s"]))
        counts = {shown[value] for value in options_of(entry)}
        assert len(counts) == 1 and counts != {0}


def test_never_options_are_visible_equally_long_and_three_were_fixated(world):
    made, entries = world
    for entry, q in entries[NEVER]:
        scene, fixations, _ = made[entry["video_path"]]
        of_noun = {thing.noun: i for i, thing in enumerate(scene.objects)}
        looked_at = {f.object_index for f in fixations if f.start_s < q["time_s"]}
        for noun in options_of(entry):
            assert scene.objects[of_noun[noun]].visible(0, q["time_s"])
            assert (of_noun[noun] in looked_at) == (noun != answer_of(entry))


def test_text_alone_is_at_chance(world):
    """The best word, learned on one half of the videos, says nothing about the other half; nor does any position."""
    for task, pairs in world[1].items():
        offered, right = Counter(), Counter()
        for entry, _ in pairs[::2]:
            offered.update(options_of(entry))
            right[answer_of(entry)] += 1
        hits = 0
        for entry, _ in pairs[1::2]:
            guess = max(options_of(entry), key=lambda word: right[word] / max(offered[word], 1))
            hits += guess == answer_of(entry)
        assert near_chance(hits, len(pairs[1::2])), (task, hits, len(pairs))


@pytest.mark.parametrize(
    "rank", ["visible longest", "visible shortest", "moves most", "largest", "leftmost", "topmost"]
)
def test_the_video_without_gaze_is_at_chance(world, rank):
    """Readers who know everything about the scene up to the question time, but not the gaze."""
    made, entries = world

    def score(thing, time_s):
        x, y = thing.position_px(time_s)
        path = thing.position_px(np.linspace(0, time_s, 20))
        return {
            "visible longest": -thing.appears_s,
            "visible shortest": thing.appears_s,
            "moves most": float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum()),
            "largest": thing.radius_px,
            "leftmost": -x,
            "topmost": -y,
        }[rank]

    for task, pairs in entries.items():
        hits, count = 0.0, 0
        for entry, q in pairs:
            scene = made[entry["video_path"]][0]
            if task == ATTRIBUTE:
                field = entry["questions"][0]["attribute_type"]
                owners = {
                    value: [o for o in scene.objects if o.visible(q["time_s"]) and getattr(o, field) == value]
                    for value in options_of(entry)
                }
                scores = {value: max(score(o, q["time_s"]) for o in things) for value, things in owners.items()}
            else:
                of_noun = {o.noun: o for o in scene.objects}
                scores = {noun: score(of_noun[noun], q["time_s"]) for noun in options_of(entry)}
            best = [option for option, value in scores.items() if value == max(scores.values())]
            hits += (answer_of(entry) in best) / len(best)
            count += 1
        assert near_chance(hits, count), (task, rank, hits / count)


def test_gaze_answers_every_question(world):
    """Positive control: whoever reads the fixation table, cut at the question time, and the scene is always right."""
    made, entries = world
    for task, pairs in entries.items():
        for entry, q in pairs:
            scene, fixations, _ = made[entry["video_path"]]
            time_s = q["time_s"]
            last = step_shares(fixations, time_s)[-1]
            now = max(last, key=last.get)
            if task in (EASY, HARD):
                assert scene.objects[now].noun == answer_of(entry)
            elif task == ATTRIBUTE:
                assert getattr(scene.objects[now], entry["questions"][0]["attribute_type"]) == answer_of(entry)
            else:
                seen = {i for f in fixations for i in [f.object_index] if f.start_s < time_s}
                left = [noun for noun in options_of(entry) if noun not in {scene.objects[i].noun for i in seen}]
                assert left == [answer_of(entry)]


def test_time_stamps_lie_inside_the_fixation_asked_about(world):
    made, entries = world
    for task, pairs in entries.items():
        for entry, q in pairs:
            fixation = made[entry["video_path"]][1][q["fixation"]]
            assert fixation.start_s + 1 <= q["time_s"] <= fixation.end_s < q["time_s"] + 1, task
            assert q["time_s"] <= made[entry["video_path"]][0].duration_s


def test_fixations_lie_on_the_object_they_claim(world):
    for scene, fixations, _ in world[0].values():
        assert all(a.end_s < b.start_s for a, b in pairwise(fixations))
        for f in fixations:
            times = np.linspace(f.start_s, f.end_s, 20)
            thing = scene.objects[f.object_index]
            assert thing.visible(f.start_s, f.end_s)
            place = np.array([f.x_norm, f.y_norm]) * FRAME_PX
            assert np.linalg.norm(place - thing.position_px(times).mean(axis=0)) < 9
            distances = [np.linalg.norm(o.position_px(times).mean(axis=0) - place) for o in scene.objects]
            assert int(np.argmin(distances)) == f.object_index


def test_there_are_gaps_moves_and_objects_that_come_and_go(world):
    made = world[0].values()
    gaps = [b.start_s - a.end_s for _, fixations, _ in made for a, b in pairwise(fixations)]
    assert min(gaps) > 0 and np.mean(np.array(gaps) > 0.3) > 0.1
    things = [(scene, thing) for scene, _, _ in made for thing in scene.objects]
    assert sum(thing.appears_s > 0 for _, thing in things) > 50
    assert sum(thing.vanishes_s < scene.duration_s for scene, thing in things) > 50
    assert sum(len(thing.waypoints) > 1 for _, thing in things) > 200
    assert {len(scene.objects) for scene, _, _ in made} == {4, 5, 6, 7}


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_same_seed_writes_the_same_world(folder, tmp_path):
    again = generate(tmp_path / "b", train=3, val=1, test=2, seed=1, progress=False)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    for file in files:
        if file.suffix == ".mp4":
            times = np.arange(5) / FPS
            assert (read_frames(folder / file, times)[0] == read_frames(again / file, times)[0]).all()
        else:
            assert (folder / file).read_bytes() == (again / file).read_bytes(), file
    other = generate(tmp_path / "c", train=3, val=1, test=2, seed=2, progress=False)
    assert any((folder / f).read_bytes() != (other / f).read_bytes() for f in files if f.suffix == ".csv")


def test_layout_and_schema(folder):
    splits = json.loads((folder / "splits.json").read_text())
    assert {k: len(v) for k, v in splits.items()} == {"train": 3, "val": 1, "test": 2}
    names = {name for split in splits.values() for name in split}
    assert len(names) == 6
    assert {p.name for p in (folder / "videos/original_video").iterdir()} == names
    assert {p.stem for p in (folder / "qa").iterdir()} == set(TASKS)
    extras = {
        EASY: {"object"},
        HARD: {"object"},
        ATTRIBUTE: {"attribute_type", "object_name"},
        NEVER: {"answer_object"},
    }
    for task in TASKS:
        for entry in json.loads((folder / "qa" / f"{task}.json").read_text()):
            assert set(entry) == {"video_path", "response_time", "video_categories", "questions"}
            assert entry["video_path"] in names
            (question,) = entry["questions"]
            common = {"question", "time_stamp", "answer", "options", "task_type", "required_ability"}
            assert set(question) == common | extras[task]
            assert question["task_type"] == task
            assert [option[:3] for option in question["options"]] == ["A. ", "B. ", "C. ", "D. "]
            minutes, seconds = question["time_stamp"].split(":")
            assert len(minutes) == len(seconds) == 2
            assert entry["response_time"].endswith(f"- {question['time_stamp']}]")
    for name in names:
        stem = name.removesuffix(".mp4")
        lines = (folder / f"metadata/toyworld/{stem}/{stem}_fixation_filtered.csv").read_text().splitlines()
        assert lines[0].split(",") == list(COLUMNS)
        rows = np.array([[float(v) for v in line.split(",")] for line in lines[1:]])
        assert len(rows) and (rows[:, 2:4] >= 0).all() and (rows[:, 2:4] < 1).all() and (rows[:, 4] > 0).all()
        assert np.allclose(rows[:, 1] - rows[:, 0], rows[:, 8])


def test_the_release_fixation_table_has_the_same_columns():
    real = Path("/work/shared/real/OP03-R01-PastaSalad_fixation_filtered.csv")
    if not real.exists():
        pytest.skip("the release's sample is not on this machine")
    assert real.read_text().splitlines()[0] == ",".join(COLUMNS)


def test_videos_decode_to_the_scene(folder):
    """Constant rate, 112x112, and at every object's centre its own colour (within what h264 leaves of it)."""
    for split, index in (("train", 0), ("test", 1)):
        scene, _, _ = make_video(1, split, index)
        with av.open(str(folder / f"videos/original_video/toy-{split}-{index:04d}.mp4")) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
            frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        assert np.allclose([t for t, _ in frames], frame_times_s(scene))
        assert 8 <= len(frames) / FPS <= 14
        for time_s, picture in frames[:: FPS // 2]:
            assert picture.shape == (FRAME_PX, FRAME_PX, 3)
            assert abs(picture.astype(float) - draw_frame(scene, time_s)).mean() < 4
            for i in scene.visible(time_s):
                thing = scene.objects[i]
                x, y = thing.position_px(time_s).round().astype(int)
                seen = picture[y - 1 : y + 2, x - 1 : x + 2].mean(axis=(0, 1))
                nearest = min(COLORS, key=lambda c: np.abs(seen - np.array(COLORS[c])).sum())
                assert nearest == thing.color


def test_every_kind_has_one_noun_and_its_own_look():
    assert len(KINDS) == len(set(NOUN_OF.values())) == 24
    scene = make_scene(np.random.default_rng(0))
    with_ring = draw_frame(scene, 4.0, [(scene.visible(4.0)[0], Highlight())])
    x, y = scene.objects[scene.visible(4.0)[0]].position_px(4.0)
    changed = np.argwhere(np.any(with_ring != draw_frame(scene, 4.0), axis=-1))
    assert len(changed) and np.abs(changed - [y, x]).max() < CELL_PX


def test_bad_arguments_are_refused(tmp_path, folder):
    with pytest.raises(ValueError, match="at least one video"):
        generate(tmp_path / "x", 0, 0, 0)
    with pytest.raises(ValueError, match="negative"):
        generate(tmp_path / "x", 3, -1, 0)
    with pytest.raises(FileExistsError, match="already holds"):
        generate(folder, 1, 1, 1)
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "x.mp4", [])


# --- backbone --------------------------------------------------------------------------------------------------------


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
    loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    frames = np.random.default_rng(0).integers(0, 255, (8, FRAME_PX, FRAME_PX, 3), dtype=np.uint8)
    item = (frames, 8.0, "What color is this object?", ["red", "blue", "green", "white"])
    assert answer(model, processor, [item]) == answer(loaded, again, [item])
    for (name, a), (_, b) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 10e6


def plain_logits(model, processor, batch: Batches, drawn: dict) -> torch.Tensor:
    """What the full model answers to each packed question on its own, through its own position ids."""
    rows, clips = len(drawn["tail_ids"]), len(drawn["prefix_ids"])
    each = rows // clips
    logits = []
    for row in range(rows):
        clip = row // each
        length = int(drawn["last"][row]) + 1
        ids = torch.cat([drawn["prefix_ids"][clip], drawn["tail_ids"][row, :length]])[None]
        patches = drawn["pixels"][clip * 4 * VIDEO_TOKENS : (clip + 1) * 4 * VIDEO_TOKENS]
        # the time between temporal steps, back from the second step's position (positions are half seconds)
        step = drawn["prefix_position"][0, clip]
        span_s = (step[-1] - step[4]).item() / 3 / 2 + 1e-3
        output = model(
            input_ids=ids,
            pixel_values_videos=patches,
            video_grid_thw=drawn["grid_thw"][clip : clip + 1],
            second_per_grid_ts=torch.tensor([span_s]),
            mm_token_type_ids=2 * (ids == model.config.video_token_id).long(),
            logits_to_keep=1,
        )
        logits.append(output.logits[0, -1])
    return torch.stack(logits)


@torch.no_grad()
def test_packed_questions_equal_plain_forwards(backbone):
    model, processor = backbone
    batches = Batches(processor, seed=3, clips=2, questions=3, kinds=ALL_KINDS)
    batches.odd_positions = 0.0
    drawn = batches.draw()
    assert (drawn["prefix_position"][0] >= 0).all()
    spans = drawn["prefix_position"][0, :, -1] - drawn["prefix_position"][0, :, 4]
    drawn["prefix_position"][0] = torch.stack(  # whole, even spans, so that the plain model makes the same positions
        [torch.cat([torch.arange(4), 4 + torch.arange(4).repeat_interleave(16) * int(s // 3)]) for s in spans]
    )
    packed = packed_forward(model, drawn)[0]
    assert (packed - plain_logits(model, processor, batches, drawn)).abs().max() < 1e-5


def test_patches_equal_the_processors(backbone):
    processor = backbone[1]
    video = np.random.default_rng(1).integers(0, 255, (2, 8, FRAME_PX, FRAME_PX, 3), dtype=np.uint8)
    theirs = processor.video_processor(videos=list(video), return_tensors="pt", do_sample_frames=False)
    ours = Batches(processor, 0, 1, 1, ALL_KINDS)._patches(video)
    assert (ours - theirs["pixel_values_videos"]).abs().max() < 1e-5


def test_tails_are_the_chat_template(backbone):
    """Prefix + tail is, token by token, what the processor makes of the same message."""
    processor = backbone[1]
    batches = Batches(processor, seed=4, clips=1, questions=6, kinds=ALL_KINDS, word_dropout=0.0)
    rng = np.random.default_rng(0)
    clip = make_clip(rng)
    for _ in range(10):
        question = make_question(rng, clip, ALL_KINDS)
        ids, places = batches._tail(question)
        text = format_question(question.text, question.options)
        message = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]
        whole = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        whole = whole.replace("<|video_pad|>", "<|video_pad|>" * VIDEO_TOKENS)
        assert batches.prefix_ids + ids == processor.tokenizer.encode(whole)
        assert [processor.tokenizer.decode([ids[p]]).strip() for p in places] == question.options


def test_pretraining_never_sees_gaze_words_in_its_questions():
    rng = np.random.default_rng(0)
    for _ in range(100):
        text = make_question(rng, make_clip(rng), ALL_KINDS).text
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


def test_committed_backbone_answers_with_a_ring():
    """The committed weights, on real mp4 files: right with a ring under the exact gaze wording, at chance without."""
    if not (BACKBONE_DIR / "pretraining.json").exists():
        pytest.skip("the committed backbone is not pretrained yet")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(BACKBONE_DIR).eval()
    processor = AutoProcessor.from_pretrained(BACKBONE_DIR)
    report = json.loads((BACKBONE_DIR / "pretraining.json").read_text())
    assert sum(p.stat().st_size for p in BACKBONE_DIR.iterdir()) < 10e6
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    result = measure(model, processor, seed=1, videos=16)
    counts = {task: row["questions"] for task, row in result.items()}
    total = sum(counts.values())
    ring = sum(row["ring, gaze wording"] * counts[task] for task, row in result.items()) / total
    plain = sum(row["no ring, gaze wording"] * counts[task] for task, row in result.items()) / total
    assert ring > 0.95 and plain < 0.4, result
