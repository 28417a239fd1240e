"""Compares compact tokenizers of several sizes in a table, a report and a plot."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindpangu.config import Config
from mindpangu.figures import write_optional_figure
from mindpangu.model.parameter_count import count_parameters
from mindpangu.tiny.tokenizer.documents import Documents, Split
from mindpangu.tiny.tokenizer.piece_counts import PieceCounts
from mindpangu.tiny.tokenizer.piece_selection import PieceSelector, coverage
from mindpangu.tiny.tokenizer.usage import Usage, measure_usage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Row:
    """The measures of one tokenizer size.

    Attributes:
        size: number of pieces.
        predicted: coverage of the training text.
        heldout: coverage of the held-out text.
        usage: how the tokenizer encodes the held-out text.
        embedding_share: share of the embedding, and of an untied output head, in the model's parameters; None without
            a model.
    """

    size: int
    predicted: float
    heldout: float
    usage: Usage
    embedding_share: float | None

    def to_dict(self) -> dict[str, Any]:
        """Returns the row of the JSON report."""
        usage = asdict(self.usage) | {"bytes_per_token": self.usage.bytes_per_token}
        return {
            "pieces": self.size,
            "coverage_predicted": self.predicted,
            "coverage_heldout": self.heldout,
            "heldout_text": usage,
            "embedding_share": self.embedding_share,
        }


def compare_sizes(
    selector: PieceSelector,
    counts: PieceCounts,
    sizes: Iterable[int],
    documents: Documents,
    split: Split,
    config: Config | None,
) -> list[Row]:
    """Returns a row for each size, ascending, and a last one for the large tokenizer.

    Args:
        config: configuration of the model whose embedding share is computed; None for no model.

    Raises:
        TokenizerError: a size is not possible.
    """
    kept = [selector.select(size, counts.train_V) for size in sorted(set(sizes))]
    tokenizers = [*map(selector.tokenizer, kept), selector.source]
    kept.append(frozenset(range(selector.source.vocab_size)))
    return [
        Row(
            len(pieces),
            coverage(pieces, counts.train_V),
            coverage(pieces, counts.heldout_V),
            usage,
            embedding_share(config, len(pieces)) if config is not None else None,
        )
        for pieces, usage in zip(kept, measure_usage(documents, split, tokenizers), strict=True)
    ]


def embedding_share(config: Config, vocab_size: int) -> float:
    """Returns `ParameterCount.embedding_share` of the model with a single vocabulary of this size."""
    domains = replace(config.domains, vocabularies=[])
    model = replace(config.model, vocab_size=vocab_size)
    return count_parameters(replace(config, model=model, domains=domains)).embedding_share


def format_rows(rows: Sequence[Row], chosen: int) -> str:
    """Formats the table, with a mark at the chosen size."""
    with_share = rows[0].embedding_share is not None
    lines = [
        f"{'pieces':>9} {'coverage':>9} {'held out':>9} {'bytes/token':>12} {'in bytes':>9} {'unknown':>9}"
        + (f" {'embedding':>10}" if with_share else "")
    ]
    for row in rows:
        usage = row.usage
        characters = max(usage.characters, 1)
        lines.append(
            f"{row.size:>9,} {row.predicted:>9.2%} {row.heldout:>9.2%} {usage.bytes_per_token:>12.3f} "
            f"{usage.as_bytes / characters:>9.2%} {usage.unknown / characters:>9.2%}"
            + (f" {row.embedding_share:>10.1%}" if with_share else "")
            + (" ←" if row.size == chosen else "")
        )
    num_bytes = rows[-1].usage.num_bytes
    lines.append(
        f"coverage: of the training text's tokens; other columns: of {num_bytes:,} bytes of held-out text "
        "(in bytes, unknown: of its characters)"
    )
    return "\n".join(lines)


def plot_rows(rows: Sequence[Row], chosen: int, path: Path) -> None:
    """Plots coverage, bytes per token and, with a model, the embedding share over the size, as PNG."""

    coverages = [
        ("training text", "o-", [row.predicted for row in rows]),
        ("held-out text", "s--", [row.heldout for row in rows]),
    ]
    bytes_per_token = [("", "o-", [row.usage.bytes_per_token for row in rows])]
    panels = [("coverage of tokens", coverages), ("bytes per token (held-out text)", bytes_per_token)]
    shares = [row.embedding_share for row in rows if row.embedding_share is not None]
    if shares:
        panels.append(("embedding, share of all parameters", [("", "o-", shares)]))

    def draw(figure: "Figure") -> None:
        for panel, (title, lines) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            for label, style, values in lines:
                panel.plot([row.size for row in rows], values, style, label=label, markersize=4, linewidth=1.2)
            panel.axvline(chosen, color="0.6", linewidth=0.8, linestyle=":")
            panel.set_xscale("log")
            panel.set_xlabel("pieces")
            panel.set_title(title, fontsize=10)
            panel.grid(alpha=0.3)
            if len(lines) > 1:
                panel.legend(fontsize=8)

    write_optional_figure(path, (4.2 * len(panels), 3.4), draw)
