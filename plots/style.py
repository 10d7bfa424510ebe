"""Hold what all pictures share: colours, font, and writing a PNG."""

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gazeqwen.utils.files import atomic_file

GAZE_COLOR, PATH_COLOR = "#ff2d55", "#ffd60a"
FONT = {"fontfamily": "DejaVu Sans"}
DPI = 110


def save_png(figure: Figure, path) -> None:
    """Write the figure so that a reader sees no file or the whole file."""
    figure.set_dpi(DPI)
    with atomic_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)  # `savefig` draws all twice where there is a layout to find


def pixels(figure: Figure, dpi: int = DPI) -> np.ndarray:
    """Return the figure as (H, W, 3) uint8."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def rgb(color: str) -> tuple[float, float, float]:
    """Return red, green and blue of a colour, 0 to 1."""
    return matplotlib.colors.to_rgb(color)
