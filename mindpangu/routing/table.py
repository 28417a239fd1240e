"""The routing table, in memory and on disk: the expert of each token id, for every RRE layer and domain.

A saved table belongs to the weights that were trained with it. It travels with them and is never rebuilt from a seed.
`assignment.py` draws tables; `statistics.py` measures their load.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from safetensors.numpy import save as encode_tensors

from mindpangu.config import RoutingConfig
from mindpangu.display import describe_error, short_repr
from mindpangu.domains import Domain
from mindpangu.errors import RoutingError
from mindpangu.files import write_bytes_atomically
from mindpangu.routing.assignment import assign_layers
from mindpangu.tensor_format import decode, require_tensors
from mindpangu.untrusted import DIGEST, DomainName, Pattern, parse_json, read_bytes, read_record

FORMAT_VERSION = "1"
_TENSOR = "expert_of_token"
_HEADER = "routing_table"
_FILE_LIMIT = 1 << 31  # bytes
_Number = Annotated[str, Pattern("[0-9]{1,10}", "a decimal number as text")]


@dataclass(frozen=True)
class _Header:
    """The header of a file: `DomainTable.header` and the digest."""

    format_version: str
    domain: DomainName
    num_experts: _Number
    num_layers: _Number
    vocab_size: _Number
    assignment: Annotated[str, Pattern("[a-z]{1,20}", "a word")]
    digest: Annotated[str, DIGEST]


@dataclass(frozen=True, eq=False)
class DomainTable:
    """The table of one domain. It does not refer to any other domain.

    Attributes:
        name: name of the domain.
        num_experts: E, experts in the domain's group, the same in every layer.
        assignment: how the table was drawn: "random" or "balanced".
        experts_LV: uint16 [L, V], read-only: index of the expert inside the group.
    """

    name: str
    num_experts: int
    assignment: str
    experts_LV: np.ndarray

    def __post_init__(self) -> None:
        experts_LV = np.ascontiguousarray(self.experts_LV).view()
        if experts_LV.dtype != np.uint16 or experts_LV.ndim != 2:
            raise RoutingError(
                f"the table of domain {self.name!r} is {experts_LV.dtype} of shape {experts_LV.shape}; "
                "it must be uint16 [layers, token ids]"
            )
        if experts_LV.size and experts_LV.max() >= self.num_experts:
            raise RoutingError(
                f"the table of domain {self.name!r} names expert {experts_LV.max()}, "
                f"but its group has {self.num_experts} experts (0 to {self.num_experts - 1})"
            )
        experts_LV.setflags(write=False)
        object.__setattr__(self, "experts_LV", experts_LV)

    @property
    def header(self) -> dict[str, str]:
        """Description of the content, stored in the file as strings."""
        num_layers, vocab_size = self.experts_LV.shape
        return {
            "format_version": FORMAT_VERSION,
            "domain": self.name,
            "num_experts": str(self.num_experts),
            "num_layers": str(num_layers),
            "vocab_size": str(vocab_size),
            "assignment": self.assignment,
        }

    @cached_property
    def digest(self) -> str:
        """BLAKE2 hash of header and content, 32 hex digits."""
        total = hashlib.blake2b(json.dumps(self.header, sort_keys=True).encode(), digest_size=16)
        total.update(self.experts_LV.astype("<u2", copy=False).tobytes())
        return total.hexdigest()


class RoutingTable:
    """The tables of all domains of a model. A domain's position is its domain id.

    Args:
        tables: one table per domain, all with the same number of layers.

    Raises:
        RoutingError: there is no domain, a domain has two tables, or domains differ in their number of layers.
    """

    def __init__(self, tables: Iterable[DomainTable]) -> None:
        self._tables: dict[str, DomainTable] = {}
        for table in tables:
            if table.name in self._tables:
                raise RoutingError(f"domain {table.name!r} has two routing tables; a domain may appear once")
            self._tables[table.name] = table
        if not self._tables:
            raise RoutingError("a routing table needs at least one domain; see domains.names")
        layers = {name: table.experts_LV.shape[0] for name, table in self._tables.items()}
        if len(set(layers.values())) > 1:
            raise RoutingError(
                f"the domains' tables differ in their number of RRE layers: {layers}; all must have model.rre_layers"
            )

    @classmethod
    def build(
        cls,
        domains: Sequence[Domain],
        token_counts: Mapping[str, np.ndarray],
        num_layers: int,
        routing: RoutingConfig,
    ) -> "RoutingTable":
        """Draws a new table.

        Args:
            domains: the model's domains in the order of their ids.
            token_counts: domain name → int64 [V], occurrences of each token id in the domain's training text. V may
                differ between domains (vocabularies). `random` uses only V.
            num_layers: L, number of RRE layers.
            routing: assignment, seed, and jitter.

        Raises:
            RoutingError: a domain has no counts, invalid counts, or more experts than token ids.
        """
        tables = []
        for domain in domains:
            if domain.name not in token_counts:
                raise RoutingError(f"no token counts for domain {domain.name!r}; got: {', '.join(token_counts)}")
            counts_V = token_counts[domain.name]
            try:
                experts_LV = assign_layers(counts_V, domain.num_experts, num_layers, domain.name, routing)
            except RoutingError as error:
                raise RoutingError(f"domain {domain.name!r}: {error}") from error
            tables.append(DomainTable(domain.name, domain.num_experts, routing.assignment, experts_LV))
        return cls(tables)

    @property
    def domain_names(self) -> tuple[str, ...]:
        """The domains in the order of their ids."""
        return tuple(self._tables)

    @property
    def num_layers(self) -> int:
        """L, number of RRE layers."""
        return next(iter(self._tables.values())).experts_LV.shape[0]

    @property
    def assignment(self) -> str:
        """Assignment of the tables: "random", "balanced", or "balanced+random" if domains differ."""
        return "+".join(sorted({table.assignment for table in self._tables.values()}))

    @cached_property
    def digest(self) -> str:
        """Hash of all domains' digests in the order of their ids, 32 hex digits."""
        digests = "".join(table.digest for table in self._tables.values())
        return hashlib.blake2b(digests.encode(), digest_size=16).hexdigest()

    def domain(self, domain_name: str) -> DomainTable:
        """Returns the table of one domain. Raises RoutingError if there is none."""
        if domain_name not in self._tables:
            raise RoutingError(f"the routing table has no domain {domain_name!r}; it has: {', '.join(self._tables)}")
        return self._tables[domain_name]

    def array(self, layer: int, domain_name: str) -> np.ndarray:
        """Returns uint16 [V], read-only: the index of each token id's expert inside the domain's group.

        Raises:
            RoutingError: the table does not have this domain or layer.
        """
        if not 0 <= layer < self.num_layers:
            raise RoutingError(f"the routing table has no RRE layer {layer}; it has {self.num_layers}, from 0")
        return self.domain(domain_name).experts_LV[layer]

    def num_experts(self, domain_name: str) -> int:
        """Returns the number of experts in the domain's group."""
        return self.domain(domain_name).num_experts

    def vocab_size(self, domain_name: str) -> int:
        """Returns the number of token ids in the domain's vocabulary."""
        return self.domain(domain_name).experts_LV.shape[1]

    def domain_digest(self, domain_name: str) -> str:
        """Returns the hash of one domain's table, independent of other domains."""
        return self.domain(domain_name).digest

    def stacked(self, domain_names: Sequence[str]) -> np.ndarray:
        """Stacks the tables of the domains in a step's domain slots into int32 [L, D, V] for the compiled step.

        V is the size of their largest vocabulary. Shorter rows are padded with zeros, which no valid token id reads.
        """
        stacked_LDV = np.zeros((self.num_layers, len(domain_names), max(map(self.vocab_size, domain_names))), np.int32)
        for slot, name in enumerate(domain_names):
            stacked_LDV[:, slot, : self.vocab_size(name)] = self.domain(name).experts_LV
        return stacked_LDV

    def save(self, folder: Path) -> None:
        """Writes one file per domain, `{domain}.safetensors`, into `folder`, which is created if necessary."""
        for name, data in self.encode().items():
            write_bytes_atomically(folder / name, data)

    def encode(self) -> dict[str, bytes]:
        """Returns file name → content, for one file per domain. Equal tables give equal files."""
        # a single header entry, because safetensors writes several in arbitrary order
        return {
            f"{table.name}.safetensors": encode_tensors(
                {_TENSOR: table.experts_LV},
                {_HEADER: json.dumps(table.header | {"digest": table.digest}, sort_keys=True)},
            )
            for table in self._tables.values()
        }

    @classmethod
    def load(cls, folder: Path, domain_names: Sequence[str]) -> "RoutingTable":
        """Loads the tables of some domains, in the order of their ids. Files of other domains are not read.

        Raises:
            RoutingError: a file is missing or truncated, has another format version, belongs to another domain, or does
                not match its digest.
        """
        return cls(_read(folder, name) for name in domain_names)


