"""What the documentation shows works: links lead somewhere, commands and configs are taken, the reference is made."""

import ast
import inspect
import os
import re
import shlex
import tomllib
from dataclasses import fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

import allranks
from allranks import exit_codes
from allranks.api import train
from allranks.checkpoint.state import RunState
from allranks.cli.commands import COMMANDS, load_command
from allranks.cli.commands import allranks as cli
from allranks.cli.config_keys import ConfigKeysCommand, given
from allranks.cli.train_words import TrainWordsCommand
from allranks.cluster.pairs import MESSAGE_BYTES
from allranks.cluster.transports.pbsdsh import _write_for_this_user_only
from allranks.config.load import resolve_mapping
from allranks.config.names import known_keys
from allranks.config.overrides import parse_overrides
from allranks.config.unsupported import is_known
from allranks.config.yaml_lines import parse_yaml
from allranks.launch.node.temporary import own_temporary_folder
from allranks.launch.spec.options import C10D_PORT, STATIC_PORT
from allranks.observe import EventLog
from allranks.observe.events import KINDS
from allranks.observe.lock import lock_node
from allranks.reference import markdown
from allranks.rendezvous import door, wire

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "examples" / "README.md", *DOCS]
PAGES += [ROOT / "tests" / "cluster" / "lab" / "README.md"]


def name(path):
    return str(path.relative_to(ROOT))


@cache
def parsed(page):
    """Of all pages, by every process that collects these tests: once each."""
    return MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page):
    """Language, first line and text of each block of code."""
    for token in parsed(page):
        if token.type in ("fence", "code_block"):
            yield token.info.strip(), token.map[0] + 1, token.content


def all_blocks(language):
    return [
        pytest.param(text, id=f"{name(page)}:{line}")
        for page in PAGES
        for info, line, text in blocks(page)
        if info == language
    ]


def anchors(page):
    """Of its headings, as GitHub makes them."""
    tokens = parsed(page)
    titles = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page):
    inline = [child for token in parsed(page) if token.children for child in token.children]
    for target in [str(child.attrs.get("href") or child.attrs.get("src") or "") for child in inline if child.attrs]:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def test_the_index_lists_every_page():
    text = (ROOT / "docs" / "index.md").read_text()
    assert {page.name for page in DOCS} - {"index.md"} == set(re.findall(r"\]\(([\w-]+\.md)\)", text))


def test_the_reference_is_up_to_date():
    assert (ROOT / "docs" / "reference.md").read_text() == markdown(), (
        "run `python -m allranks.reference > docs/reference.md`"
    )


def test_the_reference_says_something_of_every_field():
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (.*) \|$", markdown(), re.MULTILINE)
    assert all(text for _, text in rows)
    for kind in (*KINDS.values(), RunState):
        assert {each.name for each in fields(kind)} - {"other"} <= {field for field, _ in rows}


def commands():
    """Each command line of allranks in a block of shell."""
    found = []
    for page in PAGES:
        shell = [text for info, _, text in blocks(page) if info in ("", "bash", "sh", "console")]
        lines = [line.strip() for text in shell for line in text.replace("\\\n", " ").splitlines()]
        lines = [shown[1] for line in lines if (shown := re.match(r"(?:\$ )?((?:[A-Z_]+=\S+ )*allranks .*)", line))]
        found += [pytest.param(line, id=f"{name(page)}: {line[:60]}") for line in dict.fromkeys(lines)]
    return found


def command_of(words):
    """The command that is named, its name, and the words that follow."""
    assert words[0] in COMMANDS
    command, name, rest = load_command(words[0]), words[0], words[1:]
    while hasattr(command, "commands"):  # `config show`, `qwen lora`
        if not rest:  # mentioned as a whole
            return command, name, []
        named = [command.commands[one] for one in rest[0].split("|")]
        command, rest = named[0], rest[1:]
    return command, name, rest


def words_of(line):
    line = line.replace("…", " ").rstrip().removesuffix("&").replace("\\|", "|")
    words = shlex.split(re.sub(r"\[([A-Z -]+)\]", "", line), comments=True)
    words = words[next(i for i, word in enumerate(words) if word == "allranks") + 1 :]
    for end in ("|", ">", "&&", ";", "&"):
        words = words[: words.index(end)] if end in words else words
    return words


@pytest.mark.parametrize("line", commands())
def test_every_command_that_is_shown_is_understood(line):
    words = words_of(line)
    if not words or words[0].startswith("-"):
        assert words in ([], ["--help"], ["--version"])
        return
    command, command_name, rest = command_of(words)
    context = command.make_context(command_name, rest)
    if isinstance(command, ConfigKeysCommand):
        parse_overrides(given(context).config)


