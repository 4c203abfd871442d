"""`allranks chat`: talk to a run, an adapter or a model in the terminal."""

import contextlib
import sys

import typer

from allranks.cli import answer_options as options
from allranks.cli.generate import show
from allranks.cli.help import new_app

app = new_app()
_HELP = "/reset begins anew, /exit or Ctrl-D ends, Ctrl-C ends an answer"


@app.command(
    epilog="Example: allranks chat model-out --compare base. For many users or long answers export the model and serve "
    "it with vLLM: `vllm serve my-model`."
)
def chat(
    model: options.Model,
    compare: options.Compare = None,
    step: options.Step = None,
    base_model: options.BaseModel = None,
    merge: options.Merge = False,
    system: options.System = None,
    chat_template: options.Template = None,
    max_new_tokens: options.MaxNewTokens = 512,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    trust_remote_code: options.Trust = False,
) -> None:
    """Talk to a run, an adapter or a model, through its own chat template.

    Lines of stdin are the user's turns. /reset begins anew, /exit or Ctrl-D ends, Ctrl-C ends an answer.
    """
    from allranks import interrupt
    from allranks.errors import UsageError

    models = options.models(model, compare, step, base_model, merge, chat_template, trust_remote_code)
    from allranks.inference.answer import Sampling
    from allranks.inference.prompts import Prompt
    from allranks.observe.enduring import say

    interrupt.means("the chat is over")
    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    beginning = [{"role": "system", "content": system}] if system else []
    histories = [list(beginning) for _ in models]
    if sys.stdin.isatty():
        say(_HELP, file=sys.stderr)
    while (line := _read_line()) is not None:
        if line in ("/exit", "/quit"):
            break
        if line == "/reset":
            histories = [list(beginning) for _ in models]
        elif line.startswith("/"):
            say(f"{line.split()[0]}: no such command; {_HELP}", file=sys.stderr)
        elif line:
            for history in histories:
                history.append({"role": "user", "content": line})
            asked = [Prompt("the conversation", list(history)) for history in histories]
            try:
                with interrupt.interruptible():  # each answer anew: the first Ctrl-C uses it up
                    answers = show(asked, models, sampling)
            except UsageError as error:
                # Too long, or refused by the template: what was said before may go on.
                say(f"error: {error}; or /reset", file=sys.stderr)
                answers = []
            except KeyboardInterrupt:
                interrupt.answered()
                typer.echo(" … (ended)")
                answers = []
            for index, history in enumerate(histories):
                if answers:
                    history.append({"role": "assistant", "content": answers[index]})
                else:
                    history.pop()


def _read_line() -> str | None:
    """The user's next turn; None at the end of the input."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (makes `input` a line that can be edited)
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        if sys.stdin.isatty():
            typer.echo()
        return None


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("chat")
