"""What a user installs: the wheel, built from the source archive, in an environment outside of this clone."""

from __future__ import annotations

import email.message
import email.parser
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from allranks import __version__
from allranks.observe import RunDir, read_events
from allranks.observe.events import StepEvent
from tests.cluster.conftest import ENVIRONMENT
from tests.patience import TIMEOUT_SECONDS

# A whole demo is six commands one after the other, each of which imports torch.
pytestmark = pytest.mark.timeout(3 * TIMEOUT_SECONDS)

ROOT = Path(__file__).parents[2]

# The whole demo, smaller. Nodes that are asked early cannot have finished before the question arrives, however quick
# the machine is.
_SMALL_DEMO = """
from pathlib import Path
from rich.console import Console
from allranks.demo.story import run_demo

sizes = dict(num_records=400, vocab_size=512, hidden_size=64, num_layers=2, max_steps=120)
run_demo(Path("demo"), console=Console(width=200), stop_share=0.1, **sizes)
"""


def _build(target: str, source: Path, into: Path) -> Path:
    """Build with the project's own backend, as `python -m build` does, with what is installed: there is no network."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", into]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = into.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    archive = _build("sdist", ROOT, folder / "sdist")
    with tarfile.open(archive) as opened:
        opened.extractall(folder / "source", filter="data")
    [source] = (folder / "source").iterdir()
    return _build("wheel", source, folder / "wheel")


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as opened:
        return email.parser.Parser().parsestr(opened.read(f"allranks-{__version__}.dist-info/METADATA").decode("utf-8"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts' folder of a new environment with the wheel; it sees the packages that are installed beside us."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=TIMEOUT_SECONDS)
    subprocess.run(
        [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel],
        check=True,
        timeout=TIMEOUT_SECONDS,
    )
    [packages] = folder.glob("lib/python3.*/site-packages")
    # Paths that a .pth file adds come last, and .pth files in them, as that of this clone, are not read.
    theirs = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(theirs) + "\n")
    return folder / "bin"


def _environment(installed: Path, home: Path) -> dict[str, str]:
    """A user's: scripts of the environment and nothing else on PATH, so no compiler."""
    left = {name: value for name, value in ENVIRONMENT.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**left, "PATH": str(installed), "HOME": str(home)}


def test_it_has_all_files_of_the_package_and_no_others(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        packed = {name for name in opened.namelist() if ".dist-info/" not in name}
        licenses = [name for name in opened.namelist() if name.endswith("/LICENSE")]
    source = ROOT / "src"
    ours = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert packed == ours
    assert {"allranks/py.typed", "allranks/data/chat_templates/chatml.jinja"} <= packed
    assert len(licenses) == 1


def test_its_metadata_say_what_an_index_shows(metadata: email.message.Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == ("allranks", __version__)
    assert metadata["Summary"] and metadata["Keywords"] and metadata["Author"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    classifiers = metadata.get_all("Classifier", [])
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} <= set(classifiers)
    assert "Typing :: Typed" in classifiers
    core = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert not [line for line in core if line.startswith(("pytest", "ruff", "mypy", "deepspeed", "ray", "wandb"))]


def test_its_readme_reads_without_the_repository(metadata: email.message.Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = metadata.get_payload()
    assert isinstance(text, str)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = [child for token in tokens for child in token.children or ()]
    addresses = [str(child.attrs.get("href") or child.attrs.get("src")) for child in inline if child.attrs]
    assert [address for address in addresses if not address.startswith(("https://", "#"))] == []
    assert "](" not in "".join(child.content for child in inline), "a link that was cut in two"
    words = {token.type for token in tokens}
    assert {"heading_open", "table_open", "fence"} <= words
    said = " ".join(child.content for child in inline if child.type == "text")
    for heading in ("Install", "Try it", "Train"):
        assert f" {heading} " in f" {said} "
    assert "all ways" in said, "the words of a link stay"


@pytest.mark.thorough
def test_the_demo_runs_from_it_without_a_compiler(installed: Path, tmp_path: Path) -> None:
    def run(program: str, *words: str) -> str:
        done = subprocess.run(
            [installed / program, *words],
            cwd=tmp_path,
            env=_environment(installed, tmp_path / "home"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * TIMEOUT_SECONDS,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    where = run("python", "-c", "import allranks; print(allranks.__file__)")
    assert Path(where).is_relative_to(installed.parent), "the clone is not what runs"
    assert run("allranks", "--version") == f"allranks {__version__}\n"

    told = run("python", "-c", _SMALL_DEMO)
    assert "exited with 75" in told
    assert "2 nodes x 1 process" in told
    assert "\n  Q: What does os.path.join do?\n  A: " in told
    steps = [e for e in read_events(RunDir(tmp_path / "demo" / "run").events(0)) if isinstance(e, StepEvent)]
    assert [e.step for e in steps] == list(range(1, 121))  # none lost and none done twice by the change of topology
    assert (tmp_path / "demo" / "exported" / "model.safetensors").exists()
    # The config that the demo wrote, with a template that is a file of the package.
    assert "chat_template: chatml" in run("allranks", "config", "show", "demo/config.yaml", "--chat-template", "chatml")
