"""The toy world: ten tasks, fair by construction, reproducible, in StreamGaze's layout."""

import hashlib
import json
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from support import FIXATION_TABLES

from gazeqwen.modeling_vjepa2_1 import VJEPA21Config, VJEPA21Model
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.release import build
from gazeqwen.questions.tasks import TASKS
from gazeqwen.toyworld.generate import (
    SPLITS,
    choose,
    generate,
    make_video,
    ringed_clips,
    ringed_frames,
    streamgaze_entry,
)
from gazeqwen.toyworld.questions import (
    EASY,
    FAP,
    GSM,
    GTA,
    HARD,
    NFI,
    OAA,
    OAR,
    OFFSETS_S,
    OTP,
    SNAP_S,
    SR,
    STEPS,
    TASK_NAMES,
    clip_of,
    clock,
)
from gazeqwen.toyworld.random_video_encoder import VIDEO_ENCODER_DIR, write_random_video_encoder
from gazeqwen.toyworld.viewer import COLUMNS, NOTHING
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
VIDEOS = 240  # the fewest that give more than 50 questions of every task
PROACTIVE = (GTA, OAA)
OF_OBJECTS = (EASY, HARD, NFI, OTP, FAP)  # options are objects, and gaze alone tells which


@pytest.fixture(scope="module")
def world():
    """Recordings without their pictures, and the questions of each task: {task: [(recording, question)]}."""
    made = {f"{i}.mp4": make_video(5, "train", i) for i in range(VIDEOS)}
    chosen = choose(5, "train", made, per_task=4)
    recordings = {name: recording for name, (recording, _) in made.items()}
    return recordings, {task: [(recordings[name], q) for name, q in pairs] for task, pairs in chosen.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return generate(tmp_path_factory.mktemp("toy") / "a", train=3, val=1, test=2, seed=1, progress=False)


def noun_in(option: str) -> str:
    return option.split()[-1]


def near_chance(hits: float, count: int, chance: float = 0.25) -> bool:
    """Within four standard errors of chance."""
    return abs(hits / count - chance) < 4 * (chance * (1 - chance) / count) ** 0.5


# --- fairness --------------------------------------------------------------------------------------------------------


def test_there_are_enough_questions_of_every_task(world):
    counts = {task: len(pairs) for task, pairs in world[1].items()}
    assert tuple(counts) == TASK_NAMES and set(TASK_NAMES) == set(TASKS)
    assert min(counts.values()) > 50, counts


def test_letters_are_balanced(world):
    for task, pairs in world[1].items():
        places = Counter(q.options.index(q.answer) for _, q in pairs if q.options)
        assert task in PROACTIVE or max(places.values()) - min(places[place] for place in range(4)) <= 1, task


def test_options_stand_in_the_same_relation_to_each_other(world):
    """All pairs alike in colour and shape, so that no option is the odd one out."""
    for task in (EASY, HARD, SR):
        for _, q in world[1][task]:
            colors, shapes = (Counter(KIND_OF[noun][i] for noun in q.options) for i in (0, 1))
            easy = len(colors) == len(shapes) == 4
            hard = len(colors) == 1 or len(shapes) == 1
            assert {EASY: easy, HARD: hard, SR: easy or hard}[task], (task, q.options)


def test_options_are_objects_that_stayed_in_view(world):
    for task in OF_OBJECTS:
        for recording, q in world[1][task]:
            of_noun = {thing.noun: thing for thing in recording.scene.objects}
            view = clip_of(recording, task, q.time_s)
            assert len(set(q.options)) == 4
            assert all(of_noun[noun_in(option)].visible(view.start_s, view.time_s) for option in q.options), task


def test_attribute_options_are_shown_by_equally_many_objects(world):
    for recording, q in world[1][OAR]:
        scene, attribute = recording.scene, q.extra["attribute_type"]
        shown = Counter(getattr(scene.objects[i], attribute) for i in scene.visible(q.time_s))
        counts = {shown[value] for value in q.options}
        assert len(counts) == 1 and counts != {0}


def option_features(q, option: str) -> list[float]:
    """What a reader of the text can see of an option: its words and their places, and how it relates to the others."""
    words = option.replace("{", "").replace("}", "").replace(">", " ").split()
    vector = np.zeros(3 * 34 + 12)
    vocabulary = [*NOUN_OF.values(), *COLORS, "circle", "square", "triangle", "cross"]
    asked = [w.strip("{},()?<>.") for w in q.question.split()]
    for place, word in enumerate([w for w in words if w in vocabulary][:3]):
        vector[34 * place + vocabulary.index(word)] = 1
    others = " ".join(o for o in q.options if o != option)
    vector[-12] = sum(word in others for word in words)
    if words[-1] in asked:
        vector[-11 + min(asked.index(words[-1]) % 8, 7)] = 1
    if words[-1] in KIND_OF:
        mine = KIND_OF[words[-1]]
        kinds = [KIND_OF[noun_in(o.replace(">", " ").replace("{", "").replace("}", ""))] for o in q.options]
        vector[-3] = sum(kind[0] == mine[0] for kind in kinds)
        vector[-2] = sum(kind[1] == mine[1] for kind in kinds)
    vector[-1] = q.options.index(option)
    return vector


def fitted_accuracy(questions: list) -> tuple[int, int]:
    """Right answers on every other question of a conditional logit fitted on the others: (how many, of how many)."""
    x = torch.tensor(np.array([[option_features(q, o) for o in q.options] for q in questions]), dtype=torch.float32)
    y = torch.tensor([q.options.index(q.answer) for q in questions])
    weights = torch.zeros(x.shape[-1], requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.05)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(x[::2] @ weights, y[::2]) + 0.01 * weights.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = ((x[1::2] @ weights).argmax(-1) == y[1::2]).sum().item()
    return right, len(y[1::2])


def test_a_classifier_on_the_text_alone_is_at_chance(world):
    for task, pairs in world[1].items():
        if task not in PROACTIVE:
            right, count = fitted_accuracy([q for _, q in pairs])
            assert near_chance(right, count), (task, right, count)


def test_the_classifier_finds_what_is_there_to_find(world):
    """Positive control: answers that lean to some words are found."""
    biased = [q for _, q in world[1][EASY] + world[1][HARD] if KIND_OF[q.answer][0] in ("red", "blue", "green")]
    right, count = fitted_accuracy(biased)
    assert not near_chance(right, count)


def test_alerts_by_text_alone_are_at_the_majority(world):
    """The best guess for each noun, learned on one half of the videos, is no better on the other than always No."""
    for task in PROACTIVE:
        pairs = world[1][task]
        due = defaultdict(list)
        for _, q in pairs[::2]:
            due[q.extra["target_object"]] += [alert for _, alert in q.points]
        hits = total = yes = 0
        for _, q in pairs[1::2]:
            guess = np.mean(due[q.extra["target_object"]] or [0]) > 0.5
            hits += sum(guess == alert for _, alert in q.points)
            yes += sum(alert for _, alert in q.points)
            total += len(q.points)
        majority = max(yes, total - yes) / total
        assert hits / total < majority + 4 * (majority * (1 - majority) / total) ** 0.5, (task, hits / total, majority)
        assert 0.2 < yes / total < 0.8, (task, yes / total)


@pytest.mark.parametrize("rank", ["visible longest", "moves most", "largest", "leftmost", "topmost", "first named"])
def test_the_video_without_gaze_is_at_chance(world, rank):
    """Readers who know everything about the scene up to the query, but not the gaze."""

    def score(thing, view):
        x, y = thing.position_px(view.time_s)
        path = thing.position_px(np.linspace(view.start_s, view.time_s, 20))
        return {
            "visible longest": -min(begin for begin, _ in thing.present_s),
            "moves most": float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum()),
            "largest": thing.radius_px,
            "leftmost": -x,
            "topmost": -y,
            "first named": 0,
        }[rank]

    for task in (*OF_OBJECTS, OAR, GSM):
        hits, count = 0.0, len(world[1][task])
        for recording, q in world[1][task]:
            view, scores = clip_of(recording, task, q.time_s), {}
            for option in q.options:
                if task == OAR:
                    things = [o for o in recording.scene.objects if o.visible(view.time_s)]
                    things = [o for o in things if getattr(o, q.extra["attribute_type"]) == option]
                else:
                    noun = option.split("}>{")[0].strip("{") if task == GSM else noun_in(option)
                    things = [o for o in recording.scene.objects if o.noun == noun]
                scores[option] = max(score(o, view) for o in things)
                if rank == "first named":
                    scores[option] = -q.question.find(noun_in(option))
            best = [option for option, value in scores.items() if value == max(scores.values())]
            hits += (q.answer in best) / len(best)
        assert near_chance(hits, count), (task, rank, hits / count)


