import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import allranks
from allranks.checkpoint.contents import FILE, Contents, Part, Place, StoredTensor, read_contents, write_contents
from allranks.errors import CheckpointError

CONTENTS = Contents(
    {
        "model.w": StoredTensor(
            "bfloat16",
            "strided",
            (4, 3),
            [Part((0, 0), (2, 3), Place("__0_0.distcp", 0, 700)), Part((2, 0), (2, 3), Place("__1_0.distcp", 9, 700))],
        ),
        "model.número": StoredTensor("int64", "strided", (), [Part((), (), Place("__0_0.distcp", 700, 400))]),
    },
    {"optimizer.lr": Place("__0_0.distcp", 1100, 50)},
    {"model.w": ("model", "w"), "optimizer.lr": ("optimizer", "groups", 0, "lr")},
)


def test_what_was_written_is_read(tmp_path):
    write_contents(tmp_path, CONTENTS)
    assert read_contents(tmp_path) == CONTENTS


def edited(folder, edit):
    write_contents(folder, CONTENTS)
    document = json.loads((folder / FILE).read_text())
    edit(document)
    (folder / FILE).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda it: it.update(version=2), "version 2 of its format, and this allranks reads version 1"),
        (lambda it: it.update(format="x"), "not the JSON that allranks wrote"),
        (lambda it: it.pop("files"), "'files'"),
        (lambda it: it.update(files=["../x"]), r"outside of the checkpoint: '\.\./x'"),
        (lambda it: it.update(files=["/etc/passwd"]), "outside of the checkpoint"),
        (lambda it: it.update(files=["a/b"]), "outside of the checkpoint"),
        (lambda it: it.update(files=[".."]), "outside of the checkpoint"),
        (lambda it: it.update(files=["__0_0.distcp"]), "no file of number 1"),
        (lambda it: it.update(tensors=[]), "cannot be read"),
        (lambda it: it["tensors"]["model.w"].update(size=[4]), "a part of model.w lies outside"),
        (lambda it: it["tensors"]["model.w"].update(size=[3, 3]), "a part of model.w lies outside"),
        (lambda it: it["tensors"]["model.w"].update(size=[4, True]), "True is no size"),
        (lambda it: it["tensors"]["model.w"].update(size=[4, -3]), "-3 is no size"),
        (lambda it: it["tensors"]["model.w"].update(size=[4, 3.5]), "3.5 is no size"),
        (lambda it: it["tensors"]["model.w"]["parts"][0].pop(), "cannot be read"),
        (lambda it: it["values"].update({"optimizer.lr": "x"}), "a list was expected"),
        (lambda it: it["paths"].update({"model.w": [None]}), "no path of keys"),
    ],
)
def test_what_is_not_as_it_was_written_is_refused(tmp_path, edit, message):
    edited(tmp_path, edit)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_contents(tmp_path)
    assert str(tmp_path / FILE) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\ud800"])
def test_what_is_no_such_json_is_refused(tmp_path, text):
    (tmp_path / FILE).write_text(text, errors="surrogatepass")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_contents(tmp_path)


def test_any_single_value_replaced_is_refused_or_read_without_another_error(tmp_path):
    write_contents(tmp_path, CONTENTS)
    document = json.loads((tmp_path / FILE).read_text())

    def places(node, path=()):
        yield path
        if isinstance(node, dict | list):
            for key in node if isinstance(node, dict) else range(len(node)):
                yield from places(node[key], (*path, key))

    for path in places(document):
        for value in (None, -1, 2**70, "x", [], {}, [[]], float("nan")):
            changed = copy.deepcopy(document)
            if path:
                owner = changed
                for key in path[:-1]:
                    owner = owner[key]
                owner[path[-1]] = value
            (tmp_path / FILE).write_text(json.dumps(changed if path else value))
            try:
                read_contents(tmp_path)
            except CheckpointError:
                continue


def test_a_dtype_that_nobody_could_read_is_not_written(tmp_path):
    tensor = StoredTensor("quint4x2", "strided", (1,), [Part((0,), (1,), Place("f", 0, 1))])
    with pytest.raises(CheckpointError, match="quint4x2"):
        write_contents(tmp_path, Contents({"x": tensor}, {}, {}))


def other_pythons():
    """Pythons of other minor versions on this machine, newest first: of pyenv, and of PATH."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    of_pyenv = root.glob("versions/*/bin") if os.access(root, os.R_OK) else []
    folders = [*map(str, of_pyenv), *os.environ.get("PATH", "").split(os.pathsep)]
    found = {}
    for minor in range(20, 10, -1):
        for folder in folders:
            python = Path(folder) / f"python3.{minor}"
            if minor != sys.version_info.minor and os.access(python, os.X_OK) and "shims" not in folder:
                found.setdefault(minor, python)
    return list(found.values())


def test_other_versions_of_python_read_it(tmp_path):
    pythons = other_pythons()
    if not pythons:
        pytest.skip("no other version of Python here; `pyenv install 3.13` or `apt-get install python3` brings one")
    write_contents(tmp_path, CONTENTS)
    code = (
        "import sys; from pathlib import Path\n"
        "from allranks.checkpoint.contents import read_contents, write_contents\n"
        "contents = read_contents(Path(sys.argv[1]))\n"
        "write_contents(Path(sys.argv[2]), contents)\n"
    )
    source = str(Path(allranks.__file__).parents[1])
    for python in pythons:
        again = tmp_path / python.name
        again.mkdir()
        # Only the standard library: whatever is installed for one Python is none of the other's.
        done = subprocess.run(
            [python, "-S", "-c", code, tmp_path, again],
            env={"PYTHONPATH": source, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{python}: {done.stderr}"
        assert read_contents(again) == CONTENTS
