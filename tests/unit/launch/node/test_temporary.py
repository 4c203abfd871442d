import os
import subprocess
import sys
import tempfile
from pathlib import Path

from allranks.launch.node.temporary import give_back_temporary_folder, own_temporary_folder


def test_what_processes_of_the_run_leave_goes_with_it(tmp_path):
    program = "import tempfile; print(tempfile.mkdtemp(prefix='torchelastic_'))"
    with own_temporary_folder({"TMPDIR": str(tmp_path)}) as variables:
        done = subprocess.run([sys.executable, "-c", program], env={**os.environ, **variables}, capture_output=True)
        left = Path(done.stdout.decode().strip())
        assert left.is_dir() and left.is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_anyones_program_has_the_users_own():
    for before in ({}, {"TMPDIR": tempfile.gettempdir()}):
        with own_temporary_folder(before) as variables:
            rank = {**before, **variables}
            give_back_temporary_folder(rank)
        assert rank == before
    rank = {"TMPDIR": "/somewhere"}
    give_back_temporary_folder(rank)  # not started by us
    assert rank == {"TMPDIR": "/somewhere"}


def test_what_is_compiled_stays_for_the_next_run(tmp_path):
    with own_temporary_folder({"TMPDIR": str(tmp_path)}, compiles=True) as variables:
        kept = Path(variables["TORCHINDUCTOR_CACHE_DIR"])
        assert kept.parent == tmp_path and kept.name.startswith("torchinductor_")
    with own_temporary_folder({"TORCHINDUCTOR_CACHE_DIR": "/mine"}, compiles=True) as variables:
        assert "TORCHINDUCTOR_CACHE_DIR" not in variables
