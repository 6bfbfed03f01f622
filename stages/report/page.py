"""The report: one self-contained HTML page without scripts, which loads nothing."""

import base64
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.report.formatting import NBSP
from stages.report.results import Results
from stages.report.sections.registry import SECTIONS
from stages.report.sections.summary import lead


def render(results: Results) -> str:
    """The page as HTML text; the template escapes every text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    images = {
        name: "data:image/png;base64," + base64.b64encode(png).decode()
        for name, png in results.figures.items()
    }
    sections = [(section, section.blocks(results)) for section in SECTIONS]
    html = environment.get_template("page.html.jinja").render(
        arch=results.p.model.arch,
        dataset=dataset_name(results),
        lead=lead(results),
        sections=[(section, blocks) for section, blocks in sections if blocks],
        images=images,
        synthetic=results.synthetic,
        style=(Path(__file__).parent / "page.css").read_text(encoding="utf-8"),
    )
    # A symbol and its number stay on one line.
    return re.sub(r"\b([nε]) = (?=\d)", rf"\1{NBSP}={NBSP}", html)


def dataset_name(results: Results) -> str:
    """The last part of ``data.source``."""
    return results.p.data.source.rstrip("/").split("/")[-1]
