"""`make quick`: the keys of params.quick.yaml are keys of params.yaml."""

import yaml

from stages.core.params import Params
from tests.helpers.repository import ROOT
from tools.quick import merged


def test_small_run_changes_its_keys_and_no_other():
    params, changes = (
        yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
        for name in ("params.yaml", "params.quick.yaml")
    )
    both = merged(params, changes)
    Params.model_validate(both)
    assert both["data"] == params["data"] | changes["data"]
    assert both["evaluate"]["confidence"] == params["evaluate"]["confidence"]
