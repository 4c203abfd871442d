"""A checkpoint is read without running what is in it, also one with DCP's own metadata, which earlier versions left."""

import io
import pickle
import subprocess
from enum import Enum
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

from allranks.checkpoint import commit
from allranks.checkpoint.dcp import pickled
from allranks.checkpoint.dcp.reader import planner, reader
from allranks.errors import CheckpointError
from allranks.export.export import export
from tests.tiny_runs import train


class Attack:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def contents():
    groups = {"lr": 0.1, "betas": (0.9, 0.99), "fused": None, "name": "adamw", "maximize": False}
    return {"model": {"weight": torch.arange(6.0).view(2, 3)}, "optimizer": {"groups": groups}}


@pytest.fixture
def saved(tmp_path):
    dcp.save(contents(), checkpoint_id=tmp_path / "saved", no_dist=True)
    return tmp_path / "saved"


def test_tensors_and_other_values_come_back(saved):
    got = {
        "model": {"weight": torch.empty(2, 3)},
        "optimizer": {"groups": dict.fromkeys(contents()["optimizer"]["groups"], 0)},
    }
    dcp.load(got, storage_reader=reader(saved), planner=planner(), no_dist=True)
    assert torch.equal(got["model"]["weight"], contents()["model"]["weight"])
    assert got["optimizer"] == contents()["optimizer"]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_every_dtype_can_be_described(tmp_path, kind):
    dcp.save({"x": torch.zeros(2, dtype=kind)}, checkpoint_id=tmp_path, no_dist=True)
    assert reader(tmp_path).read_metadata().state_dict_metadata["x"].properties.dtype == kind


def test_metadata_that_would_run_code_is_refused(saved, tmp_path):
    touched = tmp_path / "touched"
    (saved / ".metadata").write_bytes(pickle.dumps(Attack(touched)))
    with pytest.raises(CheckpointError, match=r"wants to call pathlib\S*\.Path"):
        reader(saved).read_metadata()
    assert not touched.exists()
    pickle.loads((saved / ".metadata").read_bytes())
    assert touched.exists(), "the attack is none"


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "torch.serialization.os.system"])
def test_names_that_reach_further_are_refused(saved, name):
    module, _, attribute = name.partition(".")
    (saved / ".metadata").write_bytes(
        f"\x80\x04\x8c{chr(len(module))}{module}\x8c{chr(len(attribute))}{attribute}\x93.".encode("latin1")
    )
    with pytest.raises(CheckpointError, match=f"wants to call {name}"):
        reader(saved).read_metadata()


def test_a_value_that_would_run_code_is_refused(saved, tmp_path):
    touched = tmp_path / "touched"
    metadata = reader(saved).read_metadata()
    place = next(place for index, place in metadata.storage_data.items() if index.fqn == "optimizer.groups.lr")
    buffer = io.BytesIO()
    torch.save(Attack(touched), buffer)
    file = saved / place.relative_path
    place.offset, place.length = file.stat().st_size, len(buffer.getvalue())
    file.write_bytes(file.read_bytes() + buffer.getvalue())
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))
    got = {"optimizer": {"groups": {"lr": 0}}}
    with pytest.raises(CheckpointException, match="Weights only load failed"):
        dcp.load(got, storage_reader=reader(saved), planner=planner(), no_dist=True)
    assert not touched.exists()
    dcp.load(got, checkpoint_id=saved, no_dist=True)
    assert touched.exists(), "the attack is none"


def test_metadata_points_into_its_own_folder_only(saved):
    metadata = reader(saved).read_metadata()
    for place in metadata.storage_data.values():
        place.relative_path = "../elsewhere"
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="outside of the checkpoint"):
        reader(saved).read_metadata()


class _Older(pickle.Pickler):
    """Pickles members of an Enum as Python 3.11.0 to 3.11.3 do."""

    def reducer_override(self, obj):
        return (getattr, (type(obj), obj.name)) if isinstance(obj, Enum) else NotImplemented