def inline_code(page):
    return [child.content for token in parsed(page) for child in token.children or [] if child.type == "code_inline"]


# Of sbatch(1) and srun(1), those that both know.
SLURMS = {"account", "cpus-per-task", "chdir", "constraint", "distribution", "error", "exclude", "exclusive", "export"}
SLURMS |= {"gpus", "gpus-per-node", "gpus-per-task", "gres", "job-name", "mem", "mem-per-cpu", "nodelist", "nodes"}
SLURMS |= {"ntasks", "ntasks-per-node", "output", "partition", "qos", "signal", "time"}
SBATCHS = SLURMS | {"array", "dependency", "hold", "no-requeue", "open-mode", "parsable", "requeue", "wait", "wrap"}
SRUNS = SLURMS | {"cpu-bind", "jobid", "kill-on-bad-exit", "label", "mpi", "ntasks", "overlap", "pty", "unbuffered"}


def lines_of_others(pattern):
    """Each line of a block, or piece of code in a text, that a pattern finds: its page, and what its group holds."""
    found = []
    for page in PAGES:
        lines = [line for _, _, text in blocks(page) for line in text.replace("\\\n", " ").splitlines()]
        hits = [hit[1] for line in (*lines, *inline_code(page)) if (hit := re.search(pattern, line))]
        found += [pytest.param(hit, id=f"{name(page)}: {hit[:60]}") for hit in dict.fromkeys(hits)]
    return found


@pytest.mark.parametrize("words", lines_of_others(r"^\s*(?:\$ )?(?:[A-Z_]+=\S+ )*torchrun (.*-.*)$"))
def test_every_line_of_torchrun_is_one_that_torchrun_takes(words):
    from torch.distributed.run import get_args_parser

    taken = get_args_parser().parse_args(shlex.split(words.replace("…", " "), comments=True))  # exits where it does not
    assert not taken.training_script.startswith("-")


@pytest.mark.parametrize("options", lines_of_others(r"^\s*#SBATCH (.*)$") + lines_of_others(r"\bsbatch (--.*)$"))
def test_every_option_of_sbatch_is_spelled_as_slurm_does(options):
    assert set(re.findall(r"(?:^|\s)--([\w-]+)", options)) <= SBATCHS


@pytest.mark.parametrize("words", lines_of_others(r"\bsrun ((?:-\S+ )*-\S+)"))
def test_every_option_of_srun_is_spelled_as_slurm_does(words):
    assert {word.removeprefix("--").partition("=")[0] for word in words.split() if word.startswith("--")} <= SRUNS


@pytest.mark.parametrize("words", lines_of_others(r"\bpip install (.*)$"))
def test_every_extra_and_file_that_is_to_be_installed_is_there(words):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    words = shlex.split(re.sub(r"[`…]", " ", words), comments=True)
    for word in words:
        if named := re.match(r"(?:allranks|\.)\[(.*)\]$", word):
            assert {*named[1].split(",")} <= {*extras}
    for option, file in pairwise(words):
        assert option != "-c" or (ROOT / file).is_file()


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name)
def test_every_command_and_option_that_a_text_names_is_there(page):
    for text in inline_code(page):
        if not text.startswith("allranks ") or text.startswith(("allranks is not installed", "allranks --")):
            continue
        command, _, rest = command_of(words_of(text))
        for word in rest[: rest.index("--")] if "--" in rest else rest:
            option = word.partition("=")[0]
            taken = [each for each in command.params if option in (*each.opts, *each.secondary_opts)]
            if isinstance(command, TrainWordsCommand):  # hands on what `train` takes
                taken += [each for each in load_command("train").params if option in (*each.opts, *each.secondary_opts)]
            if option.startswith("--") and not taken:
                assert isinstance(command, ConfigKeysCommand | TrainWordsCommand), text
                parse_overrides([f"{option}=1"])


def test_the_exit_codes_are_those_of_the_code():
    codes = {str(value) for label, value in vars(exit_codes).items() if label.isupper()}
    table = (ROOT / "docs" / "train.md").read_text().partition("| exit code | means |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| (\d+) \|", table, re.MULTILINE)) == codes
    for text in ((ROOT / "README.md").read_text(), inspect.getdoc(cli)):
        listed = text.partition("Exit codes: ")[2].partition(".")[0].partition("\n\n")[0]
        assert {*re.findall(r"(?:^|, )(\d+) ", " ".join(listed.split()))} == codes - {str(exit_codes.INTERRUPTED)}


