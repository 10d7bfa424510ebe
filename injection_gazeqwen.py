"""What a call hands from the resampler to the decoder's layers, and the hooks that add it there."""

import threading
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from .backbones_gazeqwen import VideoDeepstack
from .positions_gazeqwen import padded_shape, tokens_of_grids
from .resampler_gazeqwen import ResidualFactors, check_scanpath_times
from .video_encoders_gazeqwen import check_frames

# What the model takes beside the base model's own inputs, one row per video each.
GAZE_INPUTS = (
    "video_encoder_pixel_values",
    "video_encoder_features",
    "scanpaths",
    "scanpath_mask",
    "has_scanpath",
    "step_spans_s",
)


# Attribute of a cache: for which of its prompts, (B,), it was filled with LoRA. It is copied with the cache.
_HAS_GAZE = "gazeqwen_has_gaze"


@dataclass
class PassInjection:
    """
    What the layers of one pass of the decoder add: row `source` (P,) of the residuals (V*T*N rows) to position
    `positions` (P,) of the flattened hidden states (B*L rows). `has_gaze` (B,) says for which samples LoRA is on, None
    without LoRA; `lora_gate` is the same, None where nothing has to be switched off. `starts_cache`: no position comes
    before these.
    """

    positions: torch.Tensor | None
    source: torch.Tensor | None
    factors: ResidualFactors | None
    has_gaze: torch.Tensor | None
    lora_gate: torch.Tensor | None
    starts_cache: bool

    def add_to(self, hidden_states: torch.Tensor, index: int) -> torch.Tensor:
        """Return `hidden_states` (B, L, D) plus the residuals of injection layer number `index`, out of place."""
        residual = self.factors.layer(index).flatten(0, 2)[self.source]  # (P, D)
        positions = self.positions.to(hidden_states.device)
        return hidden_states.flatten(0, 1).index_add(0, positions, residual.to(hidden_states)).view_as(hidden_states)

    def mark(self, cache) -> None:
        """Write on the cache that is filled for which prompts LoRA is on, for the calls that go on from it."""
        if cache is not None and self.has_gaze is not None and (self.starts_cache or not hasattr(cache, _HAS_GAZE)):
            setattr(cache, _HAS_GAZE, self.has_gaze)


@dataclass
class GazeInjection:
    """
    What one call adds to the decoder. `rows` (B, L) is the row of the residuals (V*T*N rows, padding included) that
    each position of the call's `input_ids` receives, -1 for none: text, images, and videos without gaze; None where
    the call has no scanpath, as the steps after a prompt, which can thus be compiled. `has_gaze`
    (B,) bool says for which prompts LoRA is on, None without LoRA. `start` is the position of the first of `input_ids`
    in the cache: 0 unless they are a later chunk of a prompt.
    """

    rows: torch.Tensor | None
    has_gaze: torch.Tensor | None
    factors: ResidualFactors | None = None
    start: int = 0

    def __post_init__(self):
        self._gated = self.has_gaze is not None
        if self._gated and not torch.compiler.is_compiling():  # a graph cannot depend on values
            self._gated = not bool(self.has_gaze.all())

    def at(self, past_length: int, batch_size: int, length: int) -> PassInjection:
        """
        Return what is added to `length` positions after the first `past_length` of the cache, each prompt repeated to
        fill `batch_size` (beams of a prompt are neighbours). Raises ValueError for positions before the call's own.
        """
        prompts = len(self.rows) if self.rows is not None else len(self.has_gaze)
        if batch_size % prompts:
            raise ValueError(f"got a batch of {batch_size}, expected a multiple of the {prompts} prompts")
        repeats = batch_size // prompts
        has_gaze = None if self.has_gaze is None else self.has_gaze.repeat_interleave(repeats, 0)
        gate, starts_cache = has_gaze if self._gated else None, past_length == 0
        if self.rows is None:
            return PassInjection(None, None, None, has_gaze, gate, starts_cache)
        if past_length < self.start:
            raise ValueError(f"got position {past_length} of the cache, expected the call's own, from {self.start} on")
        first = past_length - self.start
        rows = self.rows[:, first : first + length]
        rows = nn.functional.pad(rows, (0, length - rows.shape[1]), value=-1).repeat_interleave(repeats, 0).flatten()
        positions = (rows >= 0).nonzero().squeeze(-1)
        factors = self.factors if len(positions) else None
        return PassInjection(positions, rows[positions], factors, has_gaze, gate, starts_cache)


