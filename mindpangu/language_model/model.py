"""LanguageModel: the parts of a model, and its forward passes without gradients."""

from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindpangu.config import Config
from mindpangu.data import Batch, TokenShards, equal_parts
from mindpangu.data.domain_groups import domain_groups
from mindpangu.data.route_plan import RoutePlan, plan_routes
from mindpangu.data.step_plan import StepPlan, plan_step
from mindpangu.domains import Domain
from mindpangu.experts import ExpertStore
from mindpangu.language_model.inputs import ModelInputs, as_tensor, refuse_invalid_ids
from mindpangu.language_model.parts import ModelParts
from mindpangu.model.decoder import Decoder
from mindpangu.model.precision import expert_dtype
from mindpangu.parallel.expert_share import ExpertShare
from mindpangu.parallel.processes import Processes
from mindpangu.routing import RoutingTable
from mindpangu.tokenizer import Tokenizer


class LanguageModel:
    """Everything that decides what a token becomes.

    Attributes:
        parts: the model without its weights; config, domains, vocabularies, tokenizers and table are its.
        num_slots: domain slots of a compiled step.

    Args:
        config: the resolved configuration.
        tokenizers: vocabulary → tokenizer.
        table: the routing table; None for a dense model.
        processes: the ranks that share the model; None for this one alone, which then has all of it. Forward passes
            without gradients need the whole model.

    Raises:
        TokenizerError: a tokenizer that does not fit its vocabulary.
        ConfigError: a table that does not fit the configuration.
    """

    def __init__(
        self,
        config: Config,
        tokenizers: Mapping[str, Tokenizer],
        table: RoutingTable | None,
        processes: Processes | None = None,
    ):
        self.parts, self.processes = ModelParts(config, tokenizers, table), processes or Processes.alone()
        self.config, self.table, self.tokenizers = config, table, self.parts.tokenizers
        self.domains, self.vocabularies = self.parts.domains, self.parts.vocabularies
        mesh, coordinates = self.processes.mesh, self.processes.coordinates
        # ranks that exchange tokens may be of several groups of domains, which then all have slots
        together = config.data.domain_groups // mesh.sub_groups if mesh.members > 1 else 1
        self.num_slots = config.data.domains_per_step * together
        self.decoder = Decoder(config, self.vocabularies, self.processes.tensor, self.processes.exchange)
        self.store = ExpertStore(
            config, self.domains, ExpertShare.from_mesh(mesh, coordinates, domain_groups(config, self.domains))
        )
        self._compile_forward()

    def tokenizer_of(self, domain: Domain) -> Tokenizer:
        return self.parts.tokenizer_of(domain)

    def require_data(self, shards: TokenShards) -> None:
        """See `ModelParts.require_data`."""
        self.parts.require_data(shards)

    def plan(self, tokens_BS: np.ndarray, domain_of_slot: Sequence[int], slot_of_sample_B: np.ndarray) -> RoutePlan:
        return plan_routes(tokens_BS, domain_of_slot, slot_of_sample_B, self.domains, self.table)

    def plan_step(self, micro_batches: Sequence[Batch]) -> StepPlan:
        """This rank's part of a step, from the micro-batches of all ranks."""

        def plan(batch: Batch) -> RoutePlan:
            return self.plan(batch.tokens_BS, batch.domain_of_slot, batch.slot_of_sample_B)

        return plan_step(micro_batches, self.processes.mesh, self.processes.coordinates, self.num_slots, plan)

    def inputs(self, tokens_BS: np.ndarray, positions_BS: np.ndarray, plan: RoutePlan) -> ModelInputs:
        return ModelInputs.build(tokens_BS, positions_BS, plan, self.vocabularies)

    def token_losses(self, batch: Batch, domain_of_slot: Sequence[int] | None = None) -> np.ndarray:
        """float32 [B, S]: −log p of every target, masked or not.

        Args:
            domain_of_slot: routes the batch as if it were of these domains; None takes the batch's own.
        """
        plan = self.plan(batch.tokens_BS, domain_of_slot or batch.domain_of_slot, batch.slot_of_sample_B)
        inputs = self.inputs(batch.tokens_BS, batch.positions_BS, plan)
        losses_BS, invalid = self._token_losses(
            inputs.vocabulary, inputs.rows_BS, inputs.tokens_BS, inputs.positions_BS, as_tensor(batch.targets_BS),
            inputs.vocabulary_of_sample_B, inputs.domain_slots_B, inputs.tables_LDV, *self._slabs(plan),
        )  # fmt: skip
        refuse_invalid_ids(invalid)
        return losses_BS.asnumpy()

    def next_token_logits(self, tokens_BS: np.ndarray, domain: int, last: int) -> np.ndarray:
        """float32 [B, V]: scores of the token after position `last`; what stands behind it does not count."""
        batch, length = tokens_BS.shape
        positions_BS = np.tile(np.arange(length, dtype=np.int32), (batch, 1))
        plan = self.plan(tokens_BS, (domain,), equal_parts(batch, 1))
        inputs = self.inputs(tokens_BS, positions_BS, plan)
        last_B = np.arange(batch, dtype=np.int32) * length + np.int32(last)
        logits_BV, invalid = self._next_token_logits(
            inputs.vocabulary, as_tensor(last_B), inputs.rows_BS, inputs.tokens_BS, inputs.positions_BS,
            inputs.vocabulary_of_sample_B, inputs.domain_slots_B, inputs.tables_LDV, *self._slabs(plan),
        )  # fmt: skip
        refuse_invalid_ids(invalid)
        return logits_BV.asnumpy()

    def _slabs(self, plan: RoutePlan) -> list[Tensor]:
        dtype = expert_dtype(self.config)
        return [as_tensor(slab.astype(dtype, copy=False)) for slab in self.store.lookup(plan.domain_of_slot)]

    def _compile_forward(self) -> None:
        lower, upper = self.decoder.lower, self.decoder.upper

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

        self._token_losses, self._next_token_logits = token_losses, next_token_logits
