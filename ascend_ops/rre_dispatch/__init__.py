"""rre_dispatch: from tokens to rows sorted by expert, in one call."""

from ascend_ops.rre_dispatch.composed import rre_dispatch

__all__ = ["rre_dispatch"]
