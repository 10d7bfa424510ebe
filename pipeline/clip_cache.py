"""
Frozen work done once: per clip, what the frozen networks make of it, on disk.

An entry is one safetensors file, named by the clip's content (blocks of the video file, window, and gaze where it is
drawn on the frames) in a folder named by what makes the numbers (weights of the frozen networks, sampling, sizes). So
a changed video, scanpath, encoder or setting is another name, never a stale entry; several processes may fill the same
folder; a truncated file is found and redone. Its header holds its name and a checksum of its values, so that content
of another entry, or damaged on the disk, is found when it is read.
"""

import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from gazeqwen.adapter_files_gazeqwen import write_tensors
from gazeqwen.backbones_gazeqwen import embed_dim
from gazeqwen.pipeline.overlays import Drawing, draw_gaze
from gazeqwen.questions.question import Question
from gazeqwen.utils.files import digest_of_file, write_json
from gazeqwen.utils.loading import repeatable_loader
from gazeqwen.utils.locks import lock
from gazeqwen.video_gazeqwen import FRAMES_PER_STEP, sample_times, video_size

# What is kept: nothing; the video encoder's features; or these and the base model's video embeddings, after which no
# video has to be decoded any more.
CACHE_KINDS = ("none", "features", "embeddings")

# A question, which names a clip, and what is drawn on the clip.
DrawnClip = tuple[Question, Drawing | None]

_FORMAT = 1  # part of the folder's name: raised when entries are made in another way
# Written into a processor's config when it is saved, for whoever loads it; no number depends on them.
_CODE_NAMES = {"auto_map", "processor_class"}


def default_cache_folder() -> Path:
    return Path(os.environ.get("GAZEQWEN_CACHE") or Path.home() / ".cache" / "gazeqwen")


def _checksum(entry: dict[str, torch.Tensor]) -> str:
    """Return a checksum of an entry's names, shapes, dtypes and values, against accidents; reading takes longer."""
    checksum = 0
    for name, value in sorted(entry.items()):
        checksum = zlib.crc32(f"{name} {tuple(value.shape)} {value.dtype}".encode(), checksum)
        checksum = zlib.crc32(value.contiguous().reshape(-1).view(torch.uint8).numpy(), checksum)
    return f"{checksum:08x}"


def digest_of_weights(module: torch.nn.Module) -> str:
    """
    Return a digest of 64 values spread over each parameter, with names, shapes and dtypes: the same on every device.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        flat = value.detach().flatten()
        digest.update(flat[:: max(1, len(flat) // 64)].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class CacheSize:
    """Hold how large the cache of some clips is: computed from the videos' sizes, before anything is encoded."""

    clips: int
    steps: int
    tokens: int
    bytes: int

    def __str__(self) -> str:
        return (
            f"{self.clips:,} clips, {self.steps:,} temporal steps, {self.tokens:,} video tokens, {_size(self.bytes)}"
        )


