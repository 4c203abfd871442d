"""Which optimizers can work on parts of parameters, where a strategy gives each rank no more."""

OF_BITSANDBYTES = (
    *("adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "lion_32bit", "lion_8bit", "paged_lion_32bit"),
    *("paged_lion_8bit", "ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
    *("rmsprop_bnb", "rmsprop_bnb_8bit"),
)

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

WITH_ZERO = ("adamw_torch_fused", "adamw_torch", "sgd", "rmsprop", "lion_pytorch")
"""Optimizers that treat each number by itself, so that it does not matter which numbers a rank holds: ZeRO gives it a
stretch of all parameters laid end to end, without rows and columns. State must be a tensor of the same size or one
number, made at the first step."""
