"""Continue prompts, each with the experts of its domain, or one held-out text per domain.

mindpangu generate --checkpoint output/cpu_smoke --domain en --prompt "To open the dialog"
mindpangu generate --checkpoint output/cpu_smoke --domain zh --prompts lines.txt --top-k 3 --temperature 1

With --every-domain, does nothing if this checkpoint has already continued these texts with the same options.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder
from mindpangu.errors import GenerationError

if TYPE_CHECKING:
    from mindpangu.checkpoint import CheckpointReader
    from mindpangu.generation.generator import Generator, Request
    from mindpangu.generation.prompts import Prompt
    from mindpangu.generation.sampling import SamplingSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        type=Path,
        help="Use this checkpoint, or the newest one of this run folder (default: the newest one of the run).",
    )
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument("--domain", metavar="NAME", help="Use the experts and the control token of this domain.")
    prompts.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="Continue this text; may be repeated."
    )
    prompts.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        help='Continue the prompts of this file: one per line, or in a .jsonl file {"prompt": …} or an instruction '
        'record without its answer ({"task": …}, see docs/finetune.md). A "domain" in a record overrides --domain.',
    )
    prompts.add_argument(
        "--every-domain",
        action="store_true",
        help="Continue the start of one held-out text per domain; in a fine-tuned run, answer one held-out record per "
        "domain.",
    )
    sampling = parser.add_argument_group("sampling, applied in this order")
    sampling.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="Divide the positive scores of tokens that the text already contains by X, and multiply negative ones by "
        "it (default: %(default)s).",
    )
    sampling.add_argument(
        "--frequency-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="Subtract X from a token's score for every time that it was generated (PanGu-α: 1.5; default: "
        "%(default)s).",
    )
    sampling.add_argument(
        "--presence-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="Subtract X once from the score of each token that was generated (PanGu-α: 0.3; default: %(default)s).",
    )
    sampling.add_argument(
        "--temperature",
        metavar="X",
        type=float,
        default=0.0,
        help="Divide the scores by X; 0 picks the most likely token (default: %(default)s).",
    )
    sampling.add_argument(
        "--top-k",
        metavar="N",
        type=int,
        default=0,
        help="Keep the N most likely tokens; 0 keeps all (default: %(default)s).",
    )
    sampling.add_argument(
        "--top-p",
        metavar="X",
        type=float,
        default=1.0,
        help="Keep the most likely tokens whose probabilities add up to X; 1 keeps all (default: %(default)s).",
    )
    sampling.add_argument(
        "--seed", metavar="N", type=int, default=0, help="Seed of the random choices (default: %(default)s)."
    )
    end = parser.add_argument_group("end of a text, besides <eot>")
    end.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=int,
        default=48,
        help="Generate at most this many tokens per text (default: %(default)s).",
    )
    end.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="Stop before this text; may be repeated."
    )
    end.add_argument(
        "--stop-token",
        action="append",
        default=[],
        metavar="TOKEN",
        help="Stop at this control token, such as <en>; may be repeated.",
    )
    resources = parser.add_argument_group("memory and speed")
    resources.add_argument(
        "--batch-size",
        metavar="N",
        type=int,
        default=8,
        help="Generate at most this many texts at once (default: %(default)s).",
    )
    resources.add_argument(
        "--expert-memory",
        metavar="SIZE",
        help="Limit the memory for experts, e.g. to 2GB or 500MB. The least recently used expert is dropped to make "
        "room (default: no limit).",
    )


def run(options: argparse.Namespace, config: Config) -> None:
    from mindpangu.checkpoint import CheckpointReader, refuse_other_model
    from mindpangu.generation.prompts import Prompt, memory_size, read_prompts
    from mindpangu.generation.sampling import SamplingSettings

    settings = SamplingSettings(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        repetition_penalty=options.repetition_penalty,
        frequency_penalty=options.frequency_penalty,
        presence_penalty=options.presence_penalty,
    )
    if options.every_domain == bool(options.prompt or options.prompts or options.domain):
        raise GenerationError("give either --domain NAME --prompt TEXT (or --prompts FILE), or --every-domain")
    if options.prompt and options.domain is None:
        raise GenerationError("--prompt needs --domain NAME: the domain decides which experts continue it")
    memory = None if options.expert_memory is None else memory_size(options.expert_memory)
    prompts: list[tuple[str, Prompt]] = [(options.domain, prompt) for prompt in options.prompt]
    if options.prompts:
        prompts += read_prompts(options.prompts, options.domain)
    if not options.every_domain and not prompts:
        raise GenerationError("there is nothing to continue; give --prompt TEXT or --prompts FILE")
    reader = CheckpointReader(options.checkpoint or RunFolder.from_config(config).root)
    refuse_other_model(reader, config)
    if options.every_domain:
        _continue_every_domain(options, config, reader, settings, memory)
    else:
        _continue_prompts(options, config, prompts, reader, settings, memory)


def _continue_prompts(
    options: argparse.Namespace,
    config: Config,
    prompts: "Sequence[tuple[str, Prompt]]",
    reader: "CheckpointReader",
    settings: "SamplingSettings",
    memory: int | None,
) -> None:
    from mindpangu.generation.generator import record_prompt
    from mindpangu.generation.terminal import show

    generator = _load(options, config, reader, memory)
    requests = []
    for domain, prompt in prompts:
        if isinstance(prompt, str):
            requests.append(_request(options, domain, prompt, settings))
        else:
            requests.append(_request(options, domain, record_prompt(generator.parts, domain, prompt), settings))
    show(generator, requests)


def _continue_every_domain(
    options: argparse.Namespace,
    config: Config,
    reader: "CheckpointReader",
    settings: "SamplingSettings",
    memory: int | None,
) -> None:
    from dataclasses import asdict

    from mindpangu.data import HELDOUT, TokenShards
    from mindpangu.generation.prompts import HELDOUT_PROMPT_RULE
    from mindpangu.stage import ResultFile
    from mindpangu.train.report import SavedSamples, write_report

    folder = RunFolder.from_config(config)
    shards = TokenShards.open(folder.data, verify=True)
    inputs = {
        "checkpoint": reader.digest,
        "data": shards.digest,
        "prompt_rule": HELDOUT_PROMPT_RULE,
        "max_new_tokens": options.max_new_tokens,
        "stop": [options.stop, options.stop_token],
        "sampling": asdict(settings),
        "precision": config.context.precision,
    }
    result = ResultFile(folder.samples, inputs)
    if result.is_current(SavedSamples):
        print(f"generate: up to date ({folder.samples})")
        return
    from mindpangu.generation.generator import heldout_prompt
    from mindpangu.generation.terminal import show

    generator = _load(options, config, reader, memory)
    generator.parts.require_data(shards)
    requests = [
        _request(options, domain.name, heldout_prompt(generator.parts, shards, domain), settings)
        for domain in generator.parts.domains
        if shards.num_tokens(domain.name, HELDOUT)
    ]
    texts = show(generator, requests, titles=True)
    samples = [
        {"domain": request.domain, "prompt": generator.prompt_text(request), "continuation": text}
        for request, text in zip(requests, texts, strict=True)
    ]
    result.write({"step": reader.step, "samples": samples})
    write_report(folder)
    print(f"generate: one text per domain → {folder.samples}")


def _request(
    options: argparse.Namespace, domain: str, prompt: str | tuple[int, ...], settings: "SamplingSettings"
) -> "Request":
    from mindpangu.generation.generator import Request

    return Request(
        domain,
        prompt,
        max_new_tokens=options.max_new_tokens,
        sampling=settings,
        stop=tuple(options.stop),
        stop_tokens=tuple(options.stop_token),
    )


def _load(options: argparse.Namespace, config: Config, reader: "CheckpointReader", memory: int | None) -> "Generator":
    from mindpangu.generation.generator import Generator
    from mindpangu.train.run import set_device

    set_device(config)
    return Generator.load(reader, options.batch_size, memory, config.context)
