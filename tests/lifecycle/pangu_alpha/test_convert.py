"""Conversion: logits of an independent NumPy model, exact round trips, and refusals."""

import json
import shutil
import tracemalloc

import numpy as np
import public_format
import pytest

from mindpangu import files
from mindpangu.checkpoint import CheckpointReader, CheckpointWriter
from mindpangu.errors import CheckpointError, TokenizerError
from mindpangu.experts import StoreSnapshot
from mindpangu.generation.generator import Generator, Request
from mindpangu.language_model import DenseTensors, LanguageModel, ModelParts, load_model, write_model
from mindpangu.lifecycle.pangu_alpha import from_pangu_alpha, to_pangu_alpha
from mindpangu.parallel.sharding import TensorSlice
from mindpangu.tokenizer import Tokenizer

SIZES = {"layers": 3, "hidden": 16, "inner": 40, "positions": 16}
WORDS = "backbone.embedding.word_embedding.embedding_table"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A file in the public format with PanGu-α's 40,000 pieces, and its weights."""
    weights = public_format.random_weights(vocabulary=40000, **SIZES)
    path = tmp_path_factory.mktemp("release") / "Pangu-alpha_tiny.ckpt"
    public_format.save(path, weights)
    return path, weights


@pytest.fixture(scope="module")
def converted(release, make_config, alpha_tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "model"
    folder, skipped = from_pangu_alpha(release[0], None, make_config(vocabulary=40000, **SIZES), alpha_tokenizer, out)
    assert (folder.parent, skipped) == (out, [])
    return CheckpointReader(out)


@pytest.fixture(scope="module")
def model(converted):
    return load_model(converted)


@pytest.fixture
def small(small_tokenizer, make_config, tmp_path):
    """(weights, function that saves and converts them); with a vocabulary of 420."""
    weights = public_format.random_weights(vocabulary=420, **SIZES)

    def convert(weights=weights, out=tmp_path / "out", strategy=None, **config):
        folder = tmp_path / "release"
        folder.mkdir(exist_ok=True)
        public_format.save(folder / "model.ckpt", weights)
        return from_pangu_alpha(
            folder / "model.ckpt", strategy, make_config(**{**SIZES, **config}), small_tokenizer, out
        )

    return weights, convert


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_logits_are_those_of_the_public_model(model, release):
    tokens_BS = np.random.default_rng(1).integers(0, 40000, (2, 16)).astype(np.int32)
    expected_BSV = public_format.logits(release[1], tokens_BS, heads=2)

    for last in (0, 7, 15):
        actual_BV = model.next_token_logits(tokens_BS, 0, last)
        np.testing.assert_allclose(actual_BV, expected_BSV[:, last], rtol=0, atol=1e-5)
    assert np.abs(expected_BSV).max() > 3  # so that the comparison means something


def test_every_weight_matters_to_the_logits(release):
    # the reference is useless if it forgets a weight: changing any weight must change its logits
    weights = public_format.random_weights(vocabulary=50, **SIZES)
    tokens_BS = np.arange(16, dtype=np.int32)[None]
    before = public_format.logits(weights, tokens_BS, heads=2)

    for name, values in weights.items():
        changed = weights | {name: values + np.float32(0.1) * np.arange(values.shape[-1], dtype=np.float32)}
        after = public_format.logits(changed, tokens_BS, heads=2)
        is_silent = name.endswith("attention.dense2.bias")  # moves all scores of a query alike
        assert (np.abs(after - before).max() < 1e-9) == is_silent, name


def test_a_converted_model_continues_a_prompt(model, converted):
    tokenizer = model.tokenizers["main"]
    ids = tokenizer.encode("今天天气")

    text = Generator(model.parts, model.decoder, cache=None).generate([Request("zh", "今天天气", 3)])[0].text

    expected = []
    for _ in range(3):
        tokens_BS = np.zeros((1, 16), np.int32)
        tokens_BS[0, : len(ids)] = ids
        ids.append(int(np.argmax(model.next_token_logits(tokens_BS, 0, len(ids) - 1)[0])))
        expected.append(ids[-1])

    assert (tokenizer.kind, tokenizer.eot_id) == ("pangu_alpha", 9)
    assert text == tokenizer.decode(expected)  # no control token opens the text


def test_the_result_names_its_source_and_is_complete(converted, release):
    assert converted.step == 0

    state = converted.json("state.json")
    assert state["made_by"] == {"verb": "convert", "from": str(release[0]), "strategy": None}
    assert (state["loader"], state["updates"], state["digests"]) == (None, 0, {})
    assert converted.config().domains.preset == "pangu_alpha"

    for name in converted.files:
        converted.verify(name)


def test_conversion_there_and_back_is_exact(converted, release, tmp_path):
    file = to_pangu_alpha(converted, tmp_path / "back")

    assert_same(public_format.load(file), release[1])
    assert (file.parent / "vocab.model").read_bytes() == converted.read("tokenizer/main.model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back"]


def test_a_round_trip_is_exact_even_from_ranks_that_share_tensors(small_tokenizer, make_config, tmp_path):
    config = make_config(**SIZES)
    model = LanguageModel(ModelParts(config, {"main": Tokenizer.load(small_tokenizer)}, None))
    weights = {name: parameter.asnumpy() for name, parameter in model.decoder.parameters.items()}
    moments = {f"adam_m.{name}": values for name, values in weights.items()}
    parts = {name: TensorSlice(values.shape) for name, values in (weights | moments).items()}
    with CheckpointWriter(tmp_path / "trained", 3) as writer:
        write_model(writer, model, DenseTensors(weights | moments, parts), StoreSnapshot(model.store), None)
    trained = CheckpointReader(tmp_path / "trained")

    with CheckpointWriter(tmp_path / "shared", 3) as writer:
        for name in ("config.yaml", "tokenizer/main.model"):
            writer.write(name, trained.read(name))
        for rank in range(2):
            shared = {
                name: TensorSlice.equal(values.shape, values.ndim - 1, rank, 2) for name, values in weights.items()
            }
            encoded = DenseTensors({name: part.of(weights[name]) for name, part in shared.items()}, shared).encode()
            writer.write(f"dense_{rank:05d}_of_00002.safetensors", encoded)

    for saved in ("trained", "shared"):
        file = to_pangu_alpha(CheckpointReader(tmp_path / saved), tmp_path / f"{saved}_alpha", separate_tables=True)
        tables = ["position_embedding.npy", "top_query_embedding.npy", "word_embedding.npy"]
        assert {path.name for path in file.parent.iterdir()} == {"pangu_alpha.ckpt", *tables, "vocab.model"}
        again = tmp_path / f"{saved}_again"
        from_pangu_alpha(file.parent, None, config, file.parent / "vocab.model", again)
        assert_same(CheckpointReader(again).tensors("dense_00000_of_00001.safetensors"), weights)


def test_half_precision_files_are_read_and_written(small, tmp_path):
    weights, convert = small
    halves = {name: values.astype(np.float16) for name, values in weights.items()}

    folder, _ = convert(halves)

    dense = CheckpointReader(folder).tensors("dense_00000_of_00001.safetensors")
    np.testing.assert_array_equal(dense["word_embedding"], halves[WORDS].astype(np.float32))
    assert_same(public_format.load(to_pangu_alpha(CheckpointReader(folder), tmp_path / "back", "fp16")), halves)


def test_a_number_beyond_half_precision_is_named(small, tmp_path):
    weights, convert = small
    folder, _ = convert(weights | {"backbone.layernorm.beta": np.full(16, 1e5, np.float32)})

    with pytest.raises(CheckpointError, match=r"final_norm.beta has numbers up to 100000, beyond fp16; write fp32"):
        to_pangu_alpha(CheckpointReader(folder), tmp_path / "back", "fp16")
    assert not (tmp_path / "back").exists()


def test_old_names_and_separate_tables_are_read(small, tmp_path):
    weights, convert = small
    expected = CheckpointReader(convert()[0]).tensors("dense_00000_of_00001.safetensors")
    old = public_format.old_names(weights)
    np.save(tmp_path / "release" / "word_embedding.npy", old.pop("backbone.word_embedding.embedding_table"))
    np.save(tmp_path / "release" / "top_query_embedding.npy", old.pop("backbone.top_query_embedding.embedding_table"))

    folder, _ = convert(old, out=tmp_path / "old")

    assert_same(CheckpointReader(folder).tensors("dense_00000_of_00001.safetensors"), expected)


def test_the_state_of_a_training_is_left_out(small):
    weights, convert = small
    training = {"global_step": np.array([7], np.int32), "scale_sense": np.array([65536.0], np.float32)}
    moments = {f"adam_{each}.{name}": values for name, values in weights.items() for each in "mv"}

    _, skipped = convert({**training, **weights, **moments})

    assert set(skipped) == {*training, *moments}


@pytest.mark.parametrize("lost", [WORDS, "backbone.blocks.1.output.mapping.weight", "backbone.layernorm.beta"])
def test_a_missing_tensor_is_named(small, tmp_path, lost):
    weights, convert = small
    remedy = "; put word_embedding.npy next to it" if lost == WORDS else ""
    with pytest.raises(CheckpointError, match=f"has no tensor {lost}{remedy}$"):
        convert({name: values for name, values in weights.items() if name != lost})
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    "name", ["backbone.blocks.0.attention.dense4.weight", "backbone.blocks.0.output.router.weight", "head.weight"]
)
def test_an_unused_tensor_is_named(small, name):
    weights, convert = small
    with pytest.raises(CheckpointError, match=f"tensors that the model does not use: {name}$"):
        convert(weights | {name: np.zeros((2, 2), np.float32)})


