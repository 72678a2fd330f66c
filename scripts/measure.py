#!/usr/bin/env python3
"""Two ratios that say how the server holds up under parallel clients; needs a running server and nothing else.

    cargo run --release &
    python3 scripts/measure.py --url http://127.0.0.1:8080

- cold burst: 16 clients send the same new long prompt at once and ask for one token; wall time over that of one
  client with a new prompt of the same length. 1 is ideal: the prompt is computed once.
- streams: tokens per second of 64 and 16 concurrent streams over those of one.

Each is measured several times in turn, and the median is printed: machines are noisy, ratios less so.
"""

import argparse
import concurrent.futures
import json
import statistics
import time
import urllib.request

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--url", default="http://127.0.0.1:8080")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--words", type=int, default=2500, help="words in the long prompt")
args = parser.parse_args()
unique = int(time.time())


def ask(content: str, tokens: int) -> dict:
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    request = urllib.request.Request(args.url + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as response:
        return json.load(response)["usage"]


def together(contents: list[str], tokens: int) -> tuple[float, list[dict]]:
    with concurrent.futures.ThreadPoolExecutor(len(contents)) as pool:
        begin = time.monotonic()
        usages = list(pool.map(lambda content: ask(content, tokens), contents))
        return time.monotonic() - begin, usages


def long_prompt() -> str:
    """Never seen before, so nothing of it is cached."""
    global unique
    unique += 1
    return " ".join(f"{unique}{i}" if i % 10 == 0 else "river" for i in range(args.words))


bursts, streams64, streams16 = [], [], []
for _ in range(args.rounds):
    one, usage = together([long_prompt()], 1)
    prompt = long_prompt()
    sixteen, _ = together([prompt] * 16, 1)
    bursts.append(sixteen / one)
    rates = {}
    for count in (1, 16, 64):
        wall, _ = together([f"Count from one to twenty, please: {i} {unique}" for i in range(count)], 128)
        rates[count] = count * 128 / wall
    streams16.append(rates[16] / rates[1])
    streams64.append(rates[64] / rates[1])

show = lambda values: f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
print(f"cold burst, 16 clients, {usage[0]['prompt_tokens']} tokens: {show(bursts)} x one client's time")
print(f"16 streams: {show(streams16)} x the tokens/s of one")
print(f"64 streams: {show(streams64)} x the tokens/s of one")
