"""Typed configuration from YAML.

`schema.py` declares every key, `core_yaml.py` reads YAML, `loader.py` turns it into a configuration, and `checks.py`
has the rules across keys.
"""

from mindpangu.config.checks import ONE_PROCESS, check, require_one_process, require_pangu_alpha
from mindpangu.config.loader import (
    describe_keys,
    find_file,
    is_saved_config,
    keys_that_differ,
    load_config,
    load_saved_config,
    refuse_renamed,
    resolve,
    to_result_inputs,
    to_yaml,
)
from mindpangu.config.schema import (
    ARCHITECTURE,
    CheckpointConfig,
    Config,
    ContextConfig,
    DataConfig,
    DomainsConfig,
    ExpertsConfig,
    LrSchedulerConfig,
    ModelConfig,
    MonitorConfig,
    OptimizerConfig,
    ParallelismConfig,
    RoutingConfig,
    TrainingConfig,
    VocabularyConfig,
)

__all__ = [
    "ARCHITECTURE",
    "ONE_PROCESS",
    "CheckpointConfig",
    "Config",
    "ContextConfig",
    "DataConfig",
    "DomainsConfig",
    "ExpertsConfig",
    "LrSchedulerConfig",
    "ModelConfig",
    "MonitorConfig",
    "OptimizerConfig",
    "ParallelismConfig",
    "RoutingConfig",
    "TrainingConfig",
    "VocabularyConfig",
    "check",
    "describe_keys",
    "find_file",
    "is_saved_config",
    "keys_that_differ",
    "load_config",
    "load_saved_config",
    "refuse_renamed",
    "require_one_process",
    "require_pangu_alpha",
    "resolve",
    "to_result_inputs",
    "to_yaml",
]
