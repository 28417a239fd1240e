"""The table of a checkpoint's domains that `mindpangu experts list` prints, from file headers only."""

import math

from mindpangu.checkpoint import ExpertFile
from mindpangu.checkpoint.tensor_file import TensorFile
from mindpangu.lifecycle.blueprint import Blueprint
from mindpangu.model.initialization import expert_shapes
from mindpangu.model.parameter_count import in_words


def list_experts(blueprint: Blueprint) -> str:
    """Formats one row per domain: its experts per layer, their parameters, bytes and updates, and its table."""
    blueprint.require_experts()
    reader = blueprint.dense.reader
    updates: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    for name, entry in reader.files.items():
        if name.startswith("experts/"):
            file = TensorFile(reader.require_size(name))
            header = ExpertFile.from_metadata(file.path, file.metadata)
            updates.setdefault(header.domain, []).append(header.step_count)
            sizes[header.domain] = sizes.get(header.domain, 0) + int(entry["bytes"])
    model = blueprint.config.model
    parameters_per_expert = sum(map(math.prod, expert_shapes(blueprint.config).values()))
    lines = [
        f"{'domain':>12} {'kind':>11} {'experts':>8} {'parameters':>11} {'on disk':>10} {'updates':>13}  "
        "table        vocabulary, control tokens"
    ]
    for domain in blueprint.domains:
        table = blueprint.contents[domain.name].table
        counts = updates.get(domain.name, [0])
        lines.append(
            f"{domain.name:>12} {domain.kind:>11} {domain.num_experts:>8} "
            f"{in_words(domain.num_experts * model.rre_layers * parameters_per_expert):>11} "
            f"{sizes.get(domain.name, 0) / 1e6:>7.1f} MB {f'{min(counts)} to {max(counts)}':>13}  "
            f"{table.assignment:<8} {table.digest[:4]}  "
            f"{domain.vocabulary}, {' '.join(domain.control_tokens) or 'none'}"
        )
    lines.append(f"{model.rre_layers} RRE layers; experts are counted per layer")
    return "\n".join(lines)
