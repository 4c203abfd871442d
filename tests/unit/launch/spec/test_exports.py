import os

import pytest

from allranks.errors import UsageError
from allranks.launch.spec.exports import exported, working_directory


def test_what_steers_a_run_crosses_and_what_is_a_nodes_own_does_not():
    env = {
        "NCCL_DEBUG": "INFO",
        "HF_TOKEN": "t",
        "OMP_NUM_THREADS": "4",
        "https_proxy": "http://p",
        "PYTHONPATH": "/x",
        "CUDA_LAUNCH_BLOCKING": "1",
        "CUDA_VISIBLE_DEVICES": "1",
        "PATH": "/bin",
        "HOME": "/root",
        "SLURM_JOB_ID": "1",
        "HOSTNAME": "a",
    }
    assert list(exported(env)) == [
        *["CUDA_LAUNCH_BLOCKING", "HF_TOKEN", "NCCL_DEBUG", "OMP_NUM_THREADS", "PYTHONPATH", "https_proxy"]
    ]


def test_more_by_name_or_with_a_value():
    assert exported({"A": "here"}, ["A", "B=x=y $(z)\n", "C="]) == {"A": "here", "B": "x=y $(z)\n", "C": ""}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("MISSING", "--export MISSING: it is not set here"),
        ("a-b=1", "'a-b' is not the name"),
        ("=x", "is not the name"),
    ],
)
def test_a_name_that_is_none_or_not_set(words, said):
    with pytest.raises(UsageError) as error:
        exported({}, [words])
    assert said in str(error.value)


def test_the_directory_is_the_one_that_the_user_knows(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "link")
    assert working_directory({"PWD": str(tmp_path / "link")}) == str(tmp_path / "link")
    for other in ("/", "relative", "", "/of/another/machine"):
        assert working_directory({"PWD": other}) == os.path.realpath(tmp_path / "real")


def test_a_directory_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UsageError, match="does not exist any more"):
        working_directory({})
