"""Whatever a file holds, reading ends well, or in messages that name the file and the line or row. No other outcome."""

import bz2
import gzip
import io
import json
import lzma
import random
import re
import zipfile
import zlib

import pyarrow
import pytest
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from allranks.config.sections.data import DatasetSpec
from allranks.data.encode import encode
from allranks.data.formats import encoder_for
from allranks.data.sources import locate, read
from allranks.errors import DataError

TEXTS = ["It is five.", '你好 " \\ \n é 😀', 'a,b;"c"\r\nd', "", "{[", "x" * 300]
CHATS = [
    {"messages": [{"role": "user", "content": text or "?"}, {"role": "assistant", "content": f"{number} {text}"}]}
    for number, text in enumerate(TEXTS * 4)
]
ROWS = [{"text": f"{number}: {text}", "n": number} for number, text in enumerate(TEXTS * 4)]


def stream_of(batches, make):
    sink = io.BytesIO()
    with make(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write(batch)
    return sink.getvalue()


def parquet_of(rows):
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink, row_group_size=7)
    return sink.getvalue()


def csv_of(rows):
    sink = io.BytesIO()
    arrow_csv.write_csv(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def zip_of(content, name="a.jsonl"):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return sink.getvalue()


BATCHES = pyarrow.Table.from_pylist(CHATS).to_batches(max_chunksize=7)
LINES = "".join(json.dumps(chat, ensure_ascii=number % 2 == 0) + "\n" for number, chat in enumerate(CHATS)).encode()
WHOLE = {
    "a.jsonl": LINES,
    "list.json": json.dumps(CHATS, ensure_ascii=False).encode(),
    "pretty.json": json.dumps(CHATS, indent=1).encode(),
    "objects.json": "\n".join(json.dumps(chat, indent=2) for chat in CHATS).encode(),
    "a.csv": csv_of(ROWS),
    "a.tsv": csv_of(ROWS).replace(b",", b"\t"),
    "a.txt": "\n".join(TEXTS).encode(),
    "a.parquet": parquet_of(CHATS),
    "stream.arrow": stream_of(BATCHES, pyarrow.ipc.new_stream),
    "file.arrow": stream_of(BATCHES, pyarrow.ipc.new_file),
    "a.jsonl.gz": gzip.compress(LINES),
    "A.JSONL.BZ2": bz2.compress(LINES),
    "a.jsonl.xz": lzma.compress(LINES),
    "a.jsonl.zst": pyarrow.compress(LINES, codec="zstd", asbytes=True),
    "a.zip": zip_of(LINES),
    "a.csv.gz": gzip.compress(csv_of(ROWS)),
    "list.json.xz": lzma.compress(json.dumps(CHATS).encode()),
}
TYPES = {"a.csv": "completion", "a.tsv": "completion", "a.txt": "completion", "a.csv.gz": "completion"}
PIECES = [b"\x00", b"\xff", b'"', b"{", b"}", b"[", b"]", b",", b"\n", b"\\", b"\xef\xbb\xbf", b"\xff\xfe", b"\r"]
PIECES += [
    b"\\ud83d",
    b"\xed\xa0\xbd",
    b"[" * 3000,
    b'{"a":' * 500,
    b"9" * 5000,
    b"NaN",
    b'"a": 1, "a": 2,',
    b"\x00" * 64,
]


def damaged(content, chance):
    content = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at, length = chance.randrange(len(content) + 1), chance.choice([1, 1, 4, 40, 400])
        part = content[at : at + length]
        match chance.randrange(7):
            case 0:
                del content[at:]
            case 1:
                del content[at : at + length]
            case 2:
                content[at : at + length] = bytes(byte ^ (1 << chance.randrange(8)) for byte in part)
            case 3:
                content[at : at + length] = bytes(len(part))
            case 4:
                content[at:at] = part
            case 5:
                content[at : at + length] = chance.randbytes(len(part))
            case 6:
                content[at:at] = chance.choice(PIECES)
    return bytes(content)


@pytest.fixture(scope="module")
def of_type(model_folder, tmp_path_factory, tokenizer):
    from allranks.config.load import resolve_mapping

    def encoder(name):
        flat = {"base_model": str(model_folder), "learning_rate": 1e-3, "chat_template": "chatml"}
        cfg = resolve_mapping({**flat, "datasets": [{"path": "unused", "type": name}]})
        return encoder_for(cfg.data.datasets[0], cfg.data, tokenizer)

    return {name: encoder(name) for name in ("chat_template", "completion")}


def outcome(path, encoder, tokenizer):
    """(records that were kept, what is said of those that were not)."""
    try:
        spec = DatasetSpec(path=str(path))
        batches = list(encode(read(locate(spec), "train"), encoder, tokenizer))
    except DataError as error:
        return 0, [str(error)]
    said = [f"{place}: {reason}" for batch in batches for place, reason in batch.problems if place]
    return sum(batch.num_records - len(batch.problems) for batch in batches), said


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_are_read_to_the_last_record(name, tmp_path, of_type, tokenizer):
    (tmp_path / name).write_bytes(WHOLE[name])
    kind = TYPES.get(name, "chat_template")
    kept, said = outcome(tmp_path / name, of_type[kind], tokenizer)
    assert not said and kept == (7 if name == "a.txt" else len(CHATS))


@pytest.mark.parametrize("name", WHOLE)
def test_damage_ends_in_records_or_in_words(name, tmp_path, of_type, tokenizer):
    path, encoder = tmp_path / name, of_type[TYPES.get(name, "chat_template")]
    chance = random.Random(zlib.crc32(name.encode()))
    for _ in range(120):
        path.write_bytes(damaged(WHOLE[name], chance))
        for said in outcome(path, encoder, tokenizer)[1]:
            assert str(path) in said and said.isprintable() and len(said) < 1000, said
            if "data set" not in said:  # not the file as a whole: the place in it
                assert re.search(rf"{re.escape(str(path))}(:\d+| \(row \d+|: )", said), said
