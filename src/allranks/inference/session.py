"""Who answers: the model that was asked for, and beside it the one that it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from allranks.errors import UsageError
from allranks.inference.answer import Answer, Sampling, answer
from allranks.inference.load import Loaded, load, load_base_of
from allranks.inference.prompts import Prompt
from allranks.inference.subject import find_subject

BASE = "base"
"""`--compare base`: what the run or the adapter was trained from."""

Ask = Callable[[Prompt, Sampling, Callable[[str], None]], Answer]


@dataclass(frozen=True)
class Answerer:
    """One model that answers. `label` names it beside the other."""

    label: str
    ask: Ask


def answerers(
    named: str,
    *,
    compare: str | None = None,
    step: int | None = None,
    base_model: str | None = None,
    merged: bool = False,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> list[Answerer]:
    """Load the model that `named` is, and with `compare` the other one, which comes first: before, after.

    `compare`: "base", or what another model is named. Raises AllranksError for what cannot be loaded.
    """
    subject = find_subject(named, step=step, base_model=base_model, trust_remote_code=trust_remote_code, report=report)
    if merged and not subject.is_adapter:
        raise UsageError(f"--merge adds an adapter to its base model, and {subject.title} is no adapter: leave it out")
    if compare == BASE and subject.kind == "model":
        raise UsageError(f"{named} is a whole model, so its base is not known: give --compare the base model's name")
    if compare == BASE and merged:
        raise UsageError("--merge and --compare base do not go together: the base is the model without its adapter")
    loaded = load(subject, merged=merged, chat_template=chat_template, report=report)
    step_label = f"step {subject.checkpoint.step}" if subject.checkpoint else "model"
    after = Answerer(step_label if compare != BASE or subject.checkpoint else "adapter", _asking(loaded))
    if compare is None:
        return [after]
    if compare != BASE:
        other = find_subject(compare, trust_remote_code=trust_remote_code, report=report)
        return [Answerer(compare, _asking(load(other, chat_template=chat_template, report=report))), after]
    if subject.is_adapter:
        return [Answerer(BASE, _without_adapter(loaded)), after]
    report(f"loading its base model {subject.base}")
    return [Answerer(BASE, _asking(load_base_of(subject, loaded))), after]


def _asking(loaded: Loaded) -> Ask:
    def ask(prompt: Prompt, sampling: Sampling, on_text: Callable[[str], None]) -> Answer:
        return answer(loaded, prompt, sampling, on_text)

    return ask


def _without_adapter(loaded: Loaded) -> Ask:
    def ask(prompt: Prompt, sampling: Sampling, on_text: Callable[[str], None]) -> Answer:
        with loaded.without_adapter():
            return answer(loaded, prompt, sampling, on_text)

    return ask


def side_by_side(columns: list[tuple[str, str]], width: int) -> str:
    """Texts under their labels, next to each other, in lines of at most `width` characters."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, expand=True, padding=(0, 2, 0, 0), show_header=True)
    for label, _ in columns:
        table.add_column(Text(label), ratio=1, overflow="fold")
    table.add_row(*(Text(text) for _, text in columns))
    console = Console(width=width, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n"))
