"""The same models and steps in torch, with torch's fused functions for them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mindpangu.tensor_format import decode
from mindpangu.train.optimizer import is_decayed
from step_bench.cases import LEARNING_RATE, Case


class Model:
    """The decoder of `mindpangu.model`, with biases, learned positions, a query layer, and a tied head."""

    def __init__(self, case: Case, arrays: dict[str, np.ndarray]):
        self.case = case
        self.epsilon = case.config().model.layernorm_epsilon
        self.weights = {
            name: torch.from_numpy(array.copy()).requires_grad_()
            for name, array in arrays.items()
            if not name.startswith(("experts.", "table."))
        }
        # each expert's tensors on their own: only those with gradients are updated
        self.experts = {
            name: [torch.from_numpy(each.copy()).requires_grad_() for each in array]
            for name, array in arrays.items()
            if name.startswith("experts.")
        }
        self.tables = {
            name: torch.from_numpy(array.astype(np.int64))
            for name, array in arrays.items()
            if name.startswith("table.")
        }

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor, domain: int) -> torch.Tensor:
        """Returns the mean loss; `tokens` and `targets` are int64 [B, S]."""
        case = self.case
        weights = self.weights
        positions = torch.arange(case.length)
        x = weights["word_embedding"][tokens] + weights["position_embedding"][positions]
        x = x.reshape(-1, case.hidden)
        for layer in range(case.layers - 1):
            x = self._block(f"blocks.{layer}", layer, x, None, tokens, domain)
        x = self._norm("final_norm", x)
        query = weights["query_embedding"][positions].repeat(case.batch, 1)
        x = self._block("query_layer", case.layers - 1, x, query, tokens, domain)
        return F.cross_entropy(F.linear(x, weights["word_embedding"]), targets.reshape(-1))

    def _block(self, name: str, layer: int, x, query, tokens, domain: int):
        h = self._norm(f"{name}.attention_norm", x)
        x = x + self._attention(f"{name}.attention", h if query is None else query, h)
        h = self._norm(f"{name}.ffn_norm", x)
        routed = layer - (self.case.layers - self.case.routed)
        if routed >= 0:
            return x + self._experts(routed, domain, h, tokens)
        u = self._linear(f"{name}.ffn.up", h)
        return x + self._linear(f"{name}.ffn.down", u * torch.sigmoid(1.702 * u))

    def _attention(self, name: str, query, h):
        case = self.case

        def heads(x):
            return x.view(case.batch, case.length, case.heads, -1).transpose(1, 2)

        query, key, value = (
            heads(self._linear(f"{name}.{part}", x)) for part, x in (("query", query), ("key", h), ("value", h))
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self._linear(f"{name}.output", mixed.transpose(1, 2).reshape(-1, case.hidden))

    def _experts(self, layer: int, domain: int, h, tokens):
        experts = self.tables[f"table.{layer}.{domain}"][tokens.reshape(-1)]
        order = torch.argsort(experts, stable=True)
        counts = torch.bincount(experts, minlength=self.case.experts).tolist()
        tensors = [self.experts[f"experts.{layer}.{domain}.{name}"] for name in ("up", "up_bias", "down", "down_bias")]
        outputs = []
        for index, rows in enumerate(h.index_select(0, order).split(counts)):
            if len(rows):
                up, up_bias, down, down_bias = (tensor[index] for tensor in tensors)
                u = torch.addmm(up_bias, rows, up)
                outputs.append(torch.addmm(down_bias, u * torch.sigmoid(1.702 * u), down))
        return torch.cat(outputs).index_select(0, torch.argsort(order))

    def _norm(self, name: str, x):
        weights = self.weights
        return F.layer_norm(x, x.shape[1:], weights[f"{name}.gamma"], weights[f"{name}.beta"], self.epsilon)

    def _linear(self, name: str, x):
        return torch.addmm(self.weights[f"{name}.bias"], x, self.weights[f"{name}.weight"])


def open_torch(case: Case, weights: Path, compiled: bool) -> Callable[[], float]:
    """Returns a function that takes one step and returns its loss."""
    torch.set_num_threads(_num_threads())
    config = case.config()
    model = Model(case, decode(weights.read_bytes())[1])
    dense = list(model.weights.items())
    experts = [(name, tensor) for name, tensors in model.experts.items() for tensor in tensors]
    settings = config.optimizer

    def group(named, decays: bool, eps: float):
        return {"params": named, "weight_decay": settings.weight_decay if decays else 0.0, "eps": eps}

    optimizer = torch.optim.AdamW(
        [
            group([tensor for name, tensor in dense if is_decayed(name)], True, settings.eps),
            group([tensor for name, tensor in dense if not is_decayed(name)], False, settings.eps),
            group([tensor for name, tensor in experts if "bias" not in name], True, settings.expert_eps),
            group([tensor for name, tensor in experts if "bias" in name], False, settings.expert_eps),
        ],
        lr=LEARNING_RATE,
        betas=tuple(settings.betas),
        fused=True,
    )
    parameters = [tensor for _, tensor in (*dense, *experts)]
    loss_of = torch.compile(model.loss) if compiled else model.loss
    batches = case.batches()

    def step() -> float:
        batch = next(batches)
        tokens, targets = (torch.from_numpy(array.astype(np.int64)) for array in (batch.tokens_BS, batch.targets_BS))
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(tokens, targets, batch.domain_of_slot[0])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.training.max_norm)
        optimizer.step()
        return float(loss.detach())

    return step


def _num_threads() -> int:
    from ascend_ops.bench.limits import num_threads

    return num_threads()
