"""Chat templates by name, from the tokenizer, or the user's own."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from allranks.data.turn_formats import TURN_FORMATS, jinja_of
from allranks.errors import DataError

_GENERATION = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")
_FOLDER = Path(__file__).parent / "chat_templates"
_FALLBACK = "tokenizer_default_fallback_"
# Templates that write today's date would make data that differs from day to day and from node to node.
_FIXED_DATE = datetime(2025, 1, 1, tzinfo=UTC)
# Names of Axolotl's for templates that models bring along: what the tokenizer's own must hold to be the one meant.
_OF_TOKENIZERS = {
    "command_a": ("<|START_OF_TURN_TOKEN|>", "<|START_RESPONSE|>"),
    "exaone4": ("[|system|]", "[|endofturn|]", "<think>"),
    "gemma4": ("<|turn>", "<turn|>"),
    "gemma4_unified": ("<|turn>", "<turn|>"),
    "llama3_2": ("<|start_header_id|>", "<|eot_id|>", "Cutting Knowledge Date"),
    "nemotron_h": ("<|im_start|>", "<|im_end|>", "<think>"),
    "qwen_25": ("<|im_start|>", "<|im_end|>", "<tool_call>"),
    "qwen3": ("<|im_start|>", "<|im_end|>", "<think>"),
    "qwen3_5": ("<|im_start|>", "<|im_end|>", "<think>"),
}
_SAME = {"gemma3": "gemma", "gemma3n": "gemma"}
_ELSEWHERE = {
    **dict.fromkeys(("llama3_2_vision", "llava", "pixtral", "qwen2_vl"), "is for images, and only text is trained"),
    **dict.fromkeys(("command_a_tool_use", "command_a_rag"), "is a second template of its tokenizer; use command_a"),
}


@dataclass(frozen=True)
class Templates:
    """`default`, and `tool_use` for conversations with tools, where a tokenizer has one. `names`: all that it has."""

    default: str | None
    tool_use: str | None = None
    names: tuple[str, ...] = ()


def template_text(name: str | None, jinja: str | None, tokenizer: Any) -> str:
    """The Jinja text of a chat template.

    name: `tokenizer_default` (also None), `tokenizer_default_fallback_NAME`, `jinja`, or one of `template_names()`.
    jinja: the template, or the path of a file with it, for `jinja`.
    Errors: `DataError` for a name that is not known, a tokenizer without a template, a missing file.
    """
    if name == "jinja" or (name is None and jinja):
        if not jinja:
            raise DataError("chat_template: jinja needs chat_template_jinja: the template, or the path of a file")
        return _own_template(jinja)
    if jinja:
        raise DataError(f"chat_template_jinja needs chat_template: jinja, but it is {name}; remove one of the two")
    if name is None or name == "tokenizer_default":
        text = _tokenizer_template(tokenizer)
        if text is None:
            if own := _own_templates(tokenizer):
                raise DataError(
                    f"the tokenizer has several chat templates ({', '.join(own)}), and none is the default: set "
                    "chat_template to one of these names"
                )
            raise DataError(
                "the tokenizer has no chat template of its own: set chat_template to one of "
                f"{', '.join(template_names())}, or to jinja with chat_template_jinja"
            )
        return text
    if name.startswith(_FALLBACK):
        return _tokenizer_template(tokenizer) or _named(name.removeprefix(_FALLBACK))
    if name not in (*_OF_TOKENIZERS, *template_names()) and name in (own := _own_templates(tokenizer)):
        return own[name]
    return _marked(name, tokenizer) if name in _OF_TOKENIZERS else _named(name)


def template_texts(name: str | None, jinja: str | None, tokenizer: Any) -> Templates:
    """The templates that transformers would choose between: several only where they are the tokenizer's own.

    Arguments and errors as of `template_text`.
    """
    own = _own_templates(tokenizer)
    is_own = not jinja and (name in (None, "tokenizer_default") or (name or "").startswith(_FALLBACK))
    if is_own and "default" not in own and own:
        return Templates(None, own.get("tool_use"), tuple(own))
    text = template_text(name, jinja, tokenizer)
    return Templates(text, own.get("tool_use") if is_own else None, tuple(own) if is_own else ())


def named_template_text(name: str | None, jinja: str | None) -> str | None:
    """The template's text if it does not come from the tokenizer; None if it does."""
    if name == "jinja" or (name is None and jinja):
        return _own_template(jinja or "")
    named = (name or "").removeprefix(_FALLBACK)
    # Any other name is one of the tokenizer's own, or none at all.
    return _named(named) if named in template_names() else None


