"""Makes a compact tokenizer from a tokenizer and a corpus, and writes it to a folder with a report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindpangu.config import Config
from mindpangu.files import scratch_files, write_durably, write_json
from mindpangu.stage import refuse_other_results
from mindpangu.tiny.tokenizer.documents import Documents, Split
from mindpangu.tiny.tokenizer.piece_counts import PieceCounts, count_pieces
from mindpangu.tiny.tokenizer.piece_selection import PieceSelector
from mindpangu.tiny.tokenizer.size_curve import Row, compare_sizes, format_rows, plot_rows
from mindpangu.tokenizer import Tokenizer

TOKENIZER = "tokenizer.model"
COUNTS = "counts.safetensors"
REPORT = "report.json"
CURVE = "curve.png"


@dataclass(frozen=True)
class Compaction:
    """A compact tokenizer, and its comparison with other sizes.

    Attributes:
        source: the large tokenizer.
        tokenizer: the compact tokenizer.
        kept: ids of the kept pieces in the large tokenizer.
        rows: measures of the compared sizes, ascending; the last row is the large tokenizer.
    """

    source: Tokenizer
    tokenizer: Tokenizer
    kept: frozenset[int]
    rows: Sequence[Row]

    def table(self) -> str:
        """Formats the comparison of the sizes."""
        return format_rows(self.rows, len(self.kept))

    def write(self, out: Path) -> None:
        """Writes the tokenizer, the report and the plot into a folder. Replaces each file atomically."""
        report = {
            "format_version": 1,
            "pieces": self.tokenizer.vocab_size,
            "tokenizer": self.tokenizer.digest,
            "source_tokenizer": self.source.digest,
            "sizes": [row.to_dict() for row in self.rows],
        }
        with scratch_files(out) as scratch:
            write_durably(scratch / TOKENIZER, self.tokenizer.model_bytes)
            write_json(scratch / REPORT, report)
            plot_rows(self.rows, len(self.kept), scratch / CURVE)


def refuse_other_files(out: Path) -> None:
    """Raises StageError if `write` would replace files in a folder that it has not written, e.g. those of an export."""
    refuse_other_results(out, REPORT, ["pieces", "tokenizer", "source_tokenizer", "sizes"], [TOKENIZER])


def compact_tokenizer(
    tokenizer: Tokenizer,
    documents: Documents,
    size: int,
    sizes: Sequence[int] | None,
    config: Config,
    counts_file: Path,
    with_model: bool,
    log: Callable[[str], None] = print,
) -> Compaction:
    """Counts the pieces, selects those to keep, and compares tokenizer sizes on held-out text.

    Args:
        tokenizer: the large tokenizer.
        documents: the text to count in.
        size: number of pieces of the compact tokenizer.
        sizes: sizes to compare it with; None for the default ones.
        config: configuration of the held-out split and of the model.
        counts_file: saved counts, used if they match the text and the tokenizer; otherwise written.
        with_model: whether to report the embedding's share of the model's parameters.
        log: receives messages for the user.

    Raises:
        TokenizerError: a size is not possible. Nothing has been read or written then.
        DataError: the text cannot be read, or the counts file is damaged.
    """
    selector = PieceSelector(tokenizer)
    compared_sizes = selector.default_sizes() if sizes is None else sizes
    for checked_size in (size, *compared_sizes):
        selector.require_size(checked_size)
    split = Split.draw(documents, config.data.heldout_fraction, config.data.seed)
    if documents.left_out:
        log(f"tokenizer: left out of the counts: {documents.left_out}")
    counts = PieceCounts.load(counts_file) if counts_file.is_file() else None
    if counts is None or not counts.matches(tokenizer, documents, split):
        if counts is not None:
            log(f"tokenizer: {counts_file} belongs to another text, split or tokenizer; counting again")
        counts = count_pieces(documents, split, tokenizer)
        counts.save(counts_file)
    kept = selector.select(size, counts.train_V)
    model_config = config if with_model else None
    rows = compare_sizes(selector, counts, [size, *compared_sizes], documents, split, model_config)
    return Compaction(tokenizer, selector.tokenizer(kept), kept, rows)
