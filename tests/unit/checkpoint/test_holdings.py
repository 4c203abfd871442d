"""Nodes with disks of their own: no start begins below a step that one of them has committed."""

import json
import random

import pytest

from allranks.checkpoint import commit
from allranks.checkpoint.holdings import NEWEST_STEPS, Held, StepFiles, held, refusal


def node(start, *steps):
    return Held("/data/run", start, tuple(steps))


def step(number, here, listed=None):
    return StepFiles(number, dict.fromkeys(here, 7), None if listed is None else dict.fromkeys(listed, 7))


def test_what_a_node_holds_is_read_from_its_folder_and_survives_the_wire(tmp_path):
    for number in range(1, NEWEST_STEPS + 3):
        folder = commit.checkpoint_path(tmp_path / "checkpoints", number)
        (folder / "hf").mkdir(parents=True)
        (folder / "hf" / "config.json").write_text("{}")
        (folder / "shard").write_bytes(b"1234")
        if number != NEWEST_STEPS + 2:
            commit.commit(folder, {"shard": commit.digest(folder / "shard"), "elsewhere": {"bytes": 9, "sha256": ""}})
    found = held(tmp_path / "checkpoints", "newest")
    # The newest save was cut off: it is none, however new.
    assert [one.step for one in found.steps] == [4, 3, 2]
    assert found.steps[0] == StepFiles(4, {"hf/config.json": 2, "shard": 4}, {"shard": 4, "elsewhere": 9})
    assert Held.from_message(json.loads(json.dumps(found.to_message()))) == found


@pytest.mark.parametrize(
    "message",
    [
        None,
        {},
        {"directory": "/", "start": "newest", "steps": [{"step": 1}] * 4},
        {"directory": "/", "start": "somewhere", "steps": []},
        {"directory": "/", "start": "newest", "steps": [{"step": -1, "here": {}}]},
        {"directory": "/", "start": "newest", "steps": [{"step": 1, "here": {"a": "7"}}]},
        {"directory": "/", "start": "newest", "steps": [{"step": 1, "here": {}, "listed": 3}]},
    ],
)
def test_what_is_no_holding_is_refused_as_a_value(message):
    with pytest.raises(ValueError):
        Held.from_message(message)


def test_nothing_is_refused_where_nothing_is_committed():
    assert refusal({"node 0 (a)": node("fresh"), "node 1 (b)": node("newest", step(5, ["shard"]))}) is None


@pytest.mark.parametrize("holder", ["node 0 (a)", "node 1 (b)", "node 2 (c)"])
def test_a_fresh_start_beside_any_nodes_checkpoints_is_refused(holder):
    nodes = {name: node("fresh") for name in ("node 0 (a)", "node 1 (b)", "node 2 (c)")}
    nodes[holder] = node("fresh", step(10, ["shard"], ["shard"]))
    text = refusal(nodes)
    assert f"{holder}: step-00000010 (whole) in /data/run" in text
    assert text.count("no checkpoint in /data/run") == 2
    assert "--auto-resume-from-checkpoints true" in text


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_any_nodes_lost_disk_is_told_with_what_is_where(lost):
    listed = [f"__{rank}_0.distcp" for rank in range(3)]
    nodes = {f"node {i} (n{i})": node("newest", *(step(k, [listed[i]], listed) for k in (22, 10))) for i in range(3)}
    assert refusal(nodes) is None
    name = f"node {lost} (n{lost})"
    nodes[name] = node("newest")
    text = refusal(nodes)
    assert f"step-00000022 is committed, but 1 of its 3 files are on no disk of these nodes: {listed[lost]}" in text
    assert f"{name}: no checkpoint" in text and "step-00000010 (1 of 3 files)" in text
    assert "--resume-from-checkpoint" in text


def test_it_starts_if_and_only_if_the_newest_committed_step_can_be_made_whole():
    """Random holdings of random nodes, against the definition."""
    generator = random.Random(7)
    for _ in range(500):
        files = {number: [f"{number}-{i}" for i in range(generator.randint(1, 5))] for number in (1, 2, 3)}
        nodes, union, committed = {}, {number: set() for number in files}, set()
        for i in range(generator.randint(1, 4)):
            steps = []
            for number in generator.sample(sorted(files), generator.randint(0, 3)):
                here = [name for name in files[number] if generator.random() < 0.7]
                has_marker = generator.random() < 0.7
                union[number].update(here)
                committed |= {number} if has_marker else set()
                steps.append(step(number, here, files[number] if has_marker else None))
            nodes[f"node {i}"] = node("newest", *steps)
        starts = not committed or union[max(committed)] == set(files[max(committed)])
        assert (refusal(nodes) is None) == starts
