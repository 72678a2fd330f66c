"""Runs the client suites of this folder and prints their totals in one line."""

import pathlib
import sys
import unittest

here = pathlib.Path(__file__).parent
suite = unittest.defaultTestLoader.discover(str(here))
result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite)
# A class whose server does not start counts one failure, whatever the number of its tests; a test with
# several failing parts counts one too.
broken = {str(getattr(test, "test_case", test)) for test, _ in result.errors + result.failures}
failed = len(broken)
passed = result.testsRun - sum(name.startswith("test_") for name in broken)
print(f"clients: {passed} passed, {failed} failed")
sys.exit(1 if failed else 0)
