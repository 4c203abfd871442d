"""Parts for the driver of `benchmarks.acceptance`, by their argument: what a part can do to it."""

import os
import signal
import subprocess
import sys
import time

from benchmarks.parts.part import Row, agreement


def run(place):
    print("said", flush=True)
    yield Row("first", place.argument, values={"pid": os.getpid()})
    match place.argument:
        case "wrong":
            yield agreement("a loss", [1.0, 2.0], [1.0, 2.1], 1e-3)
        case "raises":
            raise RuntimeError("no | such kernel")
        case "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hangs":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            yield Row("started", str(child.pid))
            time.sleep(600)
        case "shares":
            (place.shared / "left").write_text("x")
        case "finds":
            yield Row("left", (place.shared / "left").read_text(), "x", True)
