"""The figures: the same bytes for the same numbers, small, and what they show is in the tables."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from stages.core.predictions import CLEAN
from stages.report.section import Section
from stages.report.sections import attacks, data, examples
from stages.report.sections.registry import SECTIONS
from stages.report.style import MAX_PNG_BYTES, make_figure, render_png
from tests.helpers.reports import make_project, read_results, texts_of

PHOTOGRAPHS = {"classes", "gradients", "universal", "examples_clean", "examples_adv"}
NO_FIGURE = Section("", "", lambda results: []).figures
DRAWING = [s for s in SECTIONS if not s.figures is s.charts is NO_FIGURE]


def figure_of(pixels):
    figure, axes = make_figure(3, 3, 1, 1)
    axes[0, 0].imshow(pixels)
    return figure


def opened(content):
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize("section", DRAWING, ids=lambda section: section.id)
def test_figure_depends_on_the_numbers_alone_and_is_small_where_git_keeps_it(results, section):
    first = section.figures(results) | section.charts(results)
    assert first == section.figures(results) | section.charts(results)
    for name, content in first.items():
        assert not opened(content).info, "metadata"
        assert name in PHOTOGRAPHS or len(content) < MAX_PNG_BYTES


def test_colors_are_reduced_only_where_git_keeps_a_large_file():
    noise = np.random.default_rng(0).integers(0, 256, (120, 120, 3), dtype=np.uint8)
    small, large = render_png(figure_of(np.eye(8))), render_png(figure_of(noise))
    assert (opened(small).mode, opened(large).mode) == ("RGB", "P")
    assert len(large) < MAX_PNG_BYTES
    assert opened(render_png(figure_of(noise), in_git=False)).mode == "RGB"


def test_all_examples_of_photographs_are_shown_in_true_color(project):
    """The limit of what git keeps isn't meant for them."""
    make_project(n=12, size=224, examples=5)
    results = read_results()
    assert {len(model.table("examples")) for model in results.models.values()} == {5}
    for content in examples.figures(results).values():
        assert len(content) > MAX_PNG_BYTES
        assert opened(content).mode == "RGB"
        assert opened(content).height > 5 * 200, "rows of about 224 pixels"
    assert opened(data.draw_classes(results)).mode == "RGB"


def test_every_example_is_shown_with_its_predictions(results, drawn):
    examples.figures(results)
    for figure, model in zip(drawn, results.models.values(), strict=True):
        table = model.table("examples")
        assert sum(bool(axis.images) for axis in figure.get_axes()) == 3 * len(table)
        for row in table.itertuples():
            mark = "✓" if row.adversarial_prediction == row.label else "✗"
            name = row.adversarial_prediction.replace("_", " ")
            assert f"{mark} {name} ({row.adversarial_confidence:.2f})" in texts_of(figure)


def test_amplified_perturbation_fills_the_range_and_none_is_mid_gray():
    original = np.full((4, 4, 3), 100, np.uint8)
    adversarial = original.copy()
    adversarial[0, 0], adversarial[1, 1] = 108, 92
    shown, factor = examples.amplify(original, adversarial)
    assert factor == 15
    assert [shown[i, i, 0] for i in range(3)] == [128 + 8 * 15, 128 - 8 * 15, 128]
    assert (examples.amplify(original, original)[0] == 128).all()


def test_robustness_curve_is_the_worst_case_of_the_table(results, drawn):
    attacks.figures(results)
    lines = {line.get_label(): line for axis in drawn[0].get_axes() for line in axis.lines}
    for model in results.models.values():
        worst = results.plot("robustness", model.name).query("attack == 'worst'")
        assert lines[model.label].get_ydata() == pytest.approx(worst["accuracy"])
        assert lines[model.label].get_xdata() == pytest.approx(worst["eps"] * 255)


def test_every_attack_is_shown_with_its_interval(results, drawn):
    attacks.charts(results)
    table = results.plots["robustness"]
    chosen = table[np.isclose(table["eps"], results.eps) | (table["attack"] == CLEAN)]
    for row in chosen.itertuples():
        text = f"{100 * row.accuracy:.1f}% [{100 * row.low:.1f}, {100 * row.high:.1f}]"
        assert text in texts_of(drawn[0])
        assert results.attack_label(row.attack) in texts_of(drawn[0])


@pytest.mark.parametrize(
    ("same_size", "prefix", "panels"),
    [(False, "", 3), (True, "", 2), (True, "a name of more than 24 characters ", 1)],
)
def test_overview_has_a_bar_for_each_class_and_only_the_panels_that_mean_something(
    results, drawn, same_size, prefix, panels
):
    """The estimated stains come with types of the transformation zone."""
    manifest = results.dataset.manifest.assign(label=prefix + results.dataset.manifest["label"])
    manifest = manifest.assign(width=100) if same_size else manifest
    classes = tuple(prefix + name for name in results.dataset.classes)
    dataset = replace(results.dataset, manifest=manifest, classes=classes)
    data.draw_overview(replace(results, dataset=dataset))
    axes = drawn[0].get_axes()
    assert len(axes) == panels
    assert len({bar.get_y() for bar in axes[0].patches}) == len(classes), "of equal names, too"
    assert sum(bar.get_width() for bar in axes[0].patches) == len(manifest)
