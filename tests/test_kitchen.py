"""The kitchen: its pictures, heads, eye tracker and questions, and the pretraining of its backbone."""

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText

from gazeqwen.gaze_sources.samples import Status
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.release import build
from gazeqwen.toyworld.backbone import TOY_BACKBONES, make_backbone
from gazeqwen.toyworld.generate import generate, make_video
from gazeqwen.toyworld.highlights import make_clip
from gazeqwen.toyworld.kitchen import pretrain, sight
from gazeqwen.toyworld.kitchen.clips import (
    VIDEO_TOKENS,
    ClipEmbeddings,
    TokensByThing,
    chosen_tokens,
    clip_of,
    heat_of_tokens,
    labels_of,
    renamed,
    things_of_steps,
    token_labels,
)
from gazeqwen.toyworld.kitchen.marks import KINDS, Mark, draw_mark, marked_frame, words
from gazeqwen.toyworld.kitchen.scene import FRAME_PX, KitchenScene, make_scene
from gazeqwen.toyworld.kitchen.things import CATEGORIES, COLORS, SPRITES, THINGS, build_atlas, sprite
from gazeqwen.toyworld.kitchen.tracker import raw_gaze, record_viewer
from gazeqwen.toyworld.measure import marked, measure
from gazeqwen.toyworld.packing import Packer, packed_forward, patches_of, thinned
from gazeqwen.toyworld.questions import FAP, FRAMES, GSM, GTA, HARD, STEPS, TASK_NAMES
from gazeqwen.toyworld.viewer import NOTHING, make_viewer, simulate_viewer
from gazeqwen.video_gazeqwen import read_frames


@pytest.fixture(scope="module")
def scenes() -> list[KitchenScene]:
    rng = np.random.default_rng(0)
    return [make_scene(rng) for _ in range(40)]


@pytest.fixture(scope="module")
def world() -> list:
    """(recording, questions) of videos."""
    return [make_video(0, "train", index, "kitchen") for index in range(80)]


# ------------------------------------------------------------------ things
def test_every_thing_has_a_noun_a_picture_and_what_it_can_be_told_from():
    assert len({thing.noun for thing in THINGS}) == len({thing.code_points for thing in THINGS}) == len(THINGS) == 64
    pictures = [np.asarray(sprite(number)).astype(int) for number in range(len(THINGS))]
    for number, picture in enumerate(pictures):
        assert picture.shape == (64, 64, 4) and 0.1 < (picture[..., 3] > 127).mean() < 0.95, THINGS[number].noun
        assert all(abs(picture - other).mean() > 5 for other in pictures[:number]), THINGS[number].noun
    for values, name in ((COLORS, "color"), (CATEGORIES, "category")):
        assert min(Counter(getattr(thing, name) for thing in THINGS).values()) >= 4, (values, name)
    assert "MIT" in (SPRITES.parent / "LICENSE-fluent-emoji").read_text()


def test_the_pictures_are_made_from_the_package(tmp_path):
    (tmp_path / "assets").mkdir()
    for number, thing in enumerate(THINGS):
        picture = sprite(number).convert("RGBA").resize((96, 96))
        picture.save(tmp_path / "assets" / f"{thing.code_points}.webp", lossless=True)
    atlas = build_atlas(tmp_path)
    assert atlas.size == (512, 512) and (np.asarray(atlas)[..., 3] > 0).mean() > 0.2
    (tmp_path / "assets" / f"{THINGS[5].code_points}.webp").unlink()
    with pytest.raises(FileNotFoundError, match=THINGS[5].code_points):
        build_atlas(tmp_path)


# ------------------------------------------------------------------ scenes
def alone(scene: KitchenScene, index: int | None) -> KitchenScene:
    """The scene with one object, or without any."""
    return replace(scene, objects=() if index is None else (scene.objects[index],))


