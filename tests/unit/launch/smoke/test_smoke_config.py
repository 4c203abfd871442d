"""The config of a smoke run is the real one but for its length and its folder, and it says nothing to the outside."""

import json

import pytest

from allranks.checkpoint import commit
from allranks.config.load import resolve_mapping
from allranks.errors import RefusedError
from allranks.launch.certificate import Starts, compare, parts_now
from allranks.launch.smoke import clear_earlier_smoke, smoke_config
from allranks.launch.smoke.verdict import smoke_verdict
from allranks.observe import RunDir
from allranks.preflight.certificate import Certificate
from allranks.train.step_schedule import lay_out
from tests.unit.launch.smoke.test_smoke_judge import evidence


def config(tmp_path, **keys):
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "hello"}\n')
    least = {"base_model": str(tmp_path), "learning_rate": 1e-4, "output_dir": str(tmp_path / "run")}
    least |= {"datasets": [{"path": str(data), "type": "completion"}]}
    return resolve_mapping(least | keys, "c.yaml", {})


SAVING = [
    {"save_strategy": "no"},
    {"save_strategy": "best", "val_set_size": 0.1},
    {"saves_per_epoch": 3, "num_epochs": 7},
    {"save_steps": 0.25, "evals_per_epoch": 2, "val_set_size": 0.1, "early_stopping_patience": 2},
    {"load_best_model_at_end": True, "val_set_size": 0.1, "eval_on_start": True},
    {"resume_from_checkpoint": "/elsewhere/step-00000007", "wandb_project": "p", "use_tensorboard": True},
    {"auto_resume_from_checkpoints": True, "warmup_ratio": 0.1, "profiler_steps": 3},
    {"warmup_steps": 100, "mlflow_experiment_name": "e", "trackio_project_name": "t"},
]


@pytest.mark.parametrize("keys", SAVING)
def test_two_steps_one_save_no_evaluation_and_no_tracker(tmp_path, keys):
    real = config(tmp_path, **keys)
    smoke = smoke_config(real)
    steps = lay_out(smoke, num_blocks=1000, global_batch=4, has_eval=True)
    assert (steps.num_steps, steps.save_at, steps.eval_at) == (2, {2}, set())
    assert smoke.checkpoint.output_dir == str(tmp_path / "run" / "smoke")
    assert not smoke.checkpoint.resume_from_checkpoint and not smoke.checkpoint.auto_resume_from_checkpoints
    tracking = smoke.tracking
    assert not any((tracking.use_wandb, tracking.use_mlflow, tracking.use_tensorboard, tracking.use_trackio))
    kept = ("model", "data", "adapter", "precision", "parallel", "network", "preflight")
    assert all(getattr(smoke, name) == getattr(real, name) for name in kept)
    assert smoke.optimizer.learning_rate == real.optimizer.learning_rate


def checkpoint_in(run):
    path = run.checkpoint(2)
    path.mkdir(parents=True)
    (path / "weights").write_bytes(b"w")
    commit.commit(path, {"weights": commit.digest(path / "weights")})
    return path


def smoke_of(real, tmp_path, code=0, run_id="r", seen=None):
    run = RunDir(real.checkpoint.output_dir)
    logs = run.smoke / "logs" / "node-0"
    if seen is not None:
        logs.mkdir(parents=True, exist_ok=True)
        (logs / "smoke.json").write_text(json.dumps(seen))
    starts = Starts(real, "f", {"node 0": "a"}, False, {})
    return smoke_verdict(real, RunDir(run.smoke), run_id, logs, code, parts_now(starts))


def test_go_leaves_a_certificate_and_touches_no_checkpoint_of_the_real_run(tmp_path):
    real = config(tmp_path)
    run = RunDir(real.checkpoint.output_dir)
    earlier, left = checkpoint_in(run), checkpoint_in(RunDir(run.smoke))
    assert smoke_of(real, tmp_path, seen=evidence()).exit_code == 0
    assert run.certificate.exists() and commit.verify(earlier) == [] and not left.exists()


