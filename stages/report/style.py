"""The look of the figures, and PNG bytes that depend on the numbers alone.

Colors are from Okabe and Ito (2008), distinguishable with every common color blindness; line styles
and markers repeat the distinction. Fixed size, fixed resolution, no metadata: the same numbers give
the same bytes, small enough to be kept in git.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from stages.core.files import FileFormatError
from stages.core.norms import Norm
from stages.report import fonts

COLORS = {"clean": "#0072B2", "adv": "#D55E00"}
LINES = {"clean": "-", "adv": "--"}
MARKERS = {"clean": "o", "adv": "s"}
WRONG = "#B34D00"  # text of the second color, darker: 4.5 to 1 against white
TEXT_COLORS = {"clean": COLORS["clean"], "adv": WRONG}
GRAY, GREEN, SKY, PURPLE = "#555555", "#009E73", "#56B4E9", "#7A3E9D"
NEUTRAL = ("#4A4A4A", "#8C8C8C", "#C8C8C8")  # train, val, test: not the models' colors
MAX_PNG_BYTES = 100_000
STYLE: dict[str, Any] = {
    "font.family": [fonts.DEFAULT],  # evaluate adds what the names of the classes need
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


def render_png(figure: Figure, note: str = "", *, in_git: bool = True) -> bytes:
    """The figure with a note in its lower corner.

    Args:
        figure: drawn at 120 dpi.
        note: n, intervals, whether the data are synthetic.
        in_git: at most 256 colors where true color would pass MAX_PNG_BYTES. Figures that show
            photographs aren't kept in git, and keep their colors.
    """
    if note:
        figure.supxlabel(note, x=0.995, ha="right", fontsize=7.5, color=GRAY)
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(120)
    canvas.draw()
    true_color = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    png = encode_png(true_color)
    if len(png) < MAX_PNG_BYTES or not in_git:
        return png
    colors = true_color.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return encode_png(colors)


def encode_png(image: Image.Image) -> bytes:
    """PNG bytes without metadata."""
    file = io.BytesIO()
    image.save(file, format="png", optimize=True)
    return file.getvalue()


def open_image(file: Path) -> np.ndarray:
    """(H, W, 3) uint8. Raises FileFormatError, naming the file, for a damaged one."""
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as error:  # the latter is Pillow's, for a broken PNG
        raise FileFormatError(f"{file}: expected a picture, got {error}") from None


def show_image(axis: Axes, image: np.ndarray | None) -> None:
    """An image (H, W, 3) without axes; None: nothing."""
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)
    if image is not None:
        axis.imshow(image, interpolation="nearest" if len(image) < 128 else "antialiased")


def axis_label(norm: Norm) -> str:
    """Of an axis of ε."""
    unit = "× 1/255" if norm.axis_scale == 255 else "pixel values in [0, 1]"
    return f"Perturbation budget ε ({norm.symbol}, {unit})"


def eps_axis(axis: Axes, values: Sequence[float], norm: Norm) -> None:
    """Linear, with ticks at the values unless they would touch."""
    ticks = sorted({round(float(value), 6) for value in values})
    largest = ticks[-1] or 1
    kept: list[float] = []
    for tick in ticks:
        apart = not kept or tick - kept[-1] > 0.06 * largest
        if tick == ticks[-1] or (apart and largest - tick > 0.06 * largest):
            kept.append(tick)
    axis.set_xticks(kept, [f"{tick:.3g}" for tick in kept])
    axis.set(xlim=(0, 1.04 * largest), xlabel=axis_label(norm))


def truncate(text: str, length: int = 18) -> str:
    """A name that fits next to an axis; a dollar sign would start a formula."""
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")
