"""What a rank that lost another one in a collective writes down of the last that it had entered."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from allranks.evidence import in_program
from allranks.evidence.in_program.allranks_answers import last_entered

FOLDER = str(Path(in_program.__file__).parent)
ALONE = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from allranks_answers import answer
answer(0, ".")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
for size in (1, 2, 1, 2, 1, 7):
    dist.all_reduce(torch.zeros(size))
if sys.argv[2] == "error":
    raise RuntimeError("Connection closed by peer")
"""


def entry(number, size, group="0", **more):
    own = {"time_created_ns": number, "process_group": [group, ""], "profiling_name": "gloo:all_reduce"}
    return {**own, "input_sizes": [size], "input_dtypes": ["Float"], **more}


def test_what_had_followed_before_is_told_beside_it():
    entries = [entry(number, size) for number, size in enumerate([[5], [], [5], [], [5], [9]])]
    entries += [entry(3.5, [3], group="1"), entry(9, [1], is_p2p=True)]
    assert last_entered([{"entries": entries}]) == {
        "entered": "all_reduce of 9 float",
        "times": 0,
        "usual": "all_reduce of scalar float",
        "usual_times": 2,
    }


@pytest.mark.parametrize("sizes", [[], [[5]]])
def test_the_first_of_all_has_followed_on_nothing(sizes):
    told = last_entered([{"entries": [entry(number, size) for number, size in enumerate(sizes)]}])
    assert told == ({"entered": "all_reduce of 5 float", "times": 0, "usual": "", "usual_times": 0} if sizes else None)


@pytest.mark.parametrize("how", ["error", "well"])
def test_a_program_that_an_error_ends_leaves_it_beside_its_log(tmp_path, how):
    env = {"ALLRANKS_LOG_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", ALONE, FOLDER, how], env=env, cwd=tmp_path, check=False)
    kept = tmp_path / "rank-00000.entered.json"
    assert kept.exists() == (how == "error")
    if how == "error":
        told = json.loads(kept.read_text())
        assert (told["entered"], told["usual"], told["usual_times"]) == (
            "all_reduce of 7 float",
            "all_reduce of 2 float",
            2,
        )
