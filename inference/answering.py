"""Answer one question about one clip with gaze and without: what ask.py prints and app.py shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.pipeline.answers import Answer, answer_tokens, check_finite_logits, option_logits, own_words
from gazeqwen.processing_gazeqwen import GazeQwenInputs, GazeQwenProcessor
from gazeqwen.questions.prompts import chat_message
from gazeqwen.resampler_gazeqwen import fixation_weights
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.video_gazeqwen import Clip


@dataclass(frozen=True)
class Snap:
    """
    A fixation (its id) that snapping put into the last temporal step (`Scanpath.snap`), and what is true: from when to
    when it lasts, in seconds of the video, and which fixation (id) is `looked_at` at `query_s`, None: there is none.
    """

    fixation: int
    begin_s: float
    end_s: float
    query_s: float
    looked_at: int | None

    def __str__(self) -> str:
        place = "after" if self.begin_s > self.query_s else "before"
        now = "there is no fixation" if self.looked_at is None else f"the wearer looks at fixation {self.looked_at}"
        return (
            f"snapped by {abs(self.begin_s - self.query_s):.2f} s: fixation {self.fixation} begins at "
            f"{self.begin_s:.2f} s, {place} the question, and fills the last step; at {self.query_s:.2f} s {now}"
        )


@dataclass(frozen=True)
class StepShares:
    """
    A temporal step of a clip, in seconds of the video, and the share of it that each fixation (id) covers. `snapped`:
    the fixation that snapping put there, None elsewhere.
    """

    begin_s: float
    end_s: float
    shares: dict[int, float]
    snapped: int | None = None

    def __str__(self) -> str:
        parts = []
        for fixation, share in self.shares.items():
            mark = " (snapped)" if fixation == self.snapped else ""
            parts.append(f"fixation {fixation}: {100 * share:.0f} %{mark}")
        return ", ".join(parts) or "no fixation"


@dataclass(frozen=True, eq=False)
class Comparison:
    """
    A question's answers, `with gaze` (unless no scanpath was given) and `without gaze`, and what the model saw.
    `scanpath`: the F fixations in the clip; `weights` (T, F): the share of each temporal step that each covers;
    `step_spans_s` (T, 2): when each step begins and ends; `snap`: what snapping changed in `scanpath`, None: nothing.
    Asked to explain: `attention` (T, H, W), how much the foveal latents of the first injection layer attend to each
    visual token, None where the resampler has no latents; `residuals` (T, H, W), the length of what is added to each
    visual token, mean over the injection layers.
    """

    clip: Clip
    step_spans_s: np.ndarray
    answers: dict[str, Answer]
    scanpath: Scanpath | None = None
    weights: np.ndarray | None = None
    attention: np.ndarray | None = None
    residuals: np.ndarray | None = None
    snap: Snap | None = None

    def snapped_in(self, step: int) -> int | None:
        """Return the fixation (id) that snapping put into a temporal step: None in every step but the last."""
        last = step == len(self.step_spans_s) - 1
        return self.snap.fixation if self.snap is not None and last else None

    def steps(self) -> list[StepShares]:
        """Return for each temporal step which fixations cover which share of it; without a scanpath, nothing."""
        if self.scanpath is None:
            return []
        steps = []
        for step, (begin_s, end_s) in enumerate(self.step_spans_s.tolist()):
            weights = self.weights[step]
            shares = {int(self.scanpath.ids[index]): float(weights[index]) for index in np.flatnonzero(weights)}
            steps.append(StepShares(begin_s, end_s, shares, self.snapped_in(step)))
        return steps

    def moments_s(self) -> np.ndarray:
        """
        Return (T,) the moment of the video that stands for each temporal step in a picture: the middle of the fixation
        that covers most of the step, as far as it lies in the step, or of the step where there is none. Of a snapped
        fixation its true time counts, but never one after the question.
        """
        moments = self.step_spans_s.mean(axis=1)
        for step, (begin_s, end_s) in enumerate(self.step_spans_s):
            if self.scanpath is None or not self.weights[step].any():
                continue
            main = int(self.weights[step].argmax())
            fixation_s = self.scanpath.begin_s[main], self.scanpath.end_s[main]
            if self.snap is not None and self.scanpath.ids[main] == self.snap.fixation:
                fixation_s = self.snap.begin_s, self.snap.end_s
            moments[step] = np.clip(fixation_s, begin_s, end_s).mean()
        return moments


def scanpath_doubts(scanpath: Scanpath, video_end_s: float) -> list[str]:
    """Return in words what speaks against a scanpath being that of a video that ends at `video_end_s`."""
    if not len(scanpath):
        return ["The table has no fixation, so that gaze says nothing"]
    after = int((scanpath.begin_s >= video_end_s).sum())
    if not after:
        return []
    which = "all" if after == len(scanpath) else f"{after} of {len(scanpath)}"
    end_s = scanpath.end_s.max()
    return [
        f"The fixations last until {end_s:.1f} s, the video until {video_end_s:.1f} s: {which} begin after the "
        "video's end. Is it the table of this video?"
    ]


@torch.no_grad()
def ask(
    model: GazeQwenForConditionalGeneration,
    processor: GazeQwenProcessor,
    clip: Clip,
    scanpath: Scanpath | None,
    prompt: str,
    answers: dict[str, str],
    snap_s: float = 0.0,
    explain: bool = False,
    max_new_tokens: int = 128,
) -> Comparison:
    """
    Ask about a clip, with the whole video's `scanpath` and without, and return both answers. `prompt`, `answers`: as
    `build_prompt` returns them. `snap_s`: bring a fixation that begins so near to the clip's end into view. `explain`:
    say where the foveal latents look and how much is added where.
    """
    text = processor.apply_chat_template(chat_message(prompt), add_generation_prompt=True)
    processed = _encode_clip(model, processor, clip, scanpath is not None, bool(answers))
    spans = processed["step_spans_s"]

    def inputs_for(gaze: Scanpath | None) -> GazeQwenInputs:
        inputs = processor.collate([text], [processed], [gaze], snap_s=[snap_s if gaze is not None else 0.0])
        return inputs.to(model.device)

    def answer(gaze: Scanpath | None) -> Answer:
        return _answer(model, processor, inputs_for(gaze), answers, max_new_tokens)

    without_gaze = {"without gaze": answer(None)}
    if scanpath is None:
        return Comparison(clip, spans.numpy(), without_gaze)
    both = {"with gaze": answer(scanpath)} | without_gaze
    clip_scanpath, snap = _clip_scanpath(scanpath, clip, spans.tolist()[-1], snap_s)
    weights = fixation_weights("share", torch.tensor(clip_scanpath.table), spans.double()).numpy()
    attention = residuals = None
    if explain and model.config.has_resampler:
        inputs = inputs_for(scanpath)
        height, width = model.token_grids(processed["video_grid_thw"][None])[0, 1:].tolist()
        attention = _foveal_attention(model, inputs, height, width)
        lengths = model.gaze_residuals(**inputs).norm(dim=-1).mean(0)[0]  # (T, H*W)
        residuals = lengths.unflatten(-1, (height, width)).cpu().numpy()
    return Comparison(clip, spans.numpy(), both, clip_scanpath, weights, attention, residuals, snap)


def _encode_clip(model, processor, clip: Clip, with_gaze: bool, with_options: bool) -> dict[str, torch.Tensor]:
    """Return `process_clip`'s output with what is frozen computed once, for both answers."""
    encoded = with_gaze and model.config.has_video_encoder
    processed = processor.process_clip(clip, for_video_encoder=encoded)
    grid = processed["video_grid_thw"][None].to(model.device)
    if encoded:
        pixels = processed.pop("video_encoder_pixel_values")[None].to(model.device)
        processed["video_encoder_features"] = model.encode_video(pixels, grid)[0]
    if with_gaze and with_options:  # `generate` takes pixels alone
        pixels = processed.pop("pixel_values_videos").to(model.device)
        processed["video_embeds"] = model.embed_video(pixels, grid)
    return processed


