"""Small models for tests."""

import torch
from torch import nn

from stages.models.classifier import Classifier


class LinearLogits(nn.Module):
    """Two classes, logits (0, w·x + b): the linf distance to the decision boundary is |w·x + b| / ||w||_1."""

    def __init__(self, weight: torch.Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.tensor(bias))

    def forward(self, x):
        logit = (x.flatten(1) * self.weight).sum(1) + self.bias
        return torch.stack([torch.zeros_like(logit), logit], 1)


class SmallNet(nn.Module):
    """Convolution, BatchNorm, dropout: everything whose state an attack could change. float64 where a test asks."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16 * 16, classes))

    def forward(self, x):
        return self.head(self.body(x))


def tiny_classifier(classes=("a", "b", "c"), size: int = 16) -> Classifier:
    """The pipeline's classifier around a network that trains in no time."""
    model = Classifier("squeezenet1_1", classes, size)
    model.backbone = SmallNet(len(classes))
    return model
