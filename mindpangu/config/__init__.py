"""Typed configuration from YAML. `schema.py` declares every key, `loader.py` reads and checks."""

from mindpangu.config.loader import check, describe, keys_that_differ, load_config, resolve, to_yaml
from mindpangu.config.schema import (
    CheckpointConfig,
    Config,
    ContextConfig,
    DataConfig,
    DomainsConfig,
    EmbeddingSlotConfig,
    ExpertsConfig,
    LrSchedulerConfig,
    ModelConfig,
    MonitorConfig,
    OptimizerConfig,
    ParallelismConfig,
    RoutingConfig,
    TrainingConfig,
)

__all__ = [
    "CheckpointConfig",
    "Config",
    "ContextConfig",
    "DataConfig",
    "DomainsConfig",
    "EmbeddingSlotConfig",
    "ExpertsConfig",
    "LrSchedulerConfig",
    "ModelConfig",
    "MonitorConfig",
    "OptimizerConfig",
    "ParallelismConfig",
    "RoutingConfig",
    "TrainingConfig",
    "check",
    "describe",
    "keys_that_differ",
    "load_config",
    "resolve",
    "to_yaml",
]