def prompts_with_gaze(has_scanpath: torch.Tensor, stated: torch.Tensor | None, cache, past_length: int):
    """
    Return for which prompts LoRA is on, (B,) bool: it is on for all positions of a prompt whose video has a scanpath.
    A call that holds the whole prompt says so itself, `has_scanpath` (B,). A chunk goes on as the first
    `past_length` positions of its `cache` were computed, which the cache remembers; where the chunk with the scanpath
    is not the first, the first must be told: `stated` (B,), the argument `has_gaze` of `forward`.

    Raises ValueError where cache and caller contradict each other, or tell nothing: not of a cache that others filled.
    """
    if stated is not None:
        if stated.shape != has_scanpath.shape:
            raise ValueError(f"has_gaze is {tuple(stated.shape)}, expected {tuple(has_scanpath.shape)}, one a prompt")
        stated = stated.to(has_scanpath.device).bool()
    cached = getattr(cache, _HAS_GAZE, None) if past_length else None
    if cached is not None:
        if len(cached) != len(has_scanpath):
            raise ValueError(f"the cache holds {len(cached)} prompts, expected {len(has_scanpath)} as in input_ids")
        cached = cached.to(has_scanpath.device)
        if stated is not None and not torch.equal(stated, cached):
            raise ValueError(f"has_gaze is {stated.tolist()}, expected {cached.tolist()}: so was the cache filled")
    known = stated if stated is not None else cached
    if known is None and past_length:
        raise ValueError(
            f"LoRA is on for prompts with gaze alone, and the cache of {past_length} positions was not filled by this "
            "model's forward or generate: state has_gaze (B,)"
        )
    return has_scanpath if known is None else known


def check_gaze_from_start(has_scanpath: torch.Tensor, with_gaze: torch.Tensor) -> None:
    """Raise ValueError for prompts, (B,) bool, that have a scanpath where LoRA is off by `prompts_with_gaze`."""
    if contradictions := (has_scanpath & ~with_gaze).nonzero().flatten().tolist():
        raise ValueError(
            f"prompt {contradictions[0]} has a scanpath, expected none: its earlier positions are computed without "
            "gaze, LoRA off; state has_gaze from the first chunk on"
        )


def cache_length(cache) -> int:
    """Return how many positions a cache holds; none, where there is no cache."""
    return 0 if cache is None else int(cache.get_seq_length())


class CallState(threading.local):
    """
    What the hooks know of the running call: each thread has its own. Copies and pickles know of none.

    Args:
        injection: of the running forward or generate.
        lora_gate: of the running attention layer.
        deepstack: of the running call's prompts, until the decoder has it.
        gaze_enabled: False within `gaze_disabled`.
    """

    injection: GazeInjection | None = None
    lora_gate: torch.Tensor | None = None
    deepstack: VideoDeepstack | None = None
    gaze_enabled = True

    def __reduce__(self):
        return CallState, ()


