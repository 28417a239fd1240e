"""The held-out split: its budget, whole documents, and independence of order."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.data import HELDOUT, TRAIN, CorpusReader, split_corpus, training_texts
from mindpangu.data.split import choose_heldout, document_order
from mindpangu.domains import build_domains
from mindpangu.errors import DataError


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.integers(0, 2**64 - 1), st.integers(1, 1000), min_size=2), st.floats(0.001, 0.5))
def test_held_out_fills_its_budget_and_never_takes_everything(sizes, fraction):
    heldout = choose_heldout(sizes, fraction)

    assert 0 < len(heldout) < len(sizes)
    heldout_size = sum(sizes[order] for order in heldout)
    budget = fraction * sum(sizes.values())
    if heldout_size <= budget:
        assert all(size > budget - heldout_size for order, size in sizes.items() if order not in heldout)
    else:  # no document fits, so the smallest is held out
        assert heldout == {min(sizes, key=lambda order: (sizes[order], order))}
        assert min(sizes.values()) > budget


def test_documents_are_taken_in_the_order_of_their_hash():
    assert choose_heldout({30: 10, 10: 10, 20: 10, 40: 70}, 0.2) == {10, 20}
    assert choose_heldout({1: 60, 2: 15, 3: 25}, 0.2) == {2}  # documents that do not fit are skipped
    assert choose_heldout({1: 60, 2: 45}, 0.1) == {2}


def test_the_order_does_not_change_between_versions():
    # A document that is held out must not be trained on after an update.
    assert document_order(1, "zh", ("corpus", "doc 1")) == 9885960034857834484
    assert document_order(2, "中", ("a", "b")) == 1709641482831289844


def test_the_order_depends_on_seed_domain_and_document():
    base = (0, "en", ("a", "b"))
    other_documents = [(1, "en", ("a", "b")), (0, "zh", ("a", "b")), (0, "en", ("ab", "")), (0, "en", ("a", "c"))]

    assert len({document_order(*key) for key in [base, *other_documents]}) == 5
    assert document_order(*base) == document_order(*base)


def split_records(make_config, write_jsonl, path, records, **data):
    """Returns TRAIN and HELDOUT → {(domain id, source document, parts)}, and checks `training_texts` against it."""
    config = make_config([write_jsonl(path, records)], heldout_fraction=0.2, **data)
    reader = CorpusReader(config, build_domains(config))
    split = split_corpus(reader)
    sides = {HELDOUT: set(), TRAIN: set()}
    for record in reader:
        sides[split.side_of(record)].add((record.domain_id, record.source_document, record.parts))
    expected = sorted(text for _, _, parts in sides[TRAIN] for _, text in parts)
    assert sorted(training_texts(reader, split)) == expected
    return sides


def test_records_of_a_document_stay_together_and_file_order_does_not_matter(
    tmp_path, make_config, write_jsonl, tiny_records
):
    shuffled = random.Random(0).sample(tiny_records, len(tiny_records))
    unique = [record | {"doc": record["doc"], "n": i} for i, record in enumerate(shuffled)]

    a = split_records(make_config, write_jsonl, tmp_path / "a.jsonl", dedupe(tiny_records))
    b = split_records(make_config, write_jsonl, tmp_path / "b.jsonl", dedupe(unique))

    assert a == b
    for domain in range(4):
        heldout, train = ({document for d, document, _ in a[side] if d == domain} for side in (HELDOUT, TRAIN))
        assert 1 <= len(heldout) < len(train)
        assert not heldout & train


def dedupe(records):
    """Returns records with unique (domain, document, text), so that sets of them lose nothing."""
    return list({(r["domain"], r["doc"], r.get("text"), r.get("zh"), r.get("en")): r for r in records}.values())


def test_another_seed_holds_out_other_documents(tmp_path, make_config, write_jsonl, tiny_records):
    records = dedupe(tiny_records)

    a, b = (
        split_records(make_config, write_jsonl, tmp_path / "a.jsonl", records, seed=seed)[HELDOUT] for seed in (0, 1)
    )

    assert a != b


def test_domains_that_cannot_be_split_are_named(tmp_path, make_config, write_jsonl):
    records = [{"domain": "en", "text": "a"}, {"domain": "en", "text": "b"}]

    def split(extra, names):
        config = make_config([write_jsonl(tmp_path / "c.jsonl", records + extra)], names)
        return split_corpus(CorpusReader(config, build_domains(config)))

    assert len(split([], ["en"]).heldout[0]) == 1
    with pytest.raises(DataError, match="no record of domain 'zh'"):
        split([], ["en", "zh"])
    single = [{"domain": "zh", "text": text, "source": "s", "doc": "same"} for text in "天地"]
    with pytest.raises(DataError, match="'zh' has a single source document"):
        split(single, ["en", "zh"])
