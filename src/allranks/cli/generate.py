"""`allranks generate`: answers of a run, an adapter or a model to prompts."""

import json
import shutil
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from allranks.cli import answer_options as options
from allranks.cli.help import new_app

if TYPE_CHECKING:
    from allranks.inference.answer import Sampling
    from allranks.inference.prompts import Prompt
    from allranks.inference.session import Answerer

app = new_app()


@app.command(
    epilog="Example: allranks generate model-out 'What is a shard?' --compare base. transformers generates, one prompt "
    "after the other; for many prompts export the model and serve it with vLLM: `vllm serve my-model`."
)
def generate(
    model: options.Model,
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to ask; or from --prompts, or stdin.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="File of prompts: a line each of a .txt, or records with a conversation or a question."),
    ] = None,
    compare: options.Compare = None,
    step: options.Step = None,
    base_model: options.BaseModel = None,
    merge: options.Merge = False,
    system: options.System = None,
    chat_template: options.Template = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Go on from the prompt as it is, without a chat template.")
    ] = False,
    max_new_tokens: options.MaxNewTokens = 512,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    trust_remote_code: options.Trust = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a prompt.")] = False,
) -> None:
    """Answers of a run, an adapter or a model to prompts, through its own chat template, as they are made."""
    from allranks.errors import UsageError
    from allranks.inference.prompts import read_prompts, text_prompt

    if raw and system:
        raise UsageError("--raw takes no --system: without a template there is no place for it")
    texts = list(prompt or [])
    if not texts and prompts is None:
        if sys.stdin.isatty():
            raise UsageError("nothing is asked: give a prompt, --prompts FILE, or text on stdin")
        texts = [text for text in (sys.stdin.read().strip("\n"),) if text]
    asked = [text_prompt(text, system=system, raw=raw) for text in texts]
    if prompts is not None:
        asked += read_prompts(prompts, system=system, raw=raw)
    if not asked:
        raise UsageError(f"nothing is asked: {prompts or 'stdin'} is empty")
    models = options.models(model, compare, step, base_model, merge, chat_template, trust_remote_code)
    from allranks.inference.answer import Sampling

    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    for number, one in enumerate(asked):
        if as_json:
            _print_json(one, models, sampling)
        else:
            if number:
                typer.echo()
            if len(asked) > 1:
                typer.echo(f"> {one.asked}")
            show([one] * len(models), models, sampling)


def show(prompts: "list[Prompt]", models: "list[Answerer]", sampling: "Sampling") -> list[str]:
    """Ask each model its prompt and print the answers: of one as it is made, of two next to each other.

    Returns their texts.
    """
    from allranks.inference.session import side_by_side
    from allranks.observe.enduring import say

    if len(models) == 1:
        found = models[0].ask(prompts[0], sampling, _stream)
        typer.echo()
        if not found.ended:
            say(f"(cut at {found.num_tokens} tokens: --max-new-tokens allows more)", file=sys.stderr)
        return [found.text]
    asked = zip(models, prompts, strict=True)
    texts = [one.ask(prompt, sampling, lambda text: None).text.strip() for one, prompt in asked]
    width = shutil.get_terminal_size().columns
    typer.echo(side_by_side([(one.label, text or "(nothing)") for one, text in zip(models, texts, strict=True)], width))
    return texts


def _stream(text: str) -> None:
    typer.echo(text, nl=False)
    sys.stdout.flush()


def _print_json(prompt: "Prompt", models: "list[Answerer]", sampling: "Sampling") -> None:
    answers = {}
    for one in models:
        found = one.ask(prompt, sampling, lambda text: None)
        answers[one.label] = {"text": found.text, "num_tokens": found.num_tokens, "ended": found.ended}
    asked = {"prompt": prompt.content} if isinstance(prompt.content, str) else {"messages": list(prompt.content)}
    typer.echo(json.dumps({**asked, "answers": answers}, ensure_ascii=False))


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("generate")
