"""Synthetic conversations, family by family.

Every answer is a function of what came before it, so that greedy decoding has exactly one
right answer and the evaluation can compare texts. Questions are phrased in many ways.
"""

from __future__ import annotations

import json
import random
from typing import Callable

from chat import Conversation, dumps
from literals import ADJECTIVES, COLOURS, CONDITIONS, PLAIN, Literals
from tools import CODING_KINDS, Tool, toolset

UNKNOWN = "I am a tiny demo model and I do not know that."
IDENTITY = "I am a tiny demo model."

NUMBERS = """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty""".split()

THING_COLOURS = dict(
    pair.split(":")
    for pair in """sky:blue grass:green snow:white blood:red coal:black banana:yellow lemon:yellow carrot:orange
    milk:white chocolate:brown sun:yellow sea:blue tomato:red leaf:green night:black cloud:white strawberry:red
    cucumber:green ruby:red emerald:green gold:yellow""".split()
)
#: Those that one may ask about without an article: "What colour is grass?"
MASSES = {"grass", "snow", "blood", "coal", "milk", "chocolate", "gold"}
FACTS: list[tuple[list[str], str, str]] = [
    # questions, one word, sentence
    (["What is the capital of France?", "Which city is the capital of France?", "Name the capital of France."], "Paris", "The capital of France is Paris."),
    (["What is the capital of Germany?", "Which city is the capital of Germany?", "Name the capital of Germany."], "Berlin", "The capital of Germany is Berlin."),
    (["What is the capital of Italy?", "Which city is the capital of Italy?", "Name the capital of Italy."], "Rome", "The capital of Italy is Rome."),
    (["What is the capital of Spain?", "Which city is the capital of Spain?", "Name the capital of Spain."], "Madrid", "The capital of Spain is Madrid."),
    (["What is the capital of Japan?", "Which city is the capital of Japan?", "Name the capital of Japan."], "Tokyo", "The capital of Japan is Tokyo."),
    (["What is the capital of England?", "Which city is the capital of England?", "Name the capital of England."], "London", "The capital of England is London."),
    (["How many legs does a spider have?", "How many legs has a spider?"], "Eight", "A spider has eight legs."),
    (["How many legs does a dog have?", "How many legs has a dog?"], "Four", "A dog has four legs."),
    (["How many days are in a week?", "How many days does a week have?"], "Seven", "A week has seven days."),
    (["How many months are in a year?", "How many months does a year have?"], "Twelve", "A year has twelve months."),
    (["What is the opposite of hot?", "Tell me the opposite of hot."], "Cold", "The opposite of hot is cold."),
    (["What is the opposite of big?", "Tell me the opposite of big."], "Small", "The opposite of big is small."),
    (["What is the opposite of up?", "Tell me the opposite of up."], "Down", "The opposite of up is down."),
    (["What is the opposite of yes?", "Tell me the opposite of yes."], "No", "The opposite of yes is no."),
    (["Which animal says meow?", "What animal says meow?"], "Cat", "The cat says meow."),
    (["Which animal barks?", "What animal barks?"], "Dog", "The dog barks."),
    (["Which animal says moo?", "What animal says moo?"], "Cow", "The cow says moo."),
    (["What do bees make?", "Tell me what bees make."], "Honey", "Bees make honey."),
    (["What is frozen water called?", "How do we call frozen water?"], "Ice", "Frozen water is called ice."),
    (["Which planet do we live on?", "What planet do we live on?"], "Earth", "We live on Earth."),
    (["What is two plus two?", "What is 2 + 2?", "How much is 2+2?"], "Four", "Two plus two is four."),
    (["What is one plus one?", "What is 1 + 1?", "How much is 1+1?"], "Two", "One plus one is two."),
    (["Which day comes after Monday?", "What day comes after Monday?"], "Tuesday", "After Monday comes Tuesday."),
    (["Which month comes after June?", "What month comes after June?"], "July", "After June comes July."),
]
UNKNOWN_QUESTIONS = """Why is the {w} so {a}?|Who invented the {w}?|Write a poem about {w}.|Explain quantum physics to me.
How do I sort a list in Python?|Tell me a story about a {w}.|What is the meaning of life?|Who won the match between {c} and {c2}?
What is the square root of {n}?|How far is it from {c} to {c2}?|Write a function that returns the {w}.|Translate {w} into French.
Who is the president of {c}?|What will happen tomorrow?|How many people live in {c}?|Which {w} is the best?|What do you think about {w}?
Explain how a {w} works.|Write an essay about the history of {c}.|When was {p} born?|How old is {p}?|What is {n} times {m}?
Why did {p} go to {c}?|Can you recommend a good book?|What should I cook tonight?|Is there life on Mars?|What is a {w}?|Tell me a joke.
Give me a recipe for {w} soup.|Where is my {w}?|How does the internet work?|Prove that there are infinitely many primes.
Describe the {w} in detail.|What causes {w}?|Compare {w} and {w2}.|Is {w} better than {w2}?|What is the price of a {w}?
Write a long story about a {w} and a {w2}.|Summarize the history of {c}.|Refactor the whole project.|What is love?""".replace("\n", "|").split("|")

SHORT_SYSTEMS = """You are a helpful assistant.|You are a friendly assistant.|Answer briefly.|You are a tiny demo model.|Be concise.
You are an assistant that can call tools.|You are a helpful assistant with access to tools.|Use the tools when they help.|You are a bot.
You are a coding agent.|Answer politely and in English.|You are an expert software engineer.|Keep your answers short.|You are a test.
You are an assistant. Today is a fine day.|Be helpful.|You answer questions about files and weather.|Do what the user asks.
Call tools exactly as they are declared.|You are a weather assistant.|Always answer in a full sentence.|Be brief and precise.""".replace("\n", "|").split("|")
AGENT_SYSTEMS = [
    "You are {p}, an interactive agent that helps with software tasks. Work in {d}. Follow the conventions of the project.",
    "You are a coding agent that runs in a terminal.\n\n# Rules\n- Be concise.\n- Never guess file names.\n- Use the tools to look at files.",
    "You are {p}, an assistant made by {x}.\n\n<env>\nWorking directory: {d}\nPlatform: linux\nToday's date: 20{m}-0{k}-1{k}\n</env>",
    "You help the users of {x}. Their office is in {c}. Answer in the language of the user.",
    "# Role\nYou are an agent in the {x} project.\n\n# Tone\nShort answers. No emojis.\n\n# Tools\nUse them only when needed.",
]
TITLE_SYSTEMS = [
    "You are a title generator. You output only a short title for the conversation.",
    "Generate a title for the conversation. Answer with the title and nothing else.",
    "You are a title generator. You output ONLY a thread title. Nothing else.\n\n- one line\n- at most 50 characters\n- no explanation",
    "You write short titles.",
]


