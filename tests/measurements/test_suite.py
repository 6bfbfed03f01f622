"""The table of predictions: what its rows say of images, attacks and ε, whatever the batch."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from stages.attacks.registry import SUITE
from stages.core.norms import NORMS
from stages.core.predictions import CLEAN, correct_under, is_correct, within, worst_case
from stages.measurements import suite
from tests.helpers.measuring import make_context, run_suite
from tests.helpers.models import SmallNet

EPS = {"linf": 16 / 255, "l2": 1.0}
WEAK = {  # attacks on some images succeed, on others not
    "attack_eval.bim_steps": 3,
    "attack_eval.pgd_steps": 3,
    "attack_eval.curve_steps": 2,
    "attack_eval.aa_steps": 8,
    "attack_eval.aa_queries": 20,
    "attack_eval.subset": 12,
}


def threat(norm: str) -> dict:
    eps = EPS[norm]
    return {"attack.norm": norm, "attack.eps": eps, "attack.eps_grid": [eps / 4, eps, 4 * eps]}


def mislabel(dataset):
    """Every fifth label is wrong."""
    labels = dataset.labels.copy()
    labels[::5] = (labels[::5] + 1) % 3
    manifest = dataset.manifest.assign(label=[dataset.classes[k] for k in labels])
    return dataclasses.replace(dataset, labels=labels, manifest=manifest)


@pytest.fixture(scope="module", params=NORMS)
def measured(request, trained):
    """A context after the suite, some of whose images are misclassified without attack."""
    from lightning_fabric import Fabric

    dataset, model = trained
    fabric, norm = Fabric(accelerator="cpu", devices=1), request.param
    context = make_context(fabric, mislabel(dataset), {"clean": model}, **threat(norm), **WEAK)
    run_suite(context)
    return context
