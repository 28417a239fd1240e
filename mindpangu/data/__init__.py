"""Turns text on disk into batches of token ids. Nothing here depends on models or on MindSpore.

The path of a document:

    reader = CorpusReader(config, domains)                  # jsonl → Record; reports bad records
    split = split_corpus(reader)                            # selects the held-out source documents
    tokenizer = train_tokenizer(training_texts(reader, split), vocab_size, control_tokens_of(domains), path)
    shards = write_shards(folder, reader, split, tokenizer) # <python> code <eot> → code.train.bin
    loader = Loader(shards, domains, config)                # cuts at seq_length, shuffles, mixes domains
    step = loader.next_step()                               # StepBatches: micro-batches and the state to save
"""

from mindpangu.data.batch import Batch, equal_parts
from mindpangu.data.corpus import CorpusReader, CorpusReport, Record
from mindpangu.data.formats import document_parts, encode_documents, prompt_ids
from mindpangu.data.instruction import encode_prompt, first_answer, prompt_parts
from mindpangu.data.loader import Loader, LoaderState, StepBatches, heldout_batches
from mindpangu.data.mixture import Mixture
from mindpangu.data.packing import loss_mask, positions
from mindpangu.data.replay import ReplayLoader
from mindpangu.data.shard_writer import write_shards
from mindpangu.data.shards import TokenShards
from mindpangu.data.split import HELDOUT, TRAIN, HeldoutSplit, split_corpus, training_texts

__all__ = [
    "HELDOUT",
    "TRAIN",
    "Batch",
    "CorpusReader",
    "CorpusReport",
    "HeldoutSplit",
    "Loader",
    "LoaderState",
    "Mixture",
    "Record",
    "ReplayLoader",
    "StepBatches",
    "TokenShards",
    "document_parts",
    "encode_documents",
    "encode_prompt",
    "equal_parts",
    "first_answer",
    "heldout_batches",
    "loss_mask",
    "positions",
    "prompt_ids",
    "prompt_parts",
    "split_corpus",
    "training_texts",
    "write_shards",
]
