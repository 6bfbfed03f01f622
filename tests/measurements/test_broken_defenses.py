"""Which diagnostics catch which broken defense: what a new diagnostic adds shows here.

Each defense hides a small network from attacks that follow gradients, and protects it from nothing.
The network that transfer attacks come from has the same defense, as it has in the pipeline.
"""

import io
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from stages.attacks import gradient
from stages.attacks.gradient import is_adversarial
from stages.core.paths import MODELS, PREDICTIONS, PROCESSED, history_path
from stages.measurements.context import write_results
from stages.measurements.registry import MEASUREMENTS
from stages.measurements.target import TargetModel
from stages.models.batches import DatasetSplit
from stages.report.checks.check import FAIL
from stages.report.checks.registry import run_checks
from stages.report.results import load_results
from stages.report.sections import minimum_eps
from tests.helpers.datasets import make_dataset, write_dataset
from tests.helpers.measuring import make_context
from tests.helpers.models import SmallNet, Wrapped
from tests.helpers.params import params
from tests.helpers.prediction_tables import make_history
from tests.helpers.reports import DATA

pytestmark = pytest.mark.slow
EPS = 0.06
THREAT = {
    "attack.eps": EPS,
    "attack.eps_grid": [EPS / 2, EPS],
    "attack_eval.aa_queries": 150,
    "evaluate.bootstrap": 100,
}


def jpeg(x):
    """Written and read again: no gradient, and no input that requires one."""
    decoded = []
    for image in x.numpy():
        file = io.BytesIO()
        pixels = (image.transpose(1, 2, 0) * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(file, "jpeg", quality=75)
        decoded.append(np.asarray(Image.open(file)).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(decoded)) / 255


def thermometer(x):
    """The share of eight thresholds below each pixel value: no gradient."""
    return (x[..., None] > (torch.arange(8) + 0.5) / 8).float().mean(-1)


def straight_through(inputs):
    """The same change of the input, with the gradient of the identity."""
    return lambda x: x + (inputs(x.detach()) - x.detach())


class AlwaysTraining(nn.Module):
    """BatchNorm with the statistics of the batch, whatever mode is asked for."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        for layer in self.model.body:
            layer.train()
        return self.model(x)


def wrap(**changes):
    return lambda model: Wrapped(model, **changes)


def quantize(x):
    return (8 * x).round() / 8


# Name -> what makes a copy of the network, and the diagnostics that say FAIL of it. D27 is left
# out: it is about the network, which isn't robust.
DEFENSES = {
    "none": (lambda model: model, ""),
    "quantized input": (wrap(inputs=quantize), "D5 D9 D12 D18"),
    "thermometer code": (wrap(inputs=thermometer), "D5 D9 D12 D18"),
    "JPEG": (wrap(inputs=jpeg), "D5 D9 D12 D18"),
    "sine pattern": (wrap(inputs=lambda x: x + 0.01 * (2000 * x).sin()), "D9 D12 D18"),
    "saw-tooth input": (wrap(inputs=lambda x: x - 2 * ((30 * x) % 1) / 30), "D6 D9 D12 D18"),
    "logits × 1000": (wrap(logits=lambda z: 1000 * z), "D5 D12 D18"),
    "tanh": (wrap(logits=lambda z: (20 * z).tanh() + 1e-6 * z.detach()), "D5 D9 D12 D18"),
    "BatchNorm in train mode": (AlwaysTraining, "D3 D4 D6 D12 D17 D18"),
    "quantized, straight-through gradient": (wrap(inputs=straight_through(quantize)), "D6"),
}
# These draw new random numbers for every prediction: what else fails is a matter of luck.
RANDOM = {
    "noise": wrap(inputs=lambda x: x + 0.2 * torch.randn_like(x)),
    "dropout": wrap(inputs=lambda x: F.dropout(x, 0.3)),
}


def train(dataset, seed):
    torch.manual_seed(seed)
    model, split = SmallNet(), DatasetSplit.from_dataset(dataset, "train")
    x, y = split.load(np.arange(len(split)), torch.device("cpu"))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def networks():
    """A dataset with 200 test images, and two networks trained on it."""
    rng, labels = np.random.default_rng(0), np.arange(801) % 3
    pixels = rng.integers(60, 140, (len(labels), 16, 16, 3))
    pixels[np.arange(len(labels)), :, :, labels] += 20  # no more than ε can take away
    dataset = make_dataset(pixels.astype(np.uint8), labels, ("a", "b", "c"))
    return dataset, train(dataset, 0), train(dataset, 1)


@pytest.fixture
def evaluate(fabric, networks, tmp_path, monkeypatch):
    """A function models -> the ids of the checks that say FAIL of the first of two models."""
    monkeypatch.chdir(tmp_path)

    def run(model, other, attacked=None):
        dataset = networks[0]
        context = make_context(fabric, dataset, {"adv": model, "clean": other}, **THREAT)
        if attacked:
            target = context.models["adv"]
            context.models["adv"] = TargetModel(**vars(target) | {"fused_model": attacked})
        chosen = [measurement for measurement in MEASUREMENTS if measurement.applies(context)]
        for measurement in chosen:
            context.results |= measurement.run(context)
        write_dataset(dataset, PROCESSED)
        for folder in ("metrics", "plots"):
            (tmp_path / folder).mkdir()
        (tmp_path / "metrics/data.json").write_text(json.dumps(DATA))
        for name in MODELS:
            write_results(PREDICTIONS / name, context.results, chosen)
            make_history().to_csv(history_path(name), index=False)
        results = load_results(params(**THREAT))
        results.plots |= minimum_eps.SECTION.compute_tables(results)
        checks = run_checks(results)["adv"]
        failed = {id_ for id_ in checks if checks[id_]["verdict"] == FAIL} - {"D27"}
        return sorted(failed, key=lambda id_: int(id_[1:]))

    return run


def true_accuracy(model, network, dataset):
    """Of the defended model, on PGD's examples for the network without the defense (BPDA)."""
    split = DatasetSplit.from_dataset(dataset, "test")
    x, y = split.load(np.arange(len(split)), torch.device("cpu"))
    budget = params(**THREAT).attack.budget
    x_adv = gradient.pgd(network, x, y, budget, alpha=EPS / 4, steps=20)
    wrong = is_adversarial(model, x_adv, y) | is_adversarial(model, x, y)
    return 1 - wrong.float().mean().item()


@pytest.mark.parametrize("name", DEFENSES)
def test_broken_defense_fails_these_diagnostics(name, evaluate, networks):
    dataset, network, other = networks
    defense, expected = DEFENSES[name]
    model = defense(network).eval()
    assert true_accuracy(model, network, dataset) < 0.05, "it protects from nothing"
    assert evaluate(model, defense(other).eval()) == expected.split()


@pytest.mark.parametrize("name", RANDOM)
def test_random_defense_fails_these_diagnostics(name, evaluate, networks):
    _, network, other = networks
    failed = evaluate(RANDOM[name](network).eval(), RANDOM[name](other).eval())
    assert {"D3", "D6", "D12", "D17"} <= set(failed)


def test_attack_on_other_weights_fails_these_diagnostics(evaluate, networks):
    _, network, other = networks
    assert evaluate(network, network, attacked=other) == ["D8", "D12", "D17"]
