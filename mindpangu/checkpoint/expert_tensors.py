"""The tensors of one expert of a checkpoint, whole, whichever ranks have written which parts of them."""

from collections.abc import Mapping

import numpy as np

from mindpangu.checkpoint.experts import ExpertFile, expert_file_name
from mindpangu.checkpoint.reader import CheckpointReader
from mindpangu.checkpoint.tensor_file import TensorFile
from mindpangu.errors import CheckpointError
from mindpangu.parallel.expert_share import ExpertShare


class ExpertTensors:
    """An expert whose files are open; tensors are read one at a time.

    Attributes:
        names: of its tensors: "up", …, and "adam_m.up", … where the checkpoint has moments.
        headers: what each of its files says of itself.

    Args:
        layer, domain, index: which expert. number: in how many files it is (`parts_of_experts`).
        shapes: of the four tensors of an expert, whole.
        verify: compare the files with the manifest first.

    Raises:
        CheckpointError: a file that is missing, altered, no expert's, or of another shape.
    """

    def __init__(
        self,
        reader: CheckpointReader,
        layer: int,
        domain: str,
        index: int,
        number: int,
        shapes: Mapping[str, tuple[int, ...]],
        verify: bool = True,
    ):
        names = [expert_file_name(layer, domain, index, (part, number)) for part in range(number)]
        self._shapes = shapes
        self._files = [TensorFile(reader.verify(name) if verify else reader.folder / name) for name in names]
        self.headers = [ExpertFile.from_metadata(file.path, file.metadata) for file in self._files]
        self.names = tuple(self._files[0].tensors)
        for number, file in enumerate(self._files):
            for name in {*shapes, *self.names}:
                needed, info = self._part(name, number).part_shape, file.tensors.get(name)
                if info is None or info.shape != needed:
                    found = "missing" if info is None else f"of shape {list(info.shape)}"
                    raise CheckpointError(f"{file.path}: {name} is {found}; needed: {list(needed)}")

    @property
    def step_count(self) -> int:
        """How often it was updated."""
        return self.headers[0].step_count

    def read(self, name: str) -> np.ndarray:
        """One tensor, float32."""
        if len(self._files) == 1:
            return self._files[0].read(name)
        whole = np.empty(self._shapes[_tensor(name)], np.float32)
        for number, file in enumerate(self._files):
            self._part(name, number).put(file.read(name), whole)
        return whole

    def _part(self, name: str, number: int):
        share = ExpertShare(tensor=number, tensors=len(self._files))
        return share.part(_tensor(name), self._shapes[_tensor(name)])


def _tensor(name: str) -> str:
    """The tensor that one is, or is a moment of."""
    return name.rsplit(".", 1)[-1]