def test_things_are_drawn_where_they_are_said_to_be(scenes):
    """Also while the head moves: the box of what an object changes in the frame lies around its place."""
    moved = []
    for scene in scenes[:12]:
        for time_s in np.linspace(0, scene.duration_s * 0.99, 4):
            ground = alone(scene, None).draw(time_s)
            for index in scene.visible(time_s)[:3]:
                thing = scene.objects[index]
                x, y = thing.position_px(time_s)
                if min(x, y) < thing.size_px or max(x, y) > FRAME_PX - thing.size_px:
                    continue  # cut off by the frame's edge
                changed = abs(alone(scene, index).draw(time_s).astype(int) - ground).max(axis=-1) > 24
                rows, columns = np.nonzero(changed)
                box = np.array([columns.min() + columns.max(), rows.min() + rows.max()]) / 2
                assert abs(box - (x, y)).max() < 0.2 * thing.size_px + 2, (thing.noun, box, x, y)
                moved.append(np.ptp(thing.position_px(np.linspace(0, scene.duration_s, 50)), axis=0).max())
    assert len(moved) > 60 and np.median(moved) > 8  # the same place throughout would make this easy


def test_what_is_not_visible_cannot_be_seen(scenes):
    """And what is visible lies well inside the frame; but for the moments of a head's turn."""
    hidden = shown = 0
    for scene in scenes:
        turns = [begin for thing in scene.objects for begin, _ in thing.present_s if begin > 0]
        turns += [end for thing in scene.objects for _, end in thing.present_s if np.isfinite(end)]
        for time_s in np.linspace(0, scene.duration_s * 0.99, 6):
            if any(abs(time_s - turn) < 1.2 for turn in turns):
                continue
            visible = scene.visible(time_s)
            for index in visible:
                x, y = scene.objects[index].position_px(time_s)
                assert min(x, y) > 2 and max(x, y) < FRAME_PX - 2
            gone = [thing for index, thing in enumerate(scene.objects) if index not in visible]
            if gone:
                empty = alone(scene, None).draw(time_s)
                assert (replace(scene, objects=tuple(gone)).draw(time_s) == empty).all(), [t.noun for t in gone]
            shown, hidden = shown + len(visible), hidden + len(gone)
    assert hidden > 20 and shown > 500


def test_things_overlap_only_in_part(scenes):
    touching = 0
    for scene in scenes:
        visible = scene.visible(0.0)
        for k, i in enumerate(visible):
            for j in visible[:k]:
                one, other = scene.objects[i], scene.objects[j]
                apart = np.hypot(*(one.position_px(0.0) - other.position_px(0.0)))
                assert apart > 0.4 * (one.size_px + other.size_px)
                touching += apart < 0.5 * (one.size_px + other.size_px)
    assert touching > 5


def test_heads_sway_tilt_and_turn(scenes):
    times = [np.linspace(0, scene.duration_s, 400) for scene in scenes]
    poses = [scene.head.pose(of_scene) for scene, of_scene in zip(scenes, times, strict=True)]
    ranges = np.array([np.ptp(centre, axis=0).max() for centre, _ in poses])
    assert (ranges > 3).all() and 0.3 < (ranges > 60).mean() < 0.7  # all sway, half of them turn
    assert all(0.5 < np.degrees(np.ptp(tilt)) < 9 for _, tilt in poses)


# ------------------------------------------------------------------ eye tracker
def test_raw_gaze_holds_fixations_saccades_and_blinks(world):
    rng, recording = np.random.default_rng(3), world[0][0]
    recording = simulate_viewer(recording.scene, recording.viewer, rng)
    samples = raw_gaze(recording, rng)
    assert np.allclose(np.diff(samples.times_s), 1 / 60) and samples.times_s[-1] < recording.scene.duration_s
    lost = samples.count(Status.UNTRACKED) / len(samples)
    assert 0.02 < lost < 0.5
    speed = np.hypot(*np.diff(samples.xy, axis=0).T) * 60  # frame widths a second
    assert np.nanmedian(speed) < 0.6 and np.nanmax(speed) > 3  # mostly still, and sometimes a saccade