def table_file(folder: Path, domain_name: str) -> Path:
    """Returns the path of a domain's table in a folder of tables."""
    return folder / f"{domain_name}.safetensors"


def _read(folder: Path, domain_name: str) -> DomainTable:
    path = table_file(folder, domain_name)
    try:
        metadata, tensors = decode(read_bytes(path, _FILE_LIMIT))
        if _HEADER not in metadata:
            raise ValueError(f"{_HEADER} is missing in its header")
        header = parse_json(metadata[_HEADER])
        version = header.get("format_version") if isinstance(header, dict) else None
        if not isinstance(version, str) or version == FORMAT_VERSION:
            saved = read_record(_Header, header, _HEADER)
            require_tensors(tensors, {_TENSOR: ("U16", 2)})
            table = DomainTable(saved.domain, int(saved.num_experts), saved.assignment, tensors[_TENSOR])
    except FileNotFoundError:
        present = ", ".join(sorted(file.stem for file in folder.glob("*.safetensors"))) or "no tables"
        raise RoutingError(
            f"no routing table of domain {domain_name!r}: {path} is missing; {folder} contains: {present}"
        ) from None
    except (OSError, ValueError, RoutingError) as error:
        raise RoutingError(
            f"{path} is not a complete routing table: {describe_error(error)}; copy it again from its checkpoint"
        ) from error
    if version != FORMAT_VERSION:
        raise RoutingError(
            f"{path} has routing table format {short_repr(version)}; this version of mindpangu reads format "
            f"{FORMAT_VERSION}"
        )
    if header != table.header | {"digest": table.digest}:
        raise RoutingError(
            f"{path} was changed after it was written: its content does not match the digest in its header "
            f"({saved.digest}); copy it again from its checkpoint"
        )
    if table.name != domain_name:
        raise RoutingError(
            f"{path} contains the table of domain {table.name!r}, not of {domain_name!r}; was it renamed?"
        )
    return table
