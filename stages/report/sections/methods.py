"""What exactly was run: models, attacks, all parameters, versions."""

import platform
from importlib.metadata import version
from typing import Any

import pandas as pd
from markupsafe import Markup

from stages.core.norms import NORMS
from stages.core.params import other_norm
from stages.core.params_file import flatten
from stages.core.predictions import CLEAN
from stages.report.blocks import Block, Cell, Details, Table, Text, head, row
from stages.report.formatting import listed
from stages.report.results import Results
from stages.report.section import Section
from stages.report.sections.training import method_name, training_params

LIBRARIES = ("numpy", "scipy", "pandas", "scikit-learn", "matplotlib")


def model_rows(results: Results) -> list[list[Cell]]:
    """The two models side by side."""
    described = {name: model.document("model") for name, model in results.models.items()}
    trained, side = [], results.dataset.image_size
    for name in results.models:
        p = training_params(results, name)
        method = method_name(results.p.train_adv) if name == "adv" else "standard"
        trained.append(f"{method}, {p.epochs} epochs, batch size {p.batch_size}, {p.optimizer}")
    weights = {"none": "random"}.get(results.p.model.weights, results.p.model.weights)
    digests = [Markup("<code>{}…</code>").format(d["sha256"][:16]) for d in described.values()]
    return [
        row(
            "Architecture",
            *(f"{d['arch']}, {d['parameters']:,} parameters" for d in described.values()),
        ),
        row("Input", *[f"{side} × {side} pixels, RGB in [0, 1]"] * len(described)),
        row("Initial weights", weights, "the model of standard training"),
        row("Training", *trained),
        row("SHA-256 of the weights file", *digests),
    ]


def attack_configurations(results: Results) -> pd.DataFrame:
    """attack,steps,n,budgets,models: what attack_eval ran, a row for each distinct way."""
    norm, parts = results.budget.norm, []
    for model in results.models.values():
        parts.append(model.rows[model.rows["attack"] != CLEAN].assign(model=model.name))
    keys = ["model", "attack", "steps", "eps"]
    counts = pd.concat(parts).groupby(keys, sort=False)["path"].nunique().rename("n").reset_index()
    ways: dict[tuple[Any, ...], list[str]] = {}
    for (model, attack, steps, n), rows in counts.groupby(
        ["model", "attack", "steps", "n"], sort=False
    ):
        budgets = ", ".join(norm.format(eps) for eps in sorted(set(rows["eps"])))
        ways.setdefault((attack, steps, n, budgets), []).append(model)
    table = [(*way, ", ".join(models)) for way, models in ways.items()]
    return pd.DataFrame(table, columns=["attack", "steps", "n", "budgets", "models"])


def parameter_rows(results: Results) -> list[tuple[str, str]]:
    """(key, value) of all parameters; ε as a fraction of 255."""
    norm = results.p.attack.norm
    norms = {
        "attack.eps": norm,
        "attack.eps_grid": norm,
        "attack.second_eps": other_norm(norm),
        "train_clean.val_eps": "linf",
    }
    rows = []
    for key, value in flatten(results.p).items():
        if key in norms:
            values = value if isinstance(value, list) else [value]
            text = ", ".join(NORMS[norms[key]].format(eps) for eps in values)
        elif isinstance(value, bool):
            text = "true" if value else "false"
        else:
            text = f"{value:g}" if isinstance(value, float) else str(value)
        rows.append((key, text))
    return rows


def not_run(results: Results) -> list[str]:
    """What is off by its parameter."""
    off = []
    if not results.p.attack.second_eps:
        off.append("attacks in a second norm (attack.second_eps is 0)")
    if results.p.attack_eval.surrogate == "none":
        off.append("transfer from a surrogate (attack_eval.surrogate is none)")
    if not results.p.attack_eval.smoothing_sigma:
        off.append("randomized smoothing, a lower bound (attack_eval.smoothing_sigma is 0)")
    return off


def made_on(results: Results) -> str:
    """Device, precision and torch of the evaluation."""
    where = dict.fromkeys(
        f"{d['device']}, attacks in {d['precision']}, torch {d['torch']}"
        for d in (model.document("model") for model in results.models.values())
    )
    return f"Evaluated on {listed(list(where))}."


def blocks(results: Results) -> list[Block]:
    """Tables."""
    labels = [Cell(model.label, "th", {"scope": "col"}) for model in results.models.values()]
    attacks = [
        row(
            results.attack_label(way.attack, steps=False), way.steps, way.budgets, way.n, way.models
        )
        for way in attack_configurations(results).itertuples()
    ]
    parameters = Table(
        "All parameters that influence a result (params.yaml)",
        head("key", "value"),
        [row(Markup("<code>{}</code>").format(key), text) for key, text in parameter_rows(results)],
        "long",
    )
    versions = {"Python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
    listing = ", ".join(f"{name} {number}" for name, number in versions.items())
    commit = Markup(
        "Code and data are those of the commit whose <code>dvc.lock</code> holds the MD5 of this "
        "file: <code>git log -S$(md5sum &lt; data/report.html | cut -c-32) -- dvc.lock</code>."
    )
    off = [Text(f"Not run: {listed(not_run(results))}.")] if not_run(results) else []
    return [
        Table("Models", [[Cell(""), *labels]], model_rows(results)),
        Table(
            "Attacks; the step size of PGD and BIM is 2.5 ε / steps, PGD starts at a random point "
            "of the ball",
            head("attack", "gradient steps", "ε", "n", "models"),
            attacks,
        ),
        *off,
        Details("All parameters", [parameters]),
        Text(f"{made_on(results)} The report was made with {listing}."),
        Text(commit),
    ]


SECTION = Section("methods", "Methods and settings", blocks)