def test_detected_fixations_lie_on_what_the_viewer_dwells_on(world):
    away, count, kinds = [], 0, Counter()
    for recording, _ in world[:60]:
        for fixation in recording.fixations:
            count += 1
            middle_s = (fixation.start_s + fixation.end_s) / 2
            dwells = [d for d in recording.dwells if d.start_s <= middle_s < d.end_s]
            assert fixation.object_index == (dwells[0].object_index if dwells else NOTHING)
            kinds[fixation.object_index == NOTHING] += 1
            if fixation.object_index != NOTHING:
                thing = recording.scene.objects[fixation.object_index]
                place = np.array([fixation.x_norm, fixation.y_norm]) * FRAME_PX
                away.append(np.hypot(*(thing.position_px(middle_s) - place)) / thing.size_px)
    assert count > 60 * 15 and np.mean(np.array(away) < 0.6) > 0.95 and 0.05 < np.median(away) < 0.3
    assert kinds[True] > 20


def test_a_viewer_in_a_scene_is_recorded_alike_from_the_same_seed(scenes):
    one, other = (
        record_viewer(scenes[0], make_viewer(np.random.default_rng(1)), np.random.default_rng(2)) for _ in "ab"
    )
    assert one.fixations == other.fixations and one.dwells == other.dwells


# ------------------------------------------------------------------ questions
def test_all_ten_tasks_are_asked(world):
    count = Counter(q.task for _, questions in world for q in questions)
    assert set(count) == set(TASK_NAMES) and min(count.values()) >= 15


def test_texts_do_not_tell_an_order(world):
    """Sequences are orders of one set; the objects of an action are named in random order, and so are its options."""
    named, listed = [], []
    for _, questions in world:
        for q in questions:
            if q.task == GSM:
                assert (
                    len({frozenset(option.replace("{", "").replace("}", "").split(">")) for option in q.options}) == 1
                )
                assert len(set(q.options)) == 4
            if q.task == FAP:
                timed = [entry["object"] for entry in q.extra["context_objects_with_timing"]]
                assert sorted(timed) == sorted(q.extra["context_objects"]) and "->" not in q.question
                named.append(q.extra["context_objects"] == timed)
                listed.append(q.options.index(q.answer))
    assert np.mean(named) < 0.3 and len(set(listed)) == 4  # in the first world always, and as looked at


def test_the_kitchen_is_written_and_read_like_the_first_world(tmp_path):
    out = generate(tmp_path / "world", 1, 1, 1, seed=24, progress=False, kind="kitchen")  # short videos
    build(out, tmp_path / "data", progress=False)
    for split, count in (("train", 1), ("validation", 1), ("test", 1)):
        questions = load_questions(tmp_path / "data", split)
        assert len({q.video_name for q in questions}) == count and all(len(q.scanpath) for q in questions)
    frames, _ = read_frames(questions[0].video, [0.0])
    assert frames.shape == (1, FRAME_PX, FRAME_PX, 3)


