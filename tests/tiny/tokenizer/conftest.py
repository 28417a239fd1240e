"""The published tokenizers, with counts of their pieces in the embedded corpus."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from mindpangu.domains import PRESETS, control_tokens_of
from mindpangu.tiny.tokenizer.documents import FileDocuments, Split
from mindpangu.tiny.tokenizer.piece_counts import PieceCounts, count_pieces
from mindpangu.tiny.tokenizer.piece_selection import PieceSelector
from mindpangu.tokenizer import Tokenizer
from mindpangu.tokenizer.extend import extend

PROJECT = Path(__file__).resolve().parents[3]
ALPHA_40K = PROJECT / "recipes" / "tokenizer" / "pangu_alpha_40k.model"
# pcl-pangu's spm.128k.model.1; not part of the project, because it is too large and not ours to distribute
TEST_DATA = Path(os.environ.get("MINDPANGU_TEST_DATA", PROJECT.parent / "shared" / "data"))
MULTILINGUAL_128K = TEST_DATA / "tokenizer" / "pangu_multilingual_128k.model"


@dataclass(frozen=True)
class Published:
    """A published tokenizer on the embedded corpus."""

    tokenizer: Tokenizer
    selector: PieceSelector
    counts: PieceCounts
    documents: FileDocuments
    split: Split

    def heldout_texts(self):
        return [text for document in self.documents if self.split.is_heldout(document) for text in document.texts]


@pytest.fixture(scope="session", params=["40k", "128k"])
def published(request):
    if request.param == "40k":
        tokenizer = Tokenizer.load(ALPHA_40K)
    elif MULTILINGUAL_128K.exists():
        tokens = control_tokens_of(PRESETS["sigma_4"])
        tokenizer = extend(MULTILINGUAL_128K.read_bytes(), tokens, "128k")
    else:
        pytest.skip(f"{MULTILINGUAL_128K} is not there; MINDPANGU_TEST_DATA names the folder")
    documents = FileDocuments([str(PROJECT / "recipes" / "corpus" / "*.jsonl")])
    split = Split.draw(documents, 0.05, 0)
    return Published(tokenizer, PieceSelector(tokenizer), count_pieces(documents, split, tokenizer), documents, split)
