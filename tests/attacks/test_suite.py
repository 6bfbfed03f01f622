"""The evaluation attacks: budget, order of strength, independence of the batch, agreement with foolbox."""

import dataclasses

import foolbox
import numpy as np
import pandas as pd
import pytest
import torch

from stages.attacks import runner, suite
from stages.attacks.perturbations import margin_loss, pgd
from stages.attacks.suite import BudgetViolationError, check_within_budget, per_image_noise
from stages.core.checkpoints import Checkpoint, StepCache
from stages.core.params import AttackEvalParams, ThreatModel
from stages.core.predictions import validate_predictions
from stages.models.batches import DatasetSplit
from tests.helpers.datasets import attack_predictions, under_attack
from tests.helpers.models import SmallNet

EPS = 8 / 255
L2_EPS = 1.0  # attacks succeed on some of the toy images and not all
PARAMS = AttackEvalParams(
    batch_size=7,
    noise_draws=3,
    bim_steps=5,
    pgd_steps=5,
    pgd_restarts=2,
    curve_steps=5,
    ensemble="lean",
    targets=3,
    subset=12,
    aa_steps=10,
    aa_queries=30,
    min_eps_rounds=3,
    examples=2,
    surrogate="none",
)


def noise_for(x, seed=0):
    return per_image_noise(seed, np.arange(len(x)), x.shape[1:], x)


def images_of_test_split(dataset):
    return DatasetSplit.from_dataset(dataset, "test").load(np.arange(24), torch.device("cpu"))


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", L2_EPS)])
@pytest.mark.parametrize("name", suite.attack_suite(PARAMS, norm="linf"))
def test_every_attack_stays_within_budget_also_in_8_bits(name, norm, eps, trained):
    dataset, model = trained
    x, y = images_of_test_split(dataset)
    attack, _ = suite.attack_suite(PARAMS, norm=norm)[name]
    x_adv = attack(model, x, y, eps, noise_for(x))
    check_within_budget(x, x_adv, eps, norm=norm, name=name)
    quantized = suite.quantize_8bit(x, x_adv)
    check_within_budget(x, quantized, eps, norm=norm, name=name)
    assert torch.allclose(quantized * 255, (quantized * 255).round(), atol=1e-4)


@pytest.fixture
def mislabeled(trained, fabric):
    """Predictions where every fifth label is wrong, and the clean rows of the same images."""
    dataset, model = trained
    labels = dataset.labels.copy()
    labels[::5] = (labels[::5] + 1) % 3
    manifest = dataset.manifest.assign(label=[dataset.classes[k] for k in labels])
    dataset = dataclasses.replace(dataset, labels=labels, manifest=manifest)
    table = attack_predictions(
        fabric, model, dataset, ThreatModel(norm="linf", eps=EPS, eps_grid=(EPS,)), PARAMS
    )
    clean = table[table["attack"] == "none"].set_index("path")
    return table, clean.loc[table["path"]].reset_index()


def test_no_attack_increases_the_margin(mislabeled):
    table, clean = mislabeled
    assert (table["margin"] <= clean["margin"] + 1e-6).all()


def test_misclassified_images_are_not_perturbed(mislabeled):
    table, clean = mislabeled
    wrong = clean["label"] != clean["prediction"]
    assert wrong.any()
    assert (table.loc[wrong, "linf"] == 0).all()
    assert (table.loc[wrong, "found_by"] == "none").all()


def test_more_restarts_are_never_weaker(trained):
    dataset, model = trained
    x, y = images_of_test_split(dataset)
    for eps in (0.02, 0.05, 0.1, 0.2):
        adversarial = [
            suite.pgd(model, x, y, eps, noise_for(x), steps=3, restarts=r, norm="linf")
            for r in (1, 2, 4)
        ]
        success = [margin_loss(model(x_adv), y) > suite.EARLY_STOP_MARGIN for x_adv in adversarial]
        assert (success[0] <= success[1]).all()
        assert (success[1] <= success[2]).all()


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", L2_EPS)])
def test_predictions_do_not_depend_on_batch_size(norm, eps, trained, fabric):
    dataset, model = trained
    threat = ThreatModel(norm=norm, eps=eps, eps_grid=(eps / 2, eps))
    first, *others = (
        attack_predictions(
            fabric, model, dataset, threat, PARAMS.model_copy(update={"batch_size": size})
        ).sort_values(["path", "attack", "eps"], ignore_index=True)
        for size in (1, 5, 24)
    )
    for other in others:
        assert (first["prediction"] == other["prediction"]).all()
        assert np.allclose(first["margin"], other["margin"], atol=1e-3)


