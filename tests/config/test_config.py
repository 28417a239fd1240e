"""Loading a configuration: strictness, helpful messages, and the round trip through YAML."""

from pathlib import Path

import pytest

from mindpangu.config import Config, describe_keys, is_saved_config, load_config, to_yaml
from mindpangu.errors import ConfigError

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.hiden_size": "3"}, "unknown key model.hiden_size; did you mean model.hidden_size?"),
        ({"modle.hidden_size": "3"}, "unknown key modle; did you mean model?"),
        ({"training.steps": "0"}, "training.steps is 0; allowed: >= 1"),
        ({"training.steps": "many"}, r"training.steps is 'many' \(str\); expected int"),
        ({"training.steps": "1.5"}, "expected int"),
        ({"data.eod_reset": "1"}, "expected bool"),
        ({"data.corpus": "a.jsonl"}, "expected a list"),
        ({"data.corpus": "[true]"}, r"data.corpus\[0\] is True \(bool\); expected str"),
        ({"data.mixture": "[en]"}, "expected name: value pairs"),
        ({"routing.assignment": "learned"}, "allowed: balanced, random"),
        ({"model.num_heads": "3"}, "model.num_heads is 3, which does not divide model.hidden_size 256"),
        ({"model.rre_layers": "9"}, "more than model.num_layers"),
        ({"training.global_batch_size": "12"}, "not a multiple of training.local_batch_size 8"),
        ({"data.domains_per_step": "3"}, "not divide training.local_batch_size 8, as data.schedule rotating requires"),
        ({"model.position": "rope", "model.hidden_size": "20"}, "rotates pairs of channels, but .* is 5, an odd"),
        ({"model.shortcut_reduction": "257"}, "which leaves the bottleneck no channels"),
        ({"data.schedule": "random"}, "data.schedule is 'random'; allowed: rotating, mixed"),
        ({"lr_scheduler.warmup_steps": "100"}, "not more than lr_scheduler.warmup_steps"),
        ({"lr_scheduler.lr_end": "1"}, "above lr_scheduler.learning_rate"),
        ({"optimizer.betas": "[0.9]"}, "two numbers"),
        ({"context.precision": "bf16"}, "the CPU has no bf16 kernels"),
        ({"training.run_name": "a/b"}, "the name of one folder"),
        ({"model": "3"}, "expected keys of ModelConfig"),
        ({"training.steps.x": "3"}, "training.steps is"),
        ({"data.heldout_fraction": ".nan"}, "allowed: a finite number"),
        ({"data.mixture": "{zh: .nan}"}, "data.mixture.zh is nan; allowed: a finite number"),
        ({"optimizer.betas": "[0.9, .inf]"}, r"optimizer.betas\[1\] is inf; allowed: a finite number"),
        ({"training.steps": "1_000"}, r"training.steps is '1_000' \(str\); expected int"),
        ({"training.steps": "１"}, r"training.steps is '１' \(str\); expected int"),
        ({"training.steps": "9223372036854775808"}, "allowed: integers below 2"),
        ({"training.steps": "1" + "0" * 400}, r"training.steps .* has 401 digits; allowed: 40"),
        ({"lr_scheduler.learning_rate": "1" + "0" * 400}, "has 401 digits"),
        ({"lr_scheduler.learning_rate": "0x" + "f" * 9000}, "has 9,002 digits"),
        ({"lr_scheduler.learning_rate": "1_0.5"}, r"is '1_0.5' \(str\); expected float"),
        ({"lr_scheduler.learning_rate": "1e999"}, "allowed: a finite number"),
        ({"training.run_name": "x" * 5000}, r"\(5,000 characters\); allowed: at most 4,096 characters"),
        ({"data.corpus": '["a\\0b"]'}, "none of them NUL"),
        ({"routing.assignment": "x" * 4000}, r"\(4,000 characters\); allowed: balanced, random"),
        ({"lr_scheduler.learning_rate": ".inf"}, "allowed: a finite number"),
        ({"lr_scheduler.learning_rate": "nan"}, r"is 'nan' \(str\); expected float"),
        ({"data.heldout_fraction": "0.6"}, "allowed: > 0 and <= 0.5"),
        ({"model.vocab_size": "[1"}, "not a YAML value"),
        ({"domains.vocabularies": "[{nam: a}]"}, r"did you mean domains.vocabularies\[0\].name"),
    ],
)
def test_every_mistake_is_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


NUMBERS = [key for key, _, default, _ in describe_keys() if isinstance(default, float)]


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999"])
@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_that_are_not_finite_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"^{key} is -?(nan|inf); allowed: a finite number$"):
        load_config(None, {key: value})


@pytest.mark.parametrize("beta", [".nan", ".inf", "-.inf"])
def test_betas_that_are_not_finite_are_refused(beta):
    with pytest.raises(ConfigError, match=r"^optimizer\.betas\[1\] is -?(nan|inf); allowed: a finite number$"):
        load_config(None, {"optimizer.betas": f"[0.9, {beta}]"})


def test_a_mixed_schedule_may_have_any_number_of_slots():
    assert load_config(None, {"data.schedule": "mixed", "data.domains_per_step": "3"}).data.domains_per_step == 3


def test_overrides_win_over_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("training:\n  steps: 7\nmodel:\n")

    config = load_config(path, {"lr_scheduler.learning_rate": "2e-3", "lr_scheduler.warmup_steps": "2"})

    assert config.training.steps == 7
    assert config.lr_scheduler.learning_rate == 0.002
    assert config.lr_scheduler.decay_steps == 7  # derived
    assert config.model.ffn_hidden_size == 1024  # derived


@pytest.mark.parametrize("text", ["- a\n", "just words", "a: [", "\xff"])
def test_an_unreadable_file_is_named(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))

    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml does not exist"):
        load_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_saved_configuration_reads_back_equal(recipe, tmp_path):
    config = load_config(recipe)

    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))

    assert load_config(path) == config


def test_every_key_has_a_docstring():
    listed = list(describe_keys())

    assert len(listed) > 50
    for key, _, _, meaning in listed:
        assert len(meaning) > 15, key
    assert {key.split(".")[0] for key, *_ in listed} == set(Config.__dataclass_fields__)


def test_a_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("training:\n  steps: 70\nmodel:\n  num_layers: 3\ntraining:\n  seed: 1\n")

    with pytest.raises(ConfigError, match="'training' appears twice in one section, which begins at line 1"):
        load_config(path)


@pytest.mark.parametrize("text", ["/a #b", "a: b", "'quoted'", "007"])
def test_a_text_override_is_taken_verbatim(text):
    assert load_config(None, {"training.output_dir": text}).training.output_dir == text


@pytest.mark.parametrize("path", [None, *RECIPES], ids=str)
def test_saved_configurations_are_told_apart_from_those_of_users(tmp_path, path):
    (tmp_path / "saved.yaml").write_text(to_yaml(load_config(path)))
    (tmp_path / "mine.yaml").write_text("# why\n" + to_yaml(load_config(path)))

    assert is_saved_config(tmp_path / "saved.yaml")
    assert not is_saved_config(tmp_path / "mine.yaml")
    assert not is_saved_config(tmp_path / "absent.yaml")
    assert path is None or not is_saved_config(path)
