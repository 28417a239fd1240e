"""A model with everything that must travel together: domains, tokenizers, routing tables, decoder, experts.

`parts.py` is the model without weights, `model.py` holds all of it and computes with it, `inputs.py` turns host arrays
into its tensors, `files.py` writes it into a checkpoint and reads it back, `expert_reader.py` reads single experts.
Training, evaluation and generation all stand on this room.
"""

from mindpangu.language_model.expert_reader import ExpertReader
from mindpangu.language_model.files import DenseTensors, SavedExperts, load_model, read_dense, read_experts, write_model
from mindpangu.language_model.inputs import ModelInputs, as_tensor, group_by_domain, refuse_invalid_ids
from mindpangu.language_model.model import LanguageModel
from mindpangu.language_model.parts import ModelParts

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
