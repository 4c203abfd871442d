"""What a step sends over two ranks, each a node of its own, and what sending less does to the gradients."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from allranks.config.load import resolve_mapping
from allranks.model.build import build_model
from allranks.model.comm_hooks import add_comm_hook, compression_warnings
from allranks.model.placement import place
from allranks.observe import EventLog, read_events
from allranks.observe.events import CommunicationEvent
from allranks.plan.step_traffic import Layout, StepSizes, node_sends_bytes
from allranks.train.strategies import make_strategy
from allranks.train.traffic import TrafficCounter, op_of, steps_to_count
from tests.ranks import run_ranks
from tests.tiny_models import flat_for, make_batch, saved_model
from tests.warm import warm_processes

STEPS = 9
FEW_STEPS = 4  # where what is sent is all that is looked at
FSDP: dict[str, Any] = {"fsdp_version": 2}
NOTHING_KEPT = {
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_max_live_parameters": 0,
}
"""Such a small model DeepSpeed would gather ahead and hold: what it does with a large one."""


def zero(stage: int, **settings: Any) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": {"stage": stage, **settings}}}


CASES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp bf16": {"ddp_comm_hook": "bf16"},
    "ddp fp16": {"ddp_comm_hook": "fp16"},
    "ddp power_sgd": {
        "ddp_comm_hook": "power_sgd",
        "ddp_comm_state_option": {"start_powerSGD_iter": 3, "matrix_approximation_rank": 4},
    },
    "fsdp": FSDP,
    "fsdp bf16": {"fsdp_config": {"reduce_dtype": "bfloat16"}},
    "fsdp every batch": {"fsdp_config": {"sync_each_batch": True}},
    "fsdp kept gathered": {"fsdp_config": {"reshard_after_forward": False}},
    "fsdp over one rank": {"fsdp_config": {"reduce_dtype": "bfloat16"}, "dp_shard_size": 1},
    "zero 1": zero(1),
    "zero 2": zero(2),
    "zero 3": zero(3, **NOTHING_KEPT),
    "zero 3, all kept whole": zero(3),
    "zero 3, a copy on each pair": zero(3, zero_hpz_partition_size=2, **NOTHING_KEPT),
    "zero 3, LoRA, recomputed": {
        **zero(3, stage3_param_persistence_threshold=0),
        "adapter": "lora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_linear": True,
        "gradient_checkpointing": True,
    },
}
NOT_SEEN = tuple(name for name in CASES if name.startswith("zero"))
"""DeepSpeed hands out no gradients."""
ONLY_SENT = ("fsdp", "fsdp every batch", "fsdp kept gathered", *NOT_SEEN)
NUM_MICRO_BATCHES = 3
SMALL = 2000
"""Bytes above which a message is of weights or gradients, not the loss or a norm."""


def train(flat: dict[str, Any], rank: int, world_size: int, events: Path, steps: int = STEPS) -> dict[str, Any]:
    """Losses of some steps, the first step's gradients, and how many parameters there are."""
    torch.manual_seed(0)
    cfg = resolve_mapping(flat)
    model = build_model(cfg, place(cfg, torch.device("cpu"), rank, world_size, nodes=range(world_size)))
    strategy = make_strategy(cfg, model)
    parameters = dict(model.hf_model.named_parameters())
    traffic = TrafficCounter(rank, model.placement.nodes, {3, steps}, EventLog(events, rank), say=lambda text: None)
    batches = [make_batch(seed) for seed in range(NUM_MICRO_BATCHES * 2)]
    mine = batches if world_size == 1 else batches[rank::2]
    targets = sum(len(batch.labels) for batch in batches)
    losses, gradients = [], {}
    for step in range(1, steps + 1):
        traffic.begin(step)
        total = torch.zeros(())
        for index, batch in enumerate(mine):
            with strategy.micro_batch(last=index == len(mine) - 1):
                loss = model.forward_loss(batch)
                strategy.backward(loss * world_size / targets)
            total += loss.detach() / targets
            traffic.read()
        if step == 1 and strategy.engine_settings is None:
            gradients = {name: _whole(p.grad) for name, p in parameters.items()}
        strategy.step()
        if world_size > 1:
            dist.all_reduce(total)
        traffic.end(step)
        losses.append(total.item())
    return {
        "losses": losses,
        "gradients": gradients,
        "num_parameters": sum(map(_elements, parameters.values())),
        "num_trained": sum(_elements(p) for p in parameters.values() if p.requires_grad),
        "num_frozen_in_layers": sum(
            _elements(p) for name, p in parameters.items() if ".layers." in name and not p.requires_grad
        ),
    }


