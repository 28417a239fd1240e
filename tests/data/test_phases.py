"""data.phases (a few domains first, then all): the stream, its state, and mixtures that are refused."""

import json
from collections import Counter

import pytest

from mindpangu.config import load_config
from mindpangu.config.schema import PhaseConfig
from mindpangu.data import Loader
from mindpangu.data.domain_groups import domain_groups
from mindpangu.data.mixture import domains_in_use
from mindpangu.domains import build_domains
from mindpangu.errors import ConfigError, DataError

FIRST = PhaseConfig(steps=3, mixture={"zh": 2, "en": 1})
SECOND = PhaseConfig(steps=2, mixture={"code": 1})
LAST = {"bilingual": 1, "zh": 1, "en": 1, "code": 1}


def configured(make_config, phases=(FIRST, SECOND), **options):
    return make_config(local=4, world=8, phases=list(phases), mixture=LAST, **options)


def domains_of(loader, domains, steps):
    """Returns the names of the domains in each step."""
    sample_ids = [[batch.sample_ids_B2[:, 0] for batch in loader.next_step().micro_batches] for _ in range(steps)]
    return [{domains[domain].name for ids_B in step for domain in ids_B.tolist()} for step in sample_ids]


def test_each_phase_has_its_own_domains(tiny_shards, make_config):
    shards, domains = tiny_shards
    loader = Loader(shards, domains, configured(make_config))

    domains_of_step = domains_of(loader, domains, 9)

    assert sorted(map(sorted, domains_of_step[:3])) == [["en"], ["zh"], ["zh"]]
    assert domains_of_step[3:5] == [{"code"}] * 2
    assert sorted(name for step in domains_of_step[5:] for name in step) == ["bilingual", "code", "en", "zh"]


@pytest.mark.parametrize("schedule", [{}, {"schedule": "mixed", "domains_per_step": 4}], ids=["rotating", "mixed"])
@pytest.mark.parametrize("steps", range(8))
def test_a_restored_loader_continues_exactly_from_any_step(tiny_shards, make_config, steps, schedule):
    shards, domains = tiny_shards
    config = configured(make_config, **schedule)
    uninterrupted = Loader(shards, domains, config)
    for _ in range(steps):
        uninterrupted.next_step()

    restored = Loader(shards, domains, config, json.loads(json.dumps(uninterrupted.state())))

    for _ in range(6):
        expected = uninterrupted.next_step()
        actual = restored.next_step()
        assert actual.next_state == expected.next_state
        for a, b in zip(actual.micro_batches, expected.micro_batches, strict=True):
            assert (a.sample_ids_B2 == b.sample_ids_B2).all()


@pytest.mark.parametrize("schedule", [{}, {"schedule": "mixed", "domains_per_step": 4}], ids=["rotating", "mixed"])
def test_a_phase_without_a_mixture_trains_all_domains_equally(tiny_shards, make_config, schedule):
    shards, domains = tiny_shards
    only_chinese = {"zh": 3, "en": 0, "bilingual": 0, "code": 0}
    config = make_config(local=4, world=8, phases=[PhaseConfig(steps=4)], mixture=only_chinese, **schedule)
    loader = Loader(shards, domains, config)

    counts = Counter(
        domains[domain].name
        for _ in range(4)
        for batch in loader.next_step().micro_batches
        for domain in batch.sample_ids_B2[:, 0].tolist()
    )

    assert counts == dict.fromkeys(("bilingual", "zh", "en", "code"), 8)
    assert domains_of(loader, domains, 3) == [{"zh"}] * 3


def test_a_phase_continues_with_the_next_samples(tiny_shards, make_config):
    shards, domains = tiny_shards
    loader = Loader(shards, domains, configured(make_config))
    seen = set()

    for _ in range(9):
        ids = [tuple(pair) for batch in loader.next_step().micro_batches for pair in batch.sample_ids_B2.tolist()]
        assert not seen.intersection(ids)  # no domain completes an epoch in these steps
        seen.update(ids)


