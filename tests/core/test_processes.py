"""How a command ends: on an error, on Ctrl-C, with DVC, and when it isn't the only one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.core.errors import InputError
from stages.core.processes import AlreadyRunningError, only_process, run_cli
from tests.helpers.repository import ROOT


def run_python(code: str, **env) -> subprocess.Popen:
    """Python code in a process of its own, in the repository."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ | env, **pipes)


def is_running(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            InputError("attack.eps: expected a number, got 'x'"),
            "error: attack.eps: expected a number, got 'x'\n",
        ),
        (
            OSError(28, "No space left on device", "a/b.csv"),
            "error: a/b.csv: No space left on device\n",
        ),
        (
            FloatingPointError("epoch 2: expected a finite loss, got nan"),
            "error: epoch 2: expected a finite loss, got nan\n",
        ),
    ],
)
def test_error_of_the_user_is_one_line(capfd, error, line):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_cli(main)
    assert ended.value.code == 1
    assert capfd.readouterr().err == line


def test_terminal_without_unicode_costs_a_character_not_the_stage():
    code = r"from stages.core.processes import run_cli; run_cli(lambda: print('L\u221e'))"
    process = run_python(code, PYTHONIOENCODING="ascii")
    assert process.communicate() == ("L?\n", "")
    assert process.returncode == 0


def test_bug_keeps_its_traceback():
    def main():
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run_cli(main)


def test_ctrl_c_is_one_line_and_exit_status_130():
    code = (
        "import time; from stages.core.processes import run_cli; "
        "run_cli(lambda: print('in', flush=True) or time.sleep(60))"
    )
    process = run_python(code)
    assert process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "interrupted; the same command resumes\n"
    assert process.returncode == 130


def test_ctrl_c_while_a_stage_imports_leaves_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.evaluate"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    maps = Path(f"/proc/{process.pid}/maps")
    while "numpy" not in maps.read_text():  # it imports
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] in ("", "interrupted; the same command resumes\n")
    assert process.returncode in (-signal.SIGINT, 130)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("stage", ["evaluate", ""])
def test_stage_ends_with_dvc_but_not_with_a_shell_also_while_it_imports(stage, tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/__init__.py").write_bytes((ROOT / "stages/__init__.py").read_bytes())
    (tmp_path / "stages/slow.py").write_text(
        "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(300)\n"
    )
    command = [sys.executable, "-m", "stages.slow"]
    parent_code = f"import subprocess; subprocess.run({command!r}, cwd={str(tmp_path)!r})"
    parent = run_python(parent_code, **({"DVC_STAGE": stage} if stage else {}))
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    try:
        end = time.monotonic() + (10 if stage else 1)
        while is_running(child) and time.monotonic() < end:
            time.sleep(0.05)
        assert is_running(child) == (not stage)
    finally:
        if is_running(child):
            os.kill(child, signal.SIGKILL)


def test_second_process_is_refused_until_the_first_ends(tmp_path):
    lock = tmp_path / "a" / "run.lock"
    code = (
        "from pathlib import Path; from stages.core.processes import *\n"
        f"with only_process(Path({str(lock)!r})): pass"
    )
    with only_process(lock):
        assert "AlreadyRunningError" in run_python(code).communicate()[1]
        with (
            pytest.raises(
                AlreadyRunningError, match=r"run\.lock: expected to be the only process of this run"
            ),
            only_process(lock),
        ):
            pass
    assert run_python(code).wait() == 0
