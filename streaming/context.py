"""What the decoder has seen of a stream: its key-value cache, where each token stands, and which of them stay."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from transformers import DynamicCache

from gazeqwen.backbones_gazeqwen import decoder_of, family_of, token_types, trained_positions
from gazeqwen.positions_gazeqwen import time_offsets

# Positions that are left for a question and its answer, of large ranges.
_RESERVE = 1024

_TEXT = -1  # in place of a token's step and rank


@dataclass(frozen=True)
class Tokens:
    """
    Hold what is known of L tokens: their `ids` (L,), `positions` (3, L) on the axes time, row and column, the number
    of their `segments` (L,), of their temporal `steps` (L,), the `ranks` (L,) by which those of an old step go, the
    highest first, their `places` (2, L) in the frame, x and y of the centre from 0 to 1, and `fixated` (L,), the last
    step in which that place was looked at, or else their own. Text (which may be a step's) has -1 for rank and place.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    steps: torch.Tensor
    ranks: torch.Tensor
    places: torch.Tensor
    fixated: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def none(cls) -> "Tokens":
        """Return no tokens."""
        empty = torch.empty(0, dtype=torch.long)
        return cls(empty, empty.expand(3, 0), empty, empty, empty, torch.empty(2, 0), empty)

    def joined(self, other: "Tokens") -> "Tokens":
        """Return these tokens and, behind them, other ones."""
        return Tokens(
            *(torch.cat([own, new], dim=-1) for own, new in zip(self._fields(), other._fields(), strict=True))
        )

    def chosen(self, index: torch.Tensor) -> "Tokens":
        """Return the tokens of an index or mask (L,)."""
        return Tokens(*(values[..., index] for values in self._fields()))

    def _fields(self) -> tuple[torch.Tensor, ...]:
        return self.ids, self.positions, self.segments, self.steps, self.ranks, self.places, self.fixated

    @property
    def is_video(self) -> torch.Tensor:
        """Return which of them are visual tokens, (L,) bool."""
        return self.ranks != _TEXT


@dataclass(frozen=True)
class Place:
    """
    Say where the next token goes: at position `next`. A segment is a text, or the part of a prompt that one video is
    (where text tells the time, one step); `starts` are the positions at which they begin. Of the video that is open
    (`in_video`) `video_steps` steps were seen, and `removed` is by how much its positions in time were moved back.
    """

    next: int = 0
    starts: tuple[int, ...] = ()
    video_steps: int = 0
    removed: int = 0
    in_video: bool = False


def forgotten(
    ranks: torch.Tensor, steps: torch.Tensor, fixated: torch.Tensor, budget: int, policy: str
) -> torch.Tensor:
    """
    Return which of V visual tokens, in the order in which they came, go where more than `budget` are there, as
    `Context.forget` says: their places (excess,). Of each (V,): its rank by nearness to gaze, the step in which it
    came, and the last one in which its place was looked at.
    """
    excess = len(ranks) - budget
    if policy == "recent":
        return torch.arange(excess)
    if policy == "gaze":
        return ranks[: len(ranks) - budget // 2].argsort(descending=True, stable=True)[:excess]
    age = 2 * steps.max() - steps - fixated  # twice
    return ((ranks + 1) * age).argsort(descending=True, stable=True)[:excess]


@dataclass
class Context:
    """
    Hold a cache of `model`'s decoder for one prompt, its `tokens` and `place`. What is given to the model comes from
    `text_tokens` and `step_tokens`; after the model's call on the cache, `extend` says what it holds now.
    """

    model: torch.nn.Module
    cache: DynamicCache = field(default_factory=DynamicCache)
    tokens: Tokens = field(default_factory=Tokens.none)
    place: Place = field(default_factory=Place)

    def __post_init__(self):
        config = self.model.backbone.config
        self.family = family_of(config)
        positions = config.get_text_config().max_position_embeddings
        self.range = positions - min(_RESERVE, positions // 4)
        self.tokens_per_second = config.vision_config.tokens_per_second if self.family.seconds_in_positions else None

    @property
    def video_tokens(self) -> int:
        """Return how many visual tokens the cache holds."""
        return int(self.tokens.is_video.sum())

    # ------------------------------------------------------------ going back
    @contextmanager
    def kept(self, on_success: bool) -> Iterator[None]:
        """
        Keep what is done to the context within this block, `on_success`, or nothing of it: then, and after an
        exception, it is bit for bit what it was.
        """
        before, done = self.saved(), False
        try:
            yield
            done = True
        finally:
            if not (done and on_success):
                self.restore(before)

    def saved(self) -> tuple:
        """Return what `restore` needs. Nothing is copied: the cache's tensors are replaced, never written to."""
        layers = [(layer.keys, layer.values, layer.is_initialized) for layer in self.cache.layers]
        return layers, dict(vars(self.cache)), self.tokens, self.place

    def restore(self, saved: tuple) -> None:
        """Make the context what it was when it was `saved`."""
        layers, attributes, self.tokens, self.place = saved
        vars(self.cache).clear()
        vars(self.cache).update(attributes)
        del self.cache.layers[len(layers) :]
        for layer, (keys, values, is_initialized) in zip(self.cache.layers, layers, strict=True):
            layer.keys, layer.values, layer.is_initialized = keys, values, is_initialized

    # ------------------------------------------------------------ what comes next
    def text_tokens(self, ids: torch.Tensor) -> tuple[Tokens, Place]:
        """Return a text's `ids` (L,) as the next tokens, and the place after them."""
        place = self.place
        positions = (place.next + torch.arange(len(ids))).expand(3, -1)
        segment, text = len(place.starts), torch.full_like(ids, _TEXT)
        nowhere = torch.full((2, len(ids)), float(_TEXT))
        tokens = Tokens(ids, positions, torch.full_like(ids, segment), text, text, nowhere, text)
        return tokens, Place(place.next + len(ids), (*place.starts, place.next))

    def step_tokens(
        self,
        place: Place,
        ids: torch.Tensor,
        grid_thw: torch.Tensor,
        seconds_per_step: float,
        step: int,
        ranks: torch.Tensor,
        kept: torch.Tensor | None = None,
    ) -> tuple[Tokens, Place]:
        """
        Return a temporal step's `ids` (L,), with the text that tells its time where the family has it, as the tokens
        at a place, and the place after them. `grid_thw` (3,): the step's grid of patches; `ranks` (H, W): of its
        visual tokens, of which those `kept` (1, H * W) are in the prompt, None for all.
        """
        config = self.model.backbone.config
        types = token_types(config, ids[None])
        seconds = torch.tensor([seconds_per_step], dtype=torch.float32)
        kept = None if kept is None else kept[None]
        positions, deltas = trained_positions(config, types, None, None, grid_thw[None], seconds, kept)
        positions = positions[:, 0]
        goes_on = place.in_video and not self.family.seconds_in_text
        begin = place.starts[-1] if goes_on else place.next
        starts = place.starts if goes_on else (*place.starts, begin)
        seen, removed = (place.video_steps, place.removed) if goes_on else (0, 0)
        positions = positions + begin
        if not self.family.seconds_in_text:
            offset = seen
            if self.tokens_per_second is not None:
                offset = int(time_offsets(torch.tensor(seen), seconds[0], self.tokens_per_second))
            positions[0] += offset - removed
        segments = torch.full_like(ids, len(starts) - 1)
        height, width = ranks.shape
        down, across = ((torch.arange(size) + 0.5) / size for size in (height, width))
        centres = torch.stack(torch.meshgrid(across, down, indexing="xy")).flatten(1)  # (2, H * W)
        in_prompt = slice(None) if kept is None else kept[0, 0]
        own_ranks, places = torch.full_like(ids, _TEXT), torch.full((2, len(ids)), float(_TEXT))
        own_ranks[types[0] != 0] = ranks.flatten()[in_prompt]
        places[:, types[0] != 0] = centres[:, in_prompt]
        steps = torch.full_like(ids, step)
        tokens = Tokens(ids, positions, segments, steps, own_ranks, places, steps)
        extent = len(ids) + int(deltas)  # of the whole step, of which some tokens may not be kept
        following = max(place.next, begin + extent, int(positions.max()) + 1)
        return tokens, Place(following, starts, seen + 1, removed, True)

    def extend(self, tokens: Tokens, place: Place) -> None:
        """Say that the cache holds further tokens, and where the next one goes."""
        self.tokens, self.place = self.tokens.joined(tokens), place

    def look_again(self, step: int, fixations: torch.Tensor, height: int, width: int) -> None:
        """
        Note in which places visual tokens, of any step so far, are looked at in this one: where a fixation falls into
        the cell of an H x W grid in which a token's centre lies. `fixations` (F, 2): x and y, from 0 to 1.
        """
        size = torch.tensor([width, height])
        cells = (self.tokens.places * size[:, None]).floor()  # (2, L)
        fixated = (fixations * size).floor().minimum(size - 1)  # (F, 2)
        is_fixated = (cells.T[:, None] == fixated).all(-1).any(1) & self.tokens.is_video
        latest = self.tokens.fixated.clamp(min=step)
        self.tokens = replace(self.tokens, fixated=torch.where(is_fixated, latest, self.tokens.fixated))

    def without_step(self, step: int, begin: Place, end: Place) -> None:
        """
        Take the last tokens away, those of a step. It was put between two places, and may have been moved back since
        (`move_back`): the next token goes to where it now begins.
        """
        count, moved = int((self.tokens.steps == step).sum()), end.next - self.place.next
        self.cache.crop(-count)
        self.tokens = self.tokens.chosen(slice(0, len(self.tokens) - count))
        starts = self.place.starts[: len(self.place.starts) - len(end.starts) + len(begin.starts)]
        removed = self.place.removed if begin.in_video else begin.removed
        self.place = replace(begin, next=begin.next - moved, starts=starts, removed=removed)

    # ------------------------------------------------------------ memory that ends
    def forget(self, budget: int, policy: str) -> int:
        """
        Let visual tokens go until there are `budget` at most, and return how many went. `recent`: those of the oldest
        steps. `gaze`: the newest half of the budget stays; of what is older, those of the highest rank go first, and
        of equal ranks the oldest. `taper`: those of the highest product of rank (from 1) and age, in steps, so that of
        a step the fewer stay the older it is. Half of a token's age counts from when its place was last looked at. The
        text of a step goes with the last of its tokens; other text stays.
        """
        video = self.tokens.is_video.nonzero().squeeze(-1)
        excess = len(video) - budget
        if excess <= 0:
            return 0
        own = self.tokens.chosen(video)
        gone = video[forgotten(own.ranks, own.steps, own.fixated, budget, policy)]
        stays = torch.ones(len(self.tokens), dtype=torch.bool)
        stays[gone] = False
        steps_left = self.tokens.steps[stays & self.tokens.is_video]
        stays &= (self.tokens.steps == _TEXT) | torch.isin(self.tokens.steps, steps_left)
        kept = stays.nonzero().squeeze(-1)
        self._replace_cache([self._selected(layer, kept) for layer in self.cache.layers])
        self.tokens = self.tokens.chosen(kept)
        return excess

    def move_back(self) -> bool:
        """
        Where the next position lies beyond the base model's range, give the tokens that are left the positions that
        they would have if the forgotten steps before them had never been, rotate their keys, and return True. Raises
        ValueError where none has been forgotten, so that nothing can be moved.
        """
        if self.place.next <= self.range:
            return False
        tokens, place = self.tokens, self.place
        positions, segments = tokens.positions.clone(), tokens.segments.clone()
        starts: list[int] = []
        removed = begin = 0
        for segment, start in enumerate(place.starts):
            own, is_last = tokens.segments == segment, segment == len(place.starts) - 1
            if not own.any():
                continue
            segments[own] = len(starts)
            starts.append(begin)
            local = tokens.positions[:, own] - start
            if tokens.steps[own][0] != _TEXT and not self.family.seconds_in_text:
                earliest = int(local[0].min())
                local[0] -= earliest
                removed = earliest if is_last and place.in_video else removed
            positions[:, own] = local + begin
            begin += int(local.max()) + 1
        if begin > self.range:
            raise ValueError(
                f"the stream's {begin} positions exceed the {self.range} of the base model's range that are free: "
                "open it with a smaller budget"
            )
        self._rotate(positions)
        self.tokens = replace(tokens, positions=positions, segments=segments)
        self.place = replace(place, next=begin, starts=tuple(starts), removed=place.removed + removed)
        return True

    def _rotate(self, positions: torch.Tensor) -> None:
        """
        Rotate the cached keys to other positions (3, L): back by the angles that the base model computed at their own,
        and on by those that it computes there. Both are rounded, so that the angle of the shift would not do.
        """
        rotary, rotated = decoder_of(self.model.backbone).rotary_emb, []
        for layer in self.cache.layers:
            keys = layer.keys.double()
            (cos, sin), (new_cos, new_sin) = (
                rotary(layer.keys.float(), part[:, None].to(keys.device))
                for part in (self.tokens.positions, positions)
            )
            scale = rotary.attention_scaling
            cos, sin, new_cos, new_sin = (part[:, None].double() / scale for part in (cos, sin, new_cos, new_sin))
            cos, sin = new_cos * cos + new_sin * sin, new_sin * cos - new_cos * sin
            first, second = keys.chunk(2, dim=-1)
            turned = keys * cos + torch.cat([-second, first], dim=-1) * sin
            rotated.append((turned.to(layer.keys.dtype), layer.values))
        self._replace_cache(rotated)

    @staticmethod
    def _selected(layer, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        index = kept.to(layer.keys.device)
        return layer.keys.index_select(2, index), layer.values.index_select(2, index)

    def _replace_cache(self, tensors: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for layer, (keys, values) in zip(self.cache.layers, tensors, strict=True):
            layer.keys, layer.values = keys, values


def merged(contexts: list[Context]) -> tuple[DynamicCache, torch.Tensor]:
    """Return one cache of several contexts, padded on the left, and its mask (B, longest), 0 for padding."""
    if len(contexts) == 1:
        return contexts[0].cache, torch.ones(1, len(contexts[0].tokens), dtype=torch.long)
    lengths = [len(context.tokens) for context in contexts]
    longest, cache = max(lengths), DynamicCache()
    for index in range(len(contexts[0].cache.layers)):
        layers = [context.cache.layers[index] for context in contexts]
        keys, values = (
            torch.cat(
                [
                    torch.nn.functional.pad(getattr(layer, name), (0, 0, longest - length, 0))
                    for layer, length in zip(layers, lengths, strict=True)
                ]
            )
            for name in ("keys", "values")
        )
        cache.update(keys, values, index)
    mask = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
    return cache, mask.long()


def split_last(cache: DynamicCache, contexts: list[Context], count: int) -> None:
    """Give each of several contexts the last `count` tokens of its row of a `merged` cache."""
    if len(contexts) == 1:
        return
    for index, layer in enumerate(cache.layers):
        for row, context in enumerate(contexts):
            own = slice(row, row + 1), slice(None), slice(-count, None)
            context.cache.update(layer.keys[own], layer.values[own], index)


__all__ = ["Context", "Place", "Tokens", "merged", "split_last"]
