"""Look at the first records of data: their columns and lengths, and which type fits."""

import json
from dataclasses import dataclass
from itertools import islice
from typing import Any

from allranks.config.sections.data import DatasetSpec
from allranks.data.records import Record, excerpt
from allranks.data.sources import locate, read
from allranks.errors import DataError

_NUM_RECORDS = 200
# Of English text; other scripts have fewer. Only for a first guess at a length.
_CHARACTERS_PER_TOKEN = 4
_CONVERSATIONS = ("messages", "conversations", "conversation")


@dataclass(frozen=True)
class Glance:
    """What the first records say. `spec`: the keys of the data set besides its path; `fits`: why that type.

    `longest` and `median`: characters of a record's texts. `num_records` is 0 where the data is not on this machine.
    """

    spec: dict[str, Any]
    fits: str
    num_records: int = 0
    median: int = 0
    longest: int = 0

    @property
    def sequence_len(self) -> int:
        """The power of two from 512 to 8192 that probably holds the longest of these records."""
        tokens = self.longest // _CHARACTERS_PER_TOKEN
        return next((size for size in (512, 1024, 2048, 4096) if tokens <= size), 8192) if self.num_records else 2048


def glance(path: str) -> Glance:
    """Look at a file or folder; a Hub id is taken for conversations, as nothing is downloaded here.

    Raises DataError for data that is missing, empty or cannot be read.
    """
    source = locate(DatasetSpec.model_validate({"path": path}))
    if source.hub_id:
        return Glance(
            {"type": "chat_template"},
            "on the Hub, so not looked at, and taken for conversations; `allranks preprocess CONFIG --show 3` tells "
            "whether they are",
        )
    first = list(islice(read(source, "train"), _NUM_RECORDS))
    records = [record.value for record in first if isinstance(record.value, dict)]
    if not records:
        raise DataError(_nothing(path, first))
    lengths = sorted(len(json.dumps(record, ensure_ascii=False, default=str)) for record in records)
    spec, fits = _type_of(set(records[0]))
    return Glance(spec, fits, len(records), lengths[len(lengths) // 2], lengths[-1])


def _nothing(path: str, first: list[Record]) -> str:
    if not first:
        return f"{path} has no records"
    wrong = first[0].problem or f"expected an object with names and values, found {excerpt(first[0].value)}"
    others = f"; none of the first {len(first)} records can be used" if len(first) > 1 else ""
    return f"{first[0].where()}: {wrong}{others}"


def _type_of(columns: set[str]) -> tuple[dict[str, Any], str]:
    for name in _CONVERSATIONS:
        if name in columns:
            return {"type": "chat_template"}, f"conversations in `{name}`"
    if {"instruction", "output"} <= columns:
        return {"type": "alpaca:tokenizer_default"}, "instructions with answers, through the model's chat template"
    for question, answer in (("prompt", "completion"), ("prompt", "response"), ("question", "answer")):
        if {question, answer} <= columns:
            own = {"field_instruction": question, "field_output": answer, "format": "{instruction}"}
            return {"type": own}, f"`{question}` with `{answer}`, of which the answer is trained"
    if "input_ids" in columns:
        return {}, "tokenized already"
    if "text" in columns:
        return {"type": "completion"}, "texts, trained as a whole"
    names = ", ".join(sorted(columns)) or "none"
    return {"type": "chat_template"}, f"no known type fits its columns ({names}); set its `type` in the config"