def _clip_scanpath(
    scanpath: Scanpath, clip: Clip, last_step_s: tuple[float, float], snap_s: float
) -> tuple[Scanpath, Snap | None]:
    """Return what the model sees of a scanpath, cut and snapped as `collate` does it, and what snapping changed."""
    step_begin_s, query_s = last_step_s
    unsnapped = scanpath.clip(clip.start_s, query_s)
    index = scanpath.index_to_snap(query_s, snap_s) if snap_s else None
    if index is None:
        return unsnapped, None
    snapped = scanpath.snap(query_s, step_begin_s, snap_s).clip(clip.start_s, query_s)
    if len(snapped) == len(unsnapped) and np.allclose(snapped.table, unsnapped.table):
        return unsnapped, None
    index_at_query = scanpath.index_at(query_s)
    looked_at = None if index_at_query is None else int(scanpath.ids[index_at_query])
    begin_s, end_s = float(scanpath.begin_s[index]), float(scanpath.end_s[index])
    return snapped, Snap(int(scanpath.ids[index]), begin_s, end_s, query_s, looked_at)


def _answer(model, processor, inputs: GazeQwenInputs, answers: dict[str, str], max_new_tokens: int) -> Answer:
    """Return the most probable of `answers`, or without any what the model says in its own words."""
    if answers:
        logits = option_logits(model, inputs, [answer_tokens(processor.tokenizer, list(answers))])
        check_finite_logits(logits)
        probabilities = dict(zip(answers.values(), logits.softmax(-1)[0].tolist(), strict=True))
        return Answer(max(probabilities, key=probabilities.get), probabilities)
    return Answer(own_words(model, processor, inputs, max_new_tokens), {})


def _foveal_attention(model, inputs: GazeQwenInputs, height: int, width: int) -> np.ndarray | None:
    """Return (T, H, W), the mean attention of the first injection layer's foveal latents; None without latents."""
    if model.config.resampler_type != "attention":
        return None
    latents = model.latent_attention(**inputs)[0, 0]  # (T, K, H*W)
    if model.config.gaze_encoding == "foveated":
        latents = latents[:, : latents.shape[1] // 2]
    return latents.mean(1).unflatten(-1, (height, width)).cpu().numpy()