@pytest.mark.parametrize(
    ("code", "run_id", "seen", "expected"),
    [
        (1, "r", evidence(), 1),
        (75, "r", evidence(), 75),
        (0, "r", None, 3),
        (0, "another", evidence(), 3),
        (0, "r", evidence() | {"differing_tensors": ["w"]}, 3),
        (0, "r", [], 3),
    ],
)
def test_no_go_leaves_no_certificate_and_no_checkpoint(tmp_path, code, run_id, seen, expected):
    real = config(tmp_path)
    left = checkpoint_in(RunDir(RunDir(real.checkpoint.output_dir).smoke))
    verdict = smoke_of(real, tmp_path, code, run_id, seen)
    assert verdict.exit_code == expected and "no-go" in verdict.text
    assert not RunDir(real.checkpoint.output_dir).certificate.exists() and not left.exists()


def test_what_a_killed_smoke_run_left_is_cleared_before_the_next(tmp_path):
    run = RunDir(tmp_path / "smoke")
    whole, torn = checkpoint_in(run), run.checkpoint(1)
    torn.mkdir()
    clear_earlier_smoke(run)
    assert not whole.exists() and not torn.exists()


def certified(tmp_path, **keys):
    real = config(tmp_path, **keys)
    Certificate(parts_now(starts_of(real)), 1.0, "r").write(RunDir(real.checkpoint.output_dir).certificate)
    return real


def starts_of(cfg, fingerprint="f", env=None):
    return Starts(cfg, fingerprint, {"node 0": "gpu0"}, False, {"NCCL_IB_HCA": "mlx5_0"} if env is None else env)


def test_a_real_start_that_is_the_same_is_told_so(tmp_path, capsys):
    record = compare(starts_of(certified(tmp_path)))
    out = capsys.readouterr()
    assert record["differs"] == [] and "holds for this start" in out.out and not out.err


def test_debug_logs_and_where_it_goes_on_from_make_no_difference(tmp_path):
    certified(tmp_path)
    again = config(tmp_path, auto_resume_from_checkpoints=True, preflight={"ignore": ["clock"]})
    env = {"NCCL_IB_HCA": "mlx5_0", "NCCL_DEBUG": "INFO", "TORCH_DISTRIBUTED_DEBUG": "DETAIL"}
    assert compare(starts_of(again, env=env))["differs"] == []


def test_each_difference_is_told_with_both_values(tmp_path, capsys):
    certified(tmp_path, learning_rate=1e-3)
    other, env = config(tmp_path, learning_rate=2e-3), {"NCCL_IB_HCA": "mlx5_1", "HF_HOME": "/hf"}
    (tmp_path / "data.jsonl").write_text('{"text": "other"}\n')
    record = compare(starts_of(other, "g", env))
    told = capsys.readouterr().err
    assert [line.partition(":")[0] for line in record["differs"]] == ["config", "data", "environment", "transport"]
    assert "learning_rate was 0.001, is 0.002" in told and "NCCL_IB_HCA was mlx5_0, is mlx5_1" in told
    assert "data.jsonl" in told and told.startswith("warning: certificate.differs")


def test_strict_refuses_ignore_notes_and_skip_does_not_look(tmp_path, capsys):
    certified(tmp_path)
    for name in ("certificate", "certificate.differs"):
        other = {"learning_rate": 9e-3}
        with pytest.raises(RefusedError, match="learning_rate was"):
            compare(starts_of(config(tmp_path, preflight={"strict": [name]}, **other)))
        assert compare(starts_of(config(tmp_path, preflight={"ignore": [name]}, **other)))["accepted"]
        assert capsys.readouterr().err.startswith("note: certificate.differs")
        assert compare(starts_of(config(tmp_path, preflight={"skip": [name]}, **other))) is None


def test_a_damaged_certificate_is_told(tmp_path, capsys):
    real = certified(tmp_path)
    RunDir(real.checkpoint.output_dir).certificate.write_text("{")
    assert "damaged" in compare(starts_of(real))["unread"]
    assert "damaged" in capsys.readouterr().err


def test_a_start_without_a_smoke_run_is_told_nothing(tmp_path, capsys):
    assert compare(starts_of(config(tmp_path))) is None
    assert capsys.readouterr().err == ""
    assert not RunDir(tmp_path / "run").certificate.exists()