def test_predictions_are_valid_and_robust_accuracy_falls_with_eps(trained, fabric):
    dataset, model = trained
    threat = ThreatModel(norm="linf", eps=16 / 255, eps_grid=(2 / 255, 8 / 255, 32 / 255, 96 / 255))
    table = validate_predictions(attack_predictions(fabric, model, dataset, threat, PARAMS))
    pgd_rows = table[table["attack"] == "pgd"].assign(
        correct=lambda t: t["label"] == t["prediction"]
    )
    robust_accuracy = pgd_rows.groupby("eps")["correct"].mean()
    assert len(robust_accuracy) == 5  # attack.eps is attacked, in the grid or not
    assert (np.diff(robust_accuracy) <= 0).all()
    assert robust_accuracy.iloc[-1] < 0.1, "at 96/255 PGD must succeed on nearly every image"
    attacks = {"uniform_noise", "gaussian_noise", "fgsm", "bim", "pgd", "apgd"}
    assert set(table[table["eps"] == 16 / 255]["attack"]) == attacks
    assert (table["linf"] <= table["eps"] + 1e-6).all()


class SimulatedCrash(BaseException):
    """Ends a run as a killed process does."""


def test_interrupted_attacks_resume_with_identical_predictions(
    trained, fabric, tmp_path, monkeypatch
):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    dataset, model = trained
    threat = ThreatModel(norm="linf", eps=EPS, eps_grid=(EPS / 2, EPS))
    expected = attack_predictions(fabric, model, dataset, threat, PARAMS)
    checkpoint = Checkpoint("attack_eval_clean", "key")
    original, attacks_run = runner.attack_remaining, []

    def crash_after(count):
        def counted(*args):
            if len(attacks_run) == count:
                raise SimulatedCrash
            attacks_run.append(args[2])  # the attack's name
            return original(*args)

        return counted

    for limit in (3, 7, 99):
        monkeypatch.setattr(runner, "attack_remaining", crash_after(limit))
        try:
            with checkpoint.lock(fabric):
                table = attack_predictions(
                    fabric, model, dataset, threat, PARAMS, cache=StepCache(checkpoint)
                )
                assert checkpoint.file.exists()
        except SimulatedCrash:
            assert limit < 99
    pd.testing.assert_frame_equal(table, expected, check_exact=True)
    assert attacks_run.count("pgd") == 2, "once for each eps: no finished step is repeated"
    assert len(attacks_run) == 8
    assert not checkpoint.file.exists(), "nothing is left behind"


def test_square_is_run_on_so_many_of_the_remaining_images_only(trained, fabric, monkeypatch):
    dataset, model = trained
    monkeypatch.setattr(runner, "SQUARE_IMAGES", 4)
    attacked, original = [], runner.attack_remaining

    def record(*args):
        attacked.append((args[2], len(args[5])))
        return original(*args)

    monkeypatch.setattr(runner, "attack_remaining", record)
    threat = ThreatModel(norm="linf", eps=0.01, eps_grid=(0.01,))
    target = under_attack(fabric, model, dataset)
    table, config = runner.run_attack_suite(target, dataset, threat, PARAMS, StepCache())
    assert attacked[-1] == ("square", 4)
    assert config["square_images"] == 4 < config["square_remaining"] <= config["images"]
    ensemble = table[table["attack"] == "apgd"]
    assert len(ensemble) == 24
    assert (ensemble["label"] == ensemble["prediction"]).sum() >= config["square_remaining"] - 4
    full = PARAMS.model_copy(update={"ensemble": "full"})
    assert (
        runner.run_attack_suite(target, dataset, threat, full, StepCache())[1]["square_images"] > 4
    )


def test_transfer_stays_within_eps_and_is_weaker_than_white_box(trained, fabric):
    dataset, model = trained
    torch.manual_seed(3)
    source = dataclasses.replace(
        under_attack(fabric, SmallNet().eval(), dataset, batch_size=7),
        fused_model=SmallNet().eval(),
    )
    target = dataclasses.replace(source, model=model, fused_model=model)
    pairs = {"target": target, "source": target}, {"target": target, "source": source}
    attacks = [
        {"transfer": {name: runner.pgd_on(model, 10) for name, model in pair.items()}}
        for pair in pairs
    ]
    tables = (
        runner.run_transfer_attacks(pair, dataset, 0.1, made, StepCache())
        for pair, made in zip(pairs, attacks, strict=True)
    )
    white_box, transfer = (table.query("target == 'target'") for table in tables)
    paths = list(dataset.manifest["path"].iloc[target.split.rows])
    for table in (white_box, transfer):
        assert list(table["path"]) == paths
        assert (table["linf"] <= 0.1 + 1e-6).all()
        assert set(table["attack"]) == {"transfer"}
    correct = [(table["label"] == table["prediction"]).sum() for table in (white_box, transfer)]
    assert correct[0] < correct[1]


