"""Every key of a run, as dataclasses: one class a section, a docstring under each field.

Only declarations and the checks that need a single section live here; reading files, overrides and
checks across sections are in `loader.py`. Names follow MindSpore's users (seq_length, num_layers,
local_batch_size …). A value of 0 or "" that stands for "derived" says so in its docstring.
"""

from dataclasses import dataclass, field

from mindpangu.config.fields import choice, number

NETWORK_KEYS = ("activation", "series_terms", "biases")
"""Keys of `model` that, together with the sizes, decide which tensors a feed-forward network or an expert has."""

ARCHITECTURE = (
    "query_layer",
    "position",
    "norm",
    "activation",
    "series_terms",
    "shortcut_reduction",
    "biases",
    "tied_head",
)
"""Keys of `model` that say which tensors there are, beside sizes."""


@dataclass(frozen=True)
class ModelConfig:
    num_layers: int = number(4, minimum=1)
    """Transformer layers, a query layer on top included."""
    rre_layers: int = number(2, minimum=0)
    """How many of the top layers hold Random Routed Experts; 0 is the dense PanGu-α."""
    hidden_size: int = number(256, minimum=1)
    """Width of the residual stream."""
    ffn_hidden_size: int = number(0, minimum=0)
    """Inner width of a feed-forward network and of one expert; 0 means 4 × hidden_size, and for swiglu 8/3 of it, which
    is as many parameters, rounded up to a multiple of 8."""
    num_heads: int = number(4, minimum=1)
    """Attention heads; must divide hidden_size."""
    seq_length: int = number(128, minimum=2)
    """Tokens a sample; also the number of positions."""
    vocab_size: int = number(8000, minimum=1, maximum=10_000_000)
    """Rows of the embedding when there is one vocabulary; the tokenizer is trained to this size."""
    layernorm_epsilon: float = number(1e-5, above=0)
    """Added to the variance in LayerNorm, to the mean square in RMSNorm."""
    query_layer: bool = True
    """The last layer's queries are learned, one a position (PanGu-α, PanGu-Σ); False: it is like the others, and the
    final norm stands behind it (PanGu-π)."""
    position: str = choice("learned", "rope")
    """learned: an embedding of each position; rope: queries and keys are rotated by their position (PanGu-π)."""
    rope_theta: float = number(10000.0, above=0)
    """Base of the rotations' wave lengths."""
    norm: str = choice("layernorm", "rmsnorm")
    """What stands before attention, feed-forward network and head; PanGu-π: rmsnorm."""
    activation: str = choice("fast_gelu", "swiglu")
    """Of feed-forward networks and experts; swiglu has a gate as a third matrix (PanGu-π)."""
    series_terms: int = number(0, minimum=0, maximum=16)
    """n, terms of the series-informed activation, each with a scale and a shift per channel; 0 is the plain one, n = 1
    the plain one with both. PanGu-π: 2."""
    shortcut_reduction: int = number(0, minimum=0)
    """r of the augmented shortcut beside attention: a bottleneck of hidden_size / r; 0 is none. PanGu-π: 32."""
    biases: bool = True
    """Whether matrices have biases; PanGu-π: False."""
    tied_head: bool = True
    """The head multiplies by the embedding; False gives it a table of its own (PanGu-π)."""
    init_std: float = number(0.02, above=0)
    """Standard deviation of the initial weights."""
    initialization: str = choice("depth_scaled", "constant", "layer_wise")
    """Standard deviation of the matrices that add to the residual stream. depth_scaled: init_std / sqrt(2 · num_layers)
    (GPT-2); constant: init_std (best in the tiny-model paper); layer_wise: init_std / sqrt(2 · number of the layer)."""


@dataclass(frozen=True)
class VocabularyConfig:
    name: str = ""
    """Name of the vocabulary."""
    vocab_size: int = number(1, minimum=1)
    """Rows of the vocabulary: the vocabulary of its tokenizer."""
    tokenizer: str = ""
    """The vocabulary's sentencepiece model; "" means the run's own tokenizer."""
    domains: list[str] = field(default_factory=list)
    """Domains whose tokens are rows of this vocabulary."""


@dataclass(frozen=True)
class AddedDomainConfig:
    name: str = ""
    """Name of the domain; letters, digits, _ and -."""
    kind: str = choice("monolingual", "bilingual", "code")
    """What its records hold."""
    control_tokens: list[str] = field(default_factory=list)
    """The tokens that open the parts of its documents; the tokenizer must have them. bilingual: of the Chinese and of
    the English part; code: one for each programming language; monolingual: one, or none."""


