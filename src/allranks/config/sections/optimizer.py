"""Keys of the optimizer, its schedule and the batch."""

from typing import Any, Literal

from pydantic import Field

from allranks.config.sections.section import Count, Fraction, Section

Optimizer = Literal[
    "adamw_torch_fused",
    "adamw_torch",
    "sgd",
    "adafactor",
    "adagrad",
    "rmsprop",
    "muon",
    "adamw_torch_8bit",
    "adamw_torch_4bit",
    "ao_adamw_fp8",
    "adamw_bnb_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "lion_8bit",
    "lion_32bit",
    "paged_lion_8bit",
    "paged_lion_32bit",
    "lion_pytorch",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "came_pytorch",
]
Scheduler = Literal[
    "cosine",
    "linear",
    "constant",
    "constant_with_warmup",
    "polynomial",
    "inverse_sqrt",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "rex",
    "one_cycle",
    "warmup_stable_decay",
]


class LrGroup(Section):
    """Parameters that learn at a rate of their own."""

    name: str = Field(min_length=1)
    """What the group is called in messages."""
    modules: list[str] = Field(min_length=1)
    """Parts of parameter names, such as `self_attn` or `layers.0.mlp`; one of them is enough."""
    lr: float = Field(gt=0)
    """Their highest learning rate; the schedule scales it as it scales `learning_rate`."""


class OptimizerConfig(Section):
    """How the weights change."""

    micro_batch_size: int = Field(1, ge=1)
    """Blocks that a rank computes at once."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Micro-batches of a rank in one step. The global batch is then micro_batch_size x this x ranks."""
    batch_size: int | None = Field(None, ge=1)
    """Global batch in blocks, the same on any number of ranks; instead of `gradient_accumulation_steps`."""
    num_epochs: float = Field(1.0, gt=0)
    """Times that the data is gone through; may be a fraction."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many steps, whatever `num_epochs` says."""
    learning_rate: float = Field(gt=0)
    """Highest learning rate."""
    lr_groups: list[LrGroup] | None = None
    """Learning rates of chosen parameters."""
    embedding_lr: float | None = Field(None, gt=0)
    """Learning rate of the embedding and the output layer, where they are trained."""
    embedding_lr_scale: float | None = Field(None, gt=0)
    """The same as a multiple of `learning_rate`."""
    optimizer: Optimizer = "adamw_torch_fused"
    """The optimizer."""
    optim_args: dict[str, Any] | None = None
    """Further arguments of the optimizer; text such as `a=1,b=2` is understood too."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the gradient's mean."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the gradient's square."""
    adam_beta3: float | None = Field(None, ge=0, lt=1)
    """Third decay, of CAME and AdEMAMix; 0.9999 if not given."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """Added to the denominator. CAME's own default is 1e-30."""
    adam_epsilon2: float | None = Field(None, gt=0)
    """Second epsilon, of CAME; 1e-16 if not given."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay; not on biases and norms."""
    lr_scheduler: Scheduler = "cosine"
    """How the learning rate changes after the warm-up."""
    lr_scheduler_kwargs: dict[str, Any] | None = None
    """Further arguments of the scheduler."""
    cosine_min_lr_ratio: float | None = Field(None, ge=0, le=1)
    """Cosine and REX: the last learning rate as a fraction of the highest."""
    cosine_constant_lr_ratio: float | None = Field(None, gt=0, lt=1)
    """Cosine: share of the steps after the warm-up over which the rate decays; then it stays at cosine_min_lr_ratio."""
    warmup_steps: Count | Fraction | None = None
    """Steps of linear warm-up; below 1, a fraction of all steps. 3 % of them, at most 100, where neither this nor
    `warmup_ratio` is given (none with `constant`)."""
    warmup_ratio: float | None = Field(None, ge=0, le=1)
    """Warm-up as a fraction of all steps."""
    lr_quadratic_warmup: bool = False
    """Let the learning rate grow with the square of the steps in the warm-up."""
    lr_div_factor: float | None = Field(None, gt=0)
    """One cycle: the first learning rate is the highest divided by this; 25 if not given."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Clip the global gradient norm to this; 0 does not clip."""
    unfrozen_parameters: list[str] | None = Field(None, min_length=1)
    """Train only parameters whose names match one of these regular expressions (a dot is a dot); no adapter."""
    neftune_noise_alpha: float | None = Field(None, gt=0)
    """NEFTune: noise on the embeddings while training; 5 to 15."""
    seed: int = Field(42, ge=0, le=2**32 - 1)
    """Seed of new weights and dropout; also of the data order, see `data_seed`."""
