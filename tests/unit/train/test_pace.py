"""A run beside its plan: what is kept of it, and what the next one is told."""

from pathlib import Path

import pytest

from allranks.config.load import resolve_mapping
from allranks.plan.kept_calibration import load
from allranks.plan.lengths import full, of_blocks
from allranks.train.pace import Pace, beside_plan

MODEL = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 500,
}
WHOLE = full(128)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def config(tmp_path: Path):
    keys = {"base_model": "m", "datasets": [{"path": "d.jsonl"}], "output_dir": str(tmp_path / "run")}
    return resolve_mapping({**keys, "sequence_len": 128, "micro_batch_size": 2, "max_steps": 10, "learning_rate": 1e-4})


def run(seconds: float, steps: int = 12) -> Pace:
    pace = Pace()
    for step in range(steps):
        warming = 5.0 if step < 3 else 0.0
        pace.add(seconds + warming + 0.5, waited=0.5, tokens=250, memory_bytes=10**8 + step)
    return pace


def test_the_second_run_is_told_what_the_first_took(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    first = beside_plan(cfg, run(0.25), MODEL, WHOLE, nodes=(0,), gpu=None)
    assert first is not None and first.earlier_runs == 0 and not first.calibrated
    # Whole rows are 256 tokens; the first steps, and what other programs took, are none of the machine's.
    assert first.measured_seconds == pytest.approx(0.256)
    assert first.measured_memory_bytes == 10**8 + 11
    second = beside_plan(cfg, run(0.25), MODEL, WHOLE, nodes=(0,), gpu=None)
    assert second is not None and second.earlier_runs == 1
    assert second.predicted_seconds == pytest.approx(second.measured_seconds)
    assert second.predicted_memory_bytes == second.measured_memory_bytes
    known = load("cpu")
    assert known is not None and len(known.runs) == 2


def test_of_a_long_run_the_newest_steps_are_kept() -> None:
    pace = run(0.25, steps=30_000)
    assert (pace.num_steps, len(pace.seconds_a_token)) == (30_000, 10_000)
    assert pace.step_seconds(250) == pytest.approx(0.25)
    for _ in range(6000):
        pace.add(1.0, waited=0.5, tokens=250, memory_bytes=0)
    assert pace.step_seconds(250) == pytest.approx(0.5)


def test_steps_without_tokens_say_nothing(tmp_path: Path) -> None:
    pace = Pace()
    for _ in range(12):
        pace.add(1.0, waited=0.0, tokens=0, memory_bytes=0)
    assert beside_plan(config(tmp_path), pace, MODEL, WHOLE, nodes=(0,), gpu=None) is None


def test_a_short_run_says_nothing(tmp_path: Path) -> None:
    assert beside_plan(config(tmp_path), run(0.25, steps=6), MODEL, WHOLE, nodes=(0,), gpu=None) is None
    assert load("cpu") is None


def test_what_cannot_be_planned_is_left_alone(tmp_path: Path) -> None:
    unknown = {**MODEL, "model_type": "of-another-kind"}
    assert beside_plan(config(tmp_path), run(0.25), unknown, WHOLE, nodes=(0,), gpu=None) is None
    assert beside_plan(config(tmp_path), run(0.25), MODEL, WHOLE, nodes=(0,), gpu="ACME 9000") is None


def test_a_run_on_other_documents_is_another_run(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    short = of_blocks([120] * 4, 200, {10: 48}, 2, padded_to=None)
    beside_plan(cfg, run(0.25), MODEL, WHOLE, nodes=(0,), gpu=None)
    on_short = beside_plan(cfg, run(0.2), MODEL, short, nodes=(0,), gpu=None)
    assert on_short is not None and on_short.earlier_runs == 0
    assert on_short.measured_seconds == pytest.approx(0.2 * 240 / 250)
    again = beside_plan(cfg, run(0.2), MODEL, short, nodes=(0,), gpu=None)
    assert again is not None and again.earlier_runs == 1
