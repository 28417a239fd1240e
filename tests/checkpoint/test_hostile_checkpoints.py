"""Checkpoints from elsewhere: no name leads out of the folder, and a wrong field is named with its file."""

import json
import os
import shutil
from pathlib import Path

import pytest

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter, SavedState, finish_publishing
from mindpangu.cli.main import main
from mindpangu.errors import CheckpointError
from tests.fuzz.readers import OLDER, sign

FOLDER = "run/checkpoint/iteration_00000004"


@pytest.fixture
def checkpoint(tmp_path):
    """A real checkpoint, to be spoiled."""
    shutil.copytree(OLDER, tmp_path / "older")
    return tmp_path / "older" / FOLDER


def change_manifest(checkpoint, change):
    path = checkpoint / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def everything_in(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


ENTRY = {"bytes": 6, "blake2b": "0" * 32}
LEADS_OUT = (
    "dense_x/../../../stolen",
    "dense_00000_of_00001.safetensors/../../../stolen",
    "../stolen",
    "/tmp/stolen",
    "experts/rre_00.zh.000.safetensors/../../../stolen",
    "experts/rre_00.../../x.000.safetensors",
    "experts/rre_00.a/../x.000.safetensors",
    "routing/../../stolen.safetensors",
    "tokenizer/..model/../x.model",
    "tokenizer/../../x.model",
    "extra.txt",
    "dense_.safetensors",
    "",
    "n" * 5_000_000,
)


@pytest.mark.parametrize("name", LEADS_OUT, ids=lambda name: name[:60])
def test_an_entry_that_is_not_a_checkpoint_file_is_refused(checkpoint, name):
    change_manifest(checkpoint, lambda content: content["files"].update({name: ENTRY}))

    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read: .*; copy it again") as caught:
        CheckpointReader(checkpoint)

    assert len(str(caught.value)) < 600


def test_extracting_writes_nothing_outside_its_folder(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path / "older")
    (checkpoint.parents[1] / "stolen").write_bytes(b"secret")
    change_manifest(checkpoint, lambda content: content["files"].update({"dense_x/../../../stolen": ENTRY}))
    before = everything_in(tmp_path)

    code = main(["extract", "--domains", "zh", "--checkpoint", "run", "--out", str(tmp_path / "out" / "small")])

    assert code == 1
    assert "dense_x/../../../stolen" in capsys.readouterr().err
    assert everything_in(tmp_path) - before <= {"out"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(step="4"), "step is '4'; allowed: an integer"),
        (lambda content: content.update(step=-5), "step is -5; allowed: >= 0"),
        (lambda content: content.update(step=10**40), "step is 1000.*; allowed: a 64-bit integer"),
        (lambda content: content.update(step=5), "step is 5; allowed: 4, the step in the name of the folder"),
        (lambda content: content.update(files=[]), "files is a list"),
        (lambda content: content.pop("files"), "files is missing"),
        (lambda content: content.update(more=1), "more is an unknown field"),
        (lambda content: content["files"].update({"state.json": {"bytes": -1, "blake2b": "0" * 32}}), "bytes is -1"),
        (lambda content: content["files"].update({"state.json": {"bytes": 1, "blake2b": "0"}}), "blake2b is '0'"),
        (
            lambda content: content["files"].update({"state.json": {"bytes": 1 << 40, "blake2b": "0" * 32}}),
            "files.state.json.bytes is 1,099,511,627,776; allowed: <= 16,777,216",
        ),
    ],
)
def test_a_wrong_field_of_the_manifest_is_named(checkpoint, change, message):
    change_manifest(checkpoint, change)

    with pytest.raises(CheckpointError, match=rf"manifest\.json cannot be read: .*{message}"):
        CheckpointReader(checkpoint)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (0, "has checkpoint format 0; this version of mindpangu reads 1"),
        (2, "has checkpoint format 2; this version of mindpangu reads 1"),
        (True, "format_version is True; allowed: an integer"),
        ("1", "format_version is '1'; allowed: an integer"),
        (None, "format_version is null; allowed: an integer"),
    ],
)
def test_only_a_manifest_of_this_version_is_read(checkpoint, version, message):
    """Manifests of later versions may have other fields."""
    change_manifest(checkpoint, lambda content: content.update(format_version=version, files="elsewhere"))

    with pytest.raises(CheckpointError, match=message):
        CheckpointReader(checkpoint)