def _elements(parameter: torch.nn.Parameter) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())


def power_sgd_over_many_buckets(flat: dict[str, Any], rank: int) -> bool:
    """Whether both ranks end with the same gradient; buckets whose collectives cross end in a crash instead."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(*(torch.nn.Linear(600, 600) for _ in range(6)))
    replicas = DistributedDataParallel(layers, bucket_cap_mb=1, gradient_as_bucket_view=True)
    add_comm_hook(replicas, resolve_mapping(flat))
    for step in range(12):
        torch.manual_seed(2 * step + rank)
        replicas.zero_grad()
        replicas(torch.randn(4, 600)).square().mean().backward()
    mine = layers[0].weight.grad.clone()
    dist.broadcast(mine, src=0)
    return torch.equal(mine, layers[0].weight.grad)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def _rank(rank: int, flats: dict[str, dict[str, Any]], out: Path) -> None:
    results: dict[str, Any] = {}
    for name, flat in flats.items():
        results[name] = train(flat, rank, 2, out / name / f"{rank}.jsonl", steps_of(name))
    results["equal"] = power_sgd_over_many_buckets(flats["ddp power_sgd"], rank)
    if rank == 1:
        torch.save(results, out / "results.pt")


def steps_of(name: str) -> int:
    return FEW_STEPS if name in ONLY_SENT else STEPS


def flat(**keys: Any) -> dict[str, Any]:
    keys = {"learning_rate": 0.01, "max_grad_norm": 0.0, **keys}
    return flat_for(saved_model("llama"), **keys)


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """All cases in one pair of processes, with each rank's events of step 3 and of the last one."""
    out = tmp_path_factory.mktemp("traffic")
    run_ranks(_rank, {name: flat(**keys) for name, keys in CASES.items()}, out)
    results = torch.load(out / "results.pt")
    assert results.pop("equal")
    for name, result in results.items():
        result["events"] = [list(read_events(out / name / f"{rank}.jsonl")) for rank in (0, 1)]
    return results


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Any]:
    return train(flat(), 0, 1, tmp_path_factory.mktemp("alone") / "0.jsonl")


def sent(result: dict[str, Any], step_index: int = 0) -> dict[tuple[str, str], Any]:
    """(collective, type) -> bytes of the large messages that rank 0 issued in one step; the small may be among them."""
    kinds = result["events"][0][step_index].collectives
    large = {(k["op"], k["dtype"]): k["num_bytes"] for k in kinds if k["num_bytes"] > SMALL}
    return {kind: pytest.approx(num_bytes, abs=SMALL) for kind, num_bytes in large.items()}


def test_all_events_say_the_same_of_the_run(together):
    for name, result in together.items():
        mine, other = result["events"]
        assert [event.step for event in mine] == [3, steps_of(name)], name
        for one, two in zip(mine, other, strict=True):
            assert one.counted and isinstance(one, CommunicationEvent)
            assert one.node_sends_bytes == two.node_sends_bytes
            assert sum(one.node_sends_bytes) == one.between_nodes_bytes > 0


def test_ddp_sends_each_gradient_once_a_step_and_hooks_shrink_it(together):
    size = together["ddp"]["num_parameters"]
    assert sent(together["ddp"]) == {("all_reduce", "float32"): 4 * size}
    for name, dtype in (("ddp bf16", "bfloat16"), ("ddp fp16", "float16"), ("fsdp over one rank", "bfloat16")):
        assert sent(together[name]) == {("all_reduce", dtype): 2 * size}
    # With two ranks each sends the message once, and the loss.
    assert 0 <= together["ddp"]["events"][0][0].node_sends_bytes[0] - 4 * size < SMALL


