"""train_adv in float64, where rounding differences can't grow.

Run: python -m tests.helpers.double_precision
"""

from typing import Any

import torch
from lightning_fabric import Fabric

from stages import train_adv
from stages.core import devices


def float64_fabric(**settings: Any) -> Fabric:
    """A Fabric with these settings, in float64."""
    return Fabric(**(settings | {"precision": "64-true"}))


if __name__ == "__main__":
    devices.Fabric = float64_fabric
    torch.set_default_dtype(torch.float64)
    train_adv.main()
