"""Fixtures of the conversion tests: tokenizers, configurations, a small release."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

PROJECT = Path(__file__).resolve().parents[3]
STRATEGIES = PROJECT.parent / "shared" / "data" / "strategy"


@pytest.fixture(scope="session")
def alpha_tokenizer():
    return PROJECT / "recipes" / "tokenizer" / "pangu_alpha_40k.model"


@pytest.fixture(scope="session")
def small_tokenizer(tiny_overrides):
    """A tokenizer with 420 pieces."""
    return Path(tiny_overrides["training.output_dir"]) / "prepared" / "tokenizer" / "main.model"


@pytest.fixture(scope="session")
def make_config():
    from mindpangu.config import load_config

    def make(layers=3, hidden=16, inner=40, vocabulary=420, positions=16, heads=2, **more):
        values = {
            "model.num_layers": layers,
            "model.rre_layers": 0,
            "model.hidden_size": hidden,
            "model.ffn_hidden_size": inner,
            "model.vocab_size": vocabulary,
            "model.seq_length": positions,
            "model.num_heads": heads,
            "domains.preset": "pangu_alpha",
            **more,
        }
        return load_config(None, {key: str(value) for key, value in values.items()})

    return make


@pytest.fixture(scope="session", params=["pangu_alpha_2.6B_ckpt_strategy.ckpt", "pangu_alpha_13B_cktp_strategy.ckpt"])
def real_strategy(request):
    path = STRATEGIES / request.param
    if not path.exists():
        pytest.skip(f"{path} is not here: PanGu-α's published strategy files are not part of the project")
    return path