# ------------------------------------------------------------------ pretraining
CLIPS = 6


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(4)
    return [make_clip(rng, make_scene) for _ in range(4)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mark_changes_the_picture_at_what_is_marked(clips, kind):
    """And nowhere far from it; words change no picture, and say where things are."""
    marked = 0
    for view in clips:
        mark = Mark(kind, (255, 40, 40), angle=1.0)
        for k, things in enumerate(view.marked):
            time_s = float(view.frame_times_s[k])
            changed = (marked_frame(view, mark, k) != view.scene.draw(time_s)).any(axis=-1)
            if kind == "words":
                assert not changed.any()
            elif kind == "heat":
                marked += changed.any()
            elif things:
                rows, columns = np.nonzero(changed)
                x, y = view.scene.objects[things[0]].position_px(time_s)
                assert len(rows) and np.hypot(columns - x, rows - y).max() < 60
                marked += 1
            else:
                assert not changed.any()
        assert bool(words(view, mark)) == (kind == "words")
    assert marked > 10 or kind == "words"


def test_words_say_where_and_when(clips):
    view = clips[0]
    text = words(view, Mark("words", fitted=True))
    begin_s, end_s, thing = next(entry for entry in view.path if entry[2] != NOTHING)
    merged_s = end_s
    for later_s, until_s, other in view.path[1:]:
        if other == thing and later_s >= merged_s:
            merged_s = until_s
        elif other != NOTHING and later_s >= merged_s:
            break
    x, y = view.scene.objects[thing].position_px((begin_s + merged_s) / 2) / FRAME_PX
    assert f"{begin_s - view.start_s:.1f} to {merged_s - view.start_s:.1f} s at ({x:.2f}, {y:.2f})" in text


def test_patches_equal_the_processors():
    _, processor = make_backbone(0, "kitchen")
    video = np.random.default_rng(1).integers(0, 255, (FRAMES, FRAME_PX, FRAME_PX, 3), dtype=np.uint8)
    theirs = processor.video_processor(videos=[video], return_tensors="pt", do_sample_frames=False)
    assert theirs["video_grid_thw"].tolist() == [list(pretrain.GRID_THW)]
    ours = patches_of(video, processor.video_processor)
    assert (ours - theirs["pixel_values_videos"]).abs().max() < 1e-5


def test_labels_name_the_thing_at_each_token(clips):
    told = Counter()
    for view in clips:
        labels = token_labels(view, Mark("ring")).reshape(STEPS, pretrain.GRID, pretrain.GRID, 2)
        for step in range(STEPS):
            for index, thing in enumerate(view.scene.objects):
                places = thing.position_px(view.frame_times_s[2 * step : 2 * step + 2])
                shown = all(thing.visible(float(s)) for s in view.frame_times_s[2 * step : 2 * step + 2])
                if shown and np.ptp(places, axis=0).max() < 5:
                    column, row = (places.mean(axis=0) // 28).astype(int).clip(0, 7)
                    number, marked = labels[step, row, column]
                    told[number == thing.number] += 1
                    if number == thing.number:
                        assert marked == any(index in view.marked[2 * step + k] for k in (0, 1))
    assert told[True] > 5 * told[False] and told[True] > 100  # what lies behind another thing is not told


@pytest.fixture
def narrow_backbone(monkeypatch):
    """Let new backbones of the kitchen be narrow: for what does not depend on how much they can learn."""
    kitchen = TOY_BACKBONES["kitchen"]
    text = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64, "depth": 2}
    narrow = replace(kitchen, text=text, vision=kitchen.vision | vision)
    monkeypatch.setitem(TOY_BACKBONES, "kitchen", narrow)


FULL = pretrain.SIGHT[1]


def test_a_token_of_a_full_table_shows_the_thing_that_lies_there():
    """At the middle of a thing lies its label; marks are told as drawn, and change the frames of no unmarked table."""
    told, marked_tables = Counter(), 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        scene = sight.draw_table(rng, FULL)
        frames, labels = sight.marked_pair(rng, scene, 2.0, FULL)
        things = labels[:, 0].reshape(sight.GRID, sight.GRID)
        assert frames.shape == (2, FRAME_PX, FRAME_PX, 3) and labels.shape == (sight.STEP_TOKENS, 3)
        for thing in scene.objects:
            column, row = (thing.position_px(np.array([2.0, 3.0])).mean(axis=0) // 28).astype(int).clip(0, 7)
            told[things[row, column] == thing.number] += 1
        of_marked = set(labels[labels[:, 1] > 0, 0]) - {sight.UNCLEAR}
        assert of_marked <= {thing.number for thing in scene.objects} and len(of_marked) <= FULL.most_marks
        assert not (labels[:, 1].any() and not labels[:, 2].all())  # of a heat map no mark is told
        marked_tables += bool(of_marked)
    assert told[True] > 5 * told[False] and told[True] > 100 and marked_tables > 5


def test_things_are_chosen_before_the_ground():
    labels = np.full((2, STEPS * 64, 2), sight.NO_THING)
    shows = np.random.default_rng(0).random((2, STEPS * 64)) < 0.15
    labels[shows, 0] = 7
    for count in (20, 5, 64):
        chosen = chosen_tokens(labels, count, np.random.default_rng(1))
        by_step, shown = chosen.reshape(2, STEPS, 64), shows.reshape(2, STEPS, 64)
        assert (by_step.sum(-1) == count).all()
        assert ((by_step & shown).sum(-1) == np.minimum(shown.sum(-1), count)).all()


def test_left_out_tokens_are_as_if_masked(tiny_batch):
    """The answers with some video tokens left out equal those with all, where nobody may attend to the others."""
    model, batch, embeddings = tiny_batch
    chosen = torch.rand(2, VIDEO_TOKENS, generator=torch.Generator().manual_seed(0)).argsort(dim=1) < 90
    thin = thinned(batch, chosen, model.config) | {"visual": embeddings[chosen]}
    masked = batch | {"prefix_mask": batch["prefix_mask"].clone(), "visual": embeddings.flatten(0, 1)}
    is_video = batch["prefix_ids"] == model.config.video_token_id
    masked["prefix_mask"][is_video] = chosen.flatten().to(masked["prefix_mask"].dtype)
    with torch.no_grad():
        of_thin, of_masked, of_all = (
            packed_forward(model, b)[0] for b in (thin, masked, masked | {"prefix_mask": batch["prefix_mask"]})
        )
    assert (of_thin - of_masked).abs().max() < 1e-4 < (of_thin - of_all).abs().max()


def test_the_tower_is_fitted_to_name_things():
    """
    Of an untrained tower, too, the last layer explains something of the embeddings that it is fitted to: a token that
    shows a thing is nearer to the thing's noun than to others, and a marked one further along the mark.
    """
    model, processor = make_backbone(0, "kitchen")
    tower, pixels = model.model.visual, ClipEmbeddings(0, 3, processor.video_processor)
    things = torch.from_numpy(np.concatenate([labels_of(0, n)[:, 0] for n in range(3)])).long()
    nouns = model.get_input_embeddings().weight[pretrain.noun_ids(processor)]

    def names() -> float:
        with torch.no_grad():
            grid = torch.tensor([pretrain.GRID_THW])
            visual = torch.cat([tower(pixels[n], grid_thw=grid).pooler_output for n in range(3)])
            shown = (things != sight.NO_THING) & (things != sight.UNCLEAR)
            scores = visual[shown] @ nouns.T
            return (scores.argsort(dim=1, descending=True)[:, :5] == things[shown, None]).any(1).float().mean().item()

    before, explained = names(), pretrain.fit_tower(model, processor, seed=0, clips=3)
    assert 0.05 < explained < 1
    assert names() > before + 0.2, (before, names(), explained)


def test_the_backbone_reads_marked_pictures(tmp_path):
    """Clips of another seed: what is ringed, and what is visible, in the pictures of the clip and in another's."""
    folder = TOY_BACKBONES["kitchen"].folder
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor, clips, visual = make_backbone(0, "kitchen")[1], 32, tmp_path / "embeddings.npy"
    ringed = [number for number in range(clips) if clip_of(9, number)[1].kind == "ring"]
    pixels = ClipEmbeddings(9, clips, processor.video_processor)
    embeddings = np.zeros((clips, VIDEO_TOKENS, model.config.text_config.hidden_size), np.float16)
    with torch.no_grad():
        for number in ringed:
            embeddings[number] = pretrain.embedded(model.model.visual, pixels[number])
    np.save(visual, embeddings)
    lessons = (pretrain.Lesson((("which", 1.0), ("visible", 0.3)), 12, 6),)
    phase = pretrain.Phase("asked", 2, lessons, shown=("own",))
    symbols, nouns = pretrain.symbols_of(0, processor), pretrain.noun_ids(processor)
    batches = pretrain.QuestionBatches(9, 0, phase, model.config, processor, clips, visual, symbols)
    batches.drawn = np.array(ringed)
    drawn = [batches[number] for number in range(len(batches))]
    heads = pretrain.Heads(model.config.text_config.hidden_size)

    def asked(drawn) -> dict[str, float]:
        return pretrain.accuracies(drawn, lambda batch: pretrain.question_loss(model, heads, nouns, batch))

    own, others = asked(drawn), asked([batch | {"visual": batch["visual"].roll(VIDEO_TOKENS, 0)} for batch in drawn])
    assert own["which"] > 0.55 and own["visible"] > 0.75, own
    assert others["which"] < own["which"] - 0.2 and others["visible"] < own["visible"] - 0.2, (own, others)


def test_the_script_says_how_the_backbone_was_pretrained():
    record = json.loads((TOY_BACKBONES["kitchen"].folder / "pretraining.json").read_text())
    for phase in (*pretrain.SIGHT, *pretrain.PHASES):
        of_phase = record["phases"][phase.name]
        assert of_phase["steps"] == phase.steps, phase.name
        assert of_phase["settings"] == json.loads(json.dumps(asdict(phase))), phase.name


def test_heat_grows_with_attention(clips):
    """A heat map is hottest at the thing that attention has been on longest, and only where it has been."""
    hot = 0
    for view in clips:
        heat = heat_of_tokens(view, Mark("heat")).reshape(STEPS, 64)
        things = token_labels(view, Mark("heat"))[:, 0].reshape(STEPS, 64)
        ever = {view.scene.objects[i].number for i in view.ever}
        assert set(things[heat > 0]) <= ever and heat.max() <= 1
        assert not heat_of_tokens(view, Mark("ring")).any()
        hot += (heat == 1).any()
    assert hot >= len(clips) - 1


def test_a_renamed_clip_holds_other_things_at_the_same_places_and_times(clips):
    """Labels, and what each step is about, follow the names; all else of the clip stays as it is."""
    new = np.random.default_rng(3).permutation(len(THINGS))
    names = np.array([*new, sight.NO_THING, sight.UNCLEAR])
    for view in clips:
        other = renamed(view, new)
        before, after = token_labels(view, Mark("ring")), token_labels(other, Mark("ring"))
        assert np.array_equal(after[:, 0], names[before[:, 0]]) and np.array_equal(after[:, 1], before[:, 1])
        assert things_of_steps(other) == names[things_of_steps(view)].tolist()
        assert {thing.noun for thing in other.scene.objects} != {thing.noun for thing in view.scene.objects}
        assert (other.marked, other.path) == (view.marked, view.path)


@given(st.integers(0, 2**32 - 1))
def test_drawn_tokens_show_what_they_are_drawn_for(seed):
    """The same thing, marked or not; as strongly and by the same sort of mark where a token is."""
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(-1, 5, 400), rng.integers(0, 2, 400)], axis=1)
    heated, heat = rng.random(400) < 0.3, rng.random(400) * rng.integers(0, 2, 400)
    tokens = TokensByThing(labels, heat, heated)
    rows = tokens.draw(labels, heat, heated, rng)
    strength = np.where(heated, heat, labels[:, 1])
    assert np.array_equal(labels[rows, 0], labels[:, 0])
    assert np.array_equal(np.ceil(3 * strength[rows]), np.ceil(3 * strength))
    assert np.array_equal(heated[rows], heated)
    few = labels[:, 1] == 0
    only_unmarked = TokensByThing(labels[few], np.zeros(few.sum()), np.zeros(few.sum(), bool))
    with pytest.raises(ValueError, match="none shows them marked"):
        only_unmarked.draw(labels, np.zeros(400), np.zeros(400, bool), rng)


