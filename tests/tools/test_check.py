"""Whether a run reproduces the committed one."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from stages.core.errors import InputError
from stages.core.files import md5
from tools import check


def write_run(clean_accuracy=0.8, seed=0):
    """A finished run; its intervals are from 0.1 below to 0.1 above each value."""
    evaluation = {}
    for model in ("clean", "adv"):
        values = {"clean_accuracy": clean_accuracy, "robust_accuracy_worst": 0.5}
        ends = {f"{name}_low": value - 0.1 for name, value in values.items()}
        ends |= {f"{name}_high": value + 0.1 for name, value in values.items()}
        evaluation[model] = values | ends
    check.EVALUATION.parent.mkdir(exist_ok=True)
    check.EVALUATION.write_text(json.dumps(evaluation))
    out = {"path": check.EVALUATION.as_posix(), "md5": md5(check.EVALUATION)}
    stage = {"outs": [out], "params": {"params.yaml": {"seed": seed}}}
    check.LOCK.write_text(yaml.safe_dump({"stages": {"evaluate": stage}}))


@pytest.fixture(autouse=True)
def _repository(tmp_path, monkeypatch):
    """A commit with a run."""
    monkeypatch.chdir(tmp_path)
    write_run()
    author = ["-c", "user.name=u", "-c", "user.email=u@localhost"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "Run"]):
        subprocess.run(["git", *command], check=True)


@pytest.mark.parametrize(
    ("accuracy", "answers", "conclusion"),
    [
        (0.8, ["yes"] * 4, "reproduced: the same bytes"),
        (0.71, ["yes"] * 4, "reproduced: every headline"),
        (0.69, ["no", "yes"] * 2, "not reproduced: 2 of 4"),
        (0.91, ["no", "yes"] * 2, "not reproduced: 2 of 4"),
    ],
)
def test_headline_is_reproduced_within_the_committed_interval(
    accuracy, answers, conclusion, capsys
):
    write_run(accuracy)
    assert check.main() is ("no" not in answers)
    _, *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == answers
    assert last.startswith(conclusion)


def test_run_with_other_parameters_is_not_compared():
    write_run(seed=1)
    with pytest.raises(InputError, match=r"params.yaml: expected .* committed .*make reset"):
        check.main()


def test_committed_files_alone_are_no_run():
    write_run()
    check.EVALUATION.write_text("{}")
    with pytest.raises(InputError, match=r"expected the file of a complete run, got none"):
        check.main()
    Path(check.EVALUATION).unlink()
    with pytest.raises(InputError, match=r"expected the file of a complete run, got none"):
        check.main()


def test_folder_has_the_digest_that_dvc_gives_it(tmp_path):
    for name in ("b.txt", "a/c.txt", "a-b/c.txt"):
        file = tmp_path / "out" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    subprocess.run(["dvc", "init", "-q"], check=True)
    subprocess.run(["dvc", "add", "-q", "out"], check=True)
    recorded = yaml.safe_load(Path("out.dvc").read_text())["outs"][0]["md5"]
    assert check.digest(Path("out")) == recorded
    (tmp_path / "out/b.txt").write_text("other")
    assert check.digest(Path("out")) != recorded
