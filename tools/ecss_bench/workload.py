"""A model in Σ's layout, trained on random tokens in any expert mode with the same compiled functions."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np

from mindpangu.config import load_config
from mindpangu.data import Batch, equal_parts
from mindpangu.data.batch import assemble_batch
from mindpangu.data.route_plan import RoutePlan
from mindpangu.domains import PRESETS, build_domains
from mindpangu.experts import ECSS, ExpertTraffic, Link, ResidentExperts, open_experts
from mindpangu.experts.link import Pairs
from mindpangu.language_model import LanguageModel, ModelParts
from mindpangu.routing import RoutingTable
from mindpangu.train.run import set_device
from mindpangu.train.step import TrainStep

SEQ_LENGTH = 256
VOCAB_SIZE = 2048
LARGEST_MICRO_BATCH = 65536  # tokens; larger steps are accumulated, and their bytes grow with the micro-batches
RRE_LAYERS = 8
EXPERTS_PER_DOMAIN = 16


Step = tuple[list[Batch], list[RoutePlan]]
"""Micro-batches of a step, and their route plans."""


class PacedLink(Link):
    """A slow link: after each copy it sleeps as long as the transfer would have taken at its speed."""

    def __init__(self, threads: int, gigabytes_per_s: float) -> None:
        super().__init__(threads)
        self.gigabytes_per_s = gigabytes_per_s

    def _move(self, operation: Callable[[tuple[np.ndarray, np.ndarray]], None], pairs: Pairs) -> int:
        started = time.perf_counter()
        moved = super()._move(operation, pairs)
        time.sleep(max(0.0, moved / (1e9 * self.gigabytes_per_s) - (time.perf_counter() - started)))
        return moved


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measurements of one step: seconds, number of experts that Adam updated, and traffic."""

    seconds: float
    updated: int
    traffic: ExpertTraffic


class Workload:
    """Trains on random tokens of `active` domains per step, rotating over all domains.

    Every expert of an active domain gets tokens.

    Args:
        hidden: width of the model.
        layers: number of layers, 8 of which are RRE layers.
        domains: number of domains, of Σ's 40.
        active: number of domains per step.
        storage_folder: folder of a mapped store; None keeps the store in memory.
    """

    def __init__(
        self,
        hidden: int,
        layers: int,
        domains: int = 40,
        active: int = 4,
        storage_folder: str | None = None,
    ) -> None:
        names = [domain.name for domain in PRESETS["sigma_40"][:domains]]
        overrides = {
            "model.num_layers": layers,
            "model.rre_layers": RRE_LAYERS,
            "model.hidden_size": hidden,
            "model.num_heads": max(1, hidden // 64),
            "model.seq_length": SEQ_LENGTH,
            "model.vocab_size": VOCAB_SIZE,
            "domains.preset": "sigma_40",
            "domains.names": names,
            "domains.experts_per_domain": EXPERTS_PER_DOMAIN,
            "data.domains_per_step": active,
            "training.local_batch_size": active,
            "training.spike_sigma": 0,
            "experts.storage": "memory" if storage_folder is None else "mapped",
            "experts.storage_folder": storage_folder or "",
            "experts.staging": True,
        }
        self.config = load_config(None, {key: str(value) for key, value in overrides.items()})

        set_device(self.config)
        built_domains = build_domains(self.config)
        frequencies = {domain.name: np.ones(VOCAB_SIZE, np.int64) for domain in built_domains}
        random = dataclasses.replace(self.config.routing, assignment="random")
        table = RoutingTable.build(built_domains, frequencies, RRE_LAYERS, random)

        tokenizer = SimpleNamespace(vocab_size=VOCAB_SIZE, digest="random tokens")
        self.model = LanguageModel(ModelParts(self.config, {"main": tokenizer}, table))  # type: ignore[dict-item]
        self.store = self.model.store
        self.store.initialize()
        if storage_folder is None:
            for group in (self.store.moment1, self.store.moment2):
                for array in (each for layer in group for slab in layer for each in slab.values()):
                    array[:] = 0  # the kernel allocates memory on the first write, which must not be measured

        self.step = TrainStep(self.model)
        self.num_experts = int(self.store.exists_LMA.sum())
        self.expert_parameters = sum(int(np.prod(shape)) for shape in self.store.shapes.values())
        self.active_experts = RRE_LAYERS * active * EXPERTS_PER_DOMAIN

        groups = [range(start, start + active) for start in range(0, domains, active)]
        self._groups = itertools.cycle(groups)
        self._rng = np.random.default_rng(0)

    def experts(
        self, mode: str, overlap: bool = True, staging: bool = True, link: Link | None = None
    ) -> ECSS | ResidentExperts:
        """Opens the store's experts in a mode, for `run`."""
        settings = dataclasses.replace(self.config.experts, mode=mode, overlap=overlap, staging=staging)
        return open_experts(self.store, dataclasses.replace(self.config, experts=settings), link)

    def steps(self, tokens: int, count: int, repeat: bool = False) -> list[Step]:
        """Makes `count` steps of `tokens` tokens. With `repeat` all have the same domains."""
        first = next(self._groups)
        groups = [first] + [first if repeat else next(self._groups) for _ in range(count - 1)]
        return [self._step(tokens, tuple(group)) for group in groups]

    def run(self, experts: ECSS | ResidentExperts, steps: Sequence[Step]) -> list[Measured]:
        """Trains the steps. The first one has no experts fetched ahead, so it is not comparable with the others."""
        self.step.experts = experts
        times = [time.perf_counter()]
        traffics = []
        before = int(self.store.step_counts.sum())
        for index, (batches, plans) in enumerate(steps):
            upcoming = steps[index + 1][1] if index + 1 < len(steps) else None
            traffics.append(self.step.run(batches, plans, 1e-4, upcoming).traffic)
            times.append(time.perf_counter())
        self.step.finish()
        # an update may run during the next step, so updated experts are counted over all steps
        updated = (int(self.store.step_counts.sum()) - before) // len(steps)
        return [
            Measured(end - start, updated, traffic)
            for start, end, traffic in zip(times, times[1:], traffics, strict=False)
        ]

    def flops_per_token(self) -> float:
        """Returns the FLOPs per token, forward and backward, with one expert per layer and a recomputed lower half."""
        model = self.config.model
        attention = 8 * model.hidden_size**2 + 4 * SEQ_LENGTH * model.hidden_size
        layer = attention + 4 * model.hidden_size * model.ffn_hidden_size
        head = 2 * model.hidden_size * VOCAB_SIZE
        return layer * (3 * RRE_LAYERS + 4 * (model.num_layers - RRE_LAYERS)) + 3 * head

    def _step(self, tokens: int, group: Sequence[int]) -> Step:
        micro_batch = min(tokens, LARGEST_MICRO_BATCH)
        batches = [self._batch(micro_batch, group) for _ in range(tokens // micro_batch)]
        return batches, [self.model.planner.plan(batch) for batch in batches]

    def _batch(self, tokens: int, group: Sequence[int]) -> Batch:
        size = tokens // SEQ_LENGTH
        windows = self._rng.integers(0, VOCAB_SIZE, (size, SEQ_LENGTH + 1)).astype(np.int32)
        sample_ids_B2 = np.zeros((size, 2), np.int64)
        return assemble_batch(
            list(windows), sample_ids_B2, tuple(group), equal_parts(size, len(group)), SEQ_LENGTH, 0, 0, False
        )
