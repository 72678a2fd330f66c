#!/usr/bin/env python3
"""Compares Trunkline's rendering of chat templates with Jinja2's, byte for byte.

Every template of a folder renders a matrix of conversations twice: with Jinja2, set up as Hugging Face
transformers sets it up, and with Trunkline (examples/render_template.rs). The texts must be equal, and
where one side raises the other must raise as well. Differences that are known and accepted are listed
in KNOWN below; any other fails, and so does an entry of KNOWN that is no longer needed.

Needs Python 3.9 or later and `jinja2`, nothing else. Usage:

    python3 scripts/check_templates.py [--templates DIR] [--renderer BINARY] [-v]

Without --renderer the example is built with cargo. Without the folder there is nothing to check.
"""

import argparse
import copy
import datetime
import difflib
import html
import itertools
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEMPLATES = ROOT.parent / "shared" / "data" / "chat_templates"

# Template file -> (why it may differ, what makes both texts equal).
KNOWN = {
    "meetkai-functionary-medium-v3.1.jinja": (
        "adds JSON to a text marked `|safe`: Jinja2 then escapes the JSON's quotes as HTML, which no one meant",
        html.unescape,
    ),
}


# --- The matrix -------------------------------------------------------------------------------------


def tool(name, description, properties, required, **more):
    parameters = {"type": "object", "properties": properties, "required": required, **more}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WEATHER = tool("weather", "Current weather of a city.", {"city": {"type": "string", "description": "The city's name"}}, ["city"])
