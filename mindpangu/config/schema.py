"""Every configuration key, as dataclasses: one class per section, a docstring under each field.

`mindpangu config --keys` prints the docstrings. This module only declares keys and the rules for a single key.
`loader.py` reads files and overrides, and `checks.py` has the rules across keys. Names follow MindSpore's conventions
(seq_length, num_layers, local_batch_size …). Where 0 or "" means "derived", the docstring says so.
"""

from dataclasses import dataclass, field

from mindpangu.config.fields import IS_PATH, choice, number, path

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
"""Keys of `model` that, together with the sizes, decide which tensors a model has."""


@dataclass(frozen=True)
class ModelConfig:
    num_layers: int = number(4, minimum=1)
    """Number of transformer layers, including the query layer on top."""
    rre_layers: int = number(2, minimum=0)
    """Number of top layers with Random Routed Experts; 0 makes the model dense (PanGu-α)."""
    hidden_size: int = number(256, minimum=1)
    """Width of the residual stream."""
    ffn_hidden_size: int = number(0, minimum=0)
    """Inner width of a feed-forward network or an expert. 0 means 4 × hidden_size, or for swiglu 8/3 × hidden_size
    rounded up to a multiple of 8, which gives about as many parameters."""
    num_heads: int = number(4, minimum=1)
    """Number of attention heads; must divide hidden_size."""
    seq_length: int = number(128, minimum=2, maximum=32_768)
    """Tokens per sample, which is also the number of positions. Attention's time grows with its square, and so does its
    memory, except in fp32 on a CPU."""
    vocab_size: int = number(8000, minimum=1, maximum=10_000_000)
    """Rows of the embedding when there is one vocabulary. The tokenizer is trained to this size."""
    layernorm_epsilon: float = number(1e-5, above=0)
    """Added to the variance in LayerNorm and to the mean square in RMSNorm."""
    query_layer: bool = True
    """Whether the last layer takes its queries from a learned embedding of each position (PanGu-α, PanGu-Σ). If False,
    it is like the other layers and the final norm comes after it (PanGu-π)."""
    position: str = choice("learned", "rope")
    """learned: adds a learned embedding of each position. rope: rotates queries and keys by their position
    (PanGu-π)."""
    rope_theta: float = number(10000.0, above=0)
    """Base of the wavelengths of rope."""
    norm: str = choice("layernorm", "rmsnorm")
    """Normalization before attention, before the feed-forward network, and before the head (PanGu-π: rmsnorm)."""
    activation: str = choice("fast_gelu", "swiglu")
    """Activation of feed-forward networks and experts. swiglu adds a gate matrix to their two matrices (PanGu-π)."""
    series_terms: int = number(0, minimum=0, maximum=16)
    """Number of terms n of the series-informed activation, each with a scale and a shift per channel (PanGu-π: 2).
    1 is the plain activation with a scale and a shift; 0 is the plain activation without."""
    shortcut_reduction: int = number(0, minimum=0)
    """Reduction r of the augmented shortcut parallel to attention, whose bottleneck has hidden_size / r channels
    (PanGu-π: 32). 0 means no augmented shortcut."""
    biases: bool = True
    """Whether matrices have biases (PanGu-π: False)."""
    tied_head: bool = True
    """Whether the head shares the embedding's weights. If False, it has a table of its own (PanGu-π)."""
    init_std: float = number(0.02, above=0)
    """Standard deviation of the initial weights."""
    initialization: str = choice("depth_scaled", "constant", "layer_wise")
    """Standard deviation of the matrices that add to the residual stream. depth_scaled: init_std / sqrt(2 · num_layers)
    (GPT-2). constant: init_std (best in the tiny-model paper). layer_wise: init_std / sqrt(2 · layer), counting layers
    from 1."""


@dataclass(frozen=True)
class VocabularyConfig:
    name: str = ""
    """Name of the vocabulary."""
    vocab_size: int = number(1, minimum=1, maximum=10_000_000)
    """Rows of the embedding that belong to the vocabulary, which is the vocabulary size of its tokenizer."""
    tokenizer: str = path()
    """sentencepiece model of the vocabulary; "" means the run's own tokenizer."""
    domains: list[str] = field(default_factory=list)
    """Domains that use the vocabulary."""


@dataclass(frozen=True)
class AddedDomainConfig:
    name: str = ""
    """Name of the domain: letters, digits, _ and -."""
    kind: str = choice("monolingual", "bilingual", "code")
    """Kind of the domain's records."""
    control_tokens: list[str] = field(default_factory=list)
    """Tokens that open the parts of the domain's documents; the tokenizer must have them. monolingual: one or none.
    bilingual: one for the Chinese part and one for the English part. code: one per programming language."""


