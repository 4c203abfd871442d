"""Whether a rank's memory is enough, and how sure that is."""

from __future__ import annotations

from dataclasses import replace

from allranks.plan.fit import CPU_PROCESS_BYTES, Expected, doubt
from allranks.plan.hardware import find_device
from allranks.plan.memory import rank_memory
from tests.planned import FSDP2, expected


def test_a_verdict_is_certain_only_beyond_what_the_prediction_may_be_wrong_by():
    certain, device = expected(**FSDP2), find_device("h100-80gb")
    own, holds = certain.workload, rank_memory(certain.workload, device).total
    asked = {part: doubt(certain, device, part * holds) for part in (0.85, 0.95, 1.05, 1.2)}
    assert [found and found[0] for found in asked.values()] == ["cannot", "may not", "just", None]
    assert "parameters" in asked[0.85][1]
    # Rows that may be short may need less; and beside a CPU's memory there may be swap.
    assert doubt(Expected(own, 1), device, 0.85 * holds)[0] == "may not"
    assert "as long as sequence_len, 4,096 tokens" in doubt(Expected(own, 1), device, 0.85 * holds)[1]
    on_cpu = replace(own, on_cpu=True)
    assert doubt(Expected(on_cpu, own.tokens), None, 1e9)[0] == "may not"


def test_of_a_cpus_memory_the_process_takes_its_part():
    own = replace(expected(**FSDP2).workload, on_cpu=True)
    holds, (least, most) = rank_memory(own, None).total, CPU_PROCESS_BYTES
    asked = [holds + 0.9 * least, holds + 1.1 * least, 1.1 * holds + 1.1 * most]
    found = [doubt(Expected(own, own.tokens), None, there) for there in asked]
    assert [one and one[0] for one in found] == ["may not", "just", None]
    assert "of which its process takes 400.0 MB to 700.0 MB" in found[0][1]
