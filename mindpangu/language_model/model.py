"""LanguageModel: a model with its weights, and its forward passes without gradients."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from ascend_ops.waiting import wait_for_all
from mindpangu.data import Batch, TokenShards, equal_parts
from mindpangu.data.domain_groups import domain_groups
from mindpangu.data.route_plan import RoutePlan, plan_routes
from mindpangu.data.step_planner import StepPlanner
from mindpangu.domains import Domain
from mindpangu.experts import ExpertStore
from mindpangu.language_model.inputs import ModelInputs, as_tensor, refuse_invalid_ids
from mindpangu.language_model.parts import ModelParts
from mindpangu.model.decoder import Decoder
from mindpangu.model.precision import expert_dtype
from mindpangu.parallel.expert_share import ExpertShare
from mindpangu.parallel.processes import Processes
from mindpangu.tokenizer import Tokenizer


class LanguageModel:
    """A complete model: configuration, domains, tokenizers, routing table, network, and experts.

    Attributes:
        parts: the model without its weights, from which `config`, `domains`, `vocabularies`, `tokenizers`, and `table`
            are taken.
        planner: plans this rank's steps.
        num_slots: number of domain slots of a compiled step.
        decoder: the network with its dense parameters.
        store: the experts.

    Args:
        parts: the model without its weights.
        processes: the ranks that share the model; None if this process holds all of it, which the forward passes here
            require.
    """

    def __init__(self, parts: ModelParts, processes: Processes | None = None):
        self.parts = parts
        self.config = parts.config
        self.domains = parts.domains
        self.vocabularies = parts.vocabularies
        self.tokenizers = parts.tokenizers
        self.table = parts.table
        self.processes = processes or Processes.alone()
        mesh = self.processes.mesh
        coordinates = self.processes.coordinates
        self.planner = StepPlanner.from_config(self.config, self.domains, self.table, mesh, coordinates)
        self.num_slots = self.planner.num_slots
        self.decoder = Decoder(self.config, self.vocabularies, self.processes.tensor, self.processes.exchange)
        share = ExpertShare.from_mesh(mesh, coordinates, domain_groups(self.config, self.domains))
        self.store = ExpertStore(self.config, self.domains, share)
        self._compile_forward()

    def tokenizer_of(self, domain: Domain) -> Tokenizer:
        return self.parts.tokenizer_of(domain)

    def require_data(self, shards: TokenShards) -> None:
        """See `ModelParts.require_data`."""
        self.parts.require_data(shards)

    def inputs(self, tokens_BS: np.ndarray, positions_BS: np.ndarray, plan: RoutePlan) -> ModelInputs:
        """Turns host arrays and their plan into the tensors of the compiled functions."""
        return ModelInputs.build(tokens_BS, positions_BS, plan, self.vocabularies)

    def token_losses(self, batch: Batch, domain_of_slot: Sequence[int] | None = None) -> np.ndarray:
        """Computes −log p of every target, masked or not, float32 [B, S].

        Args:
            domain_of_slot: routes the batch as if its slots held these domains; None keeps the batch's own.
        """
        plan = self.planner.plan(batch, domain_of_slot)
        inputs = self.inputs(batch.tokens_BS, batch.positions_BS, plan)
        losses_BS, invalid = self._token_losses(
            inputs.vocabulary,
            inputs.rows_BS,
            inputs.tokens_BS,
            inputs.positions_BS,
            as_tensor(batch.targets_BS),
            inputs.vocabulary_of_sample_B,
            inputs.domain_slots_B,
            inputs.tables_LDV,
            *self._slabs(plan),
        )
        return _read(losses_BS, invalid)

    def next_token_logits(self, tokens_BS: np.ndarray, domain: int, last: int) -> np.ndarray:
        """Computes the logits of the token after position `last`, float32 [B, V]. Later tokens have no effect."""
        batch, length = tokens_BS.shape
        positions_BS = np.tile(np.arange(length, dtype=np.int32), (batch, 1))
        plan = plan_routes(tokens_BS, (domain,), equal_parts(batch, 1), self.domains, self.table)
        inputs = self.inputs(tokens_BS, positions_BS, plan)
        last_B = np.arange(batch, dtype=np.int32) * length + np.int32(last)
        logits_BV, invalid = self._next_token_logits(
            inputs.vocabulary,
            as_tensor(last_B),
            inputs.rows_BS,
            inputs.tokens_BS,
            inputs.positions_BS,
            inputs.vocabulary_of_sample_B,
            inputs.domain_slots_B,
            inputs.tables_LDV,
            *self._slabs(plan),
        )
        return _read(logits_BV, invalid)

    def _slabs(self, plan: RoutePlan) -> list[Tensor]:
        dtype = expert_dtype(self.config)
        return [as_tensor(slab.astype(dtype, copy=False)) for slab in self.store.lookup(plan.domain_of_slot)]

    def _compile_forward(self) -> None:
        lower = self.decoder.lower
        upper = self.decoder.upper

        @ms.jit
        def token_losses(
            vocabulary,
            rows_BS,
            tokens_BS,
            positions_BS,
            targets_BS,
            vocabulary_of_sample_B,
            domain_slots_B,
            tables,
            *slabs,
        ):
            h_TH = lower(rows_BS, positions_BS)
            x_TH, invalid = upper(h_TH, positions_BS, (tokens_BS, domain_slots_B, tables, 0, ()), slabs)
            return upper.token_losses(x_TH, targets_BS, vocabulary, vocabulary_of_sample_B), invalid

        @ms.jit
        def next_token_logits(
            vocabulary, last_B, rows_BS, tokens_BS, positions_BS, vocabulary_of_sample_B, domain_slots_B, tables, *slabs
        ):
            h_TH = lower(rows_BS, positions_BS)
            x_TH, invalid = upper(h_TH, positions_BS, (tokens_BS, domain_slots_B, tables, 0, ()), slabs)
            return upper.logits(ops.gather(x_TH, last_B, 0), vocabulary, vocabulary_of_sample_B), invalid

        self._token_losses = token_losses
        self._next_token_logits = next_token_logits


def _read(result: Tensor, invalid: Tensor) -> np.ndarray:
    array, num_invalid = wait_for_all((result, invalid))
    refuse_invalid_ids(num_invalid)
    return array
