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
    """The same place is named, what is before it is read, and no broken text passes for a whole one."""
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


@pytest.mark.parametrize("separator", [", ", ",\n"])
def test_a_long_list_is_not_held_whole(tmp_path, separator):
    path = tmp_path / "a.json"
    path.write_text(f"[{separator.join([json.dumps({'text': 'x' * 200_000})] * 200)}]")
    tracemalloc.start()
    assert sum(1 for _ in read_json(path)) == 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 4
