"""A certificate names each part that is not as it was, and no other."""

import json
import random

import pytest

from allranks.preflight.certificate import (
    PARTS,
    Certificate,
    differences,
    hashes,
    parts_of,
    read_certificate,
    told,
)

PROVED = {part: {f"{part} {number}": f"value {number}" for number in range(3)} for part in PARTS}


def changed(part, rng):
    table = dict(PROVED[part])
    name = rng.choice(sorted(table))
    how = rng.choice(("value", "gone", "new"))
    if how == "value":
        table[name] += "!"
    elif how == "gone":
        del table[name]
    else:
        name = "added"
        table[name] = "x"
    return {**PROVED, part: table}, name


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("seed", range(6))
def test_a_part_that_differs_alone_is_named_alone(part, seed):
    now, name = changed(part, random.Random(seed))
    found = differences(PROVED, now)
    assert [(one.part, one.name) for one in found] == [(part, name)]
    assert len(told(found)) == 1 and told(found)[0].startswith(f"{part}: {name} was ")
    before, after = hashes(PROVED), hashes(now)
    assert {each for each in PARTS if before[each] != after[each]} == {part}
    assert Certificate(PROVED).sha256 != Certificate(now).sha256


def test_nothing_differs_from_itself_in_any_order():
    reordered = {part: dict(reversed(PROVED[part].items())) for part in reversed(PARTS)}
    assert differences(PROVED, reordered) == []
    assert Certificate(PROVED).sha256 == Certificate(reordered).sha256


def test_a_part_that_one_side_does_not_know_is_not_compared():
    known = {part: table for part, table in PROVED.items() if part != "data"}
    assert differences(PROVED, known) == [] == differences(known, PROVED)


def test_it_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "certificate.json"
    assert read_certificate(path) is None
    Certificate(PROVED, 12.5, "run", {"ranks": []}).write(path)
    read = read_certificate(path)
    assert (read.parts, read.t, read.run) == (PROVED, 12.5, "run")
    written = json.loads(path.read_text())
    assert written["sha256"] == read.sha256 and written["hashes"] == hashes(PROVED)


@pytest.mark.parametrize("text", ["", "[]", "{}", "7", '{"format": "allranks-certificate", "version": 1}', "[" * 9999])
def test_a_damaged_one_is_told_and_raises_nothing(tmp_path, text):
    path = tmp_path / "certificate.json"
    path.write_text(text)
    assert "damaged" in read_certificate(path)


def test_one_that_was_edited_or_is_of_a_later_version_is_told(tmp_path):
    path = tmp_path / "certificate.json"
    Certificate(PROVED).write(path)
    document = json.loads(path.read_text())
    document["parts"]["config"]["config 0"] = "edited"
    path.write_text(json.dumps(document))
    assert "was changed" in read_certificate(path)
    path.write_text(json.dumps(document | {"version": 2}))
    assert "version 2" in read_certificate(path)


def test_fields_that_must_match_come_into_their_parts():
    same = {"python": "3.11", "package torch": "2", "code of allranks": "s", "learning_rate": "1"}
    same |= {"base_model: model.safetensors": "9 bytes", "tokenizer: tokenizer.json": "8", "data: datasets.0: a": "7"}
    same |= {"auto_resume_from_checkpoints": "true", "preflight.strict": "[]"}
    parts = parts_of(same)
    assert parts["config"] == {"learning_rate": "1"}, "from where it begins, and what is accepted, is left out"
    assert set(parts["environment"]) == {"python", "package torch"} and set(parts["code"]) == {"code of allranks"}
    assert set(parts["model"]) == {"base_model: model.safetensors", "tokenizer: tokenizer.json"}
    assert set(parts["data"]) == {"data: datasets.0: a"}
