"""NumPy reference of grouped_ffn, forward and backward: a plain loop over the groups."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

SLOPE = float(np.float32(1.702))  # frameworks keep the constant in float32 for every dtype
TENSORS = ("up", "up_bias", "down", "down_bias")
_SLOPES = {"fast_gelu": SLOPE, "silu": 1.0}


def fast_gelu(u: np.ndarray) -> np.ndarray:
    """Computes u · sigmoid(1.702 u), PanGu-α's activation."""
    return activate("fast_gelu", u)


def activate(activation: str, u: np.ndarray) -> np.ndarray:
    """Computes u · sigmoid(s u), with 1.702 (fast_gelu) or 1 (silu) for s."""
    return u / (1 + np.exp(-_SLOPES[activation] * u))


def derivative(activation: str, u: np.ndarray) -> np.ndarray:
    """Computes the derivative of `activate`."""
    slope = _SLOPES[activation]
    sigmoid = 1 / (1 + np.exp(-slope * u))
    return sigmoid + slope * u * sigmoid * (1 - sigmoid)


def feed_forward(x: np.ndarray, expert: Mapping[str, np.ndarray], activation: str) -> np.ndarray:
    """Computes one expert's network; see `ascend_ops.grouped_ffn` for the formula."""
    return _hidden(x, expert, activation)[0] @ expert["down"] + expert.get("down_bias", 0)


def feed_forward_backward(
    dout: np.ndarray, x: np.ndarray, expert: Mapping[str, np.ndarray], activation: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns the gradients with respect to x and to each of the expert's tensors."""
    hidden, u, gate, inner = _hidden(x, expert, activation)
    dhidden = dout @ expert["down"].T
    gradients = {"down": hidden.T @ dout, "down_bias": dout.sum(0)}
    dinner = dhidden * u if "gate" in expert else dhidden
    if "scale" in expert:
        dsource = np.zeros_like(gate)
        gradients |= {"scale": np.zeros_like(expert["scale"]), "shift": np.zeros_like(expert["shift"])}
        for i, (scale, shift) in enumerate(zip(expert["scale"], expert["shift"], strict=True)):
            dterm = dinner * derivative(activation, gate * scale + shift)
            gradients["scale"][i] = (dterm * gate).sum(0)
            gradients["shift"][i] = dterm.sum(0)
            dsource += dterm * scale
    else:
        dsource = dinner * derivative(activation, gate)
    if "gate" in expert:
        gradients |= {"gate": x.T @ dsource, "gate_bias": dsource.sum(0)}
        du = dhidden * inner
        dx = dsource @ expert["gate"].T + du @ expert["up"].T
    else:
        du = dsource
        dx = du @ expert["up"].T
    gradients |= {"up": x.T @ du, "up_bias": du.sum(0)}
    return dx, {name: gradients[name] for name in expert}


def _hidden(x: np.ndarray, expert: Mapping[str, np.ndarray], activation: str) -> tuple[np.ndarray, ...]:
    """Returns the input of the last product, rows · up, and the input and output of the activation."""
    u = x @ expert["up"] + expert.get("up_bias", 0)
    gate = x @ expert["gate"] + expert.get("gate_bias", 0) if "gate" in expert else u
    if "scale" in expert:
        pairs = zip(expert["scale"], expert["shift"], strict=True)
        inner = sum((activate(activation, gate * scale + shift) for scale, shift in pairs), np.zeros_like(gate))
    else:
        inner = activate(activation, gate)
    return (inner * u if "gate" in expert else inner), u, gate, inner


def _groups(
    counts_G: np.ndarray, slabs: Sequence[np.ndarray], tensors: Sequence[str]
) -> Iterator[tuple[slice, int, int]]:
    """Yields (rows of the group, index of its slab's first tensor, expert inside the slab)."""
    num_experts = len(slabs[0])
    start = 0
    for group, count in enumerate(counts_G):
        slot, expert = divmod(group, num_experts)
        yield slice(start, start + count), len(tensors) * slot, expert
        start += count


def grouped_ffn(
    rows_TH: np.ndarray,
    counts_G: np.ndarray,
    slabs: Sequence[np.ndarray],
    tensors: Sequence[str] = TENSORS,
    activation: str = "fast_gelu",
) -> np.ndarray:
    """See `ascend_ops.grouped_ffn`; takes any float dtype."""
    out_TH = np.zeros_like(rows_TH)
    for rows, slab, index in _groups(counts_G, slabs, tensors):
        expert = {name: slabs[slab + i][index] for i, name in enumerate(tensors)}
        out_TH[rows] = feed_forward(rows_TH[rows], expert, activation)
    return out_TH


def grouped_ffn_backward(
    dout_TH: np.ndarray,
    rows_TH: np.ndarray,
    counts_G: np.ndarray,
    slabs: Sequence[np.ndarray],
    tensors: Sequence[str] = TENSORS,
    activation: str = "fast_gelu",
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns the gradients with respect to rows_TH and to each of the slabs' tensors."""
    drows_TH = np.zeros_like(rows_TH)
    dslabs = [np.zeros_like(tensor) for tensor in slabs]
    for rows, slab, index in _groups(counts_G, slabs, tensors):
        expert = {name: slabs[slab + i][index] for i, name in enumerate(tensors)}
        drows_TH[rows], gradients = feed_forward_backward(dout_TH[rows], rows_TH[rows], expert, activation)
        for i, name in enumerate(tensors):
            dslabs[slab + i][index] = gradients[name]
    return drows_TH, dslabs