@pytest.mark.parametrize("content", ["[]", "1", "{}"])
def test_a_manifest_without_a_version_is_refused(checkpoint, content):
    (checkpoint / "manifest.json").write_text(content)

    with pytest.raises(CheckpointError, match=r"format_version is missing|its content is .*; allowed: an object"):
        CheckpointReader(checkpoint)


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("config.yaml", 1 << 24),
        ("state.json", 1 << 24),
        ("routing/zh.safetensors", 1 << 31),
        ("tokenizer/main.model", 1 << 30),
        ("dense_00000_of_00001.safetensors", 1 << 62),
        ("experts/rre_00.zh.000.safetensors", 1 << 62),
    ],
)
def test_a_file_has_at_most_the_size_of_its_kind(checkpoint, name, limit):
    entry = {"blake2b": "0" * 32}
    change_manifest(checkpoint, lambda content: content["files"].update({name: entry | {"bytes": limit}}))

    assert CheckpointReader(checkpoint).files[name]["bytes"] == limit

    change_manifest(checkpoint, lambda content: content["files"].update({name: entry | {"bytes": limit + 1}}))
    with pytest.raises(CheckpointError, match=r"bytes is .*; allowed: .*<= "):
        CheckpointReader(checkpoint)


@pytest.mark.parametrize("step", [0, 10**12])
def test_steps_of_a_checkpoint_end_at_a_trillion(checkpoint, step):
    folder = checkpoint.rename(checkpoint.parent / f"iteration_{step:08d}")
    change_manifest(folder, lambda content: content.update(step=step))

    assert CheckpointReader(folder).step == step

    change_manifest(folder, lambda content: content.update(step=10**12 + 1))
    with pytest.raises(CheckpointError, match=r"step is 1000000000001; allowed: >= 0 and <= 1000000000000"):
        CheckpointReader(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: [state], "its content is a list with 1 entry; allowed: an object"),
        (lambda state: state | {"updates": -7}, "updates is -7; allowed: >= 0"),
        (lambda state: state | {"updates": float("nan")}, "it has NaN where a number must be finite"),
        (lambda state: state | {"updates": 10**40}, "updates is 1000.*; allowed: a 64-bit integer"),
        (lambda state: state | {"updates": 5}, "updates is 5; allowed: <= 4"),
        (lambda state: state | {"step": 3}, "step is 3; allowed: 4, the step of the checkpoint"),
        (lambda state: {key: value for key, value in state.items() if key != "loader"}, "loader is missing"),
        (lambda state: {key: value for key, value in state.items() if key != "spikes"}, "spikes is missing"),
        (lambda state: state | {"loader": {}}, "loader: it is empty"),
        (lambda state: state | {"loader": {"samples_taken": [-1]}}, r"loader.samples_taken\[0\] is -1; allowed: >= 0"),
        (lambda state: state | {"loader": {"round": 2}}, "it has round, but not both"),
        (lambda state: state | {"spikes": {"loss": ["x"], "global_norm": []}}, r"spikes.loss\[0\] is 'x'"),
        (lambda state: state | {"loss_scale": {"value": 0, "steps_without_overflow": 0}}, "loss_scale.value is 0;"),
        (lambda state: state | {"digests": {"data": 1}}, "digests.data is 1; allowed: text"),
        (lambda state: state | {"loaded": "x"}, "loaded is 'x'; allowed: 32 hex digits"),
    ],
)
def test_a_wrong_field_of_the_state_is_named(checkpoint, change, message):
    path = checkpoint / "state.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))

    with pytest.raises(CheckpointError, match=rf"state\.json cannot be (used|read): .*{message}"):
        SavedState.read(sign(checkpoint, "state.json"))