def test_a_batch_asks_about_the_things_that_its_tokens_show(tmp_path):
    """
    Embeddings that say which token they are of: each is of a token that shows what the batch's label says, under new
    names in every batch; as they are where clips are not renamed.
    """
    seed, count, (model, processor) = 3, 100, make_backbone(0, "kitchen")  # which show every thing marked
    np.save(tmp_path / "embeddings.npy", np.arange(count * VIDEO_TOKENS, dtype=np.float32).reshape(count, -1, 1))
    shown = np.concatenate([labels_of(seed, number) for number in range(count)])[:, 0]
    about, symbols = {}, pretrain.symbols_of(seed, processor)
    for is_renamed in (True, False):
        lessons = (pretrain.Lesson((("visible", 1.0),), 60, 1, (20, 20)),)
        phase = pretrain.Phase("asked", 2, lessons, shown=("other",) if is_renamed else ("own",))
        path = tmp_path / "embeddings.npy"
        batches = pretrain.QuestionBatches(seed, 1, phase, model.config, processor, count, path, symbols)
        for step in range(2):
            batch = batches[step]
            sources = batch["visual"][:, 0].long().numpy()
            assert np.array_equal(shown[sources], batch["token_labels"][..., 0].flatten())
            clips_of_tokens = sources.reshape(60, -1) // VIDEO_TOKENS
            of_one_clip = (clips_of_tokens == clips_of_tokens[:, :1]).all(axis=1)
            assert of_one_clip.all() != is_renamed
        about[is_renamed] = batch["steps_show"]
    own = {tuple(things_of_steps(clip_of(seed, number)[0])) for number in range(count)}
    assert {tuple(row) for row in about[False].tolist()} <= own
    assert sum(tuple(row) in own for row in about[True].tolist()) < 10  # steps about nothing stay so


