"""Reads the tokenizers and the routing table of a checkpoint."""

from mindpangu.checkpoint.reader import CheckpointReader
from mindpangu.config import Config
from mindpangu.domains import MAIN_VOCABULARY, build_domains
from mindpangu.routing import RoutingTable
from mindpangu.tokenizer import Tokenizer


def read_tokenizers(reader: CheckpointReader, config: Config) -> dict[str, Tokenizer]:
    """Returns vocabulary → tokenizer. Raises CheckpointError if a file does not match the manifest."""
    vocabularies = [vocabulary.name for vocabulary in config.domains.vocabularies] or [MAIN_VOCABULARY]
    return {vocabulary: Tokenizer.load(reader.verify(f"tokenizer/{vocabulary}.model")) for vocabulary in vocabularies}


def read_table(reader: CheckpointReader, config: Config) -> RoutingTable | None:
    """Returns the routing table of all domains; None for a dense model. Raises like `read_tokenizers`."""
    if config.model.rre_layers == 0:
        return None
    names = [domain.name for domain in build_domains(config)]
    for name in names:
        reader.verify(f"routing/{name}.safetensors")
    return RoutingTable.load(reader.folder / "routing", names)
