"""What CI runs exists: .ci/run names tests, and a renamed test must not drop out of it."""

import re
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def test_every_guard_names_slow_tests():
    script = (PROJECT / ".ci" / "run").read_text(encoding="utf-8")
    guards = re.findall(r"^    (tests/\S+)", re.search(r"GUARDS=\(\n(.*?)^\)", script, re.S | re.M)[1], re.M)

    assert len(guards) == 6
    for guard in guards:
        name, _, function = guard.partition("::")
        files = [PROJECT / name] if name.endswith(".py") else sorted((PROJECT / name).glob("test_*.py"))
        text = "".join(file.read_text(encoding="utf-8") for file in files)
        assert "slow" in text, guard
        assert f"def {function}(" in text or not function, guard