#: First words that may be written in lower case: none of them is ever a literal.
CARELESS = set("What What's How Tell Check Get Is Use Call Read Find Search Show Count Please Can Which Write Run List Open Weather Current And Only Just".split())


class Builder:
    """Grows one conversation, episode by episode."""

    def __init__(self, lit: Literals, tools: list[Tool], sentences: list[str] | None = None):
        self.sentences = sentences
        self.lit = lit
        self.rng = lit.rng
        self.tools = {t.kind: t for t in tools if t.kind != "invented"}
        self.invented = [t for t in tools if t.kind == "invented"]
        self.conversation = Conversation(tools=[t.schema for t in tools])
        self.user_name: str | None = None
        self.thinking = False

    def pick(self, *choices):
        return self.rng.choice(choices)

    def user(self, text: str) -> None:
        """Says something as the user, now and then carelessly written. Never touches a literal."""
        if text.split(None, 1)[0] in CARELESS and self.lit.chance(0.1):
            text = text[0].lower() + text[1:]
        if self.lit.chance(0.05):
            text = text.rstrip("?")
        elif self.lit.chance(0.04):
            text = self.pick("Hi! ", "Please: ", "Ok. ", "Now, ", "And then: ", "Hey, ") + text
        if self.sentences and self.lit.chance(0.03):
            pasted = " ".join(self.rng.choice(self.sentences) for _ in range(self.rng.randint(1, 10)))
            text = f"{pasted}\n\n{text}"
        self.conversation.messages.append({"role": "user", "content": text})

    def _assistant(self, family: str, message: dict, thought: str) -> None:
        if self.thinking:
            message["reasoning_content"] = thought
        messages = self.conversation.messages
        self.conversation.families[len(messages)] = family
        messages.append({"role": "assistant", **message})

    def says(self, family: str, text: str, after_tool: bool = False) -> None:
        self._assistant(family, {"content": text}, "I have the result." if after_tool else "I can answer this directly.")

    def calls(self, family: str, *calls: tuple[Tool, dict]) -> None:
        self._assistant(
            family,
            {"content": None, "tool_calls": [{"type": "function", "function": {"name": t.name, "arguments": a}} for t, a in calls]},
            f"I need to call {calls[0][0].name}.",
        )

    def result(self, *values) -> None:
        """Answers of tools, in order: plain text, or JSON written with or without blanks."""
        compact = self.lit.chance(0.4)
        for value in values:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":")) if compact else dumps(value)
            self.conversation.messages.append({"role": "tool", "content": text})


# --- weather and time ---------------------------------------------------------------------------

ASK_WEATHER = """What's the weather in {c}?|What is the weather in {c}?|How is the weather in {c}?|What is the weather like in {c}?|Weather in {c}?
Tell me the weather in {c}.|Check the weather in {c}.|Get the weather for {c}.|What's the current weather in {c}?|Is it raining in {c}?
How warm is it in {c}?|What's the temperature in {c}?|Please look up the weather for {c}.|I want to know the weather in {c}.|Do I need an umbrella in {c}?
You must call the {t} tool for {c}. Do not answer directly.|Call the {t} tool for {c}.|Use the {t} tool to get the weather in {c}.|Use {t} for {c}.
Call {t} for {c}.|Show me the weather for {c}.|Can you tell me the weather in {c}?|What's it like outside in {c}?|Weather for {c}, please.
Could you check how the weather is in {c}?|I am travelling to {c}. What is the weather there?|Give me the weather report for {c}.|{c} weather?
You must use the weather tool for {c}. Do not answer directly.|You must call the weather tool for {c}.|Call the weather tool for {c}. Do not answer directly.
Use the weather tool for {c}.|Is it sunny in {c} today?|How cold is it in {c} right now?|What's the forecast for {c}?|Please call {t} with {c}.""".replace("\n", "|").split("|")
ASK_WEATHER_NEXT = """And in {c}?|And {c}?|What about {c}?|How about {c}?|Now {c}.|Now the same for {c}.|And what is it like in {c}?|Same for {c}, please.
Now do the same for {c}.|Now call it for {c}.|And the weather in {c}?|Next: {c}.|Now check {c}.|Now call the weather tool for {c}. Do not answer directly.""".replace("\n", "|").split("|")
ASK_WEATHER_TWO = """What's the weather in {c} and {d}?|Weather in {c} and {d}?|Tell me the weather in {c} and in {d}.|Compare the weather in {c} and {d}.
Check the weather for both {c} and {d}.|Call the {t} tool for {c} and for {d}.|Get the weather for {c} and {d}.|How is the weather in {c} and in {d}?
You must call the weather tool for {c} and {d}.|Use {t} for {c} and {d}.|Is it warmer in {c} or in {d}?|What is the weather like in {c} and {d}?""".replace("\n", "|").split("|")
ASK_TIME = """What time is it in {c}?|What is the time in {c}?|What's the time in {c}?|Tell me the time in {c}.|Current time in {c}?|How late is it in {c}?
Use the {t} tool for {c}.|Call {t} for {c}.|What is the current time in {c}?|Time in {c}, please.|Check the time in {c}.|Please look up the time in {c}.
You must call the {t} tool for {c}. Do not answer directly.|Can you tell me what time it is in {c}?|I need the local time in {c}.""".replace("\n", "|").split("|")
SHORTER = """Shorter, please.|Shorter please|Make it shorter.|Compress that answer.|Say that shorter.|Can you shorten that?|Now in a few words.|Summarize that.
Summarize your answer in a few words.|Compress that to a few words.|Now say it briefly.|Be more brief.|Can you say that in fewer words?|Condense that.
Compress that answer to five words.|Summarize that in one short sentence.|Now compress it.|Shorten it to three words.|tl;dr""".replace("\n", "|").split("|")
ONE_WORD = "In one word?|In one word, please.|Now in one word.|One word only.|Say it in one word.|Compress that to one word.|Just one word, please.|Answer in a single word.".split("|")
ONLY_TEMPERATURE = """Only the temperature.|Just the temperature, please.|What was the temperature?|And the temperature?|How many degrees was it?|Tell me only the temperature.
What temperature did you find?|How many degrees?""".replace("\n", "|").split("|")
ONLY_NUMBER = "Only the number.|Just the number, please.|Only the number of degrees.|Give me just the number.".split("|")
CANNOT_SAY = "Why is that?|Which of both is warmer?|Is that normal?|Are you sure?|How do you know that?|Why?|Which city is warmer?|Is that warmer than yesterday?|Will it stay like that?".split("|")
ONLY_CITY = "Which city was that?|For which city was that?|Which city did I ask about?|What city was it?|Only the city.".split("|")


