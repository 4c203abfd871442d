"""Shapes of 1 to 8 billion parameters with random weights on one GPU, beside transformers' Trainer and TRL.

    python -m benchmarks.gpu --shape llama-3-8b --method lora      4096 tokens a block, bfloat16: tokens/s and MFU
    python -m benchmarks.gpu --shape llama-3.2-1b --method full
    python -m benchmarks.gpu --shape llama-3-8b --method full --only allranks,trainer

Not yet run on hardware: what it measures is written down here, no figure of it is published. The aim for LoRA of the
8B shape on one H200 is 14,000 tokens/s and 45 % MFU.
Needs one CUDA device with bfloat16, 20 GB of disk for the weights; `full` of an 8B shape about 80 GB on the device.
"""

import argparse
import datetime
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path

from allranks.plan.flops import peak_flops, training_flops_per_token
from benchmarks import report
from benchmarks.measure import Measurement, measure
from benchmarks.workload import Workload, write

CONTESTANTS = {
    "allranks": "allranks",
    "allranks-compiled": "allranks, compiled",
    "allranks-stored": "allranks, compiled, activations kept",
    "allranks-liger": "allranks with Liger's kernels",
    "trainer": "transformers Trainer, padded",
    "trl": "TRL SFTTrainer, packed",
}

# The variants of allranks: keys that replace those of its run.
CHANGES: dict[str, dict] = {
    "allranks-compiled": {"torch_compile": "auto"},
    "allranks-stored": {"torch_compile": "auto", "gradient_checkpointing": False},
    "allranks-liger": {"liger_rope": True, "liger_rms_norm": True, "liger_glu_activation": True},
}

# Sizes from the models' published config.json files.
SHAPES: dict[str, dict] = {
    "llama-3.2-1b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_layers": 16,
        "num_heads": 32,
        "num_key_value_heads": 8,
    },
    "llama-3-8b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_layers": 32,
        "num_heads": 32,
        "num_key_value_heads": 8,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_layers": 28,
        "num_heads": 28,
        "num_key_value_heads": 4,
    },
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(CONTESTANTS), help="contestants, separated by commas")
    options = parser.parse_args(arguments)
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(CONTESTANTS):
        parser.error(f"no such contestant: {', '.join(sorted(unknown))}; choose from {', '.join(CONTESTANTS)}")
    device_name = _device_or_exit(parser)

    workload = Workload(
        name=f"{options.shape}-{options.method}",
        **SHAPES[options.shape],
        num_documents=400,
        median_tokens=900,
        sequence_len=4096,
        blocks_per_step=2,
        documents_per_step=7,  # as many real tokens as in two blocks
        device="cuda",
        lora_rank=16 if options.method == "lora" else None,
        gradient_checkpointing=True,
    )
    rounds: list[dict[str, Measurement]] = []
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        directory = Path(folder) / "workload"
        num_parameters = write(workload, directory)
        for number in range(1, options.rounds + 1):
            measured = {}
            for key in chosen:
                scratch = Path(folder) / f"{key}-{number}"
                try:
                    measured[key] = measure(
                        key.partition("-")[0], workload, directory, scratch, changes=CHANGES.get(key)
                    )
                    print(f"round {number}  {key}: {measured[key].tokens_per_second:.0f} tokens/s", flush=True)
                except RuntimeError as error:  # not installed, or out of memory: the others are still worth measuring
                    failures[key] = str(error)
                    print(f"round {number}  {error}", flush=True)
            rounds.append(measured)

    names = {key: name for key, name in CONTESTANTS.items() if all(key in measured for measured in rounds)}
    print(_write_report(workload, rounds, names, failures, device_name, num_parameters))


def _device_or_exit(parser: argparse.ArgumentParser) -> str:
    import torch

    if not torch.cuda.is_available():
        parser.exit(2, "error: no CUDA device: this benchmark needs one GPU; `python -m benchmarks.cpu` needs none\n")
    if not torch.cuda.is_bf16_supported():
        parser.exit(2, f"error: {torch.cuda.get_device_name()} has no bfloat16, in which everything here is trained\n")
    return torch.cuda.get_device_name()


def _write_report(
    workload: Workload,
    rounds: list[dict[str, Measurement]],
    names: dict[str, str],
    failures: dict[str, str],
    device_name: str,
    num_parameters: int,
) -> str:
    peak = peak_flops(device_name, half=True)
    # Adapters add well under 1 % to the parameters; without them every parameter is trained.
    flops = training_flops_per_token(num_parameters, 0 if workload.lora_rank else num_parameters)
    today = datetime.date.today().isoformat()
    lines = [f"# {workload.name} on one {device_name}, {today}", ""]
    lines += report.speed_table(rounds, names, [key for key in ("trainer", "trl") if key in names])
    for key, name in names.items():
        rate = statistics.median(measured[key].tokens_per_second for measured in rounds)
        memory = max(measured[key].device_memory_bytes for measured in rounds) / 2**30
        mfu = f"MFU {rate * flops / peak:.1%}" if peak else "MFU unknown: the device's peak is not known"
        lines.append(f"- {name}: {mfu}; peak memory on the device {memory:.1f} GiB")
    lines += ["", "MFU counts real tokens and parameters only: neither attention nor recomputation.", ""]
    lines += report.start_table(rounds, names, [key for key in ("trainer", "trl") if key in names])
    lines += [f"{CONTESTANTS[key]} failed:\n\n```\n{text}\n```\n" for key, text in failures.items()]
    lines += [*report.raw(rounds, CONTESTANTS)]
    lines += [
        *report.settings("Workload and settings", asdict(workload)),
        *report.settings("Machine", report.machine()),
    ]
    path = Path(__file__).parent / "reports" / f"{workload.name}_{report.slug(device_name)}_{today}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines))
    return f"report: {path}"


if __name__ == "__main__":
    main()
