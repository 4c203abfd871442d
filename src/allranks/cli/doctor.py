"""`allranks doctor`: why it failed."""

import json
from pathlib import Path
from typing import Annotated

import typer

from allranks.cli.help import new_app

app = new_app()


@app.command(epilog="Example: allranks doctor outputs/run, or: allranks doctor slurm-*.out")
def doctor(
    named: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN|LOG",
            help="A run directory, or logs of any trainer: files, folders, .gz; - is standard input.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Read on as the logs grow, until a cause is known.")
    ] = False,
    rules: Annotated[
        list[Path] | None,
        typer.Option("--rules", metavar="FILE", help="Know the rules of this TOML file, too; may be given again."),
    ] = None,
    check_rules: Annotated[
        bool, typer.Option("--check-rules", help="Check rules, those of allranks or of the files named, and try them.")
    ] = False,
) -> None:
    """Tell why a run failed: the first cause, what shows it, what to do, and what follows from it.

    Reads the logs of any trainer and launcher, of all ranks and nodes together. Ends with 0 where it knows, also that
    nothing failed, with 1 where it does not know, with 2 for wrong usage.
    """
    from allranks.errors import UsageError
    from allranks.exit_codes import FAILED
    from allranks.observe import say

    if check_rules:
        return _check([*(named or []), *(rules or [])])
    if not named:
        raise UsageError("name a run directory or logs: allranks doctor RUN|LOG…; - reads standard input")
    from allranks.doctor.follow import followed
    from allranks.doctor.of_run import diagnosis_of_run, is_run
    from allranks.doctor.read_logs import diagnosis_of_logs
    from allranks.doctor.ruleset import add_rules
    from allranks.doctor.told import lines_of

    add_rules(rules or [])
    if follow:
        told = followed(named)
    elif len(named) == 1 and (run := _run(named[0])) is not None and is_run(run):
        told = diagnosis_of_run(run)
    else:
        told = diagnosis_of_logs(named)
    for line in [json.dumps(told.to_message(), indent=1)] if as_json else lines_of(told):
        say(line)
    if not told.is_known and not told.ended_well:
        raise typer.Exit(FAILED)
    return None


def _run(named: Path) -> Path | None:
    """The folder or bundle that is meant, as other commands that look at a run take it."""
    if named.suffix in (".yaml", ".yml") and named.is_file():
        from allranks.cli.run_argument import run_dir

        return run_dir(named).path
    return named.expanduser() if str(named) != "-" else None


def _check(files: list[Path]) -> None:
    from allranks.doctor.rule_cases import problems_of_rules
    from allranks.doctor.ruleset import load_rules, rule_files
    from allranks.errors import ConfigError
    from allranks.listing import counted
    from allranks.observe import say

    files = files or rule_files()
    if problems := problems_of_rules(files):
        raise ConfigError("\n".join(problems))
    rules = [rule for file in files for rule in load_rules(file)]
    say(f"{counted(len(rules), 'rule')} in {counted(len(files), 'file')}: nothing is wrong")


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("doctor")