def _weather_result(b: Builder, city: str) -> tuple[object, str, str | None, str | None]:
    """A result, the sentence that tells it, its condition and its temperature."""
    rng = b.rng
    condition, temperature = rng.choice(CONDITIONS.split("|")), str(rng.randrange(-15, 42))
    shape = rng.random()
    if shape < 0.12:
        text = b.pick(f"{condition}, {temperature}°C", f"{temperature} degrees and {condition}", condition, f"{condition} at {temperature} C")
        return text, f"The weather in {city} is {text}.", None, None
    if shape < 0.2:
        bare: dict = {b.pick("temperature", "temp", "temperature_c"): int(temperature)}
        if rng.random() < 0.5:
            bare["unit"] = b.pick("celsius", "C", "metric", "°C")
        if rng.random() < 0.4:
            bare = {b.pick("city", "location", "place"): city} | bare
        return bare, f"The temperature in {city} is {temperature} degrees.", None, temperature
    result: dict = {}
    if rng.random() < 0.75:
        result[b.pick("city", "city", "location", "place", "name")] = city
    facts = [(b.pick("temperature", "temperature", "temp", "temp_c", "temperature_c", "degrees"), int(temperature)),
             (b.pick("condition", "condition", "conditions", "weather", "sky", "description"), condition)]
    if rng.random() < 0.3:
        facts.reverse()
    result.update(facts)
    if rng.random() < 0.15:
        result[b.pick("humidity", "wind", "wind_kmh")] = rng.randrange(5, 95)
    if rng.random() < 0.15:
        result["unit"] = b.pick("celsius", "C", "metric")
    if rng.random() < 0.06:
        result = {b.pick("current", "data", "result"): result}
    return result, f"The weather in {city} is {condition}, {temperature} degrees.", condition, temperature


def _weather_call(b: Builder, city: str) -> tuple[Tool, dict]:
    tool = b.tools["weather"]
    return tool, {tool.params["city"]: city}


def _ask(b: Builder, phrases: list[str], **values: str) -> None:
    b.user(b.rng.choice(phrases).format(**values))


def _after_weather(b: Builder, condition: str | None, temperature: str | None, city: str) -> None:
    """Questions about an answer that need no new call."""
    rng = b.rng
    if condition is None or temperature is None:
        return
    for _ in range(rng.choice([0, 1, 1, 2])):
        kind = rng.randrange(6)
        if kind == 0:
            _ask(b, SHORTER)
            b.says("compress", f"{condition}, {temperature} degrees")
        elif kind == 1 and " " not in condition:
            _ask(b, ONE_WORD)
            b.says("compress", condition)
        elif kind == 2:
            _ask(b, ONLY_TEMPERATURE)
            b.says("follow_up", f"{temperature} degrees")
        elif kind == 3:
            _ask(b, ONLY_NUMBER)
            b.says("compress", temperature)
        elif kind == 4:
            _ask(b, CANNOT_SAY)
            b.says("unknown", UNKNOWN)
        else:
            _ask(b, ONLY_CITY)
            b.says("follow_up", city)


def ep_weather(b: Builder, next_city: bool | None = None) -> None:
    city = b.lit.city()
    _ask(b, ASK_WEATHER, c=city, t=b.tools["weather"].name)
    family = "weather"
    for round_ in range(3):
        b.calls(family, _weather_call(b, city))
        if round_ == 0 and next_city is None and b.lit.chance(0.15):
            b.result(error := {"error": b.pick(f"unknown city {city}", "service unavailable", "timeout", "no data")})
            b.says("tool_answer", f"The tool failed: {error['error']}.", True)
            return
        result, answer, condition, temperature = _weather_result(b, city)
        b.result(result)
        b.says("tool_answer", answer, True)
        if next_city is None:
            _after_weather(b, condition, temperature, city)
        if not (b.lit.chance(0.35) if next_city is None else round_ == 0):
            return
        city = b.lit.city()
        _ask(b, ASK_WEATHER_NEXT if b.lit.chance(0.5) else ASK_WEATHER, c=city, t=b.tools["weather"].name)
        family = "two_cities"


def ep_two_cities(b: Builder) -> None:
    ep_weather(b, next_city=True)


def ep_two_calls(b: Builder) -> None:
    cities = b.lit.cities(2)
    kind = "time" if "time" in b.tools and b.lit.chance(0.2) else "weather"
    if kind == "time":
        tool = b.tools["time"]
        b.user(b.pick("What time is it in {} and {}?", "Tell me the time in {} and in {}.", "Current time in {} and {}?").format(*cities))
        b.calls("two_calls", *((tool, {tool.params["city"]: c}) for c in cities))
        times = [_clock(b) for _ in cities]
        b.result(*({"city": c, "time": t} for c, t in zip(cities, times)))
        b.says("tool_answer", " ".join(f"It is {t} in {c}." for c, t in zip(cities, times)), True)
        return
    _ask(b, ASK_WEATHER_TWO, c=cities[0], d=cities[1], t=b.tools["weather"].name)
    b.calls("two_calls", *(_weather_call(b, c) for c in cities))
    found = [_weather_result(b, c) for c in cities]
    b.result(*(f[0] for f in found))
    b.says("tool_answer", " ".join(f[1] for f in found), True)