def test_a_wrong_shape_is_named(small):
    weights, convert = small
    name = "backbone.blocks.1.output.projection.weight"
    with pytest.raises(CheckpointError, match=rf"{name} has shape \[16, 40\], the model needs \[40, 16\]"):
        convert(weights | {name: weights[name].T.copy()})


def test_integer_weights_are_refused(small):
    weights, convert = small
    with pytest.raises(CheckpointError, match=r"backbone.layernorm.beta is int32; expected float16 or float32"):
        convert(weights | {"backbone.layernorm.beta": np.zeros(16, np.int32)})


def test_a_configuration_of_another_model_is_refused_with_what_fits(small):
    _, convert = small

    with pytest.raises(CheckpointError, match=r"has model.num_layers 4, model.hidden_size 32; the tensors in .* say: "):
        convert(layers=4, hidden=32)
    with pytest.raises(
        CheckpointError, match=r"--model.seq_length 16 --model.ffn_hidden_size 40. Give a --config that"
    ):
        convert(positions=8, inner=64)
    with pytest.raises(CheckpointError, match=r"model.rre_layers is 1; PanGu-α is dense: set it to 0"):
        convert(**{"model.rre_layers": 1})


def test_the_pipeline_form_is_recognised(small):
    weights, convert = small
    pipeline = {name.replace("top_query_layer", "blocks.2"): values for name, values in weights.items()}
    with pytest.raises(CheckpointError, match=r"pipeline-parallel code, .* final LayerNorm comes after it"):
        convert(pipeline)


