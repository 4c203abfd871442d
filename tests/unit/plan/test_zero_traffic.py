"""What ZeRO moves between nodes, against sums done by hand."""

import pytest

from allranks.plan.zero import slow_link_warning, traffic

# 7 B parameters in two bytes, on two nodes of 8.
MODEL = {"parameter_bytes": 14e9, "gradient_bytes": 14e9, "num_ranks": 16, "num_nodes": 2, "num_micro_batches": 1}


def test_both_move_the_model_three_times_a_micro_batch_but_stage_2_gathers_once():
    once = 14e9 * 15 / 16
    found = traffic(**MODEL)
    # DeepSpeed's stage 2 reduces by an all-reduce, which costs twice what a reduce-scatter does.
    assert found.zero3 == pytest.approx(3 * once) and found.zero2 == pytest.approx(3 * once)
    four = traffic(**{**MODEL, "num_micro_batches": 4})
    assert four.zero3 == pytest.approx(12 * once) and four.zero2 == pytest.approx(9 * once)


def test_lora_scatters_little_but_gathers_everything():
    found = traffic(**{**MODEL, "gradient_bytes": 1e8})
    assert found.zero3 == pytest.approx((28e9 + 1e8) * 15 / 16) and found.zero2 == pytest.approx(3e8 * 15 / 16)


def test_copies_within_a_node_leave_one_gathering_a_step_and_one_node_sends_nothing():
    four = {**MODEL, "num_micro_batches": 4}
    assert traffic(**four, hpz=8).zero3 == pytest.approx((1 + 4) * 14e9 * 15 / 16)
    assert traffic(**four, hpz=16) == traffic(**four)  # these copies lie on both nodes
    assert traffic(**{**MODEL, "num_nodes": 1}).zero3 == 0


def test_the_warning_names_seconds_and_only_what_would_be_less():
    lora = {**MODEL, "gradient_bytes": 1e8}
    text = slow_link_warning(traffic(**MODEL), num_nodes=2, local_ranks=8, with_hpz=traffic(**MODEL, hpz=8).zero3)
    assert "39.4 GB in every step" in text and "32 s at 10 Gbit/s" in text and "0.79 s at 400 Gbit/s" in text
    assert text.endswith("does not hide it. zero_hpz_partition_size: 8 would move 26.2 GB")
    assert "ZeRO-2 would move 281.2 MB" in slow_link_warning(traffic(**lora), num_nodes=2, local_ranks=8, with_hpz=None)
