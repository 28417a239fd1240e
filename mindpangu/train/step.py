"""One optimizer step: the gradients of its micro-batches, the decision whether to skip it, and the updates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from mindspore import Tensor

from ascend_ops.waiting import settle, wait_for, wait_for_all
from mindpangu.data import Batch
from mindpangu.data.route_plan import RoutePlan, capacities, own_exchange, plan_routes
from mindpangu.domains import trained_domains
from mindpangu.experts import ExpertTraffic, Link, open_experts
from mindpangu.language_model import LanguageModel, ModelInputs, as_tensor, group_by_domain, refuse_invalid_ids
from mindpangu.model.precision import expert_dtype
from mindpangu.train.compiled import CompiledFunctions
from mindpangu.train.loss_scale import LossScale
from mindpangu.train.optimizer import DenseAdam
from mindpangu.train.spikes import SpikeGuard


@dataclass
class Gradients:
    """Loss and dense gradients summed over the micro-batches of a step.

    The loss is a mean over the targets of the whole step, so nothing is divided later. The gradients are those of the
    loss times the loss scale. Expert gradients are not included: they go to the host at once (`TrainStep.experts`).

    Attributes:
        loss: mean loss of the step's unmasked targets.
        dense: name → gradient on the device; empty if only experts are trained.
        domain_loss: domain id → [sum of losses, number of targets].
    """

    loss: float = 0.0
    dense: dict[str, Tensor] = field(default_factory=dict)
    domain_loss: dict[int, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class StepResult:
    """Results of a step. The loss scale is already divided out.

    Attributes:
        loss: mean loss of the step's unmasked targets.
        global_norm: norm of all gradients before clipping.
        skipped: why the step was skipped, or None.
        domain_loss: domain id → mean loss.
        traffic: cost of moving and updating experts.
        loss_scale: loss scale that the step used.
        loss_scale_lowered: True if the step overflowed, so that the next step uses a smaller scale.
    """

    loss: float
    global_norm: float
    skipped: str | None
    domain_loss: dict[int, float]
    traffic: ExpertTraffic
    loss_scale: float
    loss_scale_lowered: bool


class TrainStep:
    """The training step of one model. Owns the compiled functions; changes the model's parameters and expert store.

    Attributes:
        experts: moves and updates experts. With overlap it continues after `run` has returned: call `finish` before
            anything else reads or changes the store.
        trains_dense: False if training.train names only experts; then no dense parameter or moment ever changes.
        in_one_function: True if forward and backward pass are one compiled function; see `mindpangu.train.compiled`.
        updates: number of applied updates, without skipped steps; Adam's bias correction depends on it.

    Args:
        link: copies experts between host and device; None for the default.
    """

    def __init__(self, model: LanguageModel, link: Link | None = None):
        config = model.config
        decoder = model.decoder
        processes = model.processes
        self.config = config
        self.model = model
        self.decoder = decoder
        self.processes = processes
        self.experts = open_experts(model.store, config, link, processes.replicas)
        num_slabs = config.model.rre_layers * model.num_slots * len(model.store.tensors)
        self.trains_dense = trained_domains(config, model.domains) is None
        self.in_one_function = num_slabs == 0 or (
            self.trains_dense and processes.exchange is None and not self.experts.moves
        )
        self.functions = CompiledFunctions(decoder, num_slabs, self.trains_dense)
        copies = {name: processes.tensor.size for name, held in decoder.slices.items() if held.is_whole}
        self.optimizer = DenseAdam(
            decoder.parameters, config.optimizer, processes.dense, config.parallelism.optimizer_sharding, copies
        )
        self.guard = SpikeGuard(config.training.spike_sigma, config.training.spike_window)
        self.loss_scale = LossScale.from_config(config)
        self.updates = 0

    def prepare(self) -> None:
        """Compiles the upper step for every vocabulary and every capacity of an exchange.

        Without it, ranks would wait for each other's compiler in the middle of training. All ranks must call it.
        """
        if self.processes.exchange is None:
            return
        domain_of_vocabulary = {
            domain.vocabulary: domain_id
            for domain_id, domain in enumerate(self.model.domains)
            if self.model.store.share.has(domain_id)
        }
        for domain_id in domain_of_vocabulary.values():
            self._compile_upper_step(domain_id)

    def _compile_upper_step(self, domain: int) -> None:
        group = self.processes.exchange
        assert group is not None
        config = self.config
        store = self.model.store
        batch = config.training.local_batch_size
        length = config.model.seq_length
        num_slots = self.model.num_slots
        tokens_BS = np.zeros((batch, length), np.int32)
        slot_of_sample_B = np.zeros(batch, np.int32)
        plan = plan_routes(tokens_BS, (domain,) * num_slots, slot_of_sample_B, self.model.domains, self.model.table)
        planned = own_exchange(store.num_layers, num_slots, store.group_size, batch * length, group.rank, group.size)
        plan = replace(plan, tables_LDV=np.full_like(plan.tables_LDV, store.first))
        slabs = [as_tensor(slab.astype(expert_dtype(config))) for slab in store.lookup((domain,) * num_slots)]
        for capacity in capacities(batch * length, group.size):
            self.processes.report_status(doing=f"compiling the step for {capacity} incoming rows")
            planned = replace(planned, capacity=capacity)
            inputs = self.model.inputs(tokens_BS, tokens_BS, replace(plan, exchange=planned))
            h_TH = self.functions.lower_forward(inputs.rows_BS, inputs.positions_BS)
            weights_BS = as_tensor(np.ones(tokens_BS.shape, np.float32))
            upper_inputs = _upper_inputs(inputs, inputs.tokens_BS, weights_BS)
            (loss, _, _), _ = self.functions.upper_step(
                inputs.vocabulary, capacity, h_TH, *upper_inputs, *slabs, *inputs.exchange
            )
            wait_for(loss)

    def run(
        self,
        batches: Sequence[Batch],
        plans: Sequence[RoutePlan],
        learning_rate: float,
        upcoming: Sequence[RoutePlan] | None = None,
        num_targets: float | None = None,
    ) -> StepResult:
        """Takes one step, or skips it without changing a bit. All ranks make the same decision.

        Args:
            batches: this rank's micro-batches.
            plans: their route plans.
            upcoming: plans of the next step, whose experts can be fetched meanwhile.
            num_targets: number of targets in the micro-batches of all ranks; None counts those of `batches`.
        """
        loss_scale = self.loss_scale.value
        gradients = self.gradients(batches, plans, upcoming, num_targets)
        self.processes.report_status(doing="the sum of the dense gradients")
        dense = self.optimizer.reduce(gradients.dense) if self.trains_dense else []
        squared_norm = self.experts.squared_norm() / self.processes.replicas.size
        if self.trains_dense:
            squared_norm += self.optimizer.squared_norm(dense)
        self.processes.report_status(doing="the sum of losses and norms")
        squared_norm = self._all_reduce_losses(gradients, squared_norm)
        global_norm = math.sqrt(squared_norm) / loss_scale if squared_norm >= 0 else math.nan
        skipped = self.guard.reason_to_skip({"loss": gradients.loss, "global_norm": global_norm})
        overflow = not (math.isfinite(gradients.loss) and math.isfinite(global_norm))
        lowered = self.loss_scale.update(overflow)
        if lowered:
            skipped = f"{skipped}; the loss scale goes from {loss_scale:g} to {self.loss_scale.value:g}"
        if skipped is None:
            self.updates += 1
            self.processes.report_status(doing="the update")
            scale = min(1.0, self.config.training.max_norm / (global_norm + 1e-6)) / loss_scale
            if self.trains_dense:
                self.optimizer.update(dense, self.updates, learning_rate, scale)
            self.experts.update(learning_rate, scale)
        domain_loss = {domain: total / max(count, 1) for domain, (total, count) in gradients.domain_loss.items()}
        return StepResult(gradients.loss, global_norm, skipped, domain_loss, self.experts.traffic, loss_scale, lowered)

    def finish(self) -> None:
        """Waits until the experts of the last step are updated."""
        self.experts.finish()

    def gradients(
        self,
        batches: Sequence[Batch],
        plans: Sequence[RoutePlan],
        upcoming: Sequence[RoutePlan] | None = None,
        num_targets: float | None = None,
    ) -> Gradients:
        """Sums loss and gradients over this rank's micro-batches. Each target has the weight 1 / num_targets."""
        total = Gradients()
        self.experts.begin(plans, upcoming)
        loss_scale = self.loss_scale.value
        if num_targets is None:
            num_targets = sum(float(batch.loss_mask_BS.sum()) for batch in batches)
        for batch, plan in zip(batches, plans, strict=True):
            self.processes.report_status(doing="forward and backward")
            weights_BS = batch.loss_mask_BS / np.float32(max(num_targets, 1)) * np.float32(loss_scale)
            loss, losses_B = self._micro_step(batch, plan, as_tensor(weights_BS), total.dense)
            total.loss += loss / loss_scale
            self._add_domain_losses(total, batch, plan, losses_B * (num_targets / loss_scale))
            self.processes.lower_priority()
        return total

    def _micro_step(
        self, batch: Batch, plan: RoutePlan, weights_BS: Tensor, dense: dict[str, Tensor]
    ) -> tuple[float, np.ndarray]:
        """Adds a micro-batch's gradients to `dense` and to the experts; returns its loss and per-sample losses."""
        functions = self.functions
        decoder = self.decoder
        inputs = self.model.inputs(batch.tokens_BS, batch.positions_BS, plan)
        upper_inputs = _upper_inputs(inputs, as_tensor(batch.targets_BS), weights_BS)
        if self.in_one_function:
            slabs = self.experts.slabs(plan) if self.config.model.rre_layers else []
            outputs, gradients = functions.whole_step(inputs.vocabulary, 0, inputs.rows_BS, *upper_inputs, *slabs)
            if slabs:
                slab_gradients, gradients = gradients
                self.experts.receive(plan, slab_gradients)
            _accumulate(dense, dict(zip(decoder.parameters, gradients, strict=True)))
            return _read(*outputs)
        h_TH = functions.lower_forward(inputs.rows_BS, inputs.positions_BS)
        slabs = self.experts.slabs(plan)
        settle(h_TH)
        outputs, gradients = functions.upper_step(
            inputs.vocabulary, inputs.capacity, h_TH, *upper_inputs, *slabs, *inputs.exchange
        )
        if not self.trains_dense:
            self.experts.receive(plan, gradients)
            return _read(*outputs)
        (dh_TH, *slab_gradients), upper = gradients
        self.experts.receive(plan, slab_gradients)
        settle(dh_TH)
        lower = functions.lower_backward(inputs.rows_BS, inputs.positions_BS, dh_TH)
        both = {p.name: gradient for p, gradient in zip(decoder.lower_parameters, lower, strict=True)}
        # the word embedding is in both halves: the lower half looks it up, the upper half multiplies by it
        _accumulate(both, {p.name: gradient for p, gradient in zip(decoder.upper_parameters, upper, strict=True)})
        _accumulate(dense, both)  # last, as in one function: a sum of floats depends on its order
        return _read(*outputs)

    def _all_reduce_losses(self, gradients: Gradients, squared_norm: float) -> float:
        """Replaces the losses with their sums over all ranks; returns the sum of `squared_norm` over all ranks."""
        processes = self.processes
        if processes.mesh.size == 1:
            return squared_norm
        losses_M2 = np.zeros((len(self.model.domains), 2))
        for domain, entry in gradients.domain_loss.items():
            losses_M2[domain] = entry
        # the ranks of a tensor group have the same samples
        losses = np.concatenate(([gradients.loss], losses_M2.reshape(-1))) / processes.mesh.tensor
        summed = processes.all_reduce_sum(np.concatenate(([squared_norm], losses)))
        squared_norm, gradients.loss, *losses = summed.tolist()
        losses_M2 = np.array(losses).reshape(-1, 2)
        gradients.domain_loss = {int(domain): losses_M2[domain].tolist() for domain in np.flatnonzero(losses_M2[:, 1])}
        return squared_norm

    def _add_domain_losses(self, total: Gradients, batch: Batch, plan: RoutePlan, losses_B: np.ndarray) -> None:
        losses = group_by_domain(losses_B, plan.domain_of_slot, plan.slot_of_sample_B)
        counts = group_by_domain(batch.loss_mask_BS.sum(1), plan.domain_of_slot, plan.slot_of_sample_B)
        for domain, values in losses.items():
            entry = total.domain_loss.setdefault(domain, [0.0, 0.0])
            entry[0] += float(values.sum())
            entry[1] += float(counts[domain].sum())


def _upper_inputs(inputs: ModelInputs, targets_BS: Tensor, weights_BS: Tensor) -> tuple[Tensor, ...]:
    """Returns the inputs that `upper_step` takes between h and the slabs, in order."""
    return (
        inputs.tokens_BS,
        inputs.positions_BS,
        targets_BS,
        weights_BS,
        inputs.vocabulary_of_sample_B,
        inputs.domain_slots_B,
        inputs.tables_LDV,
    )


def _read(loss: Tensor, losses_B: Tensor, invalid: Tensor) -> tuple[float, np.ndarray]:
    loss_value, losses, num_invalid = wait_for_all((loss, losses_B, invalid))
    refuse_invalid_ids(num_invalid)
    return float(loss_value), losses


def _accumulate(total: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
    for name, gradient in gradients.items():
        total[name] = total[name] + gradient if name in total else gradient
