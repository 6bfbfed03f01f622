"""How the two models were trained: curves, and the selected epoch."""

import matplotlib as mpl

from stages.core.params import TrainAdvParams, TrainCleanParams
from stages.report.blocks import Block, Figure, Items, Text
from stages.report.formatting import percent
from stages.report.results import Results
from stages.report.section import Section
from stages.report.style import GRAY, GREEN, PURPLE, SKY, STYLE, make_figure, render_png

METHOD_NAMES = {
    "fgsm": "FGSM",
    "fgsm_rs": "FGSM-RS",
    "nfgsm": "N-FGSM",
    "pgd": "PGD",
    "trades": "TRADES",
    "mart": "MART",
    "free": "Free",
    "noise": "Gaussian noise",
}
CURVES = (
    ("train_accuracy", "train_loss", SKY, ":", "Training"),
    ("val_clean_accuracy", "val_loss", GREEN, "-", "Validation, clean"),
    ("val_robust_accuracy", "val_robust_loss", PURPLE, "--", "Validation under attack"),
)


def method_name(p: TrainAdvParams) -> str:
    """``N-FGSM``, ``PGD-10``, ``TRADES-10 + AWP``."""
    name = METHOD_NAMES[p.method]
    if p.method in ("pgd", "trades", "mart", "free"):
        name += f"-{p.steps}"
    return name + (" + AWP" if p.awp else "")


def initial_weights(weights: str, *, other: str = "the weights in {}") -> str:
    """What standard training starts from. other: words for the path of a file."""
    known = {"none": "random weights", "imagenet": "ImageNet weights"}
    return known.get(weights, other.format(weights))


def training_params(results: Results, model: str) -> TrainCleanParams | TrainAdvParams:
    """The section of the parameters that governs the training of a model."""
    return results.p.train_clean if model == "clean" else results.p.train_adv


def validation_attack(results: Results, model: str) -> str:
    """The attack of the validation after each epoch, in words."""
    p = training_params(results, model)
    budget = p.val_budget if isinstance(p, TrainCleanParams) else results.budget
    images = min(p.val_images, len(results.dataset.split_rows("val")))
    return f"under attack: PGD-{p.val_steps}, {budget}, n = {images}"


@mpl.rc_context(STYLE)
def figures(results: Results) -> dict[str, bytes]:
    """Accuracy above, loss below, a column per model."""
    count = len(results.models)
    figure, axes = make_figure(3.2 * count + 0.2, 4.8, 2, count, sharex="col", sharey="row")
    for (above, below), model in zip(axes.T, results.models.values(), strict=True):
        curve = model.history
        best = curve[curve["chosen"] == 1]
        for accuracy, loss, color, style, label in CURVES:
            for axis, column in ((above, accuracy), (below, loss)):
                x, y = curve["epoch"], curve[column]
                axis.plot(x, y, style, color=color, label=label, marker=".", markersize=4)
                axis.plot(best["epoch"], best[column], "*", color=color, markersize=9, zorder=3)
        above.set_title(f"{model.label}\n", loc="center")
        attack = validation_attack(results, model.name)
        place = {"transform": above.transAxes, "ha": "center"}
        above.text(0.5, 1.02, attack, fontsize=7, color=GRAY, **place)
        above.set(ylim=(0, 1.02))
        below.set_xlabel("Epoch")
        below.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("Accuracy")
    axes[1, 0].set(ylabel="Loss", ylim=(0, None))  # last: it ends the scaling to the curves
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, handlelength=3.2)
    return {"training": render_png(figure, f"★ selected epoch{results.synthetic_data}")}


def sentences(results: Results) -> list[str]:
    """Per model the selected epoch and its validation accuracies."""
    texts = []
    for model in results.models.values():
        epoch = model.history[model.history["chosen"] == 1].iloc[0]
        texts.append(
            f"{model.label}: epoch {epoch['epoch']:.0f} of {len(model.history)} was selected; "
            f"validation accuracy {percent(epoch['val_clean_accuracy'])}, under attack "
            f"{percent(epoch['val_robust_accuracy'])}."
        )
    return texts


def blocks(results: Results) -> list[Block]:
    """How they were trained, and the curves."""
    weights, p = initial_weights(results.p.model.weights), results.p.train_adv
    if p.method == "noise":
        seen = f"images with Gaussian noise of standard deviation {p.sigma:g}"
    else:
        seen = f"adversarial examples within {results.budget}"
    return [
        Text(
            f"Standard training starts from {weights} and sees clean images. Adversarial "
            f"fine-tuning ({method_name(p)}) is initialized with the model of standard training "
            f"and sees {seen}. The epoch is selected on the validation split."
        ),
        Items(sentences(results)),
        Figure(
            "training",
            "Accuracy and loss over the epochs, on training and validation images and under "
            "attack. " + " ".join(sentences(results)),
            "Accuracy (above) and loss (below) over the epochs; the star is the selected epoch. "
            "Training: on the images as the model is trained on them, augmented and, in "
            "adversarial fine-tuning, attacked, so it may lie below validation. Validation under "
            "attack: a short PGD, weaker than the attacks above.",
            "training_clean.csv, training_adv.csv",
        ),
    ]


SECTION = Section("training", "Training", blocks, figures=figures)
