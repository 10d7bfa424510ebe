"""Pictures that show what they say: what is drawn is found again by its colour."""

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from gazeqwen.plots.curves import curves
from gazeqwen.plots.scanpath import draw_effect, draw_moment, draw_scanpath, draw_step, shares_text
from gazeqwen.plots.style import pixels, save_png
from gazeqwen.scanpath_gazeqwen import as_scanpath

BLACK = np.zeros((180, 240, 3), np.uint8)
# One fixation a second, from left to right.
ROW = as_scanpath([[0.1 + 0.1 * i, 0.5, i + 0.5, 0.8] for i in range(8)])


def redness(image: np.ndarray, x: float, y: float) -> int:
    """How red a picture is within a ring or disc at a place of the frame: its reddest pixel straight above."""
    height, width = image.shape[:2]
    return int(image[int((y - 0.06) * height) : int((y - 0.02) * height), int(x * width), 0].max())


def inside(image: np.ndarray, x: float, y: float) -> int:
    """How red a picture is a little above the number in the middle of a ring or disc."""
    height, width = image.shape[:2]
    return int(image[int((y - 0.025) * height), int(x * width), 0])


def test_the_plot_shows_fixations_where_the_table_says(tmp_path):
    """On black frames the discs' middle is found by colour, per panel, and compared with the coordinates."""
    height, width = 180, 240
    frames, spans_s = np.zeros((2, height, width, 3), np.uint8), np.array([[0.0, 2.0], [2.0, 4.0]])
    scanpath = as_scanpath([[0.25, 0.75, 1.0, 2.0], [0.8, 0.2, 3.0, 2.0]])
    save_png(draw_scanpath(frames, spans_s, scanpath, np.eye(2)), tmp_path / "plot.png")
    image = np.asarray(Image.open(tmp_path / "plot.png").convert("RGB")).astype(int)
    black = (image.sum(-1) < 30).any(0)
    panels = np.split(np.flatnonzero(black), np.flatnonzero(np.diff(np.flatnonzero(black)) > 3) + 1)
    assert len(panels) == 2
    for columns, (x, y) in zip(panels, scanpath.table[:, :2], strict=True):
        panel = image[:, columns[0] : columns[-1] + 1]
        rows = np.flatnonzero((panel.sum(-1) < 30).mean(1) > 0.3)
        panel = panel[rows[0] : rows[-1] + 1]
        red = (panel[..., 0] > 120) & (panel[..., 1] < 90)
        found_y, found_x = (np.argwhere(red).mean(0) + 0.5) / panel.shape[:2]
        assert (found_x, found_y) == (pytest.approx(x, abs=0.02), pytest.approx(y, abs=0.02))
    with pytest.raises(ValueError, match="got 2 frames and weights \\(3, 3\\), expected 2 and \\(2, 2\\)"):
        draw_scanpath(frames, spans_s, scanpath, np.eye(3))


def test_a_moment_shows_its_fixation_and_those_before_it_fading():
    image = pixels(draw_moment(BLACK, ROW, time_s=5.5))
    red = [redness(image, x, y) for x, y in ROW.table[:, :2]]
    assert red[6:] == [0, 0] and red[0] == 0  # what is to come, and what is long past
    assert 0 < red[1] < red[2] < red[3] < red[4] < 255 and red[5] > 0
    filled = [inside(image, x, y) for x, y in ROW.table[:, :2]]
    assert filled[5] > 100 and max(filled[:5]) == 0  # what was looked at earlier is not what this frame shows
    assert (image == pixels(draw_moment(BLACK, ROW, time_s=5.5))).all()


def test_a_moment_between_fixations_has_no_number_and_one_before_them_nothing():
    def white(time_s: float) -> bool:
        return bool((pixels(draw_moment(BLACK, ROW, time_s)).min(-1) > 250).any())

    assert white(5.5) and not white(5.95)
    assert not pixels(draw_moment(BLACK, ROW, 0.05)).any()
    assert not pixels(draw_moment(BLACK, None, 5.5)).any()
    assert not pixels(draw_moment(BLACK, as_scanpath([]), 5.5)).any()


@pytest.mark.parametrize("size", [(97, 131), (1080, 1920), (480, 270)])
def test_a_picture_of_a_frame_holds_nothing_but_the_frame(size):
    image = pixels(draw_moment(np.full((*size, 3), 7, np.uint8), None, 0.0))
    assert (image == 7).all()
    assert image.shape[0] / image.shape[1] == pytest.approx(size[0] / size[1], abs=0.01)


