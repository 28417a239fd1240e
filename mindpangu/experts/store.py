"""ExpertStore: weights and Adam state of every expert, in host memory, one copy.

One contiguous array ("slab") per (RRE layer, domain, tensor) with the experts of the group along the first axis, so
an expert is a row range, and the experts that a compiled step takes as inputs are the slabs themselves, not copies.
All slabs have the size of the largest group: the compiled step has one shape. NumPy only; the step turns slabs
into tensors.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ascend_ops.expert_adam import expert_adam
from mindpangu.config import Config
from mindpangu.domains import Domain
from mindpangu.model.initialization import normal

SLAB_TENSORS = ("up", "up_bias", "down", "down_bias")
DECAYED = ("up", "down")

Slab = dict[str, np.ndarray]


class ExpertStore:
    """All experts of a run.

    Attributes:
        weights, moment1, moment2: [layer][domain id] → slab: up [A, H, F], up_bias [A, F], down [A, F, H],
            down_bias [A, H], float32, A = the largest group of any domain.
        step_counts: int64 [L, D, A], how often each expert was updated.
    """

    def __init__(self, config: Config, domains: Sequence[Domain]):
        model, optimizer = config.model, config.optimizer
        self.domains, self.num_layers = tuple(domains), model.rre_layers
        self.group_size = max((domain.num_experts for domain in domains), default=0)
        hidden, inner = model.hidden_size, model.ffn_hidden_size
        self.shapes = {"up": (hidden, inner), "up_bias": (inner,), "down": (inner, hidden), "down_bias": (hidden,)}
        self._std = {"up": model.init_std, "down": model.init_std / np.sqrt(2 * model.num_layers)}
        self._seed = config.training.seed
        self._optimizer = optimizer
        self.weights, self.moment1, self.moment2 = (
            [[self._zero_slab() for _ in domains] for _ in range(self.num_layers)] for _ in range(3)
        )
        self.step_counts = np.zeros((self.num_layers, len(domains), self.group_size), np.int64)
        self._threads = ThreadPoolExecutor(config.experts.host_threads, thread_name_prefix="experts")

    def initialize(self) -> None:
        """Draws the initial weights; each expert from a random stream of its own (layer, domain name, index)."""

        def fill(layer: int, domain: int, index: int) -> None:
            for name, std in self._std.items():
                stream = f"experts/{layer}/{self.domains[domain].name}/{index}/{name}"
                self.weights[layer][domain][name][index] = normal(self._seed, stream, self.shapes[name], std)

        self._in_threads(fill, self.experts())

    def experts(self) -> list[tuple[int, int, int]]:
        """(layer, domain id, index in the group) of every expert that exists."""
        return [
            (layer, domain_id, index)
            for layer in range(self.num_layers)
            for domain_id, domain in enumerate(self.domains)
            for index in range(domain.num_experts)
        ]

    def lookup(self, domain_of_slot: Sequence[int]) -> list[np.ndarray]:
        """The slabs that a step takes as inputs: per layer, per slot, the four tensors of SLAB_TENSORS; no copy."""
        return [
            self.weights[layer][domain][name]
            for layer in range(self.num_layers)
            for domain in domain_of_slot
            for name in SLAB_TENSORS
        ]

    def update(
        self,
        gradients: Mapping[tuple[int, int], Sequence[np.ndarray]],
        activated_LDA: np.ndarray,
        learning_rate: float,
        gradient_scale: float,
    ) -> int:
        """Adam on the activated experts; all others keep every bit.

        Args:
            gradients: (layer, domain id) → the four gradients of its slab.
            activated_LDA: bool [L, D, A], the experts that received a token in this step.
            learning_rate: of this step.
            gradient_scale: factor for the gradients (clipping).

        Returns:
            How many experts were updated.
        """
        beta1, beta2 = self._optimizer.betas
        for layer, domain in np.argwhere(activated_LDA.any(-1)).tolist():
            experts = np.flatnonzero(activated_LDA[layer, domain])
            self.step_counts[layer, domain, experts] += 1
            for name, gradient in zip(SLAB_TENSORS, gradients[layer, domain], strict=True):
                expert_adam(
                    self.weights[layer][domain][name],
                    self.moment1[layer][domain][name],
                    self.moment2[layer][domain][name],
                    gradient,
                    experts,
                    self.step_counts[layer, domain, experts],
                    learning_rate=learning_rate,
                    beta1=beta1,
                    beta2=beta2,
                    eps=self._optimizer.expert_eps,
                    weight_decay=self._optimizer.weight_decay if name in DECAYED else 0.0,
                    gradient_scale=gradient_scale,
                )
        return int(activated_LDA.sum())

    def squared_norm(self, gradients: Mapping[tuple[int, int], Sequence[np.ndarray]]) -> float:
        """Sum of squares over all gradients, added up in float64 in a fixed order."""
        arrays = [gradient.reshape(-1) for key in sorted(gradients) for gradient in gradients[key]]
        return float(sum(self._threads.map(_squared_norm, arrays)))

    def _zero_slab(self) -> Slab:
        return {name: np.zeros((self.group_size, *shape), np.float32) for name, shape in self.shapes.items()}

    def _in_threads(self, work, arguments) -> None:
        for _ in self._threads.map(lambda each: work(*each), arguments):
            pass


def _squared_norm(flat: np.ndarray) -> float:
    # pieces bound the float32 rounding of a long dot product; squares of fp16 numbers need the range of float32
    pieces = np.split(flat, range(1 << 16, flat.size, 1 << 16))
    return float(sum(float(np.dot(piece, piece)) for piece in (p.astype(np.float32, copy=False) for p in pieces)))