def as_older_python(obj):
    buffer = io.BytesIO()
    _Older(buffer).dump(obj)
    assert b"getattr" in buffer.getvalue()
    return buffer.getvalue()


def test_members_of_an_enum_as_python_3_11_0_to_3_pickles_them(saved):
    plain = reader(saved).read_metadata()
    (saved / ".metadata").write_bytes(as_older_python(pickle.loads((saved / ".metadata").read_bytes())))
    read = reader(saved).read_metadata()
    read.storage_meta = plain.storage_meta  # each reader has an id of its own
    assert read == plain


class Reach:
    """Unpickling it takes an attribute of something."""

    def __init__(self, owner, name):
        self.found = owner, name

    def __reduce__(self):
        return getattr, self.found


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (_MEM_FORMAT_ENCODING, "__init_subclass__"),
        (_MEM_FORMAT_ENCODING, "mro"),
        (_MEM_FORMAT_ENCODING, "_value2member_map_"),
        (_MEM_FORMAT_ENCODING.TORCH_CHANNELS_LAST, "name"),
        (Path.home(), "touch"),
        (torch.Size, "__class__"),
        (Metadata, "__init__"),
    ],
)
def test_getattr_reaches_nothing_but_members(saved, owner, name):
    (saved / ".metadata").write_bytes(pickle.dumps(Reach(owner, name)))
    with pytest.raises(CheckpointError, match=r"wants to call builtins\.getattr"):
        reader(saved).read_metadata()


def test_a_python_that_pickles_them_so_wrote_it(saved):
    """The same, by such a Python where there is one."""
    python = Path("/usr/bin/python3")
    code = "import sys, enum, pickle; print(sys.version_info[:3] in [(3, 11, 0), (3, 11, 1), (3, 11, 2), (3, 11, 3)])"
    if not python.exists() or subprocess.check_output([python, "-c", code], text=True).strip() != "True":
        pytest.skip("/usr/bin/python3 is not one of 3.11.0 to 3.11.3; on Debian 12 it is")
    code = (
        "import enum, pickle, sys, types\n"
        "module = types.ModuleType('torch.distributed.checkpoint.metadata')\n"
        "class _MEM_FORMAT_ENCODING(enum.Enum): TORCH_CHANNELS_LAST = 1\n"
        "_MEM_FORMAT_ENCODING.__module__ = module.__name__\n"
        "module._MEM_FORMAT_ENCODING = _MEM_FORMAT_ENCODING\n"
        "for name in ('torch', 'torch.distributed', 'torch.distributed.checkpoint'): sys.modules[name] = module\n"
        "sys.modules[module.__name__] = module\n"
        "sys.stdout.buffer.write(pickle.dumps(_MEM_FORMAT_ENCODING.TORCH_CHANNELS_LAST))\n"
    )
    written = subprocess.check_output([python, "-c", code])
    assert b"getattr" in written
    assert pickled._Unpickler(io.BytesIO(written)).load() is _MEM_FORMAT_ENCODING.TORCH_CHANNELS_LAST


def test_a_file_of_tensors_that_is_a_link_out_of_the_folder_is_not_read(saved, tmp_path):
    shard = saved / "__0_0.distcp"
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="leads out of the checkpoint's folder"):
        reader(saved).read_metadata()


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1])])
def test_damaged_metadata(saved, content):
    (saved / ".metadata").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        reader(saved).read_metadata()


def test_an_export_refuses_it_too(tmp_path):
    train(tmp_path / "run", "llama")
    checkpoint = commit.checkpoint_path(tmp_path / "run" / "checkpoints", 7)
    (checkpoint / "metadata.json").unlink()
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Attack(tmp_path / "touched")))
    marker = commit.read_marker(checkpoint)
    del marker["files"]["metadata.json"]
    marker["files"][".metadata"] = commit.digest(checkpoint / ".metadata")
    commit.write_marker(checkpoint, marker)
    with pytest.raises(CheckpointError, match="wants to call"):
        export(tmp_path / "run")
    assert not (tmp_path / "touched").exists()
