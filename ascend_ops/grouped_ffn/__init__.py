"""grouped_ffn: every expert's feed-forward network on its own, ragged group of rows."""

from ascend_ops.grouped_ffn.composed import fast_gelu, grouped_ffn, overflow_blocks

__all__ = ["fast_gelu", "grouped_ffn", "overflow_blocks"]
