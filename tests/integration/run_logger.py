"""A program that logs until it is killed: prints a line for every call that returned.

Run as ``python -m tests.integration.run_logger URL SPOOL_DIR [EXPERIMENT]``; the first line is the run's id. Each line
says what was logged: a step of the metric ``loss`` (its value is half the step), a parameter, or an artifact's name.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from pathlib import Path

from modelbox import sync


def main(url: str, spool_dir: Path, experiment: str) -> None:
    # A shell that runs tests in the background has them, and so us, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = spool_dir.parent / f"file-{os.getpid()}"
    with sync.Client(url, spool_dir=spool_dir, spool_max_bytes=64 << 20) as client:
        with client.start_run(experiment, capture=False, metadata={"pid": os.getpid()}) as run:
            _say(run.id)
            for step in itertools.count():
                run.log_metric("loss", step / 2, step=step)
                _say(f"step {step}")
                if step % 100 == 0:
                    run.log_params({f"p{step}": step})
                    _say(f"param {step}")
                if step % 500 == 0 and step <= 10_000:
                    file.write_text(str(step))
                    run.log_artifact(f"a{step}", {"file": file})
                    _say(f"artifact {step}")
                if step % 10 == 0:
                    # Not all the speed there is: a kill should find it anywhere.
                    time.sleep(0.001)


def _say(line: str) -> None:
    # One write call, so that a kill never leaves half a line; the pipe holds what returned.
    os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *(sys.argv[3:] or ["lab/killed"]))