class DecoderHooks:
    """
    Forward hooks on a decoder: they hand the `GazeInjection` of the running call to its layers as a keyword argument,
    add the residuals to the output of the injection layers, and switch LoRA off for samples without gaze. They live
    until `detach`, through backward: gradient checkpointing keeps a layer's keyword arguments for its second run.
    """

    def __init__(self):
        self.state = CallState()
        self.attached = False
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self, decoder: nn.Module, injection_layers: list[int], lora_outputs: Iterable[nn.Module]) -> None:
        """Register hooks on `decoder`, its `injection_layers`, and the modules whose output is LoRA's."""
        self.attached = True  # which a compiler can read, not the handles
        register = self._handles.append
        register(decoder.register_forward_pre_hook(self._hand_to_layers, with_kwargs=True))
        for layer in decoder.layers:
            register(layer.self_attn.register_forward_pre_hook(self._take_from_attention, with_kwargs=True))
        for index, layer_index in enumerate(injection_layers):
            register(
                decoder.layers[layer_index].register_forward_hook(partial(_add_residual, index), with_kwargs=True)
            )
        for module in lora_outputs:
            register(module.register_forward_hook(self._gate_lora))

    def detach(self) -> None:
        """Remove all hooks."""
        self.attached = False
        while self._handles:
            self._handles.pop().remove()

    @contextmanager
    def during(self, injection: GazeInjection | None, deepstack: VideoDeepstack | None = None):
        """
        Within this context the decoder's layers receive `injection`, unless the hooks are detached, and its first call
        `deepstack`: in this thread, and until a context within this one takes over.
        """
        state = self.state
        outer = state.injection, state.lora_gate, state.deepstack
        state.injection, state.lora_gate, state.deepstack = injection if self.attached else None, None, deepstack
        try:
            yield
        finally:
            state.injection, state.lora_gate, state.deepstack = outer

    def add_deepstack(self, decoder, args, kwargs):
        """Add the `deepstack` of `during` to the arguments of the decoder, once. A forward pre-hook."""
        deepstack, self.state.deepstack = self.state.deepstack, None
        if deepstack is None:
            return None
        return args, deepstack.repeated(len(kwargs["inputs_embeds"])).added_to(kwargs)

    @property
    def gaze_enabled(self) -> bool:
        """Return whether this thread is outside `gaze_disabled`."""
        return self.state.gaze_enabled

    @contextmanager
    def gaze_disabled(self):
        """Within this context `gaze_enabled` is False in this thread."""
        outer, self.state.gaze_enabled = self.state.gaze_enabled, False
        try:
            yield
        finally:
            self.state.gaze_enabled = outer

    def _hand_to_layers(self, decoder, args, kwargs):
        call = self.state.injection
        if call is None:
            return None
        batch_size, length = kwargs["inputs_embeds"].shape[:2]
        past_length = cache_length(kwargs.get("past_key_values"))
        return args, {**kwargs, "gaze_injection": call.at(past_length, batch_size, length)}

    def _take_from_attention(self, attention, args, kwargs):
        injection = kwargs.pop("gaze_injection", None)  # attention kernels know nothing of it
        self.state.lora_gate = None if injection is None else injection.lora_gate
        if injection is not None:
            injection.mark(kwargs.get("past_key_values"))  # also one that the decoder made itself
        return args, kwargs

    def _gate_lora(self, module, args, output):
        gate = self.state.lora_gate
        if gate is None:
            return None
        return output.masked_fill(~gate.to(output.device)[:, None, None], 0)  # as a factor 0 would let NaN through


def _add_residual(index: int, layer, args, kwargs, output):
    injection = kwargs.get("gaze_injection")
    return None if injection is None or injection.factors is None else injection.add_to(output, index)


def videos_with_scanpath(gaze: dict[str, torch.Tensor | None], grids: torch.Tensor) -> torch.Tensor:
    """Return which videos of the (V, 3) `grids` have a scanpath, (V,) bool: all, unless `has_scanpath` says it."""
    has_scanpath = gaze["has_scanpath"]
    if has_scanpath is None:
        return torch.ones(len(grids), dtype=torch.bool, device=grids.device)
    return has_scanpath.to(grids.device).bool()


