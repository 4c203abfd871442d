"""What is kept of a machine: measured rates, and what earlier runs took."""

import json
import socket
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from allranks.cluster.memory import Limit
from allranks.errors import AllranksError
from allranks.plan import this_cpu as of_cpu
from allranks.plan.calibrate import calibrate
from allranks.plan.calibration import PAIRS, Calibration
from allranks.plan.counted import num_parameters
from allranks.plan.hardware import find_device, find_link
from allranks.plan.kept_calibration import keep, load, record_run
from allranks.plan.model_shape import shape_of
from allranks.plan.step_traffic import Layout
from allranks.plan.this_cpu import this_cpu
from allranks.plan.time import step_time
from allranks.plan.workload import ElementBytes, RankMemory, Workload

SHAPE = shape_of(
    {
        "model_type": "llama",
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 768,
        "vocab_size": 4000,
    }
)
TINY = Workload(
    name="one process",
    shape=SHAPE,
    method="full",
    layout=Layout("ddp"),
    num_ranks=1,
    ranks_per_node=1,
    num_trained=num_parameters(SHAPE),
    micro_batch_size=2,
    num_micro_batches=2,
    tokens=256,
    element=ElementBytes(compute=4, frozen=4, trained=4, gradient=4, master=0, state=8),
    on_cpu=True,
)
MEASURED = Calibration(
    host="here",
    device="cpu",
    products=((64.0, 20e9), (512.0, 80e9)),
    small=((1e5, 40e9), (1e7, 10e9)),
    attention=((64.0, 10e9), (1024.0, 40e9)),
    call_seconds=50e-6,
    logits=((1e7, 6e9), (6e7, 4e9)),
    optimizer=9e9,
    kernel_seconds=5e-6,
)


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path)}


def test_what_is_kept_comes_back(cache: dict[str, str]) -> None:
    file = keep(MEASURED, cache)
    assert file.is_relative_to(cache["XDG_CACHE_HOME"])
    assert load("cpu", "here", cache) == MEASURED
    assert load("cpu", "elsewhere", cache) is None
    assert load("h100-80gb", "here", cache) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 0}', '{"version": 3, "host": 3}'])
def test_a_file_that_cannot_be_read_is_none(cache: dict[str, str], content: str) -> None:
    keep(MEASURED, cache).write_text(content)
    assert load("cpu", "here", cache) is None


DAMAGED = [
    {"num_ranks": 0},
    {"when": "yesterday"},
    {"kernel_seconds": float("nan")},
    {"cold": -1.0},
    {"spread": None},
    {"small": [[1e5, 0.0], [1e7, 10e9]]},
    *({"runs": [{name: value}]} for name in ("predicted", "measured", "tokens") for value in ("x", 0, float("inf"))),
    {"runs": [{"same": 5}]},
]


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_file_with_values_that_nothing_measures_is_none(cache: dict[str, str], damage: dict[str, Any]) -> None:
    keep(replace(MEASURED, host=socket.gethostname()), cache)
    record_run(TINY, "cpu", num_nodes=1, predicted=1.0, measured=1.3, environment=cache)
    [file] = Path(cache["XDG_CACHE_HOME"]).rglob("*.json")
    read = json.loads(file.read_text())
    if "runs" in damage:
        damage = {"runs": [{**read["runs"][0], **damage["runs"][0]}]}
    assert load("cpu", environment=cache) is not None
    file.write_text(json.dumps({**read, **damage}))
    assert load("cpu", environment=cache) is None


def test_a_user_without_a_home_plans_and_trains_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert load("cpu", environment={}) is None
    record_run(TINY, "cpu", num_nodes=1, predicted=1.0, measured=1.3, environment={})
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(AllranksError, match=r"XDG_CACHE_HOME: user [0-9]+ has no home"):
        calibrate(0.0)


def test_a_relative_path_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert keep(MEASURED, {"XDG_CACHE_HOME": "cache"}).is_relative_to(tmp_path / ".cache")


