"""A trial: its run folder, its settings, and whether it is done. Does not load MindSpore.

<folder>/prepared/           tokenizer and token shards, shared by all trials
<folder>/<trial>/            a run folder: config.yaml, metrics.jsonl, log/ …
<folder>/<trial>/trial.log   output of its process
<folder>/<trial>/trial.json  its measures and the settings that determine them; written last
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mindpangu.config import Config, check, keys_that_differ, require_one_process, to_result_inputs, to_yaml
from mindpangu.config.run_folder import RunFolder
from mindpangu.data import TokenShards
from mindpangu.data.prepare import prepare_shards, prepare_tokenizer
from mindpangu.errors import ConfigError
from mindpangu.files import link_folder, read_json_object, write_text_atomically
from mindpangu.stage import ResultFile, refuse_other_results
from mindpangu.untrusted import DomainName

PREPARED = "prepared"
RESULT = "trial.json"
LOG = "trial.log"
RESULTS = "results.json"
"""The results of a search, next to the folders of its trials."""


@dataclass(frozen=True)
class HeldoutLoss:
    """The held-out loss of one domain, in nats per token and in bits per byte."""

    domain: DomainName
    loss: float
    bits_per_byte: float


@dataclass(frozen=True)
class TrialResult:
    """The measures of a trial (see `process.run_trial`)."""

    bits_per_byte: float
    heldout: list[HeldoutLoss]
    final_loss: float | None
    train_tokens_per_s: float
    decode_tokens_per_s: float | None


@dataclass(frozen=True)
class Trial:
    """One training and its measures.

    Attributes:
        config: configuration of its run folder.
        inputs: the settings that determine its measures.
        decode: whether to measure the decoding speed as well.
        keep_checkpoint: whether the checkpoint is kept after everything is measured.
    """

    config: Config
    inputs: Mapping[str, Any]
    decode: bool
    keep_checkpoint: bool

    @property
    def folder(self) -> RunFolder:
        return RunFolder.from_config(self.config)

    @property
    def name(self) -> str:
        return self.config.training.run_name

    @property
    def result_file(self) -> ResultFile:
        return ResultFile(self.folder.root / RESULT, self.inputs)

    @property
    def log_file(self) -> Path:
        return self.folder.root / LOG

    def is_done(self) -> bool:
        return self.result_file.is_current()

    def result(self) -> "TrialResult":
        """Returns the measures of a finished trial. Raises StageError if its file is damaged."""
        return self.result_file.read(TrialResult)

    def prepare_folder(self) -> None:
        """Creates the run folder with the configuration and links to the tokenizer and the token shards."""
        root = self.folder.root
        root.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self.folder.config, to_yaml(self.config))
        for name in ("tokenizer", "data"):
            if not (root / name).exists():
                link_folder(root.parent / PREPARED / name, root / name)


class Trials:
    """The trials of one search. Prepares tokenizer and token shards when created.

    Args:
        folder: folder of all trials.
        base: the configuration that the trials vary.
        keep_checkpoints: whether the trials' checkpoints are kept after everything is measured.

    Raises:
        MindPanguError: the configuration asks for several processes, or the corpus cannot be prepared.
    """

    def __init__(self, folder: Path, base: Config, keep_checkpoints: bool = False, log: Callable[[str], None] = print):
        require_one_process(base, "each of these trainings runs")
        self.folder = folder
        self._keep_checkpoints = keep_checkpoints
        prepared = self._in_folder(PREPARED, base)
        prepare_tokenizer(prepared, log)
        prepare_shards(prepared, log)
        self._data_digest = TokenShards.open(RunFolder.from_config(prepared).data).digest

    def add(self, name: str, config: Config, decode: bool = False) -> Trial:
        """Returns a trial with this name. Raises ConfigError for an impossible configuration."""
        config = self._in_folder(name, config)
        check(config)
        inputs = {"config": result_settings(config), "data": self._data_digest, "decode": decode}
        return Trial(config, inputs, decode, self._keep_checkpoints)

    def _in_folder(self, name: str, config: Config) -> Config:
        training = replace(config.training, output_dir=str(self.folder), run_name=name)
        return replace(config, training=training, checkpoint=replace(config.checkpoint, keep_last=1))


def result_settings(config: Config) -> dict[str, Any]:
    """Returns the settings that determine the result of a training, as nested dictionaries.

    Leaves out the paths: the corpus is compared by the digest of its tokens, and the run folder does not matter.
    """
    tree = to_result_inputs(config)
    del tree["checkpoint"]
    del tree["data"]["corpus"]
    del tree["data"]["tokenizer"]
    del tree["training"]["run_name"]
    del tree["training"]["output_dir"]
    return tree


def require_same_search(folder: Path, name: str, settings: Mapping[str, Any]) -> ResultFile:
    """Returns the file `name` of a search folder, checking that a search begun there has the same settings.

    Raises:
        ConfigError: the folder is a file, or holds a search with other settings. The message names the first
            difference.
        StageError: the folder has files with the names of the results that no search has written.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file; give the name of a folder")
    refuse_other_results(folder, name, ["inputs"], [RESULTS])
    file = ResultFile(folder / name, settings)
    saved = read_json_object(file.path).get("inputs")
    differing = keys_that_differ(saved, file.inputs) if isinstance(saved, dict) else {}
    if differing:
        key, (then, now) = next(iter(differing.items()))
        raise ConfigError(
            f"{folder} holds another search ({key} is {then}, now {now}); give the same options to continue it, "
            "or choose another --out"
        )
    return file