def test_two_tables_of_one_tensor_must_agree(small, tmp_path):
    weights, convert = small
    (tmp_path / "release").mkdir()
    np.save(tmp_path / "release" / "word_embedding.npy", weights[WORDS])
    convert(out=tmp_path / "same")
    np.save(tmp_path / "release" / "word_embedding.npy", weights[WORDS] + 1)

    with pytest.raises(CheckpointError, match=rf"{WORDS} is in .*model.ckpt and in .*word_embedding.npy, with diff"):
        convert()

    data = (tmp_path / "release" / "word_embedding.npy").read_bytes()
    (tmp_path / "release" / "word_embedding.npy").write_bytes(data[:-5])

    with pytest.raises(CheckpointError, match=r"word_embedding.npy is not a complete .npy file"):
        convert()


def test_nothing_is_overwritten(small, converted, tmp_path):
    _, convert = small
    convert()

    with pytest.raises(
        CheckpointError, match=r"out already has a checkpoint \(iteration_00000000\); choose another --out"
    ):
        convert()
    with pytest.raises(CheckpointError, match=r"inside is in the checkpoint iteration_00000000"):
        convert(out=converted.folder / "inside")
    with pytest.raises(CheckpointError, match=r"inside is in the checkpoint iteration_00000000"):
        to_pangu_alpha(converted, converted.folder / "inside")

    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "mine.txt").touch()

    with pytest.raises(CheckpointError, match=r"back exists and is not empty; choose another --out"):
        to_pangu_alpha(converted, tmp_path / "back")


def test_a_tokenizer_of_another_model_is_refused(release, make_config, small_tokenizer, alpha_tokenizer, tmp_path):
    with pytest.raises(CheckpointError, match=r"has 420 pieces, but backbone.embedding.word.* 40000 rows"):
        from_pangu_alpha(release[0], None, make_config(vocabulary=40000, **SIZES), small_tokenizer, tmp_path / "out")

    sigma = make_config(vocabulary=40000, **SIZES, **{"domains.preset": "sigma_4"})
    with pytest.raises(TokenizerError, match=r"no control token '<cn>'.*goes with domains.preset pangu_alpha"):
        from_pangu_alpha(release[0], None, sigma, alpha_tokenizer, tmp_path / "out")

    path = tmp_path / "small.ckpt"
    public_format.save(path, public_format.random_weights(vocabulary=420, **SIZES))

    with pytest.raises(CheckpointError, match=r"has 40000 pieces, but backbone.embedding.word.* has 420 rows"):
        from_pangu_alpha(path, None, make_config(**SIZES), alpha_tokenizer, tmp_path / "out")
    with pytest.raises(TokenizerError, match="cannot be read"):
        from_pangu_alpha(path, None, make_config(**SIZES), tmp_path / "none.model", tmp_path / "out")