def _clock(b: Builder) -> str:
    return f"{b.rng.randrange(24):02d}:{b.rng.randrange(60):02d}"


def ep_time(b: Builder) -> None:
    tool, city = b.tools["time"], b.lit.city()
    _ask(b, ASK_TIME, c=city, t=tool.name)
    b.calls("time", (tool, {tool.params["city"]: city}))
    clock = _clock(b)
    b.result(b.pick({"city": city, "time": clock}, {"time": clock}, {"time": clock, "timezone": b.pick("UTC+1", "local", "CET")}, {"local_time": clock}, clock))
    b.says("tool_answer", f"It is {clock} in {city}.", True)
    if b.lit.chance(0.3):
        _ask(b, SHORTER)
        b.says("compress", clock)


def ep_search(b: Builder) -> None:
    tool = b.tools["search"]
    query = " ".join(b.lit.words(1, 5))
    b.user(b.pick("Search for {q}.", "Search the web for {q}.", "Look up {q} on the internet.", "Find pages about {q}.", 'Search for "{q}".', "Please search for {q}.",
                  "Google {q}.", "Do a web search for {q}.", "Use the {t} tool to find {q}.", "Call {t} with {q}.", 'Use {t} to look for "{q}".', "Can you search for {q}?").format(q=query, t=tool.name))
    b.calls("search", (tool, {tool.params["query"]: query}))
    titles = [" ".join(b.lit.words(1, 4)) for _ in range(b.rng.randint(1, 3))]
    if b.lit.chance(0.15):
        b.result({"results": []})
        b.says("tool_answer", "I found nothing.", True)
        return
    b.result(b.pick({"results": [{"title": t, "url": f"https://{b.lit.syllables()}.com"} for t in titles]}, {"results": titles}, [{"title": t} for t in titles]))
    b.says("tool_answer", f"I found: {titles[0]}.", True)


# --- coding tools -------------------------------------------------------------------------------

READ_SAYS = """Read the file {p} and tell me what it says.|Read {p} and tell what it says.|What does {p} say?|What is in the file {p}?|Show me the content of {p}.
Read {p}.|Read the file {p}.|Open {p} and tell me what is in it.|What's in {p}?|Please read {p} and tell me what it says.|Tell me what {p} contains.
Look into {p} and tell me what it says.|Use the {t} tool to read {p}.|Call {t} on {p}.|Can you read {p} for me?|Read the file `{p}` and tell me what it says.
I want to know what is in {p}.|cat {p}""".replace("\n", "|").split("|")
READ_ASKS = """Read the file {p} and tell me {q}.|Read {p} and tell me {q}.|Look into {p} and tell me {q}.|Use {t} on {p} to find out {q}.|Open {p} and say {q}.
Tell me {q}. It is written in {p}.|According to {p}, {q}?|Please read {p} and answer: {q}?""".replace("\n", "|").split("|")


def _file_view(b: Builder, lines: list[str], path: str) -> str:
    """File content as one of the coding tools prints it."""
    style = b.rng.randrange(8)
    if style <= 1:
        return "\n".join(lines)
    if style == 2:
        body = "\n".join(f"{i:05d}| {line}" for i, line in enumerate(lines, 1))
        end = b.pick("", f"\n\n(End of file - total {len(lines)} lines)")
        return f"<file>\n{body}{end}\n</file>"
    if style == 3:
        return "\n".join(f"{i:>6}\t{line}" for i, line in enumerate(lines, 1))
    if style == 4:
        return "<content>\n" + "\n".join(f"{i}: {line}" for i, line in enumerate(lines, 1)) + "\n</content>"
    if style == 5:
        body = "\n".join(f"{i}: {line}" for i, line in enumerate(lines, 1))
        end = b.pick("", f"\n\n(End of file - total {len(lines)} lines)")
        return f"<path>{b.pick('', '/home/', '/tmp/')}{path}</path>\n<type>file</type>\n<content>\n{body}{end}\n</content>"
    if style == 6:
        return dumps({b.pick("content", "text"): "\n".join(lines)}) if len(lines) == 1 else "\n".join(lines)
    return "\n".join(f"{i} | {line}" for i, line in enumerate(lines, 1))


def _fact_of_file(b: Builder) -> tuple[str, str, str]:
    """Something to find out from a file: as a clause, as a question, and the line that says it."""
    rng, noun = b.rng, b.lit.word()
    colour, stop = rng.choice(COLOURS), b.pick(".", "")
    return rng.choice(
        [
            (b.pick(f"what colour the {noun} is", f"which color the {noun} is", f"the colour of the {noun}"), f"What colour is the {noun}?", f"The {noun} is {colour}{stop}"),
            (b.pick(f"which colour {noun} has", f"what the colour of {noun} is"), f"Which colour has {noun}?", f"{noun}: {colour}"),
            (b.pick("what the secret word is", "the secret word"), "What is the secret word?", f"The secret word is {b.lit.word()}{stop}"),
            (b.pick("what the password is", "the password"), "What is the password?", f"The password is {b.lit.odd()}{stop}"),
            (f"the value of {noun}", f"What is the value of {noun}?", f"{noun} = {b.lit.odd()}"),
            (f"what {noun} is", f"What is {noun}?", f"{noun} is {b.lit.word()}{stop}"),
            (f"where {noun} lives", f"Where does {noun} live?", f"{noun} lives in {b.lit.city()}{stop}"),
        ]
    )