def test_gaze_answers_every_question(world):
    """Positive control: whoever reads the snapped scanpath of the clip, and the scene, is always right."""
    for task, pairs in world[1].items():
        for recording, q in pairs:
            scene = recording.scene
            of_noun = {thing.noun: i for i, thing in enumerate(scene.objects)}
            views = [clip_of(recording, task, s) for s, _ in q.points or [(q.time_s, None)]]
            view = views[0]
            seconds, now = view.shares.sum(axis=0), view.main[-1]
            if task in (EASY, HARD):
                found = scene.objects[now].noun
            elif task == OAR:
                found = getattr(scene.objects[now], q.extra["attribute_type"])
            elif task in (NFI, OTP):
                (found,) = [option for option in q.options if of_noun[option] not in view.ever]
            elif task == FAP:
                found = max(q.options, key=lambda option: seconds[of_noun[noun_in(option)]])
            elif task == GSM:
                runs = [i for i, before in zip(view.main, [NOTHING, *view.main], strict=False) if i != before]
                three = [scene.objects[i].noun for i in runs if i != NOTHING]
                found = ">".join(f"{{{noun}}}" for noun in three[-3:])
            elif task == SR:
                (found,) = [option for option in q.options if not scene.objects[of_noun[option]].visible(q.time_s)]
            else:
                target = of_noun[q.extra["target_object"]]
                said = [v.looked_at_last(target) for v in views]
                if task == OAA:
                    said = [v.visible_last(target) and not looked for v, looked in zip(views, said, strict=True)]
                assert said == [due for _, due in q.points]
                continue
            assert found == q.answer, (task, found, q)


