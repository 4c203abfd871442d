"""Exit codes and last words of a run with Ray."""

import signal

import pytest

from allranks.config.load import resolve_mapping
from allranks.doctor import causes
from allranks.findings import Finding
from allranks.launch.ray_train.coordinator import RankExit
from allranks.launch.ray_train.engine import BEFORE_TRAINING
from allranks.launch.ray_train.plan import Fitted
from allranks.launch.ray_train.verdict import conclude
from allranks.launch.ray_train.watch import Watched
from allranks.observe import RunDir

CFG = resolve_mapping(
    {"base_model": "m", "learning_rate": 1e-4, "datasets": [{"path": "d.jsonl", "type": "alpaca"}], "use_ray": True}
)
DONE = Fitted(metrics={"loss": 1.0})
GAVE_UP = Fitted(error="WorkerGroupError: training failed\nlast words of Ray")


def exits(*codes):
    return [
        RankExit(1, rank, "node0", code, "" if code in (0, 75) else "its message") for rank, code in enumerate(codes)
    ]


def died(*what):
    return [Finding(causes.NODE_LOST, one) for one in what]


@pytest.mark.parametrize(
    ("watched", "code", "said"),
    [
        (Watched(DONE, exits=exits(0, 0)), 0, ""),
        (Watched(DONE, exits=exits(0, 75)), 75, ""),
        (Watched(DONE, signal=signal.SIGINT, exits=exits(75, 75)), 75, ""),
        (Watched(GAVE_UP, exits=exits(0, 1), failures=died("rank 1 died"), committed=40), 1, "step 40 is saved"),
        (Watched(GAVE_UP, failures=died("rank 1 died", "rank 0 too")), 1, "error: rank 1 died\n  then: rank 0 too"),
        (Watched(GAVE_UP), 1, "last words of Ray"),
        (Watched(Fitted(error="ModuleNotFoundError: No module named 'allranks'")), 1, "not installed on every node"),
        (Watched(GAVE_UP, exits=exits(2, -9), failures=died("x")), 2, "error: rank 0 on node0 failed: its message"),
        (Watched(stopped="Ray did not start all workers"), 1, "error: Ray did not start"),
        (Watched(signal=signal.SIGTERM), 75, "SIGTERM: stopped before anything was saved"),
        (Watched(DONE, signal=signal.SIGTERM, exits=exits(75, 1)), 75, "SIGTERM: stopped before anything was saved"),
        (
            Watched(DONE, signal=signal.SIGTERM, exits=[RankExit(1, 0, "node0", 75, BEFORE_TRAINING)], committed=20),
            75,
            "SIGTERM: step 20 is saved in run",
        ),
        (Watched(signal=signal.SIGTERM, committed=20), 75, "step 20 is saved in run; start the same command again"),
        (Watched(signal=signal.SIGINT), 130, "stopped before anything was saved"),
        (Watched(signal=signal.SIGINT, killed=True), 130, "did not stop in time"),
        (Watched(signal=signal.SIGTERM, killed=True), 1, "did not stop in time"),
    ],
)
def test_the_exit_code_and_the_message(watched, code, said):
    verdict = conclude(watched, CFG, RunDir("run"))
    assert verdict.exit_code == code
    assert said in verdict.message if said else not verdict.message
