"""Adding, copying, replacing, removing and resizing domains: the domain changes, and nothing else does."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter, ExpertFile
from mindpangu.checkpoint.dense import DenseFiles
from mindpangu.checkpoint.tensor_file import TensorFile
from mindpangu.cli.main import main
from mindpangu.config import load_config, to_yaml
from mindpangu.data.schedule import build_schedules
from mindpangu.domains import build_domains
from mindpangu.errors import ConfigError
from mindpangu.lifecycle.blueprint import Blueprint, Origin
from mindpangu.lifecycle.domains import ExpertsOfDense
from mindpangu.model.initialization import expert_shapes
from mindpangu.routing import RoutingTable


def experts(action, *words, checkpoint, out):
    """Runs `mindpangu experts`; returns a reader of the new checkpoint."""
    arguments = ["experts", action, *map(str, words), "--checkpoint", str(checkpoint), "--out", str(out)]
    assert main(arguments) == 0
    return CheckpointReader(out)


def files_of(reader, domain):
    """Returns the files of one domain with their entries in the manifest."""
    names = [name for name in reader.files if f".{domain}." in name or name == f"routing/{domain}.safetensors"]
    return {name: reader.files[name] for name in names}


def assert_untouched(before, after, domains):
    for domain in domains:
        assert files_of(after, domain) == files_of(before, domain) != {}, domain
    for name in before.files:
        if name.startswith(("dense_", "tokenizer/")):
            assert after.files[name] == before.files[name], name
    for name in after.files:
        after.read(name)


def tensors(reader, layer, domain, index):
    return ExpertFile.decode(reader.folder, reader.read(f"experts/rre_{layer:02d}.{domain}.{index:03d}.safetensors"))


def names_of(reader):
    return [domain.name for domain in build_domains(reader.config())]


OLD = ("bilingual", "zh", "en", "code")


def test_a_copied_domain_computes_what_its_parent_does(trained, tmp_path, logits, full_logits, shards):
    before = CheckpointReader(trained)

    after = experts("add", "poetry", "--from", "zh", checkpoint=trained, out=tmp_path / "more")

    assert names_of(after) == [*OLD, "poetry"]
    assert_untouched(before, after, OLD)
    header, weights = tensors(after, 1, "poetry", 2)
    parent_header, parent_weights = tensors(after, 1, "zh", 2)
    assert (header.step_count, header.domain) == (parent_header.step_count, "poetry")
    for name, values in parent_weights.items():
        np.testing.assert_array_equal(weights[name], values)
    actual = logits(after.folder, OLD)
    for name, values in zip(OLD, actual, strict=True):
        np.testing.assert_array_equal(values, full_logits[name])
    table = RoutingTable.load(after.folder / "routing", ["poetry", "zh"])
    np.testing.assert_array_equal(table.array(0, "poetry"), table.array(0, "zh"))
    assert json.loads(after.read("state.json"))["made_by"]["domain"] == "poetry"


def test_a_domain_takes_a_reserved_control_token_of_its_own(trained, tmp_path):
    first = experts("add", "chemistry", "--fresh", checkpoint=trained, out=tmp_path / "one")

    words = ["physics", "--kind", "bilingual", "--fresh", "--experts", 2]
    second = experts("add", *words, checkpoint=tmp_path / "one", out=tmp_path / "two")

    assert_untouched(first, second, [*OLD, "chemistry"])
    chemistry, physics = build_domains(second.config())[4:]
    assert (chemistry.control_tokens, chemistry.num_experts) == (("<reserved_0>",), 3)
    assert (physics.control_tokens, physics.num_experts) == (("<reserved_1>", "<reserved_2>"), 2)
    drawn = [tensors(second, 0, "physics", index)[1] for index in range(2)]
    assert not np.array_equal(drawn[0]["up"], drawn[1]["up"])
    assert drawn[0]["up"].std() == pytest.approx(0.02, rel=0.2)
    assert not drawn[0]["up_bias"].any()
    assert not drawn[0]["adam_m.up"].any()


def test_a_vocabulary_of_its_own_appends_rows_and_keeps_the_others(trained, tmp_path, logits, full_logits, capsys):
    before = CheckpointReader(trained)
    tokenizer = before.folder / "tokenizer" / "main.model"

    after = experts("add", "chemistry", "--fresh", "--tokenizer", tokenizer, checkpoint=trained, out=tmp_path / "own")

    assert Blueprint.from_checkpoint(after).domain("chemistry").vocabulary == "chemistry"
    old = DenseFiles(before)
    new = DenseFiles(after)
    for name, shape in old.shapes.items():
        np.testing.assert_array_equal(new.read(name)[: shape[0]], old.read(name))
    rows = new.read("word_embedding")
    np.testing.assert_array_equal(rows[420:], rows[:420])  # the same tokens by text
    assert not new.read("adam_m.word_embedding")[420:].any()
    np.testing.assert_array_equal(logits(after.folder, ["zh"])[0], full_logits["zh"])

    words = ["--checkpoint", str(tmp_path / "own"), "--out", str(tmp_path / "no")]
    assert main(["experts", "copy", "zh", "--from", "chemistry", *words]) == 1
    assert "a table only fits the tokens of its vocabulary" in capsys.readouterr().err

    removed = experts("remove", "chemistry", checkpoint=tmp_path / "own", out=tmp_path / "gone")

    for name, shape in old.shapes.items():
        np.testing.assert_array_equal(DenseFiles(removed).read(name), old.read(name))
        assert DenseFiles(removed).shapes[name] == shape
    assert [name for name in removed.files if name.startswith("tokenizer/")] == ["tokenizer/main.model"]

    # exported alone: ids are local to the vocabulary, whose rows come last in the full table
    words = ["--domains", "chemistry", "--export", "--checkpoint", tmp_path / "own", "--out", tmp_path / "export"]
    assert main(["extract", *map(str, words)]) == 0
    exported = load_file(tmp_path / "export" / "model.safetensors")
    np.testing.assert_array_equal(exported["embed.weight"], rows[420:])
    assert json.loads((tmp_path / "export" / "config.json").read_text())["vocab_size"] == 420


def test_a_copy_has_its_parents_kind_and_a_checkpoint_is_never_written_into(trained, tmp_path, capsys):
    copy = experts("add", "bi", "--from", "bilingual", checkpoint=trained, out=tmp_path / "bi")

    domain = build_domains(copy.config())[-1]
    assert (domain.kind, domain.control_tokens) == ("bilingual", ("<reserved_0>", "<reserved_1>"))

    words = ["remove", "bi", "--checkpoint", str(copy.folder), "--out", str(copy.folder / "sub")]
    assert main(["experts", *words]) == 1
    assert "is in the checkpoint iteration_00000006" in capsys.readouterr().err


def test_without_moments_new_experts_have_none(trained, tmp_path):
    words = ["--domains", "zh,en", "--weights-only", "--checkpoint", str(trained), "--out", str(tmp_path / "light")]
    assert main(["extract", *words]) == 0

    experts("add", "x", "--fresh", checkpoint=tmp_path / "light", out=tmp_path / "more")
    after = experts("resize", "zh", "--experts", 2, checkpoint=tmp_path / "more", out=tmp_path / "two")

    for name in after.files:
        if name.startswith(("experts/", "dense_")):
            assert not [tensor for tensor in after.tensors(name) if tensor.startswith("adam_")], name


def test_experts_without_moments_get_zeros_among_experts_with_them(trained, tmp_path):
    words = ["--domains", "zh,en", "--weights-only", "--checkpoint", str(trained), "--out", str(tmp_path / "light")]
    assert main(["extract", *words]) == 0
    light = CheckpointReader(tmp_path / "light")

    after = experts("replace", "zh", "--with", tmp_path / "light", checkpoint=trained, out=tmp_path / "mixed")

    assert_untouched(CheckpointReader(trained), after, ("bilingual", "en", "code"))
    for layer, index in ((0, 0), (1, 2)):
        header, mixed = tensors(after, layer, "zh", index)
        _, weights = tensors(light, layer, "zh", index)
        assert mixed.keys() == tensors(after, layer, "en", index)[1].keys()
        assert header.step_count == 0
        for name, values in mixed.items():
            np.testing.assert_array_equal(values, np.zeros_like(values) if "adam_" in name else weights[name])


def test_a_dense_models_networks_become_experts(trained, dense, tmp_path):
    after = experts("add", "law", "--from-dense", dense, "--experts", 5, checkpoint=trained, out=tmp_path / "law")
    noisy = experts("add", "law", "--from-dense", dense, "--noise", 0.1, checkpoint=trained, out=tmp_path / "noisy")

    parent = DenseFiles(CheckpointReader(dense))
    for layer, block in ((0, "blocks.1"), (1, "query_layer")):
        _, exact = tensors(after, layer, "law", 4)
        _, near = tensors(noisy, layer, "law", 0)
        np.testing.assert_array_equal(exact["down"], parent.read(f"{block}.ffn.down.weight"))
        np.testing.assert_array_equal(exact["up_bias"], parent.read(f"{block}.ffn.up.bias"))
        up = parent.read(f"{block}.ffn.up.weight")
        assert np.std(near["up"] - up) == pytest.approx(0.1 * up.std(), rel=1e-3)

    with pytest.raises(ConfigError, match="--noise is -1"):
        ExpertsOfDense(CheckpointReader(trained).config(), CheckpointReader(dense), "law", -1)


def test_copy_and_replace_take_table_experts_and_group_size(trained, tmp_path, logits, full_logits):
    before = CheckpointReader(trained)
    smaller = experts("resize", "zh", "--experts", 2, checkpoint=trained, out=tmp_path / "smaller")

    copied = experts("copy", "en", "--from", "zh", checkpoint=tmp_path / "smaller", out=tmp_path / "copied")
    words = ["code", "--with", tmp_path / "smaller", "--with-domain", "zh"]
    replaced = experts("replace", *words, checkpoint=trained, out=tmp_path / "replaced")

    assert_untouched(smaller, copied, ("bilingual", "zh", "code"))
    assert_untouched(before, replaced, ("bilingual", "zh", "en"))
    for reader, name in ((copied, "en"), (replaced, "code")):
        assert {domain.name: domain.num_experts for domain in build_domains(reader.config())}[name] == 2
        for index in range(2):
            _, source = tensors(smaller, 0, "zh", index)
            for tensor, values in tensors(reader, 0, name, index)[1].items():
                np.testing.assert_array_equal(values, source[tensor])
    for name, values in zip(("bilingual", "zh", "en"), logits(replaced.folder, ("bilingual", "zh", "en")), strict=True):
        np.testing.assert_array_equal(values, full_logits[name])


def test_remove_leaves_everything_else(trained, tmp_path, logits, full_logits):
    after = experts("remove", "zh", checkpoint=trained, out=tmp_path / "fewer")

    assert_untouched(CheckpointReader(trained), after, ("bilingual", "en", "code"))
    assert not files_of(after, "zh")
    np.testing.assert_array_equal(logits(after.folder, ["code"])[0], full_logits["code"])


def test_more_experts_compute_the_same_and_others_keep_their_bits(trained, tmp_path, logits, full_logits):
    after = experts("resize", "zh", "--experts", 8, checkpoint=trained, out=tmp_path / "grown")

    assert_untouched(CheckpointReader(trained), after, ("bilingual", "en", "code"))
    zh, en = logits(after.folder, ("zh", "en"))
    np.testing.assert_allclose(zh, full_logits["zh"], atol=1e-6)
    np.testing.assert_array_equal(en, full_logits["en"])


def test_training_settings_of_a_removed_domain_are_dropped(trained, tmp_path):
    """A fine-tuned checkpoint names the domain that it trained; it can be removed like any other."""
    source = CheckpointReader(trained)
    settings = load_config(
        source.folder / "config.yaml",
        {"training.train": "experts:zh", "data.mixture": "{zh: 1, en: 0, code: 0, bilingual: 0}"},
    )
    with CheckpointWriter(tmp_path / "tuned", source.step) as writer:
        for name in source.files:
            writer.write(name, to_yaml(settings).encode() if name == "config.yaml" else source.read(name))

    after = experts("remove", "zh", checkpoint=tmp_path / "tuned", out=tmp_path / "fewer").config()

    assert (after.training.train, after.data.mixture) == ("all", {})
    assert len(build_schedules(after, build_domains(after))) == 1


def test_list_names_every_domain(trained, capsys):
    assert main(["experts", "list", "--checkpoint", str(trained)]) == 0

    printed = capsys.readouterr().out
    for name in OLD:
        assert f"\n{name:>12} " in printed
    counts = {tensors(CheckpointReader(trained), 0, "zh", index)[0].step_count for index in range(3)}
    assert f"{min(counts)} to {max(counts)}" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", "zh", "--fresh"], "already has a domain 'zh'"),
        (["add", "x", "--from", "fr"], "unknown domain 'fr'"),
        (["add", "x/y", "--fresh"], "allowed: letters"),
        (["add", "x", "--fresh", "--control-token", "<nothing>"], "no control token '<nothing>'"),
        (["add", "x", "--fresh", "--kind", "code", "--experts", "0"], "--experts is 0; a domain"),
        (["add", "x", "--from", "zh", "--noise", "3"], "--noise goes with --from-dense"),
        (["resize", "zh", "--experts", "2", "--data", "nowhere"], "no token shards"),
        (["add", "x", "--fresh", "--experts", "421"], "--experts is 421; a domain of 420 token ids can have 1 to 420"),
        (["add", "x", "--from", "zh", "--experts", "421"], "--experts is 421; a domain of 420"),
        (["add", "x", "--from", "zh", "--tokenizer", "{tokenizer}"], "with --tokenizer, give --fresh or --from-dense"),
        (["add", "x", "--fresh", "--control-token", "<eot>"], "has '<eot>', which ends every document"),
        (["add", "x", "--from-dense", "{trained}"], "is sparse; --from-dense needs a dense model"),
        (["copy", "zh", "--from", "fr"], "unknown domain 'fr'"),
        (["remove", "fr"], "unknown domain 'fr'"),
        (["remove", "zh", "--training.steps", "3"], "leave out --training.steps"),
        (["resize", "zh", "--experts", "0"], "--experts is 0; a domain of 420"),
        (["resize", "zh", "--experts", "421"], "1 to 420 experts"),
        (["replace", "zh", "--with", "nowhere"], "no complete checkpoint in nowhere"),
        (["replace", "zh", "--with", "{trained}", "--with-domain", "fr"], "unknown domain 'fr'"),
    ],
)
def test_mistakes_are_named_and_write_nothing(trained, tmp_path, capsys, words, message):
    tokenizer = CheckpointReader(trained).folder / "tokenizer" / "main.model"
    words = [word.format(trained=trained, tokenizer=tokenizer) for word in words]
    out = tmp_path / "out"

    assert main(["experts", *words, "--checkpoint", str(trained), "--out", str(out)]) == 1

    assert message in capsys.readouterr().err
    assert not list(out.glob("iteration_*"))


def test_an_altered_file_ends_the_verb_and_a_second_checkpoint_is_refused(trained, tmp_path, capsys):
    copy = tmp_path / "copy"
    out = tmp_path / "out"
    shutil.copytree(CheckpointReader(trained).folder, copy / "iteration_00000006")
    path = copy / "iteration_00000006" / "experts" / "rre_00.zh.001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    words = ["--checkpoint", str(copy), "--out", str(out)]

    for verb in (["remove", "en", "--verify"], ["copy", "en", "--from", "zh"]):  # the second rewrites the file
        assert main(["experts", *verb, *words]) == 1
        assert "rre_00.zh.001.safetensors was altered" in capsys.readouterr().err
        assert not list(out.glob("*"))

    # a file that is taken over keeps its hash, so reading finds the damage
    linked = str(tmp_path / "linked")
    assert main(["experts", "remove", "en", "--checkpoint", str(copy), "--out", linked]) == 0
    assert main(["generate", "--checkpoint", linked, "--domain", "zh", "--prompt", "打开窗口表格"]) == 1
    assert "rre_00.zh.001.safetensors was altered" in capsys.readouterr().err

    path.write_bytes(data[:-1])
    assert main(["experts", "remove", "en", *words]) == 1

    path.unlink()
    assert main(["experts", "list", *words[:2]]) == 1
    assert "rre_00.zh.001.safetensors cannot be read: No such file or directory; use" in capsys.readouterr().err
    assert not list(out.glob("*"))

    assert main(["experts", "remove", "en", "--checkpoint", str(trained), "--out", str(out)]) == 0
    assert main(["experts", "remove", "zh", "--checkpoint", str(trained), "--out", str(out)]) == 1
    assert "already has a checkpoint" in capsys.readouterr().err


def test_a_tokenizer_without_reserved_tokens_says_what_to_do(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mindpangu.lifecycle.add.reserved_control_tokens", lambda: [])
    words = ["experts", "add", "x", "--fresh", "--checkpoint", str(trained), "--out", str(tmp_path / "out")]

    assert main(words) == 1

    assert "0 reserved ones left" in capsys.readouterr().err


def test_experts_in_several_files_are_taken_over(trained, tmp_path):
    """An expert in two files, as a tensor group writes it, is copied and read completely."""
    source = CheckpointReader(trained)
    shared = split_experts(source, tmp_path / "shared", "zh")

    after = experts("add", "law", "--from", "zh", checkpoint=tmp_path / "shared", out=tmp_path / "law")

    assert "experts/rre_00.law.000.1_of_2.safetensors" in after.files
    shapes = expert_shapes(source.config())
    for reader, domain in ((shared, "zh"), (after, "law")):
        whole = Origin(reader, 1, domain, 2).open(shapes)
        for name, values in tensors(source, 1, "zh", 2)[1].items():
            np.testing.assert_array_equal(whole.read(name), values)


def split_experts(reader, out, domain):
    """Copies a checkpoint with each expert of a domain in two files."""
    split_axes = {"up": 1, "up_bias": 0, "down": 0, "down_bias": 0}
    with CheckpointWriter(out, reader.step) as writer:
        for name in reader.files:
            if f".{domain}." not in name:
                writer.write(name, reader.read(name))
                continue
            header, values = ExpertFile.decode(reader.folder / name, reader.read(name))
            for part in range(2):
                shares = {
                    key: np.split(array, 2, split_axes[key.rsplit(".", 1)[-1]])[part].copy()
                    for key, array in values.items()
                }
                share_header = replace(header, shard=(part, 2))
                writer.write(share_header.name, share_header.encode(shares))
    found = CheckpointReader(out)
    assert TensorFile(found.folder / "experts" / f"rre_00.{domain}.000.0_of_2.safetensors").tensors
    return found
