"""The types without a template: completion, input_output, pre-tokenized."""

from itertools import groupby
from typing import Any

from allranks.data.drafts import Draft, Piece
from allranks.data.prompts import text_field
from allranks.data.records import RecordError, excerpt
from allranks.data.special import edges

IGNORED_LABEL = -100  # what PyTorch's cross entropy ignores by default


class CompletionEncoder:
    """`type: completion`: the text of one field, all of it trained."""

    def __init__(self, spec: Any, data: Any, tokenizer: Any):
        self.field = spec.field or "text"
        self.edges = edges(tokenizer, "type completion")
        self.train_end = (spec.train_on_eos or data.train_on_eos) != "none"

    def __call__(self, record: Any) -> list[Draft]:
        if not isinstance(record, dict):
            raise RecordError(f"expected an object with the field {self.field}, found {excerpt(record)}")
        text = text_field(record, self.field)
        if not text.strip():
            raise RecordError(f"field {self.field}: empty")
        begin, text = self.edges.without_begin(text)
        text, end = self.edges.without_end(text)
        return [[Piece(ids=begin), Piece(text, trained=True), Piece(ids=end, trained=self.train_end)]]


class SegmentEncoder:
    """`type: input_output`: segments of text, each trained or not. No token is added to what they say."""

    def __init__(self, spec: Any, data: Any, tokenizer: Any):
        self.field = spec.field or "segments"
        self.train_on_inputs = data.train_on_inputs

    def __call__(self, record: Any) -> list[Draft]:
        segments = record.get(self.field) if isinstance(record, dict) else None
        if not isinstance(segments, list) or not segments:
            raise RecordError(f"field {self.field}: expected a list of {{label, text}}, found {excerpt(segments)}")
        draft = []
        for i, segment in enumerate(segments):
            place = f"field {self.field}, segment {i}"
            if not isinstance(segment, dict) or not isinstance(segment.get("text"), str):
                raise RecordError(f"{place}: expected {{label: true or false, text}}, found {excerpt(segment)}")
            if not isinstance(segment.get("label"), bool):
                raise RecordError(f"{place}: label must be true or false, found {excerpt(segment.get('label'))}")
            draft.append(Piece(segment["text"], trained=segment["label"] or self.train_on_inputs))
        return [draft]


class TokenEncoder:
    """No `type`: `input_ids` and `labels` (-100 where nothing is trained), and `attention_mask` (0 = padding)."""

    def __init__(self, spec: Any, data: Any, tokenizer: Any):
        self.vocabulary = len(tokenizer)

    def __call__(self, record: Any) -> list[Draft]:
        if not isinstance(record, dict) or "input_ids" not in record:
            found = ", ".join(map(str, record)) if isinstance(record, dict) else excerpt(record)
            raise RecordError(
                f"no field input_ids; it has {found}. Without a type, records are taken as tokenized: set type to "
                "chat_template, alpaca, completion or another"
            )
        ids = self._integers(record, "input_ids")
        labels = self._integers(record, "labels")
        attended = (
            self._integers(record, "attention_mask") if record.get("attention_mask") is not None else [1] * len(ids)
        )
        if not len(ids) == len(labels) == len(attended):
            raise RecordError(
                f"input_ids, labels and attention_mask differ in length: {len(ids)}, {len(labels)}, {len(attended)}"
            )
        kept = [t for t, used in enumerate(attended) if used]
        if kept and len(kept) != kept[-1] - kept[0] + 1:
            raise RecordError("attention_mask: 0 between 1s; only padding at the ends can be left out")
        for t in kept:
            if not 0 <= ids[t] < self.vocabulary:
                raise RecordError(f"input_ids[{t}] is {ids[t]}; the tokenizer has ids 0 to {self.vocabulary - 1}")
            if labels[t] not in (ids[t], IGNORED_LABEL):
                raise RecordError(f"labels[{t}] is {labels[t]}; expected input_ids[{t}] ({ids[t]}) or {IGNORED_LABEL}")
        # The model shifts by itself: a label belongs to the token at its own position.
        runs = groupby(kept, key=lambda t: labels[t] != IGNORED_LABEL)
        return [[Piece(ids=tuple(ids[t] for t in positions), trained=trained) for trained, positions in runs]]

    def _integers(self, record: dict, name: str) -> list[int]:
        values = record.get(name)
        if not isinstance(values, list) or not all(isinstance(v, int) for v in values):
            raise RecordError(f"field {name}: expected a list of integers, found {excerpt(values)}")
        return values
