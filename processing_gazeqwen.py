"""GazeQwenProcessor: text + video + scanpath -> the inputs of GazeQwenForConditionalGeneration."""

from collections.abc import Sequence
from os import PathLike

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoProcessor, BatchFeature, ProcessorMixin
from transformers.image_utils import load_image

from .backbones_gazeqwen import FAMILIES, Family, errors_name, family_of, unwrap_videos
from .scanpath_gazeqwen import Scanpath, as_scanpath, is_number, is_whole
from .token_selection_gazeqwen import check_keep_settings, choose_tokens, token_changes
from .video_gazeqwen import MAX_FRAMES, SAMPLINGS, Clip, read_clip

# V-JEPA 2.1 was pretrained on frames normalised with ImageNet's statistics.
_VIDEO_ENCODER_MEAN = (0.485, 0.456, 0.406)
_VIDEO_ENCODER_STD = (0.229, 0.224, 0.225)

# Times and places keep float32: in bfloat16 a time of 700 s is only known to 4 s.
_KEEP_FLOAT32 = ("scanpaths", "step_spans_s", "second_per_grid_ts")


class GazeQwenInputs(BatchFeature):
    """Model inputs; `to(dtype=...)` casts pixels and features, never times or gaze."""

    def to(self, *args, **kwargs) -> "GazeQwenInputs":
        """Move the inputs as `BatchFeature.to` does, and return them; times and gaze keep float32."""
        float32_data = {name: self.data.pop(name) for name in _KEEP_FLOAT32 if name in self.data}
        super().to(*args, **kwargs)
        device = next((value.device for value in self.data.values() if isinstance(value, torch.Tensor)), None)
        self.data.update({name: value.to(device) for name, value in float32_data.items()})
        return self


