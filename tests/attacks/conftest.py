"""A trained model that the attack tests share."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.core.dataset import ImageDataset
from stages.models.batches import DatasetSplit
from tests.helpers.datasets import toy_dataset
from tests.helpers.models import SmallNet


@pytest.fixture(scope="module")
def trained() -> tuple[ImageDataset, SmallNet]:
    """The toy dataset and a small net, in eval mode, that classifies it well, so that attacks have something to change."""
    torch.manual_seed(0)
    dataset, model = toy_dataset(size=16), SmallNet()
    x, y = DatasetSplit.from_dataset(dataset, "train").load(np.arange(48), torch.device("cpu"))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return dataset, model.eval()
