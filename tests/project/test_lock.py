"""requirements.lock: every package by version and hash, with the pins of requirements.txt."""

import re

from tests.helpers.repository import ROOT

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
# A requirement, continued over the lines of its hashes: name==version ; marker --hash=…
ENTRIES = re.findall(r"^([\w.-]+)==(\S+)(.*(?:\n    --hash=.*)*)", LOCK, re.M)


def canonical(name: str) -> str:
    """As PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_pins_of_requirements_are_in_the_lock():
    pins = re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.M
    )
    locked = {canonical(name): version for name, version, _ in ENTRIES}
    assert len(pins) > 10
    outdated = [
        f"{name}=={version}" for name, version in pins if locked.get(canonical(name)) != version
    ]
    assert not outdated, (
        f"requirements.lock: expected {', '.join(outdated)}: make it anew as its first lines say"
    )


def test_every_package_of_the_lock_has_version_and_hash():
    assert [
        name for name, _, rest in ENTRIES if not re.search(r"--hash=sha256:[0-9a-f]{64}", rest)
    ] == []
    lines = [
        line
        for line in LOCK.splitlines()
        if line and not line.lstrip().startswith(("#", "--hash="))
    ]
    assert len(lines) == len(ENTRIES), "only pinned packages: no address of a registry, no file"
