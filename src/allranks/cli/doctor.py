"""`allranks doctor`: why it failed."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(epilog="Example: allranks doctor --check-rules my-rules.toml")
def doctor(
    named: Annotated[list[Path] | None, typer.Argument(metavar="FILE…", help="Files of rules.")] = None,
    check_rules: Annotated[
        bool, typer.Option("--check-rules", help="Check rules, those of allranks or of FILE…, and try them.")
    ] = False,
) -> None:
    """Check the rules by which failures are told from logs."""
    from allranks.doctor.rule_cases import problems_of_rules
    from allranks.doctor.ruleset import load_rules, rule_files
    from allranks.errors import ConfigError, UsageError
    from allranks.observe import say

    if not check_rules:
        raise UsageError("allranks doctor --check-rules [FILE…] checks rules")
    files = named or rule_files()
    if problems := problems_of_rules(files):
        raise ConfigError("\n".join(problems))
    rules = [rule for file in files for rule in load_rules(file)]
    say(f"{len(rules)} rules in {len(files)} files: nothing is wrong with them")


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("doctor")
