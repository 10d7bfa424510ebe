"""Draw gaze on every frame of a video: only moving pictures prove that two clocks agree."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

from gazeqwen.plots.style import GAZE_COLOR, PATH_COLOR
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.utils.files import atomic_file
from gazeqwen.video_gazeqwen import each_frame, video_info

if TYPE_CHECKING:
    from gazeqwen.gaze_sources.samples import GazeSamples

_SMALLEST_PX = 480  # of the width: smaller frames are enlarged
_FONT_PX = 18
_UNIT_S = Fraction(1, 1000)


def write_overlay(path, video, samples: GazeSamples, scanpath: Scanpath) -> None:
    """
    Write an MP4 of all frames of a video at their times, without sound. On each, dots: the samples from its time to
    the next frame's; a ring with its number: the fixation at its time. Below, so that nothing is covered: time, number
    of the frame, and both in words. One frame is in memory at a time; a reader sees no file or the whole file.
    """
    path, info = Path(path), video_info(video)
    seconds = info.end_s - info.start_s
    layout = "{desc}: {percentage:3.0f}% |{bar}| {n:.1f} of {total:.1f} s [{elapsed}<{remaining}]"
    bar = tqdm(total=seconds, desc=path.name, bar_format=layout)
    with bar, atomic_file(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", options={"crf": "20", "preset": "veryfast"})
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", _UNIT_S
        for number, (time_s, until_s, pixels) in enumerate(_shown(video, info.end_s)):
            picture = draw_gaze_of(pixels, time_s, until_s, number, samples, scanpath)
            if number == 0:
                stream.width, stream.height = picture.size
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = round(time_s / _UNIT_S), _UNIT_S
            container.mux(stream.encode(frame))
            bar.update(min(until_s - info.start_s, seconds) - bar.n)
        container.mux(stream.encode())


def _shown(video, end_s: float) -> Iterator[tuple[float, float, np.ndarray]]:
    """Yield (from when, until when, frame (H, W, 3) uint8) each frame of a video is shown."""
    before = None
    for time_s, pixels in each_frame(video):
        if before is not None:
            yield before[0], time_s, before[1]
        before = time_s, pixels
    if before is not None:
        yield before[0], end_s, before[1]


def draw_gaze_of(
    frame: np.ndarray, time_s: float, until_s: float, number: int, samples: GazeSamples, scanpath: Scanpath
) -> Image.Image:
    """Return a frame (H, W, 3) uint8, shown from `time_s` to `until_s`, as `write_overlay` draws it, of even size."""
    scale = max(1, -(-_SMALLEST_PX // frame.shape[1]))
    height, width = scale * frame.shape[0], scale * frame.shape[1]
    picture = Image.new("RGB", (width + width % 2, height + 2 * _FONT_PX + height % 2))
    picture.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_FONT_PX)

    index = scanpath.index_at(time_s)
    fixation = "no fixation"
    if index is not None:
        fixation = f"fixation {scanpath.ids[index]}"
        x, y = scanpath.table[index, :2] * (width, height)
        draw.circle((x, y), 0.05 * width, outline=GAZE_COLOR, width=3)
        below = (x, y + 0.05 * width + _FONT_PX)
        number_place = np.clip(below, _FONT_PX, (width - _FONT_PX, height - _FONT_PX))
        style = {"anchor": "mm", "font": font, "stroke_width": 2, "stroke_fill": "black"}
        draw.text(tuple(number_place), str(scanpath.ids[index]), fill="white", **style)
    first, last = np.searchsorted(samples.times_s, (time_s, until_s))
    in_frame = samples.in_frame[first:last]
    for place in samples.recorded_xy[first:last][in_frame] * (width, height):
        draw.circle(tuple(place), 4, fill=PATH_COLOR, outline="black")
    gaze = f"{in_frame.sum()} of {last - first} samples in the frame"
    text = f"{time_s:.3f} s   frame {number}   {fixation}   {gaze}"
    draw.text((_FONT_PX / 2, height + _FONT_PX), text, fill="white", anchor="lm", font=font)
    return picture
