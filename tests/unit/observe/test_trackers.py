"""Trackers, with the real libraries: what they get, once, and what happens to a run when they fail."""

import importlib.util
import json
import socket

import pytest

from allranks.config.load import resolve_mapping
from allranks.errors import RefusedError
from allranks.observe import EventLog, RunDir, read_events
from allranks.observe.events import CheckpointEvent, EvalEvent, ExitEvent, PhaseEvent, StepEvent, WarningEvent
from allranks.observe.trackers import Trackers, choice, chosen_trackers, refuse_missing_packages, start
from tests.unit.observe import tracker_readers

KEYS = {
    "tensorboard": {"use_tensorboard": True},
    "wandb": {"wandb_project": "allranks-tests", "wandb_mode": "offline"},
    "mlflow": {"mlflow_experiment_name": "allranks-tests"},
    "trackio": {"trackio_project_name": "allranks-tests"},
}
SECRET = "hf_" + "Q7x" * 12

STEP = {"grad_norm": 0.5, "learning_rate": 1e-3, "epoch": 0.1, "tokens": 100, "seconds": 0.5, "memory_bytes": 2**30}


def config(**keys):
    datasets = [{"path": f"https://user:{SECRET}@host/d.jsonl", "type": "alpaca"}]
    return resolve_mapping({"base_model": "m", "datasets": datasets, "learning_rate": 1e-2, **keys})


class OneStart:
    """One start of a run: its events from step to step, as rank 0 writes them."""

    def __init__(self, folder, cfg, first_step=1, fresh=True):
        self.run_dir = RunDir(folder)
        self.events = EventLog(self.run_dir.events(0), 0)
        self.events.write(PhaseEvent(phase="data"))
        self.warnings = []
        self.step = first_step - 1
        self.trackers = Trackers(
            cfg,
            self.run_dir,
            self.events,
            start_step=self.step,
            num_steps=10,
            log_every=1,
            fresh=fresh,
            warn=self.warnings.append,
        )

    def train(self, to_step, shift=0.0):
        for step in range(self.step + 1, to_step + 1):
            numbers = {
                "grad_norm": 0.5,
                "learning_rate": 1e-3,
                "epoch": step / 10,
                "tokens": 100,
                "memory_bytes": 2**30,
            }
            self.events.write(StepEvent(step=step, loss=10.0 - step + shift, seconds=0.5, **numbers))
        self.step = to_step

    def end(self, code=0):
        self.events.write(ExitEvent(code=code, reason="done"))
        self.trackers.close()


def losses(first, last, shift=0.0):
    return [(step, 10.0 - step + shift) for step in range(first, last + 1)]


