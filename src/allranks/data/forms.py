"""The form in which a chat template takes what a record says.

A record goes to the template as it is: then the text is what transformers' apply_chat_template makes of it. Some
templates cannot take it so: they add a call's arguments to a text and find an object, or write an object as JSON and
find text, which would be escaped a second time. Only then, and only there, the record takes another form.

Which form a template takes is tried with marks in the place of the texts: what it takes, it writes as it is.
"""

import json
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

from allranks.data.conversations import wrapped_call
from allranks.data.records import RecordError, excerpt
from allranks.data.written import function_of, has_parts

Render = Callable[[list[dict], Any], str]
Chat = tuple[list[dict], Any]  # messages, tools
Change = Callable[[list[dict], Any], Any]


class _NotJson(RecordError):
    """An object is needed, and the record's text is none."""


def fitted(messages: list[dict], tools: list[dict] | None, render: Render) -> Chat:
    """Messages and tools in the form that the template takes: as they are, or with the fewest changes.

    Errors: `RecordError` if the template refuses every form.
    """
    chat = (messages, tools)
    if any(_is_blank(function_of(call).get("arguments")) for call in _calls(messages)):
        # A call without arguments, as OpenAI writes it; where an object can stand, "" would make broken JSON.
        try:
            fitting = _best(_changed(chat, (_empty_arguments,)), render, without=(_write_arguments,))
            render(*fitting)
            return fitting
        except RecordError:
            pass
    return _best(chat, render)


def _best(chat: Chat, render: Render, without: tuple[Change, ...] = ()) -> Chat:
    changes = [change for change, applies in _CHANGES if applies(*chat) and change not in without]
    if not changes:
        return chat
    if set(changes) <= _AFTER_A_REFUSAL:
        try:
            render(*chat)
            return chat
        except RecordError:
            pass
    parts = [has_parts(message) for message in chat[0]]
    best: tuple[int, Chat] | None = None
    refusals: list[RecordError] = []
    for tried in _in_stages(changes):
        before = best
        for chosen in tried:
            try:
                changed = _changed(chat, chosen)
                lost = _num_lost(changed, parts, render)
            except RecordError as error:
                refusals.append(error)
                continue
            if not lost:
                return changed
            if best is None or lost < best[0]:
                best = lost, changed
        if len(tried) > 1 and (best is before if best else len(set(map(str, refusals))) == 1):
            break  # what is lost, no form would bring back; it is refused for something else
    if best is None:
        raise next((error for error in refusals if isinstance(error, _NotJson)), refusals[0])
    return best[1]


def _in_stages(changes: list[Change]) -> Iterator[list[tuple[Change, ...]]]:
    """None of them; each one, and as many as go together; then all other sets, the small ones first."""
    yield [()]
    together = {tuple(one for one in changes if one is not other) for other in (_parse_arguments, _write_arguments)}
    first = [*((one,) for one in changes), *sorted(together, key=len)]
    yield list(dict.fromkeys(first))
    for size in range(2, len(changes)):
        yield [chosen for chosen in combinations(changes, size) if chosen not in together]


def _num_lost(chat: Chat, parts: list[bool], render: Render) -> int:
    """How many texts the template does not write as they are. Errors: `RecordError` if it refuses the conversation."""
    marked, marks = _marked(chat, parts)
    try:
        text = render(*marked)
    except RecordError:
        render(*chat)  # it may refuse the marks
        return 0
    return sum(mark not in text for mark in marks)


def _changed(chat: Chat, changes: tuple[Change, ...]) -> Chat:
    if not changes:
        return chat
    messages, tools = _copied(chat)
    for change in changes:
        tools = change(messages, tools)
    return messages, tools


