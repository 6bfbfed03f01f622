"""Write the parts of README and docs that follow from the records and from the committed run.

Run: python -m tools.docs

README.md: the headline, the results, their spread over seeds; docs: the table of attacks, the table
of diagnostics; each between ``<!-- name -->`` and ``<!-- end -->``. And two pictures: the examples
of the run, and the first of them for the README.
"""

import json
import re
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from stages.attacks.apgd import apgd
from stages.attacks.attack import Attack
from stages.attacks.registry import LEAN_ENSEMBLE, SUITE
from stages.attacks.transfer import pgd_on
from stages.attacks.universal import add_perturbation
from stages.core.errors import InputError
from stages.core.files import write_bytes
from stages.core.params import ResultParams
from stages.core.params_file import load_stage_params
from stages.core.predictions import CLEAN, EPS_TOLERANCE, WORST
from stages.core.processes import run_cli
from stages.report.checks.registry import GROUPS
from stages.report.formatting import MODEL_LABELS, NBSP, listed, metric, percent
from stages.report.sections.summary import MAIN_METRICS
from stages.report.sections.training import method_name
from stages.report.style import encode_png

COLUMNS = (CLEAN, "uniform_noise", "fgsm", "pgd", WORST)  # of the table of results
EXAMPLES = Path("plots/examples_clean.png"), Path(".github/examples.png")
FIRST_EXAMPLE = Path(".github/example.png")
FIRST_ROW = (0, 0, 768, 296)  # of the picture of examples: left, upper, right, lower
SEEDS = Path("benchmarks/seeds.csv")  # written by tools.seeds


def main() -> list[Path]:
    """Rewrite the files; returns those that changed."""
    changed = []
    for file, text in documents().items():
        if file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            changed.append(file)
    if EXAMPLES[0].exists():  # it shows images, and so is in DVC's cache, not in git
        shutil.copyfile(*EXAMPLES)
    write_bytes(FIRST_EXAMPLE, encode_png(first_example()))
    print("\n".join(f"{file}: written" for file in changed) or "up to date")
    return changed


def documents() -> dict[Path, str]:
    """File -> what it should say."""
    p = load_stage_params(ResultParams)
    blocks = {
        Path("README.md"): {
            "headline": headline(),
            "printed": printed(),
            "results": results(p),
            "seeds": spread(),
        },
        Path("docs/threat-model-and-attacks.md"): {"attacks": attack_table()},
        Path("docs/diagnostics.md"): {"checks": check_table()},
    }
    texts = {}
    for file, contents in blocks.items():
        text = file.read_text(encoding="utf-8")
        for name, content in contents.items():
            pattern = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
            if not re.search(pattern, text, re.DOTALL):
                raise InputError(f"{file}: expected a block <!-- {name} --> ... <!-- end -->")
            written = rf"\g<1>{content}\g<2>".replace("\\", "\\\\").replace("\\\\g<", "\\g<")
            text = re.sub(pattern, written, text, flags=re.DOTALL)
        texts[file] = text
    return texts


def known_attacks() -> list[Attack]:
    """Every attack of the default run, with its record, and the optional one."""
    model, perturbation = nn.Identity(), torch.zeros(1)
    return [
        *SUITE,
        add_perturbation(perturbation),
        *LEAN_ENSEMBLE,
        pgd_on(model),
        add_perturbation(perturbation, of_other_model=True),
        pgd_on(model, surrogate=True),
    ]


def labels(p: ResultParams) -> dict[str, str]:
    """Attack -> its label."""
    names = {
        attack.name: attack.label.format(steps=attack.gradient_steps(p.attack_eval))
        for attack in known_attacks()
    }
    return names | {CLEAN: "Clean", apgd.name: f"Ensemble ({apgd.name})"}


