"""Texts from a checkpoint: the tokens of a loop without a cache, experts on demand, stop conditions, seeds."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from checkpoints import open_model, reference_loop, reference_scores, save

from mindpangu.checkpoint import CheckpointReader
from mindpangu.config import load_config
from mindpangu.data import HELDOUT, TokenShards, prompt_ids
from mindpangu.domains import domain_named
from mindpangu.errors import CheckpointError, ConfigError, ExpertStoreError, GenerationError
from mindpangu.generation.generator import Generator, Request, _Text, heldout_prompt, open_cache
from mindpangu.generation.sampling import Sampler, SamplingSettings
from mindpangu.generation.steps import DecodingSteps, ExpertPools
from mindpangu.language_model import ExpertReader, ModelParts
from mindpangu.model.decoder import Decoder
from mindpangu.routing import RoutingTable

WARM = SamplingSettings(temperature=1.0, top_k=50, seed=3)


@pytest.fixture(scope="module")
def model(tiny_overrides):
    return open_model(tiny_overrides)


@pytest.fixture(scope="module")
def reader(model, tmp_path_factory):
    return save(model, tmp_path_factory.mktemp("generator"))


@pytest.fixture(scope="module")
def generator(reader):
    return Generator.load(reader, batch_size=3)


def requests(**changes):
    """Returns more requests than a batch holds, in all domains. One prompt and several texts exceed the window."""
    prompts = {"zh": "打开窗口", "en": "open the window and close the table then save the file " * 3, "code": "def"}
    return [Request(name, text, 24, **changes) for name, text in (*prompts.items(), ("bilingual", "保存"))]


def expected_tokens(model, request):
    tokens, gaps = reference_loop(model, request)
    assert min(gaps) > 1e-4  # so that rounding cannot change a token
    return tokens


def text_of(model, request, tokens):
    _, domain = domain_named(model.domains, request.domain)
    return model.tokenizer_of(domain).decode(tokens)


def test_greedy_tokens_beyond_the_window_are_those_of_the_loop_without_a_cache(model, generator):
    batch = requests()

    completions = generator.generate(batch)

    for request, completion in zip(batch, completions, strict=True):
        tokens = expected_tokens(model, request)
        assert completion.text == text_of(model, request, tokens)
        assert completion.tokens == len(tokens) + (completion.finished == "eot")
        assert completion.finished in ("eot", "length")


def test_scores_are_those_of_the_loop_when_texts_outgrow_their_windows_at_different_times(
    model, generator, monkeypatch
):
    """A text whose window moves is read again and skips a step. Nothing of that step may reach its cache."""
    seen: dict[int, list[np.ndarray]] = {}
    pick = Sampler.pick

    def watched(self, logits_V):
        seen.setdefault(id(self), []).append(logits_V.copy())
        return pick(self, logits_V)

    monkeypatch.setattr(Sampler, "pick", watched)
    prompts = {"zh": "打开窗口", "en": "open the window and then", "code": "def f0(x):"}
    batch = [Request(name, text, 40, WARM) for name, text in prompts.items()]
    lengths = set()
    for each in batch:
        _, domain = domain_named(model.domains, each.domain)
        lengths.add(len(prompt_ids(domain, each.prompt, model.tokenizers["main"])))
    assert len(lengths) == 3

    generator.generate(batch)

    window = model.config.model.seq_length
    for request, scores in zip(batch, seen.values(), strict=True):
        _, domain = domain_named(model.domains, request.domain)
        ids = prompt_ids(domain, request.prompt, model.tokenizer_of(domain))
        sampler = Sampler(request.sampling, ids)
        start = 0
        for actual_V in scores:
            if len(ids) - start > window:
                start = len(ids) - window // 2
            expected_V = reference_scores(model, request.domain, ids[start:])[: len(actual_V)]
            np.testing.assert_allclose(actual_V, expected_V, atol=1e-4)
            ids = [*ids, pick(sampler, actual_V)]
        assert len(ids) > 2 * window


def test_a_bounded_memory_gives_the_same_texts_and_reads_experts_again(model, reader, generator):
    expert = 4 * sum(int(np.prod(shape)) for shape in model.store.shapes.values())

    bounded = Generator.load(reader, batch_size=3, expert_memory=2 * 3 * expert)

    assert bounded.generate(requests()) == generator.generate(requests())
    # 4 domains of 3 experts in 2 layers
    assert generator.experts_fetched <= 24 < bounded.experts_fetched
    with pytest.raises(ExpertStoreError, match=r"hold 2 experts in each of 2 RRE layers; 3 may be needed at once"):
        Generator.load(reader, batch_size=1, expert_memory=2 * 3 * expert - 1)
    with pytest.raises(ExpertStoreError, match="5 may be needed"):
        Generator.load(reader, batch_size=5, expert_memory=2 * 3 * expert)


def test_only_experts_of_the_tokens_are_read(model, reader):
    pools = ExpertPools(model.parts, open_cache(model.parts, ExpertReader(reader, model.parts), 1))
    tokens_T = np.array([90, 91, 92, 90])
    domains_T = np.array([1, 1, 1, 3])

    entries_LT = pools.route(tokens_T, domains_T)

    wanted = [
        [
            (domain, int(model.table.array(layer, model.domains[domain].name)[token]))
            for token, domain in zip(tokens_T, domains_T, strict=True)
        ]
        for layer in range(2)
    ]
    assert pools.fetched == sum(len(set(each)) for each in wanted)
    slabs = pools.slabs()
    for layer, (entries, experts) in enumerate(zip(entries_LT, wanted, strict=True)):
        for entry, (domain, index) in zip(entries, experts, strict=True):
            up = slabs[4 * layer].asnumpy()[entry]
            np.testing.assert_array_equal(up, model.store.weights[layer][domain]["up"][index])


def test_an_altered_expert_is_refused_when_it_is_needed(model, reader, tmp_path):
    folder = shutil.copytree(reader.folder, tmp_path / reader.folder.name)
    path = folder / "experts" / "rre_00.zh.001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    read = ExpertReader(CheckpointReader(folder), model.parts)

    read(0, 1, 0)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"rre_00\.zh\.001\.safetensors was altered"):
            read(0, 1, 1)


def test_an_expert_under_anothers_name_is_refused(model, tmp_path):
    folder = save(model, tmp_path).folder
    experts = folder / "experts"
    shutil.copy(experts / "rre_00.zh.001.safetensors", experts / "rre_00.zh.000.safetensors")
    reader = CheckpointReader(folder)
    reader.files["experts/rre_00.zh.000.safetensors"] = reader.files["experts/rre_00.zh.001.safetensors"]

    with pytest.raises(CheckpointError, match="its index is 1, this model's is 0"):
        ExpertReader(reader, model.parts)(0, 1, 0)


def test_experts_of_tensor_parallel_ranks_are_merged(model, tmp_path):
    reader = save(model, tmp_path, tensors=2)
    read = ExpertReader(reader, model.parts)

    for layer, domain, index in ((0, 1, 2), (1, 3, 0)):
        for name, tensor in read(layer, domain, index).items():
            np.testing.assert_array_equal(tensor, model.store.weights[layer][domain][name][index])

    (path, *_) = (reader.folder / "experts").glob("rre_00.zh.000.1_of_2*")
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(0, 1, 0)


@pytest.mark.slow
def test_a_model_of_some_domains_gives_the_bits_of_the_whole_one(model, reader):
    names = ("zh", "code")
    config = load_config(reader.folder / "config.yaml", {"domains.names": "[zh, code]"})
    parts = ModelParts(config, model.tokenizers, RoutingTable.load(reader.folder / "routing", names))
    decoder = Decoder(config, parts.vocabularies)
    for name, parameter in decoder.parameters.items():
        parameter.set_data(model.decoder.parameters[name])
    scores = []
    for each, weights in ((parts, decoder), (model.parts, model.decoder)):
        pools = ExpertPools(each, open_cache(each, ExpertReader(reader, each), 1))
        steps = DecodingSteps(each, weights, pools, 2, 16)
        domains = [domain_named(each.domains, name)[0] for name in names]
        prompts = [prompt_ids(each.domains[domain], "def f", model.tokenizers["main"]) for domain in domains]
        for index, domain in enumerate(domains):
            steps.prefill(index, domain, prompts[index])
        positions_B = np.array([len(ids) for ids in prompts], np.int32)
        scores.append(steps.extend(np.full(2, 300, np.int32), positions_B, np.array(domains), np.ones(2, bool)))

    for name, ids, partial, whole in zip(names, prompts, *scores, strict=True):
        np.testing.assert_array_equal(partial, whole)
        np.testing.assert_allclose(partial, reference_scores(model, name, [*ids, 300]), atol=1e-4)


def test_a_seed_gives_one_text_whatever_else_is_in_its_batch(generator):
    alone = [generator.generate([Request("en", "open", 12, WARM)])[0].text for _ in range(2)]
    batch = generator.generate([Request("zh", "打开", 5), Request("en", "open", 12, WARM), Request("code", "def", 12)])
    other_seed = generator.generate([Request("en", "open", 12, SamplingSettings(temperature=1.0, top_k=50, seed=4))])

    assert alone[0] == alone[1] == batch[1].text
    assert other_seed[0].text != alone[0]


def test_pieces_add_up_and_end_with_a_reason(generator):
    batch = requests(sampling=WARM)

    pieces = list(generator.stream(batch))
    completions = generator.generate(batch)

    for index, completion in enumerate(completions):
        of_request = [piece for piece in pieces if piece.request == index]
        assert "".join(piece.text for piece in of_request) == completion.text
        assert [bool(piece.finished) for piece in of_request] == [False] * (len(of_request) - 1) + [True]
        assert len(of_request) == completion.tokens


def test_a_stop_string_ends_the_text_before_it(generator):
    (whole,) = generator.generate([Request("en", "open the", 24, WARM)])
    stop = whole.text[3:7]

    (cut,) = generator.generate([Request("en", "open the", 24, WARM, stop=("never there", stop))])

    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finished == "stop"
    assert cut.tokens < whole.tokens


def test_no_requests_give_no_texts(generator):
    assert generator.generate([]) == []


def test_invalid_requests_are_refused(generator, reader):
    with pytest.raises(ConfigError, match="unknown domain 'fr'; this model has: bilingual, zh, en, code"):
        generator.generate([Request("fr", "a")])

    with pytest.raises(GenerationError, match="max_new_tokens is 0"):
        Request("en", "a", 0)

    with pytest.raises(GenerationError, match="stop string is empty"):
        Request("en", "a", stop=("",))

    with pytest.raises(GenerationError, match="batch_size is 0"):
        Generator.load(reader, batch_size=0)


def test_a_text_needs_a_token_to_begin_with(generator, monkeypatch):
    assert generator.generate([Request("en", "", 1)])[0].tokens == 1  # it begins with its control token

    bare = tuple(replace(domain, control_tokens=()) for domain in generator.parts.domains)
    monkeypatch.setattr(generator.parts, "domains", bare)

    with pytest.raises(GenerationError, match="prompt 2 is empty, and no control token opens a text of domain en"):
        generator.generate([Request("en", "open"), Request("en", "")])


@pytest.fixture
def heldout(tiny_overrides, monkeypatch):
    """heldout(domain name, ids) returns the run's shards, in which a domain's held-out tokens begin with these ids."""
    shards = TokenShards.open(Path(tiny_overrides["training.output_dir"]) / "prepared" / "data")

    def replaced(name, ids):
        tokens = shards.tokens

        def changed(domain_name, split):
            original = tokens(domain_name, split)
            begins = domain_name == name and split == HELDOUT
            return np.concatenate([np.array(ids, original.dtype), original]) if begins else original

        monkeypatch.setattr(shards, "tokens", changed)
        return shards

    return replaced


def test_heldout_prompts_are_the_first_tokens_of_the_documents(model, heldout):
    shards = heldout("", [])

    for domain in model.domains:
        prompt = heldout_prompt(model.parts, shards, domain, num_tokens=5)
        tokens = shards.tokens(domain.name, HELDOUT).tolist()

        assert prompt == tuple(tokens[: len(prompt)])
        assert shards.eot_id not in prompt
        assert prompt[0] == model.tokenizer_of(domain).control_id(domain.control_tokens[0])


def test_a_heldout_prompt_ends_before_its_document_does_and_keeps_control_tokens(model, heldout):
    domain = next(domain for domain in model.domains if domain.kind == "bilingual")
    tokenizer = model.tokenizer_of(domain)
    chinese, english = map(tokenizer.control_id, domain.control_tokens)
    document = [chinese, *tokenizer.encode("a"), english, *tokenizer.encode("b")]

    short = heldout_prompt(model.parts, heldout(domain.name, [*document, tokenizer.eot_id]), domain)
    after_empty = heldout_prompt(model.parts, heldout(domain.name, [tokenizer.eot_id] * 2), domain)

    assert short == after_empty == tuple(document)


def test_a_prompt_of_ids_reaches_the_model_unchanged(generator, heldout):
    domain = generator.parts.domains[0]
    ids = heldout_prompt(generator.parts, heldout("", []), domain)
    text = _Text(0, Request(domain.name, ids), generator.parts)

    assert text.ids == list(ids)


@pytest.mark.parametrize("cut", range(1, 4))
def test_a_heldout_prompt_ends_with_a_whole_character(model, heldout, cut):
    domain = model.domains[0]
    tokenizer = model.tokenizer_of(domain)
    spelled = tokenizer.encode("\U0010fffd")  # has no piece, so it takes four bytes
    *_, last = ids = tokenizer.encode("a")
    assert tokenizer.byte(last) is None

    prompt = heldout_prompt(model.parts, heldout(domain.name, [*ids, *spelled]), domain, len(ids) + cut - 1)
    whole = heldout_prompt(model.parts, heldout(domain.name, [*ids, *spelled]), domain, len(ids) + 3)

    assert prompt == tuple(ids)
    assert whole == (*ids, *spelled)
