"""All that DCP's planner and writer say of a checkpoint survives the way through JSON."""

import json

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from allranks.checkpoint import contents
from allranks.checkpoint.dcp.metadata import read_metadata, write_metadata
from allranks.checkpoint.dcp.reader import planner, reader
from allranks.errors import CheckpointError
from allranks.train.committing_writer import CommittingWriter
from allranks.train.strategies.flat import FlatRange, SavePlanner


def everything():
    """A tensor of each kind of shape, one that a rank holds in boxes, and values that are no tensors."""
    groups = [{"lr": 0.1, "betas": (0.9, 0.99), "fused": None, "params": ["a.b", "c"]}, {"lr": 1e-3}]
    tensors = {"whole": torch.arange(6.0).view(2, 3), "number": torch.tensor(7), "empty": torch.empty(0, 4)}
    return {
        "model": {**tensors, "ranges.weight": FlatRange((5, 4), 0, torch.arange(20.0))},
        "optimizer": {"param_groups": groups, "step": 3},
    }


def test_it_says_what_dcps_own_pickle_says(tmp_path):
    dcp.save(everything(), checkpoint_id=tmp_path, planner=SavePlanner(), no_dist=True)
    pickled = FileSystemReader(tmp_path).read_metadata()
    write_metadata(tmp_path, pickled)
    read = read_metadata(tmp_path)
    assert read.state_dict_metadata == pickled.state_dict_metadata
    assert read.storage_data == pickled.storage_data
    assert read.planner_data == pickled.planner_data
    hints = {index: index.index for index in pickled.storage_data if index.index is not None}
    assert {index: index.index for index in read.storage_data if index in hints} == hints


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "step-00000001"


def test_what_the_engine_saves_holds_no_pickle_of_metadata_and_comes_back(checkpoint):
    dcp.save(everything(), storage_writer=CommittingWriter(checkpoint, {}), planner=SavePlanner(), no_dist=True)
    assert not (checkpoint / ".metadata").exists()
    got = {"model": {"whole": torch.empty(2, 3), "ranges.weight": torch.empty(5, 4)}, "optimizer": {"step": 0}}
    dcp.load(got, storage_reader=reader(checkpoint), planner=planner(), no_dist=True)
    assert torch.equal(got["model"]["whole"], everything()["model"]["whole"])
    assert torch.equal(got["model"]["ranges.weight"], torch.arange(20.0).view(5, 4))
    assert got["optimizer"] == {"step": 3}


_ALL_DTYPES = sorted({str(of) for of in vars(torch).values() if isinstance(of, torch.dtype)})


@pytest.mark.parametrize("dtype", contents.DTYPES)
def test_every_dtype_of_the_list_can_be_saved(checkpoint, dtype):
    if not hasattr(torch, dtype):
        pytest.skip(f"torch {torch.__version__} has no {dtype}")
    kind = getattr(torch, dtype)
    dcp.save({"x": torch.empty(2, dtype=kind)}, storage_writer=CommittingWriter(checkpoint, {}), no_dist=True)
    entry = reader(checkpoint).read_metadata().state_dict_metadata["x"]
    assert isinstance(entry, TensorStorageMetadata) and entry.properties.dtype == kind


def test_the_list_lacks_only_what_no_training_saves():
    lacking = {name.removeprefix("torch.") for name in _ALL_DTYPES} - set(contents.DTYPES)
    # Types of quantized tensors and of fewer than eight bits, which hold no numbers of their own.
    assert {name for name in lacking if not name.startswith(("q", "bits", "int", "uint"))} == set()
    assert not {name for name in lacking if name in ("int8", "int16", "int32", "int64")}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dtype", "float99", "x has the dtype 'float99', which this version of allranks does not know"),
        ("dtype", "load", "x has the dtype 'load'"),
        ("dtype", ["float32"], "x has the dtype"),
        ("layout", "sparse_coo", "x has the layout 'sparse_coo'"),
    ],
)
def test_a_name_that_is_not_on_a_list_is_refused_by_name(checkpoint, key, value, message):
    dcp.save({"x": torch.zeros(2)}, storage_writer=CommittingWriter(checkpoint, {}), no_dist=True)
    path = checkpoint / contents.FILE
    document = json.loads(path.read_text())
    document["tensors"]["x"][key] = value
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=message):
        reader(checkpoint).read_metadata()


def test_a_folder_with_neither_says_which_file_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"metadata\.json cannot be read: No such file"):
        reader(tmp_path).read_metadata()
