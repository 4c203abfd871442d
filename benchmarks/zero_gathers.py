"""What DeepSpeed's ZeRO-3 gathers in a micro-batch, counted on two ranks of this CPU.

    python -m benchmarks.zero_gathers        a small llama, full and LoRA, with and without recomputation

Of all parameters, which part comes ahead of its use and which when it is needed, in the forward pass, in layers that
are computed again, and in the backward pass, in how many collectives. The settings are those of Qwen's scripts, in
proportion to the model: what may be live, and is kept for reuse, is little more than a layer.
"""

import multiprocessing
import os
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.plan_peaks import random_rows

_HIDDEN, _LAYERS, _TOKENS, _MICRO_BATCHES, _STEPS = 64, 12, 32, 2, 3
_KEPT = 61_000  # as 1e9 is to a layer of Qwen-72B
_ZERO = {
    "stage": 3,
    "reduce_bucket_size": _HIDDEN**2,
    "stage3_prefetch_bucket_size": int(0.9 * _HIDDEN**2),
    "stage3_param_persistence_threshold": 10 * _HIDDEN,
    "stage3_max_live_parameters": _KEPT,
    "stage3_max_reuse_distance": _KEPT,
}
_LORA = {"adapter": "lora", "lora_r": 2, "lora_alpha": 4, "lora_target_linear": True}
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "full, recomputed": {"gradient_checkpointing": True},
    "LoRA": _LORA,
    "LoRA, recomputed": {"gradient_checkpointing": True, **_LORA},
}


def _count(rank: int, port: int, folder: Path, keys: dict[str, Any], answers: Any) -> None:
    import torch
    import torch.distributed as dist
    from deepspeed.runtime.zero import partitioned_param_coordinator as zero

    from allranks.config.load import resolve_mapping
    from allranks.model.build import build_model
    from allranks.model.placement import place
    from allranks.train.strategies import make_strategy

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    counted: Counter[tuple[str, str]] = Counter()
    coordinator: Any = zero.PartitionedParameterCoordinator
    name = "_PartitionedParameterCoordinator__all_gather_params"
    fetch, gather = coordinator._fetch_sub_module_impl, getattr(coordinator, name)
    is_needed = False

    def absent(params: Any) -> list[Any]:
        return [one for one in params if one.ds_status == zero.ZeroParamStatus.NOT_AVAILABLE]

    def fetched(self: Any, module: Any, forward: bool, is_leaf: bool) -> None:
        nonlocal is_needed
        is_needed = bool(absent(zero.iter_params(module, recurse=is_leaf)))
        fetch(self, module, forward, is_leaf)

    def gathered(self: Any, params: Any, forward: bool) -> None:
        nonlocal is_needed
        again = torch._C._current_graph_task_id() != -1
        phase = "forward" if not again else "again" if forward else "backward"
        if missing := absent(params):
            kind = f"{phase}, {'when needed' if is_needed else 'ahead'}"
            counted[kind, "elements"] += sum(one.ds_numel for one in missing)
            counted[kind, "collectives"] += 1
        is_needed = False  # what a fetch asks for after the first is for later
        gather(self, params, forward)

    coordinator._fetch_sub_module_impl = fetched
    setattr(coordinator, name, gathered)
    flat = {"base_model": str(folder), "datasets": [{"path": "none.jsonl", "type": "completion"}]}
    flat |= {"output_dir": str(folder / "out"), "learning_rate": 1e-3, "sequence_len": _TOKENS}
    flat |= {"gradient_accumulation_steps": _MICRO_BATCHES, "deepspeed": {"zero_optimization": _ZERO}}
    cfg = resolve_mapping({**flat, **keys})
    model = build_model(cfg, place(cfg, torch.device("cpu"), rank, 2))
    strategy = make_strategy(cfg, model, num_micro_batches=_MICRO_BATCHES)
    model.module.train()
    for _ in range(_STEPS):  # the first two are those by which it learns the order
        for index in range(_MICRO_BATCHES):
            counted.clear()
            with strategy.micro_batch(last=index == _MICRO_BATCHES - 1):
                strategy.backward(model.forward_loss(random_rows(1, _TOKENS)) / _TOKENS)
        strategy.step()
    if rank == 0:
        answers.put((sum(one.ds_numel for one in model.module.parameters()), dict(counted)))
        answers.close()
        answers.join_thread()
    dist.barrier()
    os._exit(0)  # gloo's threads may not end


def counted(folder: Path, keys: dict[str, Any]) -> tuple[int, dict[tuple[str, str], int]]:
    """Elements of the model, and by phase those that are gathered in a micro-batch, and the collectives."""
    context = multiprocessing.get_context("spawn")
    answers, port = context.Queue(), random.randint(20_000, 40_000)
    ranks = [context.Process(target=_count, args=(rank, port, folder, keys, answers)) for rank in range(2)]
    for process in ranks:
        process.start()
    found: tuple[int, dict[tuple[str, str], int]] = answers.get(timeout=300)
    for process in ranks:
        process.join()
    return found


def main() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": _HIDDEN, "intermediate_size": 3 * _HIDDEN, "num_hidden_layers": _LAYERS}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 4100}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes)).save_pretrained(folder)
        print("| what is trained | phase | of all elements | collectives |\n|---|---|---|---|")
        for name, keys in CASES.items():
            total, found = counted(folder, keys)
            for phase in sorted({phase for phase, _ in found}):
                part = found[phase, "elements"] / total
                print(f"| {name} | {phase} | {part:.0%} | {found[phase, 'collectives']} |", flush=True)


if __name__ == "__main__":
    main()
