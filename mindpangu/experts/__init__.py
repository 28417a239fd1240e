"""Experts live on the host: `store.py` holds all of them and updates those that a step activated."""

from mindpangu.experts.store import SLAB_TENSORS, ExpertStore

__all__ = ["SLAB_TENSORS", "ExpertStore"]