@dataclass(frozen=True)
class DomainsConfig:
    preset: str = choice("sigma_4", "sigma_40", "pangu_alpha")
    """Domains to choose from: PanGu-Σ's four major domains, all 40 of them, or PanGu-α's single domain, whose documents
    start without a control token."""
    added: list[AddedDomainConfig] = field(default_factory=list)
    """Further domains to choose from, in addition to the preset's."""
    names: list[str] = field(default_factory=list)
    """Domains of this run, chosen from the preset's and the added ones; empty means all of them."""
    experts_per_domain: int = number(16, minimum=1, maximum=65535)
    """Number of experts per domain in every RRE layer."""
    experts: dict[str, int] = field(default_factory=dict)
    """Domain name → number of experts, for domains that differ from experts_per_domain."""
    vocabularies: list[VocabularyConfig] = field(default_factory=list)
    """Row ranges of the embedding, each with its own tokenizer; empty means one vocabulary for all domains. Formerly
    called domains.embedding_slots."""


@dataclass(frozen=True)
class RoutingConfig:
    table: str = path()
    """Folder of routing tables to use, e.g. a checkpoint's routing/; "" draws new tables according to the other
    keys."""
    assignment: str = choice("balanced", "random")
    """How tokens are assigned to experts. balanced: greedily by token frequency (ours). random: experts are shuffled
    and dealt to the tokens (PanGu-Σ, Algorithm 1)."""
    seed: int = number(0, minimum=0)
    """Seed of the assignment. The table itself is saved with the model and never rebuilt from the seed."""
    jitter: float = number(0.5, minimum=0)
    """balanced only: relative noise, drawn per layer, on the order in which tokens are assigned, so that layers group
    tokens differently. 0 makes all layers group them alike; values above 1 cost balance."""


@dataclass(frozen=True)
class ExpertsConfig:
    mode: str = choice("host_ecss", "host_full", "device")
    """Where experts live. host_ecss: on the host; only the experts that a step activates are moved and updated
    (PanGu-Σ). host_full: on the host; every expert is moved and updated in each step (plain heterogeneous training, for
    comparison). device: on the device that computes the step (for tests)."""
    overlap: bool = True
    """Whether experts are moved and updated while the device computes. The result is the same bit for bit."""
    staging: bool = False
    """CPU only: copy experts into separate buffers, as for a device, instead of reading them from the store in
    place."""
    storage: str = choice("memory", "mapped")
    """memory: the whole expert store is in host memory. mapped: it is a scratch file, and only the parts in use take
    memory."""
    storage_folder: str = path()
    """Folder for the scratch file of a mapped store, best on a local SSD; "" means the run folder."""
    host_threads: int = number(2, minimum=1, maximum=1_024)
    """Number of threads that draw initial weights, copy experts, and sum the norm of their gradients. Adam uses every
    core."""
    block_rows: int = number(0, minimum=0)
    """Rows per block of the composed grouped FFN; 0 means the mean number of tokens per expert."""


@dataclass(frozen=True)
class PhaseConfig:
    steps: int = number(1, minimum=1)
    """Optimizer steps of the phase."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Relative weight of each domain in the phase. Domains that are not named are not trained; empty means equal
    weights."""


@dataclass(frozen=True)
class DataConfig:
    corpus: list[str] = field(default_factory=lambda: ["recipes/corpus/*.jsonl"], metadata=IS_PATH)
    """jsonl files with one record per line: glob patterns, relative to the current directory."""
    format: str = choice("text", "instruction")
    """text: documents are concatenated and cut at model.seq_length. instruction: dialogue, qa, translation, and code
    records for fine-tuning, one per sample, in which only the answers count in the loss; eod_reset has no effect on
    them."""
    tokenizer: str = path()
    """sentencepiece model to use; "" trains one on the training split."""
    heldout_fraction: float = number(0.05, above=0, maximum=0.5)
    """Share of each domain's text that is held out, in whole documents."""
    max_bad_records: int = number(0, minimum=0)
    """Number of unusable records to skip and report before the job stops."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Relative weight of each domain in the training stream; empty means equal weights."""
    phases: list[PhaseConfig] = field(default_factory=list)
    """Phases that come before `mixture`, each with its own steps and mixture (PanGu-Σ: 4 domains, then 40)."""
    schedule: str = choice("rotating", "mixed")
    """rotating: a step trains on domains_per_step domains in equal shares, the same in all its micro-batches; domains
    of equal weight take turns (PanGu-Σ). mixed: the domain of every sample follows the weights (ours)."""
    domains_per_step: int = number(1, minimum=1, maximum=65_536)
    """Domain slots per micro-batch; a slot holds samples of one domain. rotating: must divide
    training.local_batch_size. mixed: at least the number of domains with a weight above 0, or training.local_batch_size
    if that is less; slots may stay unused."""
    domain_groups: int = number(1, minimum=1)
    """Number of groups of domains that train side by side, each on an equal share of a step's micro-batches. With
    expert parallelism, a group is a sub-group of the ranks, which holds the experts of its domains and exchanges tokens
    only within itself."""
    mixture_tolerance: float = number(0.01, minimum=0, maximum=1)
    """How far a domain's share of the tokens may be from its weight when domain groups take equal shares."""
    eod_reset: bool = False
    """Whether attention and positions restart after the end of a document (PanGu-α: True; PanGu-Σ: False)."""
    seed: int = number(0, minimum=0)
    """Seed of the held-out split and of the order of the samples."""


