"""Language models: loading from nothing but a checkpoint, vocabularies, end-of-document resets, domains."""

from dataclasses import replace

import numpy as np
import pytest

from mindpangu.checkpoint import CheckpointReader
from mindpangu.config import load_config
from mindpangu.data import Batch, heldout_batches, loss_mask, positions
from mindpangu.errors import ConfigError, TokenizerError
from mindpangu.evaluation.heldout import evaluate_heldout
from mindpangu.language_model import ModelParts, load_model
from mindpangu.train.run import open_run, set_device, train


def open_model(overrides):
    config = load_config(None, overrides)
    set_device(config)
    run = open_run(config)
    run.model.store.initialize()
    return run


def test_a_loaded_model_computes_the_same_bits(trained):
    loaded = load_model(CheckpointReader(trained.folder.root))
    for name in trained.shards.domain_names:
        for batch in heldout_batches(trained.shards, name, trained.config, 4):
            np.testing.assert_array_equal(loaded.token_losses(batch), trained.model.token_losses(batch))


def test_later_tokens_do_not_change_the_logits(trained):
    model = trained.model
    tokens_BS = np.full((1, 16), 10, np.int32)
    first = model.next_token_logits(tokens_BS, 2, last=5)

    tokens_BS[0, 6:] = 33
    np.testing.assert_array_equal(first, model.next_token_logits(tokens_BS, 2, last=5))

    tokens_BS[0, 5] = 34
    assert not np.array_equal(first, model.next_token_logits(tokens_BS, 2, last=5))


def test_eod_reset_separates_documents(tiny_overrides):
    run = open_model(tiny_overrides | {"data.eod_reset": "true"})
    (batch, *_) = heldout_batches(run.shards, "en", run.config, 4)
    eot = run.shards.eot_id
    tokens = batch.tokens_BS.copy()
    tokens[:, 7] = eot

    def with_tokens(tokens_BS):
        return replace(
            batch,
            tokens_BS=tokens_BS,
            positions_BS=positions(tokens_BS, eot, True),
            loss_mask_BS=loss_mask(tokens_BS, batch.targets_BS, run.shards.pad_id, eot, True),
        )

    losses = run.model.token_losses(with_tokens(tokens))
    changed = tokens.copy()
    changed[:, :7] = np.where(changed[:, :7] == 20, 21, 20)
    other = run.model.token_losses(with_tokens(changed))
    np.testing.assert_allclose(losses[:, 8:], other[:, 8:], atol=1e-6)
    assert np.abs(losses[:, :8] - other[:, :8]).max() > 1e-4

    plain = open_model(tiny_overrides)
    assert np.abs(plain.model.token_losses(with_tokens(tokens)) - losses)[:, 8:].max() > 1e-5


VOCABULARIES = "[{name: a, vocab_size: 420, domains: [bilingual, zh]}, {name: b, vocab_size: 430, domains: [en, code]}]"


def two_vocabularies(tiny_overrides, tmp_path, **changes):
    """Opens a separate run whose domains use two vocabularies."""
    from mindpangu.data.prepare import prepare_routing, prepare_shards, prepare_tokenizer

    overrides = tiny_overrides | {
        "domains.vocabularies": VOCABULARIES,
        "training.output_dir": str(tmp_path),
        "training.run_name": "vocabularies",
        **changes,
    }
    config = load_config(None, overrides)
    for prepare in (prepare_tokenizer, prepare_shards, prepare_routing):
        prepare(config, log=lambda text: None)
    return open_model(overrides)


def test_vocabularies_train_and_mixed_batches_mask_other_vocabularies(tiny_overrides, tmp_path):
    run = two_vocabularies(tiny_overrides, tmp_path, **{"data.domains_per_step": "2"})
    model = run.model
    assert model.decoder.parameters["word_embedding"].shape[0] == 850
    pure = next(iter(heldout_batches(run.shards, "en", run.config, 4)))
    foreign = next(iter(heldout_batches(run.shards, "zh", run.config, 4)))
    # one sample of en and three of zh in one batch: vocabularies b and a
    en = pure.domain_of_slot[0]
    zh = foreign.domain_of_slot[0]
    arrays = ("tokens_BS", "targets_BS", "positions_BS", "loss_mask_BS", "sample_ids_B2")
    mixed = Batch(
        **{name: np.concatenate([getattr(pure, name)[:1], getattr(foreign, name)[:3]]) for name in arrays},
        domain_of_slot=(en, zh),
        slot_of_sample_B=np.array([0, 1, 1, 1], np.int32),
    )
    losses = model.token_losses(mixed)
    np.testing.assert_allclose(losses[:1], model.token_losses(pure)[:1], atol=1e-5)
    np.testing.assert_allclose(losses[1:], model.token_losses(foreign)[:3], atol=1e-5)
    # the vocabularies have different rows: the same ids score differently in the other vocabulary
    assert np.abs(model.token_losses(pure) - model.token_losses(pure, (zh, zh))).max() > 1e-4
    train(run, log=lambda text: None)
    results = evaluate_heldout(model, run.shards, run.config)
    assert all(set(result.loss_as) <= {"bilingual", "zh", "en", "code"} - {result.domain} for result in results)
    assert [len(result.loss_as) for result in results] == [1, 1, 1, 1]


def test_parts_that_do_not_fit_are_refused(tiny_overrides):
    with pytest.raises(TokenizerError, match="has 420 pieces, but the embedding has 400 rows"):
        open_model(tiny_overrides | {"model.vocab_size": "400"})

    with pytest.raises(ConfigError, match="has 5 experts in the configuration, but 3 in its routing table"):
        open_model(tiny_overrides | {"domains.experts": "{zh: 5}"})

    with pytest.raises(ConfigError, match=r"model\.rre_layers is 1, but the routing table is one of 2 layers"):
        open_model(tiny_overrides | {"model.rre_layers": "1"})

    run = open_model(tiny_overrides)
    with pytest.raises(TokenizerError, match="vocabulary 'main' has no tokenizer"):
        ModelParts(run.config, {}, run.model.table)
