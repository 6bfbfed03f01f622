"""Small models for tests."""

import torch
from torch import nn

from stages.models.classifier import Classifier


class LinearLogits(nn.Module):
    """Two classes, logits (0, w·x + b); its decision boundary is known in closed form."""

    def __init__(self, weight: torch.Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.tensor(bias))

    def forward(self, x):
        logit = (x.flatten(1) * self.weight).sum(1) + self.bias
        return torch.stack([torch.zeros_like(logit), logit], 1)

    def distance(self, x: torch.Tensor, norm: str) -> torch.Tensor:
        """(B,) to the boundary: |w·x + b| over the dual norm of w; clipping to [0, 1] left out."""
        dual = self.weight.norm(p={"linf": 1, "l2": 2}[norm])
        return (self(x)[:, 1].abs() / dual).detach()


class SmallNet(nn.Module):
    """Convolution, BatchNorm, dropout: everything whose state an attack could change."""

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


class Wrapped(nn.Module):
    """A model whose inputs or logits are changed."""

    def __init__(self, model: nn.Module, inputs=lambda x: x, logits=lambda z: z) -> None:
        super().__init__()
        self.model, self.inputs, self.logits = model, inputs, logits

    def forward(self, x):
        return self.logits(self.model(self.inputs(x)))


def tiny_classifier(classes=("a", "b", "c"), size: int = 16) -> Classifier:
    """The pipeline's classifier around a network that trains in no time."""
    model = Classifier("squeezenet1_1", classes, size)
    model.backbone = SmallNet(len(classes))
    return model


def smooth_problem(classes: int, images: int = 12) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A smooth random net, images (B, 3, 6, 6), and its predictions for them as labels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 24), nn.GELU(), nn.Linear(24, classes))
    x = (torch.rand(images, 3, 6, 6) * 255).round() / 255
    return model.eval(), x, model(x).argmax(1)
