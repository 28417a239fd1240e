"""rre_combine: rows sorted by expert back in token order, with the residual added."""

from ascend_ops.rre_combine.composed import rre_combine

__all__ = ["rre_combine"]
