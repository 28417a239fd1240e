"""Entry point of `mindpangu VERB …`: parses options and dotted overrides, and prints errors as one message."""

import argparse
import codecs
import dataclasses
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ascend_ops.native import OperatorError
from mindpangu import __version__
from mindpangu.cli import (
    config,
    convert,
    data,
    evaluate,
    experts,
    extract,
    finetune,
    generate,
    routing,
    tiny,
    tokenizer,
    train,
    upcycle,
)
from mindpangu.cli.environment import check_variables, check_working_directory, describe_exhaustion
from mindpangu.cli.option_types import OPTION_TYPES, summary_of
from mindpangu.cli.streams import guarded_streams
from mindpangu.config import Config, find_file, load_config, load_saved_config
from mindpangu.config.run_folder import RunFolder
from mindpangu.display import printable, short_lines, short_repr
from mindpangu.domains import build_domains
from mindpangu.errors import MindPanguError
from mindpangu.interpreter import divert_compiler_reports, prepare_interpreter
from mindpangu.pruned import retry_if_pruned
from mindpangu.signals import StopOnSignal, deliver_interrupts, describe_stop, exit_at_once, exit_code

VERBS = (
    tokenizer,
    data,
    routing,
    train,
    finetune,
    evaluate,
    generate,
    convert,
    upcycle,
    experts,
    extract,
    tiny,
    config,
)

RENAMED_VERBS = {"inherit": "upcycle"}
"""Old name of a verb → new name."""

_EPILOG = """\
Verbs take --config FILE, and any configuration key as an option:

  mindpangu train --config recipes/cpu_smoke.yaml --training.steps 20 --optimizer.betas '[0.8, 0.95]'

`mindpangu config --keys` explains all keys. `bash recipes/run_910.sh` runs every step from the corpus to the samples.
"""

_KEYS_EPILOG = "Any configuration key is an option too: --section.key VALUE. `mindpangu config --keys` lists them."

