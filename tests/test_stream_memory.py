"""The memory of a stream: what goes beyond a budget, and how positions stay in the base model's range."""

import numpy as np
import pytest
import torch
from test_stream import (
    FPS,
    OPTIONS,
    PROMPT,
    QUESTION,
    TABLE,
    adapter,
    assert_equal_but_for_rounding,
    backlog,
    clip_at,
    recording,
)

from gazeqwen.backbones_gazeqwen import positions_of
from gazeqwen.pipeline.answers import answer_tokens, option_logits
from gazeqwen.questions.prompts import chat_message
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.streaming import POLICIES
from gazeqwen.streaming.context import Context, Tokens
from gazeqwen.streaming.stream import GazeStream, run_due

STEP_TOKENS = 4  # 2x2


@pytest.fixture(scope="module")
def streamed(bases):
    return adapter(bases)


def watched(model, processor, seed: int = 0, **arguments) -> GazeStream:
    stream = GazeStream(model, processor, fps=FPS, **arguments)
    stream.push_fixation(TABLE, until_s=100)
    stream.push(*recording(seed))
    return stream


def test_under_the_budget_nothing_changes(streamed):
    unlimited = watched(*streamed)
    tokens = unlimited.report.steps * STEP_TOKENS
    for policy in POLICIES:
        within = watched(*streamed, budget=tokens, policy=policy)
        assert within.report.forgotten == 0 and within.context.video_tokens == tokens
        for own, expected in zip(within.context.cache.layers, unlimited.context.cache.layers, strict=True):
            assert torch.equal(own.keys, expected.keys)
    beyond = watched(*streamed, budget=tokens - 1)
    assert beyond.report.forgotten == 1 and beyond.context.video_tokens == tokens - 1


@pytest.mark.parametrize("budget", [4, 10, 20])
def test_a_budget_is_a_mask(streamed, budget):
    """With `recent`, each step sees the last tokens before it, as the whole prompt does under a mask that says so."""
    model, processor = streamed
    stream = watched(model, processor, budget=budget)
    assert stream.context.video_tokens == budget
    frames, times = recording()
    time_s = stream.steps_until_s
    clip = clip_at(frames, times, time_s)
    text = processor.apply_chat_template(chat_message(PROMPT), add_generation_prompt=True)
    inputs = processor.collate([text], [processor.process_clip(clip)], [Scanpath.from_array(TABLE)])
    is_video = inputs["input_ids"][0] == processor.video_token_id
    first, last = is_video.nonzero().squeeze(-1)[[0, -1]].tolist()
    length = len(is_video)
    sees = torch.ones(length, length, dtype=torch.bool).tril()
    for row in range(first, length):
        begin = first + (row - first) // STEP_TOKENS * STEP_TOKENS if row <= last else last + 1
        sees[row, first : max(begin - budget, first)] = False
    tokens = answer_tokens(processor.tokenizer, ["A", "B", "C"])
    positions = positions_of(model.backbone.config, inputs)
    inputs["attention_mask"] = None
    with torch.no_grad():
        unlimited = option_logits(model, inputs | {"position_ids": positions}, [tokens])[0].numpy()
        masked = inputs | {"position_ids": positions, "attention_mask": {"full_attention": sees[None, None]}}
        expected = option_logits(model, masked, [tokens])[0].numpy()
    context = stream.context
    with stream._kept(on_success=False):  # the question at the end of the last whole step
        text = stream._prompt([*chat_message(PROMPT)], answer_follows=True)
        question, _ = context.text_tokens(stream._following(text))
        with torch.no_grad():
            answer = option_logits(model, stream._call_inputs(question), [tokens])[0].numpy()
    np.testing.assert_allclose(answer, expected, atol=1e-4)
    assert abs(expected - unlimited).max() > 1e-3


