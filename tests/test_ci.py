"""What CI runs exists: .ci/run names tests, and a renamed test must not drop out of it."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


@pytest.mark.parametrize(("array", "count", "word"), [("GUARDS", 5, "slow"), ("DRILLS", 1, "drill")])
def test_every_test_that_ci_names_exists(array, count, word):
    script = (PROJECT / ".ci" / "run").read_text(encoding="utf-8")
    listed = re.search(rf"^{array}=\(\n(.*?)^\)", script, re.S | re.M)[1]
    named = re.findall(r"^    (tests/\S+)", listed, re.M)

    assert len(named) == count
    for each in named:
        name, _, function = each.partition("::")
        files = [PROJECT / name] if name.endswith(".py") else sorted((PROJECT / name).glob("test_*.py"))
        text = "".join(file.read_text(encoding="utf-8") for file in files)
        assert word in text, each
        assert f"def {function}(" in text or not function, each
