"""ECSS: experts are stored on the host, computed on the device, and only the activated ones move and are updated.

`store.py` holds all experts; `ecss.py` decides when they move; `modes.py` builds what the configuration asks for;
`snapshot.py` preserves the state of the store at one moment, for a checkpoint that is written while training continues.
`cache.py` is for generation, which has no store: it reads experts on demand.
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