@pytest.mark.parametrize(
    ("name", "layout", "sizes"),
    [
        ("ddp", Layout("ddp"), {}),
        ("ddp bf16", Layout("ddp"), {"gradient_bytes": 2}),
        ("fsdp", Layout("fsdp", num_shards=2), {}),
        ("fsdp bf16", Layout("fsdp", num_shards=2), {"gradient_bytes": 2}),
        ("fsdp every batch", Layout("fsdp", num_shards=2, reduces_each=True), {}),
        ("fsdp kept gathered", Layout("fsdp", num_shards=2, keeps_gathered=True), {}),
        ("fsdp over one rank", Layout("ddp"), {"gradient_bytes": 2}),
        ("zero 1", Layout("zero", stage=1), {}),
        ("zero 2", Layout("zero", stage=2), {}),
        ("zero 3", Layout("zero", stage=3), {}),
        ("zero 3, all kept whole", Layout("zero", stage=3), {"num_persistent": None}),
        ("zero 3, a copy on each pair", Layout("zero", stage=3, hpz=2), {}),
    ],
)
def test_what_is_predicted_of_a_step_is_what_is_counted_in_it(together, name, layout, sizes):
    size = together[name]["num_parameters"]
    predicted = {"parameter_bytes": 4, "gradient_bytes": 4, "num_micro_batches": NUM_MICRO_BATCHES, **sizes}
    if "num_persistent" in sizes:
        predicted["num_persistent"] = size
    counted = together[name]["events"][0][0].node_sends_bytes
    for node in (0, 1):
        found = node_sends_bytes(layout, StepSizes(size, size, **predicted), (node, 1 - node), "gloo")
        assert counted[node] == pytest.approx(found, abs=SMALL)


def test_zero_3_gathers_frozen_weights_of_recomputed_layers_once_more(together):
    result = together["zero 3, LoRA, recomputed"]
    sizes = StepSizes(result["num_parameters"], result["num_trained"], 4, 4, NUM_MICRO_BATCHES)
    again = replace(sizes, num_again=result["num_frozen_in_layers"])
    layout, nodes = Layout("zero", stage=3, keeps_gathered=True), (0, 1)
    counted = result["events"][0][0].node_sends_bytes[0]
    assert counted == pytest.approx(node_sends_bytes(layout, again, nodes, "gloo"), rel=0.01)
    assert counted > 1.2 * node_sends_bytes(layout, sizes, nodes, "gloo")


def test_power_sgd_sends_little_once_it_has_begun(together):
    size = together["ddp power_sgd"]["num_parameters"]
    before, after = (sent(together["ddp power_sgd"], index)["all_reduce", "float32"] for index in (0, 1))
    assert before == 4 * size and after.expected < 2.5 * size


def test_fsdp_gathers_for_every_micro_batch_and_reduces_once(together):
    size = together["fsdp"]["num_parameters"]
    # Forward and backward; the last norm, which goes with the root, stays between them. gloo has no reduce-scatter:
    # PyTorch reduces all of it on every rank.
    gathered = NUM_MICRO_BATCHES * 4 * size
    expected = {
        "fsdp": {("all_gather", "float32"): 2 * gathered, ("all_reduce", "float32"): 4 * size},
        "fsdp bf16": {("all_gather", "float32"): 2 * gathered, ("all_reduce", "bfloat16"): 2 * size},
        "fsdp every batch": {
            ("all_gather", "float32"): 2 * gathered,
            ("all_reduce", "float32"): NUM_MICRO_BATCHES * 4 * size,
        },
        "fsdp kept gathered": {("all_gather", "float32"): gathered, ("all_reduce", "float32"): 4 * size},
    }
    assert {name: sent(together[name]) for name in expected} == expected


