"""Saves checkpoints while training continues, resumes from them, and loads their weights into new runs.

A training checkpoint holds the model (`language_model/files.py`) and state.json: optimizer step, position in the data,
spike window, and loss scale.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from types import TracebackType

from mindspore import Parameter

from mindpangu.checkpoint import (
    STATE_FILE,
    CheckpointReader,
    CheckpointWriter,
    SavedState,
    finish_publishing,
    refuse_differences,
)
from mindpangu.config import keys_that_differ
from mindpangu.config.run_folder import RunFolder
from mindpangu.data import LoaderState
from mindpangu.domains import build_domains
from mindpangu.errors import CheckpointError
from mindpangu.experts import StoreSnapshot
from mindpangu.files import encode_json
from mindpangu.language_model import DenseTensors, LanguageModel, SavedExperts, read_dense, read_experts, write_model
from mindpangu.model.vocabularies import Vocabularies
from mindpangu.parallel.sharding import TensorSlice
from mindpangu.routing import RoutingTable
from mindpangu.train.step import TrainStep


class Checkpointer:
    """Writes a run's checkpoints, one at a time, in a thread while training continues (`checkpoint.async_save`).

    Use it as a context manager around the training. On exit it waits for the last checkpoint; after a KeyboardInterrupt
    it abandons an unfinished one. It logs messages and raises errors in the caller's thread.

    Args:
        run: the run folder.
        train_step: the training to save.
        digests: see `take_snapshot`.
        loaded: see `take_snapshot`.
        previous: experts of the checkpoint that the run resumed from, if any.
        log: receives the messages.
    """

    def __init__(
        self,
        run: RunFolder,
        train_step: TrainStep,
        digests: Mapping[str, str],
        loaded: str | None,
        previous: SavedExperts | None,
        log: Callable[[str], None],
    ):
        self._run = run
        self._train_step = train_step
        self._digests = digests
        self._loaded = loaded
        self._previous = previous
        self._log = log
        self._job = train_step.processes.draw_shared_name()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpointer")
        self._pending: tuple[CheckpointWriter, Future[float]] | None = None

    def save(self, step: int, loader_state: LoaderState) -> None:
        """Saves the state after `step`, once the previous checkpoint is written.

        Raises:
            CheckpointError: the previous checkpoint or, without async_save, this one cannot be written.
        """
        waiting_for = None
        if self._pending is not None and not self._pending[1].done():
            waiting_for = self._pending[0].step
        started = time.perf_counter()
        self._finish()
        if waiting_for is not None:
            self._log(
                f"step {step} waited {time.perf_counter() - started:.1f} s for the checkpoint of step {waiting_for} "
                "before saving its own; a larger checkpoint.save_steps avoids this"
            )
        started = time.perf_counter()
        snapshot = take_snapshot(self._train_step, step, loader_state, self._digests, self._loaded)
        config = self._train_step.config
        processes = self._train_step.processes
        writer = CheckpointWriter(
            self._run.checkpoints, step, processes.rank, processes.mesh.size, config.parallelism.timeout, self._job
        )
        self._pending = writer, self._thread.submit(self._write, writer, snapshot, started)
        if not config.checkpoint.async_save:
            self._finish()

    def poll(self) -> None:
        """Logs that the pending checkpoint is saved once it is. Raises CheckpointError if it could not be written."""
        if self._pending is not None and self._pending[1].done():
            self._finish()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt) and self._pending is not None:
            self._pending[0].cancel()
        try:
            self._finish()
        except CheckpointError as failure:
            if error is None:
                raise
            self._log(str(failure))  # in addition to the error that ended the training
        finally:
            self._thread.shutdown()

    def _finish(self) -> None:
        """Waits for the pending checkpoint, if any; logs that it is saved or raises its error."""
        if self._pending is None:
            return
        writer, saving = self._pending
        self._pending = None
        self._train_step.processes.report_status(doing=f"writing the checkpoint of step {writer.step}")
        try:
            wait([saving])
        except KeyboardInterrupt:
            writer.cancel()
            raise
        seconds = saving.result()
        self._log(f"saved checkpoint of step {writer.step} in {seconds:.1f} s")

    def _write(self, writer: CheckpointWriter, snapshot: "TrainingSnapshot", started: float) -> float:
        """Runs in the thread; returns the seconds since `started`."""
        self._previous = write_checkpoint(self._run, writer, self._train_step.model, snapshot, self._previous)
        return time.perf_counter() - started


@dataclass(frozen=True)
class TrainingSnapshot:
    """The state of a training after one step; training may continue while it is written.

    Attributes:
        state: content of state.json.
        dense: copies of the dense parameters and moments that this rank writes.
        experts: the experts' state; an expert is copied only if it is updated before it is written.
    """

    state: bytes
    dense: DenseTensors
    experts: StoreSnapshot


def take_snapshot(
    train_step: TrainStep, step: int, loader_state: LoaderState, digests: Mapping[str, str], loaded: str | None
) -> TrainingSnapshot:
    """Takes a snapshot after `step`, once its updates are done.

    Args:
        digests: hashes of data, routing table, and tokenizers (`checkpoint.input_digests`); a resumed run must match.
        loaded: digest of the checkpoint whose weights the training started from, if any.
    """
    train_step.finish()
    state = {
        "step": step,
        "updates": train_step.updates,
        "loader": loader_state,
        "spikes": train_step.guard.state(),
        "loss_scale": train_step.loss_scale.state(),
        "digests": dict(digests),
        "loaded": loaded,
    }
    parameters, slices = _dense_state(train_step)
    written = {
        name: parameter.asnumpy().copy()  # on the CPU, asnumpy is a view of memory that the optimizer changes
        for name, parameter in parameters.items()
        if _writes(train_step, name)
    }
    dense = DenseTensors(written, slices)
    return TrainingSnapshot(encode_json(state), dense, StoreSnapshot(train_step.model.store))


def write_checkpoint(
    run: RunFolder,
    writer: CheckpointWriter,
    model: LanguageModel,
    snapshot: TrainingSnapshot,
    previous: SavedExperts | None,
) -> SavedExperts:
    """Writes a checkpoint, then removes the oldest ones; returns the experts that the next checkpoint may link.

    Raises:
        CheckpointError: it cannot be written. Earlier checkpoints stay complete.
    """
    try:
        with writer:
            write_model(writer, model, snapshot.dense, snapshot.experts, previous)
            if writer.rank == 0:
                writer.write(STATE_FILE, snapshot.state)
    finally:
        snapshot.experts.close()
    if writer.rank == 0:
        try:
            finish_publishing(run.checkpoints, run.latest, model.config.checkpoint.keep_last, writer.folder)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {writer.folder} is complete, but {run.latest.name} cannot be written or older checkpoints "
                f"cannot be removed: {error.strerror or error}; fix this, then continue with --resume"
            ) from None
    return SavedExperts(CheckpointReader(writer.folder), snapshot.experts.step_counts)


def resume_training(
    reader: CheckpointReader, train_step: TrainStep, digests: Mapping[str, str]
) -> tuple[int, LoaderState, str | None]:
    """Restores model, optimizer, experts, spike window, and loss scale.

    Returns:
        (last finished step, loader state, digest of the checkpoint that the training started from or None).

    Raises:
        CheckpointError: data, table, tokenizer, model, optimizer, or schedule differ; the message says which and how.
    """
    model = train_step.model
    refuse_differences(reader, model.config, digests)
    state = SavedState.read(reader)
    if state.loader is None:
        raise CheckpointError(
            f"{reader.folder} was made by `mindpangu {state.made_by}`, not by a training that could "
            "continue; start a new run from it with --load"
        )
    read_dense(reader, *_dense_state(train_step))
    read_experts(reader, model, with_adam=True)
    train_step.guard.load_state(state.spikes)
    if state.loss_scale is not None:
        train_step.loss_scale.load_state(state.loss_scale)
    train_step.updates = state.updates
    return state.step, state.loader, state.loaded


def load_weights(reader: CheckpointReader, model: LanguageModel) -> None:
    """Loads only the weights into a new run: no optimizer state, no position in the data.

    The model section must be the same, and each domain must have as many experts as in the checkpoint. The run may have
    fewer domains; a dense run may also have more.

    Raises:
        CheckpointError: another model, routing table, or tokenizer.
    """
    saved = reader.config()
    changed = keys_that_differ(asdict(model.config.model), asdict(saved.model), "model.")
    if changed:
        listing = "; ".join(f"{key} is {then!r} there, {now!r} here" for key, (now, then) in changed.items())
        raise CheckpointError(f"cannot load {reader.folder}: {listing}")
    _refuse_other_vocabulary(reader, model)
    if model.table is not None:
        for domain in model.domains:
            if _saved_table_digest(reader, domain.name) != model.table.domain_digest(domain.name):
                raise CheckpointError(
                    f"cannot load {reader.folder}: its routing table of domain {domain.name} is not this run's. "
                    f"Use its table and tokenizer: --routing.table {reader.folder}/routing "
                    f"--data.tokenizer {reader.folder}/tokenizer/main.model"
                )
    read_dense(reader, model.decoder.parameters, model.decoder.slices)
    read_experts(reader, model, with_adam=False)


def _refuse_other_vocabulary(reader: CheckpointReader, model: LanguageModel) -> None:
    """Refuses other vocabularies or tokenizers: a word embedding is meaningless without those it was trained with."""
    saved_config = reader.config()
    saved = Vocabularies.build(saved_config, build_domains(saved_config))
    if (saved.names, saved.sizes) != (model.vocabularies.names, model.vocabularies.sizes):
        raise CheckpointError(
            f"cannot load {reader.folder}: its vocabularies are {saved.names} of {saved.sizes} rows, this run's are "
            f"{model.vocabularies.names} of {model.vocabularies.sizes}"
        )
    vocabulary_of = {domain.name: domain.vocabulary for domain in build_domains(saved_config)}
    for domain in model.domains:
        if vocabulary_of.get(domain.name, domain.vocabulary) != domain.vocabulary:
            raise CheckpointError(
                f"cannot load {reader.folder}: domain {domain.name} is in vocabulary {vocabulary_of[domain.name]!r} "
                f"there, in {domain.vocabulary!r} here"
            )
    for vocabulary, tokenizer in model.tokenizers.items():
        if reader.read(f"tokenizer/{vocabulary}.model") != tokenizer.model_bytes:
            raise CheckpointError(
                f"cannot load {reader.folder}: its tokenizer is not this run's. Use it, and prepare the data with it: "
                f"--data.tokenizer {reader.folder}/tokenizer/{vocabulary}.model"
            )


def _saved_table_digest(reader: CheckpointReader, domain: str) -> str:
    reader.read(f"routing/{domain}.safetensors")
    return RoutingTable.load(reader.folder / "routing", [domain]).domain_digest(domain)


def _dense_state(train_step: TrainStep) -> tuple[dict[str, Parameter], dict[str, TensorSlice]]:
    """Returns the dense parameters and moments by their names in a file, and this rank's slice of each tensor."""
    optimizer = train_step.optimizer
    group = train_step.processes.dense
    parameters = dict(train_step.decoder.parameters)
    slices = dict(train_step.decoder.slices)
    for name, divided in optimizer.divided.items():
        for moment in (optimizer.moment1[name], optimizer.moment2[name]):
            parameters[moment.name] = moment
            slices[moment.name] = slices[name].rows(group.rank, group.size) if divided else slices[name]
    return parameters, slices


def _writes(train_step: TrainStep, name: str) -> bool:
    """True if this rank writes a dense parameter or moment, e.g. "adam_m.word_embedding"."""
    processes = train_step.processes
    divided = train_step.optimizer.divided
    is_moment = name not in divided
    parameter = name.split(".", 1)[1] if is_moment else name
    if train_step.decoder.slices[parameter].is_whole and processes.coordinates.tensor:
        return False  # the first rank of the tensor group writes the same values
    return processes.data == 0 or (is_moment and divided[parameter])
