"""A model with everything that belongs to it: domains, tokenizers, routing table, decoder, and experts.

`parts.py` is the model without weights, `model.py` adds the weights and the forward passes, `inputs.py` turns host
arrays into its tensors, `files.py` writes it into a checkpoint and reads it back, `expert_reader.py` reads single
experts. Training, evaluation, and generation all build on this package.

Names that need MindSpore are imported on first use: commands that only inspect a run folder must start quickly.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mindpangu.language_model.expert_reader import ExpertReader
from mindpangu.language_model.parts import ModelParts

if TYPE_CHECKING:
    from mindpangu.language_model.files import (
        DenseTensors,
        SavedExperts,
        load_model,
        read_dense,
        read_experts,
        write_model,
    )
    from mindpangu.language_model.inputs import ModelInputs, as_tensor, group_by_domain, refuse_invalid_ids
    from mindpangu.language_model.model import LanguageModel

_MODULE_OF = {
    "DenseTensors": "files",
    "LanguageModel": "model",
    "ModelInputs": "inputs",
    "SavedExperts": "files",
    "as_tensor": "inputs",
    "group_by_domain": "inputs",
    "load_model": "files",
    "read_dense": "files",
    "read_experts": "files",
    "refuse_invalid_ids": "inputs",
    "write_model": "files",
}

__all__ = [
    "DenseTensors",
    "ExpertReader",
    "LanguageModel",
    "ModelInputs",
    "ModelParts",
    "SavedExperts",
    "as_tensor",
    "group_by_domain",
    "load_model",
    "read_dense",
    "read_experts",
    "refuse_invalid_ids",
    "write_model",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