def test_runs_that_end_at_once_are_all_kept(cache: dict[str, str]) -> None:
    def ends(number: int) -> None:
        for _ in range(8):
            record_run(TINY, "cpu", num_nodes=1, predicted=1.0, measured=1.0 + number, environment=cache)

    children = [get_context("fork").Process(target=ends, args=(number,)) for number in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    known = load("cpu", environment=cache)
    assert known is not None and len(known.runs) == 32


def test_runs_that_went_past_their_first_steps_count_before_shorter_ones(cache: dict[str, str]) -> None:
    other, lora = replace(TINY, micro_batch_size=4), replace(TINY, method="lora")
    sizes = {"predicted_memory": 1e9}
    for steps, measured in ((100, 1.2), (8, 1.9), (8, 1.9)):
        memory = {**sizes, "measured_memory": measured * 1e9}
        record_run(TINY, "cpu", num_nodes=1, predicted=1.0, measured=measured, steps=steps, environment=cache, **memory)
    record_run(lora, "cpu", num_nodes=1, predicted=1.0, measured=1.5, steps=8, environment=cache)
    known = load("cpu", environment=cache)
    assert known is not None
    assert known.step_seconds(TINY, 9.0) == pytest.approx(1.2)
    assert known.step_seconds(other, 1.0) == pytest.approx(1.2)
    assert known.corrected_memory(MEMORY, TINY).total == pytest.approx(MEMORY.total + 0.2e9)
    assert known.step_seconds(lora, 9.0) == pytest.approx(1.5), "a short one says more than none"


def test_a_rank_has_its_part_of_what_the_cgroup_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_cpu, "memory_limit", lambda: Limit(2**31, "the cgroup's limit"))
    assert this_cpu(2).memory_bytes == 2**30


def test_a_file_of_another_version_is_measured_anew(cache: dict[str, str]) -> None:
    file = keep(MEASURED, cache)
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 1}))
    assert load("cpu", "here", cache) is None


def test_measured_rates_take_the_place_of_guesses() -> None:
    cpu = this_cpu()
    fast = replace(MEASURED, products=[(size, 10 * rate) for size, rate in MEASURED.products])
    slow, quick = (step_time(TINY, cpu, None, known) for known in (MEASURED, fast))
    assert quick.matmul < slow.matmul / 4
    assert quick.memory_bound == slow.memory_bound
    # A CPU starts its operations itself: none of that is hidden.
    assert slow.overhead > 0


def test_ranks_share_a_cpu() -> None:
    one = step_time(TINY, this_cpu(), None, MEASURED)
    two = step_time(replace(TINY, num_ranks=2, ranks_per_node=2), this_cpu(2), None, MEASURED)
    assert two.matmul == pytest.approx(2 * one.matmul, rel=0.01)


def test_a_calibration_of_another_type_of_numbers_says_nothing() -> None:
    half = replace(TINY, on_cpu=False, element=replace(TINY.element, compute=2))
    h100 = find_device("h100")
    assert step_time(half, h100, None, MEASURED) == step_time(half, h100)


def test_the_same_workload_takes_what_it_took(cache: dict[str, str]) -> None:
    for measured in (1.0, 1.2, 1.1):
        record_run(TINY, "cpu", num_nodes=1, predicted=0.5, measured=measured, environment=cache)
    known = load("cpu", environment=cache)
    assert known is not None and not known.is_measured
    assert known.num_runs(TINY) == 3
    found = step_time(TINY, this_cpu(), None, known)
    assert found.total == pytest.approx(1.1)
    assert found.matmul > 0


