"""train_adv in float64, where a difference of rounding can't grow.  Run: python -m tests.helpers.double_precision"""

from typing import Any

import torch
from lightning_fabric import Fabric

from stages import train_adv
from stages.core import devices


def in_float64(**settings: Any) -> Fabric:
    return Fabric(**(settings | {"precision": "64-true"}))


if __name__ == "__main__":
    devices.Fabric = in_float64
    torch.set_default_dtype(torch.float64)
    train_adv.main()