class GazeQwenProcessor(ProcessorMixin):
    """
    The parts of a base model's processor, which make the inputs that its family takes; it also reads video files with
    true timestamps and aligns gaze to them.

    Args:
        base_model_type: the family of the base model, a key of `FAMILIES`.
        video_encoder_size: side S in pixels of the square frames for the video encoder.
        num_frames, fps, max_frames: how clips are sampled unless a call says otherwise (see `sample_times`). With
            neither `num_frames` nor `fps`: StreamGaze's frame rates by clip length.
        sampling: `spread`, frames spread over the clip, or `grid`, on a grid of `fps` on the video's clock, each
            temporal step sized by itself: what a stream of the video shows too.
        snap_s: how near to the query, in seconds, a fixation must begin to be brought into view (`Scanpath.snap`; 0:
            not), as the adapter was trained. The default of chats (`apply_chat_template`); calls and `collate` snap
            only what they are told to.
        prompt_style: the wording of questions that the adapter was trained on (`questions.prompts.PROMPT_STYLES`).
        max_pixels_per_frame: most pixels of a video's frame for the base model, in place of what its video processor
            is set to.
        keep_tokens, keep_by: how many visual tokens of each temporal step enter the prompt, a share (up to 1) or a
            number (above 1), and which (`choose_tokens`). Default: all. By `gaze` a video without a scanpath keeps
            all.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        video_processor=None,
        chat_template=None,
        video_encoder_size: int = 384,
        num_frames: int | None = None,
        fps: float | None = None,
        max_frames: int = MAX_FRAMES,
        snap_s: float = 0.0,
        prompt_style: str = "reference",
        base_model_type: str = "qwen2_5_vl",
        max_pixels_per_frame: int | None = None,
        sampling: str = "spread",
        keep_tokens: float | None = None,
        keep_by: str = "gaze",
        **kwargs,
    ):
        super().__init__(image_processor, tokenizer, video_processor, chat_template=chat_template, **kwargs)
        if base_model_type not in tuple(FAMILIES):
            raise ValueError(f"base_model_type: got {base_model_type!r}, expected one of {sorted(FAMILIES)}")
        for name, value, is_legal, expected in (
            ("video_encoder_size", video_encoder_size, is_whole(video_encoder_size, 1, 4096), "1 to 4,096 pixels"),
            ("num_frames", num_frames, num_frames is None or is_whole(num_frames, 1), "a whole number, at least 1"),
            (
                "max_pixels_per_frame",
                max_pixels_per_frame,
                max_pixels_per_frame is None or is_whole(max_pixels_per_frame, 1),
                "a whole number, at least 1",
            ),
            ("max_frames", max_frames, is_whole(max_frames, 2), "a whole number, at least 2"),
            ("fps", fps, fps is None or (is_number(fps) and fps > 0), "a positive number"),
            ("snap_s", snap_s, is_number(snap_s) and snap_s >= 0, "0 or more seconds"),
            ("prompt_style", prompt_style, isinstance(prompt_style, str), "a text"),
        ):
            if not is_legal:
                raise ValueError(f"{name}: got {value!r}, expected {expected}")
        if sampling not in SAMPLINGS:
            raise ValueError(f"sampling: got {sampling!r}, expected one of {SAMPLINGS}")
        check_keep_settings(keep_tokens, keep_by)
        for name, part in (("image_processor", image_processor), ("video_processor", video_processor)):
            _check_normalization(name, part)
        self.base_model_type = base_model_type
        self.image_token = getattr(tokenizer, "image_token", "<|image_pad|>")
        self.video_token = getattr(tokenizer, "video_token", "<|video_pad|>")
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
            [self.image_token, self.video_token]
        )
        self.video_encoder_size = video_encoder_size
        self.num_frames = num_frames
        self.fps = fps
        self.max_frames = max_frames
        self.snap_s = snap_s
        self.prompt_style = prompt_style
        self.max_pixels_per_frame = max_pixels_per_frame
        self.sampling = sampling
        self.keep_tokens = keep_tokens
        self.keep_by = keep_by

    @classmethod
    def from_base(cls, base_model: str, revision: str | None = None, **settings) -> "GazeQwenProcessor":
        """
        Return the processor of a base model by id or folder, with this class's own `settings`. Raises ValueError for a
        model of no family that can be wrapped.
        """
        source = {"revision": revision or "main", "trust_remote_code": False}
        with errors_name(base_model):
            config = AutoConfig.from_pretrained(base_model, **source)
            family_of(config)
            base = AutoProcessor.from_pretrained(base_model, **source)
            parts = (base.image_processor, base.tokenizer, base.video_processor)
            for name, part in (("image_processor", parts[0]), ("video_processor", parts[2])):
                _check_normalization(name, part)
        return cls(*parts, chat_template=base.chat_template, base_model_type=config.model_type, **settings)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "GazeQwenProcessor":
        """As in transformers. Code that is stored for a part never runs: all are classes of transformers."""
        with errors_name(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, **{**kwargs, "trust_remote_code": False})

    @property
    def family(self) -> Family:
        """Return the base model's row of the table of families."""
        return FAMILIES[self.base_model_type]

    @property
    def model_input_names(self) -> list[str]:
        """Return the base model's names and those of gaze and the video encoder."""
        names = ["second_per_grid_ts"] if self.family.seconds_in_positions else []
        names += ["mm_token_type_ids", "video_encoder_pixel_values"]
        names += ["scanpaths", "scanpath_mask", "has_scanpath", "step_spans_s", "kept_tokens"]
        return super().model_input_names + names

    def post_process_image_text_to_text(self, generated_outputs, **kwargs) -> list[str]:
        """Return generated ids (B, L) as texts; `kwargs` are the tokenizer's, special tokens are left out."""
        return self.tokenizer.batch_decode(generated_outputs, **{"skip_special_tokens": True, **kwargs})

    # ---------------------------------------------------------------- video
    def read_clip(
        self,
        path,
        start_s: float = 0.0,
        end_s: float | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
    ) -> Clip:
        """Read a clip of a video file, see `read_clip`, sampled as this processor is set unless told otherwise."""
        if num_frames is None and fps is None:
            num_frames, fps = self.num_frames, self.fps
        max_frames = self.max_frames if max_frames is None else max_frames
        return read_clip(path, start_s, end_s, num_frames, fps, max_frames, self.sampling)

    def video_grid(self, frames: int, height: int, width: int, max_pixels: int | None = None) -> torch.Tensor:
        """Return the (3,) `video_grid_thw` of a clip of so many frames, of any content, without computing pixels."""
        shapes_alone = torch.empty(frames, 3, height, width, dtype=torch.uint8, device="meta")
        return self._base_pixels(shapes_alone, max_pixels, self.sampling == "grid")["video_grid_thw"][0]

    def _base_pixels(self, frames: torch.Tensor, max_pixels: int | None, on_grid: bool) -> dict[str, torch.Tensor]:
        """
        Return the base model's inputs for frames (F, 3, H, W), F a multiple of a temporal patch. On a grid each
        temporal step is sized alone, so that its size does not follow from how many there are.
        """
        max_pixels = self.max_pixels_per_frame if max_pixels is None else max_pixels
        videos = frames.split(self.video_processor.temporal_patch_size) if on_grid else [frames]
        counted = len(videos[0]) if self.family.size_of_whole_video else 1
        size = self._size(self.video_processor, max_pixels, counted)
        pixels = self.video_processor(
            videos=list(videos), do_sample_frames=False, cap_pixels_per_frame=True, return_tensors="pt", **size
        )
        grids = pixels["video_grid_thw"]  # (1, 3), or of each step
        grid = torch.cat([grids[:, 0].sum()[None], grids[0, 1:]])
        return {"pixel_values_videos": pixels["pixel_values_videos"], "video_grid_thw": grid[None]}

    def _size(self, processor, max_pixels: int | None, counted: int = 1) -> dict[str, dict]:
        """
        Return the argument `size` for an image or video processor that counts the pixels of `counted` frames, none
        where it keeps its own. Raises ValueError for a `max_pixels` that is not a whole number, or less than a token.
        """
        if max_pixels is None:
            return {}
        least = self.family.pixels_per_token**2
        if not is_whole(max_pixels, least):
            raise ValueError(f"max_pixels: got {max_pixels!r}, expected a whole number, at least {least} (one token)")
        # Video processors take no less than 1.05 of the shortest edge for the most pixels of a frame.
        shortest = min(processor.size["shortest_edge"], int(max_pixels / 1.05))
        return {"size": {"shortest_edge": shortest, "longest_edge": int(max_pixels) * counted}}

    def process_clip(
        self, clip: Clip, for_video_encoder: bool = True, max_pixels: int | None = None
    ) -> dict[str, torch.Tensor]:
        """
        Return what one clip gives, whatever is asked about it: `pixel_values_videos` (patches, dim), `video_grid_thw`
        (3,), `second_per_grid_ts` (), `step_spans_s` (T, 2), `video_encoder_pixel_values` (F, 3, S, S), and where the
        prompt tells the time `step_times_s` (T,), each step's mean time since the clip's start. Both kinds of pixels
        show the same frames, so that the encoder's tubelets and Qwen's temporal steps are the same moments. The
        encoder's are left out where `for_video_encoder` is False: its features are known, or no gaze is given.
        `max_pixels`: of a frame for the base model, in place of this processor's setting.
        """
        frames_per_step = self.video_processor.temporal_patch_size
        clip = clip.padded(frames_per_step)
        frames = torch.from_numpy(np.ascontiguousarray(clip.frames)).permute(0, 3, 1, 2)  # (F, 3, H, W)
        qwen = self._base_pixels(frames, max_pixels, clip.grid_fps is not None)
        processed = {
            "pixel_values_videos": qwen["pixel_values_videos"],
            "video_grid_thw": qwen["video_grid_thw"][0],
            "second_per_grid_ts": torch.tensor(clip.seconds_per_step(frames_per_step), dtype=torch.float32),
            "step_spans_s": torch.tensor(clip.step_spans_s(frames_per_step), dtype=torch.float32),
        }
        if self.keep_by == "similarity":
            steps, tokens = int(qwen["video_grid_thw"][0, 0]), int(qwen["video_grid_thw"][0, 1:].prod())
            tokens //= self.video_processor.merge_size**2
            processed["token_changes"] = token_changes(qwen["pixel_values_videos"], steps, tokens)
        if self.family.seconds_in_text:  # in float64, as they are rounded to text
            processed["step_times_s"] = self.step_times_s(clip.timestamps_s - clip.start_s)
        if for_video_encoder:
            size = (self.video_encoder_size, self.video_encoder_size)
            encoder_frames = F.interpolate(frames.float(), size=size, mode="bilinear", align_corners=False)
            mean, std = (torch.tensor(value)[:, None, None] for value in (_VIDEO_ENCODER_MEAN, _VIDEO_ENCODER_STD))
            processed["video_encoder_pixel_values"] = encoder_frames.div_(255).sub_(mean).div_(std)
        return processed

    def step_times_s(self, times_s: np.ndarray) -> torch.Tensor:
        """Return the (T,) mean times of temporal steps, from the (F,) times of frames since their clip's start."""
        times_s = times_s.clip(min=0).reshape(-1, self.video_processor.temporal_patch_size)
        return torch.from_numpy((times_s[:, 0] + times_s[:, -1]) / 2)

    def process_images(self, images: Sequence, max_pixels: Sequence[int | None]) -> dict[str, torch.Tensor] | None:
        """Return `pixel_values` and `image_grid_thw` of images with at most so many pixels each; None of no image."""
        if not images:
            return None
        outputs = [
            self.image_processor(images=[image], return_tensors="pt", **self._size(self.image_processor, most))
            for image, most in zip(images, max_pixels, strict=True)
        ]
        return {name: torch.cat([output[name] for output in outputs]) for name in ("pixel_values", "image_grid_thw")}

    # ---------------------------------------------------------------- text, and everything together
    def video_text(self, clip: dict[str, torch.Tensor], kept_tokens: torch.Tensor | None = None) -> str:
        """
        Return what stands for a processed clip in a prompt: its tokens, step by step where text tells the time; those
        that are kept (T, N), or all.
        """
        steps = int(clip["video_grid_thw"][0])
        counts = [int(clip["video_grid_thw"][1:].prod()) // self.video_processor.merge_size**2] * steps
        if kept_tokens is not None:
            counts = kept_tokens.sum(-1).tolist()
        if not self.family.seconds_in_text:
            return self.video_token * sum(counts)
        return "".join(
            f"<{time_s:.1f} seconds><|vision_start|>{self.video_token * count}<|vision_end|>"
            for time_s, count in zip(clip["step_times_s"].tolist(), counts, strict=True)
        )

    def choose_tokens(
        self, clip: dict[str, torch.Tensor], scanpath: torch.Tensor | None, keep_tokens: float
    ) -> torch.Tensor:
        """
        Return which visual tokens of a processed clip stay in its prompt, (T, N) bool, so many (`choose_tokens`) by
        this processor's `keep_by`. `scanpath` (F, 4): as the clip shows it.
        """
        steps, height, width = clip["video_grid_thw"].tolist()
        merge = self.video_processor.merge_size
        grid = steps, height // merge, width // merge
        changes = clip.get("token_changes")
        if self.keep_by == "similarity" and changes is None:
            raise ValueError("keep_by: got 'similarity', expected another rule: the clip has no token_changes")
        return choose_tokens(keep_tokens, self.keep_by, grid, clip["step_spans_s"], scanpath, changes)

    def _expand(self, texts: list[str], token: str, replacements: list[str], kind: str) -> list[str]:
        """Return texts with each placeholder `token`, in order, replaced by what its image or video is in a prompt."""
        placeholders = sum(text.count(token) for text in texts)
        if placeholders != len(replacements):
            raise ValueError(
                f"the text holds {placeholders} {kind} placeholders ({token}), got {len(replacements)} {kind}s"
            )
        remaining = iter(replacements)
        expanded = []
        for text in texts:
            head, *tails = text.split(token)
            expanded.append(head + "".join(next(remaining) + tail for tail in tails))
        return expanded

    def expand_videos(
        self,
        texts: list[str],
        clips: Sequence[dict[str, torch.Tensor]],
        kept_tokens: Sequence[torch.Tensor | None] | None = None,
    ) -> list[str]:
        """
        Return prompts with each placeholder of a video, in order, replaced by what a clip is in them. Of processed
        clips it reads `video_grid_thw`, and `step_times_s` where the prompt tells the time; `kept_tokens`: of each
        clip (`video_text`). Raises ValueError for another number of placeholders.
        """
        texts = [unwrap_videos(self.family, text) for text in texts]
        kept_tokens = kept_tokens or [None] * len(clips)
        replacements = [self.video_text(clip, kept) for clip, kept in zip(clips, kept_tokens, strict=True)]
        return self._expand(texts, self.video_token, replacements, "video")

    def collate(
        self,
        texts: list[str],
        clips: Sequence[dict[str, torch.Tensor]],
        scanpaths: Sequence[Scanpath | None] | None = None,
        images: dict[str, torch.Tensor] | None = None,
        padding_side: str | None = None,
        snap_s: Sequence[float] | None = None,
        keep_tokens: float | None = None,
    ) -> GazeQwenInputs:
        """
        Return a batch of prompts and processed clips (`process_clip`), one scanpath per clip. Scanpaths are cut to
        their clip; `snap_s` says for each whether the fixation that begins within so many seconds of the clip's end is
        brought into view (`Scanpath.snap`; 0: not). A clip may hold `video_encoder_features` (T, N, D_v) in place of
        `video_encoder_pixel_values`, or neither for a model without a video encoder, and `video_embeds` (T*N, D') in
        place of `pixel_values_videos`. Of a part of a video, `scanpath_begin_s` says from when on fixations count: the
        clip's begin is the default. `keep_tokens`: in place of this processor's; 1 keeps all.
        """
        merge = self.video_processor.merge_size**2
        grids = [] if images is None else images["image_grid_thw"]
        pictures = [self.image_token * (int(grid.prod()) // merge) for grid in grids]
        texts = self._expand(texts, self.image_token, pictures, "image")
        tables = self._scanpath_tables(clips, scanpaths, snap_s)
        kept_tokens = None
        keep_tokens = self.keep_tokens if keep_tokens is None else keep_tokens
        if keep_tokens is not None and clips:
            check_keep_settings(keep_tokens, self.keep_by)
            kept_tokens = [
                self.choose_tokens(clip, table, keep_tokens) for clip, table in zip(clips, tables, strict=True)
            ]
        texts = self.expand_videos(texts, clips, kept_tokens)
        encoded = self.tokenizer(
            texts, padding=len(texts) > 1, padding_side=padding_side, return_tensors="pt", add_special_tokens=False
        )
        ids = encoded["input_ids"]
        types = torch.zeros_like(ids, dtype=torch.int32)  # 0: text
        types[ids == self.image_token_id] = 1
        types[ids == self.video_token_id] = 2
        data = {"input_ids": ids, "attention_mask": encoded["attention_mask"], "mm_token_type_ids": types}
        data.update(images or {})
        if not clips:
            return GazeQwenInputs(data)

        visual_input = "video_embeds" if "video_embeds" in clips[0] else "pixel_values_videos"
        data[visual_input] = torch.cat([clip[visual_input] for clip in clips])
        data["video_grid_thw"] = torch.stack([clip["video_grid_thw"] for clip in clips])
        if self.family.seconds_in_positions:
            data["second_per_grid_ts"] = torch.stack([clip["second_per_grid_ts"] for clip in clips])
        if kept_tokens is not None and not all(kept.all() for kept in kept_tokens):
            data["kept_tokens"] = _stack_padded(kept_tokens)
        if all(table is None for table in tables):
            return GazeQwenInputs(data)

        data["has_scanpath"] = torch.tensor([table is not None for table in tables])
        tables = [torch.zeros(0, 4) if table is None else table for table in tables]
        data["scanpaths"] = _stack_padded(tables)
        data["scanpath_mask"] = _stack_padded([torch.ones(len(table), dtype=torch.bool) for table in tables])
        data["step_spans_s"] = _stack_padded([clip["step_spans_s"] for clip in clips])
        for name in ("video_encoder_features", "video_encoder_pixel_values"):
            if name in clips[0]:
                data[name] = _stack_padded([clip[name] for clip in clips])
        return GazeQwenInputs(data)

    def kept_tokens(self, clip: dict[str, torch.Tensor], scanpath: Scanpath | None) -> torch.Tensor | None:
        """Return which visual tokens of a processed clip `collate` keeps by these settings, (T, N); None for all."""
        if self.keep_tokens is None:
            return None
        table = self._scanpath_tables([clip], None if scanpath is None else [scanpath], None)[0]
        return self.choose_tokens(clip, table, self.keep_tokens)

    @staticmethod
    def _scanpath_tables(clips, scanpaths, snap_s) -> list[torch.Tensor | None]:
        """
        Return each clip's fixations, (F, 4) float32, cut to it and snapped as `collate` says; None for a clip without
        a scanpath. Raises ValueError for other numbers of scanpaths or of `snap_s` than of clips.
        """
        if scanpaths is None:
            return [None] * len(clips)
        if not clips and scanpaths:
            raise ValueError(f"got {len(scanpaths)} scanpaths without a video")
        if len(scanpaths) != len(clips):
            raise ValueError(f"got {len(scanpaths)} scanpaths for {len(clips)} videos, expected one each (or None)")
        snap_s = [0.0] * len(clips) if snap_s is None else snap_s
        if len(snap_s) != len(clips) or not all(isinstance(value, (int, float)) and value >= 0 for value in snap_s):
            raise ValueError(f"snap_s: got {snap_s}, expected seconds, 0 or more, for each of {len(clips)} videos")
        tables: list[torch.Tensor | None] = []
        for scanpath, clip, within_s in zip(scanpaths, clips, snap_s, strict=True):
            if scanpath is None:
                tables.append(None)
                continue
            spans = clip["step_spans_s"]
            if within_s:
                scanpath = scanpath.snap(float(spans[-1, 1]), float(spans[-1, 0]), within_s)
            begin_s = clip.get("scanpath_begin_s", float(spans[0, 0]))
            table = scanpath.clip(begin_s, float(spans[-1, 1])).table
            tables.append(torch.tensor(table, dtype=torch.float32))
        return tables

    def __call__(
        self,
        images=None,
        text: str | list[str] | None = None,
        videos=None,
        scanpaths=None,
        num_frames: int | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
        padding_side: str | None = None,
        snap_s: Sequence[float] | None = None,
        max_pixels: int | None = None,
        **kwargs,
    ) -> GazeQwenInputs:
        """
        Return the model's inputs for prompts, images, videos and scanpaths.

        Args:
            text: prompts with one placeholder per image and video (`apply_chat_template` writes them).
            videos: paths of video files, or `Clip`s, in the order of their placeholders.
            scanpaths: one per video: a path to a fixation table, a `Scanpath`, an (F, 4) array, or `None`.
            num_frames, fps, max_frames: how files are sampled, in place of this processor's settings.
            snap_s: one per video, see `collate`; default 0, whatever this processor's `snap_s` is.
            max_pixels: most pixels of an image and of a video's frame, in place of the processors' settings.

        Raises ValueError or FileNotFoundError naming file, row and value for what cannot be read.
        """
        if text is None:
            raise ValueError("text: got None, expected a prompt with a placeholder for each video")
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(each, str) for each in texts):
            raise ValueError(f"text: got {text!r}, expected a prompt or a list of prompts")
        clips = [
            video
            if isinstance(video, Clip)
            else self.read_clip(_video_path(video), num_frames=num_frames, fps=fps, max_frames=max_frames)
            for video in _flatten(videos)
        ]
        for name, values in (("scanpaths", scanpaths), ("snap_s", snap_s)):
            if values is not None and not isinstance(values, (list, tuple)):
                raise ValueError(f"{name}: got {values!r}, expected a list with one for each video")
        images, has_gaze = _flatten(images), any(scanpath is not None for scanpath in scanpaths or ())
        return self._inputs(
            texts,
            [self.process_clip(clip, for_video_encoder=has_gaze, max_pixels=max_pixels) for clip in clips],
            self.process_images(images, [max_pixels] * len(images)),
            scanpaths,
            snap_s,
            padding_side,
            **kwargs,
        )

    def _inputs(self, texts, clips, images, scanpaths, snap_s, padding_side=None, **options) -> GazeQwenInputs:
        """Return `collate`'s batch with scanpaths read. Raises ValueError for other `options` of transformers."""
        if options.get("audio") is None:  # what pipelines of several modalities pass
            options.pop("audio", None)
        names = ("return_tensors", "padding", "add_special_tokens", "do_sample_frames", "return_mm_token_type_ids")
        if set(options) - set(names) or options.get("return_tensors", "pt") not in ("pt", None):
            raise ValueError(f"got {options}, expected no other arguments than return_tensors='pt' and padding")
        if options.get("padding", True) not in (True, False, None, "longest"):
            raise ValueError(
                f"padding: got {options['padding']!r}, expected 'longest': prompts are as long as they are"
            )
        if scanpaths is not None:
            scanpaths = [as_scanpath(scanpath) for scanpath in scanpaths]
        inputs = self.collate(texts, clips, scanpaths, images, padding_side, snap_s)
        if options.get("return_mm_token_type_ids") is False:
            del inputs["mm_token_type_ids"]
        return inputs

    def apply_chat_template(
        self,
        conversation,
        chat_template: str | None = None,
        tokenize: bool = False,
        return_dict: bool = False,
        processor_kwargs: dict | None = None,
        **kwargs,
    ):
        """
        Return a conversation as a prompt or as inputs, as in transformers, with video items such as
        `{"type": "video", "video": "clip.mp4", "scanpath": "fixations.csv", "start_s": 0, "end_s": 276}`.
        `end_s` is the query time: neither frames nor gaze after it are used. `scanpath` may be left out. A fixation
        that begins within `snap_s` seconds of the query is brought into view (`Scanpath.snap`), which uses gaze of up
        to so much later: as this processor is set, unless the item says otherwise (`"snap_s": 0`: never).

        An item may also say how it is read, as for Qwen's own processor and in place of this one's settings: a video
        by `fps` or `nframes` (both up to `max_frames`, over which they are spread) and by `max_pixels` of a frame, an
        image by `max_pixels`; and an image may be an `image_url`.
        """
        if kwargs.pop("return_assistant_tokens_mask", False):
            raise ValueError("return_assistant_tokens_mask is not supported: what the assistant says is not marked")
        options = dict(processor_kwargs or {})
        names = ("num_frames", "fps", "max_frames", "max_pixels", "padding_side", "return_tensors", "padding")
        options.update({name: kwargs.pop(name) for name in names if name in kwargs})
        items = _items(conversation)
        prompt = super().apply_chat_template(conversation, chat_template, tokenize=False, **kwargs)
        if not tokenize:
            return prompt
        sampling = {name: options.pop(name, None) for name in ("num_frames", "fps", "max_frames")}
        max_pixels = options.pop("max_pixels", None)
        videos = [item for item in items if item["type"] == "video"]
        images = [item for item in items if item["type"] in ("image", "image_url")]
        scanpaths = [item.get("scanpath") for item in videos]
        has_gaze = any(scanpath is not None for scanpath in scanpaths)
        clips = [
            self.process_clip(self._clip_of(item, sampling), has_gaze, _max_pixels(item, max_pixels))
            for item in videos
        ]
        inputs = self._inputs(
            [prompt] if isinstance(prompt, str) else prompt,
            clips,
            self.process_images(
                [_load_image(_source(item, "image", "image_url")) for item in images],
                [_max_pixels(item, max_pixels) for item in images],
            ),
            scanpaths or None,
            [item.get("snap_s", self.snap_s) for item in videos] or None,
            **options,
        )
        return inputs if return_dict else inputs["input_ids"]

    def _clip_of(self, item: dict, sampling: dict) -> Clip:
        """Return the clip of a video item, read by what it says, else by `sampling` of the whole conversation."""
        video = _source(item, "video")
        names = ("nframes", "fps", "max_frames")
        own = {name: item[name] for name in names if item.get(name) is not None}
        extent = {name: item[name] for name in ("start_s", "end_s") if name in item}
        if isinstance(video, Clip):
            if told := own | extent:
                raise ValueError(f"got {told} in an item whose video is a `Clip`, which has its frames already")
            return video
        if "nframes" in own or "fps" in own:
            sampling = {**sampling, "num_frames": own.pop("nframes", None), "fps": own.pop("fps", None)}
        return self.read_clip(_video_path(video), **extent, **{**sampling, **own})


_ITEM_KEYS = {
    "text": {"text"},
    "image": {"image", "path", "url", "image_url", "max_pixels"},
    "image_url": {"image_url", "max_pixels"},
    "video": {
        *("video", "path", "url", "scanpath", "start_s", "end_s", "snap_s"),
        *("fps", "nframes", "max_frames", "max_pixels"),
    },
}


def _items(conversation) -> list[dict]:
    """
    Return the items of all messages of a conversation, or of a batch of them. Raises ValueError for what is none.
    """
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise ValueError(f"conversation: got {conversation!r}, expected a list of messages")
    if isinstance(conversation[0], (list, tuple)):
        return [item for chat in conversation for item in _items(chat)]
    items = []
    for message in conversation:
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise ValueError(f"got the message {message!r}, expected a dict with role and content")
        content = message["content"]
        if isinstance(content, str):
            continue
        if not isinstance(content, (list, tuple)):
            raise ValueError(f"got the content {content!r}, expected a text or a list of items")
        for item in content:
            kind = item.get("type") if isinstance(item, dict) else None
            if kind not in _ITEM_KEYS:
                raise ValueError(f"got the item {item!r}, expected a dict with a type out of {list(_ITEM_KEYS)}")
            if unknown := sorted(set(item) - _ITEM_KEYS[kind] - {"type"}):
                raise ValueError(f"got the keys {unknown} in a {kind} item, expected {sorted(_ITEM_KEYS[kind])}")
            if kind == "text" and not isinstance(item.get("text"), str):
                raise ValueError(f"got the item {item!r}, expected a text under the key 'text'")
            items.append(item)
    return items


def _max_pixels(item: dict, default: int | None) -> int | None:
    """Return the most pixels of an item's image or frames, a `default` if it does not say."""
    return default if item.get("max_pixels") is None else item["max_pixels"]


def _check_normalization(name: str, part) -> None:
    """Raise ValueError for an image or video processor, called `name`, whose pixels would not be numbers."""
    for setting, positive in (("rescale_factor", True), ("image_mean", False), ("image_std", True)):
        values = getattr(part, setting, None)
        for value in values if isinstance(values, (list, tuple)) else [values]:
            if value is not None and not (is_number(value) and (value > 0 or not positive)):
                expected = "positive numbers" if positive else "numbers"
                raise ValueError(f"{name}: {setting}: got {values!r}, expected {expected}")


def _load_image(source):
    """Return an image by path, address or as it is. Raises ValueError for what cannot be read."""
    try:
        return load_image(source)
    except (TypeError, ValueError, OSError) as error:
        raise ValueError(f"image: {source!r} is no picture that can be read ({error})") from error


def _source(item: dict, *kinds: str):
    """Return where an item's image or video is. Raises ValueError if it does not say."""
    for name in (*kinds, "path", "url"):
        source = item.get(name)
        if isinstance(source, dict):  # an `image_url` as servers take it
            source = source.get("url")
        if source is not None:
            return source.removeprefix("file://") if isinstance(source, str) else source
    names = ", ".join(map(repr, (*kinds, "path", "url")))
    raise ValueError(f"got the item {item}, expected the {kinds[0]} under one of the keys {names}")


def _video_path(video) -> str | PathLike:
    """Return a video's path as it is. Raises ValueError for what is none."""
    if not isinstance(video, (str, PathLike)):
        got = repr(video) if np.isscalar(video) else f"an object of {type(video).__name__}"
        raise ValueError(
            f"videos: got {got}, expected a path or a `Clip`: frames alone do not tell their times, "
            "`Clip(frames, timestamps_s, start_s, end_s)` does"
        )
    return video


def _flatten(values) -> list:
    """Return the leaves of nested lists; one value as a list, None as an empty one."""
    if values is None:
        return []
    if not isinstance(values, (list, tuple)):
        return [values]
    return [leaf for value in values for leaf in _flatten(value)]


def _stack_padded(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Stack tensors of equal rank, each zero-padded at the end of every axis to the largest."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    stacked = tensors[0].new_zeros(len(tensors), *shape)
    for row, tensor in zip(stacked, tensors, strict=True):
        row[tuple(slice(size) for size in tensor.shape)] = tensor
    return stacked


GazeQwenProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["GazeQwenInputs", "GazeQwenProcessor"]
