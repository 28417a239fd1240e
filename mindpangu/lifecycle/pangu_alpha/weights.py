"""Names and layouts of the weights: PanGu-α's and ours.

The table below is complete. PanGu-α stores Q, K and V as [out, in] and other matrices as [in, out]; ours are all
[in, out]. `blocks` has num_layers − 1 ordinary layers; the query layer is separate. `backbone.layernorm` comes before
the query layer. PanGu-α's pipeline-parallel code has it after the query layer, as the last block: a different
model.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mindpangu.config import Config

WORD_EMBEDDING = "backbone.embedding.word_embedding.embedding_table"
POSITION_EMBEDDING = "backbone.embedding.position_embedding.embedding_table"
QUERY_EMBEDDING = "backbone.top_query_embedding.embedding_table"
QUERY_LAYER = "backbone.top_query_layer"

OLD_NAMES = {
    "backbone.word_embedding.embedding_table": WORD_EMBEDDING,
    "backbone.position_embedding.embedding_table": POSITION_EMBEDDING,
}
"""Name in the first release → name in later releases."""

SEPARATE_FILES = {
    WORD_EMBEDDING: "word_embedding.npy",
    POSITION_EMBEDDING: "position_embedding.npy",
    QUERY_EMBEDDING: "top_query_embedding.npy",
}
"""Tables that some releases store in separate files."""

# theirs, ours, sizes of our tensor's axes
_LAYER = (
    ("layernorm1.gamma", "attention_norm.gamma", "H"),
    ("layernorm1.beta", "attention_norm.beta", "H"),
    ("attention.dense1.weight", "attention.query.weight", "HH"),
    ("attention.dense1.bias", "attention.query.bias", "H"),
    ("attention.dense2.weight", "attention.key.weight", "HH"),
    ("attention.dense2.bias", "attention.key.bias", "H"),
    ("attention.dense3.weight", "attention.value.weight", "HH"),
    ("attention.dense3.bias", "attention.value.bias", "H"),
    ("attention.projection.weight", "attention.output.weight", "HH"),
    ("attention.projection.bias", "attention.output.bias", "H"),
    ("layernorm2.gamma", "ffn_norm.gamma", "H"),
    ("layernorm2.beta", "ffn_norm.beta", "H"),
    ("output.mapping.weight", "ffn.up.weight", "HF"),
    ("output.mapping.bias", "ffn.up.bias", "F"),
    ("output.projection.weight", "ffn.down.weight", "FH"),
    ("output.projection.bias", "ffn.down.bias", "H"),
)
_TRANSPOSED = tuple(f"attention.dense{i}.weight" for i in (1, 2, 3))

_TRAINING_PREFIXES = ("adam_m.", "adam_v.", "moment1.", "moment2.", "accu_grads.")
_TRAINING_NAMES = (
    "global_step",
    "epoch_num",
    "step_num",
    "learning_rate",
    "beta1_power",
    "beta2_power",
    "scale_sense",
    "loss_scale",
    "current_iterator_step",
    "last_overflow_iterator_step",
)


@dataclass(frozen=True)
class Weight:
    """One tensor of the model.

    Attributes:
        theirs: PanGu-α's name.
        ours: our name.
        shape: shape of our tensor.
        transposed: whether PanGu-α's tensor is the transpose.
    """

    theirs: str
    ours: str
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def their_shape(self) -> tuple[int, ...]:
        """Shape of PanGu-α's tensor."""
        return self.shape[::-1] if self.transposed else self.shape

    def swap(self, values: np.ndarray) -> np.ndarray:
        """Converts from PanGu-α's layout to ours, or back."""
        return values.T if self.transposed else values


def weights_of(config: Config) -> Iterator[Weight]:
    """Yields every weight of a dense model, in PanGu-α's order."""
    model = config.model
    sizes = {"V": model.vocab_size, "S": model.seq_length, "H": model.hidden_size, "F": model.ffn_hidden_size}

    def weight(theirs: str, ours: str, axes: str) -> Weight:
        return Weight(theirs, ours, tuple(sizes[axis] for axis in axes), theirs.endswith(_TRANSPOSED))

    yield weight(WORD_EMBEDDING, "word_embedding", "VH")
    yield weight(POSITION_EMBEDDING, "position_embedding", "SH")
    layers = [(f"backbone.blocks.{i}", f"blocks.{i}") for i in range(model.num_layers - 1)]
    for their_layer, our_layer in (*layers, (QUERY_LAYER, "query_layer")):
        for theirs, ours, axes in _LAYER:
            yield weight(f"{their_layer}.{theirs}", f"{our_layer}.{ours}", axes)
    yield weight("backbone.layernorm.gamma", "final_norm.gamma", "H")
    yield weight("backbone.layernorm.beta", "final_norm.beta", "H")
    yield weight(QUERY_EMBEDDING, "query_embedding", "SH")


def is_training_state(name: str) -> bool:
    """True if only training needs a tensor: Adam's moments, counters, the loss scale."""
    return name.startswith(_TRAINING_PREFIXES) or name in _TRAINING_NAMES