def test_noise_belongs_to_the_image():
    like = torch.zeros(1)
    batch = per_image_noise(0, np.array([4, 9, 2]), torch.Size((3, 5, 5)), like)
    single = per_image_noise(0, np.array([9]), torch.Size((3, 5, 5)), like)
    for distribution in ("uniform", "gaussian"):
        assert torch.equal(batch(distribution, 3)[1], single(distribution, 3)[0])
        assert not torch.equal(batch(distribution, 3), batch(distribution, 4))
    assert batch("uniform", 0).abs().max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:1], "expected float32"),
        (lambda x: x.double(), "expected float32"),
        (lambda x: x * float("nan"), "expected finite pixels"),
        (lambda x: x + 1, r"expected pixels in \[0, 1\]"),
        (
            lambda x: (x + 0.05).clamp(0, 1),
            r"expected perturbations of at most eps = 0\.04 \(linf\), got 0\.05",
        ),
    ],
)
def test_budget_check_refuses_invalid_images(change, message):
    x = torch.rand(2, 3, 4, 4)
    check_within_budget(x, (x + 0.04).clamp(0, 1), 0.04, norm="linf")
    with pytest.raises(BudgetViolationError, match=message):
        check_within_budget(x, change(x), 0.04, norm="linf")


def test_l2_budget_is_measured_in_l2():
    x = torch.full((2, 3, 4, 4), 0.5)
    x_adv = x + 0.1 / 48**0.5  # a perturbation of norm 0.1
    check_within_budget(x, x_adv, 0.1001, norm="l2")
    with pytest.raises(
        BudgetViolationError, match=r"expected perturbations of at most eps = 0\.09 \(l2\), got 0\."
    ):
        check_within_budget(x, x_adv, 0.09, norm="l2")


@pytest.mark.parametrize("steps", [1, 10])
def test_pgd_agrees_with_foolbox(steps, trained):
    """The same steps from the image itself; foolbox returns the last iterate, ours the worst, so ours may only be stronger."""
    dataset, model = trained
    x, y = images_of_test_split(dataset)
    oracle = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    for eps in (0.02, 0.05, 0.1, 0.2):
        attack = foolbox.attacks.LinfPGD(abs_stepsize=eps / 4, steps=steps, random_start=False)
        expected = attack(oracle, x, y, epsilons=eps)[2]
        success = (
            margin_loss(model(pgd(model, x, y, eps, alpha=eps / 4, steps=steps, norm="linf")), y)
            > 0
        )
        assert (expected <= success).all()
        assert abs(int(expected.sum()) - int(success.sum())) <= 1


def test_prepared_attacks_count_in_the_worst_case_and_the_ensemble_attacks_what_they_left(
    trained, fabric
):
    dataset, model = trained
    target = under_attack(fabric, model, dataset, batch_size=7)
    threat = ThreatModel(norm="linf", eps=0.15, eps_grid=(0.15,))
    weak = PARAMS.model_copy(
        update={"noise_draws": 1, "bim_steps": 1, "pgd_steps": 1, "pgd_restarts": 1}
    )
    strong = runner.pgd_on(target, 50)
    table, ensemble = runner.run_attack_suite(
        target, dataset, threat, weak, StepCache(), {"surrogate": strong}
    )
    without, more = runner.run_attack_suite(target, dataset, threat, weak, StepCache())
    rows = table[table["attack"] == "surrogate"]
    assert set(rows["steps"]) == {50}
    found = set(rows.loc[rows["prediction"] != rows["label"], "path"])
    assert found
    last = table[table["attack"] == "apgd"].set_index("path")
    assert (last.loc[sorted(found), "prediction"] != last.loc[sorted(found), "label"]).all()
    assert ensemble["images"] <= more["images"]
    others = table[table["attack"] != "surrogate"].drop(columns=["found_by"])
    assert len(others) == len(without)


def test_ssim_column_says_how_much_an_image_changed(trained, fabric):
    dataset, model = trained
    table = attack_predictions(
        fabric, model, dataset, ThreatModel(norm="linf", eps=EPS, eps_grid=(EPS / 4, EPS)), PARAMS
    )
    assert (table.loc[table["l2"] == 0, "ssim"] == 1).all()
    assert table.loc[table["l2"] > 0, "ssim"].between(0, 1, inclusive="neither").all()
