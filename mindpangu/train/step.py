"""One optimizer step: gradients of its micro-batches, one decision whether to take it, then all updates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from mindspore import Tensor

from mindpangu.data import Batch
from mindpangu.data.route_plan import RoutePlan
from mindpangu.language_model import LanguageModel, ModelInputs, as_tensor, group_by_domain, refuse_invalid_ids
from mindpangu.train.compiled import CompiledFunctions, slabs_of_layers
from mindpangu.train.optimizer import DenseAdam
from mindpangu.train.spikes import SpikeGuard


@dataclass
class Gradients:
    """Sum over the micro-batches of a step. The loss is a mean over the step's tokens, so nothing is divided later.

    Attributes:
        loss: mean loss of the step's unmasked targets.
        dense: name → gradient on the device.
        experts: (layer, domain id) → the four gradients of the slab on the host.
        activated_LDA: bool [L, all domains, A], experts that received a token.
        domain_loss: domain id → [sum of losses, number of targets].
    """

    loss: float = 0.0
    dense: dict[str, Tensor] = field(default_factory=dict)
    experts: dict[tuple[int, int], list[np.ndarray]] = field(default_factory=dict)
    activated_LDA: np.ndarray | None = None
    domain_loss: dict[int, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class StepResult:
    """What a step reports. `skipped` says why it was not taken, or is None."""

    loss: float
    global_norm: float
    skipped: str | None
    domain_loss: dict[int, float]
    experts_updated: int


class TrainStep:
    """The step of one model. Owns the compiled functions; changes the model's parameters and its expert store.

    Attributes:
        updates: how many steps have been applied (skipped ones do not count); drives Adam's bias correction.
    """

    def __init__(self, model: LanguageModel):
        config, decoder = model.config, model.decoder
        self.config, self.model, self.decoder, self.store = config, model, decoder, model.store
        any_slots = (0,) * config.data.domains_per_step
        self.functions = CompiledFunctions(decoder, len(model.store.lookup(any_slots)))
        self.optimizer = DenseAdam(decoder.parameters, config.optimizer)
        self.guard = SpikeGuard(config.training.spike_sigma, config.training.spike_window)
        self.updates = 0

    def run(self, batches: Sequence[Batch], plans: Sequence[RoutePlan], learning_rate: float) -> StepResult:
        """Takes one step on its micro-batches, or skips it, leaving every bit as it was."""
        gradients = self.gradients(batches, plans)
        dense = list(gradients.dense.values())
        squared = self.optimizer.squared_norm(dense) + self.store.squared_norm(gradients.experts)
        global_norm = math.sqrt(squared) if squared >= 0 else math.nan
        skipped = self.guard.reason_to_skip({"loss": gradients.loss, "global_norm": global_norm})
        updated = 0
        if skipped is None:
            self.updates += 1
            scale = min(1.0, self.config.training.max_norm / (global_norm + 1e-6))
            self.optimizer.update(dense, self.updates, learning_rate, scale)
            updated = self.store.update(gradients.experts, gradients.activated_LDA, learning_rate, scale)
        domain_loss = {domain: total / max(count, 1) for domain, (total, count) in gradients.domain_loss.items()}
        return StepResult(gradients.loss, global_norm, skipped, domain_loss, updated)

    def gradients(self, batches: Sequence[Batch], plans: Sequence[RoutePlan]) -> Gradients:
        """Loss and gradients summed over micro-batches; each target weighs 1 / targets of the whole step."""
        total = Gradients()
        store = self.store
        total.activated_LDA = np.zeros((store.num_layers, len(store.domains), store.group_size), bool)
        num_targets = sum(float(batch.loss_mask_BS.sum()) for batch in batches)
        for batch, plan in zip(batches, plans, strict=True):
            weights_BS = batch.loss_mask_BS / np.float32(max(num_targets, 1))
            inputs = self.model.inputs(batch.tokens_BS, batch.positions_BS, plan)
            loss, losses_B, invalid, dense, slabs = self._micro_step(
                inputs, as_tensor(batch.targets_BS), as_tensor(weights_BS)
            )
            refuse_invalid_ids(invalid)
            _accumulate_dense(total.dense, dense)
            total.loss += float(loss.asnumpy())
            self._add_experts(total, plan, slabs)
            self._add_domain_losses(total, batch, plan, losses_B.asnumpy() * num_targets)
        return total

    def _micro_step(self, inputs: ModelInputs, targets_BS: Tensor, weights_BS: Tensor):
        """(loss, per-sample losses, invalid ids, dense gradients by name, slab gradients in the lookup's order)."""
        functions, decoder = self.functions, self.decoder
        upper_inputs = (
            inputs.tokens_BS, inputs.positions_BS, targets_BS, weights_BS, inputs.sample_slots_B,
            inputs.domain_slots_B, inputs.tables_LDV, *inputs.slabs,
        )  # fmt: skip
        if self.config.model.rre_layers == 0:
            (loss, losses_B, invalid), gradients = functions.whole_step(inputs.slot, inputs.rows_BS, *upper_inputs)
            return loss, losses_B, invalid, dict(zip(decoder.parameters, gradients, strict=True)), ()
        h_TH = functions.lower_forward(inputs.rows_BS, inputs.positions_BS)
        outputs, ((dh_TH, *slabs), upper) = functions.upper_step(inputs.slot, h_TH, *upper_inputs)
        lower = functions.lower_backward(inputs.rows_BS, inputs.positions_BS, dh_TH)
        dense = {p.name: gradient for p, gradient in zip(decoder.lower_parameters, lower, strict=True)}
        # the word embedding is in both halves: looked up below, multiplied by above
        _accumulate_dense(dense, {p.name: g for p, g in zip(decoder.upper_parameters, upper, strict=True)})
        return *outputs, dense, slabs

    def _add_experts(self, total: Gradients, plan: RoutePlan, slabs: Sequence[Tensor]) -> None:
        """Sums the gradients of a domain that several slots or micro-batches use, and notes the activated experts."""
        for layer, slot, tensors in slabs_of_layers(slabs, self.store.num_layers, len(plan.domain_of_slot)):
            if not plan.counts_LDA[layer, slot].any():
                continue  # an unused slot: its gradients are zero
            key = (layer, plan.domain_of_slot[slot])
            arrays = [tensor.asnumpy() for tensor in tensors]
            if key in total.experts:
                arrays = [mine + other for mine, other in zip(total.experts[key], arrays, strict=True)]
            total.experts[key] = arrays
            total.activated_LDA[key] |= plan.counts_LDA[layer, slot] > 0

    def _add_domain_losses(self, total: Gradients, batch: Batch, plan: RoutePlan, losses_B: np.ndarray) -> None:
        losses = group_by_domain(losses_B, plan.domain_of_slot, plan.slot_of_sample_B)
        counts = group_by_domain(batch.loss_mask_BS.sum(1), plan.domain_of_slot, plan.slot_of_sample_B)
        for domain, values in losses.items():
            entry = total.domain_loss.setdefault(domain, [0.0, 0.0])
            entry[0] += float(values.sum())
            entry[1] += float(counts[domain].sum())


def _accumulate_dense(total: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
    for name, gradient in gradients.items():
        total[name] = total[name] + gradient if name in total else gradient