def results(p: ResultParams) -> str:
    """The table of results and its caption."""
    metrics, data = (
        json.loads(Path(f"metrics/{n}.json").read_text()) for n in ("evaluate", "data")
    )
    table = pd.read_csv("plots/robustness.csv")
    at_eps = np.isclose(table["eps"], metrics["eps"], rtol=EPS_TOLERANCE)
    table = table[(table["attack"] == CLEAN) | at_eps]
    names = labels(p) | {WORST: "Worst case (all attacks)"}
    run = [name for name in table["attack"].unique() if name in metrics["clean"]["attacked_images"]]
    heads = [names[attack] for attack in COLUMNS]
    lines = [
        "| Accuracy (%) on test images | " + " | ".join(heads) + " |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for model, label in MODEL_LABELS.items():
        rows = table[table["model"] == model].set_index("attack")
        cells = []
        for attack in COLUMNS:
            value, low, high = 100 * rows.loc[attack, ["accuracy", "low", "high"]].astype(float)
            cells.append(f"{value:.1f} [{low:.1f}, {high:.1f}]")
        title = f"{label} ({method_name(p.train_adv)})" if model == "adv" else label
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    n, attacked, change = metrics["n"], metrics["clean"]["attacked_images"], metrics["difference"]
    if {*attacked.values(), *metrics["adv"]["attacked_images"].values()} != {n}:
        raise InputError("metrics/evaluate.json: expected every attack on all images, got fewer")
    gain = metric(change, "robust_accuracy_worst", signed=True).replace(NBSP, " ")
    caption = (
        f"Default run on the bundled **synthetic** sample: n = {n} test images of "
        f"{metrics['groups']} patients, none of whom is in the "
        f"{data['splits']['train']['images']:,} training images; {p.attack.budget}; in brackets "
        f"{100 * p.evaluate.confidence:g}% confidence intervals (patient-level cluster bootstrap). "
        f"Worst case per image over: {listed([names[name] for name in run])}, each on all "
        f"{n} images. Adversarial fine-tuning changes robust accuracy by {gain}. "
        f"One run (seed {p.seed}): the intervals contain no variance of "
        "training. The difficulty of the sample, the image size and the number of epochs were "
        "tuned while looking at these test results. Source: `plots/robustness.csv`."
    )
    return "\n".join([*lines, "", *textwrap.wrap(caption, 100, break_on_hyphens=False)])


def headline() -> str:
    """The four main numbers as a table."""
    metrics = json.loads(Path("metrics/evaluate.json").read_text())
    lines = [
        f"| Of {metrics['n']} test images, classified correctly | as they are | under attack |",
        "|---|---|---|",
    ]
    for model, label in MODEL_LABELS.items():
        clean, robust = (
            percent(metrics[model][key]) for key in ("clean_accuracy", "robust_accuracy_worst")
        )
        lines.append(f"| {label} | {clean} | **{robust}** |")
    return "\n".join(lines)


def printed() -> str:
    """The accuracies as the last stage prints them."""
    metrics = json.loads(Path("metrics/evaluate.json").read_text())
    rows = [["", *MODEL_LABELS.values()]]
    for key, label, _ in MAIN_METRICS[:2]:
        cells = [metric(metrics[model], key).replace(NBSP, " ") for model in MODEL_LABELS]
        rows.append([label, *cells])
    lines = [f"{name:<46}{clean:<20}{adv}" for name, clean, adv in rows]
    return "\n".join(["```text", *lines, "```"])


def spread() -> str:
    """Mean and range of the main metrics over the seeds."""
    table = pd.read_csv(SEEDS, dtype={"commit": str, "seeds": str}).set_index(["model", "metric"])

    def values(model: str, name: str) -> str:
        mean, least, most = 100 * table.loc[(model, name), ["mean", "least", "most"]].astype(float)
        return f"{mean:.1f}% ({least:.1f}–{most:.1f})"

    first = table.iloc[0]
    text = (
        f"**Spread over seeds** ({first['seeds'].replace(' ', ', ')}, each with a split of its "
        f"own), mean (least–most), measured at {first['commit'][:7]}, from `{SEEDS}`: clean "
        f"accuracy {values('clean', 'clean_accuracy')} after standard training and "
        f"{values('adv', 'clean_accuracy')} after adversarial fine-tuning; robust accuracy "
        f"{values('clean', 'robust_accuracy_worst')} and "
        f"{values('adv', 'robust_accuracy_worst')}."
    )
    return "\n".join(textwrap.wrap(text, 100, break_on_hyphens=False))


def first_example() -> Image.Image:
    """The first row of the examples: original, perturbation, adversarial example."""
    with Image.open(EXAMPLES[1]) as examples:
        return examples.crop(FIRST_ROW)


def attack_table() -> str:
    """One row per attack, from its record."""
    lines = ["| attack | what | run on |", "|---|---|---|"]
    for attack in known_attacks():
        images = "all test images"
        if attack.starts_from == "survivors":
            most = "at most `attack_eval.subset` of " if attack.on_subset else ""
            images = f"{most}what no attack before it found"
        lines.append(f"| `{attack.name}` | {attack.summary} | {images} |")
    return "\n".join(lines)


def check_table() -> str:
    """One row per diagnostic, from its record."""
    lines = ["| id | quantity | threshold | why | what to do |", "|---|---|---|---|---|"]
    for group, checks in GROUPS.items():
        lines.append(f"| | **{group}** | | | |")
        for check in checks:
            cells = (check.id, check.title, check.threshold, check.reason, check.remedy)
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_cli(main)
