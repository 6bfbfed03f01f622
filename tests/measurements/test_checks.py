"""Each flawed model trips the checks that are meant for it, a sound one none."""

import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from stages.attacks import gradient
from stages.core.norms import NORMS
from stages.measurements import attack_checks, model_checks
from stages.measurements.suite import clean_rows
from stages.report.checks.check import FAIL, INCONCLUSIVE, WARN
from stages.report.checks.registry import GROUPS
from tests.helpers.datasets import relabel
from tests.helpers.measuring import make_context
from tests.helpers.models import Wrapped

EPS = {"linf": 0.1, "l2": 1.0}  # attacks succeed on some images, not on all
ALL = {check.id: check for check in itertools.chain(*GROUPS.values())}
MEASURED = [f"D{i}" for i in (*range(1, 8), *range(12, 17), 22, 23, 24)]


@pytest.fixture
def diagnose(fabric, trained):
    """A function model -> id -> (verdict, value, n), as if no attack of the suite had succeeded."""

    def run(model, norm="linf", dataset=trained[0], more=lambda clean: []):
        threat = {"attack.norm": norm, "attack.eps": EPS[norm], "attack.eps_grid": [EPS[norm]]}
        context = make_context(fabric, dataset, {"clean": model}, **threat)
        clean = clean_rows(context, context.target, "clean")
        context.results["predictions"] = pd.concat([clean, *more(clean)])
        tables = model_checks.run(context) | attack_checks.run(context)
        results = SimpleNamespace(name="clean", table=tables.__getitem__)
        measured = {id_: ALL[id_].compute(None, results) for id_ in MEASURED}
        return {
            id_: (ALL[id_].verdict("clean", found), found.value, found.n)
            for id_, found in measured.items()
        }

    return run


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("norm", NORMS)
def test_sound_model_fails_no_check(norm, diagnose, trained):
    for id_, (verdict, value, n) in diagnose(trained[1], norm).items():
        measured = id_ != "D24"  # attacks are computed in float32 here
        assert np.isfinite(value) == (n > 0) == measured, id_
        assert verdict != FAIL, id_
        assert verdict != INCONCLUSIVE or ALL[id_].rate, id_  # 24 images show no small rate


class TripledGradient(torch.autograd.Function):
    """The identity with the gradient of another function, as of a defense with its own backward."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3


FLAWS = {
    "softmax": ({"logits": lambda z: z.softmax(1)}, {"D2": FAIL}),
    "rounded inputs": ({"inputs": lambda x: (8 * x).round() / 8}, {"D5": FAIL, "D12": FAIL}),
    "thresholds": (
        {"inputs": lambda x: (x[..., None] > torch.linspace(0, 1, 9)).float().mean(-1)},
        {"D5": FAIL, "D6": INCONCLUSIVE, "D12": FAIL},
    ),
    "large logits": ({"logits": lambda z: 1e4 * z}, {"D5": FAIL, "D22": WARN}),
    "batch mean": ({"inputs": lambda x: x - x.mean(0, keepdim=True) + 0.5}, {"D3": FAIL}),
    "another gradient": ({"inputs": TripledGradient.apply}, {"D6": FAIL}),
    "constant logits": (
        {"logits": lambda z: 0 * z + torch.tensor([1.0, 0, 0])},
        {"D5": FAIL, "D6": INCONCLUSIVE, "D12": FAIL},
    ),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_flawed_model_trips_its_checks(flaw, diagnose, trained):
    changes, expected = FLAWS[flaw]
    found = diagnose(Wrapped(trained[1], **changes))
    assert {id_: found[id_][0] for id_ in expected} == expected


def test_model_in_train_mode_is_no_function_of_the_image(diagnose, trained):
    found = diagnose(copy.deepcopy(trained[1]).train())
    assert [found[id_][0] for id_ in ("D3", "D4")] == [FAIL, FAIL]


@pytest.mark.parametrize("change", ["weights", "gradients"])
def test_attack_that_trains_the_model_is_noticed(change, diagnose, trained, monkeypatch):
    original, target = gradient.pgd, copy.deepcopy(trained[1])

    def pgd(model, x, y, *args, **options):
        nn.functional.cross_entropy(target(x), y).backward()
        if change == "weights":
            torch.optim.SGD(target.parameters(), 1e-6).step()
            target.zero_grad()
        return original(model, x, y, *args, **options)

    monkeypatch.setattr(gradient, "pgd", pgd)
    assert diagnose(target)["D4"][0] == FAIL


def test_stronger_attacks_are_tried_on_what_is_robust_at_the_main_eps(diagnose, trained):
    """And not only on what is robust at every ε of the grid."""
    large_logits = Wrapped(trained[1], **FLAWS["large logits"][0])
    for eps, changes in ((EPS["linf"] / 2, True), (EPS["linf"] * 2, False)):

        def fooled(clean, eps=eps):
            return [clean.assign(attack="pgd", eps=eps, prediction="none", margin=-1.0)]

        found = diagnose(large_logits, more=fooled)["D22"]
        assert (found != diagnose(large_logits)["D22"]) == changes


def test_nothing_can_be_said_where_no_image_is_classified_correctly(diagnose, trained):
    dataset, model = trained
    found = diagnose(model, dataset=relabel(dataset, (dataset.labels + 1) % 3))
    assert {found[id_][0] for id_ in ("D1", "D12", "D13", "D16", "D22")} == {INCONCLUSIVE}
