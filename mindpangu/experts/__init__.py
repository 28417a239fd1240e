"""Experts live on the host: `store.py` holds all of them, `adam.py` updates those that a step activated."""

from mindpangu.experts.adam import AdamSettings, adam_in_place
from mindpangu.experts.store import SLAB_TENSORS, ExpertStore

__all__ = ["SLAB_TENSORS", "AdamSettings", "ExpertStore", "adam_in_place"]
