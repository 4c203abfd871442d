"""Anyone's Python program that can be asked what it does is, for itself, the program that it would be without that."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from allranks.evidence.hook import ANSWERS, hooked
from allranks.evidence.rank_memory import CannotAsk, RankProcess, flight_recorder, python_stacks, ranks_here
from tests.unit.evidence.hanging_ranks import DEADLINE_SECONDS

RUN = f"program-of-{os.getpid()}"
# No file of a user's has a name of these.
BUILT_IN = {"allranks_answers", "atexit", "faulthandler", "fcntl", "__future__", "encodings.utf_16_be"}
# What a program can see of what came before it.
LOOKS = """
import os, sys
before = sorted(sys.modules)
import json, signal, threading
handled = [number for number in range(1, 65) if number not in (32, 33) and signal.getsignal(number) not in
           (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)]
print(json.dumps({"modules": before, "path": sys.path, "environment": dict(os.environ), "handled": handled,
                  "own": getattr(sys.modules.get("sitecustomize"), "own", None), "threads": threading.active_count(),
                  "finders": [getattr(one, "__name__", type(one).__name__) for one in sys.meta_path]}))
"""
HANGS = """
import sys, time
if "torch" in sys.argv:
    import torch.distributed as dist
    dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=0, world_size=1)
    import torch
    dist.all_reduce(torch.ones(3))

def in_vain():
    print("ready", flush=True)
    time.sleep(1000)

in_vain()
"""


def _environment(folder: Path, **given: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**plain, "RANK": "3", "ALLRANKS_RUN_ID": RUN, ANSWERS: str(folder), "OMP_NUM_THREADS": "1", **given}


def _seen(environment: Mapping[str, str], *command: str) -> tuple[dict, str]:
    done = subprocess.run(
        command or (sys.executable, "-c", LOOKS), env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("given", [{}, {"PYTHONPATH": "{own}:/nowhere"}])
def test_the_program_sees_its_own_paths_variables_and_sitecustomize(given: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("own = 'of the user'")
    environment = _environment(tmp_path, **{name: value.format(own=tmp_path) for name, value in given.items()})
    plain, said_before = _seen({name: value for name, value in environment.items() if name != ANSWERS})
    seen, said = _seen(hooked(environment))
    assert seen["own"] == ("of the user" if given else plain["own"]) and said == said_before == ""
    assert set(seen["modules"]) - set(plain["modules"]) <= BUILT_IN
    assert set(plain["modules"]) <= set(seen["modules"])
    for name in ("path", "environment", "handled", "threads"):
        assert seen[name] == plain[name], name
    assert seen["finders"] == ["_WithTorch", *plain["finders"]]


def test_a_sitecustomize_that_fails_is_told_as_ever(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import no_such_module")
    environment = _environment(tmp_path, PYTHONPATH=str(tmp_path))
    assert _seen(hooked(environment))[1] == _seen(environment)[1] != ""


def test_without_being_asked_for_nothing_is_added(tmp_path: Path) -> None:
    environment = {**_environment(tmp_path), ANSWERS: ""}
    assert hooked(environment) == environment


@contextmanager
def _running(folder: Path, *command: str) -> Iterator[RankProcess]:
    (folder / "hangs.py").write_text(HANGS)
    words = [*(command or (sys.executable, "hangs.py"))]
    program = subprocess.Popen(words, env=hooked(_environment(folder)), cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None and program.stdout.readline() == "ready\n"
        (rank,) = ranks_here(run_id=RUN)
        yield rank
    finally:
        for one in ranks_here(run_id=RUN):
            os.kill(one.pid, 9)
        program.kill()
        program.communicate()


def _deadline() -> float:
    return time.monotonic() + DEADLINE_SECONDS


@pytest.mark.parametrize("command", [(), ("sh", "-c", f"'{sys.executable}' hangs.py; true")], ids=["python", "shell"])
def test_a_program_tells_its_stacks_and_goes_on(tmp_path: Path, command: tuple[str, ...]) -> None:
    with _running(tmp_path, *command) as rank:
        assert rank.rank == 3 and rank.said is not None and rank.said.output_dir == str(tmp_path)
        for _ in range(2):
            text = python_stacks(rank, deadline=_deadline())
            assert text.count("in in_vain") == 1 and text.count("Thread 0x") + text.count("Current thread") == 1
        with pytest.raises(CannotAsk, match=r"it has not loaded torch\.distributed"):
            flight_recorder(rank, deadline=_deadline())
        assert ranks_here(output_dir=tmp_path) == [rank]


def test_a_program_with_torch_tells_its_flight_recorder(tmp_path: Path) -> None:
    with _running(tmp_path, sys.executable, "hangs.py", "torch", str(tmp_path / "store")) as rank:
        told = flight_recorder(rank, deadline=_deadline())
        assert told["groups"] == {"0": {"desc": "default_pg", "ranks": [0]}}
        assert [one["input_sizes"] for dump in told["recorders"] for one in dump["entries"]] == [[[3]]]
