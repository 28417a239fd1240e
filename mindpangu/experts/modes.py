"""Builds the object that provides a training step with its experts, as configured in the section `experts`."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindpangu.config import Config
from mindpangu.domains import build_domains, trained_domains
from mindpangu.experts.device_slabs import StagedSlabs, StoreViews
from mindpangu.experts.ecss import ECSS
from mindpangu.experts.gradients import AllReduce, HostGradients, SlabGradient
from mindpangu.experts.link import Link
from mindpangu.experts.npu_slabs import NpuSlabs
from mindpangu.experts.resident import ResidentExperts
from mindpangu.experts.store import ExpertStore
from mindpangu.model.precision import compute_dtype, expert_dtype
from mindpangu.parallel.data_parallel import DataGroup


def open_experts(
    store: ExpertStore, config: Config, link: Link | None = None, replicas: DataGroup | None = None
) -> ECSS | ResidentExperts:
    """Builds the object that moves and updates the experts of `store`, as configured in config.experts.

    Args:
        link: copies between host and device; None to create one.
        replicas: the ranks that hold the same experts; None if no other rank holds them.
    """
    settings = config.experts
    dtype = expert_dtype(config)
    all_reduce = all_reduce_over(replicas) if replicas is not None and replicas.size > 1 else None
    if settings.mode == "device":
        return ResidentExperts(store, dtype, all_reduce)
    link = link or Link(settings.host_threads)
    always_LMA = _trained_experts(store, config) if settings.mode == "host_full" else None
    slabs: StoreViews | StagedSlabs | NpuSlabs
    if config.context.device_target == "Ascend":
        slabs = NpuSlabs(store, compute_dtype(config))
        gradients = HostGradients(store, link, dtype)
    elif settings.staging or always_LMA is not None or dtype != np.float32:
        slabs = StagedSlabs(store, link, dtype)
        gradients = HostGradients(store, link, dtype)
    else:
        slabs = StoreViews(store)
        gradients = HostGradients(store, link)
    return ECSS(store, slabs, gradients, always_LMA=always_LMA, overlap=settings.overlap, all_reduce=all_reduce)


def _trained_experts(store: ExpertStore, config: Config) -> np.ndarray:
    """Returns bool [L, M, A]: the experts of the trained domains."""
    trained = trained_domains(config, build_domains(config))
    if trained is None:
        return store.exists_LMA
    return store.exists_LMA & np.isin(np.arange(store.exists_LMA.shape[1]), list(trained))[:, None]


def all_reduce_over(replicas: DataGroup) -> AllReduce:
    """Returns a function that sums a slab's gradients over ranks."""
    for_each = ops.HyperMap()

    @ms.jit
    def sum_of_ranks(*gradients):
        return for_each(replicas.all_reduce, gradients)

    def all_reduce(gradients: SlabGradient) -> SlabGradient:
        return [tensor.asnumpy() for tensor in sum_of_ranks(*map(Tensor.from_numpy, gradients))]

    return all_reduce
