"""The exceptions of mindpangu, one for each kind of problem that a user can correct.

The command line prints the message of a `MindPanguError` without a traceback, so a message names the thing, the value
and the remedy. Any other exception is a bug in mindpangu.
"""


class MindPanguError(Exception):
    """Base class of all errors that are shown to the user as one message."""


class ConfigError(MindPanguError):
    """A configuration cannot be used: unknown key, wrong type, value out of range, impossible combination."""


class InUseError(MindPanguError):
    """Another process holds the lock of a file or folder."""


class StageError(MindPanguError):
    """The output of a stage of the main job cannot be written."""


class DataError(MindPanguError):
    """Text, records or token shards cannot be used."""


class TokenizerError(MindPanguError):
    """A tokenizer cannot be trained or loaded, or does not match the data."""


class RoutingError(MindPanguError):
    """A routing table cannot be built, or does not match the model or the tokens."""


class ExpertStoreError(MindPanguError):
    """Memory for the experts cannot be allocated."""


class ParallelError(MindPanguError):
    """The processes of a job do not match, or one of them failed."""


class CheckpointError(MindPanguError):
    """A checkpoint is missing, damaged, or does not belong to this run."""


class TrainingError(MindPanguError):
    """Training cannot start or continue."""


class GenerationError(MindPanguError):
    """Text cannot be generated as requested."""


class EvaluationError(MindPanguError):
    """A model cannot be evaluated as requested."""
