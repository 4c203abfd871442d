"""No file imports itself through others, also not inside of a function: what belongs together would have no order."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import allranks

PACKAGE = Path(allranks.__file__).parent


def test_no_circle_at_run_time():
    files = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    graph = {name: imported(path, files) - {name} for name, path in files.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path, files):
    found = set()
    todo = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in files else node.module for name in names}
        todo += ast.iter_child_nodes(node)
    return found & files.keys()
