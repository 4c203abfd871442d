"""The step's time: parts that grow as they must, and the published rows that it is held against."""

import statistics
from dataclasses import replace

import pytest

from allranks.plan.cost import checkpoint_bytes, run_cost
from allranks.plan.counted import num_parameters
from allranks.plan.error_bounds import TIME_ERROR
from allranks.plan.fsdp_copies import copied
from allranks.plan.hardware import Link, find_device, find_link
from allranks.plan.model_shape import shape_of
from allranks.plan.moved import logits
from allranks.plan.overlap import exchange
from allranks.plan.rates import FITTED
from allranks.plan.step_traffic import Layout
from allranks.plan.time import step_time, tokens_per_second, utilisation
from allranks.plan.workload import ElementBytes, StepTime, Workload
from benchmarks.plan_rows import rows, table

A100, H100 = find_device("a100"), find_device("h100")
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}
SHAPE = shape_of(LLAMA)
FULL = Workload(
    name="FSDP2",
    shape=SHAPE,
    method="full",
    layout=Layout("fsdp", 16),
    num_ranks=16,
    ranks_per_node=8,
    num_trained=num_parameters(SHAPE),
    micro_batch_size=1,
    num_micro_batches=4,
    tokens=4096,
    element=ElementBytes(compute=2, frozen=2, trained=4, gradient=4, master=0, state=8),
    attention="flash",
    foreach=False,
)
NDR = find_link("8xib-ndr")


def test_anchors_are_met_by_constants_that_were_fitted_on_the_others() -> None:
    other = [row.error(FITTED) for row in rows() if row.is_anchor and not row.fits]
    assert len(other) == 15
    assert statistics.median(map(abs, other)) < 0.08
    assert max(map(abs, other)) < 0.25


def test_systems_of_many_gpus_are_met_in_the_median() -> None:
    other = [row.error(FITTED) for row in rows() if row.gigabytes is None and not row.fits]
    assert len(other) >= 10
    assert statistics.median(map(abs, other)) < 0.08


def test_one_published_row_is_further_off_than_a_plan_says_and_its_source_contradicts_it() -> None:
    far = [row for row in rows() if abs(row.error(FITTED)) > TIME_ERROR]
    assert [(row.group, row.workload.tokens) for row in far] == [("qwen-7b qwen-qlora", 1024)]
    assert all(row.contradicted for row in far)
    told = "\n".join(table(rows(), FITTED))
    assert "1 more than 25% off" in told and f"its own source contradicts it: {far[0].contradicted}" in told


def test_attention_in_triton_takes_longer_and_nothing_else_does() -> None:
    row = next(row for row in rows() if row.is_triton and row.recomputed == 1)
    faster = replace(row, is_triton=False)
    other, found = (one.predicted(FITTED) for one in (faster, row))
    attention = step_time(replace(row.workload, recomputes=True), row.device, row.link).attention
    assert found - other == pytest.approx(attention * ((2 * 1.4 + 2.5 * 2) / 4.5 - 1), rel=1e-3)


def test_parts_are_all_there_and_add_up() -> None:
    found = step_time(FULL, H100, NDR)
    parts = (found.matmul, found.attention, found.memory_bound, found.optimizer, found.exposed, found.overhead)
    assert all(part > 0 for part in parts)
    assert found.total == pytest.approx(sum(parts))
    assert found.exposed < found.communication


def test_utilisation_is_a_part_of_the_peak() -> None:
    found = step_time(FULL, H100, NDR)
    assert 0.3 < utilisation(FULL, H100, found) < 0.6
    assert tokens_per_second(FULL, found) == pytest.approx(16 * 4 * 4096 / found.total)


def test_recomputation_costs_a_forward_pass() -> None:
    plain, again = (step_time(replace(FULL, recomputes=value, stops_early=False), H100, NDR) for value in (False, True))
    assert again.matmul / plain.matmul == pytest.approx(4 / 3, rel=0.05)


