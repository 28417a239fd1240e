"""Reads one expert of a checkpoint: assembles whole tensors, whichever ranks wrote which shards."""

from collections.abc import Mapping

import numpy as np

from mindpangu.checkpoint.experts import ExpertFile, expert_file_name
from mindpangu.checkpoint.reader import CheckpointReader
from mindpangu.checkpoint.tensor_file import TensorFile
from mindpangu.display import short_repr
from mindpangu.errors import CheckpointError
from mindpangu.parallel.expert_share import ExpertShare
from mindpangu.parallel.sharding import TensorSlice


class ExpertTensors:
    """An expert with open files; tensors are read one at a time.

    Attributes:
        names: names of its tensors: "up", … and, if the checkpoint has moments, "adam_m.up", …
        headers: the header of each of its files.

    Args:
        layer, domain, index: identify the expert.
        num_shards: number of files that hold the expert (`shards_of_experts`).
        shapes: tensor → shape of the whole tensor.
        verify: whether to compare the files with the manifest first.

    Raises:
        CheckpointError: a file is missing or altered, is not an expert file, or has other shapes.
    """

    def __init__(
        self,
        reader: CheckpointReader,
        layer: int,
        domain: str,
        index: int,
        num_shards: int,
        shapes: Mapping[str, tuple[int, ...]],
        verify: bool = True,
    ):
        names = [expert_file_name(layer, domain, index, (shard, num_shards)) for shard in range(num_shards)]
        self._shapes = shapes
        self._files = [TensorFile(reader.verify(name) if verify else reader.require_size(name)) for name in names]
        self.headers = [ExpertFile.from_metadata(file.path, file.metadata) for file in self._files]
        self.names = tuple(self._files[0].tensors)
        for shard, file in enumerate(self._files):
            for name in {*shapes, *self.names}:
                needed = self._slice(name, shard).local_shape
                info = file.tensors.get(name)
                if info is None or info.shape != needed or info.dtype != np.float32:
                    found = "missing" if info is None else f"{info.dtype} of shape {list(info.shape)}"
                    raise CheckpointError(
                        f"{file.path}: {name} is {found}, the model needs float32 of shape {list(needed)}; copy the "
                        "file again"
                    )

    @property
    def step_count(self) -> int:
        """Number of times the expert has been updated."""
        return self.headers[0].step_count

    def read(self, name: str) -> np.ndarray:
        """Reads one whole tensor as float32."""
        if len(self._files) == 1:
            return self._files[0].read(name)
        whole = np.empty(self._shapes[_base_name(name)], np.float32)
        for shard, file in enumerate(self._files):
            self._slice(name, shard).put(file.read(name), whole)
        return whole

    def _slice(self, name: str, shard: int) -> TensorSlice:
        tensor = _base_name(name)
        if tensor not in self._shapes:
            raise CheckpointError(
                f"{self._files[shard].path} has the unknown tensor {short_repr(name)}; copy the file again"
            )
        share = ExpertShare(tensor=shard, tensors=len(self._files))
        return share.tensor_slice(tensor, self._shapes[tensor])


def _base_name(name: str) -> str:
    """Returns "up" for "up" and for its moments, "adam_m.up" and "adam_v.up"."""
    return name.rsplit(".", 1)[-1]
