"""Reads the tokenizers and the routing table of a checkpoint."""

from mindpangu.checkpoint.reader import CheckpointReader
from mindpangu.config import Config
from mindpangu.domains import MAIN_VOCABULARY, build_domains
from mindpangu.errors import CheckpointError
from mindpangu.routing import RoutingTable
from mindpangu.tensor_format import HEADER_LIMIT
from mindpangu.tokenizer import Tokenizer

_LONGEST_ROW = 2 * 10_000_000  # bytes: uint16 for each token id of the largest vocabulary (model.vocab_size)


def read_tokenizers(reader: CheckpointReader, config: Config) -> dict[str, Tokenizer]:
    """Returns vocabulary → tokenizer. Raises CheckpointError if a file does not match the manifest."""
    vocabularies = [vocabulary.name for vocabulary in config.domains.vocabularies] or [MAIN_VOCABULARY]
    return {vocabulary: Tokenizer.load(reader.verify(f"tokenizer/{vocabulary}.model")) for vocabulary in vocabularies}


def read_table(reader: CheckpointReader, config: Config) -> RoutingTable | None:
    """Returns the routing table of all domains; None for a dense model.

    Raises:
        CheckpointError: a file does not match the manifest, or is too large for the model's number of RRE layers.
    """
    if config.model.rre_layers == 0:
        return None
    names = [domain.name for domain in build_domains(config)]
    max_bytes = HEADER_LIMIT + config.model.rre_layers * _LONGEST_ROW
    for name in names:
        file = f"routing/{name}.safetensors"
        num_bytes = int(reader.files.get(file, {}).get("bytes", 0))
        if num_bytes > max_bytes:  # it is read as a whole
            raise CheckpointError(
                f"{reader.folder / file} has {num_bytes:,} bytes; allowed: <= {max_bytes:,}, because the model has "
                f"{config.model.rre_layers} RRE layers"
            )
        reader.verify(file)
    return RoutingTable.load(reader.folder / "routing", names)
