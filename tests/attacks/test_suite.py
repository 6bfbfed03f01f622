"""The evaluation attacks: budget, order of strength, independence of the batch, agreement with foolbox."""

import dataclasses

import foolbox
import numpy as np
import pandas as pd
import pytest
import torch

from stages.attacks import runner, suite
from stages.attacks.perturbations import margin_loss, pgd
from stages.attacks.runner import ModelUnderAttack
from stages.attacks.suite import BudgetViolationError, per_image_noise, verify
from stages.core.checkpoints import Checkpoint, StepCache
from stages.core.params import Attack, AttackEval
from stages.core.predictions import check
from stages.models.batches import DatasetSplit
from tests.conftest import SmallNet, attack_table, toy_store

EPS = 8 / 255
PARAMS = AttackEval(
    batch_size=7,
    noise_draws=3,
    bim_steps=5,
    pgd_steps=5,
    pgd_restarts=2,
    curve_steps=5,
    subset=12,
    aa_steps=10,
    aa_queries=30,
    min_eps_rounds=3,
    strict=False,
    examples=2,
)
L2 = 1.0  # a budget that breaks some of the toy pictures and not all


@pytest.fixture
def trained():
    """A small net that knows the toy classes, so that an attack has something to break."""
    store, model = toy_store(size=16), SmallNet()
    x, y = DatasetSplit.of(store, "train").batch(np.arange(48), torch.device("cpu"))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return store, model.eval()


def noise_for(x, seed=0):
    return per_image_noise(seed, np.arange(len(x)), x.shape[1:], x)


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", L2)])
@pytest.mark.parametrize("name", suite.attack_suite(PARAMS))
def test_every_attack_keeps_its_budget(name, norm, eps, trained):
    store, model = trained
    x, y = DatasetSplit.of(store, "test").batch(np.arange(24), torch.device("cpu"))
    attack, _ = suite.attack_suite(PARAMS, norm)[name]
    x_adv = attack(model, x, y, eps, noise_for(x))
    verify(x, x_adv, eps, name, norm)
    eight = suite.quantize_8bit(x, x_adv)
    verify(x, eight, eps, name, norm)
    assert torch.allclose(eight * 255, (eight * 255).round(), atol=1e-4)


def test_no_attack_helps_the_model_and_images_that_are_wrong_already_are_left_alone(trained, fabric):
    store, model = trained
    labels = store.labels.copy()
    labels[::5] = (labels[::5] + 1) % 3
    manifest = store.manifest.assign(label=[store.classes[k] for k in labels])
    store = dataclasses.replace(store, labels=labels, manifest=manifest)
    table = attack_table(fabric, model, store, Attack("linf", EPS, (EPS,)), PARAMS)
    clean = table[table["attack"] == "none"].set_index("path")
    clean = clean.loc[table["path"]].reset_index()
    assert (table["margin"] <= clean["margin"] + 1e-6).all()
    wrong = clean["label"] != clean["prediction"]
    assert wrong.any()
    assert (table.loc[wrong, "linf"] == 0).all()
    assert (table.loc[wrong, "found_by"] == "none").all()


def test_more_restarts_are_never_weaker(trained):
    store, model = trained
    x, y = DatasetSplit.of(store, "test").batch(np.arange(24), torch.device("cpu"))
    for eps in (0.02, 0.05, 0.1, 0.2):
        broken = [
            margin_loss(model(suite.pgd(model, x, y, eps, noise_for(x), steps=3, restarts=r)), y) > suite.EARLY_STOP_MARGIN
            for r in (1, 2, 4)
        ]
        assert (broken[0] <= broken[1]).all()
        assert (broken[1] <= broken[2]).all()


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", L2)])
def test_batch_size_does_not_matter(norm, eps, trained, fabric):
    store, model = trained
    threat = Attack(norm, eps, (eps / 2, eps))
    tables = [
        attack_table(fabric, model, store, threat, dataclasses.replace(PARAMS, batch_size=b)).sort_values(
            ["path", "attack", "eps"], ignore_index=True
        )
        for b in (1, 5, 24)
    ]
    for other in tables[1:]:
        assert (tables[0]["prediction"] == other["prediction"]).all()
        assert np.allclose(tables[0]["margin"], other["margin"], atol=1e-3)


def test_table_keeps_the_contract_and_the_curve_falls(trained, fabric):
    store, model = trained
    grid = (2 / 255, 8 / 255, 32 / 255, 96 / 255)
    table = check(attack_table(fabric, model, store, Attack("linf", 16 / 255, grid), PARAMS))
    pgd_rows = table[table["attack"] == "pgd"].assign(right=lambda t: t["label"] == t["prediction"])
    curve = pgd_rows.groupby("eps")["right"].mean()
    assert len(curve) == 5  # attack.eps is attacked, in the grid or not
    assert (np.diff(curve) <= 0).all()
    assert curve.iloc[-1] < 0.1, "a budget of 96/255 must break nearly everything"
    assert set(table[table["eps"] == 16 / 255]["attack"]) == {
        "uniform_noise",
        "gaussian_noise",
        "fgsm",
        "bim",
        "pgd",
        "aa-k3",
    }
    assert (table["linf"] <= table["eps"] + 1e-6).all()


