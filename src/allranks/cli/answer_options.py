"""The options that `generate` and `chat` share, and the models that they name."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from allranks.inference.session import Answerer

Model = Annotated[
    str,
    typer.Argument(
        metavar="RUN|MODEL",
        help="Run directory, one checkpoint, a config.yaml, the folder of a model or an adapter, or a name on the Hub.",
        show_default=False,
    ),
]
Compare = Annotated[
    str | None,
    typer.Option(metavar="base|RUN|MODEL", help="Answers of another model too: of what was trained from, or of any."),
]
Step = Annotated[int | None, typer.Option(help="Step of the checkpoint; the newest by default.")]
BaseModel = Annotated[str | None, typer.Option("--base-model", help="Where the base model is now, if it has moved.")]
Merge = Annotated[bool, typer.Option("--merge", help="Add the adapter to its base model's weights first.")]
System = Annotated[str | None, typer.Option(help="System message, where a conversation has none.")]
Template = Annotated[
    str | None, typer.Option("--chat-template", help="File or name of a template, in place of the model's own.")
]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens of an answer.")]
Temperature = Annotated[
    float | None, typer.Option(min=0, help="0 for the likeliest answer; as the model's own settings by default.")
]
TopP = Annotated[float | None, typer.Option("--top-p", min=0, max=1, help="Sample among the likeliest of this share.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the sampling, for the same answer each time.")]
Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that the model brings along. Read that code first."),
]


def models(
    model: str,
    compare: str | None,
    step: int | None,
    base_model: str | None,
    merge: bool,
    chat_template: str | None,
    trust_remote_code: bool,
) -> "list[Answerer]":
    """Load the models that are to answer: one, or two to compare."""
    from allranks.observe import libraries_aside, say

    # What libraries print is neither an answer, which a program may read, nor news for the user.
    with libraries_aside():
        from allranks.inference.session import answerers

        return answerers(
            model,
            compare=compare,
            step=step,
            base_model=base_model,
            merged=merge,
            chat_template=chat_template,
            trust_remote_code=trust_remote_code,
            report=lambda line: say(line, file=sys.stderr),
        )