def test_of_another_workload_it_is_known_how_wrong_predictions_were(cache: dict[str, str]) -> None:
    record_run(TINY, "cpu", num_nodes=1, predicted=1.0, measured=1.3, environment=cache)
    known = load("cpu", environment=cache)
    assert known is not None
    other = replace(TINY, micro_batch_size=4)
    plain = step_time(other, this_cpu(), None, known.without_runs()).total
    assert step_time(other, this_cpu(), None, known).total == pytest.approx(1.3 * plain)
    # A run over several nodes also waited for links that this one may not have.
    record_run(replace(TINY, num_ranks=2), "cpu", num_nodes=2, predicted=1.0, measured=9.0, environment=cache)
    known = load("cpu", environment=cache)
    assert known is not None and known.step_seconds(other, 1.0) == pytest.approx(1.3)


def test_runs_of_the_same_method_count_before_others(cache: dict[str, str]) -> None:
    adapted = {"layers.0.q_proj": (256, 256)}
    lora = replace(TINY, method="lora", lora_rank=8, adapted=adapted, num_trained=2 * 8 * 256)
    for of, measured in ((TINY, 1.4), (lora, 1.1)):
        record_run(of, "cpu", num_nodes=1, predicted=1.0, measured=measured, environment=cache)
    known = load("cpu", environment=cache)
    assert known is not None
    other = replace(SHAPE, num_layers=9)
    assert known.step_seconds(replace(TINY, shape=other), 1.0) == pytest.approx(1.4)
    assert known.step_seconds(replace(lora, shape=other), 1.0) == pytest.approx(1.1)
    assert known.step_seconds(replace(lora, shape=other, method="qlora"), 1.0) == pytest.approx(1.25), "all, else"


def test_what_was_predicted_before_a_new_calibration_corrects_nothing_after_it(cache: dict[str, str]) -> None:
    record_run(TINY, "cpu", num_nodes=1, predicted=1.0, measured=1.3, environment=cache)
    known = load("cpu", environment=cache)
    assert known is not None
    anew = replace(known, when=known.runs[0].when + 1)
    other = replace(TINY, micro_batch_size=4)
    assert known.step_seconds(other, 1.0) == pytest.approx(1.3)
    assert anew.step_seconds(other, 1.0) == 1.0
    assert anew.step_seconds(TINY, 1.0) == pytest.approx(1.3), "what a workload took it took"


MEMORY = RankMemory(0.5e9, 0.1e9, 0.2e9, 0.1e9, 0.05e9, 0.03e9, reserve=0.02e9, host=3e9)


def test_memory_of_a_gpu_is_corrected_by_the_same_workload_only(cache: dict[str, str]) -> None:
    ours, sizes = replace(TINY, on_cpu=False), {"predicted_memory": 1e9, "measured_memory": 1.25e9}
    record_run(ours, "h100-80gb", num_nodes=1, predicted=1.0, measured=1.0, environment=cache, **sizes)
    known = load("h100-80gb", environment=cache)
    assert known is not None
    for one in (ours, replace(ours, tokens=200)):
        corrected = known.corrected_memory(MEMORY, one)
        assert corrected.total == pytest.approx(1.25 * MEMORY.total)
        assert corrected.optimizer == pytest.approx(1.25 * MEMORY.optimizer) and corrected.host == MEMORY.host
    assert known.corrected_memory(MEMORY, replace(ours, tokens=100)) == MEMORY


def test_what_a_process_holds_on_a_cpu_is_known_from_any_run(cache: dict[str, str]) -> None:
    ours, other = TINY, replace(TINY, micro_batch_size=7)
    for of, measured in ((ours, 1.5e9), (replace(ours, micro_batch_size=3), 1.7e9), (replace(ours, tokens=900), 1.8e9)):
        sizes = {"predicted_memory": 1e9, "measured_memory": measured}
        record_run(of, "cpu", num_nodes=1, predicted=1.0, measured=1.0, environment=cache, **sizes)
    record_run(ours, "cpu", num_nodes=1, predicted=1.0, measured=1.0, environment=cache)  # of memory it knows nothing
    known = load("cpu", environment=cache)
    assert known is not None
    assert known.corrected_memory(MEMORY, other) == replace(MEMORY, reserve=MEMORY.reserve + 0.7e9), "all, as usual"
    assert known.corrected_memory(MEMORY, ours).total == pytest.approx(MEMORY.total + 0.5e9), "its own"
    assert known.corrected_memory(MEMORY, replace(other, method="lora")).reserve > MEMORY.reserve, "of another method"
    of_lora = {"predicted_memory": 1e9, "measured_memory": 1.9e9}
    record_run(
        replace(ours, method="lora"), "cpu", num_nodes=1, predicted=1.0, measured=1.0, environment=cache, **of_lora
    )
    known = load("cpu", environment=cache)
    assert known is not None
    assert known.corrected_memory(MEMORY, replace(other, method="lora")).reserve == MEMORY.reserve + 0.9e9
    assert known.corrected_memory(MEMORY, other).reserve == MEMORY.reserve + 0.7e9
    assert known.without_runs().corrected_memory(MEMORY, ours) == MEMORY