def test_of_a_recomputed_layer_the_last_product_is_left_out() -> None:
    """As torch.utils.checkpoint does; an adapter there wants it, for what comes after it in the layer is kept."""
    whole, early = (
        step_time(replace(FULL, recomputes=True, stops_early=value), A100, NDR).matmul for value in (False, True)
    )
    of_last = 2 * 4 * 4096 * 14336 * 4096 * 32 / (312e12 * 0.869 * FITTED.matmul)
    assert whole - early == pytest.approx(of_last, rel=0.03)
    adapted = {"model.layers.0.mlp.down_proj": (4096, 14336)}
    lora = replace(FULL, method="lora", lora_rank=8, adapted=adapted, recomputes=True)
    assert step_time(lora, A100, NDR) == step_time(replace(lora, stops_early=False), A100, NDR)


def test_a_frozen_model_needs_no_gradients_of_its_weights() -> None:
    lora = replace(
        FULL,
        method="lora",
        lora_rank=8,
        num_trained=10_000_000,
        adapted={"model.layers.0.self_attn.q_proj": (4096, 4096)},
        trains_embeddings=False,
    )
    assert step_time(lora, H100, NDR).matmul / step_time(FULL, H100, NDR).matmul == pytest.approx(2 / 3, rel=0.05)
    assert step_time(lora, H100, NDR).optimizer < step_time(FULL, H100, NDR).optimizer / 100


def test_slow_links_are_exposed_and_hsdp_sends_less_over_them() -> None:
    ethernet = find_link("10gbit")
    everywhere = step_time(FULL, H100, ethernet)
    within = step_time(replace(FULL, layout=Layout("fsdp", 8)), H100, ethernet)
    assert everywhere.exposed > within.exposed > step_time(FULL, H100, NDR).exposed
    assert everywhere.exposed > everywhere.compute


def test_zero_3_over_ten_gigabits_takes_minutes_and_zero_2_waits_for_its_gradients() -> None:
    # "90 s a step instead of 4" was reported of ZeRO-3 over 10 GbE (LLaMA-Factory, issue 5014).
    element = ElementBytes(compute=2, frozen=2, trained=2, gradient=2, master=4, state=8)
    zero = replace(FULL, layout=Layout("zero", stage=3), element=element)
    assert step_time(zero, A100, find_link("10gbit")).total > 60
    second = step_time(replace(zero, layout=Layout("zero", stage=2)), A100, NDR)
    assert second.exposed == second.communication > 0


def test_zero_3_waits_for_frozen_weights_that_recomputed_layers_have_let_go_of() -> None:
    full = replace(FULL, layout=Layout("zero", stage=3), num_ranks=8, num_micro_batches=1, micro_batch_size=8)
    adapter = {"method": "lora", "num_trained": 10**7, "trains_embeddings": False}
    lora = replace(full, **adapter)
    of_layers = num_parameters(SHAPE) - 2 * 128256 * 4096
    again = 2 * of_layers * 7 / 8 / (450e9 * 0.8)
    for workload, more in ((full, 0.0), (lora, again)):
        once, twice = (step_time(replace(workload, recomputes=recomputes), H100) for recomputes in (False, True))
        assert twice.communication - once.communication == pytest.approx(more, rel=0.03)
        assert twice.exposed - once.exposed == pytest.approx(more, rel=0.03, abs=2e-3)


def test_zero_3_costs_the_host_a_part_for_each_collective() -> None:
    """As many as the weights are, where each is larger than what is gathered together."""
    zero3 = replace(FULL, layout=Layout("zero", stage=3), num_ranks=8, micro_batch_size=1, tokens=16)
    slower = replace(FITTED, gather_seconds=2 * FITTED.gather_seconds)
    one_by_one, together = (replace(zero3, prefetch_elements=size) for size in (10**6, 10**10))
    more = [step_time(one, H100, constants=slower).total - step_time(one, H100).total for one in (one_by_one, together)]
    assert more[0] == pytest.approx(FITTED.gather_seconds * 2 * 4 * (32 * 7 + 2), rel=0.01)
    assert more[1] < more[0] / 50
    alone = replace(one_by_one, num_ranks=1)
    assert step_time(alone, H100, constants=slower).total == step_time(alone, H100).total


