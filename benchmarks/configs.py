"""Which of a folder's configs are taken: `config show` on each, counted by the reason of a refusal.

    python -m benchmarks.configs FOLDER [--list] [--cwd FOLDER]

Made for the examples of other trainers, which are not shipped: a clone of Axolotl's repository and its `examples/`.
Exit code 1 if any of them crashed.
"""

import argparse
import contextlib
import io
import os
import re
import sys
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

OUT_OF_SCOPE = "out of scope"


@dataclass
class Survey:
    """What became of each file: path -> its notes, its problems or its traceback."""

    accepted: dict[str, list[str]] = field(default_factory=dict)
    refused: dict[str, list[str]] = field(default_factory=dict)
    crashed: dict[str, str] = field(default_factory=dict)

    @property
    def out_of_scope(self) -> list[str]:
        """Files that ask for something else than supervised fine-tuning."""
        return [path for path, problems in self.refused.items() if any(OUT_OF_SCOPE in one for one in problems)]

    def reasons(self) -> Counter[str]:
        """How many of the files in scope each reason stands in, whether alone or beside others."""
        other = set(self.out_of_scope)
        return Counter(
            reason
            for path, problems in self.refused.items()
            if path not in other
            for reason in {reason_of(problem) for problem in problems}
        )


def survey(folder: Path) -> Survey:
    """Run `config show` on every YAML file below `folder`."""
    found = Survey()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".yaml", ".yml") and p.is_file()):
        name = str(path.relative_to(folder))
        code, said = show(path)
        if code == 0:
            found.accepted[name] = [line for line in said.splitlines() if line]
        elif code == 2:
            found.refused[name] = problems_of(said)
        else:
            found.crashed[name] = said
    return found


def show(path: Path) -> tuple[int, str]:
    """Exit code of `allranks config show PATH`, run in this process, and what it wrote to stderr."""
    from allranks.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["config", "show", str(path)])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            code = 1
            traceback.print_exc()
    return code, err.getvalue()


def problems_of(said: str) -> list[str]:
    """The problems of an error, one each: a single line, or a head with indented lines."""
    lines = [line for line in said.removeprefix("error: ").splitlines() if line.strip()]
    return [line.strip() for line in lines[1:]] if len(lines) > 1 else lines


def reason_of(problem: str) -> str:
    """A problem without its file and line: the key and the reason, whatever the value was."""
    return re.sub(r"^.*?:\d+: |^[^:]*\.(ya?ml|json): ", "", problem)[:150]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cwd", type=Path, help="where relative paths of the configs begin, such as the clone's root")
    parser.add_argument("--list", action="store_true", help="name every file")
    given = parser.parse_args()
    folder = given.folder.absolute()
    if given.cwd:
        os.chdir(given.cwd)
    found = survey(folder)
    num_files = len(found.accepted) + len(found.refused) + len(found.crashed)
    others = len(found.out_of_scope)
    print(f"{num_files} configs: {len(found.accepted)} accepted, {len(found.refused)} refused, ", end="")
    print(f"{len(found.crashed)} crashed")
    print(
        f"  of {num_files - others} that are supervised fine-tuning: {len(found.accepted)} accepted; {others} are not"
    )
    print("\nrefused, by reason (files in scope that have it):")
    for reason, number in found.reasons().most_common():
        print(f"{number:5}  {reason}")
    if given.list:
        for head, files in (("accepted", found.accepted), ("refused", found.refused)):
            print(f"\n{head}:")
            for name, lines in files.items():
                print("\n    ".join([f"  {name}", *lines]))
    for name, text in found.crashed.items():
        print(f"\ncrashed: {name}\n{text}")
    sys.exit(1 if found.crashed else 0)


if __name__ == "__main__":
    main()