@pytest.fixture(params=list(KEYS))
def tracker(request, tmp_path, monkeypatch):
    """Name of a tracker whose library is installed."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"needs {request.param}: pip install {request.param}")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setattr(start, "DRAIN_SECONDS", 60)  # a loaded machine may take long to import them
    return request.param


def test_every_step_is_told_once_over_a_crash_and_a_resume(tracker, tmp_path):
    """Killed at step 5 with a checkpoint of step 3: steps 4 and 5 come again."""
    read = getattr(tracker_readers, f"{tracker}_curve")
    cfg = config(**KEYS[tracker])
    first = OneStart(tmp_path / "run", cfg)
    first.train(to_step=5)
    first.trackers.close()  # without an `exit` event, as for a rank 0 that was killed
    first.events.write(StepEvent(**{**STEP, "step": 6, "loss": 4.0}))  # not told before all was killed
    second = OneStart(tmp_path / "run", cfg, first_step=4, fresh=False)
    second.train(to_step=8)
    second.events.write(EvalEvent(step=8, eval_loss=0.25, seconds=1.0))
    second.events.write(CheckpointEvent(step=8, state="committed", path="run/checkpoints/step-8"))
    second.events.write(WarningEvent(message="something odd"))
    second.end()
    log = (tmp_path / "run" / "trackers" / f"{tracker}.log").read_text()
    assert first.warnings == second.warnings == [], log
    assert read(tmp_path / "run", "train/loss") == losses(1, 8), log
    assert read(tmp_path / "run", "train/tokens_per_second") == [(step, 200.0) for step in range(1, 9)]
    assert read(tmp_path / "run", "eval/loss") == [(8, 0.25)]
    for file in (tmp_path / "run" / "trackers").rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def test_another_course_of_training_is_another_run_of_the_tracker(tmp_path):
    cfg = config(use_tensorboard=True, **KEYS["wandb"])
    for shift in (0.0, 5.0):
        begun = OneStart(tmp_path, cfg)
        begun.train(to_step=4, shift=shift)
        begun.end()
    # TensorBoard shows one folder as one run: what is there of the first is replaced.
    assert tracker_readers.tensorboard_curve(tmp_path, "train/loss") == losses(1, 4, shift=5.0)
    runs = [record.run for record in tracker_readers.wandb_records(tmp_path) if record.HasField("run")]
    assert len({run.run_id for run in runs}) == 2


def test_how_a_run_ended_is_told(tmp_path):
    ended = OneStart(tmp_path, config(**KEYS["wandb"]))
    ended.train(to_step=1)
    ended.end(code=1)
    records = tracker_readers.wandb_records(tmp_path)
    (code,) = [record.exit.exit_code for record in records if record.HasField("exit")]
    assert code == 1


def test_a_tracker_that_fails_ends_alone_and_says_so(tmp_path):
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "tensorboard").write_text("not a folder")
    begun = OneStart(tmp_path, config(use_tensorboard=True, **KEYS["wandb"]))
    begun.train(to_step=3)
    begun.trackers._running[0]._thread.join(60)
    begun.train(to_step=4)
    begun.end()
    (warning,) = begun.warnings
    assert "tracker tensorboard ended early (" in warning and "Error" in warning and "tensorboard.log" in warning
    assert tracker_readers.wandb_curve(tmp_path, "train/loss") == losses(1, 4)


def test_a_service_that_never_answers_holds_the_end_up_for_a_bounded_time_only(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(start, "DRAIN_SECONDS", 2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        begun = OneStart(tmp_path, config(wandb_project="p"))
        silent.accept()  # it has begun to wait for an answer
        begun.train(to_step=3)
        process = begun.trackers._running[0]._process
        begun.end()
    assert process.poll() not in (None, 0)
    assert "tracker wandb had not sent everything 2 s after the end" in capsys.readouterr().err
    assert [event.step for event in read_events(begun.run_dir.events(0)) if isinstance(event, StepEvent)] == [1, 2, 3]


def test_it_ends_when_rank_0_is_killed(tmp_path):
    """The end of a pipe tells it; nobody is left to do so."""
    begun = OneStart(tmp_path, config(**KEYS["wandb"]))
    begun.train(to_step=2)
    (process,) = begun.trackers._running
    process.tell_the_end()  # what the kernel does with the files of a killed process
    process._thread.join(60)
    assert process._complete
    assert tracker_readers.wandb_curve(tmp_path, "train/loss") == losses(1, 2)


def test_naming_a_project_switches_on_and_off_is_off():
    assert chosen_trackers(config()) == []
    assert chosen_trackers(config(**KEYS["wandb"], **KEYS["mlflow"], **KEYS["trackio"])) == [
        "wandb",
        "mlflow",
        "trackio",
    ]
    assert chosen_trackers(config(wandb_project="p", use_wandb=False)) == []
    assert chosen_trackers(config(wandb_project="p", wandb_mode="disabled")) == []


def test_a_package_that_is_missing_is_refused_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(choice.PACKAGES, "wandb", "wandb_of_nowhere")
    (tmp_path / "wandb_of_nowhere").mkdir()  # the folder that wandb makes is not the package
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RefusedError, match=r"use_wandb: not installed: .*; pip install wandb_of_nowhere"):
        refuse_missing_packages(config(wandb_project="p"))
    refuse_missing_packages(config(use_tensorboard=True))


def test_keys_of_a_tracker_that_is_off_are_told():
    assert [line.split(": has")[0] for line in config(wandb_entity="me").warnings] == ["<dict>: wandb_entity"]
    assert config(wandb_entity="me", use_wandb=True).warnings == ()


def test_the_config_is_told_without_secrets(tmp_path):
    begun = OneStart(tmp_path, config(**KEYS["wandb"]))
    begun.end()
    (told,) = [record.run.config for record in tracker_readers.wandb_records(tmp_path) if record.HasField("run")]
    values = {item.key: json.loads(item.value_json) for item in told.update}
    assert values["learning_rate"] == 1e-2 and "<removed>" in values["datasets"][0]["path"]
