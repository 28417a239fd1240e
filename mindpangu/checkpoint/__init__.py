"""The checkpoint: a directory of safetensors files with a manifest of hashes.

    iteration_00000200/
        manifest.json                           format version, step, and size and hash of every file
        state.json                              step counts, loader state, spike window, digests of data and tables
        config.yaml                             the resolved configuration
        dense_00000_of_00001.safetensors        dense parameters and Adam moments that one rank wrote
        experts/rre_00.zh.003.safetensors       one file per (RRE layer, domain, index in the group), self-describing
        experts/rre_00.zh.003.0_of_2.safetensors    … or one per rank of a tensor group
        routing/zh.safetensors                  one routing-table file per domain
        tokenizer/main.model                    one tokenizer per vocabulary

`manifest.py` defines the format of the manifest, `experts.py` that of an expert file. `writer.py` writes a checkpoint
into a scratch folder and renames it, `reader.py` verifies and reads one, `directory.py` finds and prunes them,
`state.py` reads state.json; `compatibility.py` decides whether a run may be resumed. `dense.py` and `expert_tensors.py`
assemble whole tensors, whichever ranks wrote which slices; `routes.py` reads tokenizers and tables; `tensor_file.py`
reads and writes one tensor at a time; `vocabulary.py` remaps embeddings. Other packages decide what a checkpoint holds:
`language_model.files` the model's files, `train.checkpointing` the training state.
"""

from mindpangu.checkpoint.compatibility import (
    differences,
    input_digests,
    is_finished,
    refuse_differences,
    refuse_other_model,
    refuse_settings,
)
from mindpangu.checkpoint.directory import (
    clean_interrupted,
    finish_publishing,
    incomplete_iterations,
    is_complete,
    iteration_folder,
    latest_iteration,
    list_iterations,
    prune,
)
from mindpangu.checkpoint.experts import ExpertFile, expert_file_name, shards_of_experts
from mindpangu.checkpoint.reader import CheckpointReader
from mindpangu.checkpoint.routes import read_table, read_tokenizers
from mindpangu.checkpoint.state import STATE_FILE, SavedState
from mindpangu.checkpoint.writer import CheckpointWriter

__all__ = [
    "STATE_FILE",
    "CheckpointReader",
    "CheckpointWriter",
    "ExpertFile",
    "SavedState",
    "clean_interrupted",
    "differences",
    "expert_file_name",
    "finish_publishing",
    "incomplete_iterations",
    "input_digests",
    "is_complete",
    "is_finished",
    "iteration_folder",
    "latest_iteration",
    "list_iterations",
    "prune",
    "read_table",
    "read_tokenizers",
    "refuse_differences",
    "refuse_other_model",
    "refuse_settings",
    "shards_of_experts",
]
