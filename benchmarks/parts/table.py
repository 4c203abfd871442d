"""All parts, in the order in which they run. Names may be chosen by patterns: `--only '8b-*'`."""

from __future__ import annotations

from benchmarks.parts.part import Part

_ON_GPU = ("cuda",)

ENVIRONMENT = Part("environment", "device, driver and versions", "benchmarks.parts.environment", 60)

PARTS: tuple[Part, ...] = (
    ENVIRONMENT,
    Part("losses", "a tiny model's losses against the CPU's", "benchmarks.parts.losses", 90),
    Part("attention", "attention kernels on four architectures", "benchmarks.parts.attentions", 100),
    Part("flex", "FlexAttention on them", "benchmarks.parts.attentions", 100, _ON_GPU, argument="flex"),
    Part("adapters", "LoRA, Q-LoRA and 8-bit weights", "benchmarks.parts.adapters", 90),
    Part("optimizers", "optimizers with a small state beside AdamW", "benchmarks.parts.optimizers", 120),
    Part("fsdp", "FSDP2 on one rank", "benchmarks.parts.strategies", 90, argument="fsdp"),
    Part("zero", "DeepSpeed's ZeRO on one rank", "benchmarks.parts.strategies", 120, ("deepspeed",), argument="zero"),
    Part("nccl", "collectives of one rank, and NCCL's log read", "benchmarks.parts.collectives", 60),
    Part("resume", "a checkpoint, and a run that goes on from it", "benchmarks.parts.resumed", 100),
    Part("liger", "Liger's kernels beside the model's own", "benchmarks.parts.liger", 90, (*_ON_GPU, "liger_kernel")),
    Part("syncs", "where the host waits for the device", "benchmarks.parts.waits", 80, _ON_GPU, is_alone=True),
    Part("loss", "the loss in chunks: exact, fast and small", "benchmarks.parts.losses_in_chunks", 60, is_alone=True),
    *(
        Part(
            f"{shape}-{contestant}",
            f"{about}: {name}",
            "benchmarks.parts.speed",
            seconds,
            () if shape == "tiny" else _ON_GPU,
            is_alone=True,
            argument=f"{shape}-{contestant}",
            is_usual=is_usual and shape != "tiny",
        )
        # What is asked first is told first, should the time not suffice.
        for contestant, name, is_usual in (
            ("allranks", "allranks", True),
            ("trainer", "transformers' Trainer", True),
            ("compiled", "allranks, compiled", True),
            ("stored", "allranks, compiled, activations kept", False),
            ("liger", "allranks, with Liger's kernels", False),
            ("trl", "TRL, packed", False),
        )
        for shape, about, seconds in (
            ("8b", "speed of the 8B shape, LoRA", 150),
            ("1b", "speed of the 1B shape, all weights trained", 90),
            ("tiny", "speed of a 22M shape", 300),
        )
    ),
    Part("compile", "compiled layers", "benchmarks.parts.compiled", 120, is_alone=True),
)
