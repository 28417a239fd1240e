"""Decides whether a run may continue from a checkpoint, and whether anything is left to do."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mindpangu.checkpoint.directory import latest_iteration
from mindpangu.checkpoint.reader import CheckpointReader
from mindpangu.checkpoint.state import SavedState
from mindpangu.config import Config, keys_that_differ
from mindpangu.errors import CheckpointError, ConfigError
from mindpangu.routing import RoutingTable
from mindpangu.tokenizer import Tokenizer

# May differ between a run and its resumption: none of these changes the model or a bit of its training.
_FREE_SECTIONS = ("checkpoint", "monitor", "parallelism")
_FREE_KEYS = (
    "training.steps",
    "training.restarts",
    "training.recompute",
    "training.run_name",
    "training.output_dir",
    "experts.host_threads",
    "experts.overlap",
    "experts.staging",
    "experts.storage",
    "experts.storage_folder",
    "data.corpus",  # the digest of the token shards decides
    "data.tokenizer",
    "data.max_bad_records",
    "routing.table",
)
_SAVED_TOKENIZER = "tokenizer of embedding slot "  # vocabularies had this name when the format was fixed
_NOTES = {"lr_scheduler.decay_steps": " (it follows training.steps unless it is set)"}


def input_digests(data_digest: str, table: RoutingTable | None, tokenizers: Mapping[str, Tokenizer]) -> dict[str, str]:
    """Returns the hashes of everything that must not change during a run, by their names in state.json."""
    return {
        "data (token shards)": data_digest,
        "routing table": table.digest if table is not None else "none",
        **{f"{_SAVED_TOKENIZER}{name}": tokenizer.digest for name, tokenizer in tokenizers.items()},
    }


def refuse_differences(reader: CheckpointReader, config: Config, digests: Mapping[str, str]) -> None:
    """Raises CheckpointError, which lists all differences, unless the checkpoint matches this training."""
    changed = differences(reader, config, digests)
    if changed:
        raise CheckpointError(
            f"cannot resume {reader.folder}: {'; '.join(changed)}. Restore these, or start a new run from these "
            "weights with --load"
        )


def differences(reader: CheckpointReader, config: Config, digests: Mapping[str, str]) -> list[str]:
    """Describes every difference from the checkpoint that affects the training, one phrase each."""
    keys = _changed_keys(reader, config)
    changed = [f"{key} was {then!r}, is {now!r}{_NOTES.get(key, '')}" for key, (now, then) in keys.items()]
    saved = SavedState.read(reader).digests
    return changed + [
        f"the {name.replace(_SAVED_TOKENIZER, 'tokenizer of vocabulary ')} changed "
        f"(hash {saved.get(name)} then, {digests.get(name)} now)"
        for name in sorted({*saved, *digests})
        if saved.get(name) != digests.get(name)
    ]


def refuse_other_model(reader: CheckpointReader, config: Config) -> None:
    """Raises CheckpointError if `config` describes another model than the checkpoint's, because it would be ignored."""
    changed = {
        key: values for key, values in _changed_keys(reader, config).items() if key.startswith(("model.", "domains."))
    }
    if changed:
        listing = "; ".join(f"{key} is {then!r} there, {now!r} here" for key, (now, then) in changed.items())
        raise CheckpointError(f"{reader.folder} holds another model: {listing}. Leave these keys as they are there")


def refuse_settings(reader: CheckpointReader, config: Config) -> None:
    """Raises ConfigError if `config` differs from the checkpoint's: for commands that would ignore the difference.

    The name of the run may be the saved one, or that of the folder that the checkpoint lies in.
    """
    saved = keys_that_differ(_as_tree(config), _as_tree(reader.config()))
    local = keys_that_differ(_as_tree(config), _as_tree(reader.config(reader.local_settings())))
    changed = [key for key in saved if key in local and key != "training.output_dir"]
    if changed:
        keys = ", ".join(f"--{key}" for key in changed)
        raise ConfigError(f"this verb takes its configuration from {reader.folder}; leave out {keys}")


def is_finished(checkpoints: Path, config: Config, digests: Mapping[str, str], loaded: str | None) -> bool:
    """True if the newest checkpoint is the last step of exactly this training.

    Args:
        loaded: digest of the checkpoint whose weights the training starts from, if any.
    """
    if latest_iteration(checkpoints) is None:
        return False
    reader = CheckpointReader(checkpoints)
    return (
        reader.step == config.training.steps
        and SavedState.read(reader).loaded == loaded
        and not differences(reader, config, digests)
    )


def _changed_keys(reader: CheckpointReader, config: Config) -> dict[str, tuple[Any, Any]]:
    """Returns key → (value now, value then) for changed keys that affect the training."""
    return {
        key: values
        for key, values in keys_that_differ(_as_tree(config), _as_tree(reader.config())).items()
        if key not in _FREE_KEYS
        and key.split(".")[0] not in _FREE_SECTIONS
        # the other two modes give the same bits
        and not (key == "experts.mode" and "host_full" not in values)
    }


def _as_tree(config: Config) -> dict[str, Any]:
    return asdict(config)