def test_a_step_is_dark_where_attention_is_low():
    gray = np.full((90, 120, 3), 200, np.uint8)
    image = pixels(draw_step(gray, ROW, np.zeros(8), np.array([[1.0, 0.0], [0.5, 0.0]])))
    height, width = image.shape[:2]
    light = image[height // 4 :: height // 2, width // 4 :: width // 2, 0]
    assert light.tolist() == [[200, 50], [125, 50]]
    nowhere = pixels(draw_step(gray, ROW, np.zeros(8), np.zeros((2, 2))))
    assert nowhere.mean() == pytest.approx(50, abs=1)


def test_a_step_fills_its_main_fixation_alone_and_a_snapped_one_is_dashed():
    shares = np.array([0.0, 0.2, 0.0, 0.7, 0.1, 0.0, 0.0, 0.0])
    image = pixels(draw_step(BLACK, ROW, shares))
    filled = [inside(image, x, y) for x, y in ROW.table[:, :2]]
    assert filled[3] > 100 and max(filled[:3] + filled[4:]) == 0
    rings = [redness(image, x, y) for x, y in ROW.table[:, :2]]
    assert min(rings[1], rings[3], rings[4]) > 100 and max(rings[0], rings[2], *rings[5:]) == 0
    snapped = pixels(draw_step(BLACK, ROW, np.eye(8)[3], snapped=3))
    whole = pixels(draw_step(BLACK, ROW, np.eye(8)[3]))
    x, y = ROW.table[3, :2]
    assert inside(snapped, x, y) == 0 < inside(whole, x, y)
    height, width = snapped.shape[:2]
    below = (slice(int(0.59 * height), int(0.65 * height)), slice(int(0.2 * width), int(0.6 * width)))
    assert (snapped[below].min(-1) > 200).sum() > 30 and not (whole[below].min(-1) > 200).any()  # its words


def test_numbers_of_fixations_in_one_place_do_not_cover_each_other():
    """Of 1 and 0 in one place, 10 would be read. Also where the picture ends, and beside a snapped fixation."""
    places = [(0.2, 0.15), (0.17, 0.14), (0.22, 0.16), (0.19, 0.15), (0.98, 0.98), (0.97, 0.98), (0.97, 0.97)]
    scanpath = as_scanpath([[x, y, number, 0.9] for number, (x, y) in enumerate(places, start=1)])
    shares = np.array([0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    for snapped in (None, 0):
        figure = draw_step(BLACK, scanpath, shares, snapped=snapped)
        pixels(figure)
        texts = figure.axes[0].texts
        assert sorted(text.get_text()[0] for text in texts) == list("0123456")
        boxes = [text.get_window_extent() for text in texts]
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
        assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)
    alone = draw_step(BLACK, scanpath, np.eye(7)[0]).axes[0].texts[0]
    assert alone.get_position() == (0.2 * 240 - 0.5, 0.15 * 180 - 0.5)  # nothing is in its way


def test_the_legend_lies_on_no_curve():
    line = {"loss": 1.0, "stage": 1, "validation_macro": 0.5, "validation_text_loss": 2.0}
    figure = curves([line] * 5)
    pixels(figure)
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 3 and not any(axis.get_legend() for axis in figure.axes)
    assert not any(legend.get_window_extent().overlaps(axis.get_tightbbox()) for axis in figure.axes)


def test_shares_are_named_and_many_of_them_as_a_range():
    assert shares_text(ROW, np.zeros(8)) == "no fixation"
    assert shares_text(ROW, np.eye(8)[2]) == "#2: 100 %"
    assert shares_text(ROW, np.array([0, 0.5, 0.25, 0, 0, 0, 0, 0])) == "#1: 50 %, #2: 25 %"
    assert shares_text(ROW, np.full(8, 0.125)) == "#0 to #7: 100 %"
    assert shares_text(ROW, np.array([0, 0.25, 0.5, 0, 0, 0, 0, 0]), snapped=2) == "#1: 25 %, #2: 50 % (snapped)"


def test_the_effect_lies_where_residuals_are_large():
    """Each lower panel is brightest at the token that most was added to; bars are as long as probabilities are."""
    frames, spans_s = np.zeros((2, 120, 120, 3), np.uint8), np.array([[0.0, 2.0], [2.0, 4.0]])
    scanpath = as_scanpath([[0.2, 0.2, 1.0, 2.0], [0.8, 0.8, 3.0, 2.0]])
    residuals = np.zeros((2, 4, 4))
    residuals[0, 1, 2], residuals[1, 3, 0] = 1.0, 1.0
    probabilities = {"with gaze": {"A. box": 0.9, "B. jar": 0.1}, "without gaze": {"A. box": 0.5, "B. jar": 0.5}}
    figure = draw_effect(frames, spans_s, scanpath, np.eye(2), residuals, probabilities, "What?")
    image = pixels(figure).astype(int)
    height, width = image.shape[:2]
    for axis, place in ((figure.axes[1], (1, 2)), (figure.axes[3], (3, 0))):
        box = axis.get_position()
        panel = image[round((1 - box.y1) * height) : round((1 - box.y0) * height)]
        panel = panel[:, round(box.x0 * width) : round(box.x1 * width)].sum(-1)
        rows, columns = (np.array_split(range(size), 4) for size in panel.shape)
        light = np.array([[panel[row][:, column].mean() for column in columns] for row in rows])
        assert np.unravel_index(light.argmax(), light.shape) == place
    red, gray = ((image[..., 0] > 240) & (image[..., 1] < 80)), (abs(image - (154, 160, 166)).sum(-1) < 12)
    bars = [mask[:, round(figure.axes[4].get_position().x0 * width) :].sum(1).max() for mask in (red, gray)]
    assert bars[0] / bars[1] == pytest.approx(0.9 / 0.5, rel=0.05)