SEARCH = tool(
    "search",
    'Search "the web" & more:\n<b>fast</b>, it\'s übergründlich 🙂',
    {
        "query": {"type": "string", "description": "What to look for", "minLength": 1},
        "limit": {"type": "integer", "description": "How many", "default": 10, "minimum": 1, "maximum": 100},
        "score": {"type": "number", "default": 0.5, "description": "Least score"},
        "tiny": {"type": "number", "default": 1e-07},
        "large": {"type": "number", "default": 1e20},
        "exact": {"type": "boolean", "default": False},
        "after": {"type": ["string", "null"], "default": None, "description": "A date or nothing"},
        "kind": {"type": "string", "enum": ["page", "image", "vidéo"]},
        "sites": {"type": "array", "items": {"type": "string"}, "description": "Where"},
        "options": {
            "type": "object",
            "description": "Further options",
            "properties": {"safe": {"type": "boolean"}, "langs": {"type": "array", "items": {"type": "string", "enum": ["de", "en"]}}},
            "required": ["safe"],
        },
        "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
    },
    ["query", "kind"],
    additionalProperties=False,
)
NO_PARAMETERS = {"type": "function", "function": {"name": "now", "description": "The time now.", "parameters": {"type": "object", "properties": {}}}}
TOOLS = [WEATHER, SEARCH, NO_PARAMETERS]
BARE_TOOLS = [entry["function"] for entry in TOOLS]


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(name, arguments, call_id="call00001"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(text, call_id="call00001", **more):
    return {"role": "tool", "tool_call_id": call_id, "content": text, **more}


ODD_ARGUMENTS = {
    "text": "a \"quoted\" <b>&amp;</b> it's\n\tnew\\line \u00fc \U0001f642 \u2028",
    "integer": 3,
    "large": 12345678901234567890,
    "negative": -7,
    "float": 2.5,
    "whole": 3.0,
    "tiny": 1e-07,
    "huge": 1e22,
    "yes": True,
    "no": False,
    "nothing": None,
    "list": [1, "two", 3.5, None, [True, []]],
    "object": {"b": 1, "a": {"deep": ["x"]}, "empty": {}},
}

CONVERSATIONS = {
    "user": [user("Hello!")],
    "system": [system("You are kind."), user("Hello!")],
    "turns": [user("One"), assistant("Two"), user("Three"), assistant("Four"), user("Five")],
    "system turns": [system("Be brief."), user("One"), assistant("Two"), user("Three")],
    "ends with assistant": [user("One"), assistant("Two")],
    "long": [system("S")] + [turn for n in range(12) for turn in (user(f"Question {n}?"), assistant(f"Answer {n}."))] + [user("And?")],
    "developer": [{"role": "developer", "content": "Be brief."}, user("Hello!")],
    "system and developer": [system("Be kind."), {"role": "developer", "content": "Be brief."}, user("Hello!")],
    "two systems": [system("One."), system("Two."), user("Hello!")],
    "late system": [user("Hello!"), assistant("Hi."), system("Be brief now."), user("Well?")],
    "two users": [user("One"), user("Two")],
    "two assistants": [user("One"), assistant("Two"), assistant("Three"), user("Four")],
    "assistant first": [assistant("Hi, I am here."), user("Good.")],
    "white space": [system("  \n S \n\n"), user("\n  indented\n\n"), assistant("  \n text \n "), user("\t tab\t")],
    "markup": [system("<|im_start|> {{ x }} {% if %}"), user("<b>&amp;</b> \"q\" 'q' \\ \\n <think> </think> [INST]"), assistant("`code` </s>"), user("ü 🙂 漢字 \u00a0\u2028\u200b")],
    "empty texts": [system(""), user(""), assistant(""), user("")],
    "lines": [user("a\r\nb\n\n\nc\x0bd"), assistant("x\n\n"), user("y")],
    "parts": [
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Three."}]},
        {"role": "user", "content": [{"type": "text", "text": "Four."}]},
    ],
    "image": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}],
    "image url": [{"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]}],
    "null system": [{"role": "system", "content": None}, user("Hello!")],
    "null assistant": [user("One"), {"role": "assistant", "content": None}, user("Two")],
    "no content": [user("One"), {"role": "assistant"}, user("Two")],
    "unknown role": [user("One"), {"role": "critic", "content": "Bad."}, user("Two")],
    "no messages": [],
    "named": [{"role": "user", "name": "ada", "content": "Hello!"}, {"role": "assistant", "name": "bot", "content": "Hi."}, {"role": "user", "name": "bob", "content": "Me, too."}],
    "call": [user("Weather in Berlin?"), assistant(None, tool_calls=[call("weather", {"city": "Berlin"})]), result('{"celsius": 21}', name="weather")],
    "call answered": [
        system("Use tools."),
        user("Weather in Berlin?"),
        assistant(None, tool_calls=[call("weather", {"city": "Berlin"})]),
        result('{"celsius": 21}', name="weather"),
        assistant("It is 21 degrees."),
        user("Thanks. And Paris?"),
    ],
    "call after text": [user("Weather?"), assistant("Let me see.", tool_calls=[call("weather", {"city": "Berlin"})]), result("21", name="weather"), assistant("21."), user("Ok.")],
    "call empty text": [user("Weather?"), assistant("", tool_calls=[call("weather", {"city": "Berlin"})]), result("21"), user("Ok.")],
    "call no content": [user("Weather?"), {"role": "assistant", "tool_calls": [call("weather", {"city": "Berlin"})]}, result("21"), user("Ok.")],
    "call as text": [user("Weather?"), assistant(None, tool_calls=[call("weather", '{"city":  "Berlin"}')]), result("21", name="weather"), assistant("21."), user("Ok.")],
    "calls": [
        user("Weather in Berlin and Paris?"),
        assistant(None, tool_calls=[call("weather", {"city": "Berlin"}, "call00001"), call("weather", {"city": "Paris"}, "call00002")]),
        result('{"celsius": 21}', "call00001", name="weather"),
        result('{"celsius": 25}', "call00002", name="weather"),
        assistant("21 and 25."),
        user("Thanks."),
    ],
    "call rounds": [
        user("Weather in Berlin, then Paris."),
        assistant(None, tool_calls=[call("weather", {"city": "Berlin"}, "call00001")]),
        result('{"celsius": 21}', "call00001", name="weather"),
        assistant("And now Paris.", tool_calls=[call("weather", {"city": "Paris"}, "call00002")]),
        result('{"celsius": 25}', "call00002", name="weather"),
    ],
    "odd arguments": [user("Go."), assistant(None, tool_calls=[call("search", ODD_ARGUMENTS)]), result("done", name="search"), user("Ok.")],
    "no arguments": [user("Time?"), assistant(None, tool_calls=[call("now", {})]), result("12:00", name="now"), user("Ok.")],
    "call bare": [user("Weather?"), assistant(None, tool_calls=[{"name": "weather", "arguments": {"city": "Berlin"}}]), result("21", name="weather"), user("Ok.")],
    "kimi ids": [user("Weather?"), assistant(None, tool_calls=[call("weather", {"city": "Berlin"}, "functions.weather:0")]), result("21", "functions.weather:0", name="weather"), user("Ok.")],
    "result as parts": [user("Weather?"), assistant(None, tool_calls=[call("weather", {"city": "Berlin"})]), result([{"type": "text", "text": "21"}], name="weather"), user("Ok.")],
    "result as object": [user("Weather?"), assistant(None, tool_calls=[call("weather", {"city": "Berlin"})]), result({"celsius": 21}, name="weather"), user("Ok.")],
    "result first": [result("21", name="weather"), user("Ok.")],
    "empty calls": [user("Hello!"), assistant("Hi.", tool_calls=[]), user("Ok.")],
    "null calls": [user("Hello!"), assistant("Hi.", tool_calls=None), user("Ok.")],
    "reasoning": [user("One"), assistant("Two", reasoning_content="Because."), user("Three"), assistant("Four", reasoning_content="So\n\nit is.\n"), user("Five")],
    "reasoning names": [user("One"), assistant("Two", thinking="Because.", reasoning="Because.", reasoning_content="Because."), user("Three")],
    "reasoning inline": [user("One"), assistant("<think>\nBecause.\n</think>\n\nTwo"), user("Three"), assistant("<think></think>Four"), user("Five")],
    "reasoning open": [user("One"), assistant("Because.\n</think>\n\nTwo"), user("Three")],
    "reasoning last": [user("One"), assistant("Two", reasoning_content="Because.")],
    "reasoning call": [
        user("Weather?"),
        assistant("", reasoning_content="I look.", tool_calls=[call("weather", {"city": "Berlin"})]),
        result("21", name="weather"),
        assistant("21.", reasoning_content="I know."),
        user("Sure?"),
        assistant(None, reasoning_content="Look again.", thinking="Look again.", tool_calls=[call("weather", {"city": "Berlin"}, "call00002")]),
        result("22", "call00002", name="weather"),
    ],
    "thinking parts": [user("One"), {"role": "assistant", "content": [{"type": "thinking", "thinking": "Because."}, {"type": "text", "text": "Two"}]}, user("Three")],
    "prefill": [user("Count."), assistant("One, two,CONTINUE_FINAL_MESSAGE_TAG ")],
    "prefill space": [system("S"), user("Count."), assistant("One, two, CONTINUE_FINAL_MESSAGE_TAG ")],
}

VARIABLES = {
    "plain": {},
    "tools": {"tools": TOOLS},
    "one tool": {"tools": [WEATHER]},
    "bare tools": {"tools": BARE_TOOLS},
    "thinking": {"enable_thinking": True, "thinking": True},
    "no thinking": {"enable_thinking": False, "thinking": False},
    "tools no thinking": {"tools": [WEATHER], "enable_thinking": False},
    "effort": {"reasoning_effort": "high", "thinking_budget": 512, "date_string": "01 Jan 2025", "model_identity": "You are Ada."},
    "documents": {"documents": [{"title": "A", "text": "Text of A."}, {"title": "B", "text": "Text \"of\" B."}]},
    "no bos": {"bos_token": None},
}

# Each conversation with these; those about tools with the second list, too.
ALWAYS = ["plain", "tools", "no thinking"]
SOME = {name: list(VARIABLES) for name in ("user", "system", "turns", "system turns", "call answered", "calls", "reasoning", "reasoning call", "odd arguments")}


def cases():
    for name, messages in CONVERSATIONS.items():
        for variables in SOME.get(name, ALWAYS):
            for generate in (True, False):
                context = {
                    "messages": messages,
                    "tools": None,
                    "documents": None,
                    "add_generation_prompt": generate,
                    "bos_token": "<|bos|>",
                    "eos_token": "<|eos|>",
                    **VARIABLES[variables],
                }
                if context["bos_token"] is None:
                    del context["bos_token"]
                yield f"{name} / {variables} / {'generate' if generate else 'no prompt'}", context


# --- Jinja2 as transformers sets it up --------------------------------------------------------------


def jinja_environment():
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

        def body(self, caller):
            return caller()

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def render_with_jinja(templates, matrix):
    environment = jinja_environment()
    for source in templates.values():
        try:
            compiled = environment.from_string(source)
        except Exception as error:
            for _ in matrix:
                yield {"error": f"{type(error).__name__}: {error}"}
            continue
        for _, context in matrix:
            try:
                yield {"text": compiled.render(**copy.deepcopy(context))}
            except Exception as error:
                yield {"error": f"{type(error).__name__}: {error}"}


def render_with_trunkline(renderer, templates, matrix):
    requests = "".join(
        json.dumps({"template": source, "context": context}) + "\n" for source in templates.values() for _, context in matrix
    )
    done = subprocess.run([renderer], input=requests, capture_output=True, encoding="utf-8")
    if done.returncode != 0:
        sys.exit(f"{renderer} failed:\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.split("\n") if line]


# --- Comparison -------------------------------------------------------------------------------------


def differs(expected, found):
    return ("error" in expected) != ("error" in found) or expected.get("text") != found.get("text")


def explain(expected, found):
    if "error" in expected or "error" in found:
        return f"    jinja2:    {expected}\n    trunkline: {found}"
    lines = difflib.unified_diff(expected["text"].splitlines(), found["text"].splitlines(), "jinja2", "trunkline", lineterm="", n=1)
    return "\n".join("    " + repr(line) for line in itertools.islice(lines, 14))


def build_renderer():
    command = ["cargo", "build", "--release", "--example", "render_template", "--message-format", "json"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "render_template":
            return message["executable"]
    sys.exit("cargo named no executable for the example render_template")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--templates", type=pathlib.Path, default=TEMPLATES)
    parser.add_argument("--renderer", help="the built example; without it cargo builds it")
    parser.add_argument("-v", "--verbose", action="store_true", help="show every difference, not one a template")
    options = parser.parse_args()

    templates = {path.name: path.read_text(encoding="utf-8") for path in sorted(options.templates.glob("*.jinja"))}
    demo = ROOT / "models" / "demo" / "chat_template.jinja"
    if not templates:
        print(f"no templates in {options.templates}: nothing to compare")
        return 0
    if demo.exists():
        templates["demo"] = demo.read_text(encoding="utf-8")
    renderer = options.renderer or build_renderer()
    matrix = list(cases())
    while True:
        # Some templates print the date: both sides must see the same one.
        day = datetime.date.today()
        expected = list(render_with_jinja(templates, matrix))
        found = render_with_trunkline(renderer, templates, matrix)
        if day == datetime.date.today():
            break

    failures, used, rendered = 0, set(), 0
    pairs = zip(itertools.product(templates, matrix), expected, found, strict=True)
    for template, group in itertools.groupby(pairs, key=lambda pair: pair[0][0]):
        different = []
        for (_, (case, _)), one, other in group:
            rendered += "text" in one
            if not differs(one, other):
                continue
            if template in KNOWN and "text" in one and "text" in other:
                made_equal = KNOWN[template][1]
                if made_equal(one["text"]) == made_equal(other["text"]):
                    used.add(template)
                    continue
            different.append((case, one, other))
        if different:
            failures += len(different)
            print(f"{template}: {len(different)} of {len(matrix)} differ")
            for case, one, other in different if options.verbose else different[:1]:
                print(f"  {case}\n{explain(one, other)}")
    for key in KNOWN.keys() - used:
        failures += 1
        print(f"{key}: listed in KNOWN, but does not differ so")
    total = len(templates) * len(matrix)
    for key in sorted(used):
        print(f"{key}: differs as known: {KNOWN[key][0]}")
    print(f"{len(templates)} templates x {len(matrix)} conversations: {rendered} rendered, {total - rendered} refused by both; {failures} different")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