@pytest.mark.parametrize(
    "policy, budget, calls",
    [("recent", 4, 8), ("recent", 31, 2), ("gaze", 10, 7), ("gaze", 20, 4), ("taper", 10, 7), ("taper", 32, 1)],
)
def test_steps_at_once_forget_as_one_after_the_other_does(streamed, budget, calls, policy):
    """Together run those before which nothing goes; of 8 steps of 4 tokens."""
    stream, other = (backlog(*streamed, budget=budget, policy=policy) for _ in range(2))
    counts = [run_due([stream], at_once=8) for _ in range(calls)]
    assert sum(counts) == 8 and counts[0] == max(budget // STEP_TOKENS, 1)
    while run_due([other]):
        pass
    assert_equal_but_for_rounding(stream, other)


def test_of_steps_at_once_those_run_that_find_room_in_the_range(streamed):
    """As one after the other; the one that finds none is named each time."""
    stream, other = (backlog(*streamed) for _ in range(2))
    for each, at_once in ((stream, 8), (other, 1)):
        run_due([each])
        each.context.range = each.context.place.next + 7
        with pytest.raises(ValueError, match="positions exceed the .* of the base model's range"):
            while run_due([each], at_once):
                pass
    assert 2 < stream.report.steps < 8 and stream.due == other.due
    assert_equal_but_for_rounding(stream, other)


def test_what_goes_by_each_policy(streamed):
    """Of 8 steps; fixations at the upper left token, in the sixth step none."""
    model, processor = streamed
    frames, times = recording()
    table = [[0.1, 0.1, step + 0.5, 1.0] for step in range(9) if step != 5]
    kept = {}
    for policy in ("recent", "gaze"):
        stream = GazeStream(model, processor, fps=FPS, budget=14, policy=policy)
        prompt = len(stream.context.tokens)
        stream.push_fixation(table, until_s=100)
        stream.push(frames, times)
        tokens = stream.context.tokens
        assert tokens.steps[:prompt].tolist() == [-1] * prompt and stream.report.steps == 8
        kept[policy] = [int((tokens.steps == step).sum()) for step in range(8)]
    tokens = tokens.chosen(tokens.is_video & (tokens.steps < 4))
    assert set(tokens.ranks.tolist()) == {0}  # the nearest token of each old step
    assert kept == {"recent": [0, 0, 0, 0, 2, 4, 4, 4], "gaze": [1, 1, 1, 1, 1, 1, 4, 4]}


def remembered(model, steps: int, ranks: torch.Tensor, fixations: dict[int, list] | None = None) -> Context:
    """Return a context without a cache that has seen steps of one grid (H, W), and where each was looked at."""
    context, (height, width) = Context(model), ranks.shape[1:]
    for step in range(steps):
        ids = torch.full((height * width,), model.backbone.config.video_token_id)
        grid = torch.tensor([1, 2 * height, 2 * width])
        context.extend(*context.step_tokens(context.place, ids, grid, 1.0, step, ranks[step]))
        if fixations and step in fixations:
            context.look_again(step, torch.tensor(fixations[step]), height, width)
    return context


@pytest.mark.parametrize("budget", [5, 30, 59, 200])
def test_with_age_fewer_tokens_of_a_step_stay(streamed, budget):
    """Counted one by one; of 40 steps of 3 x 5 tokens those that are recent stay whole."""
    draw = np.random.default_rng(budget)
    ranks = torch.from_numpy(np.stack([draw.permutation(15).reshape(3, 5) for _ in range(40)]))
    context = remembered(streamed[0], 40, ranks)
    everything = context.tokens
    assert context.forget(budget, "taper") == 600 - budget
    counts = [int((context.tokens.steps == step).sum()) for step in range(40)]
    assert counts == sorted(counts) and sum(counts) == budget
    cost = [(int(everything.ranks[i]) + 1) * (39 - int(everything.steps[i])) for i in range(600)]
    expected = sorted(sorted(range(600), key=lambda i: (cost[i], -i))[:budget])
    assert torch.equal(context.tokens.positions, everything.positions[:, expected])
    assert torch.equal(context.tokens.ranks, everything.ranks[expected])
    if budget == 200:
        assert counts[-2:] == [15, 15] and counts[0] > 0


def test_a_place_that_is_looked_at_again_stays_longer(streamed):
    """The same memory, where the last fixation falls into the cell of row 1, column 4, or beside it."""
    ranks = torch.arange(15).reshape(1, 3, 5).repeat(20, 1, 1)
    seen = {}
    for name, place in (("there", [0.99, 0.4]), ("beside", [0.79, 0.4])):
        context = remembered(streamed[0], 20, ranks, {19: [place, [0.01, 0.99]]})
        context.forget(60, "taper")
        seen[name] = [int((context.tokens.ranks == rank).sum()) for rank in (8, 9)]
    assert seen["there"][1] > seen["beside"][1]
    assert seen["there"][0] < seen["beside"][0]


def test_a_stream_tapers_by_its_gaze(streamed):
    """In the toy recording: each token that stays costs less than each that went, in the order in which they came."""
    model, processor = streamed
    stream = GazeStream(model, processor, fps=FPS, budget=14, policy="taper")
    frames, times = recording()
    stream.push_fixation([[0.9, 0.9, step + 0.5, 1.0] for step in range(8)] + [[0.1, 0.1, 8.5, 1.0]], until_s=100)
    stream.push(frames, times)
    tokens = stream.context.tokens.chosen(stream.context.tokens.is_video)
    last = int(tokens.steps.max())
    assert len(tokens) == 14 and int((tokens.steps == last).sum()) == STEP_TOKENS
    corner = torch.tensor([[0.75], [0.75]])
    old = tokens.chosen(tokens.steps < last - 2)
    assert (old.places == corner).all() and (old.ranks == 0).all() and len(old) > 1
    assert set(tokens.fixated[(tokens.places == corner).all(0)].tolist()) == {last}


def test_the_text_of_a_step_goes_with_its_last_token(bases):
    model, processor = adapter(bases, "qwen3_vl")
    stream = watched(model, processor, budget=10)
    tokens = stream.context.tokens
    assert set(tokens.steps[tokens.ranks == -1].tolist()) == set(tokens.steps[tokens.is_video].tolist()) | {-1}
    assert len(stream.ask(QUESTION, OPTIONS).logits) == 3


def test_a_budget_smaller_than_a_step_is_refused(streamed):
    stream = GazeStream(*streamed, fps=FPS, has_gaze=False, budget=3)
    with pytest.raises(ValueError, match="budget: got 3, expected at least the 4 visual tokens of a step"):
        stream.push(*recording())


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl", "qwen3_vl"])
def test_positions_are_moved_back_exactly(bases, family):
    """The first layer's keys are then those of a stream that began with the first step that is left."""
    model, processor = adapter(bases, family, window=1)
    stream = watched(model, processor, budget=3 * STEP_TOKENS)
    context, frames, times = stream.context, *recording()
    assert not context.move_back()
    context.range = context.place.next - 1
    answer = stream.ask(QUESTION, OPTIONS)
    assert context.move_back()
    first = int(context.tokens.steps[context.tokens.is_video][0])
    later = GazeStream(model, processor, fps=FPS, start_s=first)
    later.push_fixation(TABLE, until_s=100)
    shown = times >= np.max(times[times <= first])
    later.push(frames[shown], times[shown])
    assert torch.equal(context.tokens.positions, later.context.tokens.positions)
    assert context.place.next == later.context.place.next
    for name, tolerance in (("keys", 1e-5), ("values", 1e-6)):
        own, expected = (getattr(each.cache.layers[0], name) for each in (context, later.context))
        if family != "qwen3_vl":  # whose steps tell other seconds
            torch.testing.assert_close(own, expected, atol=tolerance, rtol=0)
    for each in (stream, later):  # both go on alike
        each.push(frames[:2], times[:2] + times[-1] + 0.4)
    assert torch.equal(context.tokens.positions[:, -STEP_TOKENS:], later.context.tokens.positions[:, -STEP_TOKENS:])
    assert np.isfinite(list(answer.logits.values())).all()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl", "qwen3_vl"])
def test_a_last_step_that_was_moved_back_can_be_run_again(bases, family):
    """A snapped question does so at its end; beside it, a stream that was moved back before that step."""
    model, processor = adapter(bases, family, window=1)
    frames, times = recording()
    answers = []
    for moved_at, snap_s in ((7.0, 0.0), (8.0, 0.01)):  # there is no fixation to snap
        stream = GazeStream(model, processor, fps=FPS)
        stream.push_fixation(TABLE, until_s=100)
        for begin, end in ((0.0, 7.0), (7.0, 8.0)):
            new = (times >= begin) & (times < end)
            stream.push(frames[new], times[new])
            stream.wait(end)
            if end == moved_at:
                context, positions = stream.context, stream.context.range
                context.forget((stream.report.steps - 3) * STEP_TOKENS, "recent")
                context.range = context.place.next - 1
                assert context.move_back()
                context.range = positions
        answers.append(list(stream.ask(QUESTION, OPTIONS, time_s=8.0, snap_s=snap_s).logits.values()))
    np.testing.assert_allclose(*answers, atol=1e-4)


def test_keys_are_rotated_to_where_they_would_have_been_computed(streamed):
    """Far out, where the angles of positions are rounded; there and back again is nothing."""
    model, _ = streamed
    context, draw = Context(model), torch.Generator().manual_seed(0)
    unrotated = torch.randn(1, 2, 50, 8, generator=draw, dtype=torch.float64)
    old = torch.randint(20000, 30000, (3, 50), generator=draw)
    rotary = model.backbone.model.language_model.rotary_emb

    def rotated(positions: torch.Tensor) -> torch.Tensor:
        cos, sin = (part[:, None].double() for part in rotary(torch.zeros(1), positions[:, None]))
        first, second = unrotated.chunk(2, dim=-1)
        return unrotated * cos + torch.cat([-second, first], dim=-1) * sin

    context.cache.update(rotated(old).float(), torch.zeros(1, 2, 50, 8), 0)
    none = torch.full((50,), -1)
    context.tokens = Tokens(none, old, none, none, none, none.expand(2, 50), none)
    new = old - torch.tensor([[19999], [0], [0]])
    context._rotate(new)
    torch.testing.assert_close(context.cache.layers[0].keys, rotated(new).float(), atol=2e-6, rtol=0)


def test_a_full_range_without_a_budget_is_named(streamed):
    stream = watched(*streamed)
    stream.context.range = stream.context.place.next
    frames, times = recording()
    with pytest.raises(ValueError, match="positions exceed the .* of the base model's range.*smaller budget"):
        stream.push(frames, times + 9)


def test_24_hours(bases):
    """A step every half hour: positions pass the base model's range several times, the memory stays as it is."""
    model, processor = adapter(bases, window=1)
    budget, every_s = 3 * STEP_TOKENS, 900.0
    arguments = {"fps": 1 / every_s, "max_gap_s": 2000}
    pictures, _ = recording()

    def see(stream, number: int) -> None:
        time_s = number * every_s
        stream.push_fixation([[0.1 * (number % 10), 0.5, time_s + 100, 80]], until_s=time_s + every_s)
        stream.push(pictures[number % 40], time_s)

    stream, count = GazeStream(model, processor, **arguments, budget=budget), 24 * 4
    moves, lengths, highest = 0, set(), 0
    for number in range(count + 1):
        before = stream.context.place.removed
        see(stream, number)
        moves += stream.context.place.removed != before
        highest = max(highest, stream.context.place.next)
        lengths |= {len(stream.context.tokens)} if number > 10 else set()
    assert stream.report.steps == count // 2 and moves >= 5 and highest <= stream.context.range
    assert len(lengths) == 1 and stream.context.video_tokens == budget
    assert len(stream._gaze.table) < 10 and stream.report.late_gaze == 0
    late = GazeStream(model, processor, **arguments, start_s=(count - 6) * every_s)
    for number in range(count - 6, count + 1):
        see(late, number)
    shifts = late.context.tokens.positions - stream.context.tokens.positions
    prompt = len(late.context.tokens) - budget
    assert (shifts[:, :prompt] == 0).all() and len(set(shifts[0, prompt:].tolist())) == 1
    late.context._rotate(stream.context.tokens.positions)
    own, expected = (each.context.cache.layers[0].keys for each in (stream, late))
    torch.testing.assert_close(own, expected, atol=1e-5, rtol=0)
    assert np.isfinite(list(stream.ask(QUESTION, OPTIONS).logits.values())).all()
