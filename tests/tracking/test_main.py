"""The command ``python -m stages.tracking``, which logs what is not in MLflow yet."""

import stages.tracking.__main__ as command
from stages.tracking import stage_outputs
from tests.helpers.tracked_pipeline import (
    STAGES,
    log_stage,
    log_whole_pipeline,
    read_local_runs,
    restart,
)


def test_command_logs_missing_stages_except_outdated(project, monkeypatch, capsys):
    log_stage("preprocess")
    restart()
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "a commit of the results")
    monkeypatch.setattr(command, "_outdated_stages", lambda: {"evaluate": []})
    assert command.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "preprocess: logged already",
        "train_clean: logged",
        "train_adv: logged",
        "attack_eval@clean: logged",
        "attack_eval@adv: logged",
        "evaluate: skipped: outputs are out of date (run `dvc repro`)",
    ]
    runs = read_local_runs(project)
    train = runs.stages["train_clean"].data
    assert train.params.keys() >= {"seed", "train_clean.lr"}
    assert "attack.norm" not in train.params
    assert "device" not in train.tags  # unknown
    restart()
    assert command.main() == 1
    assert read_local_runs(project).snapshot() == runs.snapshot()


def test_command_logs_pipeline_taken_from_dvc_cache(project, monkeypatch, capsys):
    log_whole_pipeline()
    monkeypatch.setattr(command, "_outdated_stages", dict)
    for name, is_new in (("", False), ("tiny-mole", True), ("tiny-mole", False)):
        restart()
        monkeypatch.setenv("DVC_EXP_NAME", name)
        assert command.main() == 0
        expected = [
            f"{stage}: logged already" for stage in stage_outputs.stage_names()
        ] + is_new * ["the pipeline: logged"]
        assert capsys.readouterr().out.splitlines() == expected
    runs = read_local_runs(project)
    assert sorted(runs.stages) == sorted(STAGES), "no stage was executed again"
    executed, cached = sorted(runs.pipelines, key=lambda run: run.info.run_name, reverse=True)
    assert [run.info.run_name for run in (executed, cached)] == ["workspace", "tiny-mole"]
    assert cached.info.status == "FINISHED"
    assert cached.data.metrics == executed.data.metrics
    assert cached.data.params == executed.data.params
    assert cached.inputs.to_dictionary() == executed.inputs.to_dictionary()
    assert runs.files[cached.info.run_id] == ["report.html"]
