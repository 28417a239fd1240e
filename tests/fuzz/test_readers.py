"""Whatever a file from elsewhere holds, its reader quickly accepts it or refuses it in one message, and writes nowhere
else.

`MINDPANGU_FUZZ_EXAMPLES=5000 python -m pytest tests/fuzz` tries more; `python tests/fuzz/run_atheris.py` lets coverage
guide the mutations.
"""

import os
import re
import shutil
import signal
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindpangu.errors import MindPanguError
from tests.fuzz.mutations import mutate
from tests.fuzz.readers import READERS, make_sandbox, read_forged

EXAMPLES = os.environ.get("MINDPANGU_FUZZ_EXAMPLES")
LONGEST_MESSAGE = 1500  # characters; a path takes about a hundred


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    """A folder with a real file of every kind. At the end, nothing may lie outside it, whatever names were tried."""
    top = tmp_path_factory.mktemp("fuzz")
    folder = top / "a" / "b" / "c" / "sandbox"
    make_sandbox(folder)
    real = set(folder.rglob("*"))

    yield folder

    shutil.rmtree(folder / "out", ignore_errors=True)  # where `use_manifest` writes
    assert set(folder.rglob("*")) == real
    assert [path.name for path in top.rglob("*") if folder not in (path, *path.parents)] == ["a", "b", "c"]


@pytest.mark.parametrize("name", READERS)
def test_the_real_file_is_accepted(sandbox, name):
    reader = READERS[name]

    assert read_forged(reader, sandbox, (sandbox / reader.file).read_bytes()) is None


@pytest.mark.parametrize("name", READERS)
@settings(
    max_examples=int(EXAMPLES or 25),
    deadline=None,
    derandomize=EXAMPLES is None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_a_forged_file_is_accepted_or_refused_in_one_message(sandbox, name, data):
    reader = READERS[name]
    forged = mutate((sandbox / reader.file).read_bytes(), reader.form, lambda n: data.draw(st.integers(0, n - 1)))

    began = time.process_time()
    message = read_forged(reader, sandbox, forged)
    seconds = time.process_time() - began

    assert message is None or 0 < len(message) < LONGEST_MESSAGE
    assert message is None or "\n" not in message
    assert seconds < 2


def refuse_to_wait(*_):
    raise AssertionError("the reader waits for a writer")


@pytest.fixture
def patience():
    """Ends a test that waits for a FIFO."""
    previous = signal.signal(signal.SIGALRM, refuse_to_wait)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def make_sparse(path):
    with open(path, "wb") as file:
        file.truncate(1 << 40)


SPECIAL = {
    "a FIFO": os.mkfifo,
    "a folder": os.mkdir,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a whole file": lambda path: path.symlink_to(path.with_name("moved")),
    "a terabyte": make_sparse,
}
DERIVED = ("stage", "evaluation", "metrics")  # a file that cannot be used counts as absent, or is set aside


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", READERS)
def test_only_regular_files_of_a_sensible_size_are_read(sandbox, patience, name, kind):
    reader = READERS[name]
    if reader.user_names_it and kind == "a link to a whole file":
        pytest.skip("users may name a link")
    if name == "pointer":
        pytest.skip("not read but written: see test_the_latest_step_is_written_only_to_a_regular_file")
    path = sandbox / reader.file
    moved = path.with_name("moved")
    path.rename(moved)

    try:
        SPECIAL[kind](path)
        began = time.process_time()
        if name in DERIVED:
            reader.use(sandbox)
        else:
            with pytest.raises(MindPanguError, match=f"{re.escape(path.name)}|{path.parent.name}"):
                reader.use(sandbox)
        assert time.process_time() - began < 2
    finally:
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        moved.rename(path)
