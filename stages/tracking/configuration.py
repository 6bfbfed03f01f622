"""What a run of the whole pipeline is called, and its parameters as params.yaml has them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.core.params_file import parse_yaml
from stages.tracking.environment import git

SHOWN = {"attack.eps": "eps", "seed": "seed"}  # always in the name, in this order
MAX_NAME = 250  # characters; MLflow's limit


def written_params() -> dict[str, str]:
    """Dotted keys -> values as text, as they are written: ε as ``8/255``; not those of runtime."""
    return _flatten(parse_yaml(Path("params.yaml").read_text(encoding="utf-8")))


def run_name(baseline: str) -> str:
    """``eps=8/255 seed=0``, what differs from the baseline commit, the name of the experiment.

    For example ``eps=2/255 seed=0 train_adv.method=pgd (tiny-mole)``.
    """
    params = written_params()
    parts = [f"{name}={params[key]}" for key, name in SHOWN.items()]
    committed = git("show", f"{baseline}:./params.yaml")
    if committed:
        before = _flatten(parse_yaml(committed))
        for key, value in params.items():
            if key not in SHOWN and before.get(key) != value:
                parts.append(f"{key}={value}")
    if experiment := os.environ.get("DVC_EXP_NAME"):
        parts.append(f"({experiment})")
    return " ".join(parts)[:MAX_NAME]


def _flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in section.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{key}.")
        elif isinstance(value, list):
            flat[key] = ", ".join(map(str, value))
        elif not key.startswith("runtime."):
            flat[key] = str(value)
    return flat