@pytest.fixture
def tiny_batch():
    """A backbone, a batch of two clips with two questions each, and embeddings of all their visual tokens."""
    model, processor = make_backbone(0, "kitchen")
    rng = np.random.default_rng(0)
    clips = [clip_of(0, number) for number in range(2)]
    questions = [pretrain.Drawer(rng, view).question(pretrain.SHORT_KINDS) for view, _ in clips for _ in range(2)]
    packer = Packer(model.config, processor, KitchenScene, pretrain.GRID_THW)
    batch = packer.pack([view for view, _ in clips], questions, rng)
    hidden = model.config.text_config.hidden_size
    return model, batch, torch.randn(2, VIDEO_TOKENS, hidden, generator=torch.Generator().manual_seed(1))


LESSONS = tuple(pretrain.Lesson(k, 2, 2, (30, 30)) for k in (pretrain.TEXT, pretrain.LONG))
TINY = (  # so few clips show too few things to stand for others
    pretrain.Phase("looking", 1, (pretrain.Lesson((), 2, 0, (8, 12)),), shown=("symbols",)),
    pretrain.Phase("questions", 2, LESSONS, shown=("own",)),
    pretrain.Phase("everything", 1, (pretrain.Lesson(pretrain.SHORT, 2, 2),), decay=True, shown=("own",)),
)
TINY_SIGHT = (sight.Sight("sight", 2, tables=1, pairs=1, most_things=5, most_marks=2, decay=True),)


