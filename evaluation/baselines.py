"""Any video-text model of transformers as a baseline: its processor and chat template, our frames and true times."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    BatchFeature,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)
from transformers.video_utils import VideoMetadata

from gazeqwen.backbones_gazeqwen import FAMILIES, positions_of, refuse_kernels, unwrap_videos
from gazeqwen.configuration_gazeqwen import GazeQwenConfig
from gazeqwen.pipeline.answers import answer_tokens
from gazeqwen.questions.prompts import chat_message
from gazeqwen.video_gazeqwen import Clip

# Families take the time of a frame as its index / fps: with an index in milliseconds, uneven times stay true.
_TICKS_PER_S = 1000


def is_gazeqwen(model_id: str | PathLike, revision: str | None = None) -> bool:
    """Return whether a folder or an id on the Hub is a GazeQwen, by its config's model_type: no code of it is run."""
    config, _ = PreTrainedConfig.get_config_dict(model_id, revision=revision)
    return config.get("model_type") == GazeQwenConfig.model_type


@dataclass(frozen=True)
class BaselineItem:
    """Hold one prompt about a clip (None: a prompt without video), and the answers that it offers, one token each."""

    clip: Clip | None
    prompt: str
    answers: Sequence[str] = field(default=())


def video_metadata(clip: Clip) -> VideoMetadata:
    """Return what transformers is told of a clip: when each frame was shown, in seconds from the clip's beginning."""
    height, width = clip.frames.shape[1:3]
    length_s = clip.end_s - clip.start_s
    times_s = (clip.timestamps_s - clip.start_s).clip(min=0)  # the first may have come on screen before
    return VideoMetadata(
        total_num_frames=max(1, round(length_s * _TICKS_PER_S)),
        fps=float(_TICKS_PER_S),
        width=width,
        height=height,
        duration=float(length_s),
        frames_indices=[round(time_s * _TICKS_PER_S) for time_s in times_s.tolist()],
    )


class Baseline:
    """
    Ask a video-text model as its processor's chat template says. Frames are given as they are: none is left out, none
    is added but to fill a temporal patch. Clips with the same number of frames go through the model
    together, padded on the left; a batch gives what each of its items gives alone.
    """

    def __init__(self, model, processor):
        self.model, self.processor = model.eval(), processor
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        # Greedy, whatever else the checkpoint would have `generate` do: sampling, beams, penalties.
        stop = model.generation_config.eos_token_id
        stop = processor.tokenizer.eos_token_id if stop is None else stop
        model.generation_config = GenerationConfig(eos_token_id=stop, pad_token_id=processor.tokenizer.pad_token_id)
        # Qwen's: bound the pixels of long videos as its authors' code does, and GazeQwenProcessor.
        if getattr(processor.video_processor, "cap_pixels_per_frame", False) is None:
            processor.video_processor.cap_pixels_per_frame = True

        if model.config.model_type in FAMILIES and isinstance(processor.chat_template, str):
            family = FAMILIES[model.config.model_type]
            processor.chat_template = unwrap_videos(family, processor.chat_template)

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | PathLike,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        **placement,
    ) -> "Baseline":
        """
        Return the model of a folder or an id on the Hub. `placement`: `device_map` and `quantization_config`. Raises
        ValueError, before any weights are read, for what is no video-text model that transformers knows, or cannot
        take video.
        """
        code = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
        auto_class = _auto_class(model_id, **code)
        processor = AutoProcessor.from_pretrained(model_id, **code)
        _check_takes_video(model_id, processor)
        model = auto_class.from_pretrained(
            model_id, dtype=dtype, attn_implementation=attn_implementation, **placement, **code
        )
        return cls(model, processor)

    def to(self, device: str | torch.device) -> "Baseline":
        """Move the model to `device`, and return the baseline."""
        self.model.to(device)
        return self

    # ---------------------------------------------------------------- items -> model inputs
    def prompt_text(self, item: BaselineItem) -> str:
        """Return the prompt in the model's chat template, up to where the model's answer begins."""
        return self._apply_chat_template(_conversation(item), tokenize=False)

    def inputs(self, items: Sequence[BaselineItem]) -> BatchFeature:
        """
        Return inputs for items with the same number of frames, on the model's device; prompts padded on the left.
        """
        clips = [item.clip for item in items if item.clip is not None]
        options = {"padding": True, "padding_side": "left"}
        if clips:
            options |= {"do_sample_frames": False, "video_metadata": [video_metadata(clip) for clip in clips]}
        inputs = self._apply_chat_template(
            [_conversation(item) for item in items],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=options,
        )
        if "second_per_grid_ts" in inputs:  # Qwen2.5-VL's mean distance of temporal steps, here without rounding
            frames_per_step = self.processor.video_processor.temporal_patch_size
            inputs["second_per_grid_ts"] = torch.tensor([clip.seconds_per_step(frames_per_step) for clip in clips])
        inputs = self._with_positions(inputs).to(self.model.device)
        for name in [name for name in inputs if name.startswith("pixel_values")]:  # times keep float32
            inputs[name] = inputs[name].to(self.model.dtype)
        return inputs

    @property
    def position_convention(self) -> str:
        """
        "qwen" where the model gets the rotary positions that its weights were trained with (`positions_of`),
        "transformers" where it gets those of the installed library.
        """
        known = self.model.config.model_type in FAMILIES
        return getattr(self.model.config, "position_convention", "qwen") if known else "transformers"

    def _with_positions(self, inputs: BatchFeature) -> BatchFeature:
        if self.position_convention == "qwen":
            inputs["position_ids"] = positions_of(self.model.config, inputs)
        return inputs

    def _apply_chat_template(self, conversation, **kwargs):
        """Return what the processor's `apply_chat_template` does, without room for thinking before the answer."""
        if "enable_thinking" in str(self.processor.chat_template):  # an answer is asked for, and scored, right away
            kwargs["enable_thinking"] = False
        return self.processor.apply_chat_template(conversation, add_generation_prompt=True, **kwargs)

    def _run(self, items: Sequence[BaselineItem], **kwargs):
        """
        Yield (indices of items, length of their prompts, what `generate` returns) for items of equal frame counts.
        """
        groups = defaultdict(list)
        for index, item in enumerate(items):
            num_frames = 0 if item.clip is None else len(item.clip.frames)
            groups[num_frames].append(index)
        for indices in groups.values():
            inputs = self.inputs([items[index] for index in indices])
            # generate() brings the other families' positions of a padded prompt, and logits_to_keep where there is one
            yield indices, inputs["input_ids"].shape[1], self.model.generate(**inputs, do_sample=False, **kwargs)

    # ---------------------------------------------------------------- answers
    def scores(self, items: Sequence[BaselineItem]) -> torch.Tensor:
        """
        Return (B, most answers) float32 logits of the tokens of each item's answers right after its prompt, -inf where
        it offers fewer. Raises ValueError for an answer that is not one token.
        """
        tokens = [self._answer_tokens(item) for item in items]
        scores = torch.full((len(items), max(map(len, tokens), default=0)), float("-inf"))
        for indices, _, output in self._run(items, max_new_tokens=1, output_logits=True, return_dict_in_generate=True):
            for index, row in zip(indices, output.logits[0].float().cpu(), strict=True):
                scores[index, : len(tokens[index])] = row[tokens[index]]
        return scores

    def generate(self, items: Sequence[BaselineItem], max_new_tokens: int = 128) -> list[str]:
        """Return the model's answer to each item, decoded greedily: new tokens only, without special ones."""
        texts = [""] * len(items)
        for indices, length, output in self._run(items, max_new_tokens=max_new_tokens):
            decoded = self.processor.tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
            for index, text in zip(indices, decoded, strict=True):
                texts[index] = text.strip()
        return texts

    def _answer_tokens(self, item: BaselineItem) -> list[int]:
        """Return the token of each answer that an item offers. Raises ValueError where their logits are no answers."""
        if not item.answers:
            raise ValueError(f"no answers offered to {item.prompt!r}, expected some to score")
        tokenizer, text = self.processor.tokenizer, self.prompt_text(item)
        if not (text[-1].isspace() or text.endswith(tuple(map(str, tokenizer.all_special_tokens)))):
            raise ValueError(
                f"{self.model.name_or_path}: its chat template ends in {text[-12:]!r}, where an answer begins with a "
                "space: the logits of letters would be others than the model's answers; score generated text"
            )
        return answer_tokens(tokenizer, list(item.answers))


