"""The feed-forward network of an RRE block: each token goes to the expert that (layer, domain, token id) names.

With experts on several ranks, rows go to the rank of their expert and come back; the host has planned how many. The
ranks of a tensor group have the same samples: each exchanges its columns of the rows, and they are joined where the
experts are, so the network between the nodes carries every number once (PanGu-Σ). There each rank multiplies by its
part of the experts, and what the parts add up to goes back, again in columns.
"""

import mindspore as ms
from mindspore import nn, ops

from ascend_ops.grouped_all_to_all import dispatch_all_to_all, grouped_all_to_all
from ascend_ops.grouped_ffn import grouped_ffn
from ascend_ops.rre_combine import rre_combine
from ascend_ops.rre_dispatch import rre_dispatch
from ascend_ops.rre_regroup import rre_regroup
from mindpangu.model.initialization import network_tensors
from mindpangu.model.layers import Init, activation_function


class RoutedExperts(nn.Cell):
    """x + expert(h), top 1, no gate. Experts are inputs, never Parameters."""

    def __init__(self, init: Init, exchange):
        super().__init__(auto_prefix=False)
        model = init.config.model
        self.tensor, self.exchange, self.block_rows = init.tensor, exchange, init.config.experts.block_rows
        self.tensors, self.activation = network_tensors(model), activation_function(model)
        self.bias_place = self.tensors.index("down_bias") if model.biases else -1

    def construct(self, x_TH, h_TH, tokens_T, slot_ids_T, table_DV, slabs):
        """Experts of this rank alone. Returns (x_TH, int32 [1]: ids outside the table; see `rre_dispatch`)."""
        num_experts = slabs[0].shape[0]
        rows_TH, counts_G, positions_T, invalid = rre_dispatch(
            self.tensor.copy_to(h_TH), tokens_T, slot_ids_T, table_DV, num_experts
        )
        rows_TH = self.tensor.reduce_from(self._networks(rows_TH, counts_G, slabs))
        return rre_combine(rows_TH, positions_T, x_TH), invalid

    def exchanged(self, x_TH, h_TH, tokens_T, slot_ids_T, table_DV, slabs, counts, capacity, order):
        """Experts of all ranks of the exchange group.

        Args:
            counts: int32 [R] rows sent to each rank, int32 [R] received from each, int32 [R, G] received of each
                (slot, expert of this rank).
            capacity: rows that may arrive, a Python int.
            order: what the exchange before returned.

        Returns:
            x_TH, invalid, order.
        """
        send_R, receive_R, arriving_RG = counts
        num_experts = slabs[0].shape[0] * self.exchange.size
        rows_CH, _, positions_T, invalid, order = dispatch_all_to_all(
            self.tensor.scatter_to(h_TH), tokens_T, slot_ids_T, table_DV, num_experts, send_R, receive_R, capacity,
            self.exchange, order,
        )  # fmt: skip
        rows_CH = self.tensor.all_gather_last_dim(rre_regroup(rows_CH, arriving_RG))
        counts_G = ops.cast(arriving_RG.sum(0), ms.int32)
        rows_CH = self._networks(rows_CH, counts_G, slabs)
        rows_CH = rre_regroup(self.tensor.reduce_scatter_last_dim(rows_CH), ops.transpose(arriving_RG, (1, 0)))
        rows_TH, order = grouped_all_to_all(rows_CH, receive_R, send_R, x_TH.shape[0], self.exchange, order)
        x_TH = self.tensor.gather_from(rre_combine(rows_TH, positions_T, self.tensor.scatter_to(x_TH)))
        return x_TH, invalid, order

    def _networks(self, rows_TH, counts_G, slabs):
        slabs = self._whole_biases(slabs)
        return grouped_ffn(rows_TH, counts_G, slabs, self.block_rows, self.tensors, self.activation)

    def _whole_biases(self, slabs):
        """Of the bias behind the second product each rank of a tensor group has columns; zeros stand for the others',
        so that the sum over the ranks has it once."""
        if self.tensor.size == 1 or self.bias_place < 0:
            return slabs
        padded = ()
        for i in range(len(slabs)):
            slab = slabs[i]
            if i % len(self.tensors) == self.bias_place:
                nothing = ops.zeros_like(slab)
                rank, size = self.tensor.rank, self.tensor.size
                slab = ops.concat((nothing,) * rank + (slab,) + (nothing,) * (size - 1 - rank), 1)
            padded += (slab,)
        return padded
