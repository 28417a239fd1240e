"""From a tokenizer and a corpus to a folder with the compact tokenizer and what is known of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindpangu.config import Config
from mindpangu.files import scratch_files, write_json
from mindpangu.tiny.tokenizer.choices import Choices
from mindpangu.tiny.tokenizer.documents import Documents, Split
from mindpangu.tiny.tokenizer.piece_counts import PieceCounts, count_pieces
from mindpangu.tiny.tokenizer.size_curve import Row, compare_sizes, format_rows, plot_rows
from mindpangu.tokenizer import Tokenizer

TOKENIZER, COUNTS, REPORT, CURVE = "tokenizer.model", "counts.safetensors", "report.json", "curve.png"


@dataclass(frozen=True)
class Compaction:
    """A compact tokenizer, and its comparison with other sizes.

    Attributes:
        source, tokenizer: the large one, the compact one.
        kept: ids, in the large one, of the pieces that stay.
        rows: of the sizes, ascending; the last is the large one.
    """

    source: Tokenizer
    tokenizer: Tokenizer
    kept: frozenset[int]
    rows: Sequence[Row]

    def table(self) -> str:
        return format_rows(self.rows, len(self.kept))

    def write(self, out: Path) -> None:
        """Writes the tokenizer, the report and the picture into a folder: each whole, or what was there before."""
        report = {
            "format_version": 1,
            "pieces": self.tokenizer.vocab_size,
            "tokenizer": self.tokenizer.digest,
            "source_tokenizer": self.source.digest,
            "sizes": [row.to_dict() for row in self.rows],
        }
        with scratch_files(out) as scratch:
            (scratch / TOKENIZER).write_bytes(self.tokenizer.model_bytes)
            write_json(scratch / REPORT, report)
            plot_rows(self.rows, len(self.kept), scratch / CURVE)


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
    """Counts pieces, chooses those that stay, and compares sizes on held-out text.

    Args:
        size: of the tokenizer. sizes: to compare it with; None: the usual ones.
        config: the held-out split and, `with_model`, the model whose embedding shrinks.
        counts_file: taken instead of counting if it is there and of this text and tokenizer; else (re)placed.

    Raises:
        TokenizerError: a size that cannot be had; nothing was read or written then.
        DataError: text that cannot be read, or a damaged file of counts.
    """
    choices = Choices(tokenizer)
    compared = choices.usual_sizes() if sizes is None else sizes
    for each in (size, *compared):
        choices.require(each)
    split = Split.draw(documents, config.data.heldout_fraction, config.data.seed)
    counts = PieceCounts.load(counts_file) if counts_file.is_file() else None
    if counts is None or not counts.is_of(tokenizer, documents, split):
        if counts is not None:
            log(f"tokenizer: {counts_file} is of another text, split or tokenizer; it is counted anew")
        counts = count_pieces(documents, split, tokenizer)
        counts_file.parent.mkdir(parents=True, exist_ok=True)
        counts.save(counts_file)
    kept = choices.of_size(size, counts.train_V)
    rows = compare_sizes(choices, counts, [size, *compared], documents, split, config if with_model else None)
    return Compaction(tokenizer, choices.tokenizer(kept), kept, rows)
