"""experts.mode and its kin: from the configuration to the object that a training step asks for its experts."""

from collections.abc import Callable, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindpangu.config import Config
from mindpangu.domains import build_domains, trained_domains
from mindpangu.experts.device_slabs import StagedSlabs, StoreViews
from mindpangu.experts.ecss import ECSS
from mindpangu.experts.gradients import HostGradients
from mindpangu.experts.link import Link
from mindpangu.experts.npu_slabs import NpuSlabs
from mindpangu.experts.resident import ResidentExperts
from mindpangu.experts.store import ExpertStore
from mindpangu.model.precision import compute_dtype, expert_dtype
from mindpangu.parallel.data_parallel import DataGroup


def open_experts(
    store: ExpertStore, config: Config, link: Link | None = None, replicas: DataGroup | None = None
) -> ECSS | ResidentExperts:
    """What moves the experts of `store` as config.experts says.

    Args:
        link: copies between host and device; None makes one.
        replicas: the ranks that have the same experts; None for this one alone.
    """
    settings, dtype = config.experts, expert_dtype(config)
    add_up = summing(replicas) if replicas is not None and replicas.size > 1 else None
    if settings.mode == "device":
        return ResidentExperts(store, dtype, add_up)
    link = link or Link(settings.host_threads)
    always_LDA = _trained_experts(store, config) if settings.mode == "host_full" else None
    if config.context.device_target == "Ascend":
        slabs, gradients = NpuSlabs(store, compute_dtype(config)), HostGradients(store, link, dtype)
    elif settings.staging or always_LDA is not None or dtype != np.float32:
        slabs, gradients = StagedSlabs(store, link, dtype), HostGradients(store, link, dtype)
    else:
        slabs, gradients = StoreViews(store), HostGradients(store, link)
    return ECSS(store, slabs, gradients, always_LDA=always_LDA, overlap=settings.overlap, add_up=add_up)


def _trained_experts(store: ExpertStore, config: Config) -> np.ndarray:
    """bool [L, D, A]."""
    trained = trained_domains(config, build_domains(config))
    if trained is None:
        return store.exists_LDA
    return store.exists_LDA & np.isin(np.arange(store.exists_LDA.shape[1]), list(trained))[:, None]


def summing(replicas: DataGroup) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """What adds a slab's gradients up over the ranks that have the same experts; each of them has to call it."""

    for_each = ops.HyperMap()

    @ms.jit
    def sum_of_ranks(*gradients):
        return for_each(replicas.all_reduce, gradients)

    def add_up(gradients: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [tensor.asnumpy() for tensor in sum_of_ranks(*map(Tensor.from_numpy, gradients))]

    return add_up
