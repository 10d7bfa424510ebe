"""
Is a fixated thing found again in later frames of natural video, by a video encoder's features?

    python benchmarks/natural_video.py --encoder DINOV2_FOLDER --clip bikes.mp4 5.6 .23 .54 ...     # see the page
    python benchmarks/natural_video.py --draw      # fills docs/natural-video.md from the result alone

A place of a frame is matched with the place of a later frame whose feature has the largest cosine similarity. Shown is
how often that is the same place (to a patch and a half), as it is for whatever did not move much; chance is the share
of places that lie so near. Compared with the same network with random weights, and with plain pixels of the patch.
Also: how similar a place is to the same place of the next frame, against a place drawn at random. (That the way back
from the match ends where it began was tried as a measure: half of the places of pure noise pass it.)
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F
from tqdm import tqdm
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from gazeqwen.plots.style import save_png
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_json, write_text
from gazeqwen.utils.provenance import provenance
from gazeqwen.utils.tables import Table, fill, percent
from gazeqwen.video_encoders_gazeqwen import build_video_encoder, load_video_encoder, load_video_encoder_config
from gazeqwen.video_gazeqwen import read_frames

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "benchmarks" / "results" / "natural_video.json"
DOCUMENT, PICTURE = ROOT / "docs" / "natural-video.md", ROOT / "docs" / "images" / "natural-video.png"
STEP_S, FRAMES = 0.2, 9  # of a clip
SIZE_PX, PATCH_PX = 448, 14
STARTS = (0, 2, 4)  # frames that places are followed from
GAPS = (1, 2, 4)  # frames later: .2, .4 and .8 s
NEAR = 1.5  # patches
PLACES = 200


def features_of(frames: np.ndarray, encoder, size_px: int = SIZE_PX) -> torch.Tensor:
    """Return unit features (frames, places, D) of frames (n, H, W, 3); without an encoder the patch's pixels."""
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    pixels = F.interpolate(pixels, (size_px, size_px), mode="bicubic", antialias=True).clamp(0, 1)
    pixels = (pixels - torch.tensor(IMAGENET_DEFAULT_MEAN)[:, None, None]) / torch.tensor(IMAGENET_DEFAULT_STD)[
        :, None, None
    ]
    if encoder is None:
        tokens = F.unfold(pixels, PATCH_PX, stride=PATCH_PX).transpose(1, 2)
    else:
        with torch.no_grad():
            tokens = torch.cat([encoder(frame[None, None]).last_hidden_state for frame in pixels])
    return F.normalize(tokens - tokens.mean(dim=(0, 1)), dim=-1)


