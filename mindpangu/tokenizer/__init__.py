"""Tokenizers: text ↔ token ids with sentencepiece.

`training.py` trains a model, `sentencepiece_tokenizer.py` uses one, and `pangu_alpha.py` adds the word segmentation
that PanGu-α's model needs. `mindpangu.data.formats` decides which control tokens open the parts of a document.
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