@dataclass(frozen=True)
class DomainsConfig:
    preset: str = choice("sigma_4", "sigma_40", "pangu_alpha")
    """The domains to choose from: the four major ones, all 40 of PanGu-Σ, or one whose documents no token opens."""
    added: list[AddedDomainConfig] = field(default_factory=list)
    """Domains to choose from beside the preset's."""
    names: list[str] = field(default_factory=list)
    """The domains of this run, some of the preset's and the added ones; empty means all of them."""
    experts_per_domain: int = number(16, minimum=1, maximum=65535)
    """Experts in each domain's group, in every RRE layer."""
    experts: dict[str, int] = field(default_factory=dict)
    """Group sizes that differ from experts_per_domain, by domain name."""
    vocabularies: list[VocabularyConfig] = field(default_factory=list)
    """Row ranges of the embedding, each with a tokenizer of its own; empty means one vocabulary for all domains."""


@dataclass(frozen=True)
class RoutingConfig:
    table: str = ""
    """A folder of routing tables to take, e.g. a checkpoint's routing/; "" draws one as the other keys say."""
    assignment: str = choice("balanced", "random")
    """balanced: greedy by token frequency (ours); random: shuffle and deal (PanGu-Σ, Algorithm 1)."""
    seed: int = number(0, minimum=0)
    """Seed of the assignment. The table itself is saved with the model and never rebuilt from the seed."""
    jitter: float = number(0.5, minimum=0)
    """balanced only: relative noise on the order in which tokens are placed, per layer, so that layers group tokens
    differently; 0 makes them alike, above 1 costs balance."""


@dataclass(frozen=True)
class ExpertsConfig:
    mode: str = choice("host_ecss", "host_full", "device")
    """host_ecss: experts live on the host, and only those that a step activates move and are updated (PanGu-Σ);
    host_full: every expert moves and is updated in each step (plain heterogeneous training, to compare with);
    device: all experts stay where the step computes (for tests)."""
    overlap: bool = True
    """Experts move, and Adam runs on them, while the device computes; the result is the same bit for bit."""
    staging: bool = False
    """CPU only: copy experts into buffers of their own, as to a device, though the store could be read in place."""
    storage: str = choice("memory", "mapped")
    """memory: the store must fit into it; mapped: a scratch file, of which memory holds what is in use."""
    storage_folder: str = ""
    """Where the scratch file of a mapped store is made, best on a local SSD; "" means the run folder."""
    host_threads: int = number(2, minimum=1)
    """Threads that draw initial weights, copy experts and add up the norm of their gradients; Adam takes every core."""
    block_rows: int = number(0, minimum=0)
    """Rows of one block of the composed grouped FFN; 0 means the mean number of tokens an expert receives."""


@dataclass(frozen=True)
class PhaseConfig:
    steps: int = number(1, minimum=1)
    """Optimizer steps of the phase."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Relative weight of each domain in it; one that is not named is not trained. Empty means equal weights."""


@dataclass(frozen=True)
class DataConfig:
    corpus: list[str] = field(default_factory=lambda: ["recipes/corpus/*.jsonl"])
    """jsonl files (glob patterns, relative to the current directory), one record a line."""
    format: str = choice("text", "instruction")
    """text: documents, concatenated and cut at model.seq_length. instruction: dialogue, qa, translation and code
    records to fine-tune on, one a sample, of which the answer alone counts; eod_reset has no meaning for them."""
    tokenizer: str = ""
    """A sentencepiece model to use; "" trains one on the training split."""
    heldout_fraction: float = number(0.05, above=0, maximum=0.5)
    """Share of each domain's text that is held out, by whole documents."""
    max_bad_records: int = number(0, minimum=0)
    """How many unusable records are skipped (and reported) before the job stops."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Relative weight of each domain in the training stream; empty means equal weights."""
    phases: list[PhaseConfig] = field(default_factory=list)
    """Phases before the one of `mixture`, with steps and mixtures of their own (PanGu-Σ: 4 domains, then 40)."""
    schedule: str = choice("rotating", "mixed")
    """rotating: a step trains on domains_per_step domains in equal parts, chosen once for all its micro-batches; equal
    weights take turns (PanGu-Σ). mixed: every sample's domain follows the weights (ours)."""
    domains_per_step: int = number(1, minimum=1)
    """Domain slots of a micro-batch, of one domain each. rotating: must divide training.local_batch_size. mixed: at
    least the domains with a weight above 0, or training.local_batch_size if that is less; some may stay unused."""
    domain_groups: int = number(1, minimum=1)
    """Groups of domains that train side by side: each takes an equal part of every step's micro-batches. With
    expert_parallel ranks a group is a sub-group of them, which has its domains' experts and exchanges tokens alone."""
    mixture_tolerance: float = number(0.01, minimum=0, maximum=1)
    """How far a domain's share of the tokens may be from its weight's where groups take equal parts."""
    eod_reset: bool = False
    """Attention and positions restart after the end of a document (PanGu-α: on; PanGu-Σ: off)."""
    seed: int = number(0, minimum=0)
    """Seed of the held-out split and of the order of the samples."""