def test_pretraining_goes_on_where_it_was_stopped(narrow_backbone, tmp_path, monkeypatch):
    """Stopped in phases, and between two embeddings: the weights are those of one go, and nearly all learn."""
    monkeypatch.setattr(pretrain, "HELD_OUT_BATCHES", 2)
    monkeypatch.setattr(pretrain.Run.train, "__defaults__", (1,))  # keep every step
    monkeypatch.setattr(pretrain.fit_tower.__wrapped__, "__defaults__", (3, 1e-3))  # fitted on three clips

    def pretrained(out: Path, seed: int = 0):
        return pretrain.pretrain(out, seed, CLIPS, 1, TINY, TINY_SIGHT, workers=0, held_out=CLIPS - 2)

    whole = pretrained(tmp_path / "whole")
    before, _ = make_backbone(0, "kitchen")
    stopped = tmp_path / "stopped"

    class Stop(Exception):
        pass

    embed, embedded = ClipEmbeddings.__getitem__, []

    def stopping_once(pixels, number):
        if pixels.count == CLIPS:  # not those that the tower is fitted on
            embedded.append(number)
            if len(embedded) == 3:
                raise Stop
        return embed(pixels, number)

    monkeypatch.setattr(ClipEmbeddings, "__getitem__", stopping_once)
    save = pretrain.Run.save
    for half, steps in (("sight", 1), ("sight", 2), ("reading", 2), ("reading", 3)):

        def stopping(run, half=half, steps=steps):
            save(run)
            if run.folder.name == half and sum(phase["steps"] for phase in run.record["phases"].values()) == steps:
                raise Stop

        monkeypatch.setattr(pretrain.Run, "save", stopping)
        with pytest.raises(Stop):
            pretrained(stopped)
        if (half, steps) == ("sight", 2):  # and then at the third clip's embedding
            monkeypatch.setattr(pretrain.Run, "save", save)
            with pytest.raises(Stop):
                pretrained(stopped)
    assert embedded == [0, 1, 2, *range(2, CLIPS)]
    monkeypatch.setattr(pretrain.Run, "save", save)
    resumed = pretrained(stopped)
    for (name, one), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), name
    changed = {name for name, p in before.named_parameters() if not torch.equal(p, whole.get_parameter(name))}
    assert len(changed) > 0.9 * len(list(before.named_parameters()))
    record = json.loads((stopped / "backbone" / "pretraining.json").read_text())
    assert {name: phase["steps"] for name, phase in record["phases"].items()} == {
        phase.name: phase.steps for phase in (*TINY_SIGHT, *TINY)
    }
    assert all(set(record["phases"][phase.name]["held_out"]) >= {"summary, drawn", "last, drawn"} for phase in TINY)
    with pytest.raises(ValueError, match="begun with seed 0, not 1"):
        pretrained(stopped, seed=1)


