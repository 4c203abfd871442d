import os
import pty
import subprocess
import sys
import threading

WRITER = """
import subprocess, sys
from allranks.launch.node.terminal import terminal_path
with terminal_path() as path:
    print("before", flush=True)
    rank = "import sys; out = open(sys.argv[1], 'w'); print('from a rank', out.isatty(), file=out)"
    subprocess.run([sys.executable, "-c", rank, path], start_new_session=True, check=True)
print("after")
"""


def test_a_rank_writes_into_a_file_between_the_launchers_lines(tmp_path):
    with (tmp_path / "out").open("w") as file:
        subprocess.run([sys.executable, "-c", WRITER], stdout=file, check=True)
    assert (tmp_path / "out").read_text() == "before\nfrom a rank False\nafter\n"


def test_a_rank_writes_into_a_pipe():
    done = subprocess.run([sys.executable, "-c", WRITER], capture_output=True, text=True, check=True)
    assert done.stdout == "before\nfrom a rank False\nafter\n"


def test_a_rank_has_the_terminal_itself():
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read():
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # the other side was closed
                return
            if not data:
                return
            shown.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    subprocess.run([sys.executable, "-c", WRITER], stdout=theirs, check=True)
    os.close(theirs)
    reader.join(10)
    os.close(ours)
    assert b"from a rank True" in shown
    assert shown.index(b"\x1b[?25h") < shown.index(b"after"), "a killed rank would leave the cursor hidden"


def test_nothing_is_lost_at_the_end():
    lines = 1000
    code = WRITER.replace("print('from a rank', out.isatty(), file=out)", f"out.write('line\\\\n' * {lines})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("line\n") == lines


def test_what_is_shown_can_be_kept_in_a_log_too(tmp_path):
    code = WRITER.replace("terminal_path()", "terminal_path(Path(sys.argv[1]))").replace(
        "import sub", "from pathlib import Path; import sub", 1
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], capture_output=True, text=True)
        assert done.stdout == "before\nfrom a rank False\nafter\n"
    assert (tmp_path / "log").read_text() == "from a rank False\n" * 2


def test_a_line_that_does_not_end_is_shown_as_it_comes():
    longest = 2**16 + 5
    code = WRITER.replace(
        "print('from a rank', out.isatty(), file=out)", f"out.write('x' * {longest}); out.flush(); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.read(7 + 2**16) == "before\n" + "x" * 2**16
        process.communicate("\n")
