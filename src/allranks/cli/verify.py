"""`allranks verify`: is the run really distributed, and is it what was asked for?"""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from allranks.cli.help import new_app
from allranks.cli.run_argument import Run, run_dir

app = new_app()

_SHOWN = {"ok": "ok", "wrong": "WRONG", "warning": "warning", "unknown": "not known"}


@app.command(epilog="Example: allranks verify outputs/run --json")
def verify(
    run: Run,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Show what every rank of a run said of itself after the first step, and whether it holds together.

    Ranks, nodes, GPUs, one communicator, equal parameters, each block of data once, the loss of all, and how the nodes
    talk. Ends with 0 where all holds, and with 3 where something is wrong.
    """
    from allranks.exit_codes import DONE, REFUSED
    from allranks.listing import printable
    from allranks.observe import say
    from allranks.verify.checks import findings
    from allranks.verify.run import verify_run
    from allranks.verify.transports import pairs

    directory = run_dir(run).path
    proof, checks = verify_run(directory)
    wrong = findings(checks, proof)
    if as_json:
        found = {
            "run": proof.run,
            "directory": str(directory),
            "ok": not wrong,
            "step": proof.step,
            "world_size": proof.world_size,
            "checks": [asdict(check) for check in checks],
            "findings": [finding.to_message() for finding in wrong],
            "pairs": [
                {"from": source, "to": target, "over": sorted(ways)}
                for (source, target), ways in sorted(pairs(proof).items())
            ],
        }
        say(json.dumps(found, indent=2))
    else:
        for check in checks:
            say(f"{_SHOWN[check.result]:<10}{check.name + ':':<17}{printable(check.said)}")
            if check.remedy and check.result in ("wrong", "unknown"):
                say(f"{'':<27}{check.remedy}")
        ended = f"{len(wrong)} thing{'s are' if len(wrong) > 1 else ' is'} not as asked" if wrong else "as it was asked"
        say(f"{printable(directory)}, after step {proof.step}: {ended}")
    raise typer.Exit(REFUSED if wrong else DONE)


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("verify")
