"""NumPy reference of causal_attention, forward and backward: one head after the other."""

from collections.abc import Iterator, Sequence

import numpy as np


def causal_attention(
    query_TH: np.ndarray,
    key_TH: np.ndarray,
    value_TH: np.ndarray,
    first_keys_BS: np.ndarray,
    num_heads: int,
    rotation: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """See `ascend_ops.causal_attention`; takes any float dtype."""
    out_TH = np.empty_like(query_TH)
    for rows, columns, sequence in _heads(query_TH, first_keys_BS, num_heads):
        query, key = (_turned(x[rows, columns], sequence, rotation, 1) for x in (query_TH, key_TH))
        out_TH[rows, columns] = _weights(query, key, first_keys_BS[sequence]) @ value_TH[rows, columns]
    return out_TH


def causal_attention_backward(
    dout_TH: np.ndarray,
    query_TH: np.ndarray,
    key_TH: np.ndarray,
    value_TH: np.ndarray,
    first_keys_BS: np.ndarray,
    num_heads: int,
    rotation: Sequence[np.ndarray] = (),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the gradients with respect to (query_TH, key_TH, value_TH)."""
    dquery_TH, dkey_TH, dvalue_TH = (np.empty_like(x) for x in (query_TH, key_TH, value_TH))
    for rows, columns, sequence in _heads(query_TH, first_keys_BS, num_heads):
        query, key = (_turned(x[rows, columns], sequence, rotation, 1) for x in (query_TH, key_TH))
        dout = dout_TH[rows, columns]
        weights = _weights(query, key, first_keys_BS[sequence])
        dweights = dout @ value_TH[rows, columns].T
        dscores = weights * (dweights - (weights * dweights).sum(1, keepdims=True)) / np.sqrt(query.shape[1])
        dquery_TH[rows, columns] = _turned(dscores @ key, sequence, rotation, -1)
        dkey_TH[rows, columns] = _turned(dscores.T @ query, sequence, rotation, -1)
        dvalue_TH[rows, columns] = weights.T @ dout
    return dquery_TH, dkey_TH, dvalue_TH


def _heads(x_TH: np.ndarray, first_keys_BS: np.ndarray, num_heads: int) -> Iterator[tuple[slice, slice, int]]:
    """Yields (rows, columns, sequence) of each head."""
    batch, length = first_keys_BS.shape
    size = x_TH.shape[1] // num_heads
    for sequence in range(batch):
        for head in range(num_heads):
            yield (
                slice(sequence * length, (sequence + 1) * length),
                slice(head * size, (head + 1) * size),
                sequence,
            )


def _weights(query: np.ndarray, key: np.ndarray, first_keys_S: np.ndarray) -> np.ndarray:
    """Returns the softmax of the scores [S, S]."""
    index_S = np.arange(len(query))
    visible_SS = (index_S <= index_S[:, None]) & (index_S >= first_keys_S[:, None])
    scores_SS = np.where(visible_SS, query @ key.T / np.sqrt(query.shape[1]), -np.inf)
    exponentials_SS = np.exp(scores_SS - scores_SS.max(1, keepdims=True))
    return exponentials_SS / exponentials_SS.sum(1, keepdims=True)


def _turned(x_SK: np.ndarray, sequence: int, rotation: Sequence[np.ndarray], direction: int) -> np.ndarray:
    """Turns the rows of a head by the angles of their positions, times `direction`."""
    if not rotation:
        return x_SK
    positions_BS, cosine_CK, sine_CK = rotation
    angles = cosine_CK[positions_BS[sequence]] + direction * 1j * sine_CK[positions_BS[sequence]]
    half = x_SK.shape[1] // 2
    turned = (x_SK[:, :half] + 1j * x_SK[:, half:]) * angles
    return np.concatenate((turned.real, turned.imag), 1)
