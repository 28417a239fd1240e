"""Extraction of a sub-model: some of a model's domains. Their logits are the full model's, bit for bit.

Every file is carried over as it is. Only `vocabulary.py` and `export.py` change the files of a sub-model.
"""

from mindpangu.lifecycle.blueprint import Blueprint
from mindpangu.lifecycle.domains import remove_domains


def extract(blueprint: Blueprint, names: list[str]) -> Blueprint:
    """Returns the sub-model of some domains.

    Raises:
        ConfigError: no names are given, or the model does not have one of them.
    """
    for name in names:
        blueprint.domain(name)
    others = {domain.name for domain in blueprint.domains} - set(names)
    return remove_domains(blueprint, others) if others else blueprint