@pytest.mark.parametrize("began", [[0, 0, 0, 0], [0, 16, 8, 8], [0, 24, 8], [0, 32, -8, 0]])
def test_a_state_whose_phase_began_elsewhere_is_refused(tiny_shards, make_config, began):
    shards, domains = tiny_shards
    loader = Loader(shards, domains, configured(make_config))

    for _ in range(4):
        state = loader.next_step().next_state

    assert sorted(state["phase_began"]) == [0, 0, 8, 16]
    with pytest.raises(DataError, match="does not fit"):
        Loader(shards, domains, configured(make_config), state | {"phase_began": began})


def test_a_phase_that_had_fewer_samples_of_a_domain_than_it_began_with_is_refused(tiny_shards, make_config):
    """The sum is right, but the domain of the second phase, code, has more samples before the phase than now."""
    shards, domains = tiny_shards
    loader = Loader(shards, domains, configured(make_config))
    for _ in range(4):
        state = loader.next_step().next_state
    code = [domain.name for domain in domains].index("code")
    began = [0] * 4
    began[code] = sum(state["phase_began"])

    with pytest.raises(DataError, match="does not fit"):
        Loader(shards, domains, configured(make_config), state | {"phase_began": began})


def test_the_text_of_every_phase_is_needed(make_config):
    config = make_config(phases=[FIRST, SECOND], mixture={"bilingual": 0, "zh": 1, "en": 0, "code": 0})
    domains = build_domains(config)

    names = {domains[domain].name for domain in domains_in_use(config, domains)}

    assert names == {"zh", "en", "code"}


def test_a_phase_without_a_mixture_loads_all_domains_equally_often(tiny_shards, make_config):
    shards, domains = tiny_shards
    loader = Loader(shards, domains, configured(make_config, [PhaseConfig(steps=4), SECOND]))

    domains_of_step = domains_of(loader, domains, 6)

    assert sorted(name for step in domains_of_step[:4] for name in step) == ["bilingual", "code", "en", "zh"]
    assert domains_of_step[4:] == [{"code"}] * 2


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ({"zh": -1.0}, r"data.phases\[0\].mixture.zh is -1.0"),
        ({"zh": 0.0}, r"data.phases\[0\].mixture gives every domain the weight 0"),
        ({"zh": 3, "en": 1, "code": 1}, r"data.phases\[0\].mixture gives domain 'zh' 60.0%"),
    ],
)
def test_impossible_weights_of_a_phase_are_refused(make_config, phase, message):
    config = configured(make_config, [PhaseConfig(1, phase)], domains_per_step=2)

    with pytest.raises(ConfigError, match=message):
        domain_groups(config, build_domains(config))


def test_groups_of_domains_are_the_same_in_all_phases(make_config):
    groups = {"domain_groups": 2, "mixture_tolerance": 0.05}
    for pair in (("zh", "en"), ("zh", "code"), ("bilingual", "zh")):
        config = configured(make_config, [PhaseConfig(4, dict.fromkeys(pair, 1.0))], **groups)
        domains = build_domains(config)
        assert all(
            len({domains[domain].name for domain in group} & set(pair)) == 1 for group in domain_groups(config, domains)
        )

    config = configured(make_config, [PhaseConfig(4, {"zh": 2.0, "en": 1.0})], **groups)
    with pytest.raises(ConfigError, match=r"data.phases\[0\].mixture does not divide into 2 equal groups"):
        domain_groups(config, build_domains(config))


def test_unknown_names_and_keys_of_a_phase_are_named():
    with pytest.raises(ConfigError, match=r"data.phases\[0\].mixture"):
        build_domains(load_config(None, {"data.phases": "[{steps: 3, mixture: {zz: 1}}]"}))
    with pytest.raises(ConfigError, match=r"unknown key data.phases\[0\].step; did you mean data.phases\[0\].steps"):
        load_config(None, {"data.phases": "[{step: 3}]"})
