"""The README's numbers are the ones of the committed run, its pictures are there, and its commands are the ones CI runs."""

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
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


def test_pictures_and_files_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_every_parameter_named_exists():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    named = re.findall(rf"(?<![/\w])({'|'.join(params)})\.(\w+)", README)
    assert named
    for section, key in named:
        assert key in params[section], f"{section}.{key}"


def test_commands_stand_between_their_marks():
    assert "dvc repro" in block("main")
    assert "pytest" in block("test")