def test_a_rank_on_a_cpu_that_held_less_than_its_tensors_is_predicted_to_hold_less(cache: dict[str, str]) -> None:
    ours, sizes = TINY, {"predicted_memory": 1e9, "measured_memory": 0.9e9}
    record_run(ours, "cpu", num_nodes=1, predicted=1.0, measured=1.0, environment=cache, **sizes)
    known = load("cpu", environment=cache)
    assert known is not None
    corrected = known.corrected_memory(MEMORY, ours)
    assert corrected.total == pytest.approx(0.9 * MEMORY.total) and corrected.reserve >= 0


def test_a_name_and_a_way_to_get_there_decide_nothing(cache: dict[str, str]) -> None:
    record_run(TINY, "cpu", num_nodes=1, predicted=1.0, measured=1.0, environment=cache)
    known = load("cpu", environment=cache)
    assert known is not None
    assert known.num_runs(replace(TINY, name="DDP", is_own=True, changes={"micro_batch_size": 2})) == 1
    assert known.num_runs(replace(TINY, recomputes=True)) == 0


def test_a_cache_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "allranks").write_text("a file where a folder should be")
    record_run(TINY, "cpu", num_nodes=1, predicted=1.0, measured=1.0, environment={"XDG_CACHE_HOME": str(tmp_path)})


def test_what_could_not_be_kept_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "allranks").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("allranks.plan.calibrate.measure_devices", None)
    with pytest.raises(AllranksError, match=f"^--calibrate: {tmp_path}/.* cannot be written .*XDG_CACHE_HOME"):
        calibrate(0.05)


def test_nothing_is_kept_of_a_run_without_a_prediction(cache: dict[str, str]) -> None:
    record_run(TINY, "cpu", num_nodes=1, predicted=0.0, measured=1.0, environment=cache)
    assert load("cpu", environment=cache) is None


