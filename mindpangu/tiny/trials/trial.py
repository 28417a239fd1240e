"""What a trial is, where it lies, and whether it is done. No MindSpore is loaded.

<folder>/prepared/           tokenizer and token shards, once for all trials
<folder>/<trial>/            a run folder: config.yaml, metrics.jsonl, log/ …
<folder>/<trial>/trial.log   what its process printed
<folder>/<trial>/trial.json  its measures, and what decided them; written last
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mindpangu.config import Config, check, keys_that_differ, require_one_process, to_yaml
from mindpangu.config.run_folder import RunFolder
from mindpangu.data import TokenShards
from mindpangu.data.prepare import prepare_shards, prepare_tokenizer
from mindpangu.errors import ConfigError
from mindpangu.files import link_folder, read_json_object, write_text_atomically
from mindpangu.stage import ResultFile

PREPARED = "prepared"
RESULT = "trial.json"
LOG = "trial.log"


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        config: of its run folder. inputs: what decides its measures. decode: whether decoding is measured, too.
        keep_checkpoint: False removes the checkpoint when everything is measured.
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
    def log(self) -> Path:
        return self.folder.root / LOG

    def is_done(self) -> bool:
        return self.result_file.is_current()

    def result(self) -> dict[str, Any]:
        """The measures of a trial that is done (`process.run_trial`)."""
        return read_json_object(self.result_file.path)

    def lay_out(self) -> None:
        """Makes the run folder: configuration, and links to tokenizer and token shards."""
        root = self.folder.root
        root.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self.folder.config, to_yaml(self.config))
        for name in ("tokenizer", "data"):
            if not (root / name).exists():
                link_folder(root.parent / PREPARED / name, root / name)


class Trials:
    """The trials of one folder.

    Args:
        folder: where all of them lie. base: the configuration that they vary; its corpus is prepared here.
        keep_checkpoints: see `Trial`.

    Raises:
        MindPanguError: a configuration of several processes, or a corpus that cannot be prepared.
    """

    def __init__(self, folder: Path, base: Config, keep_checkpoints: bool = False, log: Callable[[str], None] = print):
        require_one_process(base, "each of these trainings runs")
        self.folder, self._keep_checkpoints = folder, keep_checkpoints
        prepared = self._placed(PREPARED, base)
        prepare_tokenizer(prepared, log)
        prepare_shards(prepared, log)
        self._data = TokenShards.open(RunFolder.from_config(prepared).data).digest

    def add(self, name: str, config: Config, decode: bool = False) -> Trial:
        """A trial of this name. Raises ConfigError for an impossible configuration."""
        config = self._placed(name, config)
        check(config)
        inputs = {"config": what_decides(config), "data": self._data, "decode": decode}
        return Trial(config, inputs, decode, self._keep_checkpoints)

    def _placed(self, name: str, config: Config) -> Config:
        training = replace(config.training, output_dir=str(self.folder), run_name=name)
        return replace(config, training=training, checkpoint=replace(config.checkpoint, keep_last=1))


def what_decides(config: Config) -> dict[str, Any]:
    """The keys that decide a training. The corpus counts by its tokens, and where a run folder lies does not matter."""
    tree = asdict(config)
    del tree["checkpoint"], tree["data"]["corpus"], tree["data"]["tokenizer"]
    del tree["training"]["run_name"], tree["training"]["output_dir"]
    return tree


def require_same(folder: Path, name: str, settings: Mapping[str, Any]) -> ResultFile:
    """The file `name` of a folder, for a search with these settings, which perhaps has begun there.

    Raises:
        ConfigError: the folder is a file, or another search lies there; names the first setting that differs.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file; give the name of a folder")
    file = ResultFile(folder / name, settings)
    kept = read_json_object(file.path).get("inputs")
    differing = keys_that_differ(kept, file.inputs) if isinstance(kept, dict) else {}
    if differing:
        key, (theirs, ours) = next(iter(differing.items()))
        raise ConfigError(
            f"{folder} holds another search ({key} is {theirs}, now {ours}); give the same options to go on with it, "
            "or choose another --out"
        )
    return file
