"""What a training checkpoint holds beyond the model: optimizer state, position in the data, spikes, loss scale.

When and in which thread it is written is in `saver.py`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from mindspore import Parameter

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter, finish_publishing, refuse_differences
from mindpangu.config import keys_that_differ
from mindpangu.config.run_folder import RunFolder
from mindpangu.data import LoaderState
from mindpangu.domains import build_domains
from mindpangu.errors import CheckpointError
from mindpangu.experts import StoreSnapshot
from mindpangu.files import encode_json
from mindpangu.language_model import DenseTensors, LanguageModel, SavedExperts, read_dense, read_experts, write_model
from mindpangu.model.vocabularies import Vocabularies
from mindpangu.parallel.sharding import Part
from mindpangu.routing import RoutingTable
from mindpangu.train.step import TrainStep

STATE_FILE = "state.json"


@dataclass(frozen=True)
class TrainingSnapshot:
    """A training after one step, which may go on while this is written.

    Attributes:
        state: content of state.json. dense: copies of the dense parameters and moments that this rank is to write.
            experts: copied only where an update comes before they are written.
    """

    state: bytes
    dense: DenseTensors
    experts: StoreSnapshot


def take_snapshot(
    train_step: TrainStep, step: int, loader_state: LoaderState, digests: Mapping[str, str], loaded: str | None
) -> TrainingSnapshot:
    """The training after `step`, whose last update is waited for.

    Args:
        digests: of data, table and tokenizers (`checkpoint.input_digests`); a resumed run must have the same.
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
    parameters, parts = _dense_state(train_step)
    written = {
        name: parameter.asnumpy().copy()  # on the CPU asnumpy is a view of what the optimizer changes
        for name, parameter in parameters.items()
        if _writes(train_step, name)
    }
    dense = DenseTensors(written, parts)
    return TrainingSnapshot(encode_json(state), dense, StoreSnapshot(train_step.model.store))


def write_training(
    run: RunFolder,
    writer: CheckpointWriter,
    model: LanguageModel,
    snapshot: TrainingSnapshot,
    previous: SavedExperts | None,
) -> SavedExperts:
    """Writes a checkpoint, then removes the oldest ones; returns what the next checkpoint may link.

    Raises:
        CheckpointError: it cannot be written. Earlier checkpoints are whole.
    """
    try:
        with writer:
            write_model(writer, model, snapshot.dense, snapshot.experts, previous)
            if writer.rank == 0:
                writer.write(STATE_FILE, snapshot.state)
    finally:
        snapshot.experts.close()
    if writer.rank > 0:
        return SavedExperts(CheckpointReader(writer.folder), snapshot.experts.step_counts)
    try:
        finish_publishing(run.checkpoints, run.latest, model.config.checkpoint.keep_last)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {writer.folder} is complete, but {run.latest.name} cannot be written or older checkpoints "
            f"cannot be removed: {error.strerror or error}; see to this, then go on with --resume"
        ) from None
    return SavedExperts(CheckpointReader(writer.folder), snapshot.experts.step_counts)


def resume_training(
    reader: CheckpointReader, train_step: TrainStep, digests: Mapping[str, str]
) -> tuple[int, LoaderState, str | None]:
    """Restores model, optimizer, experts, spike window and loss scale.

    Returns:
        (last finished step, loader state, digest of the checkpoint that the training once started from).

    Raises:
        CheckpointError: data, table, tokenizer, model, optimizer or schedule differ; the message says which and how.
    """
    model = train_step.model
    refuse_differences(reader, model.config, digests)
    state = reader.json(STATE_FILE)
    if state["loader"] is None:
        raise CheckpointError(
            f"{reader.folder} was made by `mindpangu {state['made_by']['verb']}`, not by a training that could go on; "
            "start a new one from it with --load"
        )
    read_dense(reader, *_dense_state(train_step))
    read_experts(reader, model, with_adam=True)
    train_step.guard.load_state(state["spikes"])
    if "loss_scale" in state:  # fp32 checkpoints of earlier versions have none
        train_step.loss_scale.load_state(state["loss_scale"])
    train_step.updates = state["updates"]
    return state["step"], state["loader"], state["loaded"]


