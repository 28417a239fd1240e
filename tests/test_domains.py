"""The domain presets, and the domains that a configuration builds from them."""

import json
import re

import pytest

from mindpangu.config import load_config
from mindpangu.display import short_repr
from mindpangu.domains import PRESETS, Domain, build_domains, control_tokens_of
from mindpangu.errors import ConfigError


def test_the_preset_has_the_forty_domains_of_the_paper():
    domains = PRESETS["sigma_40"]

    assert len(domains) == len({domain.name for domain in domains}) == 40
    kinds = [domain.kind for domain in domains[4:]]
    assert kinds.count("code") == 6
    assert kinds.count("monolingual") == 26 + 4
    assert [domain.name for domain in domains[-4:]] == ["finance", "health", "law", "poetry"]
    assert domains[:4] == PRESETS["sigma_4"]


def test_control_tokens_are_shared_and_ordered():
    tokens = control_tokens_of(PRESETS["sigma_4"])

    assert tokens == ["<eot>", "<cn>", "<en>", "<python>", "<java>"]
    assert len(control_tokens_of(PRESETS["sigma_40"])) == 5 + 26 + 6


def test_domains_keep_the_presets_order_and_may_differ_in_size():
    config = load_config(None, {"domains.names": "[en, zh]", "domains.experts": "{en: 4}"})

    domains = build_domains(config)

    assert [(domain.name, domain.num_experts) for domain in domains] == [("zh", 16), ("en", 4)]


def test_added_domains_come_after_the_preset_and_may_be_chosen_like_them():
    chemistry = "{name: chemistry, kind: monolingual, control_tokens: [<reserved_0>]}"
    added = f"[{chemistry}, {{name: rust, kind: code, control_tokens: [<rust>]}}]"

    all_domains = build_domains(load_config(None, {"domains.added": added, "domains.experts": "{chemistry: 2}"}))
    named_domains = build_domains(load_config(None, {"domains.added": added, "domains.names": "[rust, zh]"}))

    assert [domain.name for domain in all_domains[4:]] == ["chemistry", "rust"]
    assert all_domains[4] == Domain("chemistry", "monolingual", ("<reserved_0>",), 2)
    assert [(domain.name, domain.kind) for domain in named_domains] == [("zh", "monolingual"), ("rust", "code")]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"domains.names": "[zh, klingon]"}, "klingon"),
        ({"domains.names": "[zh, zh]"}, "may appear once"),
        ({"domains.experts": "{fr: 3}"}, "domains.experts names 'fr'"),
        ({"domains.experts": "{zh: 0}"}, "domains.experts.zh is 0"),
        ({"data.mixture": "{fr: 1.0}"}, "data.mixture names 'fr'"),
        ({"domains.added": "[{name: zh}]"}, "which another domain has"),
        ({"domains.added": "[{name: a/b}]"}, "allowed: letters"),
        ({"domains.added": "[{name: a}, {name: a}]"}, "which another domain has"),
        ({"domains.added": "[{name: a, kind: bilingual, control_tokens: [<cn>]}]"}, "bilingual takes two"),
        ({"domains.added": "[{name: a, kind: code}]"}, "one for each programming language"),
        ({"domains.added": "[{name: a, control_tokens: [<eot>]}]"}, "'a' has '<eot>', which ends every document"),
        (
            {"domains.added": "[{name: a, kind: code, control_tokens: [<c>, <pad>]}]"},
            "'a' has '<pad>', which is padding",
        ),
        (
            {"domains.names": "[zh, en]", "domains.vocabularies": "[{name: a, vocab_size: 9, domains: [zh]}]"},
            "leaves out en",
        ),
        (
            {
                "domains.names": "[zh]",
                "domains.vocabularies": "[{name: a, domains: [zh]}, {name: b, domains: [zh]}]",
            },
            "in two vocabularies",
        ),
        ({"domains.names": "[zh]", "domains.vocabularies": "[{domains: [zh]}]"}, "the vocabulary name is ''"),
        (
            {"domains.names": "[zh]", "domains.vocabularies": "[{name: a, domains: [zh]}, {name: a}]"},
            "the name 'a' twice",
        ),
    ],
)
def test_impossible_domains_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        build_domains(load_config(None, overrides))


@pytest.mark.parametrize(
    "token",
    [
        "",
        "<unk>",
        "<s>",
        "</s>",
        "<pad>",
        "<eot>",
        "<0x41>",
        "<0xff>",
        "\n",
        "\t",
        " ",
        "<a b>",
        "<a\u00a0b>",
        "<\a>",
        "▁",
        "<▁>",
        "<\u200b>",
        "<" + "x" * 200 + ">",
    ],
)
@pytest.mark.parametrize("kind", ["monolingual", "code"])
def test_control_tokens_that_a_tokenizer_cannot_have_are_refused(token, kind):
    added = json.dumps(
        [{"name": "first", "control_tokens": ["<x>"]}, {"name": "a", "kind": kind, "control_tokens": [token]}]
    )

    with pytest.raises(
        ConfigError, match=rf"domains\.added\[1\]\.control_tokens of 'a' has {re.escape(short_repr(token))}, which"
    ):
        build_domains(load_config(None, {"domains.added": added}))


def test_a_domain_has_a_control_token_once_but_domains_may_share_it():
    code = "{name: a, kind: code, control_tokens: [<go>, <c++>, %s]}"

    with pytest.raises(ConfigError, match="'a' has '<go>', which appears twice"):
        build_domains(load_config(None, {"domains.added": f"[{code % '<go>'}]"}))

    domains = build_domains(
        load_config(None, {"domains.added": f"[{code % '<cn>'}, {{name: b, control_tokens: [<go>]}}]"})
    )
    assert [domain.control_tokens for domain in domains[-2:]] == [("<go>", "<c++>", "<cn>"), ("<go>",)]


def test_control_tokens_may_contain_one_another():
    """They have no text, so sentencepiece does not confuse them; earlier versions accepted them."""
    tokens = ["<cn>x", "cn", "<", "<x><y>", "<x>"]
    added = [{"name": f"a{number}", "control_tokens": [token]} for number, token in enumerate(tokens)]

    domains = build_domains(load_config(None, {"domains.added": json.dumps(added)}))

    assert [domain.control_tokens for domain in domains[-len(tokens) :]] == [(token,) for token in tokens]
