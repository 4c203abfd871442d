"""What a user should know of how the data of a config is written, before the first step."""

from collections.abc import Iterator
from typing import Any

from allranks.config.dataset_types import is_prompt, template_of, to_template
from allranks.data.templates import template_texts, writes_dates
from allranks.listing import few

_MORE = 3  # data sets named in a note


def notes(data: Any, tokenizer: Any) -> list[str]:
    """One line for each thing that is easily taken for another, for all data sets of `cfg.data`."""
    return [*_own_prompts(data, tokenizer), *_dates(data, tokenizer)]


def _own_prompts(data: Any, tokenizer: Any) -> Iterator[str]:
    """Data sets whose prompt is another than the one that the exported model's chat template will make."""
    own = [spec for spec in data.datasets if is_prompt(spec) and template_of(spec) is None]
    if not own or not tokenizer.chat_template:
        return
    paths = few([spec.path for spec in own], _MORE)
    named = next((spec.type for spec in own if isinstance(spec.type, str)), None)
    way = to_template(named, data.chat_template or "tokenizer_default")
    prompt = f"of type: {named}" if named else "that the config gives"
    yield (
        f"{paths}: trained with the prompt {prompt}, as in Axolotl, and not with the chat template that the tokenizer "
        f"has: ask the trained model with that prompt. {way}, in the data set, sends its records through the template"
    )


def _dates(data: Any, tokenizer: Any) -> Iterator[str]:
    for spec in data.datasets:
        name, jinja = data.chat_template, data.chat_template_jinja
        if is_prompt(spec) and (named := template_of(spec)):
            name, jinja = named, (spec.chat_template_jinja or jinja) if named == "jinja" else None
        elif spec.type == "chat_template" and (spec.chat_template or spec.chat_template_jinja):
            name, jinja = spec.chat_template, spec.chat_template_jinja
        elif spec.type != "chat_template":
            continue
        texts = template_texts(name, jinja, tokenizer)
        if any(text and writes_dates(text) for text in (texts.default, texts.tool_use)):
            yield (
                f"{spec.path}: its chat template writes the day's date; 1 January 2025 stands in its place, so that "
                "the data is the same on every day and node"
            )
            return
