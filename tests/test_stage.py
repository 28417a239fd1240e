"""Stages: skipped when nothing changed, rebuilt when something did, never half-written."""

import errno
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from mindpangu.errors import StageError
from mindpangu.stage import ResultFile, Stage, hash_files, refuse_other_results


def build(stage, text="x"):
    with stage.locked(), stage.building() as folder:
        (folder / "out.txt").write_text(text)


def test_a_stage_is_current_until_an_input_or_an_output_changes(tmp_path):
    folder = tmp_path / "stage"
    assert not Stage(folder, {"a": 1}).is_current()

    build(Stage(folder, {"a": 1}))
    assert Stage(folder, {"a": 1}).is_current()
    assert not Stage(folder, {"a": 2}).is_current()

    (folder / "out.txt").write_text("cut off")
    assert not Stage(folder, {"a": 1}).is_current()

    (folder / "out.txt").unlink()
    assert not Stage(folder, {"a": 1}).is_current()


def test_a_file_altered_without_changing_its_size_means_building_again(tmp_path):
    folder = tmp_path / "stage"
    build(Stage(folder, {"a": 1}), "one")

    (folder / "out.txt").write_text("two")

    assert not Stage(folder, {"a": 1}).is_current()
    assert not Stage(folder, {"a": 1}).has_other_inputs()


@pytest.mark.parametrize("stamp", ["", "[]", "null", "{}", '{"inputs": {"a": 1}, "files": 5}', '{"inputs": {"a": 1}}'])
def test_a_damaged_stamp_means_building_again(tmp_path, stamp):
    folder = tmp_path / "stage"
    build(Stage(folder, {"a": 1}))

    (folder / "stage.json").write_text(stamp)

    assert not Stage(folder, {"a": 1}).is_current()


def test_the_stamp_keeps_its_form(tmp_path):
    """Run folders are compared byte by byte, so the same content must have the same bytes."""
    folder = tmp_path / "stage"

    build(Stage(folder, {"a": "中"}), "one")

    digest = hash_files([folder / "out.txt"])
    assert (folder / "stage.json").read_bytes() == (
        b'{\n "inputs": {\n  "a": "\\u4e2d"\n },\n "files": {\n  "out.txt": "%s"\n }\n}' % digest.encode()
    )


