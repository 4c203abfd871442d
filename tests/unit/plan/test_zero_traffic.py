"""What ZeRO moves between nodes, against sums done by hand."""

import pytest

from allranks.plan.zero import slow_link_warning, traffic

# 7 B parameters in two bytes, on two nodes of 8.
MODEL = {"parameter_bytes": 14e9, "gradient_bytes": 14e9, "num_ranks": 16, "num_nodes": 2, "num_micro_batches": 1}


def test_stage_3_moves_the_model_three_times_a_micro_batch_and_stage_2_twice_a_step():
    once = 14e9 * 15 / 16
    found = traffic(**MODEL)
    assert found.zero3 == pytest.approx(3 * once) and found.zero2 == pytest.approx(2 * once)
    four = traffic(**{**MODEL, "num_micro_batches": 4})
    assert four.zero3 == pytest.approx(12 * once) and four.zero2 == pytest.approx(5 * once)


def test_lora_scatters_little_but_gathers_everything():
    found = traffic(**{**MODEL, "gradient_bytes": 1e8})
    assert found.zero3 == pytest.approx((28e9 + 1e8) * 15 / 16) and found.zero2 == pytest.approx(2e8 * 15 / 16)


def test_copies_within_a_node_save_the_second_gathering_and_one_node_sends_nothing():
    assert traffic(**MODEL, hpz=8).zero3 == pytest.approx(28e9 * 15 / 16)
    assert traffic(**MODEL, hpz=16) == traffic(**MODEL)  # these copies lie on both nodes
    assert traffic(**{**MODEL, "num_nodes": 1}).zero3 == 0


def test_the_warning_names_seconds_and_what_would_be_less():
    text = slow_link_warning(traffic(**MODEL), num_nodes=2, local_ranks=8, hpz=1)
    assert "39.4 GB in every step" in text and "32 s at 10 Gbit/s" in text and "0.79 s at 400 Gbit/s" in text
    assert "ZeRO-2 would move 26.2 GB; zero_hpz_partition_size: 8 saves" in text
