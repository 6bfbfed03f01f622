"""The look of the figures, and PNG bytes that depend on the numbers alone.

Colors are from Okabe and Ito (2008), distinguishable with every common color blindness; line styles and markers repeat the
distinction. Fixed size, fixed resolution, no metadata: the same numbers give the same bytes, small enough to be kept in git.
"""

import io
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

COLORS = {"clean": "#0072B2", "adv": "#D55E00"}
LINES = {"clean": "-", "adv": "--"}
MARKERS = {"clean": "o", "adv": "s"}
WRONG = "#B34D00"  # text of the second color, darker: 4.5 to 1 against white
TEXT_COLORS = {"clean": COLORS["clean"], "adv": WRONG}
GRAY, GREEN, SKY, PURPLE = "#555555", "#009E73", "#56B4E9", "#7A3E9D"
NEUTRAL = ("#4A4A4A", "#8C8C8C", "#C8C8C8")  # train, val, test: not the models' colors
MAX_PNG_BYTES = 100_000
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}


def make_figure(width: float, height: float, *shape: int, **options: Any) -> tuple[Figure, Any]:
    """A figure of this size in inches, and its axes, a 2-D array."""
    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(*shape, squeeze=False, **options)


def render_png(figure: Figure, note: str = "", dpi: int = 120) -> bytes:
    """The figure with a note in its lower corner; 256 colors where true color would pass MAX_PNG_BYTES."""
    if note:
        figure.supxlabel(note, x=0.995, ha="right", fontsize=7.5, color=GRAY)
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    canvas.draw()
    true_color = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    png = encode_png(true_color)
    if len(png) < MAX_PNG_BYTES:
        return png
    return encode_png(
        true_color.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    )


def encode_png(image: Image.Image) -> bytes:
    """PNG bytes without metadata."""
    file = io.BytesIO()
    image.save(file, format="png", optimize=True)
    return file.getvalue()


def truncate(text: str, length: int = 18) -> str:
    """A name that fits next to an axis; a dollar sign would start a formula."""
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")
