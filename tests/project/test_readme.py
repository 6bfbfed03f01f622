"""The README's numbers are the ones of the committed run, its pictures are there, and its commands are the ones CI runs."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from stages.evaluation import figures
from stages.tracking.mlflow_runs import VIEW_KEY
from tests.helpers.repository import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
NAMES = {"clean": "trained without an attacker", "adv": "adversarially trained"}


def block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end -->", README, re.S)
    assert found, f"README.md: expected a block <!-- {name} --> … <!-- end -->"
    return found[1]


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def results() -> str:
    """What stands in the block ``results`` of the README: paste it there when the run has changed."""
    metrics = json.loads((ROOT / "metrics/evaluate.json").read_text())
    data = json.loads((ROOT / "metrics/data.json").read_text())
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    columns = [
        ("unchanged", "clean_accuracy", True),
        ("uniform noise", "uniform_noise", False),
        ("FGSM", "fgsm", False),
        ("PGD", "pgd", False),
        ("worst of all", "robust_accuracy_worst", True),
    ]
    lines = [
        "| % of the test photographs told right | " + " | ".join(title for title, *_ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for model, name in NAMES.items():
        part, cells = metrics[model], []
        for _, key, interval in columns:
            value = part[key] if interval else part["robust_accuracy"][key]
            cells.append(
                percent(value) + (f" ({percent(part[key + '_low'])}–{percent(part[key + '_high'])})" if interval else "")
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    change = metrics["difference"]
    gain, low, high = (percent(change[f"robust_accuracy_worst{end}"]) for end in ("", "_low", "_high"))
    lines.append("")
    groups, train, budget = metrics["groups"], data["splits"]["train"]["images"], params["attack"]["eps"]
    lines.append(
        f"Default run on the bundled **synthetic** sample: n = {metrics['n']} test images of {groups} drawn patients, "
        f"none of whom is in the {train} training images; ±{budget}; seed {params['seed']}; 95 % intervals. "
        f"Adversarial training changes worst-case accuracy by {gain} points ({low} to {high})."
    )
    return "\n".join(lines)


def test_numbers_are_those_of_the_committed_run():
    assert results() in block("results"), f"README.md: expected in the block results:\n{results()}"


def test_pictures_are_small_and_made_by_the_run():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    made = {path for stage in stages for plot in stage.get("plots", ()) for path in plot}
    shown = re.findall(r"!\[[^]]{15,}\]\(([^)]+)\)", README)
    assert len(shown) == README.count("![") > 0, "every picture has a text for those who can't see it"
    for picture in shown:
        assert picture in made or picture.startswith(".github/"), "what isn't a screenshot is drawn by the run"
        assert (ROOT / picture).stat().st_size < figures.LIMIT


def test_the_curve_that_is_shown_is_that_of_the_committed_numbers():
    metrics = json.loads((ROOT / "metrics/evaluate.json").read_text())
    table = pd.read_csv(ROOT / "plots/robustness.csv")
    for model in NAMES:
        worst = table[(table["model"] == model) & (table["attack"] == "worst")].set_index("eps")
        assert worst["accuracy"].loc[0] == metrics[model]["clean_accuracy"]
        for end in ("", "_low", "_high"):
            drawn = worst[end.strip("_") or "accuracy"].loc[metrics["eps"]]
            assert drawn == pytest.approx(metrics[model][f"robust_accuracy_worst{end}"], abs=1e-6), model
    norm = yaml.safe_load((ROOT / "params.yaml").read_text())["attack"]["norm"]
    again = figures.robustness(table, metrics["majority_rate"], metrics["eps"], norm)
    pixels = [np.asarray(Image.open(file).convert("RGB"), int) for file in (ROOT / "plots/robustness.png", io.BytesIO(again))]
    # Not byte by byte: another build of the fonts moves an edge, other numbers move a line.
    assert pixels[0].shape == pixels[1].shape
    assert (np.abs(pixels[0] - pixels[1]).max(axis=2) > 40).mean() < 1e-3, (
        "plots/robustness.png isn't drawn from robustness.csv"
    )


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_the_link_to_mlflow_is_the_one_that_make_tells_and_opens_the_view_that_is_stored():
    (link,) = re.findall(r"http://127\.0\.0\.1:5000/#[^)\s]+", README)
    assert link in (ROOT / "Makefile").read_text()
    assert link.endswith(f"&viewStateShareKey={VIEW_KEY.removeprefix('mlflow.sharedViewState.')}")


def test_every_parameter_named_exists():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    named = re.findall(rf"(?<![/\w])({'|'.join(params)})\.(\w+)", README)
    assert named
    for section, key in named:
        assert key in params[section], f"{section}.{key}"


def test_commands_stand_between_their_marks():
    assert "dvc repro" in block("main")
    assert "pytest" in block("test")
