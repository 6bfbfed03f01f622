"""Write the parts of README and docs that follow from the records and from the committed run.

Run: python -m tools.docs

The results in README.md (and its copy of the examples), the table of attacks, the table of
diagnostics: between ``<!-- name -->`` and ``<!-- end -->``.
"""

import json
import re
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from stages.attacks.apgd import apgd
from stages.attacks.attack import Attack
from stages.attacks.registry import LEAN_ENSEMBLE, SUITE
from stages.attacks.transfer import pgd_on
from stages.attacks.universal import add_perturbation
from stages.core.errors import InputError
from stages.core.params import ResultParams
from stages.core.params_file import load_stage_params
from stages.core.predictions import CLEAN, EPS_TOLERANCE, WORST
from stages.core.processes import run_cli
from stages.report.checks.registry import GROUPS
from stages.report.formatting import MODEL_LABELS, listed
from stages.report.sections.training import method_name

COLUMNS = (CLEAN, "uniform_noise", "fgsm", "pgd", WORST)  # of the table of results
EXAMPLES = Path("plots/examples_clean.png"), Path(".github/examples.png")


def main() -> list[Path]:
    """Rewrite the files; returns those that changed."""
    changed = []
    for file, text in documents().items():
        if file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            changed.append(file)
    if EXAMPLES[0].exists():  # it shows images, and so is in DVC's cache, not in git
        shutil.copyfile(*EXAMPLES)
    print("\n".join(f"{file}: written" for file in changed) or "up to date")
    return changed


def documents() -> dict[Path, str]:
    """File -> what it should say."""
    p = load_stage_params(ResultParams)
    blocks = {
        Path("README.md"): {"results": results(p)},
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
    value, low, high = (
        100 * change[f"robust_accuracy_worst{end}"] for end in ("", "_low", "_high")
    )
    caption = (
        f"Default run on the bundled **synthetic** sample: n = {n} test images of "
        f"{metrics['groups']} patients, none of whom is in the "
        f"{data['splits']['train']['images']:,} training images; {p.attack.budget}; in brackets "
        f"{100 * p.evaluate.confidence:g}% confidence intervals (patient-level cluster bootstrap). "
        f"Worst case per image over: {listed([names[name] for name in run])}, each on all "
        f"{n} images. Adversarial fine-tuning changes robust accuracy by {value:+.1f} pp "
        f"[{low:.1f}, {high:.1f}]. One run (seed {p.seed}): the intervals contain no variance of "
        "training. The difficulty of the sample, the image size and the number of epochs were "
        "tuned while looking at these test results."
    )
    return "\n".join([*lines, "", *textwrap.wrap(caption, 100, break_on_hyphens=False)])


def attack_table() -> str:
    """One row per attack, from its record."""
    lines = ["| attack | what | run on |", "|---|---|---|"]
    for attack in known_attacks():
        images = "all test images"
        if attack.starts_from == "survivors":
            most = f"at most {attack.max_images} of " if attack.max_images else ""
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
