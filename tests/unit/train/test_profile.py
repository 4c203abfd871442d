"""A profile of the steps that were asked for, and garbage collected when it was asked for."""

import gzip
import json

import torch

from allranks.config.load import resolve_mapping
from allranks.train.profile import between_steps


def calls(folder, **keys):
    flat = {"base_model": "m", "datasets": [{"path": "d.jsonl", "type": "alpaca"}], "learning_rate": 1e-2, **keys}
    return between_steps(resolve_mapping(flat), folder, 3, torch.device("cpu"))


def test_the_steps_asked_for_are_in_the_trace(tmp_path):
    (profile,) = calls(tmp_path, profiler_steps=2, profiler_steps_start=1)
    profile(0)
    for step in range(1, 6):
        with torch.profiler.record_function(f"step {step}"):
            torch.ones(2) + 1
        profile(step)
    with gzip.open(tmp_path / "rank-00003.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {name for name in names if str(name).startswith("step ")} == {"step 2", "step 3"}


def test_nothing_is_done_where_nothing_is_asked_for(tmp_path):
    assert calls(tmp_path) == []
