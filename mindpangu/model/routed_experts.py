"""The feed-forward network of an RRE block: each token goes to the expert assigned to (layer, domain, token id)."""

from mindspore import nn, ops

from ascend_ops.grouped_all_to_all import Group
from ascend_ops.grouped_ffn import grouped_ffn
from mindpangu.model.initialization import network_tensors
from mindpangu.model.layers import Init, activation_function
from mindpangu.model.token_dispatcher import make_token_dispatcher


class RoutedExperts(nn.Cell):
    """x + expert(h), top 1, no gate. Experts are inputs, never Parameters.

    Args:
        exchange: the ranks that share the experts; None if this rank holds all of them.
    """

    def __init__(self, init: Init, exchange: Group | None):
        super().__init__(auto_prefix=False)
        model = init.config.model
        self.tensor = init.tensor
        self.dispatcher = make_token_dispatcher(self.tensor, exchange)
        self.block_rows = init.config.experts.block_rows
        self.tensors = network_tensors(model)
        self.activation = activation_function(model)
        self.bias_index = self.tensors.index("down_bias") if model.biases else -1

    def construct(self, x_TH, h_TH, routing, slabs, order):
        """Returns (x_TH, invalid, order); for `routing`, `invalid` and `order` see `token_dispatcher`."""
        rows, counts_G, state, order = self.dispatcher.dispatch(h_TH, routing, order)
        slabs = self._padded_biases(slabs)
        rows = grouped_ffn(rows, counts_G, slabs, self.block_rows, self.tensors, self.activation)
        return self.dispatcher.combine(rows, state, x_TH, order)

    def _padded_biases(self, slabs):
        """Pads this rank's columns of the last bias with zeros in place of the columns of the other ranks of the tensor
        group, so that the sum over the ranks has each column once."""
        if self.tensor.size == 1 or self.bias_index < 0:
            return slabs
        padded = ()
        for i in range(len(slabs)):
            slab = slabs[i]
            if i % len(self.tensors) == self.bias_index:
                nothing = ops.zeros_like(slab)
                rank = self.tensor.rank
                size = self.tensor.size
                slab = ops.concat((nothing,) * rank + (slab,) + (nothing,) * (size - 1 - rank), 1)
            padded += (slab,)
        return padded
