"""The figures: the same bytes for the same numbers, small, and what they show is in the tables."""

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from stages.core.predictions import CLEAN
from stages.report.section import Section
from stages.report.sections import attacks, data, examples, minimum_eps, training
from stages.report.sections.registry import SECTIONS
from stages.report.style import (
    COLORS,
    MAX_PNG_BYTES,
    encode_png,
    make_figure,
    render_png,
)
from tests.helpers.reports import make_project, read_results

PHOTOGRAPHS = {"classes", "gradients", "universal", "examples_clean", "examples_adv"}
NO_FIGURE = Section("", "", lambda results: []).figures
DRAWING = [s for s in SECTIONS if not s.figures is s.charts is NO_FIGURE]


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def with_images(figure):
    return [axis for axis in figure.get_axes() if axis.images]


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


def test_note_shows_and_an_image_is_encoded_without_loss():
    assert render_png(figure_of(np.eye(8)), "note") != render_png(figure_of(np.eye(8)), "another")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert (np.asarray(opened(encode_png(Image.fromarray(pixels)))) == pixels).all()


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
        assert len(with_images(figure)) == 3 * len(table)
        for row in table.itertuples():
            mark = "✓" if row.adversarial_prediction == row.label else "✗"
            name = row.adversarial_prediction.replace("_", " ")
            assert f"{mark} {name} ({row.adversarial_confidence:.2f})" in texts(figure)


def test_model_without_correct_images_has_no_example(project):
    make_project(n=12, always="wrong", examples=2)
    for content in examples.figures(read_results()).values():
        opened(content).verify()


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
    attacks.figures(results)
    table = results.plots["robustness"]
    chosen = table[np.isclose(table["eps"], results.eps) | (table["attack"] == CLEAN)]
    for row in chosen.itertuples():
        text = f"{100 * row.accuracy:.1f}% [{100 * row.low:.1f}, {100 * row.high:.1f}]"
        assert text in texts(drawn[0])
        assert results.attack_label(row.attack) in texts(drawn[0])


def test_training_figure_marks_the_selected_epoch(results, drawn):
    training.figures(results)
    stars = [
        line for axis in drawn[0].get_axes() for line in axis.lines if line.get_marker() == "*"
    ]
    assert {tuple(star.get_xdata()) for star in stars} == {(6,)}


def test_minimum_eps_chart_steps_through_the_table(results, drawn):
    minimum_eps.charts(results)
    lines = {line.get_color(): line for axis in drawn[0].get_axes() for line in axis.lines}
    for model in results.models:
        curve, line = results.plot("minimum_eps", model), lines[COLORS[model]]
        assert line.get_ydata()[: len(curve)] == pytest.approx(curve["changed"])
        assert line.get_xdata()[: len(curve)] == pytest.approx(curve["eps"] * 255)
        assert line.get_drawstyle() == "steps-post"


@pytest.mark.parametrize(
    ("classes", "width", "panels"),
    [
        (("Type_1", "Type_2", "Type_3"), None, 3),
        (("a", "b", "c"), None, 2),
        (("a", "b", "c"), 100, 1),
    ],
)
def test_overview_shows_stains_and_sizes_only_where_they_mean_something(
    project, drawn, classes, width, panels
):
    make_project(n=12, classes=classes)
    results = read_results()
    if width:
        manifest = results.dataset.manifest.assign(width=width)
        results = replace(results, dataset=replace(results.dataset, manifest=manifest))
    data.draw_overview(results)
    assert len(drawn[0].get_axes()) == panels
    bars = drawn[0].get_axes()[0].patches
    assert sum(bar.get_width() for bar in bars) == len(results.dataset.manifest)


def test_classes_of_the_same_shortened_name_have_a_bar_each(project, drawn):
    long = "a name of more than 24 characters"
    make_project(n=12, classes=(f"{long} 1", f"{long} 2", "c"))
    data.draw_overview(read_results())
    assert len({bar.get_y() for bar in drawn[0].get_axes()[0].patches}) == 3


@pytest.mark.usefixtures("project")
def test_l2_budget_is_not_written_in_fractions_of_255(drawn):
    grid = (0.25, 0.5)
    params = {"attack.norm": "l2", "attack.eps": 0.5, "attack.eps_grid": list(grid)}
    make_project(n=12, grid=grid, params=params)
    results = read_results()
    for section in (attacks, minimum_eps):
        results.plots |= section.SECTION.compute_tables(results)
    attacks.figures(results)
    minimum_eps.charts(results)
    for figure in drawn:
        assert not [text for text in texts(figure) if "255" in text or "∞" in text]
        assert [text for text in texts(figure) if "L2" in text]
