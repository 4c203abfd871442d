"""JSON is read a piece at a time, and means what Python's own reader makes of the whole."""

import json
import random
import tracemalloc

import pytest

from allranks.data import json_stream
from allranks.data.json_files import read_json
from allranks.data.records import UnreadableError

WORDS = ['a\\ " \n é 😀', "", "]", "[,", "\ud83d".encode("utf-8", "backslashreplace").decode(), "x" * 50, '{"a": [1]}']
NUMBERS = [0, 12, -0.5, 1e300, -12345678901234567890, True, False, None, float("inf"), float("-inf")]


def value(chance, depth=3):
    match chance.randrange(4 if depth else 2):
        case 0:
            return chance.choice(WORDS)
        case 1:
            return chance.choice(NUMBERS)
        case 2:
            return [value(chance, depth - 1) for _ in range(chance.randrange(4))]
        case _:
            return {f"{key}{chance.choice(WORDS)}": value(chance, depth - 1) for key in range(chance.randrange(4))}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 2**20])
def test_a_list_read_in_pieces_is_the_list(tmp_path, monkeypatch, size):
    monkeypatch.setattr(json_stream, "_CHARACTERS", size)
    chance = random.Random(size)
    path = tmp_path / "a.json"
    for indent, ascii_only in ((None, False), (1, True), ("\t", False), (None, True)):
        values = [value(chance) for _ in range(60)]
        text = f" \n{json.dumps(values, indent=indent, ensure_ascii=ascii_only)}\n "
        path.write_text(text, encoding="utf-8")
        assert [record.value for record in read_json(path)] == json.loads(text) == values


@pytest.mark.parametrize("size", [1, 2, 5, 2**20])
def test_damaged_lists_are_read_to_where_pythons_reader_stops(tmp_path, monkeypatch, size):
    """The same place is named, what is before it is read, and no broken text passes for a whole one.

    Python 3.13 points at a comma that is one too many, earlier ones behind it: here it is the comma for all of them.
    """
    monkeypatch.setattr(json_stream, "_CHARACTERS", size)
    path = tmp_path / "a.json"
    chance = random.Random(size)
    for round in range(100):
        values = [value(chance) for _ in range(4)]
        text = list(json.dumps(values, indent=chance.choice([None, 1]), ensure_ascii=False))
        for _ in range(chance.choice([1, 1, 3])):
            at = chance.randrange(1, len(text) + 1)
            text[at : at + chance.choice([0, 1, 4, 99])] = chance.choice(
                ["", "", '"', "\\", "[", "}", "]", ",", "7", "\n"]
            )
        path.write_text("".join(text), encoding="utf-8")
        try:
            whole = json.loads("".join(text))
        except json.JSONDecodeError as error:
            before, closing = "".join(text)[: error.pos].rstrip(), "".join(text)[error.pos : error.pos + 1]
            expected = {"]": "Expecting value", "}": "Expecting property name enclosed in double quotes"}
            if before.endswith(",") and error.msg == expected.get(closing):
                error = json.JSONDecodeError("Illegal trailing comma", error.doc, len(before) - 1)
            whole, wanted = None, f"{path.name}:{error.lineno}:{error.colno}: "
        found, said = [], []
        try:
            for record in read_json(path):
                found.append(record.value)
                said += [record.problem] if record.problem else []
        except UnreadableError as error:
            said.append(str(error))
        if whole is None:
            assert wanted in said[0], (round, "".join(text))
        elif not any("stands twice" in problem for problem in said):
            assert found == whole and (not said or whole == []), (round, "".join(text))


@pytest.mark.parametrize("size", [1, 2**20])
@pytest.mark.parametrize(
    "text, said",
    [
        ('[{"a": 1} ,\n \n ]', ":1:11: not valid JSON: Illegal trailing comma before end of array"),
        ('[{"a": 1},\n{"a": [1,\n ]}]', "(a.json:2:9: Illegal trailing comma before end of array)"),
        ('[\n {"a": 1\n ,\n }]', "(a.json:3:2: Illegal trailing comma before end of object)"),
        ('{"a": 1}\n{"a": 1, }', "(column 8: Illegal trailing comma before end of object)"),
        ('{\n"a": 1\n}\n{"a":\n 1, }', "(a.json:5:3: Illegal trailing comma before end of object)"),
        ('[1, }', ":1:5: not valid JSON: Expecting value"),
        ('[1,, 2]', ":1:4: not valid JSON: Expecting value"),
    ],
)  # fmt: skip
def test_a_comma_too_many_is_pointed_at_in_the_same_words_under_every_python(tmp_path, monkeypatch, size, text, said):
    monkeypatch.setattr(json_stream, "_CHARACTERS", size)
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    found = []
    try:
        found += [record.problem for record in read_json(path) if record.problem]
    except UnreadableError as error:
        found.append(str(error))
    assert len(found) == 1 and said in found[0]


@pytest.mark.parametrize("separator", [", ", ",\n"])
def test_a_long_list_is_not_held_whole(tmp_path, separator):
    path = tmp_path / "a.json"
    path.write_text(f"[{separator.join([json.dumps({'text': 'x' * 200_000})] * 200)}]")
    tracemalloc.start()
    assert sum(1 for _ in read_json(path)) == 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 4
