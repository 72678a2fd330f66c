"""Runs the client suites of this folder: one JSON line for each client, the totals last.

    run.py            also fails if docs/clients.md does not say what was run
    run.py --write    writes it there
"""

import argparse
import json
import pathlib
import sys
import unittest

import table

here = pathlib.Path(__file__).resolve().parent


class Result(unittest.TextTestResult):
    """Also remembers which tests ended well."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.succeeded = []

    def addSuccess(self, test):
        super().addSuccess(test)
        self.succeeded.append(test)


def cases(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from cases(test)
        else:
            yield test


def sentence(test):
    return test.shortDescription() or test._testMethodName.removeprefix("test_").replace("_", " ")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/clients.md")
    arguments = parser.parse_args()

    suite = unittest.defaultTestLoader.discover(str(here))
    tests = list(cases(suite))
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, resultclass=Result).run(suite)
    # A test with several failing parts, or whose class does not start, fails once. So does a module that cannot be
    # imported: the loader has made a test of it.
    succeeded = {id(test) for test in result.succeeded}

    clients = {}
    for test in tests:
        if client := getattr(test, "client", None):
            row = clients.setdefault(client, {"client": client, "version": test.version(), "ran": [], "passed": 0, "failed": 0})
            row["ran"].append(sentence(test))
            row["passed" if id(test) in succeeded else "failed"] += 1
    rows = sorted(clients.values(), key=lambda row: row["client"].lower())
    for row in rows:
        print(json.dumps(row))

    failed = len(tests) - len(succeeded)
    documented = table.check(rows, arguments.write)
    print(f"clients: {len(succeeded) + documented} passed, {failed + (not documented)} failed")
    sys.exit(0 if documented and not failed else 1)


if __name__ == "__main__":
    main()