_SECTIONS = "|".join(section.name for section in dataclasses.fields(Config))
_KEY = re.compile(rf"--(?P<key>({_SECTIONS})\.[^\s=/]+)(=(?P<value>.*))?", re.DOTALL)
_UNKNOWN_KEY = re.compile(r"--(?P<key>\w+\.[\w.\[\]-]+)(=.*)?", re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code.

    0 is success, 1 an error that the message explains, 2 wrong usage. A verb that was stopped by a signal returns 130
    (SIGINT, which is Ctrl-C), 143 (SIGTERM), 129 (SIGHUP), or 141 (nobody reads standard output).
    """
    if arguments is None:
        prepare_interpreter()
    os.environ.setdefault("GLOG_v", "3")  # hides MindSpore's own warnings, which do not concern the run
    with guarded_streams(), divert_compiler_reports():
        stop = StopOnSignal(patience=0)
        try:
            with stop:
                if arguments is None:
                    deliver_interrupts()
                try:
                    code = _run(arguments)
                except SystemExit:  # after --help, --version, or wrong usage
                    sys.stdout.flush()
                    raise
                sys.stdout.flush()
                return code
        except KeyboardInterrupt as error:
            code = _report_stop(getattr(error, "signum", signal.SIGINT))
        except Exception as error:
            if stop.requested is None:
                return _report_error(error)
            code = _report_stop(stop.requested)  # a library may replace StoppedBySignal with its own exception
    if arguments is None:
        exit_at_once(code)
    return code


def _run(arguments: Sequence[str] | None) -> int:
    """Runs one verb; returns its exit code."""
    words, overrides = split_overrides(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in RENAMED_VERBS:
        return _fail(f"`mindpangu {words[0]}` is now `mindpangu {RENAMED_VERBS[words[0]]}`; its options are the same")
    parser = _build_parser()
    options, unknown = parser.parse_known_args(words)
    if unknown:
        refuse_unknown_keys(unknown, parser)
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    check_variables()
    check_working_directory()
    return retry_if_pruned(
        lambda: _run_verb(options, dict(overrides)),
        lambda text: print(f"mindpangu: {printable(text)}", file=sys.stderr),
    )


def _report_error(error: Exception) -> int:
    """Prints an error that the user can fix, and returns the exit code. Raises any other error, which is a bug."""
    if isinstance(error, BrokenPipeError):
        return exit_code(signal.SIGPIPE)
    message = explain(error)
    if message is None:
        raise error
    return _fail(message)


def explain(error: Exception) -> str | None:
    """Returns the message of an error that the user can fix, or None if the error is a bug."""
    if isinstance(error, UnicodeEncodeError) and _is_locale_encoding(error.encoding):
        return (
            f"the encoding of this locale, {error.encoding}, cannot encode {short_repr(error.object)}; "
            "use a locale with UTF-8, e.g. LC_ALL=C.UTF-8"
        )
    if exhausted := describe_exhaustion(error):
        return exhausted
    if isinstance(error, MindPanguError | OperatorError):
        return str(error)
    if isinstance(error, OSError):  # e.g. a full disk or a read-only folder
        return f"{error.filename or 'writing to training.output_dir'}: {error.strerror or error}"
    return None


def _is_locale_encoding(encoding: str) -> bool:
    """True if this is the encoding of file names in the current locale, and not UTF-8."""
    own = codecs.lookup(sys.getfilesystemencoding()).name
    return own != "utf-8" and own == codecs.lookup(encoding).name


def _report_stop(signum: int) -> int:
    print(f"mindpangu: {describe_stop(signum)}", file=sys.stderr)
    return exit_code(signum)


def _run_verb(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    # some verbs set keys themselves; overrides on the command line take precedence
    verb_settings = options.verb.settings(options) if hasattr(options.verb, "settings") else {}
    settings = _load_settings(options, verb_settings | overrides)
    build_domains(settings)
    return options.verb.run(options, settings) or 0


def _fail(message: str) -> int:
    print(f"mindpangu: error: {short_lines(printable(message))}", file=sys.stderr)
    return 1


class _Parser(argparse.ArgumentParser):
    """Argument parser with the types of `option_types`. The help of --help reads like that of the other options.

    Its subparsers are of this class, too.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(add_help=False, **kwargs)
        for kind, parse in OPTION_TYPES.items():
            self.register("type", kind, parse)
        self.add_argument("-h", "--help", action="help", help="Print this help and exit.")

    def error(self, message: str) -> NoReturn:
        super().error(short_lines(printable(message)))  # it quotes the user's words

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse would hide a failed write


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mindpangu",
        description="Train, evaluate and sample PanGu-Σ (Random Routed Experts), PanGu-α and PanGu-π models.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"mindpangu {__version__}", help="Print the version and exit."
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        name = verb.__name__.rsplit(".", 1)[1]
        summary = summary_of(verb)
        subparser = verbs.add_parser(
            name,
            help=summary,
            description=verb.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=getattr(verb, "EPILOG", _KEYS_EPILOG),
            allow_abbrev=False,
        )
        subparser.add_argument(
            "--config",
            metavar="FILE",
            type=Path,
            help="Read the configuration from this YAML file; absent keys take their defaults.",
        )
        verb.add_arguments(subparser)
        subparser.set_defaults(verb=verb)
    return parser


def _load_settings(options: argparse.Namespace, overrides: dict[str, str]) -> Config:
    """Loads the configuration from --config, or else the one saved with the given checkpoint.

    The keys of a saved configuration that say where the run folder is are replaced by where it is now.
    """
    checkpoint = getattr(options, "checkpoint", None)
    if options.config is None and checkpoint is not None:
        from mindpangu.checkpoint import CheckpointReader

        reader = CheckpointReader(checkpoint)
        return reader.config(reader.local_settings() | overrides)
    if options.config is not None and RunFolder.holds(path := find_file(options.config)):
        return load_saved_config(path, RunFolder.settings_of_saved(path.parent) | overrides)
    return load_config(options.config, overrides)


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Splits arguments into the verb's words and dotted overrides (--section.key value or --section.key=value).

    A word is a key only if its section is known, because a prompt may also begin with -- and contain a dot. A value
    that begins with -- must follow "=": otherwise a key whose value was forgotten would swallow the next option.
    """
    words: list[str] = []
    overrides: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        match = _KEY.fullmatch(word)
        if match is None:
            words.append(word)
        elif match["value"] is not None:
            overrides.append((match["key"], match["value"]))
        elif rest and not rest[0].startswith("--"):
            overrides.append((match["key"], rest.pop(0)))
        else:
            words.append(word)  # without a value, so that argparse refuses it by name
    return words, overrides


def refuse_unknown_keys(words: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Refuses words that look like configuration keys but have no value or are unknown.

    Raises:
        ConfigError: a key is unknown; the message has the nearest spelling.
        SystemExit: a key has no value.
    """
    for word in words:
        match = _UNKNOWN_KEY.fullmatch(word)
        if match and _KEY.fullmatch(word):
            parser.error(f"--{match['key']} has no value; write a value that begins with -- as {word}=VALUE")
        if match:
            load_config(None, {match["key"]: "null"})
