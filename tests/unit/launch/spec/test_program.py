import pytest

from allranks.errors import UsageError
from allranks.launch.spec.program import anyones, as_a_rank, engine


def test_scripts_modules_and_executables_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    assert anyones(["train.py", "--lr", "1"]).words() == ["train.py", "--lr", "1"]
    assert anyones(["-m", "axolotl.cli.train", "c.yaml"]).words() == ["-m", "axolotl.cli.train", "c.yaml"]
    assert anyones(["bash", "-c", "echo $RANK; true"]).words() == ["--no-python", "bash", "-c", "echo $RANK; true"]
    assert anyones(["--no-python", "bash"]).words() == ["--no-python", "bash"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no program"),
        (["-m"], "-m needs a name"),
        (["missing.py"], "missing.py: no such script here"),
        (["no-such-program"], "neither a Python script .* nor an executable here; `-m no-such-program`"),
        (["--nnodes", "2"], "--nnodes comes where the program is expected"),
        (["torchrun", "train.py"], "torchrun is a launcher, and allranks run starts one itself"),
        (["-m", "allranks.train", "c.yaml"], "`allranks train CONFIG` starts"),
    ],
)
def test_what_is_no_program_is_refused(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        anyones(words)


def test_only_other_programs_need_help_with_their_output(tmp_path):
    assert as_a_rank(engine(tmp_path)) == engine(tmp_path)
    wrapped = as_a_rank(anyones(["-m", "trainer", "-m", "x"]))
    assert wrapped.words() == ["-m", "allranks.launch.node.rank", "module", "trainer", "-m", "x"]
