"""The folder of an export is whole, and read by whom the umask lets read."""

import os
import stat

import pytest

from allranks.errors import UsageError
from allranks.export.publish import new_folder


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o007, 0o660, 0o770)])
def test_files_have_the_mode_of_new_files_whoever_wrote_them(tmp_path, umask, file_mode, folder_mode):
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "out") as folder:
            (folder / "inner").mkdir(mode=0o700)
            for name, mode in {"a": 0o600, "b": 0o755, "inner/c": 0o400}.items():
                (folder / name).touch()
                (folder / name).chmod(mode)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").rglob("*")}
    assert modes == {"a": file_mode, "b": file_mode, "c": file_mode, "inner": folder_mode}


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_in_the_place_of_the_folder_is_told_as_one_and_kept(tmp_path, replace):
    out = tmp_path / "model.safetensors"
    out.write_text("x")
    with (
        pytest.raises(UsageError, match=r"model\.safetensors is a file, where a folder"),
        new_folder(out, replace=replace),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"] and out.read_text() == "x"