class ClipCache:
    """
    Reads a question's clip as the processor's `process_clip` does, frozen results included. Holds no model, so that
    loader workers can have it. `fill` computes what is missing, and has to come first. Where no video encoder is run
    (`for_video_encoder` False) nothing is made for it, so that `features` are nothing to keep.
    """

    def __init__(
        self,
        processor,
        kind: str = "none",
        settings: dict | None = None,
        root: str | Path | None = None,
        for_video_encoder: bool = True,
    ):
        if kind not in CACHE_KINDS:
            raise ValueError(f"cache: got {kind!r}, expected one of {CACHE_KINDS}")
        self.kind = kind = "none" if kind == "features" and not for_video_encoder else kind
        self.processor, self.for_video_encoder = processor, for_video_encoder
        self.settings = settings or {}
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
        self.folder = Path(root or default_cache_folder()) / f"{kind}-{digest[:16]}"

    @classmethod
    def from_model(cls, model, processor, kind: str, root: str | Path | None = None) -> "ClipCache":
        """Return the cache that fits a model and a processor: the same before they are saved and after loading."""
        video_processor = json.loads(processor.video_processor.to_json_string())
        settings = {
            "format": _FORMAT,
            "num_frames": processor.num_frames,
            "fps": processor.fps,
            "max_frames": processor.max_frames,
            "max_pixels_per_frame": processor.max_pixels_per_frame,
            "video_processor": {name: video_processor[name] for name in video_processor.keys() - _CODE_NAMES},
        }
        if processor.sampling != "spread":
            settings["sampling"] = processor.sampling
        if processor.keep_by == "similarity":
            settings["keep_by"] = "similarity"  # entries hold how much tokens changed
        if model.video_encoder is not None:
            settings["video_encoder"] = digest_of_weights(model.video_encoder)
            settings["video_encoder_size"] = processor.video_encoder_size
            if model.config.video_encoder_window is not None:
                settings["video_encoder_window"] = model.config.video_encoder_window
        if kind == "embeddings":
            settings["vision"] = digest_of_weights(model.backbone.model.visual)
        return cls(processor, kind, settings, root, model.video_encoder is not None)

    def path(self, question: Question, drawing: Drawing | None = None) -> Path:
        """Return the file of the entry of the question's clip, with what is drawn on it."""
        content, drawn = digest_of_file(question.video), self._drawing_key(question, drawing)
        clip = f"{content} {question.start_s!r} {question.end_s!r}{drawn}"
        return self.folder / f"{hashlib.sha256(clip.encode()).hexdigest()[:32]}.safetensors"

    def _drawing_key(self, question: Question, drawing: Drawing | None) -> str:
        """Return what tells clips of equal frames apart: all that the drawing follows from, without decoding."""
        if drawing is None:
            return ""
        snap_s = float(self.processor.snap_s) if question.snapped else 0.0
        return f" {drawing.digest} {snap_s}"

    def read(self, question: Question, drawing: Drawing | None = None) -> dict[str, torch.Tensor]:
        """
        Return what `GazeQwenProcessor.collate` takes for the question's clip, with what is drawn on it. Raises
        ValueError naming the entry and the video where the entry cannot be read.
        """
        if self.kind == "embeddings":
            return self._entry(question, drawing)
        processed = self.process(question, drawing, self.kind == "none" and self.for_video_encoder)
        if self.kind == "features":
            processed["video_encoder_features"] = self._entry(question, drawing)["video_encoder_features"]
        return processed

    def process(self, question: Question, drawing: Drawing | None, for_video_encoder: bool) -> dict[str, torch.Tensor]:
        """Return the clip decoded, drawn on with the gaze that the question sees, and processed."""
        processor = self.processor
        clip = processor.read_clip(question.video, question.start_s, question.end_s)
        if drawing is not None:
            spans_s = clip.step_spans_s(processor.video_processor.temporal_patch_size)
            clip = draw_gaze(clip, question.seen(drawing.scanpath, spans_s, processor.snap_s), drawing.channels)
        return processor.process_clip(clip, for_video_encoder)

    def _entry(self, question: Question, drawing: Drawing | None) -> dict[str, torch.Tensor]:
        path = self.path(question, drawing)
        try:
            with safe_open(path, framework="pt") as file:
                written = (file.metadata() or {}).get("entry")
                entry = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: the cache entry of {question.video_name} cannot be read ({error})") from error
        if written != f"{path.stem} {_checksum(entry)}":
            with suppress(OSError):
                path.unlink()
            raise ValueError(
                f"{path}: the cache entry of {question.video_name} holds other values than were written, and was "
                "removed: start again, and it is computed anew"
            )
        return entry

    def _is_whole(self, path: Path) -> bool:
        try:
            with safe_open(path, framework="pt") as file:  # checks the file's length against its header
                return (file.metadata() or {}).get("entry", "").startswith(path.stem)
        except FileNotFoundError:
            return False
        except (OSError, SafetensorError):
            path.unlink(missing_ok=True)
            return False

    def missing(self, clips: Iterable[DrawnClip]) -> list[DrawnClip]:
        """Return those of the clips, each once, that have no whole entry. Truncated entries are removed."""
        if self.kind == "none":
            return []
        return [clip for clip in self._unique(clips) if not self._is_whole(self.path(*clip))]

    def _unique(self, clips: Iterable[DrawnClip]) -> list[DrawnClip]:
        clips_by_key = {}
        for question, drawing in clips:
            window = question.start_s, question.end_s
            clips_by_key[question.video, window, self._drawing_key(question, drawing)] = question, drawing
        return list(clips_by_key.values())

    def size(
        self,
        questions: Sequence[Question],
        feature_dim: int,
        hidden: int,
        bytes_per_value: int,
        drawings: Sequence[Drawing | None] | None = None,
    ) -> CacheSize:
        """
        Return the size of the entries of the questions' clips, with what is drawn on them. `feature_dim`, `hidden`:
        values of a video token in the video encoder and in the base model, each `bytes_per_value` long.
        """
        clips = self._unique(_pairs(questions, drawings))
        shapes = self.shapes([question for question, _ in clips])
        steps = sum(frames for frames, _ in shapes) // FRAMES_PER_STEP
        tokens = sum(video_tokens for _, video_tokens in shapes)
        values = {"none": 0, "features": feature_dim, "embeddings": feature_dim + hidden}[self.kind]
        return CacheSize(len(clips), steps, tokens, tokens * values * bytes_per_value)

    def num_frames(self, question: Question) -> int:
        """Return how many frames the question's clip has."""
        return len(self.frame_times_s(question))

    def frame_times_s(self, question: Question) -> np.ndarray:
        """Return the (F,) times that the frames of the question's clip are taken at, in seconds of the video."""
        processor = self.processor
        frames = processor.num_frames, processor.fps, processor.max_frames, processor.sampling
        return sample_times(question.start_s, question.end_s, *frames)

    def shapes(self, questions: Sequence[Question]) -> list[tuple[int, int]]:
        """Return how many frames and video tokens each question's clip has, from its times and its video's size."""
        sizes = {video: video_size(video) for video in {question.video for question in questions}}
        keys = [(self.num_frames(question), *sizes[question.video]) for question in questions]
        merge = self.processor.video_processor.merge_size**2
        grids = {key: self.processor.video_grid(key[0], height=key[2], width=key[1]) for key in set(keys)}
        return [(key[0], int(grids[key].prod()) // merge) for key in keys]

    # ---------------------------------------------------------------- filling
    @torch.no_grad()
    def fill(
        self,
        accelerator: Accelerator,
        model,
        questions: Sequence[Question],
        batch_size: int = 8,
        num_workers: int = 0,
        drawings: Sequence[Drawing | None] | None = None,
    ) -> int:
        """
        Compute what is missing of the questions' clips, with what is drawn on them, shared among the processes.
        Return how many clips were missing. Another run that fills the same folder is waited for, unless several
        processes fill it here, which might wait too long for each other: then what both need is computed twice.
        Raises OSError where they do not fit on the disk.
        """
        clips = _pairs(questions, drawings)
        waits = accelerator.num_processes == 1 and self.missing(clips)
        with lock(self.folder, wait=True) if waits else nullcontext():
            return self._fill(accelerator, model, clips, batch_size, num_workers)

    def _fill(
        self, accelerator: Accelerator, model, clips: Sequence[DrawnClip], batch_size: int, num_workers: int
    ) -> int:
        """Do what `fill` does, with no other run in the folder."""
        missing = self.missing(clips)
        accelerator.wait_for_everyone()  # all have looked before any writes
        if not missing:
            return 0
        if accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "settings.json", self.settings)
            hidden = embed_dim(model.backbone.config)
            width = model.video_encoder.config.hidden_size if self.for_video_encoder else 0
            missing_questions, missing_drawings = zip(*missing, strict=True)
            size = self.size(missing_questions, width, hidden, model.dtype.itemsize, missing_drawings)
            free = shutil.disk_usage(self.folder).free
            accelerator.print(f"cache of {self.kind}: {size} to compute into {self.folder} ({_size(free)} free)")
            if size.bytes > free:
                raise OSError(
                    f"{self.folder}: {_size(size.bytes)} needed, {_size(free)} free; choose another cache_dir"
                )
        accelerator.wait_for_everyone()
        process_clips = missing[accelerator.process_index :: accelerator.num_processes]
        data = _MissingClips(self, process_clips)
        loader = repeatable_loader(data, batch_size=batch_size, num_workers=num_workers, collate_fn=list)
        with tqdm(total=len(process_clips), desc="clips", unit="clip", disable=not accelerator.is_main_process) as bar:
            for batch in loader:
                entries = self._encode(model, [processed for _, processed in batch])
                for (clip, _), entry in zip(batch, entries, strict=True):
                    path = self.path(*clip)
                    write_tensors(path, entry, {"entry": f"{path.stem} {_checksum(entry)}"})
                bar.update(len(batch))
        accelerator.wait_for_everyone()
        return len(missing)

    def _encode(self, model, clips: list[dict]) -> list[dict]:
        """Return the entries of some processed clips; the frozen networks run on all of them together."""
        grids = torch.stack([clip["video_grid_thw"] for clip in clips]).to(model.device)
        token_grids = model.token_grids(grids)
        entries = [{name: value for name, value in clip.items() if "pixel_values" not in name} for clip in clips]
        if self.for_video_encoder:
            frames = torch.nn.utils.rnn.pad_sequence([clip["video_encoder_pixel_values"] for clip in clips], True)
            features = model.encode_video(frames.to(model.device), grids).cpu()
            for entry, row, (steps, height, width) in zip(entries, features, token_grids.tolist(), strict=True):
                entry["video_encoder_features"] = row[:steps, : height * width].clone()
        if self.kind == "embeddings":
            pixels = torch.cat([clip["pixel_values_videos"] for clip in clips]).to(model.device)
            embeds = model.embed_video(pixels, grids).cpu().split(token_grids.prod(-1).tolist())
            for entry, clip_embeds in zip(entries, embeds, strict=True):
                entry["video_embeds"] = clip_embeds.clone()
        return entries


class _MissingClips(torch.utils.data.Dataset):
    """Read (clip, everything the frozen networks need), decoded in loader workers."""

    def __init__(self, cache: ClipCache, clips: list[DrawnClip]):
        self.cache, self.clips = cache, clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[DrawnClip, dict]:
        return self.clips[index], self.cache.process(*self.clips[index], self.cache.for_video_encoder)


def _pairs(questions: Sequence[Question], drawings: Sequence[Drawing | None] | None) -> list[DrawnClip]:
    """Return each question with what is drawn on its clip: nothing without `drawings`."""
    if drawings is None:
        drawings = [None] * len(questions)
    return list(zip(questions, drawings, strict=True))


def _size(count: float) -> str:
    power = min(int(math.log(max(count, 1), 1000)), 4)
    return f"{count / 1000**power:.1f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