def template_names() -> list[str]:
    """The templates that come with allranks."""
    return sorted([*(path.stem for path in _FOLDER.glob("*.jinja")), *TURN_FORMATS, *_SAME])


def pin_dates(template: str) -> str:
    """The template with a fixed day in the place of today's, so that data is the same whenever it is prepared.

    However it asks for the date (`strftime_now`, with a format in a variable or under another name), it asks a macro.
    """
    if not writes_dates(template):
        return template
    # The line end behind the macro is its own: the template's first line stays as it is.
    return f"{{% macro strftime_now(format) %}}{{{{ format{_dated()} }}}}{{% endmacro %}}\n{template}"


def writes_dates(template: str) -> bool:
    """Whether a template asks for the day's date or time."""
    return "strftime_now" in template


def _dated() -> str:
    """Jinja filters that write the fixed day into a format of strftime."""
    percent = "\ue002"  # a sign that is in no format
    letters = "aAwdbBmyYHIMSpjUWcxXfGuVCDeFhnrRtT"
    written = {"%z": "", "%Z": ""}  # of a day without a time zone
    written |= {f"%-{letter}": _FIXED_DATE.strftime(f"%{letter}").lstrip("0") or "0" for letter in "dmyHIMSjUW"}
    written |= {f"%{letter}": _FIXED_DATE.strftime(f"%{letter}") for letter in letters}
    steps = [("%%", percent), *written.items(), (percent, "%")]
    return "".join(f"|replace({json.dumps(found)}, {json.dumps(text)})" for found, text in steps)


def check_template(template: str) -> None:
    """Errors: `DataError` for a template that is no valid Jinja, or that writes what chance decides."""
    from jinja2 import Environment, TemplateSyntaxError, nodes

    try:
        # transformers knows the tag {% generation %} as well.
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION.sub("", template))
    except TemplateSyntaxError as error:
        raise DataError(f"the chat template is no valid Jinja: line {error.lineno}: {error.message}") from error
    by_chance = [found.name for found in tree.find_all(nodes.Filter) if found.name == "random"]
    by_chance += [found.name for found in tree.find_all(nodes.Name) if found.name == "lipsum"]
    if by_chance:
        raise DataError(
            f"the chat template draws at random ({by_chance[0]}): the data would be another one on every node and day. "
            "Set chat_template to one without that"
        )


def _named(name: str) -> str:
    if name not in template_names():
        why = _ELSEWHERE.get(name) or f"does not come with allranks, which has {', '.join(template_names())}"
        if name in _OF_TOKENIZERS:
            why = "comes with tokenizers only, and this one has none"
        raise DataError(
            f"chat_template {name!r} {why}. Most models carry their own: use chat_template: tokenizer_default, or "
            "jinja with chat_template_jinja"
        )
    if name in TURN_FORMATS:
        return jinja_of(TURN_FORMATS[name])
    return (_FOLDER / f"{_SAME.get(name, name)}.jinja").read_text(encoding="utf-8")


def _marked(name: str, tokenizer: Any) -> str:
    """The tokenizer's own template, if it is the one that `name` means."""
    text = _tokenizer_template(tokenizer)
    lacking = [mark for mark in _OF_TOKENIZERS[name] if mark not in (text or "")]
    if text is None or lacking:
        found = f"one without {lacking[0]}" if text else "none"
        raise DataError(
            f"chat_template {name!r} is the one that its models bring in their tokenizer, and this tokenizer has "
            f"{found}: set tokenizer_config to a model of that family, or chat_template to another, such as chatml"
        )
    return text


def _own_template(jinja: str) -> str:
    if "{" in jinja or "\n" in jinja:
        return jinja
    path = Path(jinja).expanduser()
    if not path.is_file():
        raise DataError(f"chat_template_jinja: {jinja} is neither a template (it has no {{) nor an existing file")
    return path.read_text(encoding="utf-8")


def _tokenizer_template(tokenizer: Any) -> str | None:
    return _own_templates(tokenizer).get("default")


def _own_templates(tokenizer: Any) -> dict[str, str]:
    # What it was loaded with: `chat_template` is the config's by now.
    own = tokenizer.init_kwargs.get("chat_template", tokenizer.chat_template)
    if isinstance(own, list):  # as a tokenizer_config.json has them
        return {entry["name"]: entry["template"] for entry in own}
    return own if isinstance(own, dict) else {"default": own} if own else {}