def _copied(value: Any) -> Any:
    """The same with every list and mapping its own, even where one stood in two places."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value


def _marked(chat: Chat, parts: list[bool]) -> tuple[Chat, list[str]]:
    """The same with marks for texts; each mark is to be found in what the template writes.

    parts: whether a message's content came in parts, joined by now or not.
    """
    messages, tools = _copied(chat)
    marks: list[str] = []

    def mark(kind: str) -> str:
        marks.append(kind.format(f"\ue000{len(marks)}\ue001"))
        return marks[-1]

    for message, came_in_parts in zip(messages, parts, strict=True):
        # The mark's quote is escaped where a list is written as JSON or as Python has it.
        if has_parts(message):
            message["content"][0]["text"] = mark('{}"')
        elif came_in_parts:
            message["content"] = mark('{}"')
        for call in message.get("tool_calls") or []:
            function = function_of(call)
            function["name"] = mark("{}")
            if isinstance(function.get("arguments"), str):
                function["arguments"] = mark('{{"{}": 0}}')
    for tool in tools or []:
        function = function_of(tool)
        function["name"] = mark("{}")
        if isinstance(function.get("parameters"), str):
            function["parameters"] = mark('{{"{}": 0}}')
    return (messages, tools), marks


def _calls(messages: list[dict]) -> Iterator[dict]:
    for message in messages:
        yield from message.get("tool_calls") or []


def _is_blank(arguments: Any) -> bool:
    return isinstance(arguments, str) and not arguments.strip()


# Each change alters the messages in place and returns the tools.


def _empty_arguments(messages: list[dict], tools: Any) -> Any:
    for call in _calls(messages):
        if _is_blank(function_of(call).get("arguments")):
            function_of(call)["arguments"] = {}
    return tools


def _give_empty_texts(messages: list[dict], tools: Any) -> Any:
    for message in messages:
        message.setdefault("content", "")
    return tools


def _join_parts(messages: list[dict], tools: Any) -> Any:
    for message in messages:
        if has_parts(message):
            message["content"] = "".join(part["text"] for part in message["content"])
    return tools


def _wrap_calls(messages: list[dict], tools: Any) -> Any:
    for message in messages:
        if message.get("tool_calls"):
            message["tool_calls"] = [wrapped_call(call) for call in message["tool_calls"]]
    return tools


def _wrap_tools(messages: list[dict], tools: Any) -> Any:
    return [
        tool if isinstance(tool.get("function"), dict) else {"type": "function", "function": tool} for tool in tools
    ]


def _parse_arguments(messages: list[dict], tools: Any) -> Any:
    for i, message in enumerate(messages):
        for call in message.get("tool_calls") or []:
            function = function_of(call)
            if isinstance(text := function.get("arguments"), str):
                place = f"message {i}, arguments of {function['name']}"
                function["arguments"] = {} if _is_blank(text) else _parsed(text, place)
    return tools


def _parse_parameters(messages: list[dict], tools: Any) -> Any:
    for tool in tools:
        function = function_of(tool)
        if isinstance(text := function.get("parameters"), str):
            function["parameters"] = (
                {} if _is_blank(text) else _parsed(text, f"tools, parameters of {function['name']}")
            )
    return tools


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _NotJson(f"{place}: not valid JSON ({error}): {excerpt(text)}") from error


def _write_arguments(messages: list[dict], tools: Any) -> Any:
    for call in _calls(messages):
        function = function_of(call)
        if not isinstance(function.get("arguments"), str):
            function["arguments"] = json.dumps(function.get("arguments", {}), ensure_ascii=False)
    return tools


def _write_results(messages: list[dict], tools: Any) -> Any:
    for message in messages:
        if _is_object(message):
            message["content"] = json.dumps(message["content"], ensure_ascii=False)
    return tools


def _has_text_arguments(messages: list[dict], tools: Any) -> bool:
    return any(isinstance(function_of(call).get("arguments"), str) for call in _calls(messages))


def _has_text_parameters(messages: list[dict], tools: Any) -> bool:
    return any(isinstance(function_of(tool).get("parameters"), str) for tool in tools or [])


def _has_object_arguments(messages: list[dict], tools: Any) -> bool:
    return any(not isinstance(function_of(call).get("arguments"), str) for call in _calls(messages))


def _is_object(message: dict) -> bool:
    return message["role"] == "tool" and not isinstance(message.get("content", ""), str) and not has_parts(message)


# In the order in which they are tried; each with whether it changes anything.
_CHANGES: list[tuple[Change, Callable[[list[dict], Any], bool]]] = [
    (_parse_arguments, _has_text_arguments),
    (_parse_parameters, _has_text_parameters),
    (_join_parts, lambda messages, tools: any(map(has_parts, messages))),
    (_give_empty_texts, lambda messages, tools: any("content" not in message for message in messages)),
    (
        _wrap_calls,
        lambda messages, tools: any(
            call.get("type") != "function" or "arguments" not in function_of(call) for call in _calls(messages)
        ),
    ),
    (_wrap_tools, lambda messages, tools: any(not isinstance(tool.get("function"), dict) for tool in tools or [])),
    (_write_results, lambda messages, tools: any(map(_is_object, messages))),
    (_write_arguments, _has_object_arguments),
]
# What a template that takes the record has no need of.
_AFTER_A_REFUSAL = {_give_empty_texts, _write_results, _write_arguments}