def rows_of_prompts(
    is_video: torch.Tensor, grids: torch.Tensor, has_scanpath: torch.Tensor, kept_tokens: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Return, for each position of the prompts, its row among the residuals of the videos with gaze, padded to
    (V', T, N); -1 for text, images and videos without gaze. `is_video` (B, L) marks the video tokens of all videos in
    their order, `grids` (V, 3) = T, H, W, `has_scanpath` (V,), `kept_tokens` (V, T, N) those in the prompts, None for
    all -> (B, L).
    """
    rows = torch.full_like(is_video, -1, dtype=torch.long)
    if not has_scanpath.any():
        return rows
    gazed = grids[has_scanpath]
    _, steps, tokens = padded_shape(gazed)
    is_token = tokens_of_grids(gazed, (len(gazed), steps, tokens))
    counts = grids.prod(-1)
    if kept_tokens is not None:
        kept_tokens = kept_tokens.to(grids.device)
        is_token &= kept_tokens[has_scanpath][:, :steps, :tokens]
        counts = kept_tokens.flatten(1).sum(-1)
    with_gaze = torch.repeat_interleave(has_scanpath, counts)  # (tokens,)
    of_tokens = torch.full_like(with_gaze, -1, dtype=torch.long)
    of_tokens[with_gaze] = is_token.flatten().nonzero().squeeze(-1)
    rows[is_video] = of_tokens
    return rows


def resampler_inputs(
    gaze: dict[str, torch.Tensor | None], features: torch.Tensor, has_scanpath: torch.Tensor, grids: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """
    Return the arguments of the resampler's `factors` for the V' videos with a scanpath, `has_scanpath` (V,) of `grids`
    (V, 3), on the device of their `features` (V', T, N, D_v): features, scanpaths, fixation mask, spans and (V', 2)
    sizes of a step, cut to the longest and the largest of them.
    """
    scanpaths, fixation_mask, device = gaze["scanpaths"], gaze["scanpath_mask"], features.device
    if fixation_mask is None:
        fixation_mask = torch.ones(scanpaths.shape[:2], dtype=torch.bool, device=scanpaths.device)
    gazed = grids[has_scanpath]
    _, steps, tokens = padded_shape(gazed)
    return (
        features[:, :steps, :tokens],
        scanpaths[has_scanpath].to(device),
        fixation_mask[has_scanpath].to(device).bool(),
        gaze["step_spans_s"][has_scanpath].to(device)[:, :steps],
        gazed[:, 1:].to(device),
    )


def check_gaze_inputs(
    is_video: torch.Tensor | None,
    grids: torch.Tensor,
    feature_dim: int | None,
    frames_per_step: int,
    gaze: dict[str, torch.Tensor | None],
    kept_tokens: torch.Tensor | None = None,
) -> None:
    """
    Raise ValueError unless the `GAZE_INPUTS` in `gaze` fit the (V, 3) token grids, naming what is there and expected.
    `is_video` (B, L) marks the video tokens of the prompts, None where there are no prompts. A model without a video
    encoder, `feature_dim` None, needs no features of it. `kept_tokens` (V, T, N): those in the prompts, None for all.
    """
    count, names = int(grids.prod(-1).sum()), "video_grid_thw stands"
    if kept_tokens is not None:
        count, names = int(kept_tokens.sum()), "kept_tokens stand"
    if is_video is not None and int(is_video.sum()) != count:
        raise ValueError(f"the prompts hold {int(is_video.sum())} video tokens, {names} for {count}")
    videos, steps, tokens = padded_shape(grids)
    scanpaths, spans = gaze["scanpaths"], gaze["step_spans_s"]
    pixels, features = gaze["video_encoder_pixel_values"], gaze["video_encoder_features"]
    if spans is None:
        raise ValueError("scanpaths need step_spans_s (videos, T, 2), the seconds that each temporal step spans")
    if features is None and pixels is None and feature_dim is not None:
        raise ValueError("scanpaths need video_encoder_pixel_values or video_encoder_features")
    for name, value in gaze.items():
        if value is not None and len(value) != videos:
            raise ValueError(f"{name} has {len(value)} rows, expected one for each of the {videos} videos")
    expected: dict[str, tuple[int | str, ...]] = {"scanpaths": (videos, "F", 4), "step_spans_s": (videos, steps, 2)}
    if features is not None and feature_dim is not None:
        expected["video_encoder_features"] = (videos, steps, tokens, feature_dim)
    for name, shape in expected.items():
        got = tuple(gaze[name].shape)
        if len(got) != len(shape) or any(size not in ("F", own) for size, own in zip(shape, got, strict=True)):
            raise ValueError(f"{name} is {got}, expected {shape} for the token grids {grids.tolist()}")
    if features is None and pixels is not None:
        check_frames(pixels, grids, frames_per_step)
    for name in ("scanpaths", "step_spans_s"):
        if gaze[name].dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} is {gaze[name].dtype}, expected float32: halves cannot hold times")
    is_step = torch.arange(spans.shape[1], device=spans.device) < grids[:, :1].to(spans.device)  # (V, T)
    check_scanpath_times(scanpaths, spans, is_step)


__all__ = [
    "GAZE_INPUTS",
    "DecoderHooks",
    "GazeInjection",
    "PassInjection",
    "cache_length",
    "check_gaze_from_start",
    "check_gaze_inputs",
    "prompts_with_gaze",
    "resampler_inputs",
    "rows_of_prompts",
    "videos_with_scanpath",
]
