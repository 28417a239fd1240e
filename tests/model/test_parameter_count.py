"""The shipped recipes have the parameter counts of the papers, and every one of them is valid."""

import dataclasses
import math
from pathlib import Path

import pytest

from mindpangu.config import load_config
from mindpangu.domains import build_domains
from mindpangu.errors import ConfigError
from mindpangu.model.parameter_count import count_parameters, from_words, in_words

RECIPES = Path(__file__).parents[2] / "recipes"


def count_of(recipe: str):
    return count_parameters(load_config(RECIPES / recipe))


@pytest.mark.parametrize(
    ("recipe", "total"),
    [
        ("pangu_sigma_1t.yaml", "1.085T"),
        ("pangu_sigma_38b.yaml", "38B"),
        ("pangu_alpha_2.6b.yaml", "2.6B"),
        ("pangu_alpha_13b.yaml", "13B"),
        ("pangu_pi_1b.yaml", "1.0B"),
        ("pangu_pi_7b.yaml", "6.7B"),
        ("pangu_pi_1b_pro.yaml", "1.0B"),
        ("pangu_pi_1.5b_pro.yaml", "1.5B"),
    ],
)
def test_recipe_has_the_size_that_the_paper_names(recipe, total):
    assert in_words(count_of(recipe).total) == total


def test_every_vocabulary_up_to_138000_gives_sigma_its_name():
    for vocab_size in ("40000", "98304", "138000"):
        overrides = {"model.vocab_size": vocab_size}
        assert in_words(count_parameters(load_config(RECIPES / "pangu_sigma_1t.yaml", overrides)).total) == "1.085T"
        assert in_words(count_parameters(load_config(RECIPES / "pangu_sigma_38b.yaml", overrides)).total) == "38B"


def test_a_token_of_sigma_activates_as_many_parameters_as_its_dense_parent_has():
    sigma = count_of("pangu_sigma_1t.yaml")
    parent = count_of("pangu_alpha_13b.yaml")

    assert sigma.activated - sigma.embedding == parent.total - parent.embedding
    assert parent.activated == parent.total


def test_a_sub_model_activates_as_many_parameters_as_the_whole():
    assert count_of("pangu_sigma_38b.yaml").activated == count_of("pangu_sigma_1t.yaml").activated


def test_count_equals_the_sum_over_the_tensors_of_a_small_model():
    overrides = {
        "model": "{num_layers: 3, rre_layers: 2, hidden_size: 8, ffn_hidden_size: 20, num_heads: 2, seq_length: 6}",
        "domains.names": "[zh, en]",
        "domains.experts": "{zh: 3, en: 2}",
        "domains.vocabularies": ("[{name: a, vocab_size: 11, domains: [zh]}, {name: b, vocab_size: 7, domains: [en]}]"),
    }
    ffn = [(8, 20), (20,), (20, 8), (8,)]
    layer = 4 * [(8, 8), (8,)] + 4 * [(8,)]
    shapes = [(11, 8), (7, 8), (6, 8), (6, 8), (8,), (8,), *3 * layer, *ffn, *2 * (3 + 2) * ffn]

    count = count_parameters(load_config(overrides=overrides))

    assert count.total == sum(math.prod(shape) for shape in shapes)
    assert count.activated == sum(
        math.prod(shape) for shape in [(11, 8), (6, 8), (6, 8), (8,), (8,), *3 * layer, *3 * ffn]
    )


def test_the_compact_vocabulary_reduces_the_embedding_share_below_a_fifth():
    """The tiny-model paper: 38.19 % of its 1B model before, 18.07 % after."""
    before = count_of("pangu_pi_1b.yaml")
    after = count_of("pangu_pi_1b_pro.yaml")

    assert before.embedding_share == pytest.approx(0.3819, abs=0.03)
    assert after.embedding_share == pytest.approx(0.1807, abs=0.02)


@pytest.mark.parametrize(
    ("count", "words"), [(999, "999"), (4_200, "4.2K"), (71_494_656, "71M"), (207_000_000_000, "207B")]
)
def test_in_words_rounds_as_papers_do(count, words):
    assert in_words(count) == words


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_recipe_is_a_usable_configuration(path):
    config = load_config(path)

    assert build_domains(config)
    assert config.training.run_name == path.stem
    assert config.context.device_target == ("CPU" if path.stem.startswith("cpu") else "Ascend")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_value_of_a_recipe_has_a_comment_with_its_source(path):
    section = ""
    obvious = {"run_name", "device_target", "data_parallel", "tensor_parallel", "expert_parallel", "mixture"}

    for line in path.read_text(encoding="utf-8").splitlines():
        section = line.rstrip(":") if line and not line.startswith((" ", "#")) else section
        if line.startswith("  ") and line[2].isalpha() and ":" in line:
            key = line.strip().split(":")[0]
            assert key in obvious or "#" in line, f"{path.name}: {section}.{key} has no comment"


def test_sigma_carries_the_training_values_of_the_paper():
    config = load_config(RECIPES / "pangu_sigma_1t.yaml")
    optimizer = config.optimizer
    schedule = config.lr_scheduler
    training = config.training

    assert (optimizer.betas, optimizer.eps, optimizer.expert_eps) == ([0.8, 0.95], 1e-8, 1e-20)
    assert (schedule.warmup_steps, schedule.decay_steps, schedule.lr_end) == (5_000, 180_000, 2e-5)
    assert training.global_batch_size * config.model.seq_length == 524_288
    assert training.steps == pytest.approx(329e9 / 524_288, rel=1e-4)


def test_sigmas_mixture_is_table_1_over_all_40_domains():
    config = load_config(RECIPES / "pangu_sigma_1t.yaml")
    mixture = config.data.mixture

    assert list(mixture) == [domain.name for domain in build_domains(config)]
    assert [mixture[name] for name in ("bilingual", "zh", "en", "code")] == [77.51, 75.47, 75.90, 75.24]
    assert sum(mixture.values()) == pytest.approx(304.12 + 25, abs=0.05)
    assert len({mixture[name] for name in list(mixture)[4:]}) == 1


def test_sigma_gives_every_rank_one_expert_of_its_sub_groups_domains():
    config = load_config(RECIPES / "pangu_sigma_1t.yaml")
    mesh = config.parallelism

    assert mesh.data_parallel * mesh.tensor_parallel == 512
    assert mesh.expert_parallel == 4 * config.domains.experts_per_domain


def test_sub_model_differs_from_the_whole_in_its_domains_alone():
    whole, part = (load_config(RECIPES / f"pangu_sigma_{size}.yaml") for size in ("1t", "38b"))

    assert part.model == whole.model
    assert dataclasses.replace(part.domains, names=[]) == whole.domains
    assert part.optimizer == whole.optimizer


def test_words_for_counts():
    words = {"200000": 200_000, "2e5": 200_000, "350K": 350_000, "2m": 2_000_000, " 1.5 B": 1_500_000_000, "1T": 10**12}

    assert {text: from_words("--budget", text) for text in words} == words
    for wrong in ("", "0", "-2M", "2X", "1.5", "2 MB", "M", "1e999999999", "½"):
        with pytest.raises(ConfigError, match=r"--budget is .*; allowed: a whole number above 0"):
            from_words("--budget", wrong)
