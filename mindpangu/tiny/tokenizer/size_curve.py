"""Compact tokenizers of several sizes side by side: a table, a report and a picture."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mindpangu.config import Config
from mindpangu.model.parameter_count import count_parameters
from mindpangu.tiny.tokenizer.choices import Choices, coverage
from mindpangu.tiny.tokenizer.documents import Documents, Split
from mindpangu.tiny.tokenizer.piece_counts import PieceCounts
from mindpangu.tiny.tokenizer.usage import Usage, measure


@dataclass(frozen=True)
class Row:
    """One size.

    Attributes:
        size: pieces. predicted: coverage of the training text. heldout: coverage of held-out text.
        usage: of held-out text.
        embedding_share: of the model's parameters, with a head that is not tied to it; None where no model is given.
    """

    size: int
    predicted: float
    heldout: float
    usage: Usage
    embedding_share: float | None

    def to_dict(self) -> dict:
        """For a report."""
        usage = asdict(self.usage) | {"bytes_per_token": self.usage.bytes_per_token}
        return {
            "pieces": self.size,
            "coverage_predicted": self.predicted,
            "coverage_heldout": self.heldout,
            "heldout_text": usage,
            "embedding_share": self.embedding_share,
        }


def compare_sizes(
    choices: Choices,
    counts: PieceCounts,
    sizes: Iterable[int],
    documents: Documents,
    split: Split,
    config: Config | None,
) -> list[Row]:
    """A row for each size, and a last one for the tokenizer itself.

    Args:
        config: its model section is the one whose embedding is meant.

    Raises:
        TokenizerError: a size that cannot be had.
    """
    kept = [choices.of_size(size, counts.train_V) for size in sorted(set(sizes))]
    tokenizers = [*map(choices.tokenizer, kept), choices.source]
    kept.append(frozenset(range(choices.source.vocab_size)))
    return [
        Row(
            len(pieces),
            coverage(pieces, counts.train_V),
            coverage(pieces, counts.heldout_V),
            usage,
            embedding_share(config, len(pieces)) if config is not None else None,
        )
        for pieces, usage in zip(kept, measure(documents, split, tokenizers), strict=True)
    ]


def embedding_share(config: Config, vocab_size: int) -> float:
    """`ParameterCount.embedding_share` of a configuration's model with another vocabulary, in one vocabulary."""
    domains = replace(config.domains, vocabularies=[])
    model = replace(config.model, vocab_size=vocab_size)
    return count_parameters(replace(config, model=model, domains=domains)).embedding_share


def format_rows(rows: Sequence[Row], chosen: int) -> str:
    """The table; the chosen size is marked."""
    with_share = rows[0].embedding_share is not None
    lines = [
        f"{'pieces':>9} {'coverage':>9} {'held out':>9} {'bytes/token':>12} {'in bytes':>9} {'unknown':>9}"
        + (f" {'embedding':>10}" if with_share else "")
    ]
    for row in rows:
        usage, characters = row.usage, max(row.usage.characters, 1)
        lines.append(
            f"{row.size:>9,} {row.predicted:>9.2%} {row.heldout:>9.2%} {usage.bytes_per_token:>12.3f} "
            f"{usage.as_bytes / characters:>9.2%} {usage.unknown / characters:>9.2%}"
            + (f" {row.embedding_share:>10.1%}" if with_share else "")
            + (" ←" if row.size == chosen else "")
        )
    text = rows[-1].usage
    lines.append(
        f"coverage: of the tokens of the training text; the other columns: of {text.num_bytes:,} bytes of held-out text"
        " (in bytes, unknown: of its characters)"
    )
    return "\n".join(lines)


def plot_rows(rows: Sequence[Row], chosen: int, path: Path) -> None:
    """Writes a PNG: coverage, bytes a token and, where a model is given, the embedding's share, over the size."""
    # matplotlib takes long to import, and drawing is rare; a Figure without pyplot needs no display
    from matplotlib.figure import Figure

    panels = [
        ("coverage of tokens", [("training text", "o-", [row.predicted for row in rows]),
                                ("held-out text", "s--", [row.heldout for row in rows])]),
        ("bytes a token (held-out text)", [("", "o-", [row.usage.bytes_per_token for row in rows])]),
    ]  # fmt: skip
    if rows[0].embedding_share is not None:
        panels.append(("embedding, of all parameters", [("", "o-", [row.embedding_share for row in rows])]))
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
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
    figure.savefig(path, format="png", dpi=120)
