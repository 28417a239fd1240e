"""The count from the configuration equals the number of weights of the model."""

import numpy as np
import pytest

from mindpangu.config import load_config
from mindpangu.domains import build_domains
from mindpangu.experts import ExpertStore
from mindpangu.model.decoder import Decoder
from mindpangu.model.parameter_count import count_parameters
from mindpangu.model.vocabularies import Vocabularies

VOCABULARIES = "[{name: a, vocab_size: 30, domains: [zh]}, {name: b, vocab_size: 50, domains: [en]}]"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.rre_layers": "0"},
        {"model.rre_layers": "3"},
        {"domains.experts": "{code: 5}"},
        {"domains.names": "[zh, en]", "domains.vocabularies": VOCABULARIES},
        {"model.query_layer": "false", "model.tied_head": "false", "model.biases": "false"},
        {"model.position": "rope", "model.norm": "rmsnorm", "model.activation": "swiglu"},
        {"model.series_terms": "3", "model.shortcut_reduction": "4"},
        {
            "model.series_terms": "1",
            "model.shortcut_reduction": "2",
            "model.activation": "swiglu",
            "model.biases": "false",
        },
    ],
)
def test_count_equals_the_tensors(changes):
    config = load_config(
        None,
        {
            "model.num_layers": "3",
            "model.hidden_size": "8",
            "model.num_heads": "2",
            "model.seq_length": "6",
            "model.vocab_size": "40",
            "domains.experts_per_domain": "2",
        }
        | changes,
    )
    domains = build_domains(config)
    decoder = Decoder(config, Vocabularies.build(config, domains))
    store = ExpertStore(config, domains)
    dense = sum(int(np.prod(parameter.shape)) for parameter in decoder.parameters.values())
    one_expert = sum(int(np.prod(shape)) for shape in store.shapes.values())

    assert count_parameters(config).total == dense + one_expert * len(store.experts())
