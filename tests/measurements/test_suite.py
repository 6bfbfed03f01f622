"""The tables of predictions: what rows say of images, attacks and ε, whatever the batch."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from stages.attacks.apgd import apgd
from stages.attacks.autoattack import square
from stages.attacks.verifier import BudgetViolationError
from stages.core.norms import NORMS
from stages.core.predictions import CLEAN, correct_under, is_correct, select, within, worst_case
from stages.measurements import suite, transfer, universal
from stages.measurements.examples import select_examples
from tests.helpers.datasets import relabel
from tests.helpers.measuring import make_context, run_suite
from tests.helpers.models import SmallNet

EPS = {"linf": 17 / 255, "l2": 1.4}


def threat(norm: str, eps: float | None = None) -> dict:
    """Attacks of few steps: some succeed, and leave something to the ensemble."""
    eps = eps or EPS[norm]
    names = ("bim_steps", "pgd_steps", "curve_steps", "noise_draws")
    few = {f"attack_eval.{name}": 1 for name in names}
    more = {"attack_eval.aa_steps": 8, "attack_eval.aa_queries": 20}
    grid = [eps / 4, eps, 4 * eps]
    return few | more | {"attack.norm": norm, "attack.eps": eps, "attack.eps_grid": grid}


@pytest.fixture(scope="module", params=NORMS)
def context(request, fabric, trained):
    """After the suite, with a surrogate; every fifth label is wrong."""
    dataset, model = trained
    labels = np.where(np.arange(96) % 5, dataset.labels, (dataset.labels + 1) % 3)
    context = make_context(
        fabric, relabel(dataset, labels), {"clean": model}, **threat(request.param)
    )
    context.surrogate = context.target
    run_suite(context)
    return context


def test_attacks_only_harm_and_only_what_is_classified_correctly(context):
    rows = context.predictions
    clean = select(rows).set_index("path").loc[rows["path"]].reset_index()
    correct = pd.Series(is_correct(clean), rows.index)
    assert 0 < correct.sum() < len(rows)
    assert (rows["margin"] <= clean["margin"] + 1e-6).all()
    assert (rows.loc[~correct, ["linf", "l2"]] == 0).all(axis=None)
    assert (rows.loc[~correct, "found_by"] == CLEAN).all()


def test_perturbations_are_within_the_eps_of_their_row(context):
    rows = context.predictions
    assert (rows[context.attack.norm] <= rows["eps"] * (1 + 1e-5) + 1e-6).all()
    assert set(rows["norm"]) == {context.attack.norm}
    changed = rows["l2"] > 0
    assert (rows.loc[~changed, "ssim"] == 1).all()
    assert rows.loc[changed, "ssim"].between(0, 1, inclusive="neither").all()


def test_pgd_keeps_what_it_found_within_a_smaller_eps_and_finds_more(context):
    grid = [0.0, *context.attack.eps_grid]
    rows = context.predictions.replace({"attack": {CLEAN: "pgd"}})
    correct = [correct_under(rows, "pgd", eps) for eps in grid]
    for smaller, larger in itertools.pairwise(grid):
        kept = select(rows, "pgd", smaller)
        kept, now = kept[~is_correct(kept)], select(rows, "pgd", larger)
        same = ["prediction", "margin", "l2"]
        pd.testing.assert_frame_equal(now.loc[kept.index, same], kept[same])
    assert correct[-1].mean() < 0.2 < correct[0].mean()


def test_ensemble_attacks_what_is_left_and_holds_the_worst_case(context):
    rows, config = context.predictions, context.results["ensemble"]
    allowed = within(rows, context.attack.eps)
    others = allowed[allowed["attack"] != config["name"]]
    assert config["images"] == is_correct(worst_case(others)).sum()
    assert config["images"] >= config["square_remaining"] == config["square_images"]
    found = correct_under(rows, config["name"], context.attack.eps)
    assert (found == is_correct(worst_case(allowed))).all()
    assert 0 < found.sum() < config["images"], "an ε at which it finds all or none tests nothing"


def test_every_attack_is_described(context):
    described = list(context.results["attacks"]["attack"])
    assert sorted([CLEAN, *described]) == sorted(context.predictions["attack"].unique())
    assert "surrogate" in described


def test_examples_are_of_every_class_and_typical_of_it(context):
    rows = context.predictions
    clean = select(rows)[is_correct(select(rows))].set_index("path")
    chosen = select_examples(rows, 3)
    assert sorted(clean.loc[chosen, "label"]) == ["a", "b", "c"]
    confidence = clean.groupby("label")["confidence"]
    distance = (clean["confidence"] - confidence.transform("median")).abs()
    assert sorted(distance[chosen]) == sorted(distance.groupby(clean["label"]).min())
    assert sorted(select_examples(rows, 100)) == sorted(clean.index)


def test_square_is_run_on_so_many_of_the_remaining_images_only(fabric, trained, monkeypatch):
    attacked = []

    def run(model, x, *arguments):
        attacked.append(len(x))
        return square.run(model, x, *arguments)

    few = dataclasses.replace(square, run=run, on_subset=True)
    monkeypatch.setattr(suite, "ensemble", lambda p, classes: (apgd, few))
    dataset, model = trained
    context = make_context(
        fabric, dataset, {"clean": model}, **threat("linf", eps=0.01) | {"attack_eval.subset": 4}
    )
    rows, config = run_suite(context), context.results["ensemble"]
    assert (
        sum(attacked)
        == config["square_images"]
        == 4
        < config["square_remaining"]
        <= config["images"]
    )
    assert correct_under(rows, "apgd", 0.01).sum() >= config["square_remaining"] - 4


@pytest.mark.parametrize("norm", NORMS)
def test_batch_size_changes_nothing(norm, fabric, trained):
    dataset, model = trained
    tables = []
    for size in (1, 5, 24):
        changes = threat(norm) | {"attack_eval.batch_size": size}
        context = make_context(fabric, dataset, {"clean": model}, **changes)
        rows = run_suite(context).sort_values(["path", "attack", "eps"], ignore_index=True)
        tables.append(rows)
    for other in tables[1:]:
        assert (tables[0]["prediction"] == other["prediction"]).all()
        assert np.allclose(tables[0]["margin"], other["margin"], atol=1e-3)


def test_attack_that_leaves_its_budget_ends_the_run_by_name(fabric, trained, monkeypatch):
    def run(model, x, y, budget, noise, p):
        return (x + 2 * budget.eps).clamp(0, 1)

    monkeypatch.setattr(suite, "ensemble", lambda p, k: (dataclasses.replace(square, run=run),))
    dataset, model = trained
    context = make_context(fabric, dataset, {"clean": model}, **threat("linf", eps=0.01))
    with pytest.raises(BudgetViolationError, match=r"^square: expected perturbations within"):
        run_suite(context)


def test_universal_perturbation_is_made_without_test_images(fabric, trained):
    (dataset, model), made = trained, []
    others = dataset.images.copy()
    others[dataset.split_rows("test")] = 0
    for images in (dataset.images, others):
        changed = dataclasses.replace(dataset, images=images)
        context = make_context(fabric, changed, {"clean": model})
        universal.run(context)
        made.append(context.perturbations["clean"])
    assert torch.equal(*made)


def test_attacks_on_another_model_are_of_both_models_and_weaker(fabric, trained):
    dataset, model = trained
    torch.manual_seed(3)
    models = {"adv": model, "clean": SmallNet().eval()}
    context = make_context(fabric, dataset, models, **threat("linf", eps=0.1))
    white_box, eps = run_suite(context), context.attack.eps
    context.perturbations["adv"] = torch.zeros(3, 16, 16)
    rows = transfer.run(context)["transfer"]
    changes = rows[rows["attack"] == "universal_transfer"].groupby("target")["linf"].max()
    assert changes["adv"] > 0 == changes["clean"], "each model is given that of the other one"
    assert (rows["linf"] <= eps + 1e-6).all()
    assert rows.groupby(["target", "attack"])["path"].nunique().tolist() == [24] * 4
    transferred = correct_under(rows[rows["target"] == "adv"], "transfer", eps)
    assert transferred.sum() > correct_under(white_box, "pgd", eps).sum()