def test_ranks_of_a_node_are_measured_together_with_what_is_between_them(
    cache: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", cache["XDG_CACHE_HOME"])
    measured = calibrate(0.05, num_ranks=2)
    assert measured.is_measured and measured.num_ranks == 2
    assert all(rate > 0 for name in PAIRS for _, rate in getattr(measured, name))
    assert all(getattr(measured, name) for name in PAIRS) and measured.num_threads >= 1
    assert measured.within is not None and measured.within.bytes_per_second > 1e6
    assert 0 < measured.within.latency_seconds < 1
    assert load("cpu") == measured
    ddp = replace(TINY, num_ranks=2, ranks_per_node=2)
    assert step_time(ddp, this_cpu(2), None, measured).communication > 0


def test_short_documents_take_what_was_measured_of_short_ones() -> None:
    """1024 tokens of 16 documents: a sixteenth of the pairs, at the rate and with the calls of documents so short."""
    row = replace(TINY, micro_batch_size=1, tokens=1024)
    whole = step_time(row, this_cpu(), None, MEASURED)
    packed = step_time(replace(row, documents=[(64.0, 16.0)]), this_cpu(), None, MEASURED)
    pairs = (
        TINY.num_micro_batches * 4 * 2 * 4 * (64 + 64) / 2
    )  # layers, 2 operations, heads, their numbers; half of all
    calls = TINY.num_micro_batches * 4 * 50e-6
    assert whole.attention == pytest.approx(3.5 * pairs * 1024**2 / 40e9 + calls)
    assert packed.attention == pytest.approx(3.5 * pairs * 16 * 64**2 / 10e9 + 16 * calls)
    assert packed.matmul == whole.matmul


def test_under_a_mask_documents_take_as_long_as_a_whole_row() -> None:
    packed = replace(TINY, micro_batch_size=1, documents=[(64.0, 4.0)])
    masked, apart = (step_time(replace(packed, masks_row=masks), this_cpu()).attention for masks in (True, False))
    # All pairs of 256 tokens against half of those of four documents, which are taken at half the rate.
    assert masked == pytest.approx(4 * apart, rel=0.01)
    alone = replace(packed, documents=[])
    assert step_time(replace(alone, masks_row=True), this_cpu()) == step_time(alone, this_cpu())


def test_ranks_of_one_node_send_with_the_cores_that_they_compute_with() -> None:
    ddp = replace(TINY, num_ranks=2, ranks_per_node=2, bucket_bytes=2**20)
    alone = step_time(ddp, this_cpu(2), None, MEASURED)
    assert alone.exposed == alone.communication > 0
    far = step_time(replace(ddp, ranks_per_node=1), this_cpu(), find_link("10gbit"), MEASURED)
    assert far.exposed < far.communication


def test_a_thin_product_takes_what_was_measured_of_thin_ones() -> None:
    """An adapter of rank 8 beside 256 x 256: slower than a cube of as many operations."""
    adapted = {f"{layer}.q_proj": (256, 256) for layer in range(4)}
    lora = replace(TINY, method="lora", lora_rank=8, adapted=adapted, num_trained=4 * 2 * 8 * 256)
    thin = replace(MEASURED, thin=((8.0, 4e9), (128.0, 60e9)))
    cube, known = (step_time(lora, this_cpu(), None, one).matmul for one in (MEASURED, thin))
    rank = (8 * 256 * 512) ** (1 / 3)
    of_cube = 20e9 + (80e9 - 20e9) * (rank - 64) / (512 - 64)
    operations = TINY.num_micro_batches * 4 * 3 * 2 * (2 * 512 * 8 * 256)
    assert known - cube == pytest.approx(operations * (1 / 4e9 - 1 / of_cube), rel=1e-6)


def test_a_product_waits_for_what_no_cache_holds() -> None:
    """Of each of a matrix's three products it is read or written, and a third of what goes in and comes out."""
    known = replace(MEASURED, cold=4e9)
    one = replace(TINY, num_micro_batches=1)
    near, far = (step_time(one, this_cpu(), None, each).matmul for each in (MEASURED, known))
    tokens, hidden, wide = 512, 256, 768
    matrices = [(hidden, hidden)] * 4 + [(hidden, wide)] * 3
    numbers = 4 * sum(rows * columns + tokens * (rows + columns) / 3 for rows, columns in matrices)
    numbers += SHAPE.vocabulary * hidden + tokens * one.labelled * (SHAPE.vocabulary + hidden) / 3
    assert far - near == pytest.approx(3 * 4 * numbers / 4e9, rel=0.02)


def test_large_gradients_come_fresh_from_the_system() -> None:
    large = replace(TINY.shape, vocabulary=2**20)
    fresh = replace(MEASURED, fresh_seconds=1e-9)
    both = [step_time(replace(TINY, shape=large), this_cpu(), None, one).memory_bound for one in (MEASURED, fresh)]
    ends, chunks = 3 * 4 * 2**20 * 256, 4 * 2**20 * 512  # each chunk's logits: 26 labels, of 512
    seconds = (both[1] - both[0]) / TINY.num_micro_batches
    assert seconds == pytest.approx((ends + chunks) * 1e-9, rel=0.05)
    small = [step_time(TINY, this_cpu(), None, one).memory_bound for one in (MEASURED, fresh)]
    assert small[0] == small[1]


def test_ddp_copies_gradients_into_buckets() -> None:
    alone, two = TINY, replace(TINY, num_ranks=2, ranks_per_node=2)
    copied = step_time(two, this_cpu(2), None, replace(MEASURED, num_ranks=2)).memory_bound
    rate = min(rate for _, rate in MEASURED.small)
    expected = 2 * 4 * TINY.num_trained / rate
    assert copied - step_time(alone, this_cpu(), None, MEASURED).memory_bound == pytest.approx(expected, rel=0.3)


def test_pythons_part_of_recomputing_is_a_cpus_time() -> None:
    plain, again = (step_time(replace(TINY, recomputes=one), this_cpu(), None, MEASURED) for one in (False, True))
    layers = TINY.shape.num_layers * TINY.num_micro_batches
    assert again.overhead - plain.overhead > 100 * layers * MEASURED.kernel_seconds


def test_a_pair_of_tokens_takes_as_long_in_every_head_and_products_as_heads_are_wide() -> None:
    """Heads of 64 numbers at 40 Gflop/s, of 128 at 50: 1.6 and 2.56 ns for a pair, so 2.08 for heads of 96."""
    known = replace(MEASURED, call_seconds=0.0, wide_attention=((1024.0, 50e9),))
    row = replace(TINY, micro_batch_size=1, tokens=1024)
    pairs = 3.5 * 4 * TINY.num_micro_batches * 4 * 4 * 1024**2 / 2  # operations, layers, heads
    for numbers, nanoseconds in ((64, 1.6), (128, 2.56), (96, 2.08), (256, 4.48)):
        shape = replace(SHAPE, head_dim=numbers, value_head_dim=numbers)
        found = step_time(replace(row, shape=shape), this_cpu(), None, known).attention
        assert found == pytest.approx(pairs * nanoseconds * 1e-9)
    # Where wider heads are no slower in all, narrower ones are no quicker than in proportion.
    wide = replace(known, wide_attention=((1024.0, 80e9),))
    narrow = replace(row, shape=replace(SHAPE, head_dim=32, value_head_dim=32))
    assert step_time(narrow, this_cpu(), None, wide).attention == pytest.approx(pairs * 1.6e-9)


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("allranks.cluster.cores.usable_cores", lambda: 4)
    monkeypatch.setattr("allranks.plan.calibration.usable_cores", lambda: 4)


@pytest.mark.usefixtures("four_cores")
def test_rates_are_in_proportion_to_the_cores_that_a_rank_has() -> None:
    known = replace(MEASURED, num_threads=1, cores=1.0)
    took = {
        (ranks, threads): step_time(
            replace(TINY, num_ranks=ranks, ranks_per_node=ranks, num_threads=threads), this_cpu(ranks), None, known
        )
        for ranks, threads in ((1, 1), (1, 2), (2, 1), (4, 2), (8, 1))
    }
    one = took[1, 1]
    for of, times in (((1, 2), 0.5), ((2, 1), 1.0), ((4, 2), 1.0), ((8, 1), 2.0)):
        assert took[of].matmul == pytest.approx(times * one.matmul)
    # What is started one after the other is not quicker with more threads, and slower only where cores are shared.
    assert took[1, 2].overhead == took[2, 1].overhead == one.overhead
    assert took[8, 1].overhead == pytest.approx(2 * one.overhead)
    assert known.is_of(1, 1) and not known.is_of(1, 2) and not known.is_of(2, 1)


def test_a_run_with_other_threads_says_nothing_of_how_long_this_one_takes(cache: dict[str, str]) -> None:
    record_run(replace(TINY, num_threads=1), "cpu", num_nodes=1, predicted=1.0, measured=9.0, environment=cache)
    known = load("cpu", environment=cache)
    assert known is not None
    assert (known.num_runs(replace(TINY, num_threads=1)), known.num_runs(replace(TINY, num_threads=2))) == (1, 0)
