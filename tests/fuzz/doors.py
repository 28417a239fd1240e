"""Every door through which a file comes in, with a real file of its kind.

`open_door` writes a forged file over the real one in a sandbox and opens it as mindpangu does. What a forger would do,
it does too: a file of a checkpoint gets its size and hash in the manifest, a signed file gets its digest.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save as encode_tensors

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter, ExpertFile, SavedState, finish_publishing
from mindpangu.checkpoint.dense import DenseFiles, dense_header
from mindpangu.checkpoint.manifest import encode_manifest
from mindpangu.checkpoint.tensor_file import TensorFile
from mindpangu.config import load_config
from mindpangu.data import CorpusReader, TokenShards
from mindpangu.domains import build_domains
from mindpangu.errors import MindPanguError
from mindpangu.generation.prompts import read_prompts
from mindpangu.lifecycle.finetune import SavedComparison
from mindpangu.lifecycle.pangu_alpha.mindspore_file import MindSporeFile, encode_tensor
from mindpangu.lifecycle.pangu_alpha.source import PanguAlphaSource
from mindpangu.lifecycle.pangu_alpha.strategy import owners, read_strategy
from mindpangu.lifecycle.pangu_alpha.weights import WORD_EMBEDDING
from mindpangu.parallel.sharding import TensorSlice
from mindpangu.routing import RoutingTable
from mindpangu.stage import ResultFile, Stage
from mindpangu.tiny.architecture.search import SavedPoints
from mindpangu.tiny.rounds.files import BatchLosses, RoundSample
from mindpangu.tiny.tokenizer.piece_counts import PieceCounts
from mindpangu.tiny.trials.trial import TrialResult
from mindpangu.tiny.verified_file import VerifiedFile
from mindpangu.tokenizer import Tokenizer

OLDER = Path(__file__).parents[1] / "fixtures" / "written_by_0_1_0"
CHECKPOINT = "run/checkpoint/iteration_00000004"
EXPERT = f"{CHECKPOINT}/experts/rre_00.zh.000.safetensors"
SLICED = "sliced/iteration_00000003"
# two layouts of eight ranks, as MindSpore writes them
STRATEGY = bytes.fromhex(
    "08001a2c0a186261636b626f6e652e6c617965726e6f726d2e67616d6d6112100a0408040802120208002800300238021a48"
    "0a296261636b626f6e652e626c6f636b732e302e617474656e74696f6e2e64656e7365312e776569676874121b0a04080408"
    "02120d080008ffffffffffffffffff01280030023802"
)
WEIGHT = "backbone.layernorm.gamma"


@dataclass(frozen=True)
class Door:
    """A kind of file from elsewhere.

    Attributes:
        file: path of a real one in the sandbox.
        form: what `mutations.mutate` may know of its content.
        enter: opens the file in a sandbox and uses all of it.
        user_names_it: True if the path of the file comes from the user, who may name a link.
    """

    file: str
    form: str
    enter: Callable[[Path], object]
    user_names_it: bool = False


def make_sandbox(folder: Path) -> None:
    """Fills a folder with a real file of every kind."""
    shutil.copytree(OLDER, folder, dirs_exist_ok=True)
    PieceCounts("0" * 32, "text", np.arange(5), np.arange(5), 10, 10).save(folder / "counts.safetensors")
    heldout = [{"domain": "zh", "loss": 1.5, "bits_per_byte": 0.5}]
    speeds = {"train_tokens_per_s": 9.0, "decode_tokens_per_s": None}
    answered = {
        "domains": [{"domain": "zh", "tokens": 3, "loss": 1.5}],
        "answers": [{"domain": "zh", "given": "a", "reference": "b", "answer": "c"}],
    }
    point = {"depth": 2, "width": 8, "ffn_width": 16, "num_heads": 2, "parameters": 999, "expansion": 2.0}
    results = {
        "trial.json": {"bits_per_byte": 0.5, "heldout": heldout, "final_loss": None, **speeds},
        "finetune.json": {"tuned": "0" * 32, "before": answered, "after": answered},
        "points.json": {"points": [point, point]},
    }
    for name, result in results.items():
        ResultFile(folder / name, {"seed": 0}).write(result)
    with CheckpointWriter(folder / "sliced", 3) as writer:
        rows = np.arange(24, dtype=np.float32).reshape(6, 4)
        for rank in range(2):
            held = TensorSlice.equal(rows.shape, 0, rank, 2)
            data = encode_tensors({"word_embedding": held.of(rows)}, dense_header({"word_embedding": held}))
            writer.write(f"dense_{rank:05d}_of_00002.safetensors", data)
    release = folder / "release"
    release.mkdir()
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensors = {WEIGHT: rows[0], "backbone.blocks.0.layernorm1.gamma": rows.astype(np.float16)}
    content = b"".join(bytes(piece) for name, values in tensors.items() for piece in encode_tensor(name, values))
    (release / "model.ckpt").write_bytes(content)
    (folder / "strategy.ckpt").write_bytes(STRATEGY)
    np.save(release / "word_embedding.npy", rows)


def open_door(door: Door, sandbox: Path, forged: bytes) -> str | None:
    """Opens a forged file. Returns the message with which it is refused, or None if it is accepted.

    Any other exception than a MindPanguError passes through: it is a fault.
    """
    path = sandbox / door.file
    real = path.read_bytes()
    try:
        path.write_bytes(forged)
        door.enter(sandbox)
    except MindPanguError as error:
        return str(error)
    finally:
        path.write_bytes(real)
    return None


def is_plain(path: Path) -> bool:
    """True for a regular file of ordinary size."""
    return path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 30


def sign(folder: Path, name: str) -> CheckpointReader:
    """Gives a file of a checkpoint its size and hash in the manifest, if it is one that has them."""
    if not is_plain(folder / name):
        return CheckpointReader(folder)
    path = folder / "manifest.json"
    real = path.read_bytes()
    manifest = json.loads(real)
    data = (folder / name).read_bytes()
    entry = {"bytes": len(data), "blake2b": hashlib.blake2b(data, digest_size=16).hexdigest()}
    try:
        path.write_bytes(encode_manifest(manifest["step"], manifest["files"] | {name: entry}))
        return CheckpointReader(folder)
    finally:
        path.write_bytes(real)


def enter_manifest(sandbox: Path) -> None:
    """Reads every file of a checkpoint, and takes all of them into another one, as `extract` does."""
    reader = CheckpointReader(sandbox / CHECKPOINT)
    for name in reader.files:
        reader.verify(name)
    with CheckpointWriter(sandbox / "out" / "extracted", reader.step) as writer:
        for name in reader.files:
            writer.take(name, reader)


def enter_config(sandbox: Path) -> None:
    build_domains(sign(sandbox / CHECKPOINT, "config.yaml").config())


def enter_records(sandbox: Path) -> None:
    """Reads a corpus and the same records as prompts."""
    config = load_config(None, {"domains.names": "[zh, en, code]"})
    path = sandbox / "corpus.jsonl"
    if not path.is_fifo():  # users may name one
        with contextlib.suppress(MindPanguError):
            read_prompts(path, "zh")
    config = replace(config, data=replace(config.data, corpus=[str(path)], max_bad_records=1_000_000))
    for _ in CorpusReader(config, build_domains(config)):
        pass


def enter_dense(sandbox: Path) -> None:
    dense = DenseFiles(sign(sandbox / CHECKPOINT, "dense_00000_of_00001.safetensors"))
    for name in dense.shapes:
        dense.read(name)


def enter_slices(sandbox: Path) -> None:
    """Reads a checkpoint whose dense files are those of two ranks."""
    dense = DenseFiles(sign(sandbox / SLICED, "dense_00001_of_00002.safetensors"))
    for name in dense.shapes:
        dense.read(name)


def enter_expert(sandbox: Path) -> None:
    path = sandbox / EXPERT
    file = TensorFile(path)
    ExpertFile.decode(path, path.read_bytes())
    ExpertFile.from_metadata(path, file.metadata)
    for name in file.tensors:
        np.testing.assert_array_equal(b"".join(file.chunks(name)), file.read(name).tobytes())


def enter_shards(sandbox: Path) -> None:
    shards = TokenShards.open(sandbox / "run" / "data")
    for name in shards.domain_names:
        shards.num_tokens(name, "train") + shards.text_bytes(name, "heldout") + shards.num_documents(name, "train")
        shards.tokens(name, "train").sum()


def enter_stage(sandbox: Path) -> None:
    stage = Stage(sandbox / "run" / "data", json.loads((OLDER / "run/data/stage.json").read_text())["inputs"])
    stage.is_current()
    stage.has_other_inputs()


def enter_pointer(sandbox: Path) -> None:
    run = sandbox / "run"
    finish_publishing(run / "checkpoint", run / "latest_checkpointed_iteration.txt", 1)
    assert (run / "latest_checkpointed_iteration.txt").read_text() == "4\n"


def enter_tokenizer(sandbox: Path) -> None:
    tokenizer = Tokenizer.load(sandbox / "run" / "tokenizer" / "signs.model")
    tokenizer.decode(tokenizer.encode("a text 文"))


def enter_release(sandbox: Path) -> None:
    file = MindSporeFile(sandbox / "release" / "model.ckpt")
    for name in file.names:
        file.read(name)


def enter_strategy(sandbox: Path) -> None:
    for layout in read_strategy(sandbox / "strategy.ckpt").values():
        if layout.num_ranks == 8:  # the number of files, which is compared first
            with contextlib.suppress(ValueError):
                owners(layout)


def enter_table(sandbox: Path) -> None:
    source = PanguAlphaSource(sandbox / "release", None)
    source.shape(WORD_EMBEDDING)
    source.read(WORD_EMBEDDING).sum()


def signed(kind: type[VerifiedFile], file: str) -> Callable[[Path], None]:
    """Returns a door that opens a file with a digest, as it is and with the digest that its content should have."""

    def enter(sandbox: Path) -> None:
        path = sandbox / file
        try:
            kind.load(path)
        except MindPanguError:
            if not is_plain(path):
                raise
            path.write_bytes(with_digest(kind, path.read_bytes()))
            kind.load(path)

    return enter


def with_digest(kind: type[VerifiedFile], data: bytes) -> bytes:
    """Returns the file with the right digest, if it is whole enough to have one."""
    from mindpangu.tensor_format import decode

    try:
        metadata, tensors = decode(data)
        content = json.loads(metadata["mindpangu"])
        content["digest"] = kind._digest(content["content"], tensors)
        return encode_tensors(tensors, {"mindpangu": json.dumps(content)})
    except (ValueError, KeyError, TypeError, RecursionError):
        return data


def result(record: type, file: str) -> Callable[[Path], object]:
    return lambda sandbox: ResultFile(sandbox / file, {}).read(record)


def enter_report(sandbox: Path) -> None:
    from mindpangu.train.report import _Evaluation, _evaluation, _read

    _evaluation(_read(sandbox / "run" / "evaluation.json", _Evaluation))


def enter_metrics(sandbox: Path) -> None:
    from mindpangu.train.metrics import read_metrics

    try:
        records = read_metrics(sandbox / "run" / "metrics.jsonl", log=lambda text: None)
    finally:
        for kept in (sandbox / "run").glob("metrics.jsonl.kept_aside*"):
            kept.unlink()
    steps = [record["step"] for record in records]
    assert steps == sorted(set(steps))


DOORS = {
    "manifest": Door(f"{CHECKPOINT}/manifest.json", "json", enter_manifest),
    "state": Door(
        f"{CHECKPOINT}/state.json", "json", lambda box: SavedState.read(sign(box / CHECKPOINT, "state.json"))
    ),
    "config": Door(f"{CHECKPOINT}/config.yaml", "bytes", enter_config),
    "dense": Door(f"{CHECKPOINT}/dense_00000_of_00001.safetensors", "safetensors", enter_dense),
    "slices": Door(f"{SLICED}/dense_00001_of_00002.safetensors", "safetensors", enter_slices),
    "expert": Door(EXPERT, "safetensors", enter_expert),
    "routing": Door(
        "run/routing/zh.safetensors", "safetensors", lambda box: RoutingTable.load(box / "run/routing", ["zh"])
    ),
    "index": Door("run/data/index.json", "json", enter_shards),
    "stage": Door("run/data/stage.json", "json", enter_stage),
    "pointer": Door("run/latest_checkpointed_iteration.txt", "bytes", enter_pointer),
    "corpus": Door("corpus.jsonl", "bytes", enter_records, user_names_it=True),
    "tokenizer": Door("run/tokenizer/signs.model", "bytes", enter_tokenizer),
    "metrics": Door("run/metrics.jsonl", "bytes", enter_metrics),
    "evaluation": Door("run/evaluation.json", "json", enter_report),
    "losses": Door(
        "rounds_run/rounds/round_1_losses.safetensors",
        "safetensors",
        signed(BatchLosses, "rounds_run/rounds/round_1_losses.safetensors"),
    ),
    "sample": Door(
        "rounds_run/rounds/round_2_sample.safetensors",
        "safetensors",
        signed(RoundSample, "rounds_run/rounds/round_2_sample.safetensors"),
    ),
    "counts": Door("counts.safetensors", "safetensors", signed(PieceCounts, "counts.safetensors")),
    "trial": Door("trial.json", "json", result(TrialResult, "trial.json")),
    "finetune": Door("finetune.json", "json", result(SavedComparison, "finetune.json")),
    "points": Door("points.json", "json", result(SavedPoints, "points.json")),
    "ckpt": Door("release/model.ckpt", "bytes", enter_release, user_names_it=True),
    "strategy": Door("strategy.ckpt", "bytes", enter_strategy, user_names_it=True),
    "table": Door("release/word_embedding.npy", "bytes", enter_table, user_names_it=True),
}
