"""Output folders: results are written completely or not at all, and never over existing ones."""

import threading

import pytest

from mindpangu.checkpoint import CheckpointReader
from mindpangu.cli.main import main
from mindpangu.errors import CheckpointError, InUseError
from mindpangu.lifecycle.output import locked_output, new_folder


@pytest.mark.parametrize("form", [[], ["--export"]])
def test_results_are_not_written_over_others(trained, tmp_path, capsys, form):
    folder = CheckpointReader(trained).folder
    file = tmp_path / "file"
    file.touch()

    for out, message in (
        (folder / "sub", "is in the checkpoint iteration_00000006"),
        (trained, "already has a checkpoint (iteration_00000006)"),
        (file, "file is a file; --out needs the name of a folder"),
        (file / "sub", "Not a directory; free disk space or choose another"),
    ):
        assert main(["extract", "--domains", "zh", *form, "--checkpoint", str(trained), "--out", str(out)]) == 1
        assert message in capsys.readouterr().err
    assert not (folder / "sub").exists()


def test_a_folder_appears_when_it_is_complete(tmp_path):
    out = tmp_path / "new" / "out"

    with new_folder(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()

    assert [path.name for path in out.parent.rglob("*")] == ["out", "a"]


def test_a_failure_keeps_the_former_content(tmp_path):
    """An empty folder may be used; one with content may not."""
    (tmp_path / "out").mkdir()

    with pytest.raises(CheckpointError, match="out cannot be written: disk"), new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        raise OSError("disk")

    assert [path.name for path in tmp_path.rglob("*")] == ["out"]

    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    with pytest.raises(CheckpointError, match="out exists and is not empty"), new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "a").read_text() == "1"


def test_leftovers_of_a_killed_process_are_not_in_the_way(tmp_path):
    """It neither makes a folder look used nor stays."""
    for folder in (tmp_path, tmp_path / "out"):
        (folder / ".other.host-1-2-0123abcd.writing").mkdir(parents=True)

    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")

    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "out"]


def test_the_second_of_two_writers_is_told_at_once(tmp_path):
    errors = []

    def second():
        with pytest.raises(InUseError) as error, locked_output(tmp_path / "out"):
            pass
        errors.append(str(error.value))

    with locked_output(tmp_path / "out"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    assert errors[0].startswith(f"{tmp_path / 'out'} is being written by process ")
