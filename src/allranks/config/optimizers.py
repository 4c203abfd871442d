"""Which optimizers can work on parts of parameters, where a strategy gives each rank no more."""

OF_BITSANDBYTES = (
    *("adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "lion_32bit", "lion_8bit", "paged_lion_32bit"),
    *("paged_lion_8bit", "ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
    *("rmsprop_bnb", "rmsprop_bnb_8bit"),
)

SAVED_AT_ONCE = ("adamw_torch_8bit", "adamw_torch_4bit", "ao_adamw_fp8")
"""Optimizers of torchao, whose state cannot be copied aside to be written behind the training (0.18 has no clone)."""

WITH_FSDP = {
    "adamw_bnb_8bit": ("adamw_torch_8bit", "its state is in 8 bits as well"),
    "paged_adamw_8bit": ("adamw_torch_8bit", "its state is in 8 bits as well, divided by the ranks in place of paged"),
    "paged_adamw_32bit": ("adamw_torch_fused", "its state is divided by the ranks in place of paged"),
}
"""Optimizer of bitsandbytes, which knows nothing of sharded parameters -> the one that takes its place with FSDP (the
8-bit one is torchao's), and what of it stays."""

NOT_WITH_FSDP = {
    # Its kernels take no DTensor; given the shards, its state would have equal names on all ranks, which a sharded
    # checkpoint cannot tell apart.
    **dict.fromkeys(OF_BITSANDBYTES, "bitsandbytes knows nothing of sharded parameters"),
    "adafactor": "torch's computes norms in a way that sharded parameters refuse",
    "came_pytorch": "its factored state mixes sharded and whole tensors",
    "adamw_torch_4bit": "torchao's quantized state takes no shards of unequal size",
    "ao_adamw_fp8": "torchao's quantized state cannot be sharded",
}
"""Optimizer -> why not. With torch 2.13 and torchao 0.18 each of these fails at the first step."""

WITH_ZERO = (
    *("adamw_torch_fused", "adamw_torch", "sgd", "rmsprop", "lion_pytorch"),
    *("adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "lion_32bit", "paged_lion_8bit"),
    *("paged_lion_32bit", "rmsprop_bnb", "rmsprop_bnb_8bit"),
)
"""Optimizers that treat each number by itself, so that it does not matter which numbers a rank holds: ZeRO gives it a
stretch of all parameters laid end to end, without rows and columns. State must be a tensor of the same size or one
number, made at the first step. Those of bitsandbytes round their state by blocks of 256 numbers of that stretch."""
