"""`python -m tests.run_and_look PLACE RUN WORDS…`: `allranks WORDS…`, then what is left of the run's checkpoints.

For tests whose disk goes with the process that it is mounted for.
"""

import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    _, _, run, *words = sys.argv
    done = subprocess.run([sys.executable, "-m", "allranks", *words])
    print("EXIT CODE", done.returncode)
    print("LEFT", sorted(path.name for path in Path(run, "checkpoints").iterdir()), flush=True)
