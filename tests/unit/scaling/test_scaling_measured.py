"""What a size came to, by the record of its ranks; and what of the ideal speed is lost where."""

import json
import math

import pytest

from allranks.errors import AllranksError
from allranks.live.state import LiveTable, NodeState, RankState
from allranks.observe import EventLog, RunDir
from allranks.observe.events import CommunicationEvent, MemoryEvent, PhaseEvent, StepEvent
from allranks.scaling.efficiency import scaled, work_per_forward
from allranks.scaling.measured import Measured, measured


def record(run, rank, seconds, compute, *, data=0.0, run_id="this", tokens=1000, device="cpu"):
    log = EventLog(run.events(rank), rank, run_id=run_id)
    log.write(MemoryEvent(device=device))
    log.write(PhaseEvent(phase="train", pid=1, num_steps=len(seconds)))
    for step, (of_step, work) in enumerate(zip(seconds, compute, strict=True), 1):
        log.write(StepEvent(step=step, seconds=of_step, compute_seconds=work, data_seconds=data, tokens=tokens))
    log.close()


def test_means_leave_out_the_warm_up_and_the_extremes(tmp_path):
    run = RunDir(tmp_path)
    record(run, 0, [99.0], [1.0], run_id="earlier")
    record(run, 0, [50.0, 50.0, *[1.0] * 18, 0.1, 30.0], [0.5] * 22, data=0.1)
    found = measured(run, 1, warm_up=2)
    assert (found.steps, found.ranks, found.seconds, found.tokens_per_second) == (16, 1, 1.0, 1000)
    assert found.all_seconds == pytest.approx((18 + 30.1) / 20) and (found.fastest, found.slowest) == (0.1, 30.0)
    assert (found.compute, found.stragglers, found.data) == (0.5, 0.0, pytest.approx(0.1))
    assert found.waiting == pytest.approx(0.4) and not found.on_gpu and found.node_sends_bytes is None


def test_the_slowest_rank_is_who_the_others_wait_for(tmp_path):
    run = RunDir(tmp_path)
    record(run, 0, [1.0] * 12, [0.4] * 12)
    record(run, 1, [1.0] * 12, [0.4] * 12, data=0.2)
    record(run, 2, [1.0] * 12, [0.7] * 12, data=0.05)
    log = EventLog(run.events(0), 0, run_id="this")
    log.write(CommunicationEvent(step=3, counted=True, between_nodes_bytes=30, node_sends_bytes=(12, 10, 8)))
    found = measured(run, 3, warm_up=2)
    assert (found.compute, found.stragglers, found.data) == (
        pytest.approx(0.4),
        pytest.approx(0.3),
        pytest.approx(0.05),
    )
    assert found.waiting == pytest.approx(0.25) and found.node_sends_bytes == 12


def test_a_rank_that_waits_for_data_keeps_the_others_waiting(tmp_path):
    run = RunDir(tmp_path)
    record(run, 0, [1.0] * 12, [0.4] * 12)
    record(run, 1, [1.0] * 12, [0.4] * 12)
    record(run, 2, [1.0] * 12, [0.3] * 12, data=0.5)
    found = measured(run, 3, warm_up=2)
    assert (found.compute, found.stragglers, found.data) == (pytest.approx(0.3), 0.0, pytest.approx(0.5))
    assert found.waiting == pytest.approx(0.2)


def test_ranks_on_other_disks_count_by_what_node_0_was_told(tmp_path):
    run = RunDir(tmp_path)
    record(run, 0, [1.0] * 12, [0.4] * 12)
    far = RankState(rank=1, median_compute_seconds=0.6, data_seconds=0.1)
    nodes = (NodeState(node=0, ranks=(RankState(rank=0),)), NodeState(node=1, ranks=(far,)))
    run.live.write_text(json.dumps(LiveTable(run_id="this", t=1.0, nodes=nodes).to_message()))
    found = measured(run, 2, warm_up=2)
    assert found.ranks == 2 and found.data == pytest.approx(0.1)
    assert (found.compute, found.stragglers) == (pytest.approx(0.5), pytest.approx(0.1))


