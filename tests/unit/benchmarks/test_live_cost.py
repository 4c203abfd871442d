"""The cost of watching, out of slots of the clock that are watched more and less."""

import math
import random

from benchmarks.live_cost import Step, blocks_of, cpu_at, estimate, lost_speed, speed_at, used_cpu
from benchmarks.live_doses import DOSES, dose_of, next_look

FIRST = 1_790_000_000  # a slot of a second with which a block begins
COST, CPU = 0.003, 0.004


def run_of(num_blocks: int, noise: float) -> tuple[list[Step], dict[int, float]]:
    """Steps of a twentieth of a second, slower by the dose, by a trend, and by chance; the launcher's cores by slot."""
    dice, steps, cpu = random.Random(3), [], {}
    for slot in range(FIRST, FIRST + num_blocks * len(DOSES)):
        cpu[slot] = 0.01 + CPU * dose_of(slot)
        speed = 2000 * (1 - COST) ** dose_of(slot) * dice.gauss(1, noise) * (1 - (slot - FIRST) / 4000)
        begin = slot - 0.02
        while begin < slot + 1:
            steps.append(Step(len(steps) + 1, begin, end := begin + 100 / speed, 100, None))
            begin = end
    return steps, cpu


def test_the_slope_over_the_doses_is_the_cost_and_its_interval_is_narrower_than_a_per_cent() -> None:
    blocks = blocks_of(*run_of(60, noise=0.05), slot=1.0)
    assert len(blocks) == 60 and all(sorted(slot.dose for slot in block) == list(DOSES) for block in blocks)
    cost = estimate(blocks, lost_speed)
    assert cost.low < -math.log(1 - COST) < cost.high
    assert cost.high - cost.low < 0.005
    cpu = estimate(blocks, used_cpu)
    assert abs(cpu.value - CPU) < 1e-9 and cpu.high - cpu.low < 1e-9
    assert estimate(blocks, speed_at(20)).value < estimate(blocks, speed_at(1)).value < 1.02
    assert estimate(blocks, cpu_at(0)).value == 0.01


def test_a_block_with_a_slot_that_is_not_known_is_left_out() -> None:
    steps, cpu = run_of(3, noise=0.0)
    del cpu[FIRST + 5]
    assert len(blocks_of(steps, cpu, slot=1.0)) == 2


def test_each_slot_has_the_looks_of_its_dose_evenly_and_none_at_its_ends() -> None:
    for slot in range(FIRST, FIRST + 8):
        now, looks = float(slot), []
        while now < slot + 1:
            now, is_look = next_look(now, 1.0)
            looks += [now - slot] if is_look else []
        num_looks = dose_of(slot)
        assert [round(one, 4) for one in looks] == [round((each + 0.5) / num_looks, 4) for each in range(num_looks)]
