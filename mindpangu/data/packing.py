"""Samples out of a stream of documents, and what a model must know about them: positions and the loss mask.

The documents of one domain are concatenated and cut at the sequence length S: sample i is tokens[i·S : i·S + S + 1],
its first S tokens are inputs and its last S are targets. Neighbours share one token, so every token of the stream but
the first is a target exactly once; the tail that does not fill a sample is dropped.

**The loss-mask rule.** A target counts unless
 * it is padding, or
 * `eod_reset` is on and its input is `<eot>`: the target opens a new document, of which that position sees nothing.
PanGu-α's published code masks inputs equal to its padding id, and gets the second rule only because it uses one id (6)
for padding and end of document; its tokenizer's `<eot>` is another (9). Here the ids differ and both rules are
explicit.
"""

import numpy as np
import numpy.typing as npt


def num_samples(num_tokens: int, seq_length: int) -> int:
    """How many samples a stream of tokens holds."""
    return max(0, (num_tokens - 1) // seq_length)


def sample_window(tokens: npt.NDArray, index: int, seq_length: int) -> npt.NDArray:
    """Sample `index` of a token stream: a view of S + 1 tokens. 0 <= index < num_samples(len(tokens), S)."""
    start = index * seq_length
    return tokens[start : start + seq_length + 1]


def loss_mask(
    inputs_BS: npt.NDArray[np.int32], targets_BS: npt.NDArray[np.int32], pad_id: int, eot_id: int, eod_reset: bool
) -> npt.NDArray[np.float32]:
    """1.0 where a target counts and 0.0 where it does not (see the rule above), [B, S]."""
    counts = targets_BS != pad_id
    if eod_reset:
        counts &= inputs_BS != eot_id
    return counts.astype(np.float32)


def positions(inputs_BS: npt.NDArray[np.int32], eot_id: int, eod_reset: bool) -> npt.NDArray[np.int32]:
    """The position of every input, [B, S].

    0 … S − 1; with `eod_reset` they restart at 0 after every `<eot>`, which itself still belongs to its document.
    """
    steps_S = np.arange(inputs_BS.shape[1], dtype=np.int32)
    if not eod_reset:
        return np.tile(steps_S, (inputs_BS.shape[0], 1))
    document_start_BS = np.zeros_like(inputs_BS, dtype=np.int32)
    np.multiply(inputs_BS[:, :-1] == eot_id, steps_S[1:], out=document_start_BS[:, 1:])
    np.maximum.accumulate(document_start_BS, axis=1, out=document_start_BS)
    return steps_S - document_start_BS
