"""Tool declarations in the many styles that clients use: weather, time, search, coding tools, invented ones."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from literals import Literals

#: Per kind: names, then per role the parameter names, then description and filler options.
#: Roles are what the conversation talks about; parameter names are what the schema calls them.
KINDS: dict[str, dict] = {
    "weather": {
        "names": "weather get_weather get_current_weather getWeather weather_lookup fetch_weather Weather check_weather current_weather get_forecast".split(),
        "roles": {"city": ["city", "city", "city", "location", "location", "place", "town", "city_name"]},
        "about": ["Get the current weather in a city.", "Current weather for a location.", "Returns the weather report of a city.", "Get weather", "Look up the weather.", "Weather for a city"],
        "options": {"unit": ("enum", ["celsius", "fahrenheit"]), "units": ("enum", ["metric", "imperial"]), "lang": ("string", "Language of the report"), "days": ("integer", "Number of days")},
    },
    "time": {
        "names": "get_time time get_current_time current_time getTime clock local_time Time time_in".split(),
        "roles": {"city": ["city", "location", "timezone", "place", "city", "zone"]},
        "about": ["Get the current time in a city.", "Tells the local time.", "Current time of a place.", "Get the time"],
        "options": {"format": ("enum", ["12h", "24h"]), "seconds": ("boolean", "Show seconds")},
    },
    "search": {
        "names": "search web_search websearch search_web google WebSearch internet_search find_online".split(),
        "roles": {"query": ["query", "query", "q", "search_query", "text", "term"]},
        "about": ["Search the web.", "Searches the internet for a query.", "Web search", "Find pages about a topic."],
        "options": {"limit": ("integer", "How many results"), "num_results": ("integer", "Results to return"), "region": ("string", "Region code"), "safe": ("boolean", "Safe search")},
    },
    "read": {
        "names": "read read_file readFile Read file_read open_file view cat view_file".split(),
        "roles": {"path": ["filePath", "path", "file_path", "file", "filename", "target_file", "absolute_path"]},
        "about": ["Read a file from disk.", "Reads the content of a file.", "Returns what a file holds, with line numbers.", "Open a file and show its text."],
        "options": {"offset": ("integer", "The line to start at"), "limit": ("integer", "How many lines to read"), "encoding": ("string", "Text encoding"), "start_line": ("integer", "First line"), "end_line": ("integer", "Last line")},
    },
    "write": {
        "names": "write write_file writeFile Write create_file file_write save_file".split(),
        "roles": {"path": ["filePath", "path", "file_path", "file", "filename", "target_file"], "content": ["content", "contents", "text", "content", "data"]},
        "about": ["Write a file to disk.", "Writes text into a file and replaces what was there.", "Create a file with the given content."],
        "options": {"overwrite": ("boolean", "Replace an existing file"), "append": ("boolean", "Add to the end"), "mode": ("string", "File mode")},
    },
    "edit": {
        "names": "edit edit_file editFile Edit str_replace replace_in_file replace".split(),
        "roles": {"path": ["filePath", "path", "file_path", "file"], "old": ["oldString", "old_string", "old_str", "search", "old_text", "old"], "new": ["newString", "new_string", "new_str", "replacement", "new_text", "new"]},
        "about": ["Replace text in a file.", "Performs an exact string replacement in a file.", "Edit a file: change one string into another."],
        "options": {"replaceAll": ("boolean", "Replace every occurrence"), "replace_all": ("boolean", "Change all matches"), "expected_replacements": ("integer", "How many to expect")},
    },
    "glob": {
        "names": "glob glob_files Glob find_files list_matching file_search".split(),
        "roles": {"pattern": ["pattern", "pattern", "glob", "glob_pattern", "glob"]},
        "about": ["Find files by a glob pattern.", "Lists the files whose names match a pattern.", "Fast file matching, such as all files of one type."],
        "options": {"path": ("string", "The folder to look in"), "limit": ("integer", "Most files to list"), "hidden": ("boolean", "Also hidden files")},
    },
    "grep": {
        "names": "grep grep_search search_files Grep search_code ripgrep search_content".split(),
        "roles": {"pattern": ["pattern", "pattern", "regex", "query", "search_pattern"]},
        "about": ["Search file contents with a regular expression.", "Finds text in files.", "Search the code for a pattern."],
        "options": {"path": ("string", "The folder to search"), "include": ("string", "Only files like this"), "context": ("integer", "Lines of context"), "case_sensitive": ("boolean", "Match case"), "output_mode": ("enum", ["content", "files", "count"])},
    },
    "bash": {
        "names": "bash shell Bash run_command execute_command run_shell terminal exec run_terminal_cmd".split(),
        "roles": {"command": ["command", "command", "cmd", "script"]},
        "about": ["Run a shell command.", "Executes a command in a persistent shell and returns its output.", "Runs a command in the terminal."],
        "options": {"timeout": ("integer", "Time limit in milliseconds"), "description": ("string", "What the command does, in a few words"), "workdir": ("string", "The working directory"), "background": ("boolean", "Do not wait for it")},
    },
    "list": {
        "names": "list list_files ls list_dir LS list_directory listFiles".split(),
        "roles": {"path": ["path", "path", "directory", "dir", "folder"]},
        "about": ["List the files in a folder.", "Shows what a directory holds.", "Lists files and folders."],
        "options": {"ignore": ("array", "Patterns to leave out"), "recursive": ("boolean", "Also below"), "depth": ("integer", "How deep to go")},
    },
}
#: What coding agents declare, by kind: the tool's name, then its parameters in the agent's own order.
AGENTS: list[dict[str, str]] = [
    {"bash": "bash command timeout workdir description", "edit": "edit filePath oldString newString replaceAll", "glob": "glob pattern path", "grep": "grep pattern path include",
     "read": "read filePath offset limit", "write": "write content filePath"},
    {"bash": "Bash command timeout description", "edit": "Edit file_path old_string new_string replace_all", "glob": "Glob pattern path", "grep": "Grep pattern path output_mode",
     "read": "Read file_path offset limit", "write": "Write file_path content"},
    {"bash": "run_shell_command command description", "edit": "replace file_path old_string new_string expected_replacements", "glob": "glob pattern path",
     "grep": "search_file_content pattern path include", "read": "read_file absolute_path offset limit", "write": "write_file content file_path", "list": "list_directory path ignore"},
    {"bash": "run_terminal_cmd command background", "edit": "edit_file target_file old new", "grep": "grep_search query include", "read": "read_file target_file offset limit",
     "write": "create_file content path", "list": "list_dir path depth"},
]
CODING_KINDS = ["read", "write", "edit", "glob", "grep", "bash", "list"]

ROLE_ABOUT = {
    "city": ["The city", "City name", "Name of the city", "The location", "The city to look up", "City, e.g. San Francisco"],
    "query": ["What to search for", "The search query", "Query"],
    "path": ["The path to the file", "Path", "The absolute path of the file or folder", "Where it is"],
    "content": ["The content to write", "Text of the file", "What to write"],
    "old": ["The text to replace", "Text to find", "The exact old text"],
    "new": ["The text to put in its place", "The new text", "Replacement"],
    "pattern": ["The pattern", "The pattern to match", "What to look for"],
    "command": ["The command to run", "Shell command", "Command line"],
}
VERBS = "paint book cancel rate order measure clean lock open close start stop scan print mix heat cool count fold ship rent repair polish sort label weigh tune track mute".split()
NOUNS = "fence room ticket movie pizza table door engine robot photo letter cake oven boat bike parcel guitar lamp garden invoice song alarm printer camera ticket drone kettle window".split()
OTHER_TOOLS = [
    ("send_email", "Send an email.", ["to", "subject", "body"]), ("create_event", "Add an event to the calendar.", ["title", "date"]),
    ("translate", "Translate a text.", ["text", "target_language"]), ("calculator", "Evaluate an expression.", ["expression"]),
    ("get_stock_price", "Price of a stock.", ["symbol"]), ("play_music", "Play a song.", ["song"]), ("set_timer", "Set a timer.", ["minutes"]),
    ("webfetch", "Fetches a page from a URL.", ["url", "format"]), ("todowrite", "Write the list of tasks.", ["todos"]), ("todoread", "Read the list of tasks.", []),
    ("task", "Start another agent for a task.", ["description", "prompt"]), ("convert_currency", "Convert money.", ["amount", "source", "target"]),
    ("get_news", "Latest news.", ["topic"]), ("random_number", "A random number.", ["low", "high"]), ("patch", "Apply a patch.", ["patchText"]),
    ("get_user", "Look up a user.", ["user_id"]), ("delete_file", "Delete a file.", ["path"]), ("lsp", "Ask the language server.", ["line", "symbol"]),
]


@dataclass
class Tool:
    kind: str
    name: str
    #: role -> parameter name
    params: dict[str, str]
    schema: dict
    #: role -> JSON type, for invented tools
    types: dict[str, str] = field(default_factory=dict)
    #: what the user asks for in words, for invented tools
    action: str = ""


def _property(rng: random.Random, kind: str, about: str | list[str]) -> dict:
    if kind == "enum":
        return {"type": "string", "enum": list(about)}
    shape: dict = {"type": kind}
    if kind == "array":
        shape["items"] = {"type": "string"}
    if rng.random() < 0.8:
        shape["description"] = about
    return shape


def _declare(rng: random.Random, name: str, about: str, properties: dict, required: list[str]) -> dict:
    parameters: dict = {"type": "object", "properties": properties}
    style = rng.random()
    if style < 0.85:
        parameters["required"] = required
    if style > 0.75:
        parameters["additionalProperties"] = False
    if style < 0.06:
        parameters = {"$schema": "http://json-schema.org/draft-07/schema#", **parameters}
    function = {"name": name, "description": about, "parameters": parameters}
    if rng.random() < 0.05:
        del function["description"]
    elif rng.random() < 0.05:
        function["strict"] = True
    return {"type": "function", "function": function}


def _parameter_name(lit: Literals, names: list[str]) -> str:
    """One of the usual names, or a made-up one: those make the model read the schema, so training has more of them.

    Usual names of *other* things were tried, too, and did harm: behind the long descriptions of OpenCode's tools
    the model then mixed up which value belongs to which of two usual names.
    """
    usual = lit.rng.random() < (0.95 if lit.held_out else 0.88)
    return lit.rng.choice(names) if usual else lit.syllables(1, 2)


def known(lit: Literals, kind: str, verbose: list[str] | None = None) -> Tool:
    """A tool of a known kind. `verbose` holds sentences to lengthen its description with."""
    rng, spec = lit.rng, KINDS[kind]
    params = {role: _parameter_name(lit, names) for role, names in spec["roles"].items()}
    while len(set(params.values())) < len(params):
        params = {role: _parameter_name(lit, names) for role, names in spec["roles"].items()}
    used = set(params.values())
    optional = [o for o in spec["options"] if o not in used]
    rng.shuffle(optional)
    optional = optional[: rng.choice([0, 0, 0, 1, 1, 2, 3])]
    if kind == "bash" and rng.random() < 0.25 and "description" not in optional:
        optional.append("description")
    properties = {params[r]: _property(rng, "string", rng.choice(ROLE_ABOUT[r])) for r in params}
    for name in optional:
        properties[name] = _property(rng, *spec["options"][name])
    if rng.random() < (0.2 if lit.held_out else 0.35):
        properties = dict(rng.sample(list(properties.items()), len(properties)))
    required = list(params.values())
    if kind == "bash" and "description" in properties and rng.random() < 0.5:
        required.append("description")  # as OpenCode does; the model leaves it out all the same
    about = rng.choice(spec["about"])
    if verbose:
        about += " " + " ".join(verbose)
    name = rng.choice(spec["names"])
    return Tool(kind, name, params, _declare(rng, name, about, properties, required))


def agent(lit: Literals, sentences: list[str], length: int) -> list[Tool]:
    """The tools of a coding agent, each described in up to `length` of the `sentences`."""
    rng, found = lit.rng, []
    # The first one's are the hardest: long, alike, and the content before the path.
    first = rng.random() < 0.5
    for kind, declared in (AGENTS[0] if first else rng.choice(AGENTS)).items():
        name, *order = declared.split()
        spec, params, properties = KINDS[kind], {}, {}
        roles = list(spec["roles"])
        if rng.random() < 0.2:
            rng.shuffle(order)
        for parameter in order:
            role = next((r for r in roles if parameter in spec["roles"][r]), None)
            # `edit_file` and its like name a path as no other tool does.
            role = role or ("path" if parameter == "target_file" and "path" in roles else None)
            if role:
                params[role] = parameter
                properties[parameter] = _property(rng, "string", rng.choice(ROLE_ABOUT[role]))
            else:
                properties[parameter] = _property(rng, *spec["options"][parameter])
        lines = [f"\n- {rng.choice(sentences)}" for _ in range(rng.randint(1, length))]
        description = rng.choice(spec["about"]) + "".join(lines)
        schema = _declare(rng, name, description, properties, [p for p in order if p in params.values()])
        if first and rng.random() < 0.7:
            schema["function"]["parameters"] = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema["function"]["parameters"]}
        found.append(Tool(kind, name, params, schema))
    found[-1:-1] = [other(lit) for _ in range(rng.randint(0, 4))]
    if first and rng.random() < 0.6:
        found[-1:-1] = [_todos(rng, sentences)]
    found = list({tool.name: tool for tool in found}.values())
    if rng.random() < 0.35:
        rng.shuffle(found)
    return found


def _todos(rng: random.Random, sentences: list[str]) -> Tool:
    """A list of tasks, whose items have a `content`, too."""
    item = {"type": "object", "properties": {name: {"type": "string", "description": rng.choice(sentences)} for name in ("content", "status", "priority")}, "required": ["content", "status", "priority"]}
    properties = {"todos": {"type": "array", "items": item, "description": "The list of tasks"}}
    return Tool("other", "todowrite", {"todos": "todos"}, _declare(rng, "todowrite", rng.choice(sentences), properties, ["todos"]))


def _identifier(lit: Literals, words: list[str]) -> str:
    style = lit.rng.random()
    if style < 0.6:
        return "_".join(words)
    if style < 0.8:
        return words[0] + "".join(w[:1].upper() + w[1:] for w in words[1:])
    if style < 0.9:
        return "-".join(words)
    return "".join(words)


def invented(lit: Literals, verbose: list[str] | None = None) -> Tool:
    """A tool that exists nowhere, named by a verb and a noun or by made-up syllables."""
    rng = lit.rng
    if rng.random() < 0.5:
        verb, noun = rng.choice(VERBS), rng.choice(NOUNS)
        action, words = f"{verb} the {noun}", [verb, noun]
        about = rng.choice([f"{verb.capitalize()} the {noun}.", f"Can {verb} a {noun}.", f"Used to {verb} the {noun}"])
        if rng.random() < (0.3 if lit.held_out else 0.5):
            words = [lit.syllables(1, 2)]
    else:
        words = [lit.syllables(1, 2) for _ in range(rng.choice([1, 2, 2]))]
        action = ""
        about = rng.choice([f"Does {lit.word()} with {lit.word()}.", f"A tool for {lit.word()}.", f"{lit.proper()} service"])
    name = _identifier(lit, words)
    types: dict[str, str] = {}
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3])):
        param = _identifier(lit, [lit.syllables(1, 2) if rng.random() < 0.6 else lit.word()] + ([lit.syllables(1, 1)] if rng.random() < 0.15 else []))
        types[param] = rng.choice(["string", "string", "string", "integer", "integer", "boolean", "array"])
    properties = {p: _property(rng, t, f"The {p}") for p, t in types.items()}
    if verbose:
        about += " " + " ".join(verbose)
    return Tool("invented", name, {p: p for p in types}, _declare(rng, name, about, properties, list(types)), types, action)


def other(lit: Literals) -> Tool:
    """A familiar tool that no conversation here uses: only a distractor."""
    rng = lit.rng
    name, about, params = rng.choice(OTHER_TOOLS)
    properties = {p: _property(rng, "string", f"The {p}") for p in params}
    return Tool("other", name, {p: p for p in params}, _declare(rng, name, about, properties, params))


def toolset(lit: Literals, kinds: list[str], extra: int, sentences: list[str] | None = None, length: int = 3) -> list[Tool]:
    """Tools of the wanted kinds and `extra` further ones, in random order, names distinct.

    About half of them are described at length, in up to `length` of the `sentences`.
    """
    rng = lit.rng

    def verbose() -> list[str] | None:
        if not sentences or rng.random() < 0.5:
            return None
        lines = [rng.choice(sentences) for _ in range(rng.randint(1, length))]
        return [f"\n- {line}" for line in lines] if length > 3 and rng.random() < 0.5 else lines

    found: dict[str, Tool] = {}
    wanted = list(kinds)
    for _ in range(extra):
        wanted.append(rng.choice([*KINDS, "invented", "invented", "other", "other", "other"]))
    present: set[str] = set()
    for kind in wanted:
        if kind in present and kind in KINDS:
            kind = rng.choice(["invented", "other"])
        for _ in range(4):
            tool = invented(lit, verbose()) if kind == "invented" else other(lit) if kind == "other" else known(lit, kind, verbose())
            if tool.name not in found:
                found[tool.name] = tool
                present.add(kind)
                break
    tools = list(found.values())
    rng.shuffle(tools)
    return tools
