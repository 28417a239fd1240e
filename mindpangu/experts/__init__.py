"""Experts live on the host: `store.py` holds all of them and updates those that a step activated.

`snapshot.py` is the store at one moment, for a checkpoint that is written while training goes on.
"""

from mindpangu.experts.snapshot import StoreSnapshot
from mindpangu.experts.store import SLAB_TENSORS, ExpertStore

__all__ = ["SLAB_TENSORS", "ExpertStore", "StoreSnapshot"]
