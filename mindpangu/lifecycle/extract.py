"""A sub-model: some of a model's domains, and what they need. Their logits are the full model's, bit for bit.

Every file is taken over as it is. What `vocabulary.py` and `export.py` do with a sub-model changes files.
"""

from mindpangu.lifecycle.blueprint import Blueprint
from mindpangu.lifecycle.domains import remove_domains


def extract(blueprint: Blueprint, names: list[str]) -> Blueprint:
    """The sub-model of some domains.

    Raises:
        ConfigError: a name that the model does not have, or none.
    """
    for name in names:
        blueprint.domain(name)
    others = {domain.name for domain in blueprint.domains} - set(names)
    return remove_domains(blueprint, others) if others else blueprint
