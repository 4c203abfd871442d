"""The stand-in's qsub: reads the script's directives and the command line, hands both to the server."""

from __future__ import annotations

import getopt
import os
import re
import shlex
import socket
import sys
from pathlib import Path
from typing import Any

from tests.cluster.lab.pbs import wire

OPTIONS = "a:A:c:C:e:fhIj:J:k:l:m:M:N:o:p:P:q:r:R:S:u:v:VW:Xz"
# What changes the meaning of a job must not be passed over in silence.
NOT_DONE = ("-a", "-c", "-h", "-I", "-J", "-R", "-u", "-X")
SUBMITTED = ("HOME", "LANG", "LOGNAME", "PATH", "MAIL", "SHELL", "TZ")


def main() -> None:
    wire.answer_version()
    try:
        given, operands = getopt.getopt(sys.argv[1:], OPTIONS)
    except getopt.GetoptError as error:
        wire.fail(str(error))
    if "--" in sys.argv[1:] or len(operands) > 1:
        wire.fail("this stand-in takes a script, no executable")
    from_file = bool(operands) and operands[0] != "-"
    try:
        script = Path(operands[0]).read_text() if from_file else sys.stdin.read()
    except OSError as error:
        wire.fail(f"script file:: {error.strerror}", 1)
    name = Path(operands[0]).name if from_file else "STDIN"

    directives = read_directives(script, dict(given).get("-C", "#PBS"))
    job: dict[str, Any] = {"name": name, "script": script, "resources": {}, "variables": {}, "attributes": {}}
    for option, value in [*directives, *given]:  # the command line comes later, and wins
        take(job, option, value)
    job["host"] = socket.gethostname()
    job["directory"] = os.environ.get("PWD", str(Path.cwd()))
    job["variables"] = {
        **{f"PBS_O_{name}": os.environ[name] for name in SUBMITTED if name in os.environ},
        "PBS_O_WORKDIR": job["directory"],
        "PBS_O_HOST": job["host"],
        "PBS_O_SYSTEM": os.uname().sysname,
        **job["variables"],
    }
    reply = wire.ask_server({"op": "submit", "job": job})
    if not job.get("quiet"):
        print(reply["id"], flush=True)
    if job["attributes"].get("block") == "true":
        code = wire.ask_server({"op": "wait", "id": reply["id"]})["exit"]
        sys.exit(3 if code is None else code & 0xFF)


def read_directives(script: str, prefix: str) -> list[tuple[str, str]]:
    """The options on the script's `#PBS` lines, which end at its first command."""
    options: list[tuple[str, str]] = []
    for number, line in enumerate(script.splitlines()):
        if not prefix or (line.strip() and not line.lstrip().startswith(("#", ":"))):
            break
        if not line.startswith(prefix) or (number == 0 and line.startswith("#!")):
            continue
        try:
            found, rest = getopt.getopt(shlex.split(line[len(prefix) :]), OPTIONS)
        except (getopt.GetoptError, ValueError) as error:
            wire.fail(f"directive error: {line}: {error}")
        if rest:
            wire.fail(f"directive error: {line}")
        options += found
    return options


def take(job: dict[str, Any], option: str, value: str) -> None:
    """Note one option in the job."""
    if option in NOT_DONE:
        wire.fail(f"this stand-in does not do {option}")
    if option == "-l":
        for word in split(value):
            name, _, amount = word.partition("=")
            job["resources"][name] = amount
    elif option == "-v":
        for word in split(value):
            name, equals, text = word.partition("=")
            if not equals and name not in os.environ:
                wire.fail(f"cannot send environment with the job: {name} is not set")
            job["variables"][name] = text if equals else os.environ[name]
    elif option == "-V":
        job["variables"].update({name: text for name, text in os.environ.items() if not name.startswith("PBS_O_")})
    elif option == "-W":
        for word in split(value):
            name, _, text = word.partition("=")
            if name not in ("block", "umask", "sandbox", "group_list"):
                wire.fail(f"this stand-in does not do -W {name}")
            job["attributes"][name] = text
    elif option == "-N":
        if not re.fullmatch(r"[A-Za-z0-9][!-~]{0,235}", value):
            wire.fail("illegal -N value")
        job["name"] = value
    elif option == "-j":
        if value not in ("oe", "eo", "n"):
            wire.fail("illegal -j value")
        job["join"] = value
    elif option == "-r":
        if value not in ("y", "n"):
            wire.fail("illegal -r value")
        job["rerunnable"] = value == "y"
    elif option == "-z":
        job["quiet"] = True
    else:
        names = {"-A": "account", "-e": "error", "-o": "output", "-k": "keep", "-q": "queue", "-S": "shell"}
        if option in names:
            job[names[option]] = value


def split(text: str) -> list[str]:
    """Split at commas outside of quotes, and take the quotes off, as -v, -l and -W ask."""
    words, word, quote = [], "", ""
    for character in text:
        if quote:
            if character == quote:
                quote = ""
            else:
                word += character
        elif character in "'\"":
            quote = character
        elif character == ",":
            words.append(word)
            word = ""
        else:
            word += character
    if quote:
        wire.fail("unbalanced quotes")
    return [word.lstrip() if "=" in word else word.strip() for word in [*words, word] if word.strip()]
