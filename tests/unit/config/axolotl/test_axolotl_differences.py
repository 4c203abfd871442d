"""Defaults and meanings that are not Axolotl's are said at the start, and stand in docs/axolotl.md."""

from pathlib import Path

import pytest

from allranks.config.load import resolve_mapping

PAGE = (Path(__file__).parents[4] / "docs" / "axolotl.md").read_text()
MINIMAL = {"base_model": "m", "learning_rate": 1e-4, "datasets": [{"path": "d", "type": "alpaca"}], "sequence_len": 512}


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({}, []),
        ({"sequence_len": None}, ["sequence_len is not given: 2048 tokens, where Axolotl takes 512"]),
        ({"batch_size": 8}, ["batch_size: 8 blocks on all ranks together; in Axolotl on each"]),
        ({"bf16": True}, ["bf16: computes in bfloat16 and keeps weights and optimizer state in float32"]),
        ({"bf16": "auto"}, ["8 bytes a parameter less: `bf16: full`"]),
        ({"bf16": "full"}, []),
        ({"bf16": True, "fsdp_version": 2}, []),
        ({"bf16": True, "deepspeed": {"zero_optimization": {"stage": 2}}}, []),
        ({"bf16": True, "adapter": "lora", "lora_r": 8, "lora_alpha": 8}, []),
        ({"bf16": False}, []),
    ],
)
def test_a_difference_is_said(keys, parts):
    config = resolve_mapping({**MINIMAL, **keys})
    assert len(config.notes) == len(parts)
    assert all(part in note for part, note in zip(parts, config.notes, strict=True))
    assert config.remarks[: len(parts)] == [f"note: {note}" for note in config.notes]
    # What a run reads on its ranks has every key, and was said where it was started.
    assert not [note for note in resolve_mapping(config.flat()).notes if "sequence_len" in note]


def test_the_defaults_that_are_axolotls():
    config = resolve_mapping(MINIMAL)
    assert (
        config.checkpoint.num_kept == 4
        and resolve_mapping({**MINIMAL, "save_total_limit": 0}).checkpoint.num_kept is None
    )


@pytest.mark.parametrize(
    "key", ["sequence_len", "batch_size", "bf16", "save_total_limit", "warmup_ratio", "logging_steps", "lr_scheduler"]
)
def test_the_page_lists_it(key):
    table = PAGE.partition("**Another default, or another meaning**")[2].partition("**The same key")[0]
    assert f"| `{key}" in table