def apart(one: torch.Tensor, other: torch.Tensor, side: int) -> torch.Tensor:
    """Return how many patches lie between places (indices)."""
    rows, columns = (one // side - other // side), (one % side - other % side)
    return torch.hypot(rows.float(), columns.float())


def measure(features: torch.Tensor, seed: int = 0) -> dict:
    """Return the shares of places that are found again, and similarities, of a clip's features (frames, places, D)."""
    rng = torch.Generator().manual_seed(seed)
    count = features.shape[1]
    side = round(count**0.5)
    every = torch.arange(count)
    near = apart(every[:, None], every, side) <= NEAR
    found: dict[str, float] = {}
    same, elsewhere = [], []
    for gap in GAPS:
        hits = []
        for start in STARTS:
            places = torch.randperm(count, generator=rng)[:PLACES]
            match = (features[start, places] @ features[start + gap].T).argmax(-1)
            hits.append(near[match, places])
            if gap == GAPS[0]:
                anywhere = torch.randint(count, places.shape, generator=rng)
                same.append((features[start, places] * features[start + gap, places]).sum(-1))
                elsewhere.append((features[start, places] * features[start + gap, anywhere]).sum(-1))
        found[f"{gap * STEP_S:g} s"] = round(torch.cat(hits).float().mean().item(), 4)
    similarity = {"same place": same, "random place": elsewhere}
    return {
        "found": found,
        "chance": round(near.float().mean().item(), 4),
        "similarity": {name: round(torch.cat(values).mean().item(), 4) for name, values in similarity.items()},
    }


def draw(clips: dict[str, tuple[np.ndarray, torch.Tensor, torch.Tensor, tuple[float, float]]], path: Path) -> None:
    """Draw a fixated place and where it is found in later frames: by the features, and by random weights."""
    heights = [2.2 * frames.shape[1] / frames.shape[2] + 0.25 for frames, *_ in clips.values()]
    figure = Figure(figsize=(11, sum(heights) + 0.4), layout="constrained")
    axes = figure.subplots(len(clips), 5, squeeze=False, height_ratios=heights)
    for row, (frames, learned, random, (x, y)) in zip(axes, clips.values(), strict=True):
        side, (height, width) = round(learned.shape[1] ** 0.5), frames.shape[1:3]
        start = int(y * side) * side + int(x * side)
        for ax, number in zip(row, (0, 1, 2, 4, 8), strict=True):
            ax.imshow(frames[number])
            for features, color, label in ((random, "tab:orange", "random weights"), (learned, "lime", "DINOv2")):
                place = start if number == 0 else int((features[0, start] @ features[number].T).argmax())
                at = ((place % side + 0.5) / side * width, (place // side + 0.5) / side * height)
                if number == 0:
                    ax.plot(*at, "o", ms=13, mfc="none", mec="white", mew=2.5)
                else:
                    ax.plot(*at, "o", ms=13, mfc="none", mec=color, mew=2.5, label=label)
            ax.set_title("fixated at 0 s" if number == 0 else f"{number * STEP_S:.1f} s later", fontsize=9)
            ax.set_axis_off()
    handles, labels = axes[0][1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save_png(figure, path)


def run(encoder_folder: str, clips: list[tuple[Path, float, float, float]]) -> dict:
    """Measure and draw clips (file, start in s, and the fixated place x, y, 0 to 1); return the result."""
    config = load_video_encoder_config(encoder_folder)
    torch.manual_seed(0)
    encoders = {
        "DINOv2": load_video_encoder(encoder_folder, config).eval(),
        "random weights": build_video_encoder(config).eval(),
        "pixels": None,
    }
    drawn, results = {}, {}
    for video, start_s, x, y in clips:
        frames, _ = read_frames(video, start_s + np.arange(FRAMES) * STEP_S)
        features = {n: features_of(frames, e) for n, e in tqdm(encoders.items(), desc=video.stem)}
        drawn[video.stem] = (frames, features["DINOv2"], features["random weights"], (x, y))
        results[video.stem] = {name: measure(values) for name, values in features.items()}
    draw(drawn, PICTURE)
    settings = {"size_px": SIZE_PX, "step_s": STEP_S, "near_patches": NEAR, "places": PLACES * len(STARTS)}
    return {"settings": settings, "clips": results, "provenance": provenance()}


def table(result: dict) -> Table:
    """Return the table of the page."""
    spans = [f"{gap * STEP_S:g} s" for gap in GAPS]
    rows = []
    for clip, by_name in result["clips"].items():
        for name, of in by_name.items():
            alike = [f"{of['similarity'][where]:.2f}" for where in ("same place", "random place")]
            rows.append([clip, name, *(percent(of["found"][span]) for span in spans), percent(of["chance"]), *alike])
    header = [
        "clip",
        "features",
        *(f"after {span}" for span in spans),
        "by chance",
        "cosine, same place",
        "random place",
    ]
    return Table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", help="folder that `gazeqwen convert dinov2_onnx` wrote")
    parser.add_argument(
        "--clip", nargs=4, action="append", metavar=("VIDEO", "START_S", "X", "Y"), help="fixated place"
    )
    parser.add_argument("--draw", action="store_true", help="fill the page from the result alone")
    args = parser.parse_args()
    if not args.draw:
        clips = [(Path(video), *map(float, numbers)) for video, *numbers in args.clip]
        write_json(OUTPUT, run(args.encoder, clips))
    result = json.loads(OUTPUT.read_text())
    write_text(DOCUMENT, fill(DOCUMENT.read_text(), {"natural-video": table(result)}))


if __name__ == "__main__":
    with one_line_errors():
        main()
