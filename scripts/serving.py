"""Starts the real binary for a check, on a free port, and stops it again."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import threading

ROOT = pathlib.Path(__file__).resolve().parent.parent


def binary():
    """The binary to check: $TRUNKLINE_BINARY, or the release build of this checkout."""
    named = os.environ.get("TRUNKLINE_BINARY")
    if named:
        return named
    target = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target"))
    return str(pathlib.Path(target) / "release" / "trunkline")


@contextlib.contextmanager
def server(*flags, timeout=300):
    """Yields the server's URL once it is ready. $TRUNKLINE_TEST_MODEL replaces the demo model."""
    command = [binary(), "--port", "0", "--log-level", "warn", *flags]
    if model := os.environ.get("TRUNKLINE_TEST_MODEL"):
        command += ["--model", model]
    # Settings of the caller's own server have no say in a check.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRUNKLINE_")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    watchdog = threading.Timer(timeout, process.kill)
    watchdog.start()
    try:
        line = process.stdout.readline()
        watchdog.cancel()
        found = re.search(r"http://\S+", line)
        if not found:
            raise RuntimeError(f"{' '.join(command)} did not become ready; it said {line!r}")
        yield found.group(0)
    finally:
        watchdog.cancel()
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RuntimeError("the server did not stop on SIGTERM")
        process.stdout.close()
    if code != 0:
        raise RuntimeError(f"the server ended with code {code} on SIGTERM")
