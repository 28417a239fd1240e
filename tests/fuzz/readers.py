"""The readers of every kind of file that may come from elsewhere, each with a real file of its kind.

`read_forged` overwrites the real file in a sandbox with a forged one and reads it as mindpangu does. The readers also
do what a forger would do: they put the size and hash of a checkpoint's file into the manifest, and the digest of a
signed file into the file.
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
class Reader:
    """The reader of one kind of file.

    Attributes:
        file: path of a real file of this kind in the sandbox.
        form: what `mutations.mutate` may know about its content.
        use: reads the file in a sandbox and uses all of it.
        user_names_it: True if the path of the file comes from the user, who may name a link.
    """

    file: str
    form: str
    use: Callable[[Path], object]
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


def read_forged(reader: Reader, sandbox: Path, forged: bytes) -> str | None:
    """Reads a forged file. Returns the message with which it is refused, or None if it is accepted.

    Any exception other than a MindPanguError passes through, because it is a fault.
    """
    path = sandbox / reader.file
    real = path.read_bytes()
    try:
        path.write_bytes(forged)
        reader.use(sandbox)
    except MindPanguError as error:
        return str(error)
    finally:
        path.write_bytes(real)
    return None


def is_plain(path: Path) -> bool:
    """True for a regular file of ordinary size."""
    return path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 30


def sign(folder: Path, name: str) -> CheckpointReader:
    """Opens a checkpoint whose manifest has the current size and hash of one file, then restores the manifest.

    Links, FIFOs, and huge files have no such entry.
    """
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


def use_manifest(sandbox: Path) -> None:
    """Reads every file of a checkpoint and takes all of them over into another one, as `extract` does."""
    reader = CheckpointReader(sandbox / CHECKPOINT)
    for name in reader.files:
        reader.verify(name)
    with CheckpointWriter(sandbox / "out" / "extracted", reader.step) as writer:
        for name in reader.files:
            writer.take(name, reader)


def use_config(sandbox: Path) -> None:
    build_domains(sign(sandbox / CHECKPOINT, "config.yaml").config())


def use_records(sandbox: Path) -> None:
    """Reads a corpus and the same records as prompts."""
    config = load_config(None, {"domains.names": "[zh, en, code]"})
    path = sandbox / "corpus.jsonl"
    if not path.is_fifo():  # users may name one
        with contextlib.suppress(MindPanguError):
            read_prompts(path, "zh")
    config = replace(config, data=replace(config.data, corpus=[str(path)], max_bad_records=1_000_000))
    for _ in CorpusReader(config, build_domains(config)):
        pass


def use_dense(sandbox: Path) -> None:
    dense = DenseFiles(sign(sandbox / CHECKPOINT, "dense_00000_of_00001.safetensors"))
    for name in dense.shapes:
        dense.read(name)


def use_slices(sandbox: Path) -> None:
    """Reads a checkpoint whose dense files are those of two ranks."""
    dense = DenseFiles(sign(sandbox / SLICED, "dense_00001_of_00002.safetensors"))
    for name in dense.shapes:
        dense.read(name)


def use_expert(sandbox: Path) -> None:
    path = sandbox / EXPERT
    file = TensorFile(path)
    ExpertFile.decode(path, path.read_bytes())
    ExpertFile.from_metadata(path, file.metadata)
    for name in file.tensors:
        np.testing.assert_array_equal(b"".join(file.chunks(name)), file.read(name).tobytes())


def use_shards(sandbox: Path) -> None:
    shards = TokenShards.open(sandbox / "run" / "data")
    for name in shards.domain_names:
        shards.num_tokens(name, "train") + shards.text_bytes(name, "heldout") + shards.num_documents(name, "train")
        shards.tokens(name, "train").sum()


def use_stage(sandbox: Path) -> None:
    stage = Stage(sandbox / "run" / "data", json.loads((OLDER / "run/data/stage.json").read_text())["inputs"])
    stage.is_current()
    stage.has_other_inputs()


def use_pointer(sandbox: Path) -> None:
    run = sandbox / "run"
    finish_publishing(run / "checkpoint", run / "latest_checkpointed_iteration.txt", 1)
    assert (run / "latest_checkpointed_iteration.txt").read_text() == "4\n"


def use_tokenizer(sandbox: Path) -> None:
    tokenizer = Tokenizer.load(sandbox / "run" / "tokenizer" / "signs.model")
    tokenizer.decode(tokenizer.encode("a text 文"))


def use_release(sandbox: Path) -> None:
    file = MindSporeFile(sandbox / "release" / "model.ckpt")
    for name in file.names:
        file.read(name)


def use_strategy(sandbox: Path) -> None:
    for layout in read_strategy(sandbox / "strategy.ckpt").values():
        if layout.num_ranks == 8:  # as many as there are files, which is checked first
            with contextlib.suppress(ValueError):
                owners(layout)


def use_table(sandbox: Path) -> None:
    source = PanguAlphaSource(sandbox / "release", None)
    source.shape(WORD_EMBEDDING)
    source.read(WORD_EMBEDDING).sum()


def signed(kind: type[VerifiedFile], file: str) -> Callable[[Path], None]:
    """Returns a function that reads a file with a digest as it is, and then with the digest that its content needs."""

    def use(sandbox: Path) -> None:
        path = sandbox / file
        try:
            kind.load(path)
        except MindPanguError:
            if not is_plain(path):
                raise
            path.write_bytes(with_digest(kind, path.read_bytes()))
            kind.load(path)

    return use


def with_digest(kind: type[VerifiedFile], data: bytes) -> bytes:
    """Returns the file's data with the right digest, or unchanged if it is too damaged to have one."""
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


