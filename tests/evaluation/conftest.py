"""What a test draws, before it becomes a PNG."""

from dataclasses import dataclass

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from stages.evaluation import figures, image_figures, style


@dataclass(frozen=True)
class RenderedFigure:
    """A figure, and the note in its lower corner."""

    figure: Figure
    note: str

    @property
    def texts(self) -> list[str]:
        """All texts in it."""
        return [text.get_text() for text in self.figure.findobj(Text) if text.get_text()]

    @property
    def axes(self) -> list:
        """Its axes, in the order in which they were made."""
        return self.figure.get_axes()


@pytest.fixture
def rendered(monkeypatch) -> list[RenderedFigure]:
    """Every figure that the test draws."""
    calls = []

    def record(figure, note=""):
        calls.append(RenderedFigure(figure, note))
        return style.render_png(figure, note)

    for module in (figures, image_figures):
        monkeypatch.setattr(module, "render_png", record)
    return calls
