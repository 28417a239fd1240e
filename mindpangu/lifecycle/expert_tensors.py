"""The tensors of an expert that lies in a checkpoint, whole, in however many files it is."""

from collections.abc import Mapping

import numpy as np

from mindpangu.checkpoint import ExpertFile, expert_file_name, parts_of_experts
from mindpangu.checkpoint.tensor_file import TensorFile
from mindpangu.lifecycle.blueprint import Origin
from mindpangu.parallel.expert_share import ExpertShare


class ExpertTensors:
    """An expert, verified when it is opened; tensors are read one at a time.

    Attributes:
        names: of its tensors: "up", …, and "adam_m.up", … where the checkpoint has moments.
        step_count: how often it was updated.

    Args:
        shapes: of the four tensors of an expert.

    Raises:
        CheckpointError: a file that is missing, altered, or no expert's.
    """

    def __init__(self, origin: Origin, shapes: Mapping[str, tuple[int, ...]]):
        self._shapes, reader = shapes, origin.reader
        expert = origin.layer, origin.domain, origin.index
        number = parts_of_experts(reader.files).get(expert, 1)
        names = [expert_file_name(*expert, (part, number)) for part in range(number)]
        self._files = [TensorFile(reader.verify(name)) for name in names]
        self.names = tuple(self._files[0].tensors)
        self.step_count = ExpertFile.of(self._files[0].path, self._files[0].metadata).step_count

    def read(self, name: str) -> np.ndarray:
        tensor = name.rsplit(".", 1)[-1]
        if len(self._files) == 1:
            return self._files[0].read(name)
        whole = np.empty(self._shapes[tensor], np.float32)
        for number, file in enumerate(self._files):
            part = ExpertShare(tensor=number, tensors=len(self._files)).part(tensor, whole.shape)
            part.put(file.read(name), whole)
        return whole