class Killed(BaseException):
    """Ends a run where a kill would."""


def test_a_killed_attack_goes_on_where_it_was_with_the_same_table(trained, fabric, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    store, model = trained
    threat = Attack("linf", EPS, (EPS / 2, EPS))
    expected = attack_table(fabric, model, store, threat, PARAMS)
    checkpoint = Checkpoint("attack_eval_clean", "key")
    calls = []

    def stop_after(count):
        original = runner.attack_remaining

        def counted(*args):
            if len(calls) == count:
                raise Killed
            calls.append(args[2])  # the attack's name
            return original(*args)

        monkeypatch.setattr(runner, "attack_remaining", counted)
        return original

    for limit in (3, 8, 99):
        original = stop_after(limit)
        try:
            with checkpoint.held(fabric):
                table = attack_table(fabric, model, store, threat, PARAMS, journal=StepCache(checkpoint))
                assert checkpoint.file.exists()
        except Killed:
            assert limit < 99
        monkeypatch.setattr(runner, "attack_remaining", original)
    pd.testing.assert_frame_equal(table, expected, check_exact=True)
    assert calls.count("pgd") == 2, "once for each budget: nothing that was finished is done again"
    assert len(calls) == 11
    assert not checkpoint.file.exists(), "nothing is left behind"


def test_transfer_keeps_the_budget_and_needs_a_second_model(trained, fabric):
    store, model = trained
    torch.manual_seed(3)
    split = DatasetSplit.of(store, "test")
    source = ModelUnderAttack(fabric, SmallNet().eval(), SmallNet().eval(), split, "linf", 7, 0)
    target = dataclasses.replace(source, model=model, twin=model)
    positions = np.arange(0, 24, 3)
    pairs = {"own": target, "twin": target}, {"other": target, "stranger": source}
    tables = [runner.transfer(pair, store, 0.1, 10, positions, StepCache()) for pair in pairs]
    own, other = tables[0].query("target == 'own'"), tables[1].query("target == 'other'")
    assert list(own["path"]) == list(other["path"]) == list(store.manifest["path"].iloc[split.rows[positions]])
    for table in (own, other):
        assert (table["linf"] <= 0.1 + 1e-6).all()
        assert set(table["attack"]) == {"transfer"}
    assert (own["label"] == own["prediction"]).sum() < (other["label"] == other["prediction"]).sum()


def test_noise_belongs_to_the_image():
    like = torch.zeros(1)
    whole = per_image_noise(0, np.array([4, 9, 2]), torch.Size((3, 5, 5)), like)
    part = per_image_noise(0, np.array([9]), torch.Size((3, 5, 5)), like)
    for kind in ("uniform", "gaussian"):
        assert torch.equal(whole(kind, 3)[1], part(kind, 3)[0])
        assert not torch.equal(whole(kind, 3), whole(kind, 4))
    assert whole("uniform", 0).abs().max() <= 1


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda x: x[:1], "expected float32"),
        (lambda x: x.double(), "expected float32"),
        (lambda x: x * float("nan"), "expected finite pixels"),
        (lambda x: x + 1, r"expected pixels in \[0, 1\]"),
        (lambda x: (x + 0.05).clamp(0, 1), "moved by at most eps"),
    ],
)
def test_verifier_refuses(broken, message):
    x = torch.rand(2, 3, 4, 4)
    verify(x, (x + 0.04).clamp(0, 1), 0.04)
    with pytest.raises(BudgetViolationError, match=message):
        verify(x, broken(x), 0.04)


def test_l2_budget_is_verified_in_l2():
    x = torch.full((2, 3, 4, 4), 0.5)
    moved = x + 0.1 / 48**0.5  # length 0.1
    verify(x, moved, 0.1001, norm="l2")
    with pytest.raises(BudgetViolationError, match=r"images moved in l2 by at most eps = 0\.09, got 0\."):
        verify(x, moved, 0.09, norm="l2")


@pytest.mark.parametrize("steps", [1, 10])
def test_agrees_with_foolbox(steps, trained):
    """The same steps from the image itself; foolbox returns the last iterate, ours the best, so ours may only be stronger."""
    store, model = trained
    x, y = DatasetSplit.of(store, "test").batch(np.arange(24), torch.device("cpu"))
    oracle = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    for eps in (0.02, 0.05, 0.1, 0.2):
        theirs = foolbox.attacks.LinfPGD(abs_stepsize=eps / 4, steps=steps, random_start=False)(oracle, x, y, epsilons=eps)[2]
        ours = margin_loss(model(pgd(model, x, y, eps, alpha=eps / 4, steps=steps)), y) > 0
        assert (theirs <= ours).all()
        assert abs(int(theirs.sum()) - int(ours.sum())) <= 1