@pytest.mark.parametrize("text", all_blocks("yaml"))
def test_every_config_that_is_shown_is_read(text):
    """Parts of one are completed; of a whole one nothing may be wrong."""
    found, _ = parse_yaml(re.sub(r"^ *…$", "", text, flags=re.MULTILINE), "the page")
    if isinstance(found, dict) and "num_machines" in found:  # Accelerate's, whose reader has tests of its own
        return
    if isinstance(found, list):  # data sets only
        found = {"datasets": found}
    assert isinstance(found, dict)
    unknown = [key for key in found if key not in known_keys() and not is_known(key)]
    assert not unknown
    smallest = {"base_model": "m", "learning_rate": 1e-4, "datasets": [{"path": "d.jsonl", "type": "alpaca"}]}
    resolve_mapping({**smallest, **found}, ignore_unsupported=True)


@pytest.mark.parametrize("text", all_blocks("python"))
def test_every_program_that_is_shown_uses_what_there_is(text):
    for node in ast.walk(ast.parse(text.replace(", *,", ", "))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "allranks":
            assert node.attr in allranks.__all__


def test_the_page_for_python_names_all_that_is_public():
    text = (ROOT / "docs" / "python.md").read_text()
    for public in {*allranks.__all__} - {"__version__", "Event"}:
        assert f"`{public}" in text or f"allranks.{public}" in text, public
    shown = re.search(r"allranks\.train\(config, (.*?)\)\n", text, re.DOTALL)
    assert shown is not None
    named = re.findall(r"(\w+)=", shown[1])
    assert named == [each for each in train.__code__.co_varnames[: 1 + len(named)] if each != "config"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_test_that_a_page_names_is_there(page):
    folder = ROOT
    for path in re.findall(r"`((?:tests/[\w/]+/)?test_\w+\.py|tests/[\w/]+\.py)`", page.read_text(encoding="utf-8")):
        found = ROOT / path if "/" in path else folder / path
        assert found.is_file(), path
        folder = found.parent  # those that follow without a folder lie in the same


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "pictures").glob("*.svg")), ids=name)
def test_a_picture_is_told_in_words_and_can_be_read_on_dark_pages(picture):
    root = ElementTree.parse(picture).getroot()
    of = {"svg": "http://www.w3.org/2000/svg"}
    named = root.attrib["aria-labelledby"].split()
    assert [root.find(f"svg:{tag}", of).attrib["id"] for tag in ("title", "desc")] == named
    assert "prefers-color-scheme: dark" in root.findtext("svg:style", namespaces=of)
    shown = [page for page in DOCS if f"](pictures/{picture.name})" in page.read_text()]
    assert shown and all(re.search(rf"!\[.{{40,}}\]\(pictures/{picture.name}\)", page.read_text()) for page in shown)


def test_the_numbers_on_the_page_of_security_are_those_of_the_code():
    text = (ROOT / "docs" / "security.md").read_text()
    for said in (
        f"the master port ({STATIC_PORT}, c10d {C10D_PORT})",
        f"{wire.STRANGERS_BYTES // 2**10} KiB at most before the proof and {wire.MAX_LINE_BYTES // 2**20} MiB after it",
        f"at most {door._MOST_UNKNOWN} connections (or a quarter of the limit)",
        f"{wire.HANDSHAKE_SECONDS:.0f} seconds for each",
        f"sends {MESSAGE_BYTES // 2**10} KiB of zeros",
    ):
        assert said in text


def test_files_have_the_modes_that_the_page_of_security_tells(tmp_path):
    text = (ROOT / "docs" / "security.md").read_text()
    before = os.umask(0)
    try:
        EventLog(tmp_path / "events.jsonl", 0).close()
        os.close(lock_node(tmp_path / "logs"))
        _write_for_this_user_only(tmp_path / "token.json", {})
        with own_temporary_folder({"TMPDIR": str(tmp_path)}) as variables:
            folder = Path(variables["TMPDIR"]).stat().st_mode & 0o777
    finally:
        os.umask(before)

    def mode(path):
        return f"0{(tmp_path / path).stat().st_mode & 0o777:o}"

    assert f"event files and the lock {mode('events.jsonl')} less the umask" in text
    assert mode("logs/lock") == mode("events.jsonl")
    assert f"token for pbsdsh ({mode('token.json')})" in text
    assert f"removed at the end | 0{folder:o} |" in text