def test_time_stamps_are_streamgazes(world):
    """Rounded (present) or cut (past) from the start of the fixation asked about, which is the one that snaps."""
    for task, pairs in world[1].items():
        for recording, q in pairs:
            starts = {d.object_index: [] for d in recording.dwells}
            for d in recording.dwells:
                starts[d.object_index].append(d.start_s)
            of_noun = {thing.noun: i for i, thing in enumerate(recording.scene.objects)}
            if task in (EASY, HARD, OAR):
                asked = of_noun[q.extra.get("object") or q.extra["object_name"]]
                assert q.time_s in [round(s) for s in starts[asked]]
            elif task in (GSM, SR, OTP):
                nouns = {"correct_sequence": lambda groups: groups[2][0], "gazed_objects": lambda gazed: gazed[0]}
                noun = next((of(q.extra[field]) for field, of in nouns.items() if field in q.extra), q.answer)
                asked = of_noun[noun]
                assert q.time_s in [int(s) for s in starts[asked]]
            elif task == NFI:
                assert q.time_s in [int(d.start_s) for d in recording.dwells]
            elif task == FAP:
                action = recording.action
                assert q.time_s == int(recording.dwells[action.last].end_s)
                assert 3 < action.time_s - recording.dwells[action.last].end_s <= 60
            else:
                first = q.extra["first_appearance"]
                minutes, seconds = map(int, first.split(":"))
                first_s = 60 * minutes + seconds
                offsets = {offset_s for offset_s in OFFSETS_S for s, _ in q.points if s == first_s + offset_s}
                assert len(offsets) == len(q.points) <= 5


def test_what_is_asked_about_now_lies_outside_the_clip_until_it_is_snapped(world):
    unseen = snapped = 0
    pairs = [pair for task in (EASY, HARD, OAR, GSM, SR) for pair in world[1][task]]
    for recording, q in pairs:
        view = clip_of(recording, q.task, q.time_s)
        target = view.main[-1]
        began = [f for f in recording.fixations if abs(f.start_s - q.time_s) <= SNAP_S and f.object_index == target]
        assert began
        seen_s = sum(max(0.0, q.time_s - f.start_s) for f in began if f.start_s > q.time_s - SNAP_S)
        unseen += seen_s <= 0.5
        snapped += view.shares[-1, target] > 0.99
    assert snapped == len(pairs) and unseen > 0.9 * len(pairs)


