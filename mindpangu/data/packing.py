"""Cuts samples from a stream of documents, and computes their positions and loss masks.

The documents of one domain are concatenated and cut at the sequence length S: sample i is tokens[i·S : i·S + S + 1].
Its first S tokens are inputs, and its last S are targets. Neighbouring samples share one token, so every token of the
stream except the first is a target exactly once. A tail that does not fill a sample is dropped.

**The loss-mask rule.** A target counts unless
 * it is padding, or
 * `eod_reset` is on and its input is `<eot>`: the target starts a new document, which that position cannot see.
PanGu-α's published code masks inputs equal to its padding id. That implements the second rule only because the code
uses one id (6) for both padding and end of document; its tokenizer's `<eot>` is another id (9). Here the ids differ,
and both rules are explicit.
"""

import numpy as np
import numpy.typing as npt


def num_samples(num_tokens: int, seq_length: int) -> int:
    """Returns the number of complete samples in a stream of tokens."""
    return max(0, (num_tokens - 1) // seq_length)


def sample_window(tokens: npt.NDArray, index: int, seq_length: int) -> npt.NDArray:
    """Returns sample `index` of a token stream, a view of S + 1 tokens; 0 <= index < num_samples(len(tokens), S)."""
    start = index * seq_length
    return tokens[start : start + seq_length + 1]


def loss_mask(
    inputs_BS: npt.NDArray[np.int32], targets_BS: npt.NDArray[np.int32], pad_id: int, eot_id: int, eod_reset: bool
) -> npt.NDArray[np.float32]:
    """Returns [B, S]: 1.0 where a target counts in the loss and 0.0 where it does not, by the rule above."""
    counts = targets_BS != pad_id
    if eod_reset:
        counts &= inputs_BS != eot_id
    return counts.astype(np.float32)


def positions(inputs_BS: npt.NDArray[np.int32], eot_id: int, eod_reset: bool) -> npt.NDArray[np.int32]:
    """Returns the position of every input, [B, S].

    Positions are 0 … S − 1. With `eod_reset` they restart at 0 after every `<eot>`, which still belongs to its
    document.
    """
    steps_S = np.arange(inputs_BS.shape[1], dtype=np.int32)
    if not eod_reset:
        return np.tile(steps_S, (inputs_BS.shape[0], 1))
    document_start_BS = np.zeros_like(inputs_BS, dtype=np.int32)
    np.multiply(inputs_BS[:, :-1] == eot_id, steps_S[1:], out=document_start_BS[:, 1:])
    np.maximum.accumulate(document_start_BS, axis=1, out=document_start_BS)
    return steps_S - document_start_BS
