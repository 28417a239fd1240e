"""A PanGu-α model in its public format, and its forward pass, with MindSpore's own functions and NumPy.

This module imports nothing of the project. Names and layouts are those of the published code. The forward pass is that
of the PanGu-α paper: pre-norm blocks, a LayerNorm, a query layer whose queries are position embeddings, a tied head.
"""

import numpy as np


def random_weights(layers, hidden, inner, vocabulary, positions, seed=0):
    """Draws public name → float32; `layers` counts the query layer.

    No vector is all 0 or 1, because a model could forget such a vector unnoticed.
    """
    rng = np.random.default_rng(seed)

    def draw(*shape, around=0.0, scale=0.2):
        return (around + scale * rng.standard_normal(shape)).astype(np.float32)

    weights = {
        "backbone.embedding.word_embedding.embedding_table": draw(vocabulary, hidden),
        "backbone.embedding.position_embedding.embedding_table": draw(positions, hidden),
        "backbone.top_query_embedding.embedding_table": draw(positions, hidden),
        "backbone.layernorm.gamma": draw(hidden, around=1.0),
        "backbone.layernorm.beta": draw(hidden),
    }
    for layer in [*(f"backbone.blocks.{i}" for i in range(layers - 1)), "backbone.top_query_layer"]:
        for norm in ("layernorm1", "layernorm2"):
            weights[f"{layer}.{norm}.gamma"] = draw(hidden, around=1.0)
            weights[f"{layer}.{norm}.beta"] = draw(hidden)
        for dense in ("dense1", "dense2", "dense3", "projection"):
            weights[f"{layer}.attention.{dense}.weight"] = draw(hidden, hidden)
            weights[f"{layer}.attention.{dense}.bias"] = draw(hidden)
        weights[f"{layer}.output.mapping.weight"] = draw(hidden, inner)
        weights[f"{layer}.output.mapping.bias"] = draw(inner)
        weights[f"{layer}.output.projection.weight"] = draw(inner, hidden)
        weights[f"{layer}.output.projection.bias"] = draw(hidden)
    return weights


def old_names(weights):
    """Returns the weights under the names of the first release."""
    return {name.replace("backbone.embedding.", "backbone."): values for name, values in weights.items()}


def save(path, weights, **options):
    import mindspore as ms

    tensors = [{"name": name, "data": ms.Tensor(array)} for name, array in weights.items()]
    ms.save_checkpoint(tensors, str(path), **options)


def load(path):
    import mindspore as ms

    return {name: parameter.asnumpy() for name, parameter in ms.load_checkpoint(str(path)).items()}


def logits(weights, tokens_BS, heads):
    """Computes the logits, float64 [B, S, V]."""
    w = {name: values.astype(np.float64) for name, values in weights.items()}
    length = tokens_BS.shape[1]
    words_VH = w["backbone.embedding.word_embedding.embedding_table"]
    x_BSH = words_VH[tokens_BS] + w["backbone.embedding.position_embedding.embedding_table"][:length]
    blocks = 1 + max(int(name.split(".")[2]) for name in w if name.startswith("backbone.blocks."))
    for i in range(blocks):
        x_BSH = _layer(w, f"backbone.blocks.{i}", x_BSH, None, heads)
    x_BSH = _norm(w, "backbone.layernorm", x_BSH)
    query_SH = w["backbone.top_query_embedding.embedding_table"][:length]
    query_BSH = np.broadcast_to(query_SH, x_BSH.shape)
    return _layer(w, "backbone.top_query_layer", x_BSH, query_BSH, heads) @ words_VH.T


def _layer(w, name, x_BSH, query_BSH, heads):
    normed_BSH = _norm(w, f"{name}.layernorm1", x_BSH)
    query_BSH = normed_BSH if query_BSH is None else query_BSH  # the queries of the query layer are not normed
    x_BSH = x_BSH + _attention(w, f"{name}.attention", query_BSH, normed_BSH, heads)
    h_BSF = _norm(w, f"{name}.layernorm2", x_BSH)
    h_BSF = h_BSF @ w[f"{name}.output.mapping.weight"] + w[f"{name}.output.mapping.bias"]
    h_BSF = h_BSF / (1 + np.exp(-1.702 * h_BSF))  # fast GELU
    return x_BSH + h_BSF @ w[f"{name}.output.projection.weight"] + w[f"{name}.output.projection.bias"]


def _attention(w, name, query_BSH, x_BSH, heads):
    def split(dense, values_BSH):
        # dense1, dense2 and dense3 are nn.Dense, which multiplies by the transpose of its weight
        values_BSH = values_BSH @ w[f"{name}.{dense}.weight"].T + w[f"{name}.{dense}.bias"]
        return values_BSH.reshape(*values_BSH.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    query = split("dense1", query_BSH)
    key = split("dense2", x_BSH)
    value = split("dense3", x_BSH)
    scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(query.shape[-1])
    scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (scores / scores.sum(-1, keepdims=True)) @ value
    mixed_BSH = mixed.transpose(0, 2, 1, 3).reshape(x_BSH.shape)
    return mixed_BSH @ w[f"{name}.projection.weight"] + w[f"{name}.projection.bias"]


def _norm(w, name, x_BSH):
    centred = x_BSH - x_BSH.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.gamma"] + w[f"{name}.beta"]


# ---- Sets with a file per rank ---------------------------------------------------------------------------------------


def scaled_strategy(real, path, layers, devices=(4, 2)):
    """Writes the strategy of a smaller training by the rules of a real one: `layers` layers on another grid.

    Returns:
        name → (tensor map, whether optimizer shards divide it), read with MindSpore's own module.
    """
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    strategy = ParallelStrategyMap()
    rules = {}
    strategy.ParseFromString(real.read_bytes())
    items = list(strategy.parallel_layout_item)
    del strategy.parallel_layout_item[:]
    for item in items:
        name = item.param_name.removeprefix("adam_m.").removeprefix("adam_v.")
        if ".blocks." in name and int(name.split(".")[2]) >= layers - 1:
            continue
        layout = item.parallel_layouts
        layout.dev_matrix[0].dim[:] = devices
        if layout.opt_weight_shard_step:
            layout.opt_weight_shard_step = devices[1]
        strategy.parallel_layout_item.append(item)
        if name == item.param_name:
            rules[name] = tuple(layout.tensor_map[0].dim), bool(layout.opt_weight_shard_size)
    path.write_bytes(strategy.SerializeToString())
    return rules


def slices_of(values, rule, devices=(4, 2)):
    """Returns the slice of a tensor that each rank saves. The grid's last axis divides an axis whose map entry is 0."""
    tensor_map, sharded = rule
    slices = []
    for row in range(devices[0]):
        for column in range(devices[1]):
            piece = values
            for axis, grid_axis in enumerate(tensor_map):
                if grid_axis == 0:
                    piece = np.split(piece, devices[1], axis)[column]
            slices.append(np.split(piece, devices[0])[row] if sharded else piece)
    return slices
