"""The loader: batches equal their samples, every epoch is complete, states resume exactly, held-out batches."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.data import HELDOUT, TRAIN, Loader, heldout_batches, loss_mask, positions
from mindpangu.data.loader import SavedLoaderState
from mindpangu.data.shuffle import SampleOrder
from mindpangu.errors import DataError
from mindpangu.untrusted import read_record


def assert_same(a, b):
    for field in dataclasses.fields(a):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


def stream(loader, steps):
    return [batch for _ in range(steps) for batch in loader.next_step().micro_batches]


@pytest.mark.parametrize("eod_reset", [False, True])
def test_a_batch_holds_the_samples_that_its_ids_name(tiny_shards, make_config, token_stream, eod_reset):
    shards, domains = tiny_shards
    seq_length = 16
    config = make_config(seq_length=seq_length, local=6, domains_per_step=3, eod_reset=eod_reset)

    for batch in stream(Loader(shards, domains, config), 30):
        assert len(set(batch.domain_of_slot)) == 3
        assert batch.slot_of_sample_B.tolist() == [0, 0, 1, 1, 2, 2]
        for row, (domain, index) in enumerate(batch.sample_ids_B2):
            assert domain == batch.domain_of_slot[row // 2]
            window = token_stream(domains[domain].name, TRAIN)[index * seq_length :][: seq_length + 1]
            np.testing.assert_array_equal(batch.tokens_BS[row], window[:-1])
            np.testing.assert_array_equal(batch.targets_BS[row], window[1:])
        np.testing.assert_array_equal(batch.positions_BS, positions(batch.tokens_BS, shards.eot_id, eod_reset))
        mask = loss_mask(batch.tokens_BS, batch.targets_BS, shards.pad_id, shards.eot_id, eod_reset)
        np.testing.assert_array_equal(batch.loss_mask_BS, mask)
        assert (mask == 0).any() == (eod_reset and (batch.tokens_BS == shards.eot_id).any())
        integers = [batch.tokens_BS, batch.targets_BS, batch.positions_BS, batch.slot_of_sample_B]
        arrays = [batch.loss_mask_BS, *integers]
        assert [array.dtype for array in arrays] == [np.float32, *[np.int32] * 4]
        assert all(array.flags.c_contiguous for array in arrays)


def test_every_epoch_has_every_sample_once_in_another_order(tiny_shards, make_config):
    shards, domains = tiny_shards
    config = make_config(local=3, mixture={"bilingual": 0, "zh": 0, "en": 1, "code": 0})
    size = (shards.num_tokens("en", TRAIN) - 1) // config.model.seq_length

    seen = [index for batch in stream(Loader(shards, domains, config), size) for index in batch.sample_ids_B2[:, 1]]

    epochs = [seen[start : start + size] for start in range(0, 3 * size, size)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])


@settings(max_examples=25, deadline=None)
@given(
    before=st.integers(0, 40),
    after=st.integers(1, 8),
    schedule=st.sampled_from([("rotating", 1), ("rotating", 2), ("rotating", 4), ("mixed", 4)]),
    accumulate=st.integers(1, 3),
)
def test_a_restored_loader_continues_exactly(tiny_shards, make_config, before, after, schedule, accumulate):
    shards, domains = tiny_shards
    kind, slots = schedule
    mixture = {"bilingual": 3, "zh": 4, "en": 5, "code": 8} if kind == "mixed" else {}
    config = make_config(local=4, world=4 * accumulate, domains_per_step=slots, seed=5, schedule=kind, mixture=mixture)
    uninterrupted = Loader(shards, domains, config)
    states = [uninterrupted.state()] + [uninterrupted.next_step().next_state for _ in range(before)]
    assert states[-1] == uninterrupted.state()

    restored = Loader(shards, domains, config, state=json.loads(json.dumps(states[-1])))
    for a, b in zip(stream(uninterrupted, after), stream(restored, after), strict=True):
        assert_same(a, b)

    # later steps do not change a state that was returned, and it can be loaded again
    restored.load_state(states[0])
    assert_same(stream(restored, 1)[0], stream(Loader(shards, domains, config), 1)[0])


def test_a_loader_does_not_change_the_state_that_it_was_given(tiny_shards, make_config):
    shards, domains = tiny_shards
    config = make_config(local=4, world=4)
    state = Loader(shards, domains, config).next_step().next_state
    given_state = json.loads(json.dumps(state))

    Loader(shards, domains, config, given_state).next_step()

    assert given_state == state


@pytest.mark.parametrize("schedule", ["rotating", "mixed"])
def test_a_step_has_the_same_micro_batches_however_many_ranks_share_it(tiny_shards, make_config, schedule):
    shards, domains = tiny_shards

    def samples(replicas, steps=6):
        config = make_config(local=2, world=8, replicas=replicas, domains_per_step=2, schedule=schedule)
        loader = Loader(shards, domains, config)
        return [[each.sample_ids_B2.tolist() for each in loader.next_step().micro_batches] for _ in range(steps)]

    assert len(samples(1)[0]) == 4
    assert samples(1) == samples(2) == samples(4)


@pytest.mark.parametrize(("schedule", "slots"), [("rotating", 1), ("mixed", 2)])
def test_the_mixture_is_followed(tiny_shards, make_config, schedule, slots):
    shards, domains = tiny_shards
    mixture = {"bilingual": 1, "zh": 2, "en": 3, "code": 4}
    config = make_config(local=2, mixture=mixture, schedule=schedule, domains_per_step=slots)
    loader = Loader(shards, domains, config)

    stream(loader, 100)

    assert loader.state() == {"samples_taken": [20, 40, 60, 80]}


def test_a_mixed_batch_is_ordered_by_domain_and_reads_every_domain_in_order(tiny_shards, make_config):
    shards, domains = tiny_shards
    mixture = {"bilingual": 1, "zh": 2, "en": 0, "code": 10}
    config = make_config(local=5, world=15, mixture=mixture, schedule="mixed", domains_per_step=4)
    read = {domain: [] for domain in range(4)}
    for batch in stream(Loader(shards, domains, config), 8):
        domains_B = batch.sample_ids_B2[:, 0]
        assert (np.diff(domains_B) >= 0).all()
        np.testing.assert_array_equal(np.array(batch.domain_of_slot)[batch.slot_of_sample_B], domains_B)
        for domain, index in batch.sample_ids_B2.tolist():
            read[domain].append(index)

    assert [len(indices) for indices in read.values()] == pytest.approx([120 / 13, 240 / 13, 0, 1200 / 13], abs=1)
    assert read[2] == []
    for domain, indices in read.items():
        order = SampleOrder((shards.num_tokens(domains[domain].name, TRAIN) - 1) // 8, 0, domains[domain].name)
        assert indices == (order.indices(0, len(indices)).tolist() if indices else [])


def test_one_domain_may_fill_two_slots_with_different_samples(tiny_shards, make_config):
    shards, domains = tiny_shards
    config = make_config(local=4, domains_per_step=2, mixture={"bilingual": 0, "zh": 0, "en": 1, "code": 0})

    (batch,) = stream(Loader(shards, domains, config), 1)

    assert batch.domain_of_slot == (2, 2)
    assert len(set(batch.sample_ids_B2[:, 1].tolist())) == 4


def test_another_seed_is_another_order(tiny_shards, make_config):
    shards, domains = tiny_shards
    a, b = (stream(Loader(shards, domains, make_config(seed=seed)), 4)[0].sample_ids_B2 for seed in (0, 1))

    assert (a[:, 0] == b[:, 0]).all()
    assert (a[:, 1] != b[:, 1]).any()


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"samples_taken": 4},
        {"samples_taken": [4, 4]},
        {"samples_taken": [6, 2, 0, 0]},
        {"samples_taken": [8, 0, 0, -4]},
        {"samples_taken": [4.0, 4.0, 0, 0]},
        {"samples_taken": [4, 0, 0, 0]},
    ],
)
def test_a_state_of_another_run_is_refused(tiny_shards, make_config, state):
    shards, domains = tiny_shards
    config = make_config(local=4, world=8, domains_per_step=2)
    Loader(shards, domains, config, {"samples_taken": [4, 4, 0, 0]})

    with pytest.raises(DataError, match=r"loader state .* does not fit 4 domains, parts of 4 samples and steps of 8"):
        Loader(shards, domains, config, state)


@pytest.mark.parametrize(
    "state",
    [
        {"samples_taken": [4, 0]},
        {"samples_taken": [4, 0], "phase_began": [0, 0]},
        {"round": 2, "batch": 0, "sample": "a" * 32},
    ],
)
def test_a_saved_state_is_read_as_it_was(state):
    assert read_record(SavedLoaderState, state).to_state() == state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "it is empty; allowed: samples_taken, or round, batch, and sample"),
        ({"round": 2}, "it has round, but not both batch and sample"),
        ({"round": 2, "batch": 0}, "it has round, but not both batch and sample"),
        ({"round": 2, "sample": "a" * 32}, "it has round, but not both batch and sample"),
        ({"samples_taken": [-4]}, "samples_taken.* is -4; allowed: >= 0"),
        ({"round": 2, "batch": 0, "sample": "a"}, "sample is 'a'; allowed: 32 hex digits"),
    ],
)
def test_a_saved_state_that_no_loader_has_is_refused(state, message):
    with pytest.raises(ValueError, match=message):
        read_record(SavedLoaderState, state)


def test_a_mixed_state_counts_single_samples(tiny_shards, make_config):
    shards, domains = tiny_shards
    config = make_config(local=4, world=8, domains_per_step=4, schedule="mixed")
    Loader(shards, domains, config, {"samples_taken": [3, 3, 1, 1]})

    with pytest.raises(DataError, match="parts of 1 samples and steps of 8"):
        Loader(shards, domains, config, {"samples_taken": [3, 3, 1, 0]})


def test_other_domains_and_too_short_splits_are_named(tiny_shards, make_config):
    shards, domains = tiny_shards
    with pytest.raises(DataError, match="the domains bilingual, zh, en, code, this run has bilingual, zh; prepare"):
        Loader(shards, domains[:2], make_config())

    tokens = shards.num_tokens("zh", TRAIN)
    assert tokens == min(shards.num_tokens(domain.name, TRAIN) for domain in domains)
    Loader(shards, domains, make_config(seq_length=tokens - 1))
    with pytest.raises(
        DataError, match=rf"train split of domain 'zh' has {tokens} tokens, .*seq_length \+ 1 = {tokens + 1}"
    ):
        Loader(shards, domains, make_config(seq_length=tokens))


def test_heldout_batches_are_in_order_limited_and_padded(tiny_shards, make_config, token_stream):
    shards, _ = tiny_shards
    seq_length = 4
    tokens = token_stream("code", HELDOUT)
    available = (len(tokens) - 1) // seq_length
    assert available > 20

    def indices(batch_size, limit):
        config = make_config(seq_length=seq_length, heldout_samples=limit, domains_per_step=2)
        batches = list(heldout_batches(shards, "code", config, batch_size))
        assert all(batch.tokens_BS.shape == (batch_size, seq_length) for batch in batches)
        assert all(batch.domain_of_slot == (3, 3) for batch in batches)
        half = batch_size // 2
        assert all(batch.slot_of_sample_B.tolist() == [0] * half + [1] * half for batch in batches)
        for batch in batches:
            for row, (domain, index) in enumerate(batch.sample_ids_B2):
                assert domain == 3
                if index >= 0:
                    window = tokens[index * seq_length : (index + 1) * seq_length + 1]
                    assert (batch.tokens_BS[row].tolist(), batch.targets_BS[row].tolist()) == (
                        window[:-1].tolist(),
                        window[1:].tolist(),
                    )
                    assert batch.loss_mask_BS[row].all()
                else:
                    assert (batch.tokens_BS[row] == shards.pad_id).all()
                    assert (batch.targets_BS[row] == shards.pad_id).all()
                    assert not batch.loss_mask_BS[row].any()
        return [index for batch in batches for index in batch.sample_ids_B2[:, 1].tolist()]

    assert indices(4, 10) == [*range(10), -1, -1]
    assert indices(4, 12) == list(range(12))
    for batch_size in (4, 6, 10):  # the same text for every batch size
        assert indices(batch_size, 10**6) == [*range(available), *[-1] * (-available % batch_size)]
    assert indices(8, 3) == [0, 1, 2, -1, -1, -1, -1, -1]


def test_heldout_without_a_sample_is_named(tiny_shards, make_config):
    tokens = tiny_shards[0].num_tokens("zh", HELDOUT)
    with pytest.raises(DataError, match=f"heldout split of domain 'zh' has {tokens} tokens"):
        next(heldout_batches(tiny_shards[0], "zh", make_config(seq_length=tokens), 2))
