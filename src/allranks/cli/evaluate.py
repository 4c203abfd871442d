"""`allranks evaluate`: the loss and perplexity of a run, an adapter or a model on data sets."""

import json
import math
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from allranks.cli.config_keys import ConfigKeysCommand, given
from allranks.cli.help import new_app

if TYPE_CHECKING:
    from allranks.inference.evaluate import DataScore, Evaluation, Score

app = new_app()


@app.command(
    cls=ConfigKeysCommand,
    options_metavar="[OPTIONS] [--CONFIG-KEY VALUE]...",
    epilog="Example: allranks evaluate model-out --data test.jsonl --compare base. "
    "On several GPUs: torchrun --nproc-per-node 8 -m allranks evaluate model-out",
)
def evaluate(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL",
            help="Run directory, one checkpoint, a config.yaml, the folder of a model or an adapter, or a name on "
            "the Hub.",
            show_default=False,
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Data set: a file, folder or name on the Hub; several times for several. By default "
            "what the run set aside for evaluation.",
        ),
    ] = None,
    data_type: Annotated[
        str | None,
        typer.Option("--type", help="Form of the records of --data; the run's, or what fits, by default."),
    ] = None,
    step: Annotated[int | None, typer.Option(help="Step of the checkpoint; the newest by default.")] = None,
    compare: Annotated[
        str | None, typer.Option(help="`base`: also the loss of what the run or the adapter was trained from.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="Where the base model is now, if it has moved.")
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run Python code that the model brings along. Read that code first."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """The loss and perplexity of a run, an adapter or a model, by data set, token and example.

    A run scores what its own evaluation scored at that step. Any key of the config is an option: --sequence-len 1024,
    --bf16 true, --eval-batch-size 4.
    """
    import os

    from allranks.cluster.identity import identify
    from allranks.config.overrides import parse_overrides
    from allranks.errors import UsageError
    from allranks.observe import libraries_aside, say

    if compare not in (None, "base"):
        raise UsageError(f"--compare {compare}: only `base` can be compared with here; evaluate {compare} by itself")
    overrides = parse_overrides(given(ctx).config)
    identity = identify(os.environ)
    leads = identity.rank == 0
    # What libraries print is neither the result, which a program may read, nor news for the user.
    with libraries_aside():
        from allranks.inference.evaluate import evaluate as run
        from allranks.train.world import exit_rank

        done = run(
            model,
            files=data or (),
            data_type=data_type,
            step=step,
            base_model=base_model,
            compare_base=compare is not None,
            trust_remote_code=trust_remote_code,
            overrides=overrides,
            report=lambda line: say(line, file=sys.stderr) if leads else None,
        )
    if leads:
        typer.echo(json.dumps(_as_json(done), indent=1) if as_json else "\n".join(_lines(done)))
    if not identity.alone:
        exit_rank(0, identity)


def _lines(done: "Evaluation") -> list[str]:
    trained = "model" if done.step is None else f"step {done.step}"
    width = max(len(trained), len("base")) + 2
    lines = [done.title]
    for one in (*done.data, *([done.total] if done.total else [])):
        left_out = f"; {one.num_left_out:,} records left out" if one.num_left_out else ""
        lines += [
            "",
            f"{one.name}: {one.num_examples:,} examples, {one.num_target_tokens:,} target tokens{left_out}",
            f"  {'':{width}}{'loss':>10}{'perplexity':>12}{'by example':>14}{'perplexity':>12}",
        ]
        if one.base is not None:
            lines.append(_row("base", one.base, width))
        lines.append(_row(trained, one.score, width))
    return lines


def _row(name: str, score: "Score", width: int) -> str:
    return (
        f"  {name:{width}}{score.loss:>10.4f}{_number(score.perplexity):>12}"
        f"{score.example_loss:>14.4f}{_number(score.example_perplexity):>12}"
    )


def _number(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.2e}"


def _as_json(done: "Evaluation") -> dict[str, Any]:
    return {
        "model": done.title,
        "step": done.step,
        "data": [_score_json(one) for one in done.data],
        "total": _score_json(done.total) if done.total else None,
    }


def _score_json(one: "DataScore") -> dict[str, Any]:
    def scores(score: "Score") -> dict[str, float | None]:
        found = {**asdict(score), "perplexity": score.perplexity, "example_perplexity": score.example_perplexity}
        return {key: value if math.isfinite(value) else None for key, value in found.items()}

    counts = ("name", "num_examples", "num_target_tokens", "num_left_out")
    told = {key: getattr(one, key) for key in counts}
    return {**told, **scores(one.score), **({"base": scores(one.base)} if one.base else {})}


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("evaluate")
