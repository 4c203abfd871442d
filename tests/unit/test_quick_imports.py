"""What is done for quick imports changes nothing that is imported."""

import builtins
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import transformers

from allranks.quick_imports import import_quickly, quicken_scan

MODELS = Path(transformers.__file__).parent / "models"


@pytest.fixture
def import_utils(monkeypatch) -> ModuleType:
    """Transformers' module that scans, once more and as it is."""
    source = MODELS.parent / "utils" / "import_utils.py"
    spec = importlib.util.spec_from_file_location("transformers.utils.import_utils_again", source)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_models_are_found_as_before_and_their_files_are_read_once(import_utils, monkeypatch):
    expected = import_utils.define_import_structure(MODELS, prefix="models")
    import_utils.define_import_structure.cache_clear()
    quicken_scan(import_utils)
    assert import_utils.define_import_structure(MODELS, prefix="models") == expected
    assert sum(map(len, expected.values())) > 500

    read = []
    monkeypatch.setattr(builtins, "open", lambda path, *rest, **more: read.append(path))
    again = import_utils.define_import_structure(str(MODELS / "__init__.py"))  # as transformers.models asks for it
    assert {f"models.{name}" for names in again.values() for name in names} == {
        name for names in expected.values() for name in names
    }
    assert read == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "import os\n",
        '__all__ = ["a", "b"]\n',
        'x = 1\n__all__ = [\n    "a",\n    "b",\n]\n',
        '__all__ = ["a"]\n__all__ = ["b"]',
    ],
)
def test_names_that_a_file_hands_out(import_utils, text):
    expected = import_utils.fetch__all__(text)
    quicken_scan(import_utils)
    assert import_utils.fetch__all__(text) == expected


def test_a_version_that_scans_otherwise_is_left_alone():
    other = ModuleType("import_utils")
    other.fetch__all__ = other.create_import_structure_from_path = len
    quicken_scan(other)
    assert other.fetch__all__ is other.create_import_structure_from_path is len


def test_it_is_done_while_transformers_is_imported_and_for_no_other_module(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    import_quickly()
    import_quickly()
    finders = [finder for finder in sys.meta_path if type(finder).__name__ == "_QuickScan"]
    assert finders == sys.meta_path[:1]
    [finder] = finders
    assert finder.find_spec("transformers.utils.hub", transformers.utils.__path__) is None
    spec = finder.find_spec("transformers.utils.import_utils", transformers.utils.__path__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.create_import_structure_from_path.cache_parameters()["maxsize"] is None
