"""Continue a prompt in one domain, or one held-out text in every domain.

mindpangu generate --checkpoint output/cpu_smoke --domain en --prompt "To open the dialog"
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
    parser.add_argument("--domain", help="domain whose experts and control token are used")
    parser.add_argument("--prompt", help="text to continue")
    parser.add_argument(
        "--every-domain", action="store_true", help="continue the start of a held-out text in each domain"
    )
    parser.add_argument("--max-new-tokens", type=int, default=48, help="default: %(default)s")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy; default: %(default)s")
    parser.add_argument("--top-k", type=int, default=0, help="0 keeps all tokens; default: %(default)s")
    parser.add_argument("--top-p", type=float, default=1.0, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the random choice; default: %(default)s")


def run(options: argparse.Namespace, config: Config) -> None:
    from mindpangu.checkpoint import CheckpointReader, refuse_other_model
    from mindpangu.generation.sampling import SamplingSettings

    settings = SamplingSettings(options.temperature, options.top_k, options.top_p, options.seed)
    if options.every_domain == (options.prompt is not None or options.domain is not None):
        raise GenerationError("give either --domain NAME --prompt TEXT, or --every-domain")
    if options.prompt is not None and options.domain is None:
        raise GenerationError("--prompt needs --domain NAME: the domain decides which experts continue it")
    folder = RunFolder.of(config)
    reader = CheckpointReader(options.checkpoint or folder.root)
    refuse_other_model(reader, config)
    if options.every_domain:
        _continue_every_domain(options, folder, reader, settings)
    else:
        _continue_prompt(options, reader, settings)


def _continue_prompt(options, reader, settings) -> None:
    from tqdm import tqdm

    from mindpangu.generation.generate import generate

    model = _load(reader)
    with tqdm(total=options.max_new_tokens, unit="token", desc="generate", disable=None, leave=False) as bar:
        text = generate(
            model, options.domain, options.prompt, options.max_new_tokens, settings, lambda token: bar.update()
        )
    print(options.prompt + text)


def _continue_every_domain(options, folder: RunFolder, reader, settings) -> None:
    from dataclasses import asdict

    from tqdm import tqdm

    from mindpangu.data import HELDOUT, TokenShards
    from mindpangu.stage import ResultFile

    shards = TokenShards.open(folder.data, verify=True)
    inputs = {
        "checkpoint": reader.digest,
        "data": shards.digest,
        "max_new_tokens": options.max_new_tokens,
        "sampling": asdict(settings),
    }
    result = ResultFile(folder.samples, inputs)
    if result.is_current():
        print(f"generate: up to date ({folder.samples})")
        return
    from mindpangu.generation.generate import generate, heldout_prompt
    from mindpangu.train.report import write_report

    model = _load(reader)
    model.require_data(shards)
    samples = []
    with_text = [domain for domain in model.domains if shards.num_tokens(domain.name, HELDOUT)]
    for domain in tqdm(with_text, desc="generate", unit="domain", disable=None):
        prompt = heldout_prompt(model, shards, domain)
        text = generate(model, domain.name, prompt, options.max_new_tokens, settings)
        samples.append({"domain": domain.name, "prompt": prompt, "continuation": text})
    for sample in samples:
        print(f"── {sample['domain']} ──\n{sample['prompt']}⟶{sample['continuation']}")
    result.write({"step": reader.step, "samples": samples})
    write_report(folder)
    print(f"generate: one text a domain → {folder.samples}")


def _load(reader):
    from mindpangu.language_model import load_model
    from mindpangu.train.run import set_device

    set_device(reader.config())
    return load_model(reader)