def test_fsdp2_copies_what_it_gathers_and_what_it_reduces() -> None:
    """Read and written: a weight in 2 bytes in either pass, a gradient from 2 bytes to 4, once a step or each time."""
    alone = replace(FULL, num_ranks=1, ranks_per_node=1, layout=Layout("ddp"))
    number = num_parameters(SHAPE)

    def more(**layout: bool) -> float:
        sharded = replace(FULL, layout=Layout("fsdp", 16, **layout))
        seconds = step_time(sharded, H100, NDR).memory_bound - step_time(alone, H100).memory_bound
        return seconds * H100.bandwidth * FITTED.memory

    assert more() == pytest.approx((4 * 8 + 6) * number)
    assert more(keeps_gathered=True) == pytest.approx((4 * 4 + 6) * number)
    assert more(reduces_each=True) == pytest.approx((4 * 8 + 4 * 6) * number)


def test_frozen_weights_are_copied_as_they_travel_and_adapters_gradients_alone_are_reduced() -> None:
    lora = replace(FULL, method="lora", num_trained=10**6, trains_embeddings=False)
    total = num_parameters(SHAPE) + 10**6
    forward, backward = (copied(lora, backward=backward).num_bytes for backward in (False, True))
    assert forward == 2 * 2 * total
    assert backward == forward + 10**6 * (2 + 4) / 4
    packed = replace(lora, method="qlora", num_packed=10**9, element=replace(FULL.element, packed=0.5))
    assert copied(packed, backward=False).num_bytes == forward - 2 * 1.5 * 10**9
    assert copied(replace(lora, layout=Layout("ddp")), backward=True).num_bytes == 0


def test_computing_is_slower_beside_what_a_nodes_gpus_send_and_slow_links_do_not_add_to_that() -> None:
    link = find_link("nvlink4")

    def exposed(workload: Workload, between: Link = NDR, idle: tuple[float, float] = (0.0, 0.0)) -> float:
        return exchange(workload, link, between, forward=20.0, backward=40.0, idle=idle).exposed

    waiting, node = (20.0, 40.0), replace(FULL, num_ranks=8, layout=Layout("fsdp", 8))
    told = exchange(node, link, None, forward=20.0, backward=40.0, idle=waiting)
    more = exposed(node) - told.exposed  # where the GPU waits for the host, nothing is slowed
    assert more == pytest.approx(0.189 * (told.seconds - told.exposed), rel=0.05)
    of_all = [exposed(FULL, replace(NDR, bytes_per_second=rate)) for rate in (100e9, 50e9)]
    of_waiting = [exposed(FULL, replace(NDR, bytes_per_second=rate), waiting) for rate in (100e9, 50e9)]
    assert of_all[1] - of_all[0] == pytest.approx(of_waiting[1] - of_waiting[0], abs=1e-3)
    assert exposed(replace(node, on_cpu=True)) == exposed(replace(node, on_cpu=True), idle=waiting)


@pytest.mark.parametrize(
    ("upcasts", "shifts", "each"), [(False, False, 20), (False, True, 30), (True, False, 52), (True, True, 62)]
)
def test_a_loss_of_all_logits_reads_and_writes_them_in_their_type(upcasts: bool, shifts: bool, each: int) -> None:
    of_all = replace(FULL, chunks_logits=False, upcasts_logits=upcasts, shifts_logits=shifts)
    found = sum(logits(of_all, way).num_bytes for way in (0, 1))
    assert found == each * 4096 * 128256
    chunked = replace(of_all, chunks_logits=True)
    assert sum(logits(chunked, way).num_bytes for way in (0, 1)) == 30 * 4096 * 128256