@pytest.mark.parametrize("made_by", [None, {"verb": "extract"}, {"other": 1}])
def test_the_state_of_a_checkpoint_that_a_verb_made(checkpoint, made_by):
    """It has no position in the data, so it needs no window of losses."""
    path = checkpoint / "state.json"
    state = json.loads(path.read_text()) | {"loader": None, "updates": 4, "made_by": made_by}
    path.write_text(json.dumps({key: value for key, value in state.items() if key not in ("spikes", "loss_scale")}))

    saved = SavedState.read(sign(checkpoint, "state.json"))

    assert (saved.step, saved.updates, saved.loader, saved.spikes, saved.loss_scale) == (4, 4, None, {}, None)
    assert saved.digests == state["digests"]
    assert saved.made_by == ((made_by or {}).get("verb") or "?")


def test_the_state_of_a_training_is_read_as_it_was_written(checkpoint):
    path = checkpoint / "state.json"
    state = json.loads(path.read_text())
    state |= {"loss_scale": {"value": 2.0**32, "steps_without_overflow": 7}, "loaded": "a" * 32}
    path.write_text(json.dumps(state))

    saved = SavedState.read(sign(checkpoint, "state.json"))

    assert saved.loader is not None
    assert saved.loaded == "a" * 32
    assert saved.spikes == state["spikes"]
    assert saved.loss_scale == state["loss_scale"]


@pytest.mark.parametrize("folder", ["experts", "routing", "tokenizer"])
def test_a_link_in_place_of_a_folder_in_a_checkpoint_is_refused(checkpoint, folder, tmp_path):
    (checkpoint / folder).rename(tmp_path / "elsewhere")
    (checkpoint / folder).symlink_to(tmp_path / "elsewhere")
    reader = CheckpointReader(checkpoint)
    name = next(name for name in reader.files if name.startswith(folder))

    for use in (reader.read, reader.verify, reader.require_size):
        with pytest.raises(CheckpointError, match=f"'{folder}' is a link"):
            use(name)
    with pytest.raises(CheckpointError, match="is a link"), CheckpointWriter(tmp_path / "out", 4) as writer:
        writer.take(name, reader)


def test_the_checkpoint_itself_may_be_a_link(checkpoint, tmp_path):
    (tmp_path / "link").symlink_to(checkpoint)

    reader = CheckpointReader(tmp_path / "link")

    assert {reader.verify(name).name for name in reader.files} == {Path(name).name for name in reader.files}


@pytest.mark.parametrize("content", [b"\xff\xfe4\n", b"", b"5\n", b"4\n" * 1_000_000])
def test_the_latest_step_is_derived_and_written_again(checkpoint, content):
    pointer = checkpoint.parents[1] / "latest_checkpointed_iteration.txt"
    pointer.write_bytes(content)

    finish_publishing(checkpoint.parent, pointer, 1)

    assert pointer.read_bytes() == b"4\n"


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("evaluation.json")], ids=["FIFO", "link"])
def test_the_latest_step_is_written_only_to_a_regular_file(checkpoint, make):
    pointer = checkpoint.parents[1] / "latest_checkpointed_iteration.txt"
    pointer.unlink()
    make(pointer)
    evaluation = pointer.with_name("evaluation.json").read_bytes()

    with pytest.raises(OSError, match=r"is in the way|is a link"):
        finish_publishing(checkpoint.parent, pointer, 1)

    assert pointer.with_name("evaluation.json").read_bytes() == evaluation


def test_a_vocabulary_cannot_write_outside_the_run_folder(tmp_path, capsys, monkeypatch):
    shutil.copytree(OLDER, tmp_path / "older")
    monkeypatch.chdir(tmp_path / "older")
    before = everything_in(tmp_path)
    vocabularies = "[{name: ../../x, vocab_size: 400, domains: [zh, en, code]}]"

    code = main(["tokenizer", "train", "--config", "run/config.yaml", "--domains.vocabularies", vocabularies])

    assert code == 1
    assert "domains.vocabularies[0].name: the vocabulary name is '../../x'; allowed:" in capsys.readouterr().err
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("name", ["../../x", "..", "", "a/b", "a\nb", "n" * 300])
def test_a_run_cannot_lie_outside_the_output_folder(name, capsys):
    assert main(["config", "--training.run_name", name]) == 1
    assert "training.run_name: the run name" in capsys.readouterr().err