def load_weights(reader: CheckpointReader, model: LanguageModel) -> None:
    """Weights alone, for a new run: no optimizer state, no position in the data.

    The run may have fewer domains than the checkpoint, and a dense one more, but the same model section, and each
    domain as many experts.

    Raises:
        CheckpointError: the model's shape, routing table or tokenizer is another one.
    """
    theirs = reader.config()
    changed = keys_that_differ(asdict(model.config.model), asdict(theirs.model), "model.")
    if changed:
        listing = "; ".join(f"{key} is {then!r} there, {now!r} here" for key, (now, then) in changed.items())
        raise CheckpointError(f"cannot load {reader.folder}: {listing}")
    _refuse_other_vocabulary(reader, model)
    if model.table is not None:
        for domain in model.domains:
            if _saved_table_digest(reader, domain.name) != model.table.domain_digest(domain.name):
                raise CheckpointError(
                    f"cannot load {reader.folder}: its routing table of domain {domain.name} is not this run's. "
                    f"Take its table and tokenizer: --routing.table {reader.folder}/routing "
                    f"--data.tokenizer {reader.folder}/tokenizer/main.model"
                )
    read_dense(reader, model.decoder.parameters, model.decoder.parts)
    read_experts(reader, model, with_adam=False)


def _refuse_other_vocabulary(reader: CheckpointReader, model: LanguageModel) -> None:
    """A word embedding means something only with the tokenizer and the rows that it was trained with."""
    theirs = reader.config()
    saved = Vocabularies.build(theirs, build_domains(theirs))
    if (saved.names, saved.sizes) != (model.vocabularies.names, model.vocabularies.sizes):
        raise CheckpointError(
            f"cannot load {reader.folder}: its vocabularies are {saved.names} of {saved.sizes} rows, this run's are "
            f"{model.vocabularies.names} of {model.vocabularies.sizes}"
        )
    vocabulary_of = {domain.name: domain.vocabulary for domain in build_domains(theirs)}
    for domain in model.domains:
        if vocabulary_of.get(domain.name, domain.vocabulary) != domain.vocabulary:
            raise CheckpointError(
                f"cannot load {reader.folder}: domain {domain.name} is in vocabulary {vocabulary_of[domain.name]!r} "
                f"there, in {domain.vocabulary!r} here"
            )
    for vocabulary, tokenizer in model.tokenizers.items():
        if reader.read(f"tokenizer/{vocabulary}.model") != tokenizer.model_bytes:
            raise CheckpointError(
                f"cannot load {reader.folder}: its tokenizer is not this run's. Take it over and prepare the data with "
                f"it: --data.tokenizer {reader.folder}/tokenizer/{vocabulary}.model"
            )


def _saved_table_digest(reader: CheckpointReader, domain: str) -> str:
    reader.read(f"routing/{domain}.safetensors")
    return RoutingTable.load(reader.folder / "routing", [domain]).domain_digest(domain)


def _dense_state(train_step: TrainStep) -> tuple[dict[str, Parameter], dict[str, Part]]:
    """Dense parameters and their moments by their names in a file, and which parts of the tensors this rank has."""
    optimizer, group = train_step.optimizer, train_step.processes.dense
    parameters, parts = dict(train_step.decoder.parameters), dict(train_step.decoder.parts)
    for name, divided in optimizer.divided.items():
        for moment in (optimizer.moment1[name], optimizer.moment2[name]):
            parameters[moment.name] = moment
            parts[moment.name] = parts[name].rows(group.rank, group.size) if divided else parts[name]
    return parameters, parts


def _writes(train_step: TrainStep, name: str) -> bool:
    """Whether this rank is the one that writes a dense parameter or a moment ("adam_m.word_embedding")."""
    processes, divided = train_step.processes, train_step.optimizer.divided
    is_moment = name not in divided
    parameter = name.split(".", 1)[1] if is_moment else name
    if train_step.decoder.parts[parameter].is_whole and processes.coordinates.tensor:
        return False  # the first rank of the tensor group has the same
    return processes.data == 0 or (is_moment and divided[parameter])