def test_one_rank_talks_to_nobody() -> None:
    alone = replace(FULL, num_ranks=1, ranks_per_node=1, layout=Layout("ddp"))
    assert step_time(alone, H100).communication == 0


def test_more_nodes_are_faster_nearly_in_proportion() -> None:
    rates = []
    for nodes in (1, 2, 4, 8):
        there = replace(FULL, num_ranks=8 * nodes, layout=Layout("fsdp", 8 * nodes))
        rates.append(tokens_per_second(there, step_time(there, H100, NDR)) / nodes)
    # What each holds of the optimizer's state gets less, what it waits for the others more.
    assert all(0.9 < rate / rates[0] < 1.02 for rate in rates)


def test_experts_take_their_part_of_the_tokens() -> None:
    mixture = {**LLAMA, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    shape = shape_of(mixture)
    found = step_time(replace(FULL, shape=shape, num_trained=num_parameters(shape)), H100, NDR)
    dense = step_time(FULL, H100, NDR)
    assert 1.5 * dense.matmul < found.matmul < 3 * dense.matmul


def test_a_packed_model_is_unpacked_in_each_pass() -> None:
    alone = replace(FULL, num_ranks=1, ranks_per_node=1, layout=Layout("ddp"))
    packed = replace(alone, method="qlora", num_packed=7_000_000_000, element=replace(FULL.element, packed=0.5))
    plain = replace(packed, num_packed=0)
    more = step_time(packed, H100, NDR).memory_bound - step_time(plain, H100, NDR).memory_bound
    assert more == pytest.approx(4 * 2 * 7e9 * 2.5 / (H100.bandwidth * FITTED.memory))


def test_what_is_offloaded_takes_longer() -> None:
    there = step_time(FULL, H100, NDR).optimizer
    assert step_time(replace(FULL, offloads_optimizer=True), H100, NDR).optimizer > 5 * there
    less = step_time(replace(FULL, recomputes=True), H100, NDR).memory_bound
    assert step_time(replace(FULL, recomputes=True, offloads_activations=True), H100, NDR).memory_bound > less


def test_a_run_costs_its_hours_times_its_gpus_and_no_price_is_invented() -> None:
    time = StepTime(*([0.5] * 4), communication=0.0, exposed=0.0)
    assert time.total == 2
    found = run_cost(FULL, time, num_steps=1800, price_per_gpu_hour=2.5)
    assert (found.hours, found.gpu_hours, found.cost) == (1.0, 16.0, 40.0)
    assert run_cost(FULL, time, num_steps=1800).cost is None
    stopped = run_cost(FULL, time, num_steps=1800, num_checkpoints=10, saves_beside=False)
    assert stopped.hours == pytest.approx(1 + 10 * stopped.checkpoint_seconds / 3600)


def test_a_checkpoint_is_what_is_trained_and_its_state() -> None:
    assert checkpoint_bytes(FULL) == num_parameters(SHAPE) * 12
    lora = replace(FULL, method="lora", num_trained=1_000_000)
    assert checkpoint_bytes(lora) == 12_000_000
    one = run_cost(FULL, step_time(FULL, H100, NDR), num_steps=1, shared_disk=True)
    each = run_cost(FULL, step_time(FULL, H100, NDR), num_steps=1)
    assert one.checkpoint_seconds == 2 * each.checkpoint_seconds


def test_the_first_of_ddps_buckets_is_a_small_one() -> None:
    """Of 8 MiB in buckets of 4: by default 1, 4 and 3 MiB, where a size is given 4 and 4; each takes its hops."""
    ddp = replace(FULL, layout=Layout("ddp"), num_trained=2**21, bucket_bytes=4 * 2**20)
    slow = replace(NDR, latency_seconds=1.0)
    three, two = (step_time(replace(ddp, first_bucket_bytes=size * 2**20), H100, slow).communication for size in (1, 4))
    assert three / two == pytest.approx(3 / 2, rel=0.01)
