#!/usr/bin/env python3
"""Sends what GET /openapi.json allows, and what it forbids, to the real server: thousands of requests by schemathesis.

No answer may be a server error or have a status or content type that is not described. Needs schemathesis in
the Python that runs this (tests/openapi/requirements.txt) and a release build.

    check_openapi.py [--examples N] [--seed N] [SCHEMATHESIS OPTIONS]
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

from serving import server

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
#: A short context, so that an answer without a limit ends soon; and no request waits in vain.
SERVER = ["--context-length", "512", "--max-waiting", "4096"]


def operations(url):
    with urllib.request.urlopen(url + "/openapi.json", timeout=30) as answer:
        paths = json.load(answer)["paths"]
    return sum(len(methods) for methods in paths.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100, help="random requests for each operation, at most")
    parser.add_argument("--seed", type=int, default=20260101)
    arguments, further = parser.parse_known_args()

    with server(*SERVER) as url, tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.ndjson"
        known = operations(url)
        # One worker: with two, hypothesis, which makes up the requests, has failed by itself on a busy machine.
        command = [
            str(pathlib.Path(sys.executable).with_name("schemathesis")), "run", url + "/openapi.json",
            "--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--max-examples", str(arguments.examples),
            "--seed", str(arguments.seed), "--workers", "1", "--request-timeout", "120", "--continue-on-failure",
            "--no-color", "--warnings", "off", "--suppress-health-check", "all",
            "--report", "ndjson", "--report-ndjson-path", str(report), *further,
        ]
        code = subprocess.run(command, check=False).returncode
        sent = report.read_text().count('"status_code"') if report.exists() else 0
        # The server is unharmed.
        with urllib.request.urlopen(url + "/health", timeout=30) as answer:
            healthy = json.load(answer)["status"] == "ok"

    print(f"{known} operations, about {sent} answers")
    passed = int(code == 0) + int(healthy)
    print(f"openapi: {passed} passed, {2 - passed} failed")
    sys.exit(0 if passed == 2 else 1)


if __name__ == "__main__":
    main()
