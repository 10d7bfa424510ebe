"""One question about one clip, answered with gaze and without: what ask.py prints and app.py shows."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

import numpy as np
import torch

from gazeqwen.configuration_gazeqwen import GazeQwenConfig
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.pipeline.answers import answer_tokens, option_logits
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.questions.prompts import OPTION_LETTERS, chat_message, format_question
from gazeqwen.resampler_gazeqwen import fixation_weights
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.video_gazeqwen import Clip


@dataclass(frozen=True)
class Answer:
    """What the model said: the option it finds most probable, or its own words (`probabilities` is then empty)."""

    text: str
    probabilities: dict[str, float]

    def __str__(self) -> str:
        return f"{self.text} ({100 * self.probabilities[self.text]:.1f} %)" if self.probabilities else self.text


@dataclass(frozen=True, eq=False)
class Asked:
    """
    A question's answers, `with gaze` (unless none was given) and `without gaze`, and what the model saw. `scanpath`:
    the F fixations in the clip; `weights` (T, F): the share of each temporal step that each of them covers;
    `step_spans_s` (T, 2): when each step begins and ends. Asked to explain: `attention` (T, H, W), how much the foveal
    latents of the first injection layer attend to each visual token, None where the resampler has no latents;
    `residuals` (T, H, W), the length of what is added to each visual token, mean over the injection layers.
    """

    clip: Clip
    step_spans_s: np.ndarray
    answers: dict[str, Answer]
    scanpath: Scanpath | None = None
    weights: np.ndarray | None = None
    attention: np.ndarray | None = None
    residuals: np.ndarray | None = None

    def counted(self) -> list[tuple[float, float, dict[int, float]]]:
        """For each temporal step its begin and end in seconds, and the share of it that each fixation (id) covers."""
        if self.scanpath is None:
            return []
        found = []
        for (begin, end), row in zip(self.step_spans_s.tolist(), self.weights, strict=True):
            found.append((begin, end, {int(self.scanpath.ids[i]): float(row[i]) for i in np.flatnonzero(row)}))
        return found


def load_processor(source: str | PathLike) -> GazeQwenProcessor:
    """Return the processor of an adapter, a folder or an id on the Hub."""
    # Given the config, the tokenizer is not looked up by model type, of which transformers would know none.
    return GazeQwenProcessor.from_pretrained(source, config=GazeQwenConfig.from_pretrained(source))


def load_model(source: str | PathLike, device: str = "cpu", dtype: str = "auto") -> GazeQwenForConditionalGeneration:
    """Return the same adapter's model on `device`, in evaluation mode."""
    return GazeQwenForConditionalGeneration.from_pretrained(source, dtype=dtype).to(device).eval()


def offer(question: str, options: list[str], style: str) -> tuple[str, dict[str, str]]:
    """
    The user turn, and for each answer that it offers, one token each, what it stands for. Without options the model
    is to answer in its own words.
    """
    if not options:
        return question, {}
    labels = {letter: f"{letter}. {option}" for letter, option in zip(OPTION_LETTERS, options, strict=False)}
    return format_question(question, options, style), labels


@torch.no_grad()
def ask(
    model,
    processor,
    clip: Clip,
    scanpath: Scanpath | None,
    prompt: str,
    answers: dict[str, str],
    snap_s: float = 0.0,
    explain: bool = False,
    max_new_tokens: int = 128,
) -> Asked:
    """
    Ask about a clip, with the whole video's `scanpath` and without. `prompt`, `answers`: as `offer` gives them.
    `snap_s`: bring a fixation that begins so near to the clip's end into view. `explain`: say where the foveal latents
    look and how much is added where.
    """
    text = processor.apply_chat_template(chat_message(prompt), add_generation_prompt=True)
    guided = scanpath is not None and model.config.has_resampler
    processed = processor.process_clip(clip, for_video_encoder=guided)
    spans, grid = processed["step_spans_s"], processed["video_grid_thw"][None]
    if guided:
        pixels = processed.pop("video_encoder_pixel_values")[None].to(model.device)
        processed["video_encoder_features"] = model.encode_video(pixels, grid.to(model.device))[0]
        if answers:  # `generate` takes pixels alone
            pixels = processed.pop("pixel_values_videos").to(model.device)
            processed["video_embeds"] = model.embed_video(pixels, grid.to(model.device))

    def inputs_of(gaze: Scanpath | None):
        return processor.collate([text], [processed], [gaze], snap_s=[snap_s if gaze is not None else 0.0]).to(
            model.device
        )

    def answer(gaze: Scanpath | None) -> Answer:
        inputs = inputs_of(gaze)
        if answers:
            logits = option_logits(model, inputs, [answer_tokens(processor.tokenizer, list(answers))])
            probabilities = dict(zip(answers.values(), logits.softmax(-1)[0].tolist(), strict=True))
            return Answer(max(probabilities, key=probabilities.get), probabilities)
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        return Answer(processor.batch_decode(new, skip_special_tokens=True)[0].strip(), {})

    without = {"without gaze": answer(None)}
    if scanpath is None:
        return Asked(clip, spans.numpy(), without)
    seen = scanpath.snap(clip.end_s, float(spans[-1, 0]), snap_s) if snap_s else scanpath
    seen = seen.clip(clip.start_s, clip.end_s)
    weights = fixation_weights("share", torch.tensor(seen.table), spans.double()).numpy()
    given = {"with gaze": answer(scanpath)} | without
    attention = residuals = None
    if explain and guided:
        inputs, (_, height, width) = inputs_of(scanpath), model.token_grids(grid)[0].tolist()
        if model.config.resampler_type == "attention":
            latents = model.latent_attention(**inputs)[0, 0]  # (T, K, H*W)
            if model.config.gaze_encoding == "foveated":
                latents = latents[:, : latents.shape[1] // 2]
            attention = latents.mean(1).unflatten(-1, (height, width)).cpu().numpy()
        lengths = model.gaze_residuals(**inputs).norm(dim=-1).mean(0)[0]  # (T, H*W)
        residuals = lengths.unflatten(-1, (height, width)).cpu().numpy()
    return Asked(clip, spans.numpy(), given, seen, weights, attention, residuals)
