"""The table in memory and on disk: independent domains, lossless saving and loading, refusal of damaged files."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mindpangu.config import RoutingConfig
from mindpangu.domains import PRESETS
from mindpangu.errors import RoutingError
from mindpangu.routing import DomainTable, RoutingTable, table_file

DOMAINS = [replace(domain, num_experts=4 + index) for index, domain in enumerate(PRESETS["sigma_4"])]
NAMES = [domain.name for domain in DOMAINS]
COUNTS = {name: np.random.default_rng(index).zipf(1.3, 60 + 10 * index) for index, name in enumerate(NAMES)}


def build(domains=DOMAINS, counts=COUNTS, num_layers=3, **routing):
    return RoutingTable.build(domains, counts, num_layers, RoutingConfig(**routing))


@pytest.fixture
def saved(tmp_path):
    build().save(tmp_path / "tables")
    return tmp_path / "tables"


def rewrite_header(path, **changes):
    """Changes the header and keeps the tensor, as an edit of the file would."""
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["routing_table"])
    save_file(load_file(path), path, {"routing_table": json.dumps(header | changes)})


@pytest.mark.parametrize("assignment", ["random", "balanced"])
def test_build_gives_each_layer_and_domain_its_own_array(assignment):
    table = build(assignment=assignment)

    assert (table.num_layers, table.assignment, list(table.domain_names)) == (3, assignment, NAMES)
    for domain in DOMAINS:
        assert table.num_experts(domain.name) == domain.num_experts
        assert table.vocab_size(domain.name) == COUNTS[domain.name].size
        arrays = [table.array(layer, domain.name) for layer in range(3)]
        for experts_V in arrays:
            assert (experts_V.dtype, experts_V.shape) == (np.uint16, COUNTS[domain.name].shape)
            assert set(experts_V) == set(range(domain.num_experts))
        assert not np.array_equal(arrays[0], arrays[1])


@pytest.mark.parametrize(
    ("assignment", "digest", "first_of_zh", "last_of_code"),
    [
        (
            "random",
            "6d92c7d5164a3fd0f4ca2ef40febb2c8",
            [[3, 2, 0, 4, 1, 3], [3, 0, 1, 2, 4, 0], [4, 2, 3, 1, 0, 0]],
            [3, 5, 4, 2, 6, 1],
        ),
        (
            "balanced",
            "a128c55677fd81b0c8adfefd614e298e",
            [[1, 2, 3, 0, 4, 0], [0, 2, 3, 4, 1, 4], [4, 1, 0, 2, 3, 2]],
            [1, 5, 4, 3, 5, 2],
        ),
    ],
)
def test_a_table_does_not_change_between_versions(assignment, digest, first_of_zh, last_of_code):
    """A run keeps the table that it has saved. But equal configurations must give comparable runs in every version."""
    counts = {name: 1000 // (np.arange(60 + 10 * index) + 2) ** 2 for index, name in enumerate(NAMES)}
    assert (counts["code"][-6:] == 0).all()

    table = build(counts=counts, assignment=assignment, seed=7)

    assert [table.array(layer, "zh")[:6].tolist() for layer in range(3)] == first_of_zh
    assert table.array(2, "code")[-6:].tolist() == last_of_code
    assert table.digest == digest


@settings(deadline=None)
@given(st.sets(st.sampled_from(NAMES), min_size=1), st.sampled_from(["random", "balanced"]), st.integers(0, 99))
def test_other_domains_never_change_a_table(names, assignment, seed):
    full = build(assignment=assignment, seed=seed)

    subset = build([domain for domain in DOMAINS if domain.name in names], assignment=assignment, seed=seed)

    for name in names:
        assert subset.domain_digest(name) == full.domain_digest(name)
        for layer in range(3):
            np.testing.assert_array_equal(subset.array(layer, name), full.array(layer, name))
    assert (subset.digest == full.digest) == (len(names) == len(NAMES))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 3), st.integers(1, 60), st.integers(1, 65536), st.integers(0, 2**32))
def test_loading_returns_what_was_saved(tmp_path_factory, num_layers, vocab_size, num_experts, seed):
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(seed)
    experts = {
        name: rng.integers(0, num_experts, (num_layers, vocab_size), np.uint16, endpoint=False)
        if num_experts < 65536
        else np.full((num_layers, vocab_size), 65535, np.uint16)
        for name in NAMES
    }
    table = RoutingTable(DomainTable(name, num_experts, "random", experts_LV) for name, experts_LV in experts.items())

    table.save(folder)
    loaded = RoutingTable.load(folder, NAMES)

    assert (loaded.digest, loaded.assignment, loaded.num_layers) == (table.digest, "random", num_layers)
    for name, experts_LV in experts.items():
        assert loaded.num_experts(name) == num_experts
        assert loaded.vocab_size(name) == vocab_size
        for layer in range(num_layers):
            assert loaded.array(layer, name).dtype == np.uint16
            np.testing.assert_array_equal(loaded.array(layer, name), experts_LV[layer])


def test_the_file_describes_its_content(saved):
    assert sorted(path.name for path in saved.iterdir()) == sorted(f"{name}.safetensors" for name in NAMES)

    with safe_open(table_file(saved, "zh"), framework="numpy") as file:
        assert json.loads(file.metadata()["routing_table"]) == {
            "format_version": "1",
            "domain": "zh",
            "num_experts": "5",
            "num_layers": "3",
            "vocab_size": "70",
            "assignment": "balanced",
            "digest": build().domain_digest("zh"),
        }
        assert file.get_slice("expert_of_token").get_dtype() == "U16"


def test_some_domains_can_be_loaded_without_the_files_of_the_others(saved):
    table_file(saved, "code").unlink()
    table_file(saved, "bilingual").write_bytes(b"")

    loaded = RoutingTable.load(saved, ["en", "zh"])

    assert loaded.domain_names == ("en", "zh")
    assert loaded.domain_digest("zh") == build().domain_digest("zh")


def test_a_missing_file_is_named_with_what_is_there(saved):
    table_file(saved, "zh").unlink()

    with pytest.raises(RoutingError, match=r"'zh'.*zh\.safetensors is missing.*contains: bilingual, code, en$"):
        RoutingTable.load(saved, NAMES)
    with pytest.raises(RoutingError, match="nowhere contains: no tables"):
        RoutingTable.load(saved / "nowhere", NAMES)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(saved, kept):
    path = table_file(saved, "zh")
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(RoutingError, match=r"zh\.safetensors is not a complete routing table: .*; copy it again"):
        RoutingTable.load(saved, NAMES)


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    RoutingTable([DomainTable("zh", 3, "random", np.array([[0, 1, 2, 0]], np.uint16))]).save(tmp_path)
    path = table_file(tmp_path, "zh")
    content = path.read_bytes()
    digest = RoutingTable.load(tmp_path, ["zh"]).digest

    unnoticed = []
    for position in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                assert RoutingTable.load(tmp_path, ["zh"]).digest == digest
            except RoutingError as error:
                assert str(path) in str(error)  # noqa: PT017
            else:
                unnoticed.append(position)

    # Only the whitespace that pads the header may change.
    assert all(content[position : position + 1].isspace() for position in unnoticed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": "2"}, "has routing table format '2'; this version of mindpangu reads format 1"),
        ({"format_version": 1}, "is not a complete routing table: routing_table.format_version is 1; allowed: text"),
        ({"format_version": None}, "is not a complete routing table: routing_table.format_version is null"),
        ({"digest": "0" * 32}, "was changed after it was written.*0000"),
        ({"num_experts": "6"}, "was changed after it was written"),
        ({"num_layers": "4"}, "was changed after it was written"),
        ({"assignment": "random"}, "was changed after it was written"),
        ({"num_experts": "many"}, "is not a complete routing table"),
        ({"num_experts": "2"}, "names expert 4, but its group has 2 experts"),
    ],
)
def test_an_edited_header_is_refused(saved, changes, message):
    rewrite_header(table_file(saved, "zh"), **changes)

    with pytest.raises(RoutingError, match=message):
        RoutingTable.load(saved, NAMES)


def test_a_table_whose_content_was_edited_is_refused(saved):
    path = table_file(saved, "bilingual")
    content = bytearray(path.read_bytes())
    content[-2] ^= 1  # another of its four experts
    path.write_bytes(content)

    with pytest.raises(RoutingError, match=r"bilingual\.safetensors was changed after it was written"):
        RoutingTable.load(saved, NAMES)


def test_a_file_of_another_kind_is_refused(saved):
    save_file({"weight": np.zeros(3, np.float32)}, table_file(saved, "zh"))

    with pytest.raises(RoutingError, match="is not a complete routing table: routing_table is missing"):
        RoutingTable.load(saved, NAMES)


@pytest.mark.parametrize("header", ["[]", "1", '"1"'])
def test_a_header_that_is_no_object_is_refused(saved, header):
    save_file(load_file(table_file(saved, "zh")), table_file(saved, "zh"), {"routing_table": header})

    with pytest.raises(RoutingError, match=r"is not a complete routing table: routing_table is .*; allowed: an object"):
        RoutingTable.load(saved, NAMES)


def test_a_file_that_is_too_large_for_a_table_is_not_read(saved):
    with open(table_file(saved, "zh"), "r+b") as file:
        file.truncate((1 << 31) + 1)  # sparse

    with pytest.raises(RoutingError, match="it has 2,147,483,649 bytes; allowed: at most 2,147,483,648"):
        RoutingTable.load(saved, NAMES)


def test_a_renamed_file_is_refused(saved):
    shutil.copy(table_file(saved, "en"), table_file(saved, "zh"))

    with pytest.raises(RoutingError, match="contains the table of domain 'en', not of 'zh'"):
        RoutingTable.load(saved, NAMES)


def test_unknown_domains_and_layers_are_refused():
    table = build()

    for query in (table.num_experts, table.vocab_size, table.domain_digest, lambda name: table.array(0, name)):
        with pytest.raises(RoutingError, match="no domain 'fr'; it has: bilingual, zh, en, code"):
            query("fr")
    for layer in (-1, 3):
        with pytest.raises(RoutingError, match=f"no RRE layer {layer}; it has 3"):
            table.array(layer, "zh")


def test_build_names_the_domain_that_cannot_be_built():
    with pytest.raises(RoutingError, match="no token counts for domain 'code'"):
        build(counts={name: COUNTS[name] for name in NAMES[:3]})
    with pytest.raises(RoutingError, match="domain 'en': 6 experts cannot share 2 token ids"):
        build(counts=COUNTS | {"en": np.ones(2, np.int64)})


def test_tables_that_do_not_fit_together_are_refused():
    def table(name="zh", num_layers=2, dtype=np.uint16):
        return DomainTable(name, 4, "random", np.zeros((num_layers, 8), dtype))

    with pytest.raises(RoutingError, match="'zh' has two routing tables"):
        RoutingTable([table(), table()])
    with pytest.raises(RoutingError, match=r"differ in their number of RRE layers: \{'zh': 2, 'en': 3\}"):
        RoutingTable([table(), table("en", 3)])
    with pytest.raises(RoutingError, match="at least one domain"):
        RoutingTable([])
    with pytest.raises(RoutingError, match="is int64 of shape"):
        table(dtype=np.int64)


def test_domains_drawn_differently_can_share_a_table():
    old = DomainTable("zh", 4, "random", np.zeros((2, 8), np.uint16))
    new = DomainTable("fr", 4, "balanced", np.ones((2, 8), np.uint16))

    assert RoutingTable([old, new]).assignment == "balanced+random"


def test_arrays_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        build().array(0, "zh")[0] = 1


def test_digests_depend_on_everything():
    reference = DomainTable("zh", 4, "random", np.zeros((2, 8), np.uint16))
    changed_content = np.zeros((2, 8), np.uint16)
    changed_content[1, 7] = 1
    others = [
        DomainTable("en", 4, "random", reference.experts_LV),
        DomainTable("zh", 5, "random", reference.experts_LV),
        DomainTable("zh", 4, "balanced", reference.experts_LV),
        DomainTable("zh", 4, "random", changed_content),
        DomainTable("zh", 4, "random", np.zeros((4, 4), np.uint16)),
    ]

    digests = [table.digest for table in (reference, *others)]

    assert len(set(digests)) == len(digests)
    assert len({RoutingTable([table]).digest for table in (reference, *others)}) == len(digests)


def test_the_digest_depends_on_the_order_of_the_domains():
    zh = DomainTable("zh", 4, "random", np.zeros((2, 8), np.uint16))
    en = DomainTable("en", 4, "random", np.zeros((2, 8), np.uint16))

    # a domain's position is its id, which the weights depend on
    assert RoutingTable([zh, en]).digest != RoutingTable([en, zh]).digest


def test_stacked_joins_domains_and_pads_short_vocabularies():
    table = build()

    stacked_LDV = table.stacked(["code", "zh"])

    assert (stacked_LDV.dtype, stacked_LDV.shape) == (np.int32, (3, 2, 90))
    for layer in range(3):
        np.testing.assert_array_equal(stacked_LDV[layer, 0], table.array(layer, "code"))
        np.testing.assert_array_equal(stacked_LDV[layer, 1, :70], table.array(layer, "zh"))
    assert not stacked_LDV[:, 1, 70:].any()


def test_stacked_is_as_wide_as_the_largest_vocabulary_in_the_slots():
    assert build().stacked(["zh", "zh"]).shape == (3, 2, 70)