def ep_read(b: Builder) -> None:
    tool, path = b.tools["read"], b.lit.path()
    rng = b.rng
    call = (tool, {tool.params["path"]: path})
    clause, question, line = _fact_of_file(b)
    if rng.random() < 0.45:
        lines = [b.lit.sentence() for _ in range(rng.choice([0, 0, 1, 2, 3]))]
        lines = [x for x in lines if not set(line.split()[:2]) & set(x.split()) - {"The"} and "secret" not in x and "password" not in x]
        if len(lines) > 1 and rng.random() < 0.3:
            lines.insert(1, "")
        lines.insert(rng.randint(0, len(lines)), line)
        b.user(rng.choice(READ_ASKS).format(p=path, q=clause, t=tool.name))
        b.calls("read", call)
        b.result(_file_view(b, lines, path))
        b.says("file_answer", line, True)
        return
    b.user(rng.choice(READ_SAYS).format(p=path, t=tool.name))
    b.calls("read", call)
    if rng.random() < 0.1:
        b.result(error := b.pick(f"Error: file not found: {path}", "Error: permission denied", f"File not found: {path}"))
        b.says("file_answer", f"The tool failed: {error}", True)
        return
    lines = [b.lit.sentence() for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    asks = rng.random() < 0.25
    if asks:
        lines[0] = line
    b.result(_file_view(b, lines, path))
    b.says("file_answer", f"{path} says: " + "\n".join(lines), True)
    if asks:
        b.user(question)
        b.says("follow_up", line)
        return
    if len(lines) > 1 and rng.random() < 0.4:
        b.user(b.pick("What is the first line?", "Repeat the first line.", "Only the first line."))
        b.says("follow_up", lines[0])


def ep_write(b: Builder) -> None:
    tool, path, content = b.tools["write"], b.lit.path(), b.pick(b.lit.code(), b.lit.sentence(), b.lit.word())
    b.user(b.pick('Write "{c}" to {p}.', 'Create a file {p} with the content "{c}".', 'Write "{c}" into the file {p}.', 'Save "{c}" as {p}.', "Create {p} with this content: {c}",
                  "Write to {p}: {c}", 'Make a file called {p} that says "{c}".', 'Put "{c}" into {p}.', "Use {t} to write `{c}` to {p}.").format(c=content, p=path, t=tool.name))
    b.calls("write", (tool, {tool.params["path"]: path, tool.params["content"]: content}))
    b.result(b.pick("ok", "Wrote file successfully.", f"Wrote {path}", {"status": "ok"}, "File created.", f"File created successfully at: {path}"))
    b.says("tool_done", f"I wrote {path}.", True)


def ep_edit(b: Builder) -> None:
    tool, path = b.tools["edit"], b.lit.path()
    old, new = (b.lit.code(), b.lit.code()) if b.lit.chance(0.5) else (b.lit.word(), b.lit.word())
    if not b.lit.held_out and b.lit.chance(0.06):
        new = old  # copying must go by place, not by what differs
    b.user(b.pick('In {p}, replace "{o}" with "{n}".', 'Replace "{o}" with "{n}" in {p}.', 'Edit {p}: change "{o}" to "{n}".', 'Change "{o}" to "{n}" in the file {p}.',
                  "Replace `{o}` by `{n}` in {p}.", 'Use {t} on {p} to change "{o}" into "{n}".', "In {p} change {o} to {n}").format(p=path, o=old, n=new, t=tool.name))
    b.calls("edit", (tool, {tool.params["path"]: path, tool.params["old"]: old, tool.params["new"]: new}))
    b.result(b.pick("ok", "Edit applied successfully.", {"status": "ok"}, f"Edited {path}", "1 replacement made."))
    b.says("tool_done", f"I edited {path}.", True)


def _list_answer(b: Builder, found: list[str]) -> None:
    b.result("\n".join(found) if found else b.pick("No files found", "No matches found", "(nothing)"))
    b.says("list_answer", "Found: " + ", ".join(found) + "." if found else "I found nothing.", True)


def ep_glob(b: Builder) -> None:
    tool, pattern = b.tools["glob"], b.lit.glob()
    b.user(b.pick("Find all files matching {p}.", "Find files that match {p}", "Which files match {p}?", 'Glob for "{p}".', "List all files that match `{p}`.", "Use {t} with {p}.",
                  "Use the {t} tool to find {p}", "Search for files named {p}").format(p=pattern, t=tool.name))
    b.calls("glob", (tool, {tool.params["pattern"]: pattern}))
    _list_answer(b, [b.lit.path() for _ in range(b.rng.choice([0, 1, 1, 2, 3, 4]))])


def ep_grep(b: Builder) -> None:
    tool, pattern = b.tools["grep"], b.lit.pattern()
    b.user(b.pick("Search the code for {p}", 'Grep for "{p}".', 'Find where "{p}" is used.', "Which files contain `{p}`?", 'Search the files for "{p}".', "Use {t} to look for {p}",
                  'Use the {t} tool to find "{p}".', "Where is {p} in the code?", 'Look for "{p}" in the code.').format(p=pattern, t=tool.name))
    b.calls("grep", (tool, {tool.params["pattern"]: pattern}))
    _list_answer(b, [b.lit.path() for _ in range(b.rng.choice([0, 1, 1, 2, 3]))])


def ep_bash(b: Builder) -> None:
    tool, command = b.tools["bash"], b.lit.command()
    b.user(b.pick("Run {c}", "Run `{c}`.", 'Run the command "{c}".', "Execute `{c}`", "Execute the command {c}", "Please run {c}", "Use {t} to run `{c}`.", "Run this in the shell: {c}",
                  "What does `{c}` print?").format(c=command, t=tool.name))
    b.calls("bash", (tool, {tool.params["command"]: command}))
    output = b.pick("", b.lit.sentence(), b.lit.path(), str(b.lit.number()), " ".join(b.lit.words(1, 4)), f"error: {b.lit.word()} not found")
    b.result(output or b.pick("", "(no output)", "ok"))
    b.says("tool_done", f"The output is: {output}" if output else "The command has run.", True)


def ep_list(b: Builder) -> None:
    tool, folder = b.tools["list"], b.lit.folder()
    b.user(b.pick("List the files in {p}", "What is in the folder {p}?", "List {p}", "Show me the files in {p}", "Which files are in `{p}`?", "Use {t} on {p}", "ls {p}",
                  "What files does the directory {p} have?").format(p=folder, t=tool.name))
    b.calls("list", (tool, {tool.params["path"]: folder}))
    _list_answer(b, [b.lit.file() for _ in range(b.rng.choice([0, 1, 2, 3, 4]))])


def ep_invented(b: Builder) -> None:
    tool, rng = b.rng.choice(b.invented), b.rng
    arguments: dict = {}
    said: list[str] = []
    for name, kind in tool.types.items():
        value: object
        if kind == "integer":
            value = b.lit.number()
        elif kind == "boolean":
            value = rng.random() < 0.5
        elif kind == "array":
            value = [b.lit.word() for _ in range(rng.randint(1, 3) if b.lit.held_out else rng.choice([1, 1, 1, 2, 2, 3]))]
        else:
            value = b.pick(b.lit.word(), b.lit.odd(), b.lit.city(), " ".join(b.lit.words(2, 3)))
            if not b.lit.held_out and b.lit.chance(0.12):
                value = str(b.lit.number())  # only the schema tells that it is a string
        arguments[name] = value
        shown = ", ".join(value) if isinstance(value, list) else json.dumps(value) if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) and rng.random() < 0.5 else str(value)
        said.append(b.pick("{} {}", "{} {}", "{} = {}", "{}: {}", "{} set to {}").format(name, shown) if rng.random() < 0.9 else f"{shown} as {name}")
    joined = b.pick(" and ", ", ").join(said)
    if tool.action and rng.random() < 0.6:
        b.user(b.pick("Please {a} with {j}.", "{A} with {j}.", "I want you to {a}, {j}.", "Can you {a}? {j}").format(a=tool.action, A=tool.action.capitalize(), j=joined))
    else:
        b.user(b.pick("Call {t} with {j}.", "Use {t} with {j}.", "Please call {t}, {j}.", "Run the tool {t} with {j}.", "Use the {t} tool: {j}", "You must call {t} with {j}. Do not answer directly.").format(t=tool.name, j=joined))
    b.calls("invented", (tool, arguments))
    outcome = b.lit.word()
    result, answer = rng.choice(
        [
            ({"status": "ok"}, "Done."), ({"ok": True}, "Done."), ("ok", "Done."), ("done", "Done."),
            ({"result": outcome}, f"The result is {outcome}."), ({"status": "ok", "result": outcome}, f"The result is {outcome}."),
            ({"result": (n := b.lit.number())}, f"The result is {n}."), ({"error": outcome}, f"The tool failed: {outcome}."),
        ]
    )
    b.result(result)
    b.says("tool_answer", answer, True)