def _conversation(item: BaselineItem) -> list[dict]:
    """Return the item's `chat_message` with its clip's frames (F, 3, H, W), or without a video."""
    (message,) = chat_message(item.prompt)
    video, text = message["content"]
    if item.clip is None:
        return [{**message, "content": [text]}]
    frames = torch.tensor(item.clip.frames).permute(0, 3, 1, 2)
    return [{**message, "content": [{**video, "video": frames}, text]}]


def _auto_class(model_id, revision: str, trust_remote_code: bool) -> type:
    """Return the auto class that loads a model with vision and text. Raises ValueError if none does."""
    expected = "expected a video-text model of AutoModelForMultimodalLM or AutoModelForImageTextToText"
    if is_gazeqwen(model_id, revision):
        raise ValueError(f"{model_id}: a GazeQwen, {expected}")
    if not trust_remote_code:
        refuse_kernels(PreTrainedConfig.get_config_dict(model_id, revision=revision)[0], model_id)
    try:
        config = AutoConfig.from_pretrained(model_id, revision=revision, trust_remote_code=trust_remote_code)
    except ValueError as error:  # an unknown model_type, or one that needs code of its own repository
        raise ValueError(f"{model_id}: {expected}: {' '.join(str(error).split())}") from error
    mappings = {
        AutoModelForMultimodalLM: MODEL_FOR_MULTIMODAL_LM_MAPPING,
        AutoModelForImageTextToText: MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    }
    for auto_class, mapping in mappings.items():
        if type(config) in mapping or auto_class.__name__ in (getattr(config, "auto_map", None) or {}):
            return auto_class
    raise ValueError(f"{model_id}: model_type {config.model_type!r} takes no images or video, {expected}")


def _check_takes_video(model_id, processor) -> None:
    """Raise ValueError for a processor that has no place for a video, or no chat template to ask in."""
    expected = ("video_processor", "video_token", "chat_template")
    if absent := [name for name in expected if getattr(processor, name, None) is None]:
        raise ValueError(
            f"{model_id}: cannot be asked about video: its {type(processor).__name__} lacks {', '.join(absent)}, "
            f"expected {', '.join(expected)}"
        )