def test_a_backbone_is_measured_under_every_mark(narrow_backbone, clips):
    """Each mark changes what the backbone is shown or told, and each is asked in two wordings, none in one."""
    view = next(view for view in clips if any(view.marked))
    plain, note = marked(view, "kitchen", None)
    assert note == ""
    for kind in KINDS:
        frames, note = marked(view, "kitchen", kind)
        assert (frames != plain).any() == (kind != "words") and bool(note) == (kind == "words")
    model, processor = make_backbone(0, "kitchen")
    result = measure(model, processor, seed=0, videos=3, most=1, world="kitchen", tasks=(HARD, GTA))
    expected = {f"{kind}, {wording}" for kind in KINDS for wording in ("verb of pretraining", "gaze wording")}
    asked = {task: row for task, row in result.items() if row["answers"]}
    assert len(asked) == 2
    for task, row in asked.items():
        assert set(row) == expected | {"no mark, gaze wording", "answers"}, task


def test_no_scanpath_enters_pretraining(clips):
    rng, kinds = np.random.default_rng(0), Counter(draw_mark(np.random.default_rng(k)).kind for k in range(200))
    assert set(kinds) == set(KINDS)
    for view in clips:
        text = words(view, replace(draw_mark(rng), kind="words"))
        assert not any(word in text for word in ("gaz", "look", "fixat", "eye", "stare"))