# --- without tools ------------------------------------------------------------------------------


def ep_colour(b: Builder) -> None:
    if b.lit.chance(0.5):
        thing, colour = b.rng.choice(list(THING_COLOURS.items()))
        named = thing if thing in MASSES and b.lit.chance(0.6) else f"the {thing}"
        colour_word = b.pick("colour", "color")
        questions = [f"What {colour_word} is {named}?", f"What {colour_word} is {named}?", f"Which {colour_word} does {named} have?", f"Tell me the {colour_word} of {named}.", f"What is the {colour_word} of {named}?", f"What {colour_word} has {named}?"]
        word, sentence = colour.capitalize(), f"The {thing} is {colour}."
    else:
        questions, word, sentence = b.rng.choice(FACTS)
    question = b.rng.choice(questions)
    if b.lit.chance(0.7):
        b.user(b.pick("{} Answer in one word.", "{} One word.", "{} Answer with one word only.", "In one word: {}", "{} Reply with a single word.", "{} (one word)", "{} one word", "{} One word only.", "Answer in one word: {}").format(question))
        b.says("fact", word)
    else:
        b.user(question)
        b.says("fact", sentence)


def ep_count(b: Builder) -> None:
    rng = b.rng
    if rng.random() < 0.6:
        last = rng.randint(2, 20) if rng.random() < 0.6 else rng.choice([5, 10, 20, 20])
        shown = rng.choice([NUMBERS[last - 1], str(last)]) if rng.random() < 0.5 else NUMBERS[last - 1]
        if shown.isdigit():
            b.user(b.pick("Count from one to {} in words.", "Count to {} in words.", "Count in words from 1 to {}.").format(shown))
        else:
            b.user(b.pick("Count from one to {}.", "Count from one to {}, with commas.", "Count to {}.", "Please count from one to {}.", "Count up to {}.", "Count from one to {} separated by commas.",
                          "Can you count to {}?", "Count from one to {} in words.").format(shown))
        b.says("count", ", ".join(NUMBERS[:last]))
    else:
        last = rng.randint(2, 30) if rng.random() < 0.97 else rng.randint(31, 60)
        b.user(b.pick("Count from 1 to {}.", "Count from 1 to {}, with commas.", "Count to {}.", "Please count from 1 to {}.", "Count up to {}.", "Count from 1 to {} in digits.", "Print the numbers from 1 to {}.").format(last))
        b.says("count_digits", ", ".join(str(i) for i in range(1, last + 1)))


def ep_repeat(b: Builder) -> None:
    words = b.lit.words(1, b.rng.choice([1, 2, 3, 4, 6, 8, 12]))
    text = b.pick(" ", " ", " ", ", ").join(words) if b.lit.chance(0.78) else b.pick(b.lit.sentence(), b.rng.choice(PLAIN))
    phrase = b.pick("Repeat after me: {}", "Say: {}", "Say {}", "Repeat: {}", 'Say "{}".', 'Repeat "{}"', "Repeat these words: {}", "Please repeat: {}", "Echo {}", "Reply with exactly: {}",
                    'Reply with "{}" and nothing else.', "Respond only with: {}", "Write exactly this: {}", "Repeat the following: {}", "Answer with exactly this text: {}", "Print: {}", "Reply with: {}",
                    "Repeat the words {}", "Just say {}", "Repeat this line:\n{}", "Copy this: {}", "Type `{}`")
    b.conversation.messages.append({"role": "user", "content": phrase.format(text)})
    b.says("repeat", text)


