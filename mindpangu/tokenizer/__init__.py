"""Tokenizers: text ↔ token ids with sentencepiece. `training.py` makes a model, `sentencepiece_tokenizer.py` uses one;
`pangu_alpha.py` is what PanGu-α's own model needs around it.

Which control tokens open the parts of a document is not known here: see `mindpangu.data.formats`.
"""

from mindpangu.tokenizer.sentencepiece_tokenizer import END_OF_TEXT, PADDING, Tokenizer
from mindpangu.tokenizer.training import RESERVED_CONTROL_TOKENS, reserved_control_tokens, train_tokenizer

__all__ = [
    "END_OF_TEXT",
    "PADDING",
    "RESERVED_CONTROL_TOKENS",
    "Tokenizer",
    "reserved_control_tokens",
    "train_tokenizer",
]
