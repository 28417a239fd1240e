"""The checkpoint: a directory of safetensors files with a manifest of hashes.

    iteration_00000200/
        manifest.json                           format version, step, and size and hash of every file
        state.json                              step counts, loader state, spike window, digests of data and tables
        config.yaml                             the resolved configuration
        dense_00000_of_00001.safetensors        dense parameters and their Adam moments: what this rank wrote of them
        experts/rre_00.zh.003.safetensors       one file per (RRE layer, domain, index in the group), self-describing
        experts/rre_00.zh.003.0_of_2.safetensors      … or one for each rank of a tensor group
        routing/zh.safetensors                  one routing-table file per domain
        tokenizer/main.model                    one tokenizer per vocabulary

`writer.py` makes one beside its place and renames it, `reader.py` verifies and reads, `directory.py` finds and prunes,
`experts.py` is the format of an expert file, `compatibility.py` says what must agree before a run is resumed. Whole
tensors, whichever ranks wrote which parts, come from `dense.py` and `expert_tensors.py`, tokenizers and tables from
`routes.py`; `tensor_file.py` reads and writes one tensor at a time, and `vocabulary.py` re-maps embeddings. What goes
in is decided above: the model's files in `language_model.files`, the training state in `train.checkpointing`.
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
    iteration_folder,
    latest_iteration,
    list_iterations,
    prune,
)
from mindpangu.checkpoint.experts import ExpertFile, expert_file_name, parts_of_experts, read_metadata
from mindpangu.checkpoint.reader import CheckpointReader
from mindpangu.checkpoint.routes import read_table, read_tokenizers
from mindpangu.checkpoint.writer import CheckpointWriter

__all__ = [
    "CheckpointReader",
    "CheckpointWriter",
    "ExpertFile",
    "clean_interrupted",
    "differences",
    "expert_file_name",
    "finish_publishing",
    "input_digests",
    "is_finished",
    "iteration_folder",
    "latest_iteration",
    "list_iterations",
    "parts_of_experts",
    "prune",
    "read_metadata",
    "read_table",
    "read_tokenizers",
    "refuse_differences",
    "refuse_other_model",
    "refuse_settings",
]
