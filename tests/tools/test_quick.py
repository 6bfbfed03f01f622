"""`make quick`: the keys of params.quick.yaml are keys of params.yaml."""

import yaml

from stages.core.params import Params
from tests.helpers.repository import ROOT
from tools.quick import findable, merged


def test_small_run_changes_its_keys_and_no_other():
    params, changes = (
        yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
        for name in ("params.yaml", "params.quick.yaml")
    )
    both = merged(params, changes)
    Params.model_validate(both)
    assert both["data"] == params["data"] | changes["data"]
    assert both["evaluate"]["confidence"] == params["evaluate"]["confidence"]


def test_photographs_that_git_lacks_are_found_from_the_clone(monkeypatch):
    monkeypatch.chdir(ROOT)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert findable(params) == params
    found = findable(merged(params, {"data": {"source": "data/raw/mine"}}))
    assert found == merged(params, {"data": {"source": str(ROOT / "data/raw/mine")}})
