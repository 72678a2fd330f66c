#!/usr/bin/env python3
"""Checks dashboards/ against a real scrape of the real binary after a real request.

- `promtool check rules` and `promtool test rules` on the alert rules;
- `promtool check metrics` on the scrape;
- every metric named in the dashboard or in the rules exists in the scrape.

Needs promtool (Debian package prometheus) and a release build.
"""

import json
import re
import subprocess
import sys
import urllib.request

from serving import ROOT, server

DASHBOARDS = ROOT / "dashboards"
METRIC = re.compile(r"\b(?:trunkline|process)_[a-z0-9_]+\b")


def expressions(value):
    """Every query text in a dashboard."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("expr", "definition", "query") and isinstance(inner, str):
                yield inner
            else:
                yield from expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner)


def without_labels(expression):
    """An expression without its label selectors and groupings, whose names are no metrics."""
    return re.sub(r"\{[^}]*\}", "", expression)


def named_metrics():
    """Metric names by the file that names them."""
    named = {}
    for path in sorted(DASHBOARDS.glob("*.json")):
        texts = expressions(json.loads(path.read_text()))
        named[path.name] = {name for text in texts for name in METRIC.findall(without_labels(text))}
    rules = (DASHBOARDS / "alerts.yml").read_text()
    rules = "\n".join(line for line in rules.splitlines() if not line.lstrip().startswith("#"))
    named["alerts.yml"] = set(METRIC.findall(without_labels(rules)))
    return named


def scrape_after_a_request():
    with server() as url:
        body = json.dumps({
            "model": json.load(urllib.request.urlopen(url + "/v1/models"))["data"][0]["id"],
            "messages": [{"role": "user", "content": "What color is the sky?"}],
            "max_tokens": 8,
        }).encode()
        request = urllib.request.Request(
            url + "/v1/chat/completions", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request).read()
        return urllib.request.urlopen(url + "/metrics").read().decode()


def promtool(*arguments, **options):
    done = subprocess.run(["promtool", *arguments], text=True, capture_output=True, **options)
    return done.returncode == 0, (done.stdout + done.stderr).strip()


def main():
    scrape = scrape_after_a_request()
    exported = {line.split("{")[0].split(" ")[0] for line in scrape.splitlines() if not line.startswith("#")}
    checks = [
        ("rules parse", promtool("check", "rules", str(DASHBOARDS / "alerts.yml"))),
        ("rules fire as tested", promtool("test", "rules", str(DASHBOARDS / "alerts_test.yml"))),
        ("scrape is well-formed", promtool("check", "metrics", input=scrape)),
    ]
    for file, names in named_metrics().items():
        missing = sorted(names - exported)
        checks.append((f"{file}: its {len(names)} metrics exist", (not missing, ", ".join(missing))))

    failed = 0
    for name, (passed, detail) in checks:
        print(f"{'ok' if passed else 'FAILED'}: {name}{'' if passed else ': ' + detail}")
        failed += not passed
    print(f"dashboards: {len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
