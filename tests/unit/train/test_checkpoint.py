import pickle
from concurrent import futures
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from allranks.checkpoint import commit
from allranks.checkpoint.dcp.reader import reader
from allranks.checkpoint.state import RunState, read_state
from allranks.errors import CheckpointError, DiskError
from allranks.observe.events import CheckpointEvent
from allranks.train.checkpoint import Checkpointer
from allranks.train.committing_writer import CommittingWriter
from allranks.train.saving import finish_saving, save
from allranks.train.storage import ALONE, Storage, latest_valid
from allranks.train.strategies.native import NativeState
from tests.ranks import run_ranks


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(64, 64)
        self.trained = nn.Linear(64, 64)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.trained(self.frozen(x))


def make(directory, **options):
    model = Toy()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    settings = {"group": None, "storage": ALONE, "asynchronous": False, "keep": None, **options}
    return Checkpointer(directory, NativeState(model, optimizer), **settings)


def step(checkpointer):
    torch.manual_seed(1)
    checkpointer.trained.model(torch.randn(8, 64)).square().mean().backward()
    checkpointer.trained.optimizer.step()
    checkpointer.trained.optimizer.zero_grad()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_restored_run_goes_on_as_the_first_one_did(tmp_path, asynchronous):
    first = make(tmp_path, asynchronous=asynchronous)
    step(first)
    path = first.save(1, RunState(1, {}))
    first.wait()
    step(first)

    second = make(tmp_path)
    assert second.load(path) == RunState(1, {})
    step(second)
    for one, other in zip(first.trained.model.parameters(), second.trained.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_is_saved_is_the_step_it_was_saved_at_though_training_goes_on_meanwhile(tmp_path):
    checkpointer = make(tmp_path, asynchronous=True)
    step(checkpointer)
    expected = checkpointer.trained.model.trained.weight.detach().clone()
    path = checkpointer.save(1, RunState(1, {}))
    with torch.no_grad():  # at once, while the writer may not even have begun
        for parameter in checkpointer.trained.model.trained.parameters():
            parameter.fill_(float("nan"))
        for state in checkpointer.trained.optimizer.state.values():
            state["exp_avg"].fill_(float("nan"))
    checkpointer.wait()
    restored = make(tmp_path)
    restored.load(path)
    assert torch.equal(restored.trained.model.trained.weight, expected)
    assert all(state["exp_avg"].isfinite().all() for state in restored.trained.optimizer.state.values())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_every_save_is_told_of_once_also_one_that_the_next_save_waits_for(tmp_path, asynchronous):
    checkpointer, told = make(tmp_path, asynchronous=asynchronous), []
    loop = SimpleNamespace(
        step=0,
        checkpointer=checkpointer,
        describe_state=lambda loop: RunState(loop.step, {}),
        stats=SimpleNamespace(flush=list),
        events=SimpleNamespace(write=told.append),
        progress=None,
        proof=None,
    )
    for loop.step in (1, 2, 3):
        step(checkpointer)
        save(loop)
    finish_saving(loop)
    # Each in its place: a save has begun only when the one before it is told of.
    order = [(event.step, event.state) for event in told if isinstance(event, CheckpointEvent)]
    assert order == [(number, state) for number in (1, 2, 3) for state in ("started", "committed")]


def test_frozen_parameters_are_not_saved(tmp_path):
    checkpointer = make(tmp_path)
    path = checkpointer.save(1, RunState(1, {}))
    names = reader(path).read_metadata().state_dict_metadata
    assert "model.trained.weight" in names and not [name for name in names if "frozen" in name]


@pytest.mark.parametrize("trained", [True, False])
def test_a_tied_weight_is_saved_once_and_not_at_all_when_frozen(tmp_path, trained):
    checkpointer = make(tmp_path)
    checkpointer.trained.model.tied = nn.Linear(64, 64, bias=False)
    checkpointer.trained.model.tied.weight = (
        checkpointer.trained.model.trained if trained else checkpointer.trained.model.frozen
    ).weight
    path = checkpointer.save(1, RunState(1, {}))
    names = reader(path).read_metadata().state_dict_metadata
    assert "model.trained.weight" in names and "model.tied.weight" not in names
    restored = make(tmp_path)
    restored.trained.model.tied = nn.Linear(64, 64, bias=False)
    restored.trained.model.tied.weight = (
        restored.trained.model.trained if trained else restored.trained.model.frozen
    ).weight
    restored.load(path)


def test_every_file_is_covered_by_the_marker(tmp_path):
    checkpointer = make(tmp_path, write_extras=lambda folder: (folder / "config.json").write_text("{}"))
    step(checkpointer)
    path = checkpointer.save(3, RunState(3, {}))
    listed = set(commit.read_marker(path)["files"])
    on_disk = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert listed == on_disk - {commit.MARKER} and {"hf/config.json", "metadata.json"} < listed
    assert commit.verify(path) == []


def test_a_save_that_fails_is_reported_and_never_committed(tmp_path):
    def fail(folder):
        raise OSError(28, "No space left on device")

    checkpointer = make(tmp_path, write_extras=fail)
    with pytest.raises(DiskError, match=r"step 1 is not saved: the disk is full \(No space left.*are needed there"):
        checkpointer.save(1, RunState(1, {}))
    assert list(tmp_path.iterdir()) == []


def test_what_one_ranks_side_file_does_is_told_and_leaves_nothing_half_made(tmp_path):
    def fail(folder):
        raise ValueError("GenerationConfig is invalid")

    checkpointer = make(tmp_path, write_extras=fail)
    with pytest.raises(CheckpointError, match="step-00000001 is not saved: ValueError: GenerationConfig is invalid"):
        checkpointer.save(1, RunState(1, {}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails", [True, False])
def test_a_save_behind_the_training_tells_when_it_is_over_and_that_it_failed(tmp_path, monkeypatch, fails):
    checkpointer = make(tmp_path, asynchronous=True)
    assert checkpointer.progress == (False, False)

    def refuse(*args, **facts):
        raise OSError(28, "No space left on device")

    if fails:
        monkeypatch.setattr(commit, "commit", refuse)
    checkpointer.save(1, RunState(1, {}))
    futures.wait([checkpointer._pending[1]])
    assert checkpointer.progress == (True, fails)
    if fails:
        with pytest.raises(DiskError, match="step 1 is not saved: the disk is full"):
            checkpointer.wait()
    else:
        assert checkpointer.wait() is not None
    assert checkpointer.progress == (False, False)


def test_damaged_and_cut_off_checkpoints_are_passed_over(tmp_path):
    checkpointer = make(tmp_path)
    for number in (1, 2, 3, 4):
        step(checkpointer)
        checkpointer.save(number, RunState(number, {}))
    (commit.checkpoint_path(tmp_path, 4) / commit.MARKER).unlink()
    shard = next(commit.checkpoint_path(tmp_path, 3).glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)

    said = []
    chosen = latest_valid(tmp_path, ALONE, said.append)
    assert chosen is not None and read_state(chosen).step == 2
    text = "\n".join(said)
    assert "step-00000004 has no COMPLETE marker" in text
    assert "step-00000003 is damaged" in text and shard.name in text


def test_nothing_to_resume(tmp_path):
    assert latest_valid(tmp_path / "none", ALONE, print) is None


def test_old_checkpoints_and_cut_off_saves_are_cleared_by_the_next_commit(tmp_path):
    checkpointer = make(tmp_path, keep=2)
    (commit.checkpoint_path(tmp_path, 1) / "hf").mkdir(parents=True)
    for number in (2, 3, 4):
        checkpointer.save(number, RunState(number, {}))
    assert [path.name[-1] for path in commit.complete_checkpoints(tmp_path)] == ["4", "3"]
    assert commit.incomplete_checkpoints(tmp_path) == []


def test_a_checkpoint_without_optimizer_state_is_refused_for_resuming(tmp_path):
    path = make(tmp_path, only_model=True).save(1, RunState(1, {}, only_model=True))
    for only_model in (True, False):
        with pytest.raises(CheckpointError, match="save_only_model"):
            make(tmp_path, only_model=only_model).load(path)


def test_settings_of_the_optimizer_are_the_configs_after_a_load_and_its_state_is_the_checkpoints(tmp_path):
    first = make(tmp_path)
    step(first)
    path = first.save(1, RunState(1, {}))
    second = make(tmp_path, only_model=True)
    second.trained.optimizer.param_groups[0].update(weight_decay=0.5, betas=(0.8, 0.9))
    second.load(path)
    assert second.trained.optimizer.param_groups[0]["weight_decay"] == 0.5
    assert second.trained.optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    for one, other in zip(first.trained.optimizer.state.values(), second.trained.optimizer.state.values(), strict=True):
        assert torch.equal(one["exp_avg"], other["exp_avg"])


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = make(tmp_path).save(1, RunState(1, {}))
    other = make(tmp_path)
    other.trained.model.added = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="does not fit this model"):
        other.load(path)


def test_a_checkpoint_that_would_run_code_is_refused_and_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    checkpointer = make(tmp_path)
    step(checkpointer)
    path = checkpointer.save(1, RunState(1, {}))
    (path / "metadata.json").rename(path / "aside")
    (path / ".metadata").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(CheckpointError, match="metadata is not what training writes"):
        checkpointer.load(path)
    assert not (tmp_path / "touched").exists()


def test_one_that_cannot_be_removed_is_told_once_and_the_limit_goes_on_without_it(tmp_path):
    told = []
    checkpointer = make(tmp_path / "run", keep=2, warn=told.append)
    checkpointer.save(1, RunState(1, {}))
    link = commit.checkpoint_path(tmp_path / "run", 1)
    link.rename(tmp_path / "another-disk")
    link.symlink_to(tmp_path / "another-disk")
    for number in (2, 3, 4, 5):
        checkpointer.save(number, RunState(number, {}))
    assert [commit.step_of(path) for path in commit.complete_checkpoints(tmp_path / "run")] == [5, 4, 1]
    assert commit.verify(link) == []
    [text] = told
    assert f"{link} cannot be removed: it is a symbolic link to {tmp_path / 'another-disk'}" in text
    assert "save_total_limit goes on with the others; remove it by hand" in text


@pytest.mark.parametrize("dangling", [True, False])
def test_a_link_where_a_checkpoint_is_to_be_saved_is_an_error_with_what_to_do(tmp_path, dangling):
    (tmp_path / "run").mkdir()
    if not dangling:
        (tmp_path / "elsewhere").mkdir()
    commit.checkpoint_path(tmp_path / "run", 1).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="in the way of a save and cannot be removed: it is a symbolic link"):
        make(tmp_path / "run").save(1, RunState(1, {}))


def test_every_rank_hears_of_a_save_that_failed_on_one(tmp_path):
    run_ranks(_rank_whose_disk_is_full, tmp_path)


def _rank_whose_disk_is_full(rank, folder):
    group = dist.new_group(backend="gloo")
    checkpointer = make(folder, group=group, storage=Storage(0, 1, rank, 2), asynchronous=True)
    if rank == 1:

        def refuse(*args):
            raise OSError(28, "No space left on device")

        CommittingWriter._write_and_hash = refuse
    checkpointer.save(1, RunState(1, {}))
    futures.wait([checkpointer._pending[1]])
    assert checkpointer.progress == (True, True)
    with pytest.raises(DiskError, match="rank 1: step 1 is not saved: the disk is full"):
        checkpointer.wait()