@dataclass(frozen=True)
class ParallelismConfig:
    data_parallel: int = number(1, minimum=1)
    """Number of data-parallel ranks, each of which reads different samples."""
    tensor_parallel: int = number(1, minimum=1)
    """Number of ranks that divide each layer's matrices among themselves."""
    expert_parallel: int = number(1, minimum=1)
    """Number of data-parallel ranks that divide the experts among themselves. Must divide data_parallel; the quotient
    is the number of replicas of each expert."""
    optimizer_sharding: bool = True
    """Whether each data-parallel rank keeps and updates only a shard of the dense parameters' Adam moments."""
    exchange: str = choice("group", "node")
    """Ranks that take part in an exchange of tokens. group: those that have tokens to exchange. node: all ranks of
    their nodes, for chips that allow no other groups."""
    timeout: int = number(1800, minimum=1)
    """Seconds that a rank may take for a step or a collective. After that all ranks stop, and the slow one is named."""


@dataclass(frozen=True)
class OptimizerConfig:
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Decay rates of Adam's first and second moments."""
    eps: float = number(1e-8, above=0)
    """Adam's epsilon for the dense parameters."""
    expert_eps: float = number(1e-20, above=0)
    """Adam's epsilon for the experts in RRE layers (PanGu-Σ's hybrid epsilon)."""
    weight_decay: float = number(0.1, minimum=0)
    """Decoupled weight decay. It does not apply to biases and norms."""


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
    """Name of the run. The run folder is output_dir/run_name."""
    output_dir: str = path("output")
    """Folder in which run folders are created."""
    steps: int = number(100, minimum=1)
    """Number of optimizer steps."""
    train: str = "all"
    """Parameters to train: all, or e.g. experts:zh,code to train only the experts of these domains. Everything else
    stays the same bit for bit, so data.mixture must give every other domain the weight 0."""
    local_batch_size: int = number(8, minimum=1, maximum=65_536)
    """Samples per micro-batch on one rank."""
    global_batch_size: int = number(0, minimum=0, maximum=16_777_216)
    """Samples per step over all ranks: a multiple of local_batch_size · data_parallel, reached by gradient
    accumulation. 0 means no accumulation."""
    max_norm: float = number(1.0, above=0)
    """Global gradient norm above which gradients are scaled down to it."""
    recompute: bool = False
    """Whether dense blocks and the attention of RRE blocks are recomputed in the backward pass. This keeps the
    activations of one block instead of all, for about a third more compute. Experts and their exchanges are not
    recomputed."""
    seed: int = number(0, minimum=0)
    """Seed of the initial weights."""
    spike_sigma: float = number(6.0, minimum=0)
    """A step is skipped if its loss or gradient norm exceeds the recent mean by this many standard deviations;
    0 disables this. Steps with non-finite values are always skipped."""
    spike_window: int = number(128, minimum=8, maximum=100_000)
    """Number of recent steps in that mean. No step is skipped as a spike until half of them have been taken."""
    restarts: int = number(0, minimum=0)
    """How many times recipes/run_910.sh restarts from the last checkpoint after a failure, e.g. of one rank."""
    max_skipped_steps: int = number(20, minimum=1)
    """Number of consecutive skipped steps after which training stops with an error. Overflows that lower the loss scale
    do not count."""
    loss_scale: float = number(65536.0, minimum=1, maximum=2**32)
    """fp16 only: initial loss scale, halved at each overflow. A power of two loses no bits."""
    loss_scale_window: int = number(1000, minimum=1)
    """fp16 only: number of consecutive steps without overflow after which the loss scale is doubled."""


@dataclass(frozen=True)
class CheckpointConfig:
    save_steps: int = number(100, minimum=1)
    """Steps between checkpoints. The last step is always saved."""
    keep_last: int = number(2, minimum=1)
    """Number of checkpoints to keep on disk."""
    async_save: bool = True
    """Whether checkpoints are written in a thread while training continues. The files are the same either way."""


@dataclass(frozen=True)
class MonitorConfig:
    log_steps: int = number(1, minimum=1)
    """Steps between lines in the log. metrics.jsonl has every step."""
    heldout_samples: int = number(64, minimum=1)
    """Number of samples per domain in the held-out evaluation; fewer if the split is smaller."""


@dataclass(frozen=True)
class ContextConfig:
    device_target: str = choice("CPU", "Ascend")
    """Device that computes the step."""
    precision: str = choice("fp32", "fp16", "bf16")
    """Number format of matrix products, the residual stream, and experts; weights, norms, softmax, and the loss stay in
    fp32. On the CPU, fp16 is slow and only for tests with tiny models. bf16 is not supported yet."""


@dataclass(frozen=True)
class Config:
    """Configuration of a run. The YAML file and dotted overrides have the same sections and keys."""

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
