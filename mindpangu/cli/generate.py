"""Continue prompts, each in a domain, or one held-out text in every domain.

mindpangu generate --checkpoint output/cpu_smoke --domain en --prompt "To open the dialog"
mindpangu generate --checkpoint output/cpu_smoke --domain zh --prompts lines.txt --top-k 3 --temperature 1
"""

import argparse
from pathlib import Path

from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder
from mindpangu.errors import GenerationError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", metavar="DIR", type=Path, help="a checkpoint or a run folder; default: the run's newest"
    )
    what = parser.add_argument_group("what is continued")
    what.add_argument("--domain", help="domain whose experts and control token are used")
    what.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="text to continue; may be repeated")
    what.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        help='more of them: one a line, or *.jsonl of {"prompt": …} or of instruction records without their answer '
        '({"task": …}, see docs/finetune.md), with a "domain" where it is not --domain',
    )
    what.add_argument(
        "--every-domain",
        action="store_true",
        help="the start of a held-out text in each domain; of a fine-tuned run a held-out record without its answer",
    )
    how = parser.add_argument_group("how tokens are picked, in this order")
    how.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="divides positive scores of tokens that are there already, multiplies negative ones; default: %(default)s",
    )
    how.add_argument(
        "--frequency-penalty",
        type=float,
        default=0.0,
        metavar="F",
        help="taken off a token's score for every time it was generated; PanGu-α: 1.5; default: %(default)s",
    )
    how.add_argument(
        "--presence-penalty",
        type=float,
        default=0.0,
        metavar="P",
        help="taken off once if it was generated; PanGu-α: 0.3; default: %(default)s",
    )
    how.add_argument("--temperature", type=float, default=0.0, help="0 is greedy; default: %(default)s")
    how.add_argument("--top-k", type=int, default=0, help="0 keeps all tokens; default: %(default)s")
    how.add_argument("--top-p", type=float, default=1.0, help="default: %(default)s")
    how.add_argument("--seed", type=int, default=0, help="of the random choice, for each text; default: %(default)s")
    end = parser.add_argument_group("where a text ends, beside <eot>")
    end.add_argument("--max-new-tokens", type=int, default=48, help="default: %(default)s")
    end.add_argument("--stop", action="append", default=[], metavar="TEXT", help="before this text; may be repeated")
    end.add_argument(
        "--stop-token",
        action="append",
        default=[],
        metavar="TOKEN",
        help="at this control token, as <en>; may be repeated",
    )
    size = parser.add_argument_group("memory and speed")
    size.add_argument("--batch-size", type=int, default=8, help="texts at once, at most; default: %(default)s")
    size.add_argument(
        "--expert-memory",
        metavar="SIZE",
        help="memory for experts, as 2GB or 500MB; the least recently used make room; default: all that are used",
    )


def run(options: argparse.Namespace, config: Config) -> None:
    from mindpangu.checkpoint import CheckpointReader, refuse_other_model
    from mindpangu.generation.prompts import memory_size, read_prompts
    from mindpangu.generation.sampling import SamplingSettings

    settings = SamplingSettings(
        options.temperature, options.top_k, options.top_p, options.seed,
        options.repetition_penalty, options.frequency_penalty, options.presence_penalty,
    )  # fmt: skip
    if options.every_domain == bool(options.prompt or options.prompts or options.domain):
        raise GenerationError("give either --domain NAME --prompt TEXT (or --prompts FILE), or --every-domain")
    if options.prompt and options.domain is None:
        raise GenerationError("--prompt needs --domain NAME: the domain decides which experts continue it")
    memory = None if options.expert_memory is None else memory_size(options.expert_memory)
    prompts = [(options.domain, prompt) for prompt in options.prompt]
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


def _continue_prompts(options, config, prompts, reader, settings, memory) -> None:
    from mindpangu.generation.generator import record_prompt
    from mindpangu.generation.terminal import show

    generator = _load(options, config, reader, memory)
    given = [
        (domain, prompt if isinstance(prompt, str) else record_prompt(generator.parts, domain, prompt))
        for domain, prompt in prompts
    ]
    show(generator, [_request(options, domain, prompt, settings) for domain, prompt in given])


def _continue_every_domain(options, config, reader, settings, memory) -> None:
    from dataclasses import asdict

    from mindpangu.data import HELDOUT, TokenShards
    from mindpangu.stage import ResultFile

    folder = RunFolder.from_config(config)
    shards = TokenShards.open(folder.data, verify=True)
    inputs = {
        "checkpoint": reader.digest,
        "data": shards.digest,
        "max_new_tokens": options.max_new_tokens,
        "stop": [options.stop, options.stop_token],
        "sampling": asdict(settings),
        "precision": config.context.precision,
    }
    result = ResultFile(folder.samples, inputs)
    if result.is_current():
        print(f"generate: up to date ({folder.samples})")
        return
    from mindpangu.generation.generator import heldout_prompt
    from mindpangu.generation.terminal import show
    from mindpangu.train.report import write_report

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
    print(f"generate: one text a domain → {folder.samples}")


def _request(options, domain: str, prompt, settings):
    from mindpangu.generation.generator import Request

    stops = (tuple(options.stop), tuple(options.stop_token))
    return Request(domain, prompt, options.max_new_tokens, settings, *stops)


def _load(options, config, reader, memory):
    from mindpangu.generation.generator import Generator
    from mindpangu.train.run import set_device

    set_device(config)
    return Generator.load(reader, options.batch_size, memory, config.context)
