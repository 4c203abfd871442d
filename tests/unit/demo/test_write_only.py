import io

from rich.console import Console

from allranks.demo.story import write_only


def test_the_files_alone_come_with_the_script_that_asks_and_what_to_type_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = io.StringIO()
    write_only(tmp_path / "demo", console=Console(file=out, soft_wrap=True))
    compile((tmp_path / "demo" / "ask.py").read_text(), "ask.py", "exec")
    told = out.getvalue()
    assert "allranks train demo/config.yaml" in told and "python demo/ask.py demo/exported 'What does" in told
