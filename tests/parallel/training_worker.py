"""One rank of a training that test_layouts.py starts.

Usage: python training_worker.py OVERRIDES FOLDER STEPS. It trains and writes its results to FOLDER/RANK.npz: losses and
norms of the steps, and this rank's shards of the first step's gradients and of the final weights, each with a
description of the shard. `whole` puts the shards together.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from mindpangu.config import load_config
from mindpangu.data import Loader
from mindpangu.parallel.mesh import Mesh
from mindpangu.parallel.processes import start_processes
from mindpangu.train.run import open_run, set_device
from mindpangu.train.step import TrainStep


def train(overrides, folder, steps):
    mixed = overrides.pop("mixed", False)  # all ranks exchange with all, whatever their domains
    config = load_config(None, overrides)
    set_device(config)
    processes = start_processes(config, replace(Mesh.from_config(config), sub_groups=1) if mixed else None)
    processes.join_groups(config)
    run = open_run(config, processes)
    run.model.store.initialize()
    step = TrainStep(run.model)
    loader = Loader(run.shards, run.model.domains, config)
    record = {"losses": [], "norms": [], "skipped": [], "bytes_sent": 0, "bytes_planned": 0, "peers": 0}
    parts = {}
    exchange = processes.exchange
    for index in range(steps):
        plan = run.model.planner.plan_step(loader.next_step().micro_batches)
        if index == 0:
            parts |= gradients(step, plan)
        before = exchange.statistics()["bytes_sent"] if exchange else 0
        result = step.run(plan.batches, plan.plans, 0.002, None, plan.num_targets)
        record["losses"].append(result.loss)
        record["norms"].append(result.global_norm)
        record["skipped"].append(result.skipped or "")
        if exchange:
            record["peers"] = exchange.size - 1
            record["bytes_sent"] += exchange.statistics()["bytes_sent"] - before
            record["bytes_planned"] += planned_bytes(
                plan, exchange.rank, config.model.hidden_size // processes.mesh.tensor, step.trains_dense
            )
    step.finish()
    for name, parameter in run.model.decoder.parameters.items():
        parts[f"weight/{name}"] = parameter.asnumpy(), run.model.decoder.slices[name]
    parts |= expert_parts(run.model.store, "weight", run.model.store.weights)
    arrays = {}
    described = {}
    for name, (array, part) in parts.items():
        arrays[name] = np.array(array)
        described[name] = part.describe()
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{processes.rank}.npz", record=json.dumps(record), parts=json.dumps(described), **arrays)


def planned_bytes(plan, rank, width, trains_dense):
    """Returns the bytes that a rank sends to others in a step.

    It sends rows to their experts and back, and the gradients of both. If only experts are trained, nobody needs the
    gradients of the lowest RRE layer's rows.
    """
    rows = 0
    for each in plan.plans:
        for counts_LR in (each.exchange.send_LR, each.exchange.receive_LR):
            rows += 2 * (counts_LR.sum() - counts_LR[:, rank].sum())
        if not trains_dense:
            lowest_R = each.exchange.receive_LR[0]
            rows -= lowest_R.sum() - lowest_R[rank]
    return int(rows * width * 4)


def gradients(step, plan):
    """Returns this rank's shards of the gradients over the samples of all ranks."""
    own = step.gradients(plan.batches, plan.plans, None, plan.num_targets)
    names = list(step.decoder.parameters)
    group = step.processes.dense
    parts = {}
    for name in names:
        if name not in own.dense:  # only experts are trained
            continue
        gradient = own.dense[name]
        if group.size > 1:
            gradient = step.optimizer.all_reduce(gradient)[0]
        parts[f"gradient/{name}"] = gradient.asnumpy().copy(), step.decoder.slices[name]
    step.experts.squared_norm()  # sums the gradients over the replicas
    store = step.model.store
    slabs = [[{} for _ in store.domains] for _ in range(store.num_layers)]
    for (layer, domain), tensors in step.experts.gradients().items():
        slabs[layer][domain] = dict(zip(store.tensors, tensors, strict=True))
    return parts | expert_parts(store, "gradient", slabs)


def expert_parts(store, kind, slabs):
    """Returns this rank's shards of the experts' tensors in slabs[layer][domain]."""
    parts = {}
    for layer, domain, index in store.experts():
        for name, part in store.slices.items():
            if slabs[layer][domain]:
                key = f"{kind}/expert {layer} {store.domains[domain].name} {store.first + index} {name}"
                parts[key] = slabs[layer][domain][name][index].copy(), part
    return parts


def whole(folder, ranks):
    """Returns (results of every rank, name → whole tensor). Shards that several ranks hold must be equal."""
    results = []
    tensors = {}
    filled = {}
    from mindpangu.parallel.sharding import TensorSlice

    for rank in range(ranks):
        with np.load(folder / f"{rank}.npz") as file:
            results.append(json.loads(str(file["record"])))
            for name, described in json.loads(str(file["parts"])).items():
                part = TensorSlice.read(described, name)
                if name not in tensors:
                    tensors[name] = np.zeros(part.shape, np.float32)
                    filled[name] = np.zeros(part.shape, bool)
                here = part.of(filled[name])
                if here.all():
                    np.testing.assert_array_equal(part.of(tensors[name]), file[name], err_msg=name)
                part.put(file[name], tensors[name])
                part.put(np.ones(part.local_shape, bool), filled[name])
    assert all(each.all() for each in filled.values())
    return results, tensors


if __name__ == "__main__":
    train(json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
