"""What a model is asked: texts of a command line, lines of a file, or records of conversations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allranks.config.sections.data import DatasetSpec
from allranks.data.conversations import ConversationFormat
from allranks.data.records import RecordError
from allranks.data.sources import locate, read
from allranks.errors import DataError, UsageError

# Columns that hold a question, in the order in which they are looked for.
_QUESTIONS = ("prompt", "question", "instruction", "input", "text")
_CONVERSATIONS = ("messages", "conversations", "conversation")


@dataclass(frozen=True)
class Prompt:
    """`content`: messages for the chat template, or a text to go on from. `name`: what messages call it."""

    name: str
    content: Sequence[dict] | str
    tools: list[dict] | None = None

    @property
    def asked(self) -> str:
        """The last thing that is said in it."""
        if isinstance(self.content, str):
            return self.content
        last = self.content[-1].get("content") if self.content else ""
        return last if isinstance(last, str) else str(last)


def text_prompt(text: str, *, system: str | None = None, raw: bool = False, name: str = "the prompt") -> Prompt:
    """One text, as the user's message or, if `raw`, as it is."""
    if raw:
        return Prompt(name, text)
    messages = [{"role": "system", "content": system}] if system else []
    return Prompt(name, [*messages, {"role": "user", "content": text}])


def read_prompts(file: str, *, system: str | None = None, raw: bool = False) -> Iterator[Prompt]:
    """The prompts of a file: a line each of a text file, or records with a conversation or a question.

    What a conversation's assistant says at its end is left out: that is asked for.

    Raises:
        DataError: a record that holds no prompt, with its place; a file that cannot be read.
    """
    if not Path(file).expanduser().exists():
        raise UsageError(f"--prompts {file} does not exist")
    source = locate(spec := DatasetSpec.model_validate({"path": file}))
    conversations = ConversationFormat(spec)
    for record in read(source, "train"):
        place = record.where()
        if record.problem:
            raise DataError(f"{place}: {record.problem}")
        if isinstance(record.value, Mapping) and any(record.value.get(key) for key in _CONVERSATIONS) and not raw:
            yield _of_conversation(conversations, record.value, place, system)
        elif (text := _question(record.value)) is not None:
            if text.strip():
                yield text_prompt(text, system=system, raw=raw, name=place)
        else:
            raise DataError(f"{place}: no prompt: expected {', '.join((*_CONVERSATIONS[:2], *_QUESTIONS))}")


def _of_conversation(
    conversations: ConversationFormat, value: Mapping[str, Any], place: str, system: str | None
) -> Prompt:
    try:
        found = conversations.read(dict(value))
    except RecordError as error:
        raise DataError(f"{place}: {error}") from None
    messages = list(found.messages)
    while messages and messages[-1].get("role") == "assistant":
        messages.pop()
    if not messages:
        raise DataError(f"{place}: nothing is asked in it: every message is the assistant's")
    if system and messages[0].get("role") != "system":
        messages.insert(0, {"role": "system", "content": system})
    return Prompt(place, messages, found.tools)


def _question(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        return None
    text = next((value[key] for key in _QUESTIONS if isinstance(value.get(key), str)), None)
    more = value.get("input")
    if text is not None and isinstance(more, str) and more and "instruction" in value:
        return f"{text}\n\n{more}"  # Alpaca's records
    return text