@dataclass(frozen=True)
class ParallelismConfig:
    data_parallel: int = number(1, minimum=1)
    """Replicas that read different samples."""
    tensor_parallel: int = number(1, minimum=1)
    """Ranks that share one layer's matrices."""
    expert_parallel: int = number(1, minimum=1)
    """Data-parallel ranks that share the experts; must divide data_parallel, whose rest are replicas of the experts."""
    optimizer_sharding: bool = True
    """Each data-parallel rank keeps a part of Adam's moments of the dense parameters, and updates that part."""
    exchange: str = choice("group", "node")
    """Who takes part in an exchange of tokens: the ranks that have something to exchange, or all ranks of their nodes,
    where a chip allows no other groups."""
    timeout: int = number(1800, minimum=1)
    """Seconds that a rank may take for a step or a collective; then all ranks end, and it is named."""


@dataclass(frozen=True)
class OptimizerConfig:
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Decay of Adam's first and second moment."""
    eps: float = number(1e-8, above=0)
    """Adam's epsilon of the dense parameters."""
    expert_eps: float = number(1e-20, above=0)
    """Adam's epsilon of the experts in RRE layers (PanGu-Σ's hybrid epsilon)."""
    weight_decay: float = number(0.1, minimum=0)
    """Decoupled weight decay; biases and LayerNorms are not decayed."""


@dataclass(frozen=True)
class LrSchedulerConfig:
    learning_rate: float = number(1e-3, above=0)
    """Peak learning rate, reached at the end of the warm-up."""
    lr_end: float = number(1e-5, minimum=0)
    """Learning rate after the decay."""
    warmup_steps: int = number(10, minimum=0)
    """Steps of linear warm-up."""
    decay_steps: int = number(0, minimum=0)
    """Step at which the cosine decay ends; 0 means training.steps."""


@dataclass(frozen=True)
class TrainingConfig:
    run_name: str = "run"
    """The run folder is output_dir/run_name."""
    output_dir: str = "output"
    """Where run folders are made."""
    steps: int = number(100, minimum=1)
    """Optimizer steps."""
    train: str = "all"
    """What is trained: all, or experts:zh,code for the experts of these domains alone. The rest stays as it was, bit
    for bit, so data.mixture has to give every other domain the weight 0."""
    local_batch_size: int = number(8, minimum=1)
    """Samples of one micro-batch on one rank."""
    global_batch_size: int = number(0, minimum=0)
    """Samples of one step on all ranks; a multiple of local_batch_size · data_parallel (the rest is gradient
    accumulation); 0 means no accumulation."""
    max_norm: float = number(1.0, above=0)
    """Global gradient norm above which gradients are scaled down."""
    recompute: bool = False
    """Dense blocks, and the attention of RRE blocks, are computed again for the backward pass instead of being kept:
    the memory of one block instead of all for a third more compute. Experts and their exchanges are not repeated."""
    seed: int = number(0, minimum=0)
    """Seed of the initial weights."""
    spike_sigma: float = number(6.0, minimum=0)
    """A step whose loss or gradient norm exceeds the recent mean by this many standard deviations is skipped;
    0 switches this off. Non-finite steps are always skipped."""
    spike_window: int = number(128, minimum=8)
    """Steps over which that mean is taken; nothing is judged before half of them are there."""
    restarts: int = number(0, minimum=0)
    """How often recipes/run_910.sh goes on from the last checkpoint after a failure, e.g. of one rank."""
    max_skipped_steps: int = number(20, minimum=1)
    """Training stops with an error after this many skipped steps in a row; an overflow that lowers the loss scale is
    none of them."""
    loss_scale: float = number(65536.0, minimum=1, maximum=2**32)
    """fp16 only: the loss scale of the first step; halved at an overflow. A power of two loses no bits."""
    loss_scale_window: int = number(1000, minimum=1)
    """fp16 only: steps in a row without overflow after which the loss scale is doubled."""


@dataclass(frozen=True)
class CheckpointConfig:
    save_steps: int = number(100, minimum=1)
    """Steps between checkpoints; the last step is always saved."""
    keep_last: int = number(2, minimum=1)
    """How many checkpoints stay on disk."""
    async_save: bool = True
    """Write checkpoints in a thread while training goes on; the files are the same either way."""


@dataclass(frozen=True)
class MonitorConfig:
    log_steps: int = number(1, minimum=1)
    """Steps between step lines; metrics.jsonl has every step."""
    heldout_samples: int = number(64, minimum=1)
    """Samples a domain in the held-out evaluation (fewer if the split is smaller)."""


@dataclass(frozen=True)
class ContextConfig:
    device_target: str = choice("CPU", "Ascend")
    """Device that computes the step."""
    precision: str = choice("fp32", "fp16", "bf16")
    """Number format of the device computation: of matrix products, residual stream and experts; weights, norms,
    softmax and loss stay fp32. fp16 is slow on the CPU, for tests with tiny models; bf16 is not built yet."""


@dataclass(frozen=True)
class Config:
    """A whole run. Sections and keys are those of the YAML file and of the dotted overrides."""

    model: ModelConfig = field(default_factory=ModelConfig)
    domains: DomainsConfig = field(default_factory=DomainsConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    parallelism: ParallelismConfig = field(default_factory=ParallelismConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_scheduler: LrSchedulerConfig = field(default_factory=LrSchedulerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