def test_sparse_models_and_damaged_checkpoints_are_refused(converted, tmp_path, monkeypatch):
    shutil.copytree(converted.folder, tmp_path / "copy")
    reader = CheckpointReader(tmp_path / "copy")
    name = "dense_00000_of_00001.safetensors"
    data = bytearray((tmp_path / "copy" / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / "copy" / name).write_bytes(data)

    with pytest.raises(CheckpointError, match="was altered"):
        to_pangu_alpha(reader, tmp_path / "back")

    monkeypatch.setattr("mindpangu.checkpoint.reader.require_sizes", lambda reader, config: None)  # it has no experts
    config = converted.read("config.yaml").replace(b"rre_layers: 0", b"rre_layers: 2")
    with CheckpointWriter(tmp_path / "sparse", 1) as writer:
        writer.write("config.yaml", config)

    with pytest.raises(CheckpointError, match=r"is sparse \(model.rre_layers 2\)"):
        to_pangu_alpha(CheckpointReader(tmp_path / "sparse"), tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("drop", "has no tensor final_norm.beta"),
        ("add", "not use: extra"),
        ("cut", r"beta has shape \[15\], the"),
    ],
)
def test_dense_files_that_do_not_fit_are_refused_on_the_way_back(converted, tmp_path, change, message):
    tensors = converted.tensors("dense_00000_of_00001.safetensors")
    beta = tensors.pop("final_norm.beta")
    if change != "drop":
        tensors["final_norm.beta"] = beta[:15] if change == "cut" else beta
    if change == "add":
        tensors["extra"] = np.zeros(1, np.float32)
    parts = {name: TensorSlice(values.shape) for name, values in tensors.items()}
    with CheckpointWriter(tmp_path / "changed", 1) as writer:
        writer.write("config.yaml", converted.read("config.yaml"))
        writer.write("dense_00000_of_00001.safetensors", DenseTensors(tensors, parts).encode())

    with pytest.raises(CheckpointError, match=message):
        to_pangu_alpha(CheckpointReader(tmp_path / "changed"), tmp_path / "back")


def test_memory_stays_at_a_few_tensors(small_tokenizer, make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 1 << 16)
    sizes = {"layers": 12, "hidden": 96, "inner": 384, "positions": 16}
    weights = public_format.random_weights(vocabulary=420, **sizes)
    total = sum(values.nbytes for values in weights.values())
    largest = max(values.nbytes for values in weights.values())
    allowed = 3 * largest + (1 << 20)
    assert total > 3 * allowed
    public_format.save(tmp_path / "model.ckpt", weights)
    config = make_config(**sizes)
    out = tmp_path / "out"

    tracemalloc.start()
    try:
        from_pangu_alpha(tmp_path / "model.ckpt", None, config, small_tokenizer, out)
        assert tracemalloc.get_traced_memory()[1] < allowed
        tracemalloc.reset_peak()
        to_pangu_alpha(CheckpointReader(out), tmp_path / "back")
        assert tracemalloc.get_traced_memory()[1] < allowed
    finally:
        tracemalloc.stop()


def test_the_verb_converts_in_both_directions(release, alpha_tokenizer, make_config, tmp_path, capsys):
    from mindpangu.cli.main import main
    from mindpangu.config import to_yaml

    # the configuration's mesh need not fit the model that is converted
    settings = to_yaml(make_config(vocabulary=40000, **SIZES)).replace("tensor_parallel: 1", "tensor_parallel: 8")
    (tmp_path / "model.yaml").write_text(settings)

    there = ["convert", "from-pangu-alpha", "--source", str(release[0]), "--out", str(tmp_path / "model")]
    assert main(there) == 1
    assert "convert from-pangu-alpha needs --config and --tokenizer" in capsys.readouterr().err
    assert main([*there, "--tokenizer", str(alpha_tokenizer), "--config", str(tmp_path / "model.yaml")]) == 0
    assert f"→ {tmp_path / 'model' / 'iteration_00000000'}" in capsys.readouterr().out

    back = ["convert", "to-pangu-alpha", "--checkpoint", str(tmp_path / "model"), "--out", str(tmp_path / "back")]
    assert main([*back, "--dtype", "fp16"]) == 0
    halves = {name: values.astype(np.float16) for name, values in release[1].items()}
    assert_same(public_format.load(tmp_path / "back" / "pangu_alpha.ckpt"), halves)
    assert main(back) == 1
    assert "exists and is not empty; choose another --out" in capsys.readouterr().err
    assert json.loads((tmp_path / "model" / "iteration_00000000" / "state.json").read_text())["step"] == 0
