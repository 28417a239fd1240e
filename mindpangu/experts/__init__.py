"""ECSS: experts are stored on the host and computed on the device; only activated experts move and are updated.

`store.py` holds all experts; `ecss.py` decides when they move; `modes.py` builds what the configuration asks for;
`snapshot.py` preserves the state of the store between two steps, so that a checkpoint can be written meanwhile.
`cache.py` serves generation, which has no store and reads experts on demand.
"""

from mindpangu.experts.cache import ExpertCache, entries_within
from mindpangu.experts.ecss import ECSS
from mindpangu.experts.link import Link
from mindpangu.experts.modes import open_experts
from mindpangu.experts.resident import ResidentExperts
from mindpangu.experts.snapshot import StoreSnapshot
from mindpangu.experts.store import ExpertStore
from mindpangu.experts.traffic import ExpertTraffic

__all__ = [
    "ECSS",
    "ExpertCache",
    "ExpertStore",
    "ExpertTraffic",
    "Link",
    "ResidentExperts",
    "StoreSnapshot",
    "entries_within",
    "open_experts",
]