@pytest.mark.parametrize("name", ["ddp bf16", "ddp fp16", "fsdp bf16", "fsdp over one rank", "ddp power_sgd"])
def test_gradients_keep_their_scale(together, alone, name):
    exact = together["ddp power_sgd" if name == "ddp power_sgd" else "ddp"]
    for parameter, gradient in alone["gradients"].items():
        close = {"rtol": 1e-4, "atol": 1e-6} if "power" in name else {"rtol": 2e-2, "atol": 2e-3}
        torch.testing.assert_close(together[name]["gradients"][parameter], gradient, **close, msg=parameter)
    assert exact["losses"][0] == pytest.approx(alone["losses"][0], rel=1e-6)


def test_rounded_gradients_train_nearly_alike_and_approximated_ones_learn(together, alone):
    exact = alone["losses"]
    assert together["ddp"]["losses"] == pytest.approx(exact, rel=1e-5)
    assert exact[-1] < 0.8 * exact[0]
    for name in ("ddp bf16", "ddp fp16", "fsdp bf16", "fsdp over one rank"):
        losses = together[name]["losses"]
        assert losses == pytest.approx(exact, rel=1e-2) and losses != pytest.approx(exact, rel=1e-6), name
    approximated = together["ddp power_sgd"]["losses"]
    # Steps 1 to 4 see only whole gradients.
    assert approximated[:4] == pytest.approx(exact[:4], rel=1e-5)
    assert approximated != pytest.approx(exact, rel=1e-5)
    assert approximated[-1] < 0.6 * approximated[3]


def test_the_third_step_is_counted_and_one_after_compression_began():
    assert steps_to_count(1, 100) == {3}
    assert steps_to_count(41, 42) == {42}
    assert steps_to_count(1, 100, compressed_from=10) == {3, 12}
    assert steps_to_count(1, 10, compressed_from=10) == {3}


def test_power_sgd_says_when_it_does_nothing_and_when_it_starts_anew(tmp_path):
    cfg = resolve_mapping(flat_for(tmp_path, **CASES["ddp power_sgd"]))
    assert compression_warnings(cfg, 0, 100) == []
    [idle] = compression_warnings(cfg, 0, 3)
    assert "begins after 3 steps, and this start has 3: nothing will be compressed" in idle
    [anew] = compression_warnings(cfg, 40, 100)
    assert "it starts anew, 3 steps from here" in anew
    assert compression_warnings(resolve_mapping(flat_for(tmp_path)), 40, 100) == []


def test_a_recorder_that_forgets_or_is_off_makes_no_count(tmp_path):
    sizes = ("0", "4", "100")
    warm_processes()  # `start_processes` starts its own by the same server
    mp.start_processes(_with_recorder, (sizes, tmp_path), nprocs=len(sizes), start_method="forkserver")
    events = [event for size in sizes for event in read_events(tmp_path / f"{size}.jsonl")]
    assert [event.counted for event in events] == [False, False, True]


def _with_recorder(number: int, sizes: tuple[str, ...], folder: Path) -> None:
    """Each process is a run of its own, for the recorder's size is read once a process."""
    os.environ["TORCH_FR_BUFFER_SIZE"] = size = sizes[number]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    traffic = TrafficCounter(0, (0,), {1}, EventLog(folder / f"{size}.jsonl", 0), say=print)
    traffic.begin(1)
    for _ in range(9):
        dist.all_reduce(torch.zeros(1))
    traffic.end(1)
    os._exit(0)


@pytest.mark.parametrize(
    ("name", "op"),
    [
        # As libtorch_cuda.so has them, for NCCL does not run here.
        ("_all_gather_base", "all_gather"),
        ("all_gather_into_tensor_coalesced", "all_gather"),
        ("_reduce_scatter_base", "reduce_scatter"),
        ("reduce_scatter_tensor_coalesced", "reduce_scatter"),
        ("allreduce_coalesced", "all_reduce"),
        ("all_reduce_barrier", "all_reduce"),
        ("_broadcast_oop", "broadcast"),
        ("_reduce_oop", "reduce"),
        ("all_to_all", "all_to_all"),
        ("gather", "gather"),
        ("scatter", "scatter"),
        ("send 0->1", "send 0->1"),
    ],
)
def test_names_of_nccls_notes(name, op):
    assert op_of(name) == op
