"""The dense tensors of a checkpoint, one at a time and whole, whichever ranks have written which parts of them."""

import json

import numpy as np

from mindpangu.checkpoint import CheckpointReader
from mindpangu.checkpoint.tensor_file import TensorFile
from mindpangu.errors import CheckpointError
from mindpangu.parallel.sharding import Part

_MOMENTS = ("adam_m.", "adam_v.")


class SavedDense:
    """Weights by name; Adam's moments, which a checkpoint of a training has beside them, are left out.

    Attributes:
        shapes: name → shape of the whole tensor.

    Raises:
        CheckpointError: a dense file that is missing, altered, or does not say which parts it has.
    """

    def __init__(self, reader: CheckpointReader):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._folder = reader.folder
        self._parts: dict[str, list[tuple[TensorFile, Part]]] = {}
        for each in sorted(name for name in reader.files if name.startswith("dense_")):
            file = TensorFile(reader.verify(each))
            described = _described_parts(file)
            for name, info in file.tensors.items():
                if not name.startswith(_MOMENTS):
                    part = described.get(name, Part(info.shape))
                    self.shapes[name] = part.shape
                    self._parts.setdefault(name, []).append((file, part))

    def read(self, name: str) -> np.ndarray:
        """float32, a whole tensor. Raises CheckpointError if the files do not have all of it."""
        whole = np.empty(self.shapes[name], np.float32)
        found = sum(Part(whole.shape).copy(whole, part, file.read(name)) for file, part in self._parts[name])
        if found != whole.size:
            raise CheckpointError(f"{self._folder}: its dense files have {found} of the {whole.size} numbers of {name}")
        return whole


def _described_parts(file: TensorFile) -> dict[str, Part]:
    try:
        described = json.loads(file.metadata.get("parts", '{"tensors": {}}'))["tensors"]
        return {name: Part.read(part) for name, part in described.items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file.path} does not say which parts of its tensors it has: {error!r}") from None
