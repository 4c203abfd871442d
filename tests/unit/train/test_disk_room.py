"""The room that a run needs on each disk is known, and told, before its first step."""

from types import SimpleNamespace

import pytest

from allranks.checkpoint import commit
from allranks.config.load import resolve_mapping
from allranks.model.build import build_model
from allranks.train import disk_room
from allranks.train.disk_room import Disk, checkpoint_bytes, new_checkpoints, room_warnings, too_small
from allranks.train.saved_size import saved_bytes
from allranks.train.storage import ALONE, Storage
from allranks.train.strategies import make_strategy
from tests.ranks import run_ranks
from tests.tiny_models import flat_for, make_batch, one_process, saved_model
from tests.tiny_runs import LORA


def loop_of(world_size=1, model=None, **keys):
    cfg = resolve_mapping({**flat_for(model or saved_model("llama")), "learning_rate": 1e-3, **keys})
    model = build_model(cfg, one_process())
    plan = SimpleNamespace(world_size=world_size)
    return cfg, SimpleNamespace(model=model, strategy=make_strategy(cfg, model), plan=plan, step=0, save_best=False)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        LORA,
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "optim_args": {"momentum": 0.9}},
        {"optimizer": "adagrad"},
        {"optimizer": "muon"},
        {"optimizer": "lion_pytorch"},
        {"unfrozen_parameters": ["lm_head"]},
        {"save_only_model": True},
        {"bfloat16": True},
    ],
    ids=str,
)
def test_the_size_that_is_foretold_is_that_of_what_is_saved_after_a_step(keys):
    if keys.get("optimizer") == "lion_pytorch":
        pytest.importorskip("lion_pytorch")
    cfg, loop = loop_of(**keys)
    foretold = checkpoint_bytes(cfg, loop)
    loop.strategy.backward(loop.model.forward_loss(make_batch(1)))
    loop.strategy.step()
    saved = saved_bytes(loop.strategy.state.contents(only_model=cfg.checkpoint.save_only_model), 1)
    # Counters of steps are a number for each parameter.
    assert foretold == pytest.approx(saved, rel=0.01), (foretold, saved)


@pytest.mark.parametrize(
    ("keep", "existing", "left", "new"),
    [
        (None, 0, 7, 7),
        (3, 0, 7, 4),
        (3, 2, 7, 2),
        (3, 3, 7, 1),
        (3, 5, 7, 1),
        (3, 0, 2, 2),
        (3, 3, 0, 0),
        (None, 9, 0, 0),
    ],
)
def test_how_many_checkpoints_there_will_be_at_once(keep, existing, left, new):
    cfg = SimpleNamespace(checkpoint=SimpleNamespace(num_kept=keep))
    schedule = SimpleNamespace(save_at=frozenset({5, 10, *range(11, 11 + left)}), eval_at=frozenset())
    assert new_checkpoints(cfg, SimpleNamespace(step_schedule=schedule, step=10, save_best=False), existing) == new


def test_what_is_said():
    disk = Disk("node1", 3_000_000_000, 0)
    said = too_small(disk, 5, 1.6e9, 0.8e9, 4)
    assert said == (
        "on node1 has 3.0 GB free, and this run needs about 8.8 GB there: 5 checkpoints of 1.6 GB (save_total_limit: "
        "4, and the one being written) and its result of 800.0 MB. Lower save_total_limit, or choose another "
        "--output-dir, before a save fails"
    )
    assert "120 checkpoints of 1.6 GB. Set save_total_limit" in too_small(disk, 120, 1.6e9, 0, None)
    assert "1 checkpoint of 3.1 GB. Free some room" in too_small(disk, 1, 3.1e9, 0, 4)
    assert too_small(disk, 1, 2.9e9, 0, 4) is None and too_small(disk, 0, 9e9, 9e9, 4) is None


def _two_disks(rank, folder, model):
    """Two ranks of DDP whose folders differ: each needs its half; on one disk all of it."""
    cfg, loop = loop_of(2, model, optimizer="sgd", fsdp_config={"final_state_dict_type": "SHARDED_STATE_DICT"})
    loop.checkpointer = SimpleNamespace(directory=folder / f"{rank}" / "checkpoints")
    loop.step_schedule = SimpleNamespace(save_at=frozenset({1, 2, 3, 4}), eval_at=frozenset())
    whole = 2 * checkpoint_bytes(cfg, loop)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(disk_room, "room", lambda path: (int(3 * whole), int(9 * whole)))
        assert room_warnings(cfg, loop, Storage(rank, 2, 0, 1)) == []
        [said] = room_warnings(cfg, loop, Storage(0, 1, rank, 2))
    assert f"{folder}/{rank} on " in said and "4 checkpoints of" in said and "Lower save_total_limit" in said


def test_each_disk_has_to_hold_its_part_and_a_shared_one_all(tmp_path):
    run_ranks(_two_disks, tmp_path, saved_model("llama"))


def test_what_is_there_already_counts_and_a_disk_that_tells_nothing_is_not_judged(tmp_path, monkeypatch):
    cfg, loop = loop_of(save_total_limit=1, optimizer="sgd")
    loop.checkpointer = SimpleNamespace(directory=tmp_path / "checkpoints")
    loop.step_schedule = SimpleNamespace(save_at=frozenset(range(1, 9)), eval_at=frozenset())
    size = checkpoint_bytes(cfg, loop)
    monkeypatch.setattr("allranks.train.disk_room.room", lambda path: (int(size * 1.5), int(size * 9)))
    assert "2 checkpoints of" in room_warnings(cfg, loop, ALONE)[0]
    there = commit.checkpoint_path(tmp_path / "checkpoints", 1)
    there.mkdir(parents=True)
    commit.write_marker(there, {"files": {}})
    monkeypatch.setattr("allranks.train.disk_room.result_bytes", lambda cfg, loop: 0.0)
    assert room_warnings(cfg, loop, ALONE) == []
    monkeypatch.setattr("allranks.train.disk_room.room", lambda path: None)
    assert room_warnings(cfg, loop, ALONE) == []
