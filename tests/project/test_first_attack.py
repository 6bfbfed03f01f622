"""docs/first-attack.md prints what it says, up to what another processor changes."""

import contextlib
import io
import re

import pytest

from tests.helpers.repository import ROOT

NUMBER = re.compile(r"(?<![\d/.])\d+(?=%)")


def test_blocks_run_as_they_stand_and_print_what_stands_below(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs/first-attack.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.S)
    assert len(blocks) == text.count("```python")
    names = {}
    for code, shown in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, names)  # noqa: S102
        assert NUMBER.sub("", printed.getvalue()) == NUMBER.sub("", shown)
        found, expected = (list(map(int, NUMBER.findall(t))) for t in (printed.getvalue(), shown))
        assert found == pytest.approx(expected, abs=8)
