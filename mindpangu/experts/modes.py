"""experts.mode and its kin: from the configuration to the object that a training step asks for its experts."""

import numpy as np

from mindpangu.config import Config
from mindpangu.experts.device_slabs import StagedSlabs, StoreViews
from mindpangu.experts.ecss import ECSS
from mindpangu.experts.gradients import HostGradients
from mindpangu.experts.link import Link
from mindpangu.experts.npu_slabs import NpuSlabs
from mindpangu.experts.resident import ResidentExperts
from mindpangu.experts.store import ExpertStore
from mindpangu.model.precision import compute_dtype, expert_dtype


def open_experts(store: ExpertStore, config: Config, link: Link | None = None) -> ECSS | ResidentExperts:
    """What moves the experts of `store` as config.experts says.

    Args:
        link: copies between host and device; None makes one.
    """
    settings, dtype = config.experts, expert_dtype(config)
    if settings.mode == "device":
        return ResidentExperts(store, dtype)
    link, every_expert = link or Link(settings.host_threads), settings.mode == "host_full"
    if config.context.device_target == "Ascend":
        slabs, gradients = NpuSlabs(store, compute_dtype(config)), HostGradients(store, link, dtype)
    elif settings.staging or every_expert or dtype != np.float32:
        slabs, gradients = StagedSlabs(store, link, dtype), HostGradients(store, link, dtype)
    else:
        slabs, gradients = StoreViews(store), HostGradients(store, link)
    return ECSS(store, slabs, gradients, every_expert=every_expert, overlap=settings.overlap)
