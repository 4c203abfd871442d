"""`allranks export` and its aliases: write a checkpoint as Hugging Face safetensors."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from allranks import interrupt
from allranks.listing import si_bytes

_Source = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run directory, one checkpoint, or the run's config.yaml.")
]
_Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="New folder to write; `export` in the run directory by default.")
]
_Merge = Annotated[bool, typer.Option("--merge", help="Add the adapter to its base model and write the whole.")]
_Step = Annotated[int | None, typer.Option(help="Step of the checkpoint; the newest by default.")]
_Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; what the run computed in by default.")]
_Base = Annotated[str | None, typer.Option(help="Where the base model of the adapter is now, if it has moved.")]
_Shard = Annotated[str, typer.Option(help="Largest size of one safetensors file: 500MB, 5GB …")]
_Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that the model brings along. Read that code first."),
]
_Logits = Annotated[
    bool | None,
    typer.Option(
        "--compare-logits/--no-compare-logits",
        help="Load what was written with transformers and compare its logits with the trained model's; by default up "
        "to 0.5 billion parameters.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")]

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def export(
    source: _Source,
    output: _Output = None,
    merge: _Merge = False,
    step: _Step = None,
    dtype: _Dtype = None,
    base_model: _Base = None,
    max_shard_size: _Shard = "5GB",
    trust_remote_code: _Trust = False,
    compare_logits: _Logits = None,
    as_json: _Json = False,
) -> None:
    """Write a checkpoint as Hugging Face safetensors: the adapter, the merged model (--merge) or the full model.

    Needs no GPU. Example: allranks export model-out --output my-model
    """
    _run(source, output, merge, step, dtype, base_model, max_shard_size, trust_remote_code, compare_logits, as_json)


def merge_lora(
    source: _Source,
    output: _Output = None,
    step: _Step = None,
    dtype: _Dtype = None,
    base_model: _Base = None,
    max_shard_size: _Shard = "5GB",
    trust_remote_code: _Trust = False,
    compare_logits: _Logits = None,
    as_json: _Json = False,
) -> None:
    """Axolotl's name for `allranks export --merge`; writes to `merged` in the run directory by default.

    Example: allranks merge-lora config.yaml
    """
    _run(
        source,
        output,
        True,
        step,
        dtype,
        base_model,
        max_shard_size,
        trust_remote_code,
        compare_logits,
        as_json,
        default="merged",
    )


def merge_sharded_fsdp_weights(
    source: _Source,
    output: _Output = None,
    step: _Step = None,
    dtype: _Dtype = None,
    max_shard_size: _Shard = "5GB",
    trust_remote_code: _Trust = False,
    compare_logits: _Logits = None,
    as_json: _Json = False,
) -> None:
    """Axolotl's name for `allranks export`; writes to `merged` in the run directory by default.

    Example: allranks merge-sharded-fsdp-weights config.yaml
    """
    _run(
        source,
        output,
        False,
        step,
        dtype,
        None,
        max_shard_size,
        trust_remote_code,
        compare_logits,
        as_json,
        default="merged",
    )


def _run(
    source: Path,
    output: Path | None,
    merge: bool,
    step: int | None,
    dtype: str | None,
    base_model: str | None,
    max_shard_size: str,
    trust_remote_code: bool,
    compare_logits: bool | None,
    as_json: bool,
    default: str = "export",
) -> None:
    from allranks.errors import UsageError
    from allranks.observe import libraries_aside, say

    shard_bytes = _bytes(max_shard_size)
    if source.is_file():
        from allranks.config import load_config

        source = Path(load_config(source).checkpoint.output_dir)
    if not source.is_dir():
        raise UsageError(f"{source} does not exist; give a run directory, a checkpoint or a config.yaml")
    if output is None:
        run_dir = source.resolve().parent.parent if source.name.startswith("step-") else source
        output = run_dir / default
    # stdout is for the result, which a program may read; libraries (DeepSpeed when imported) log there too.
    with libraries_aside():
        from allranks.export.export import export as write

        done = write(
            source,
            output,
            merge=merge,
            step=step,
            dtype=dtype,
            base_model=base_model,
            max_shard_bytes=shard_bytes,
            trust_remote_code=trust_remote_code,
            compare_logits=compare_logits,
            report=lambda line: say(line, file=sys.stderr),
        )
    interrupt.means(f"not all was told; what was exported is whole: {done.folder}")
    if as_json:
        facts = {"kind": done.kind, "folder": str(done.folder), "checkpoint": str(done.checkpoint), "step": done.step}
        typer.echo(json.dumps({**facts, "num_bytes": done.num_bytes}, indent=1))
    else:
        say(f"{done.kind} of step {done.step}: {done.folder} ({si_bytes(done.num_bytes)})")


def _bytes(text: str) -> int:
    from allranks.errors import UsageError

    upper = text.strip().upper()
    for unit, factor in sorted(_UNITS.items(), key=lambda item: -len(item[0])):
        number = upper.removesuffix(unit).strip()
        if upper.endswith(unit) and number.replace(".", "", 1).isdigit() and float(number) > 0:
            return int(float(number) * factor)
    raise UsageError(f"--max-shard-size {text}: expected a number and a unit, such as 5GB or 500MB")


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("export")