# --- what makes it hard ----------------------------------------------------------------------------------------------


def test_viewers_fixate_shortly_and_long_get_lost_and_look_at_nothing(world):
    recordings = world[0].values()
    fixations = [f for r in recordings for f in r.fixations]
    lengths = np.array([f.end_s - f.start_s for f in fixations])
    assert lengths.min() >= 0.199 and lengths.max() <= 4.001
    assert np.mean(lengths < 0.5) > 0.1 and np.mean(lengths > 2) > 0.1
    assert 0.02 < np.mean([f.object_index == NOTHING for f in fixations]) < 0.3
    gaps = np.array([b.start_s - a.end_s for r in recordings for a, b in pairwise(r.fixations)])
    assert gaps.min() > 0 and np.mean(gaps > 0.2) > 0.08
    assert np.mean([len(r.dwells) for r in recordings]) > 6


def test_fixations_lie_on_the_object_they_claim(world):
    for recording in world[0].values():
        for f in recording.fixations:
            times = np.linspace(f.start_s, f.end_s, 17)
            place = np.array([f.x_norm, f.y_norm]) * FRAME_PX
            if f.object_index == NOTHING:
                continue
            thing = recording.scene.objects[f.object_index]
            assert thing.visible(f.start_s, f.end_s)
            assert np.linalg.norm(place - thing.position_px(times).mean(axis=0)) < 10


def test_scenes_change(world):
    scenes = [r.scene for r in world[0].values()]
    lengths = np.array([scene.duration_s for scene in scenes])
    assert lengths.min() >= 10 and 120 < lengths.max() <= 180 and np.mean(lengths > 60) > 0.05
    things = [(scene, thing) for scene in scenes for thing in scene.objects]
    assert np.mean([len(scene.objects[0].camera.waypoints) > 1 for scene in scenes]) > 0.3
    assert sum(not thing.visible(0) for _, thing in things) > 100
    assert sum(not thing.visible(scene.duration_s) for scene, thing in things) > 100
    assert sum(len(thing.present_s) > 1 for _, thing in things) > 50
    assert sum(len(thing.waypoints) > 1 for _, thing in things) > 200
    for scene, thing in things[::7]:  # what is said to be visible lies in the frame
        for begin_s, end_s in thing.present_s:
            middle_s = (begin_s + min(end_s, scene.duration_s)) / 2
            if thing.visible(middle_s):
                assert (thing.position_px(middle_s) >= -1).all() and (thing.position_px(middle_s) <= FRAME_PX).all()


def test_objects_never_overlap(world):
    for recording in list(world[0].values())[::5]:
        scene = recording.scene
        for time_s in np.linspace(0, scene.duration_s - 0.01, 12):
            places = np.array([scene.objects[i].position_px(time_s) for i in scene.visible(time_s)])
            distance = np.linalg.norm(places[:, None] - places[None], axis=-1) + 1e3 * np.eye(len(places))
            assert distance.min() > 0.55 * CELL_PX


def test_splits_differ_in_viewers_and_layouts():
    viewers, layouts = {}, {}
    for split in SPLITS:
        made = [make_video(0, split, index)[0] for index in range(24)]
        viewers[split] = {recording.viewer for recording in made}
        layouts[split] = {
            tuple(sorted((thing.noun, thing.cell(0.0)) for thing in recording.scene.objects)) for recording in made
        }
        assert len(viewers[split]) == 12 and len(layouts[split]) == 24
    for values in (viewers, layouts):
        assert sum(map(len, values.values())) == len(set().union(*values.values()))


# --- files -----------------------------------------------------------------------------------------------------------


