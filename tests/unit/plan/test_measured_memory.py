"""Predicted memory against memory that was measured: by others on GPUs, and of real ranks on this CPU."""

from __future__ import annotations

import statistics

import pytest

from benchmarks.peak_cases import EVALUATED, OF_EXPERTS, VARIANTS, Case, write_models
from benchmarks.plan_memory_rows import error
from benchmarks.plan_peaks import measured
from benchmarks.plan_rows import rows


def test_rows_of_others_are_met_with_one_set_of_constants():
    anchors = [row for row in rows() if row.is_anchor and row.gigabytes is not None]
    unseen = [abs(error(row)) for row in anchors if not row.fits]
    assert len(anchors) == 30 and len(unseen) == 15
    assert statistics.median(unseen) < 0.03
    assert max(abs(error(row)) for row in anchors) < 0.10


def test_rows_of_several_gpus_are_met_without_having_been_fitted():
    shared = [abs(error(row)) for row in rows() if row.gigabytes is not None and row.workload.num_ranks > 1]
    assert len(shared) == 9 and statistics.median(shared) < 0.03 and max(shared) < 0.10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("models")
    write_models(made, only="qwen3")
    write_models(made, only="deepseek_v3")
    return made


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_real_process_allocates_what_is_predicted(folder, variant):
    case = Case("qwen3", "one process", variant, {**VARIANTS[variant], "sequence_len": 96})
    assert case.predicted(folder) == pytest.approx(measured(case, folder, rank=0), rel=0.03)


@pytest.mark.parametrize("keys", [VARIANTS["LoRA"], OF_EXPERTS[0][2]], ids=["linear layers", "experts"])
def test_an_adapter_of_a_mixture_takes_what_is_predicted(folder, keys):
    """One of experts keeps a copy of all of them; linear layers that are named as experts are none."""
    case = Case("deepseek_v3", "one process", "", {**keys, "sequence_len": 96})
    there = measured(case, folder, rank=0)
    assert 0.97 * there < case.predicted(folder) < 1.1 * there


@pytest.mark.parametrize(("strategy", "variant", "keys"), EVALUATED, ids=lambda value: str(value)[:40])
def test_larger_micro_batches_of_an_evaluation_take_what_is_predicted(folder, strategy, variant, keys):
    case = Case("qwen3", strategy, variant, {**keys, "sequence_len": 96})
    there = measured(case, folder, rank=0)
    trains = Case("qwen3", strategy, variant, {**keys, "sequence_len": 96, "eval_batch_size": 1}).predicted(folder)
    assert trains < 0.9 * there
    assert 0.97 * there < case.predicted(folder) < 1.1 * there
