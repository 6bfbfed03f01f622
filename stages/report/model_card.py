"""The model card of both models (Mitchell et al., arXiv:1810.03993), for the Hugging Face Hub.

YAML, then Markdown.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.report import checklist
from stages.report.formatting import class_label, percent
from stages.report.leaderboards import records
from stages.report.page import dataset_name
from stages.report.results import Results
from stages.report.sections import (
    attacks,
    classes,
    conformal,
    diagnostics,
    limitations,
    minimum_eps,
    summary,
    training,
)

COVERAGE = 1 - conformal.ALPHA


def escape_markdown(text: str) -> str:
    """A name, which may come from a folder, as Markdown that shows it as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>()#|!~$&])", r"\\\1", re.sub(r"\s+", " ", text))


def escaped_label(name: str) -> str:
    """The name of a class in Markdown."""
    return escape_markdown(class_label(name))


def front_matter(results: Results) -> str:
    """The metadata as YAML; the two accuracies as results of a ``model-index``."""
    tags = ["image-classification", "adversarial-robustness", "adversarial-training"]
    tags += ["medical", "colposcopy"] if results.transformation_zone else []
    tags += ["synthetic-data"] if results.synthetic else []
    name = dataset_name(results)
    index: list[dict[str, Any]] = []
    for model in results.models:
        values = [
            {"type": "accuracy", "name": record.name, "value": record.value}
            for record in records(results, model)
        ]
        found = {
            "task": {"type": "image-classification"},
            "dataset": {"type": name, "name": name, "split": "test"},
            "metrics": values,
        }
        index.append({"name": model, "results": [found]})
    content = {
        "license": "mit",
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": tags,
        "metrics": ["accuracy"],
        "model-index": index,
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def training_lines(results: Results) -> list[str]:
    """How each model was trained."""
    lines = []
    for model in results.models.values():
        p = training.training_params(results, model.name)
        if model.name == "adv":
            method = training.method_name(results.p.train_adv)
            start = f"initialized with the model of standard training; {method} within "
            start += str(results.budget)
        else:
            weights = results.p.model.weights
            words = {
                "none": "random initial weights",
                "imagenet": "ImageNet weights, with a license of their own; ImageNet's images are "
                "for non-commercial research",
            }
            other = f"initial weights {escape_markdown(weights)}"
            start = f"{words.get(weights, other)}; clean images"
        lines.append(
            f"**{model.label}**: {start}; {p.epochs} epochs, batch size {p.batch_size}, "
            f"{p.optimizer}, peak learning rate {p.lr}; seed {results.p.seed}."
        )
    return lines


def render(results: Results) -> str:
    """The card as text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701  # Markdown: names of files go through the filter `escape`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"escape": escape_markdown, "label": escaped_label}
    return environment.get_template("model_card.md.jinja").render(
        r=results,
        heads=[model.label for model in results.models.values()],
        files=[model.document("model") for model in results.models.values()],
        front_matter=front_matter(results),
        dataset=dataset_name(results),
        training_lines=training_lines(results),
        ensemble_sentences=attacks.ensemble_sentences(results),
        main_metrics=summary.main_table(results),
        majority_rate=percent(results.majority_rate),
        attack_rows=attacks.attack_rows(results),
        per_class=classes.per_class_rows(results),
        min_eps_sentences=minimum_eps.sentences(results),
        coverage=percent(COVERAGE),
        conformal_sentences=conformal.sentences(results),
        check_sentences=diagnostics.sentences(results),
        limits=[*summary.caveats(results, escaped_label), *limitations.sentences(results)],
        checklist=checklist.summary_rows(results),
        checklist_file=checklist.FILES["html"],
    )