def digests_of(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def generate_small(out: Path, seed: int = 1) -> dict[str, str]:
    """Write the world of `folder`, or that of another seed; return each file's digest."""
    return digests_of(generate(out, train=3, val=1, test=2, seed=seed, progress=False))


def test_the_same_seed_writes_the_same_files_however_busy_the_machine_is(folder, tmp_path):
    """Four worlds at the same time, each byte as in the world written alone."""
    alone = digests_of(folder)
    assert {Path(name).suffix for name in alone} == {".mp4", ".csv", ".json"}
    with ThreadPoolExecutor(4) as executor:
        beside = list(executor.map(generate_small, [tmp_path / f"beside-{number}" for number in range(4)]))
    for digests in beside:
        assert digests == alone, [name for name in alone if digests.get(name) != alone[name]]
    other = generate_small(tmp_path / "other", seed=2)
    changed = {name for name in alone if other.get(name) != alone[name]}
    assert {name for name in alone if name.endswith((".mp4", ".csv")) and name in other} <= changed


EXTRAS = {
    EASY: {"object"},
    HARD: {"object"},
    OAR: {"attribute_type", "object_name"},
    NFI: {"answer_object"},
    OTP: {"object_group", "object_group_timestamp", "answer_object", "answer_timestamp"},
    GSM: {"correct_sequence"},
    SR: {"gazed_objects", "answer_object", "background_objects"},
    FAP: {"answer_action", "context_objects", "context_objects_with_timing", "actual_action_time"},
    GTA: {"first_appearance", "fixation_intervals", "test_info", "difficulty", "gaze_area", "target_object"},
    OAA: {"first_appearance", "appearance_intervals", "test_info", "difficulty", "gaze_area", "target_object"},
}


def test_schema(world):
    for task, pairs in world[1].items():
        for recording, q in pairs[:40]:
            entry = streamgaze_entry("toy-train-0000.mp4", q)
            assert set(entry) == {"video_path", "response_time", "video_categories", "questions"}
            (question,) = json.loads(json.dumps(entry["questions"]))
            common = {"question", "time_stamp", "task_type"}
            if task not in PROACTIVE:
                common |= {"answer", "options", "required_ability"}
                assert [option[:3] for option in question["options"]] == ["A. ", "B. ", "C. ", "D. "]
            else:
                assert 1 <= len(question["test_info"]) <= 5
                for point in question["test_info"]:
                    assert set(point) == {"realtime", "type"} and point["type"] in (0, 1)
            assert set(question) == common | EXTRAS[task]
            assert question["time_stamp"] == clock(q.time_s)
            last = max([q.time_s, *(s for s, _ in q.points)])
            assert last <= recording.scene.duration_s


def test_layout_and_reading(folder, tmp_path):
    splits = json.loads((folder / "splits.json").read_text())
    assert {k: len(v) for k, v in splits.items()} == {"train": 3, "val": 1, "test": 2}
    names = {name for split in splits.values() for name in split}
    assert {p.name for p in (folder / "videos/original_video").iterdir()} == names and len(names) == 6
    assert {p.stem for p in (folder / "qa").iterdir()} == set(TASK_NAMES)
    for name in names:
        stem = name.removesuffix(".mp4")
        lines = (folder / f"metadata/toyworld/{stem}/{stem}_fixation_filtered.csv").read_text().splitlines()
        assert lines[0].split(",") == list(COLUMNS)
        rows = np.array([[float(v) for v in line.split(",")] for line in lines[1:]])
        assert len(rows) and (rows[:, 2:4] >= 0).all() and (rows[:, 2:4] < 1).all() and (rows[:, 4] > 0).all()
        assert np.allclose(rows[:, 1] - rows[:, 0], rows[:, 8])
    build(folder, tmp_path / "data", progress=False)
    written = sum(
        len(entry["questions"][0].get("test_info", "1"))
        for task in TASK_NAMES
        for entry in json.loads((folder / "qa" / f"{task}.json").read_text())
    )
    read = [q for split in ("train", "validation", "test") for q in load_questions(tmp_path / "data", split)]
    assert len(read) == written > 40


def test_the_release_fixation_table_has_the_same_columns():
    for table in FIXATION_TABLES:
        assert table.read_text().splitlines()[0] == ",".join(COLUMNS)


def test_videos_decode_to_the_scene(folder):
    """Constant rate, 112x112, and at every object's centre its own colour (within what h264 leaves of it)."""
    for split, index in (("train", 0), ("test", 1)):
        scene = make_video(1, split, index)[0].scene
        with av.open(str(folder / f"videos/original_video/toy-{split}-{index:04d}.mp4")) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
            frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        assert np.allclose([t for t, _ in frames], frame_times_s(scene))
        for time_s, picture in frames[:: FPS // 2]:
            assert picture.shape == (FRAME_PX, FRAME_PX, 3)
            assert abs(picture.astype(float) - draw_frame(scene, time_s)).mean() < 4
            for i in scene.visible(time_s):
                x, y = scene.objects[i].position_px(time_s).round().astype(int)
                if min(x, y) >= 2 and max(x, y) < FRAME_PX - 2:
                    seen = picture[y - 1 : y + 2, x - 1 : x + 2].mean(axis=(0, 1))
                    nearest = min(COLORS, key=lambda c: np.abs(seen - np.array(COLORS[c])).sum())
                    assert nearest == scene.objects[i].color


def test_the_ringed_twin_asks_the_same_of_clips_with_a_ring(tmp_path):
    """Each clip is its own video: the frames that a model samples of it, with the ring, at their times."""
    plain = generate(tmp_path / "plain", 0, 0, 2, seed=1, progress=False)
    rings = generate(tmp_path / "rings", 0, 0, 2, seed=1, rings=True, progress=False)
    asked = [[], []]
    for found, where in zip(asked, (plain, rings), strict=True):
        for task in TASK_NAMES:
            for entry in json.loads((where / "qa" / f"{task}.json").read_text()):
                (question,) = entry["questions"]
                points = [(point["realtime"], point["type"]) for point in question.get("test_info", [])]
                found += [
                    (question["question"], question["time_stamp"], question.get("answer"), p) for p in points or [None]
                ]
    assert sorted(map(str, asked[0])) == sorted(map(str, asked[1])) and len(asked[0]) > 10
    recording, questions = make_video(1, "test", 0)
    of_task = choose(1, "test", {"toy-test-0000.mp4": (recording, questions)}, 3)
    name, _, view = ringed_clips("toy-test-0000", recording, [q for pairs in of_task.values() for _, q in pairs])[0]
    frames, times = read_frames(rings / "videos/original_video" / name, view.frame_times_s)
    assert np.allclose(times, view.frame_times_s, atol=2e-3)
    for frame, picture, bare in zip(frames, ringed_frames(view), ringed_frames(view, ring=False), strict=True):
        near, far = (abs(frame.astype(float) - other).mean() for other in (picture, bare))
        assert near < 4 and (near < far or (picture == bare).all())
    assert any(
        (picture != bare).any()
        for picture, bare in zip(ringed_frames(view), ringed_frames(view, ring=False), strict=True)
    )


def test_every_kind_has_one_noun_and_its_own_look():
    assert len(KINDS) == len(set(NOUN_OF.values())) == 24
    scene = make_scene(np.random.default_rng(0))
    with_ring = draw_frame(scene, 4.0, [(scene.visible(4.0)[0], Highlight())])
    x, y = scene.objects[scene.visible(4.0)[0]].position_px(4.0)
    changed = np.argwhere(np.any(with_ring != draw_frame(scene, 4.0), axis=-1))
    assert len(changed) and np.abs(changed - [y, x]).max() < CELL_PX


def test_a_view_has_a_share_for_each_step_and_object(world):
    recording, q = world[1][NFI][0]
    view = clip_of(recording, NFI, q.time_s)
    assert view.shares.shape == (STEPS, len(recording.scene.objects))
    assert (view.shares >= 0).all() and (view.shares.sum(axis=1) <= 1 + 1e-9).all()


def test_bad_arguments_are_refused(tmp_path, folder):
    with pytest.raises(ValueError, match="at least one video"):
        generate(tmp_path / "x", 0, 0, 0)
    with pytest.raises(ValueError, match="negative"):
        generate(tmp_path / "x", 3, -1, 0)
    with pytest.raises(FileExistsError, match="already holds"):
        generate(folder, 1, 1, 1)
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "x.mp4", [])


def test_a_random_video_encoder_leaves_others_of_its_class_as_they_are(tmp_path):
    """It is written without its code; any other V-JEPA 2.1 of the process is saved with its own."""
    config = VJEPA21Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    write_random_video_encoder(tmp_path / "random")
    VJEPA21Model(config).save_pretrained(tmp_path / "other")
    assert {path.name for path in (tmp_path / "random").iterdir()} == {"config.json", "model.safetensors"}
    assert (tmp_path / "random" / "config.json").read_text() == (VIDEO_ENCODER_DIR / "config.json").read_text()
    assert (tmp_path / "other" / "modeling_vjepa2_1.py").exists()
    auto_map = json.loads((tmp_path / "other" / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == "modeling_vjepa2_1.VJEPA21Model"
