"""Shapes at which `python -m ascend_ops.bench` measures dense_adam."""

from collections.abc import Callable, Iterator
from types import ModuleType

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor

from ascend_ops.bench import limits, runs
from ascend_ops.bench.case import STEP, Case, Prepared, Work
from ascend_ops.dense_adam import reference, update_scalars
from ascend_ops.waiting import wait_for

OPTIONS = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "gradient_scale": 1.0}

# layers of a dense model, hidden size
SHAPES = ((4, 256), (4, 512), (24, 512))


def cases(quick: bool) -> Iterator[Case]:
    """Yields the matrices and vectors of dense models."""
    for shape in SHAPES[:1] if quick else SHAPES:
        yield _case(*shape)


def parameter_shapes(layers: int, hidden: int) -> list[tuple[int, ...]]:
    """Returns the shapes of the parameters of a model with a vocabulary of 8,000."""
    layer: list[tuple[int, ...]] = [*[(hidden, hidden)] * 4, (hidden, 4 * hidden), (4 * hidden, hidden)]
    layer += [(hidden,)] * 9 + [(4 * hidden,)]
    table: tuple[int, ...] = (8000, hidden)
    return [table, *layer * layers]


def _case(layers: int, hidden: int) -> Case:
    size = sum(int(np.prod(shape)) for shape in parameter_shapes(layers, hidden))
    return Case(
        op="dense_adam",
        shape=f"L{layers} H{hidden}",
        limit="four arrays read and three written with hardly any arithmetic, all threads",
        work={STEP: Work(moved_bytes=7 * 4 * size)},
        prepare=lambda: _prepare(parameter_shapes(layers, hidden)),
        tolerance=1e-6,
    )


def _prepare(shapes: list[tuple[int, ...]]) -> Prepared:
    rng = np.random.default_rng(0)
    arrays = [[np.float32(0.05) * rng.standard_normal(shape, np.float32) for shape in shapes] for _ in range(4)]
    arrays[2] = [array**2 for array in arrays[2]]
    state = [
        ParameterTuple([Parameter(Tensor(array), name=f"{kind}.{i}") for i, array in enumerate(group)])
        for kind, group in zip("wmv", arrays[:3], strict=True)
    ]
    gradients = [Tensor(array) for array in arrays[3]]
    decays = tuple(len(shape) > 1 for shape in shapes)
    scalars = Tensor(update_scalars(1, **OPTIONS))

    def bind(module: ModuleType) -> Callable[[], list[Tensor]]:
        @ms.jit
        def update(scalars, *gradients):
            return module.dense_adam(*state, gradients, decays, scalars)

        def run() -> list[Tensor]:
            wait_for(update(scalars, *gradients))
            return [parameter for group in state for parameter in group]

        return run

    def reset() -> None:
        for group, originals in zip(state, arrays, strict=False):
            for parameter, array in zip(group, originals, strict=True):
                parameter.set_data(Tensor(array))

    def expected(direction: str) -> list[np.ndarray]:
        weights, moments1, moments2, gradients = arrays
        updated = reference.dense_adam(weights, moments1, moments2, gradients, decays, 1, OPTIONS)
        return [each[kind] for kind in range(3) for each in updated]

    backends: dict[str, dict[str, Callable]] = {
        name: {STEP: bind(module)} for name, module in runs.implementations("dense_adam").items()
    }
    torch_run = _torch(arrays, decays)
    backends["torch"] = {STEP: torch_run} if torch_run else {}
    stream = limits.stream(sum(array.size for array in arrays[0]))
    backends["limit"] = {STEP: stream} if stream else {}
    return Prepared(runs.by_direction(backends), expected, reset)


def _torch(arrays: list[list[np.ndarray]], decays: tuple[bool, ...]) -> Callable | None:
    """Returns a step of torch's fused AdamW on copies of the arrays; only its first step is compared."""
    torch = runs.torch_or_none()
    if torch is None:
        return None
    groups: dict[bool, list] = {True: [], False: []}
    parameters = []
    for weight, gradient, decay in zip(arrays[0], arrays[3], decays, strict=True):
        parameter = torch.nn.Parameter(torch.from_numpy(weight.copy()))
        parameter.grad = torch.from_numpy(gradient)
        groups[decay].append(parameter)
        parameters.append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": some, "weight_decay": OPTIONS["weight_decay"] * decay} for decay, some in groups.items()],
        lr=OPTIONS["learning_rate"],
        betas=(OPTIONS["beta1"], OPTIONS["beta2"]),
        eps=OPTIONS["eps"],
        fused=True,
    )
    moments = []
    for kind, name in ((1, "exp_avg"), (2, "exp_avg_sq")):
        for parameter, array in zip(parameters, arrays[kind], strict=True):
            optimizer.state[parameter].setdefault("step", torch.zeros(()))
            optimizer.state[parameter][name] = torch.from_numpy(array.copy())
            moments.append(optimizer.state[parameter][name])

    def run() -> list[np.ndarray]:
        optimizer.step()
        return [each.detach().numpy() for each in (*parameters, *moments)]

    return run
