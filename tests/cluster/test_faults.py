"""Invariant 4: no committed step is lost, and nothing that was not committed is ever resumed from."""

import shutil
import signal
import time

import pytest

from allranks.checkpoint import commit
from allranks.observe import RunDir
from tests.cluster.conftest import Run, largest_difference
from tests.patience import TIMEOUT_SECONDS

SAVING = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 0, "max_steps": 8, "logging_steps": 1}
FSDP = {"fsdp_version": 2, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}
RESUME = {"auto_resume_from_checkpoints": True}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run's directory and losses, made once; tests damage copies of it."""
    return {"directory": None, "losses": None, "path": tmp_path_factory.mktemp("finished") / "run"}


@pytest.fixture
def copy_of_run(finished, run_forked, tmp_path):
    if finished["directory"] is None:
        finished["losses"] = run_forked(output_dir=finished["path"], **SAVING).losses()
        finished["directory"] = finished["path"]
    copy = tmp_path / "copy"
    shutil.copytree(finished["directory"], copy)
    return copy, finished["losses"]


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(("damage", "said"), [(damage_flip, "its bytes changed"), (damage_truncate, "bytes, expected")])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(copy_of_run, run_forked, damage, said):
    directory, losses = copy_of_run
    newest = commit.checkpoint_path(directory / "checkpoints", 8)
    shard = next(newest.glob("*.distcp"))
    damage(shard)
    resumed = run_forked(output_dir=directory, **SAVING, **RESUME)
    assert shard.name in resumed.output and said in resumed.output
    assert "step-00000008 is damaged: not used" in resumed.output
    assert f"resumed {commit.checkpoint_path(directory / 'checkpoints', 6)} at step 6" in resumed.output
    assert largest_difference(resumed.losses(), losses) < 1e-6
    assert commit.verify(newest) == [], "the step was done and saved again"


def test_no_usable_checkpoint_is_no_reason_to_begin_anew_over_them(copy_of_run, run_forked):
    directory, _ = copy_of_run
    checkpoints = commit.complete_checkpoints(directory / "checkpoints")
    for path in checkpoints:
        damage_flip(next(path.glob("*.distcp")))
    refused = run_forked(output_dir=directory, expect=1, **SAVING, **RESUME)
    assert f"none of the {len(checkpoints)} checkpoint(s)" in refused.output
    assert "choose another --output-dir" in refused.output and "Traceback" not in refused.output
    assert commit.complete_checkpoints(directory / "checkpoints") == checkpoints


def test_a_damaged_checkpoint_that_is_asked_for_by_name_is_an_error(copy_of_run, run_forked):
    directory, _ = copy_of_run
    newest = commit.checkpoint_path(directory / "checkpoints", 8)
    damage_flip(next(newest.glob("*.distcp")))
    refused = run_forked(output_dir=directory, expect=1, **SAVING, resume_from_checkpoint=str(newest))
    assert "its bytes changed" in refused.output and "--auto-resume-from-checkpoints" in refused.output
    assert "Traceback" not in refused.output


def test_an_output_directory_with_checkpoints_is_not_trained_over(copy_of_run, run):
    directory, _ = copy_of_run
    refused = run(output_dir=directory, expect=2, **SAVING)
    assert "holds checkpoints of an earlier run" in refused.output
    assert "--auto-resume-from-checkpoints true" in refused.output


def test_other_settings_than_the_checkpoints_are_refused(copy_of_run, run_forked):
    directory, _ = copy_of_run
    refused = run_forked(output_dir=directory, expect=1, **{**SAVING, **RESUME, "batch_size": 4})
    assert "global batch of 8" in refused.output
    refused = run_forked(output_dir=directory, expect=1, **{**SAVING, **RESUME, "seed": 8})
    assert "data_seed, else seed) is 8 here, 7 there" in refused.output


def test_killed_while_saving_the_cut_off_checkpoint_is_never_used(run_forked, start_forked, tmp_path):
    keys = {**SAVING, "max_steps": 30, "save_steps": 1}
    directory = tmp_path / "run"
    for _ in range(10):
        if _kill_in_the_middle_of_a_save(start_forked(output_dir=directory, **keys), directory):
            break
        shutil.rmtree(directory)
    else:
        pytest.fail("no kill hit a save that was under way in 10 runs")
    [cut_off] = commit.incomplete_checkpoints(directory / "checkpoints")
    whole = commit.complete_checkpoints(directory / "checkpoints")[0]
    assert commit.step_of(cut_off) == commit.step_of(whole) + 1

    resumed = run_forked(output_dir=directory, **keys, **RESUME)
    assert f"{cut_off.name} has no COMPLETE marker" in resumed.output
    assert f"resumed {whole}" in resumed.output
    assert set(resumed.losses()) == set(range(1, 31))
    left_alone = run_forked(output_dir=tmp_path / "alone", **{**keys, "save_strategy": "no", "save_steps": None})
    assert largest_difference(resumed.losses(), left_alone.losses()) < 1e-6


def _kill_in_the_middle_of_a_save(ranks, directory) -> bool:
    """SIGKILL when a save is seen that has not committed; whether it was still so once the process was dead."""
    while ranks.is_running():
        unfinished = commit.incomplete_checkpoints(directory / "checkpoints")
        if unfinished and commit.complete_checkpoints(directory / "checkpoints"):
            ranks.kill()
            return bool(commit.incomplete_checkpoints(directory / "checkpoints"))
    return False


def test_saving_behind_the_training_on_two_ranks_changes_nothing_and_loses_nothing(run_forked, tmp_path):
    """Saves at every step while training goes on: on the training's own process group this crashes."""
    keys = {**SAVING, **FSDP, "max_steps": 20}
    never = {**keys, "save_strategy": "no", "save_steps": None}
    quiet = run_forked(2, output_dir=tmp_path / "quiet", **never)
    saving = run_forked(2, **{**keys, "save_steps": 1})
    assert largest_difference(saving.losses(), quiet.losses()) < 1e-6
    checkpoints = commit.complete_checkpoints(saving.directory.checkpoints)
    assert len(checkpoints) == 20
    assert all(commit.verify(checkpoint) == [] for checkpoint in checkpoints)


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_exits_75_and_the_run_goes_on(start, run_forked, tmp_path, number):
    keys = {**SAVING, **FSDP, "max_steps": 100_000, "save_steps": 100_000}
    process = start("--nproc-per-node", "2", **keys)
    first = Run(0, "", RunDir(tmp_path / "run"))
    _wait_for_steps(process, first, 3)
    process.send_signal(number)
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 75, output
    [saved] = commit.complete_checkpoints(first.directory.checkpoints)
    step = commit.step_of(saved)
    assert commit.verify(saved) == [] and max(first.losses()) == step
    assert {event.code for rank in (0, 1) for event in first.events("exit", rank)} == {75}

    resumed = run_forked(**{**keys, **RESUME, "max_steps": step + 3})
    assert f"at step {step}" in resumed.output
    assert set(resumed.losses()) == set(range(1, step + 4))


@pytest.mark.thorough
def test_a_signal_to_one_process_alone(start, tmp_path):
    process = start(**{**SAVING, "max_steps": 100_000, "save_steps": 100_000})
    first = Run(0, "", RunDir(tmp_path / "run"))
    _wait_for_steps(process, first, 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 75, output
    assert "preempted" in output and "--auto-resume-from-checkpoints true" in output
    assert len(commit.complete_checkpoints(first.directory.checkpoints)) == 1


def _wait_for_steps(process, run: Run, count: int) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while len(run.events("step")) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.01)
