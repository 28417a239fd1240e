"""The exceptions of mindpangu. Each stands for one kind of mistake that a user can mend.

The command line prints the message of a `MindPanguError` without a traceback, so a message
names the thing, the value and the remedy. Everything else that is raised is a defect of ours.
"""


class MindPanguError(Exception):
    """Base of all errors that are shown to the user as one message."""


class ConfigError(MindPanguError):
    """A configuration that cannot be used: unknown key, wrong type, out of range, impossible combination."""


class StageError(MindPanguError):
    """A stage of the main job whose output cannot be written."""


class DataError(MindPanguError):
    """Text, records or token shards that cannot be used."""


class TokenizerError(MindPanguError):
    """A tokenizer that cannot be trained or loaded, or that does not fit the data."""


class RoutingError(MindPanguError):
    """A routing table that cannot be built, or that does not fit the model or the tokens."""


class ExpertStoreError(MindPanguError):
    """Host memory for the experts that cannot be had."""


class ParallelError(MindPanguError):
    """Processes that do not fit together, or of which one is lost."""


class CheckpointError(MindPanguError):
    """A checkpoint that is missing, damaged, or not of this run."""


class TrainingError(MindPanguError):
    """Training that cannot start or go on."""


class GenerationError(MindPanguError):
    """Text that cannot be generated as asked."""
