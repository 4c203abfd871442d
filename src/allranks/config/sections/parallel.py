"""Keys of the strategies over several ranks, and of memory and compilation."""

from typing import Annotated, Literal

from pydantic import Field

from allranks.config.sections.section import Section

START_TIMEOUT_SECONDS = 1800
"""While ranks load and compile, they may be as far apart as their disks, caches and compilers are."""


class FsdpConfig(Section):
    """Settings of FSDP2 (`fully_shard`). The old form with an `fsdp_` prefix is understood."""

    offload_params: bool = False
    """Keep parameters, gradients and optimizer state in host memory; the optimizer step runs on the CPU."""
    cpu_offload_pin_memory: bool = True
    """Pin the host memory used by `offload_params`: faster copies, but it cannot be swapped."""
    state_dict_type: Literal["FULL_STATE_DICT", "SHARDED_STATE_DICT"] = "FULL_STATE_DICT"
    """Checkpoints are always sharded. `FULL_STATE_DICT` also writes the Hugging Face model at the end."""
    final_state_dict_type: Literal["FULL_STATE_DICT", "SHARDED_STATE_DICT"] | None = None
    """Replaces `state_dict_type`, as only the end of the run differs."""
    auto_wrap_policy: Literal["TRANSFORMER_BASED_WRAP"] = "TRANSFORMER_BASED_WRAP"
    """Shard layer by layer."""
    transformer_layer_cls_to_wrap: str | None = None
    """Class of the decoder layers; found from the model if not given, checked if given."""
    reshard_after_forward: bool = True
    """Free gathered parameters after the forward pass (as ZeRO-3). `false` (as ZeRO-2): more memory, less network."""
    sync_each_batch: bool = False
    """Reduce gradients at every micro-batch instead of once a step: less memory, more network."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass; the same as `gradient_checkpointing`."""
    cpu_ram_efficient_loading: Literal[True] | None = None
    """Accepted: weights always go straight into the shards."""
    sync_module_states: Literal[True] | None = None
    """Accepted: all ranks always start from the same weights."""
    limit_all_gathers: Literal[True] | None = None
    """Accepted: FSDP2 always does."""
    mixed_precision_policy: Literal["bf16", "fp32"] | None = None
    """Computation type, as `bf16: true` and `bf16: false` say it for the whole run."""
    reduce_dtype: Literal["float32", "bfloat16"] | None = None
    """Type that gradients travel in; if not given float32, or bfloat16 if the weights are (`bfloat16: true`)."""


class GradientCheckpointingKwargs(Section):
    """Options of gradient checkpointing."""

    use_reentrant: Literal[False] = False
    """Only the non-reentrant form works with FSDP2 and with adapters."""


class DdpCommStateOption(Section):
    """Options of `ddp_comm_hook: power_sgd` and `batched_power_sgd`, those of torch's `PowerSGDState`."""

    matrix_approximation_rank: Annotated[int, Field(ge=1)] = 1
    """Rank of the two matrices that each gradient is approximated by: more is more exact, and more bytes."""
    start_powerSGD_iter: Annotated[int, Field(ge=2)] = 1000
    """Gradients travel whole in so many steps first; a tenth of the run is usual."""
    min_compression_rate: Annotated[float, Field(gt=0)] = 2
    """Matrices that would shrink less than so many times travel whole (`power_sgd`)."""
    use_error_feedback: bool = True
    """Add what a step's approximation left out to the next step's gradient; costs the memory of the gradients."""
    warm_start: bool = True
    """Start each approximation from that of the step before."""
    orthogonalization_epsilon: Annotated[float, Field(ge=0)] = 0
    """Small number against division by zero where gradients vanish."""
    random_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the first approximation, the same on all ranks."""


class ParallelConfig(Section):
    """Several ranks: what is sharded, what is replicated."""

    fsdp: list[Literal["full_shard", "auto_wrap"]] | None = None
    """Old way of asking for FSDP; `fsdp_version: 2` with `fsdp_config` says it all."""
    fsdp_version: Literal[2] | None = None
    """Only 2, PyTorch's `fully_shard`."""
    fsdp_config: FsdpConfig | None = None
    """Settings of FSDP2."""
    dp_shard_size: Annotated[int, Field(ge=1)] | Literal["node"] | None = None
    """Ranks that share one copy of the model; all ranks if not given and FSDP is asked for; `node`: those of a node."""
    dp_replicate_size: int | None = Field(None, ge=1)
    """Copies of the model, each over `dp_shard_size` ranks (HSDP)."""
    tensor_parallel_size: Literal[1] | None = None
    """Only 1: tensor parallelism is not supported yet."""
    context_parallel_size: Literal[1] | None = None
    """Only 1: context parallelism is not supported yet."""
    expert_parallel_size: Literal[1] | None = None
    """Only 1: expert parallelism is not supported yet."""
    gradient_checkpointing: bool | Literal["offload"] = False
    """Recompute activations in the backward pass: less memory, a third more computation. `offload`: see below."""
    activation_offloading: bool = False
    """Keep the inputs of recomputed layers in host memory; the same as `gradient_checkpointing: offload`."""
    gradient_checkpointing_kwargs: GradientCheckpointingKwargs | None = None
    """Options of gradient checkpointing."""
    torch_compile: bool | Literal["auto"] = False
    """Compile each layer; `auto` does so where a compiler for the device is at hand."""
    torch_compile_backend: str | None = None
    """Backend of `torch.compile`."""
    torch_compile_mode: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    """Mode of `torch.compile`."""
    ddp_timeout: int | None = Field(None, ge=1)
    """Seconds after which a collective that does not finish stops the run: 1800 until the first step is done, then 300
    or 20 steps, whichever is longer; a number given here holds from the start to the end."""
    ddp_bucket_cap_mb: int | None = Field(None, ge=1)
    """Size of DDP's gradient buckets in MiB."""
    ddp_broadcast_buffers: bool | None = None
    """Let DDP send the buffers of rank 0 to all ranks before each forward pass."""
    ddp_find_unused_parameters: bool = False
    """Let DDP look for parameters that took no part in the loss."""
    ddp_comm_hook: Literal["none", "bf16", "fp16", "power_sgd", "batched_power_sgd"] = "none"
    """How DDP sends gradients: as they are, rounded to 16 bits, or approximated by matrices of a low rank."""
    ddp_comm_state_option: DdpCommStateOption | None = None
    """Options of PowerSGD."""

    @property
    def start_timeout_seconds(self) -> int:
        """`ddp_timeout`, or what holds until the first step where it is not given."""
        return self.ddp_timeout or START_TIMEOUT_SECONDS

    @property
    def uses_fsdp(self) -> bool:
        """Whether the model is sharded."""
        asked = bool(self.fsdp) or self.fsdp_version is not None or self.fsdp_config is not None
        return asked or self.dp_shard_size == "node" or (self.dp_shard_size or 1) > 1

    @property
    def comm_state_option(self) -> DdpCommStateOption:
        """`ddp_comm_state_option`, or its defaults where the config has none."""
        return self.ddp_comm_state_option or DdpCommStateOption()

    @property
    def fsdp_settings(self) -> FsdpConfig:
        """`fsdp_config`, or its defaults where the config has none."""
        return self.fsdp_config or FsdpConfig()

    @property
    def checkpoints_activations(self) -> bool:
        """Whether activations are recomputed in the backward pass, by either key."""
        return bool(self.gradient_checkpointing) or self.fsdp_settings.activation_checkpointing

    @property
    def offloads_activations(self) -> bool:
        """Whether inputs of recomputed layers wait in host memory."""
        return self.activation_offloading or self.gradient_checkpointing == "offload"
