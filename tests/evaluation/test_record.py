"""The evaluation record and its table, whose form other programs and older runs rely on."""

import math

import pytest

from mindpangu.evaluation.record import DomainResult, evaluation_record, format_results, perplexity

RESULTS = [
    DomainResult("zh", 1200, math.log(50), math.log(200), {"en": math.log(75)}),
    DomainResult("en", 34, math.log(20), math.log(40), {"zh": math.log(1000)}),
]


def test_a_record_has_losses_and_perplexities_of_every_domain():
    record = evaluation_record(7, RESULTS)

    assert record["step"] == 7
    first = record["domains"][0]
    assert list(first) == [
        "domain",
        "tokens",
        "loss",
        "unigram_loss",
        "loss_as",
        "perplexity",
        "unigram_perplexity",
        "ratio",
        "perplexity_as",
    ]
    assert first["perplexity"] == pytest.approx(50)
    assert first["unigram_perplexity"] == pytest.approx(200)
    assert first["ratio"] == pytest.approx(0.25)
    assert first["perplexity_as"] == {"en": pytest.approx(75)}


def test_the_table_has_a_row_per_domain():
    assert format_results(RESULTS).splitlines() == [
        "      domain   tokens  perplexity   unigram  ratio   perplexity when routed as another domain",
        "          zh    1,200        50.0     200.0  0.250   en 75",
        "          en       34        20.0      40.0  0.500   zh 1000",
    ]


def test_a_perplexity_that_no_float_holds_is_infinite():
    assert perplexity(699) == math.exp(699)
    assert perplexity(700) == math.inf
