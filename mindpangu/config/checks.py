"""Rules that involve several keys: combinations that are impossible, and those that some features require."""

from mindpangu.config.schema import ARCHITECTURE, Config, ModelConfig
from mindpangu.errors import ConfigError
from mindpangu.untrusted import check_name

ONE_PROCESS = {f"parallelism.{kind}_parallel": "1" for kind in ("data", "tensor", "expert")}
"""Overrides that run a configuration in a single process, whatever parallelism the file asks for."""


def check(config: Config) -> None:
    """Checks combinations of keys in a resolved configuration. Raises ConfigError for the first impossible one."""
    model = config.model
    training = config.training
    data = config.data
    parallelism = config.parallelism
    local = training.local_batch_size
    data_parallel = parallelism.data_parallel
    rules = [
        (
            model.hidden_size % model.num_heads == 0,
            f"model.num_heads is {model.num_heads}, which does not divide model.hidden_size {model.hidden_size}",
        ),
        (
            model.position != "rope" or model.hidden_size // model.num_heads % 2 == 0,
            "model.position is rope, which rotates pairs of channels, but model.hidden_size / model.num_heads is "
            f"{model.hidden_size // model.num_heads}, an odd number",
        ),
        (
            model.shortcut_reduction <= model.hidden_size,
            f"model.shortcut_reduction is {model.shortcut_reduction}, more than model.hidden_size {model.hidden_size}, "
            "which leaves the bottleneck no channels",
        ),
        (
            model.rre_layers <= model.num_layers,
            f"model.rre_layers is {model.rre_layers}, more than model.num_layers {model.num_layers}",
        ),
        (
            training.global_batch_size % (local * data_parallel) == 0,
            f"training.global_batch_size is {training.global_batch_size}, not a multiple of training.local_batch_size "
            f"{local} × parallelism.data_parallel {data_parallel}",
        ),
        (
            data.schedule != "rotating" or local % data.domains_per_step == 0,
            f"data.domains_per_step is {data.domains_per_step}, which does not divide "
            f"training.local_batch_size {local}, as data.schedule rotating requires",
        ),
        (
            config.lr_scheduler.decay_steps > config.lr_scheduler.warmup_steps,
            f"lr_scheduler.decay_steps is {config.lr_scheduler.decay_steps}, not more than lr_scheduler.warmup_steps "
            f"{config.lr_scheduler.warmup_steps}; with training.steps {training.steps} lower the warm-up",
        ),
        (
            config.lr_scheduler.lr_end <= config.lr_scheduler.learning_rate,
            f"lr_scheduler.lr_end is {config.lr_scheduler.lr_end}, above lr_scheduler.learning_rate "
            f"{config.lr_scheduler.learning_rate}",
        ),
        (
            config.context.device_target != "CPU" or config.context.precision != "bf16",
            f"context.precision is {config.context.precision}; the CPU has no bf16 kernels. Use fp32 there, or fp16 "
            "to test tiny models (it is slow)",
        ),
        (
            len(config.optimizer.betas) == 2 and all(0 <= beta < 1 for beta in config.optimizer.betas),
            f"optimizer.betas is {config.optimizer.betas}; allowed: two numbers >= 0 and < 1",
        ),
        (
            data_parallel % parallelism.expert_parallel == 0,
            f"parallelism.expert_parallel is {parallelism.expert_parallel}, which does not divide "
            f"parallelism.data_parallel {data_parallel}: experts are shared by data-parallel ranks",
        ),
        (
            parallelism.expert_parallel == 1 or parallelism.expert_parallel % data.domain_groups == 0,
            f"data.domain_groups is {data.domain_groups}, which does not divide parallelism.expert_parallel "
            f"{parallelism.expert_parallel}: each group of domains is a sub-group of those ranks",
        ),
        (
            training.global_batch_size % (local * data.domain_groups) == 0,
            f"data.domain_groups is {data.domain_groups}, which does not divide the "
            f"{training.global_batch_size // local} micro-batches of a step (training.global_batch_size / "
            "training.local_batch_size)",
        ),
        (
            model.num_heads % parallelism.tensor_parallel == 0
            and model.ffn_hidden_size % parallelism.tensor_parallel == 0
            and model.hidden_size % parallelism.tensor_parallel == 0,
            f"parallelism.tensor_parallel is {parallelism.tensor_parallel}; it must divide model.num_heads "
            f"{model.num_heads}, model.hidden_size {model.hidden_size} and model.ffn_hidden_size "
            f"{model.ffn_hidden_size}",
        ),
    ]
    for holds, message in rules:
        if not holds:
            raise ConfigError(message)
    check_names(config)


def check_names(config: Config) -> None:
    """Checks every name that becomes part of a path in the run folder. Raises ConfigError for the first invalid one."""
    names = [("training.run_name", "run", config.training.run_name)]
    names += [(f"domains.added[{i}].name", "domain", added.name) for i, added in enumerate(config.domains.added)]
    for index, vocabulary in enumerate(config.domains.vocabularies):
        names.append((f"domains.vocabularies[{index}].name", "vocabulary", vocabulary.name))
    for key, kind, name in names:
        try:
            check_name(kind, name)
        except ValueError as error:
            raise ConfigError(f"{key}: {error}") from None


def require_pangu_alpha(config: Config, user: str) -> None:
    """Raises ConfigError unless the model has PanGu-α's architecture, the only one that `user` supports.

    `user` is the subject of the message, e.g. "an export".
    """
    pangu_alpha = ModelConfig()
    for key in ARCHITECTURE:
        value = getattr(config.model, key)
        supported = getattr(pangu_alpha, key)
        if value != supported:
            raise ConfigError(
                f"{user} supports PanGu-α's architecture only (model.{key} {supported}); this model has {value}"
            )


def require_one_process(config: Config, activity: str) -> None:
    """Raises ConfigError if a configuration asks for several processes.

    `activity` completes the message "… in one process", e.g. "rounds are trained".
    """
    ranks = config.parallelism.data_parallel * config.parallelism.tensor_parallel
    if ranks > 1:
        raise ConfigError(
            f"parallelism asks for {ranks} processes, but {activity} in one process; give --parallelism.data_parallel "
            "1 --parallelism.tensor_parallel 1 --parallelism.expert_parallel 1 (training.global_batch_size still "
            "applies)"
        )
