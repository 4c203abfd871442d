"""What cannot be read is refused, although it is the same on every node."""

import json

import pytest

from allranks.config import load_config
from allranks.errors import UsageError
from allranks.launch.must_match import refuse_unreadable, what_must_be_equal
from allranks.model import files


def test_a_file_of_the_model_that_this_user_cannot_read_is_named(tmp_path, monkeypatch):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"x")
    keys = {"base_model": str(model), "datasets": [{"path": "a.jsonl", "type": "alpaca"}], "output_dir": "run"}
    keys |= {"learning_rate": 0.1, "sequence_len": 64, "batch_size": 8, "micro_batch_size": 1, "max_steps": 1}
    (tmp_path / "c.yaml").write_text(json.dumps(keys))
    cfg = load_config(tmp_path / "c.yaml", {})
    refuse_unreadable(what_must_be_equal(cfg))
    read = files.file_sha256

    def refused(file):  # root may read all files
        if file.suffix == ".safetensors":
            raise PermissionError(13, "Permission denied")
        return read(file)

    monkeypatch.setattr(files, "file_sha256", refused)
    with pytest.raises(
        UsageError, match=r"^base_model: model\.safetensors cannot be read: Permission denied, as user "
    ):
        refuse_unreadable(what_must_be_equal(cfg))