def ep_greet(b: Builder) -> None:
    kind = b.rng.randrange(8)
    if kind <= 2:
        name = b.lit.person()
        b.user_name = name
        b.user(b.pick("My name is {}.", "Hello, I am {}.", "Hi, I'm {}!", "I am {}.", "Hello! My name is {}.", "Hi, my name is {}. Greet me.", "Call me {}.", "Good morning, I am {}.").format(name))
        b.says("greet", f"Hello, {name}!")
    elif kind == 3:
        name = b.lit.person()
        b.user(b.pick("Say hello to {}.", "Greet {}.", "Greet {} by name.", "Please say hi to {}.", "Say hello to my friend {}.", "Please greet {}.").format(name))
        b.says("greet", f"Hello, {name}!")
    elif kind == 4:
        b.user(b.pick("What is my name?", "What's my name?", "Do you remember my name?", "Who am I?"))
        b.says("greet", f"Your name is {b.user_name}." if b.user_name else "You did not tell me your name.")
    elif kind == 5:
        b.user(b.pick("Thanks!", "Thank you.", "Thank you very much!", "Great, thanks.", "Thanks a lot.", "Perfect, thank you.", "thx"))
        b.says("small_talk", "You are welcome!")
    elif kind == 6:
        choice = b.rng.randrange(3)
        if choice == 0:
            b.user(b.pick("Bye!", "Goodbye.", "See you later.", "Bye bye", "Good night!", "See you!"))
            b.says("small_talk", "Goodbye!")
        elif choice == 1:
            b.user(b.pick("Who are you?", "What are you?", "What is your name?", "Introduce yourself.", "Which model are you?", "What model are you?", "Are you a robot?"))
            b.says("small_talk", IDENTITY)
        else:
            b.user(b.pick("What can you do?", "How can you help me?", "What are you good at?", "What are your skills?", "Help", "What do you know?"))
            b.says("small_talk", "I can call tools, count, repeat words and answer very simple questions.")
    else:
        b.user(b.pick("Hi", "Hello", "Hello!", "Hi there!", "Hey", "Good morning!", "Hi!", "Hello there.", "Hey there", "Good evening."))
        b.says("small_talk", "Hello! How can I help you?")


def _ask_in_vain(b: Builder, kind: str) -> None:
    """Asks for something that would need a tool which is not declared."""
    lit = b.lit
    if kind == "weather":
        _ask(b, ASK_WEATHER, c=lit.city(), t="weather")
    elif kind == "time":
        _ask(b, ASK_TIME, c=lit.city(), t="time")
    elif kind == "search":
        b.user(b.pick("Search the web for {}.", "Look up {} on the internet.", "Google {}.", "Do a web search for {}.").format(" ".join(lit.words(1, 3))))
    elif kind == "read":
        b.user(b.rng.choice([s for s in READ_SAYS if "{t}" not in s and not s.startswith("cat")]).format(p=lit.path()))
    else:
        b.user(b.pick("List the files in {}", "What is in the folder {}?", "Show me the files in {}").format(lit.folder()))


def ep_unknown(b: Builder) -> None:
    lit = b.lit
    missing = [kind for kind in ("weather", "time", "search", "read", "list") if kind not in b.tools]
    if missing and lit.chance(0.25):
        _ask_in_vain(b, b.rng.choice(missing))
        b.says("unknown", UNKNOWN)
        return
    question = b.rng.choice(UNKNOWN_QUESTIONS).format(w=lit.word(), w2=lit.word(), a=b.rng.choice(ADJECTIVES.split()), c=lit.city(), c2=lit.city(), p=lit.person(), n=lit.number(), m=lit.number())
    if "weather" in b.tools and lit.chance(0.1):
        question = "What is the weather?"  # no city given
        b.user(question)
        b.says("unknown", "Which city?")
        return
    b.user(question + b.pick("", "", "", "", " Please be brief.", " Answer in one sentence."))
    b.says("unknown", UNKNOWN)


def ep_extract(b: Builder) -> None:
    rng, lit = b.rng, b.lit
    shape = rng.randrange(4)
    person, city, age, thing, price = lit.person(), lit.city(), rng.randrange(3, 99), lit.word(), lit.number()
    if shape == 0:
        keys, text, value = "name and age", b.pick(f"{person} is {age} years old.", f"My friend {person} is {age}.", f"{person}, aged {age}, is here."), {"name": person, "age": age}
    elif shape == 1:
        keys, text, value = "name and city", b.pick(f"{person} lives in {city}.", f"I met {person} in {city}.", f"{person} is from {city}."), {"name": person, "city": city}
    elif shape == 2:
        keys, text, value = "product and price", b.pick(f"The {thing} costs {price} dollars.", f"A {thing} is {price} euros.", f"I paid {price} for the {thing}."), {"product": thing, "price": price}
    else:
        keys, text, value = "name, age and city", b.pick(f"{person} is {age} years old and lives in {city}.", f"{person} ({age}) is from {city}."), {"name": person, "age": age, "city": city}
    b.user(b.pick("Extract the {k} as JSON: {t}", "Extract {k} as JSON from this text: {t}", "Give me the {k} as JSON. {t}", "{t}\nExtract the {k} as JSON.", "Return a JSON object with {k}: {t}").format(k=keys, t=text))
    b.says("extract", dumps(value))


