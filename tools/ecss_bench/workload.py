"""A model in Σ's layout on random tokens, whose training can go on in any mode with the same compiled functions."""

import dataclasses
import itertools
import time
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from mindpangu.config import load_config
from mindpangu.data import Batch, equal_parts
from mindpangu.data.batch import assemble_batch
from mindpangu.domains import PRESETS, build_domains
from mindpangu.experts import ExpertTraffic, Link, open_experts
from mindpangu.language_model import LanguageModel, ModelParts
from mindpangu.routing import RoutingTable
from mindpangu.train.run import set_device
from mindpangu.train.step import TrainStep

SEQ_LENGTH = 256
VOCABULARY = 2048
LARGEST_MICRO_BATCH = 65536  # tokens; a step of more is accumulated, and its bytes grow with the micro-batches
RRE_LAYERS, EXPERTS_PER_DOMAIN = 8, 16


class PacedLink(Link):
    """A slow link: after each copy it sleeps until the bytes would have crossed at so many GB/s."""

    def __init__(self, threads: int, gigabytes_per_s: float):
        super().__init__(threads)
        self.gigabytes_per_s = gigabytes_per_s

    def _move(self, operation, pairs):
        started = time.perf_counter()
        moved = super()._move(operation, pairs)
        time.sleep(max(0.0, moved / (1e9 * self.gigabytes_per_s) - (time.perf_counter() - started)))
        return moved


@dataclasses.dataclass(frozen=True)
class Measured:
    """One step: its seconds, how many experts Adam updated, and what moving them cost."""

    seconds: float
    updated: int
    traffic: ExpertTraffic


class Workload:
    """Random tokens of `active` domains a step, rotating over all; every expert of an active domain gets tokens.

    Args:
        hidden: width. layers: in all, 8 of them RRE. domains: how many of Σ's 40. active: of them in each step.
        storage_folder: of a mapped store; None keeps it in memory.
    """

    def __init__(
        self,
        hidden: int,
        layers: int,
        domains: int = 40,
        active: int = 4,
        storage_folder: str | None = None,
    ):
        names = [domain.name for domain in PRESETS["sigma_40"][:domains]]
        overrides = {
            "model.num_layers": layers, "model.rre_layers": RRE_LAYERS, "model.hidden_size": hidden,
            "model.num_heads": max(1, hidden // 64), "model.seq_length": SEQ_LENGTH, "model.vocab_size": VOCABULARY,
            "domains.preset": "sigma_40", "domains.names": names, "domains.experts_per_domain": EXPERTS_PER_DOMAIN,
            "data.domains_per_step": active, "training.local_batch_size": active, "training.spike_sigma": 0,
            "experts.storage": "memory" if storage_folder is None else "mapped",
            "experts.storage_folder": storage_folder or "", "experts.staging": True,
        }  # fmt: skip
        self.config = load_config(None, {key: str(value) for key, value in overrides.items()})
        set_device(self.config)
        chosen = build_domains(self.config)
        frequencies = {domain.name: np.ones(VOCABULARY, np.int64) for domain in chosen}
        random = dataclasses.replace(self.config.routing, assignment="random")
        table = RoutingTable.build(chosen, frequencies, RRE_LAYERS, random)
        tokenizer = SimpleNamespace(vocab_size=VOCABULARY, digest="random tokens")
        self.model = LanguageModel(ModelParts(self.config, {"main": tokenizer}, table))
        self.store = self.model.store
        self.store.initialize()
        if storage_folder is None:
            for group in (self.store.moment1, self.store.moment2):
                for array in (each for layer in group for slab in layer for each in slab.values()):
                    array[:] = 0  # the kernel gives memory when it is written first, which is not to be measured
        self.step = TrainStep(self.model)
        self.num_experts = int(self.store.exists_LMA.sum())
        self.expert_parameters = sum(int(np.prod(shape)) for shape in self.store.shapes.values())
        self.active_experts = RRE_LAYERS * active * EXPERTS_PER_DOMAIN
        groups = [range(start, start + active) for start in range(0, domains, active)]
        self._groups = itertools.cycle(groups)
        self._chance = np.random.default_rng(0)

    def experts(self, mode: str, overlap: bool = True, staging: bool = True, link: Link | None = None):
        """What `run` takes: the store's experts in another mode."""
        settings = dataclasses.replace(self.config.experts, mode=mode, overlap=overlap, staging=staging)
        return open_experts(self.store, dataclasses.replace(self.config, experts=settings), link)

    def steps(self, tokens: int, count: int, repeat: bool = False):
        """`count` steps of `tokens`: (batches, plans); with `repeat` all of the same domains."""
        first = next(self._groups)
        groups = [first] + [first if repeat else next(self._groups) for _ in range(count - 1)]
        return [self._step(tokens, tuple(group)) for group in groups]

    def run(self, experts, steps) -> list[Measured]:
        """Trains these steps; the first one fetches its own experts, so it is not like the others."""
        self.step.experts, times, traffics = experts, [time.perf_counter()], []
        before = int(self.store.step_counts.sum())
        for number, (batches, plans) in enumerate(steps):
            upcoming = steps[number + 1][1] if number + 1 < len(steps) else None
            traffics.append(self.step.run(batches, plans, 1e-4, upcoming).traffic)
            times.append(time.perf_counter())
        self.step.finish()
        # an update may run while the next step does, so its experts are counted over all steps
        updated = (int(self.store.step_counts.sum()) - before) // len(steps)
        return [
            Measured(end - start, updated, traffic)
            for start, end, traffic in zip(times, times[1:], traffics, strict=False)
        ]

    def flops_per_token(self) -> float:
        """Of the dense parts and one expert a layer, forward, backward, and the lower half's second forward."""
        model = self.config.model
        attention = 8 * model.hidden_size**2 + 4 * SEQ_LENGTH * model.hidden_size
        layer = attention + 4 * model.hidden_size * model.ffn_hidden_size
        head = 2 * model.hidden_size * VOCABULARY
        return layer * (3 * RRE_LAYERS + 4 * (model.num_layers - RRE_LAYERS)) + 3 * head

    def _step(self, tokens: int, group: Sequence[int]):
        micro = min(tokens, LARGEST_MICRO_BATCH)
        batches = [self._batch(micro, group) for _ in range(tokens // micro)]
        return batches, [self.model.planner.plan(batch) for batch in batches]

    def _batch(self, tokens: int, group: Sequence[int]) -> Batch:
        size = tokens // SEQ_LENGTH
        windows = self._chance.integers(0, VOCABULARY, (size, SEQ_LENGTH + 1)).astype(np.int32)
        sample_ids_B2 = np.zeros((size, 2), np.int64)
        return assemble_batch(
            windows, sample_ids_B2, tuple(group), equal_parts(size, len(group)), SEQ_LENGTH, 0, 0, False
        )