def test_own_work_that_is_not_known_is_not_made_up(tmp_path):
    run = RunDir(tmp_path)
    record(run, 0, [1.0] * 12, [None] * 12, data=0.25, device="cuda")
    found = measured(run, 1, warm_up=2)
    assert found.on_gpu and (found.compute, found.stragglers, found.waiting) == (None, None, 0.75)
    [one] = scaled([found])
    assert one.lost.compute is None and one.lost.communication == 0.0


def test_a_run_without_a_timed_step_says_so(tmp_path):
    run = RunDir(tmp_path)
    record(run, 0, [1.0] * 5, [0.5] * 5)
    with pytest.raises(AllranksError, match="no step after the 5 of the warm-up"):
        measured(run, 1, warm_up=5)


def size(nodes, seconds, *, tokens=None, ranks=None, compute=0.5, stragglers=0.0, data=0.0, on_gpu=False):
    rest = seconds - data - (compute or 0.0) - (stragglers or 0.0)
    return Measured(
        nodes=nodes,
        ranks=ranks or nodes,
        on_gpu=on_gpu,
        steps=20,
        tokens=1000.0 * nodes if tokens is None else tokens,
        seconds=seconds,
        all_seconds=seconds,
        fastest=seconds,
        slowest=seconds,
        data=data,
        compute=compute,
        stragglers=stragglers,
        waiting=rest,
        node_sends_bytes=1e6,
    )


def test_the_losses_add_up_to_what_is_missing():
    sizes = [
        size(1, 1.0, data=0.1),
        size(2, 1.25, data=0.1, stragglers=0.05),
        size(4, 2.0, compute=0.6, stragglers=0.2, data=0.3, tokens=3900.0),
    ]
    found = scaled(sizes)
    assert found[0].efficiency == found[0].speedup == 1.0
    assert found[1].efficiency == pytest.approx(0.8) and found[1].speedup == pytest.approx(1.6)
    assert found[2].efficiency == pytest.approx(0.5 * 3900 / 4000)
    for one in found:
        lost = one.lost
        parts = lost.compute + lost.communication + lost.data + lost.stragglers
        assert parts == pytest.approx(1 - one.efficiency)
    assert found[1].lost.communication == pytest.approx(0.2 / 1.25) and found[1].lost.stragglers == pytest.approx(0.04)


def test_a_kept_batch_is_ideal_where_a_step_takes_its_share_of_the_time():
    one, four = scaled([size(1, 2.0, tokens=4000.0, compute=1.6), size(4, 0.5, tokens=4000.0, compute=0.4)])
    assert four.efficiency == pytest.approx(1.0) and four.speedup == pytest.approx(4.0)
    assert all(abs(part) < 1e-9 for part in vars(four.lost).values())
    assert one.lost.communication == 0.0


def test_ranks_and_not_nodes_are_what_is_compared():
    sizes = [size(1, 1.0, ranks=8), size(2, 1.0, ranks=12, tokens=1500.0)]
    assert scaled(sizes)[1].efficiency == pytest.approx(1.0)


def test_the_plan_is_compared_size_by_size():
    sizes = [size(1, 1.0), size(2, 1.25), size(4, 2.0)]
    found = scaled(sizes, planned_seconds={1: 10.0, 4: 16.0})
    assert [one.planned_efficiency for one in found] == [1.0, None, pytest.approx(0.625)]


def test_on_a_gpu_forward_passes_stand_for_all_work():
    assert work_per_forward(on_gpu=False, trains_all=True, recomputes=True) == 1
    factor = work_per_forward(on_gpu=True, trains_all=True, recomputes=True)
    assert factor == 4 and work_per_forward(on_gpu=True, trains_all=False, recomputes=False) == 2
    found = scaled([size(1, 1.0, compute=0.2), size(2, 1.4, compute=0.25)], work_per_forward=factor)[1]
    assert found.lost.compute == pytest.approx(0.2 / 1.4) and found.lost.communication == pytest.approx(0.2 / 1.4)


def test_a_measurement_is_read_as_it_was_told():
    one = size(2, 1.25, compute=None, stragglers=None)
    assert Measured.from_message(json.loads(json.dumps(one.to_message()))) == one
    for wrong in ({"seconds": "1"}, {"ranks": 1.5}, {"on_gpu": 1}, {"data": None}):
        with pytest.raises(ValueError):
            Measured.from_message(one.to_message() | wrong)
    assert not math.isnan(one.tokens_per_second)
