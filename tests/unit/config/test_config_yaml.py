"""Files that are no config at all, and what YAML does behind a user's back."""

import pytest

from allranks.config.yaml_lines import parse_yaml, read_yaml
from allranks.errors import ConfigError

BROKEN = {
    "empty": (b"", ": the config is empty; it needs at least base_model"),
    "only comments": (b"# nothing\n\n", ": the config is empty"),
    "a list": (b"- a\n- b\n", ":1: expected `key: value` lines at the top, found a list"),
    "a word": (b"hello\n", ":1: expected `key: value` lines at the top, found only the value 'hello'"),
    "not UTF-8": (b"a: 1\nb: caf\xe9\n", ":2: not UTF-8 text (byte 0xe9)"),
    "UTF-16": ("a: 1\n".encode("utf-16"), ":1: not UTF-8 text (byte 0xff)"),
    "a zip file": (b"PK\x03\x04", ":1: not valid YAML: the character '\\x03' is not allowed"),
    "an open bracket": (b"a: 1\nb: [1, 2\nc: 3\n", ":3: not valid YAML: while parsing a flow sequence"),
    "a tab": (b"a:\n\tb: 1\n", ":2: not valid YAML: while scanning for the next token: found character '\\t'"),
    "bad indentation": (b"a: 1\n  b: 2\n", ":2: not valid YAML: mapping values are not allowed here"),
    "two documents": (b"a: 1\n---\nb: 2\n", ":2: not valid YAML: expected a single document"),
    "an unknown alias": (b"a: *x\n", ":1: not valid YAML: found undefined alias"),
    "a Python object": (b"a: 1\nb: !!python/object/apply:os.system [id]\n", ":2: the tag tag:yaml.org,2002:python"),
    "a binary": (b"a: !!binary aGk=\n", ":1: the tag tag:yaml.org,2002:binary is not allowed"),
    "a set": (b"a: !!set {x}\n", ":1: the tag tag:yaml.org,2002:set is not allowed"),
    "a wrong tag": (b"a: !!int abc\n", ":1: 'abc' is not what its tag tag:yaml.org,2002:int says"),
    "a key twice": (b"a: 1\nb: 2\na: 1\n", ":3: a: given twice; it is on line 1 too"),
    "a key twice inside": (b"a:\n  x: 1\n  x: 2\n", ":3: x: given twice; it is on line 2 too"),
    "a key twice on a line": (b"a: {x: 1, x: 2}\n", ":1: x: given twice; it is on line 1 too"),
    "a number as key": (b"a: 1\n12: x\n", ":2: the key 12 is not read as text by YAML; put it in quotes"),
    "a switch as key": (b"on: x\n", ":1: the key on is not read as text by YAML; put it in quotes"),
    "a list as key": (b"? [a]\n: 1\n", ":1: a key must be text"),
    "a value in itself": (b"a: &x\n  b: *x\n", ":1: an alias refers to the value that it is part of"),
    "aliases without end": (
        b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 9)),
        "more than 100000 values, counting aliases each time",
    ),
    "nested without end": (b"a: " + b"[" * 5000, ": nested too deeply"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_with_its_line(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}:")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_a_file(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        read_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="is a directory"):
        read_yaml(tmp_path)
    (tmp_path / "plain").write_text("x")
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        read_yaml(tmp_path / "plain" / "config.yaml")


def test_lines_and_values(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes("\ufeffa: 1e-5\n\nb:\n  - x: 2024-01-01\n    y: é\n  - {z: on}\n".encode())
    data, lines = read_yaml(path)
    assert data == {"a": 1e-5, "b": [{"x": "2024-01-01", "y": "é"}, {"z": True}]}
    assert lines == {
        ("a",): 1,
        ("b",): 3,
        ("b", 0): 4,
        ("b", 0, "x"): 4,
        ("b", 0, "y"): 5,
        ("b", 1): 6,
        ("b", 1, "z"): 6,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("-2E3", -2000.0), ("+.5e+1", 5.0), ("1.e1", 10.0), ("1e", "1e"), ("e5", "e5"), ("0x1e5", 0x1E5)],
)
def test_numbers(text, value):
    assert parse_yaml(text, "test")[0] == value


def test_a_mapping_used_twice_through_an_alias_is_no_duplicate():
    data, _ = parse_yaml("a: &a\n  <<: {x: 1}\n  y: 2\nb: *a\nc:\n  <<: *a\n  x: 3\n", "test")
    assert data == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 2}, "c": {"x": 3, "y": 2}}