def test_a_failing_build_keeps_the_old_folder(tmp_path):
    folder = tmp_path / "stage"
    build(Stage(folder, {"a": 1}), "old")

    with pytest.raises(RuntimeError), Stage(folder, {"a": 2}).building() as scratch:
        (scratch / "out.txt").write_text("new")
        raise RuntimeError

    assert Stage(folder, {"a": 1}).is_current()
    assert (folder / "out.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]


@pytest.mark.parametrize("name", ["corpus.jsonl", "notes/idea.md"])
@pytest.mark.parametrize("is_stage", [False, True])
@pytest.mark.parametrize("is_link", [False, True])
def test_files_that_no_stage_has_written_are_not_replaced(tmp_path, name, is_stage, is_link):
    """As a user's own folder, named like that of a stage; or one that a run folder from elsewhere has a link to."""
    mine = tmp_path / "mine" if is_link else tmp_path / "data"
    if is_stage:
        build(Stage(mine, {"a": 1}), "old")
    (mine / name).parent.mkdir(parents=True, exist_ok=True)
    (mine / name).write_text("precious")
    if is_link:
        (tmp_path / "data").symlink_to(mine)

    with pytest.raises(StageError, match=f"data would be replaced, but has '{name}', which mindpangu did not write"):
        build(Stage(tmp_path / "data", {"a": 2}), "new")

    assert (mine / name).read_text() == "precious"


def test_a_folder_whose_stamp_is_damaged_is_replaced(tmp_path):
    build(Stage(tmp_path / "data", {"a": 1}), "old")
    (tmp_path / "data" / "stage.json").write_text("damaged")

    build(Stage(tmp_path / "data", {"a": 1}), "new")

    assert (tmp_path / "data" / "out.txt").read_text() == "new"


def test_a_full_disk_names_the_folder_and_keeps_what_was_there(tmp_path):
    folder = tmp_path / "stage"
    build(Stage(folder, {"a": 1}), "old")

    with pytest.raises(StageError, match=r"stage cannot be written: No space left on device; free disk space"):
        with Stage(folder, {"a": 2}).building():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert Stage(folder, {"a": 1}).is_current()


def test_a_stage_may_be_a_link_to_another_disk(tmp_path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other disk here")
    with tempfile.TemporaryDirectory(dir=other) as disk:
        (tmp_path / "stage").symlink_to(Path(disk) / "stage")

        build(Stage(tmp_path / "stage", {"a": 1}), "old")
        build(Stage(tmp_path / "stage", {"a": 2}), "new")

        assert Stage(tmp_path / "stage", {"a": 2}).is_current()
        assert os.listdir(tmp_path) == os.listdir(disk) == ["stage"]
        assert (tmp_path / "stage").is_symlink()


def test_a_folder_that_is_a_mount_point_is_refused(tmp_path, monkeypatch):
    """Nothing can be renamed to a mount point."""
    monkeypatch.setattr(os.path, "ismount", lambda path: True)

    with pytest.raises(StageError, match="stage cannot be written: is a mount point; use a folder in it"):
        build(Stage(tmp_path / "stage", {"a": 1}))


def test_a_result_file_is_current_for_its_inputs_only(tmp_path):
    result = ResultFile(tmp_path / "result.json", {"a": (1, 2)})
    assert not result.is_current()

    result.write({"value": "中"})

    assert ResultFile(tmp_path / "result.json", {"a": [1, 2]}).is_current()
    assert not ResultFile(tmp_path / "result.json", {"a": [2]}).is_current()
    assert '"value": "中"\n}\n' in (tmp_path / "result.json").read_text(encoding="utf-8")


def test_the_hash_depends_on_content_and_order_only(tmp_path):
    first, second, copy = (tmp_path / name for name in "abc")
    first.write_text("one")
    second.write_text("two")
    copy.write_text("one")

    assert hash_files([first, second]) == hash_files([copy, second])
    assert hash_files([first, second]) != hash_files([second, first])


def test_a_file_in_place_of_the_folder_is_not_replaced(tmp_path):
    (tmp_path / "data").write_text("precious")

    with pytest.raises(StageError, match="data is not a folder; move it"):
        build(Stage(tmp_path / "data", {"a": 1}))

    assert (tmp_path / "data").read_text() == "precious"


@dataclass(frozen=True)
class Result:
    value: float


@pytest.mark.parametrize("content", ["", "{", "[1", '{"inputs": {"a": 1}, "value": "x"}', '{"inputs": {"a": 1}}'])
def test_a_damaged_result_is_computed_again(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_text(content)

    assert not ResultFile(path, {"a": 1}).is_current(Result)
    ResultFile(path, {"a": 1}).write({"value": 2})
    assert ResultFile(path, {"a": 1}).is_current(Result)


@pytest.mark.parametrize("content", ["[1]", "3", "null", "{}", '{"value": 2}'])
def test_a_file_of_another_program_is_not_replaced(tmp_path, content):
    refuse_other_results(tmp_path / "new", "result.json", ["inputs"], ["table.txt"])
    for name in ("table.txt", "result.json"):
        (tmp_path / name).write_text(content)
        with pytest.raises(
            StageError, match=f"{name} would be replaced, but is not a result of mindpangu, or was damag"
        ):
            refuse_other_results(tmp_path, "result.json", ["inputs"], ["table.txt"])


@pytest.mark.parametrize("content", ["", "{", '{"inputs": 1, "value": 2}'])
def test_an_own_result_may_be_replaced_even_if_it_was_damaged(tmp_path, content):
    (tmp_path / "table.txt").touch()
    (tmp_path / "result.json").write_text(content)

    refuse_other_results(tmp_path, "result.json", ["inputs"], ["table.txt"])
