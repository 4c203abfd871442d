"""An adapter that lost the rows of a rank is found out, whatever lost them."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from allranks.checkpoint import commit
from allranks.checkpoint.dcp.reader import reader
from allranks.errors import CheckpointError
from allranks.export.export import export
from allranks.model.complete import adapter_problems
from allranks.train.committing_writer import CommittingWriter
from tests.tiny_runs import LORA, train

LAYER = "model.layers.1.self_attn.o_proj"
A, B = (f"{LAYER}.lora_{part}.default.weight" for part in "AB")


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    train(tmp_path, "llama", **LORA)
    return commit.checkpoint_path(tmp_path / "checkpoints", 7)


def tensors_in(checkpoint: Path) -> dict[str, torch.Tensor]:
    metadata = reader(checkpoint).read_metadata().state_dict_metadata
    found = {key: torch.empty(entry.size) for key, entry in metadata.items() if key.startswith("model.")}
    dcp.load(found, storage_reader=reader(checkpoint), no_dist=True)
    return found


def save_again(checkpoint: Path, contents: dict[str, torch.Tensor]) -> None:
    """As a program that is not sound would: complete, with right checksums, of these tensors."""
    (checkpoint / commit.MARKER).unlink()
    dcp.save(contents, storage_writer=CommittingWriter(checkpoint, {"step": 7}), no_dist=True)


def refused(checkpoint: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        export(checkpoint, checkpoint.parent / "out")
    with pytest.raises(CheckpointError, match=message):
        export(checkpoint, checkpoint.parent / "out", merge=True)
    assert not (checkpoint.parent / "out").exists()


def test_a_whole_one_is_exported_with_the_optimizer_beside_it(checkpoint):
    contents = tensors_in(checkpoint)
    squares = {f"optimizer.state.{key.removeprefix('model.')}.exp_avg_sq": t**2 for key, t in contents.items()}
    save_again(checkpoint, contents | squares)
    assert export(checkpoint, checkpoint.parent / "out").kind == "adapter"


def test_zero_rows_of_a(checkpoint):
    contents = tensors_in(checkpoint)
    contents[f"model.{A}"][1:] = 0
    save_again(checkpoint, contents)
    refused(checkpoint, rf"{A}: 2 rows \(1 to 2\) of 3 are zero, though they were trained")


def test_zero_rows_of_b_that_had_gradients(checkpoint):
    contents = tensors_in(checkpoint)
    squares = {f"optimizer.state.{key.removeprefix('model.')}.exp_avg_sq": t**2 for key, t in contents.items()}
    contents[f"model.{B}"][16:] = 0
    save_again(checkpoint, contents | squares)
    refused(checkpoint, rf"{B}: 16 rows \(16 to 31\) of 32 are zero, though they were trained")


def test_rows_of_b_that_never_had_a_gradient_are_no_fault():
    whole, squares = torch.ones(4, 2), torch.ones(4, 2)
    whole[1:3], squares[1:3] = 0, 0
    assert adapter_problems({B: whole}, {B: squares}) == []
    untouched = torch.zeros(4, 2)  # a first step at learning rate 0
    assert adapter_problems({B: untouched}, {B: torch.ones(4, 2)}) == []
    assert adapter_problems({A: untouched}, random_start=False) == []
    assert len(adapter_problems({A: untouched})) == 1


def test_a_missing_tensor_and_a_rank_s_part_for_the_whole(checkpoint):
    contents = tensors_in(checkpoint)
    del contents[f"model.{A}"]
    contents[f"model.{B}"] = contents[f"model.{B}"][:16].clone()
    save_again(checkpoint, contents)
    refused(checkpoint, rf'lacks \["{A}"\]; {B} is \[16, 3\], the model\'s is \[32, 3\]')


def test_not_finite(checkpoint):
    contents = tensors_in(checkpoint)
    contents[f"model.{B}"][3, 1] = torch.nan
    save_again(checkpoint, contents)
    refused(checkpoint, f"{B} holds numbers that are not finite")


def test_a_part_that_no_rank_saved(checkpoint):
    file = checkpoint / "metadata.json"
    metadata = json.loads(file.read_text())
    metadata["tensors"][f"model.{B}"]["parts"][0][1] = [16, 3]
    file.write_text(json.dumps(metadata))
    files = commit.read_marker(checkpoint)["files"]
    commit.commit(checkpoint, files | {file.name: commit.digest(file)}, step=7)
    refused(checkpoint, rf"parts of model\.{B} were saved by no rank")