def use_report(sandbox: Path) -> None:
    from mindpangu.train.report import SavedEvaluation, _evaluation, _read

    _evaluation(_read(sandbox / "run" / "evaluation.json", SavedEvaluation))


def use_metrics(sandbox: Path) -> None:
    from mindpangu.train.metrics import read_metrics

    try:
        records = read_metrics(sandbox / "run" / "metrics.jsonl", log=lambda text: None)
    finally:
        for kept in (sandbox / "run").glob("metrics.jsonl.set_aside*"):
            kept.unlink()
    steps = [record["step"] for record in records]
    assert steps == sorted(set(steps))


READERS = {
    "manifest": Reader(f"{CHECKPOINT}/manifest.json", "json", use_manifest),
    "state": Reader(
        f"{CHECKPOINT}/state.json", "json", lambda box: SavedState.read(sign(box / CHECKPOINT, "state.json"))
    ),
    "config": Reader(f"{CHECKPOINT}/config.yaml", "bytes", use_config),
    "dense": Reader(f"{CHECKPOINT}/dense_00000_of_00001.safetensors", "safetensors", use_dense),
    "slices": Reader(f"{SLICED}/dense_00001_of_00002.safetensors", "safetensors", use_slices),
    "expert": Reader(EXPERT, "safetensors", use_expert),
    "routing": Reader(
        "run/routing/zh.safetensors", "safetensors", lambda box: RoutingTable.load(box / "run/routing", ["zh"])
    ),
    "index": Reader("run/data/index.json", "json", use_shards),
    "stage": Reader("run/data/stage.json", "json", use_stage),
    "pointer": Reader("run/latest_checkpointed_iteration.txt", "bytes", use_pointer),
    "corpus": Reader("corpus.jsonl", "bytes", use_records, user_names_it=True),
    "tokenizer": Reader("run/tokenizer/signs.model", "bytes", use_tokenizer),
    "metrics": Reader("run/metrics.jsonl", "bytes", use_metrics),
    "evaluation": Reader("run/evaluation.json", "json", use_report),
    "losses": Reader(
        "rounds_run/rounds/round_1_losses.safetensors",
        "safetensors",
        signed(BatchLosses, "rounds_run/rounds/round_1_losses.safetensors"),
    ),
    "sample": Reader(
        "rounds_run/rounds/round_2_sample.safetensors",
        "safetensors",
        signed(RoundSample, "rounds_run/rounds/round_2_sample.safetensors"),
    ),
    "counts": Reader("counts.safetensors", "safetensors", signed(PieceCounts, "counts.safetensors")),
    "trial": Reader("trial.json", "json", result(TrialResult, "trial.json")),
    "finetune": Reader("finetune.json", "json", result(SavedComparison, "finetune.json")),
    "points": Reader("points.json", "json", result(SavedPoints, "points.json")),
    "ckpt": Reader("release/model.ckpt", "bytes", use_release, user_names_it=True),
    "strategy": Reader("strategy.ckpt", "bytes", use_strategy, user_names_it=True),
    "table": Reader("release/word_embedding.npy", "bytes", use_table, user_names_it=True),
}