def ep_title(b: Builder) -> None:
    """What coding agents ask to name a session. Only sensible as a whole conversation."""
    lit = b.lit
    topic = b.rng.randrange(4)
    if topic == 0:
        city = lit.city()
        request, title = b.rng.choice(ASK_WEATHER[:10]).format(c=city), f"Weather in {city}"
    elif topic == 1:
        path = lit.path()
        request, title = b.rng.choice([s for s in READ_SAYS if "{t}" not in s]).format(p=path), f"Reading {path}"
    elif topic == 2:
        path, word = lit.path(), lit.word()
        what = b.pick(f"Fix the {word} in {path}", f"Explain {path}", f"Rename {word} in {path}", f"Add {word} to {path}", f"Write tests for {path}", f"Refactor {path}", f"Create {path}")
        request, title = b.pick("{}", "{}.", "Please {l}", "Can you {l}?").format(what, l=what[0].lower() + what[1:]), what
    else:
        words = lit.words(2, 5)
        title = " ".join(words)
        request = b.pick("{}", "{}.", "{}?").format(title)
    asks = ["Generate a title for this conversation:", "Generate a short title for this conversation:", "Write a title for this conversation:", "Give this conversation a short title:", "Summarize this conversation in a title of a few words:"]
    messages = b.conversation.messages
    if lit.chance(0.7):
        text = b.rng.choice(TITLE_SYSTEMS)
        if messages and messages[0]["role"] == "system":
            messages[0]["content"] = text
        else:
            messages.insert(0, {"role": "system", "content": text})
    if lit.chance(0.4):
        messages += [{"role": "user", "content": b.rng.choice(asks) + b.pick("", "\n")}, {"role": "user", "content": request}]
    else:
        quote = b.pick("{}", "{}", '"{}"', "<conversation>\n{}\n</conversation>", "User: {}").format(request)
        messages.append({"role": "user", "content": b.rng.choice(asks) + b.pick("\n", " ", "\n\n") + quote})
    b.says("title", title)


# --- whole conversations ------------------------------------------------------------------------

#: family -> (episode, tool kinds it needs)
EPISODES: dict[str, tuple[Callable[[Builder], None], list[str]]] = {
    "weather": (ep_weather, ["weather"]),
    "two_cities": (ep_two_cities, ["weather"]),
    "two_calls": (ep_two_calls, ["weather"]),
    "time": (ep_time, ["time"]),
    "search": (ep_search, ["search"]),
    "read": (ep_read, ["read"]),
    "write": (ep_write, ["write"]),
    "edit": (ep_edit, ["edit"]),
    "glob": (ep_glob, ["glob"]),
    "grep": (ep_grep, ["grep"]),
    "bash": (ep_bash, ["bash"]),
    "list": (ep_list, ["list"]),
    "invented": (ep_invented, ["invented"]),
    "fact": (ep_colour, []),
    "count": (ep_count, []),
    "repeat": (ep_repeat, []),
    "greet": (ep_greet, []),
    "unknown": (ep_unknown, []),
    "extract": (ep_extract, []),
}
CHAT = ["fact", "count", "repeat", "greet", "unknown", "extract"]
#: Chance of each episode among those that a conversation's tools allow.
WEIGHTS: dict[str, float] = {name: 1.0 for name in EPISODES} | {"weather": 1.6, "repeat": 1.4, "invented": 1.6, "read": 1.8, "greet": 1.2, "two_cities": 0.7, "count": 0.8}


def system_prompt(lit: Literals, sentences: list[str] | None) -> str | None:
    rng = lit.rng
    style = rng.random()
    if style < 0.3:
        return None
    if style < 0.7:
        return rng.choice(SHORT_SYSTEMS)
    text = rng.choice(AGENT_SYSTEMS).format(p=lit.person(), d=lit.folder(), x=lit.proper(), c=lit.city(), m=rng.randrange(20, 30), k=rng.randrange(1, 10))
    if sentences and style > 0.85:
        text += "\n\n" + " ".join(rng.choice(sentences) for _ in range(rng.randint(1, 6)))
    return text


def conversation(
    rng: random.Random,
    families: list[str] | None = None,
    turns: int = 4,
    held_out: bool = False,
    sentences: list[str] | None = None,
    tool_count: int | None = None,
    thinking: bool = False,
    tools: list[Tool] | None = None,
    weights: dict[str, float] = WEIGHTS,
) -> Conversation:
    """A conversation of `turns` episodes. With `families`, exactly these, in this order.

    With `tools`, it uses these and has no system prompt: it continues a text that declares them.
    """
    lit = Literals(rng, held_out)
    given = tools is not None
    if tools is None:
        tools = _declare_some(lit, families, tool_count, sentences)
    builder = Builder(lit, tools, sentences)
    builder.thinking = thinking
    if not given and (system := system_prompt(lit, sentences)) is not None:
        builder.conversation.messages.append({"role": "system", "content": system})
    if families:
        for family in families:
            ep_title(builder) if family == "title" else EPISODES[family][0](builder)
        return builder.conversation
    have = set(builder.tools) | ({"invented"} if builder.invented else set())
    useful = [name for name, (_, needs) in EPISODES.items() if needs and set(needs) <= have]
    for _ in range(turns):
        names = useful if useful and rng.random() < 0.7 else CHAT
        name = rng.choices(names, [weights[n] for n in names])[0]
        EPISODES[name][0](builder)
    return builder.conversation


def _declare_some(lit: Literals, families: list[str] | None, tool_count: int | None, sentences: list[str] | None) -> list[Tool]:
    """The tools of a conversation: those that `families` need, or a random choice, and some further ones."""
    rng = lit.rng
    kinds: list[str] = []
    if families:
        for family in families:
            kinds += EPISODES[family][1] if family in EPISODES else []
    else:
        theme = rng.random()
        if theme < 0.22:
            kinds = ["weather"] + (["time"] if rng.random() < 0.4 else [])
        elif theme < 0.48:
            kinds = rng.sample(CODING_KINDS, rng.choice([1, 1, 2, 3, 4]))
        elif theme < 0.68:
            kinds = ["invented"] * rng.choice([1, 1, 2, 3])
        elif theme < 0.86:
            kinds = [rng.choice([*EPISODES["invented"][1], "weather", "time", "search", "search", *CODING_KINDS]) for _ in range(rng.choice([1, 2, 3]))]
    kinds = list(dict.fromkeys(kinds)) if families else kinds
    extra = rng.choice([0, 0, 0, 0, 1, 1, 2, 3, 5, 8]) if kinds or rng.random() < 0.25 else 0
    if tool_count is not None:
        extra = max(0, tool_count - len(kinds))
    return toolset(lit, kinds, extra, sentences)
