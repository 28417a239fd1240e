"""Shapes at which `python -m ascend_ops.bench` measures expert_adam."""

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import numpy as np

from ascend_ops.bench import limits, runs
from ascend_ops.bench.case import STEP, Case, Prepared, Work
from ascend_ops.bench.report import last_level_cache_bytes
from ascend_ops.expert_adam import coefficients, reference

MATRIX = (1024, 4096)
SMALL = (16, 256, 1024)
LARGEST = 48  # experts of MATRIX: 3 GiB of w, m, v and g
OPTIONS = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "gradient_scale": 1.0}


def cases(quick: bool) -> Iterator[Case]:
    """Yields 16 small experts, and large ones whose w, m, v and g exceed twice the last-level cache."""
    yield _case(SMALL)
    if not quick:
        bytes_per_expert = 4 * 4 * MATRIX[0] * MATRIX[1]
        needed = 2 * last_level_cache_bytes() // bytes_per_expert + 1
        yield _case((min(max(needed, 4), LARGEST), *MATRIX))


def _case(shape: tuple[int, ...]) -> Case:
    return Case(
        op="expert_adam",
        shape="E{} H{} F{}".format(*shape),
        limit="four arrays read and three written with hardly any arithmetic, all threads",
        work={STEP: Work(moved_bytes=7 * 4 * int(np.prod(shape)))},
        prepare=lambda: _prepare(shape),
        tolerance=1e-6,
    )


def _prepare(shape: tuple[int, ...]) -> Prepared:
    state = [np.empty(shape, np.float32) for _ in range(4)]
    moment2 = state[2]
    experts_U = np.arange(shape[0], dtype=np.int32)
    step_counts_U = np.ones(shape[0], np.int64)
    scalars = coefficients(step_counts_U, **OPTIONS)

    def fill() -> None:
        rng = np.random.default_rng(0)
        for array in state:
            rng.standard_normal(dtype=np.float32, out=array)
            array *= 0.05
        np.square(moment2, out=moment2)

    def bind(module: ModuleType) -> Callable[[], list[np.ndarray]]:
        def run() -> list[np.ndarray]:
            module.expert_adam(*state, experts_U, scalars)
            return state[:3]

        return run

    backends: dict[str, dict[str, Callable]] = {
        name: {STEP: bind(module)} for name, module in runs.implementations("expert_adam").items()
    }
    torch_run, restart = _torch(state)
    backends["torch"] = {STEP: torch_run} if torch_run else {}
    stream = limits.stream(moment2.size)
    backends["limit"] = {STEP: stream} if stream else {}

    def reset() -> None:
        fill()
        restart()

    def expected(direction: str) -> Sequence[np.ndarray]:
        fill()
        weight, moment1, moment2, gradient = state
        return reference.expert_adam(weight, moment1, moment2, gradient, experts_U, step_counts_U, **OPTIONS)

    return Prepared(runs.by_direction(backends), expected, reset)


def _torch(state: list[np.ndarray]) -> tuple[Callable | None, Callable[[], None]]:
    """Returns a step of torch's fused AdamW on the same memory, and a function that resets its step count."""
    torch = runs.torch_or_none()
    if torch is None:
        return None, lambda: None
    weight, moment1, moment2, gradient = (torch.from_numpy(array) for array in state)
    parameter = torch.nn.Parameter(weight)
    parameter.grad = gradient
    optimizer = torch.optim.AdamW(
        [parameter],
        lr=OPTIONS["learning_rate"],
        betas=(OPTIONS["beta1"], OPTIONS["beta2"]),
        eps=OPTIONS["eps"],
        weight_decay=OPTIONS["weight_decay"],
        fused=True,
    )
    step = torch.zeros(())
    optimizer.state[parameter] = {"step": step, "exp_avg": moment1, "exp_avg_sq": moment2}

    def run() -> list[np.ndarray]:
        optimizer.step()
        return state[:3]

    return run, step.zero_
