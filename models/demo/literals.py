"""Random literals: the names, paths, numbers and phrases that conversations are about.

Nearly everything here is made up on the spot (syllables, or pieces of the
vocabulary glued together), so that the model cannot memorize literals and has
to learn to copy them. Real names are split into a training and a held-out part.
"""

from __future__ import annotations

import random

CITIES = """Berlin Paris London Madrid Rome Vienna Prague Warsaw Lisbon Dublin Athens Oslo Helsinki Stockholm
Copenhagen Brussels Amsterdam Budapest Zurich Geneva Munich Hamburg Cologne Milan Naples Turin Barcelona Seville
Porto Lyon Marseille Nice Tokyo Osaka Kyoto Seoul Beijing Shanghai Delhi Mumbai Bangkok Singapore Sydney Melbourne
Auckland Toronto Montreal Vancouver Boston Chicago Denver Seattle Dallas Houston Miami Atlanta Cairo Lagos Nairobi
Istanbul Dubai Moscow Kyiv Riga Tallinn Vilnius|New York|Los Angeles|San Francisco|Buenos Aires|Mexico City|
Cape Town|Hong Kong|São Paulo|Rio de Janeiro|Zürich|Malmö|Kraków""".replace("\n", " ")
HELD_OUT_CITIES = """Dresden Leipzig Bremen Hanover Stuttgart Graz Salzburg Bergen Aarhus Tampere Utrecht Rotterdam
Antwerp Bordeaux Toulouse Nantes Valencia Bilbao Granada Bologna Verona Palermo Krakow Gdansk Brno Bratislava
Ljubljana Zagreb Belgrade Sofia Bucharest Odessa Minsk Ankara Izmir Beirut Amman Doha Karachi Lahore Dhaka Colombo
Hanoi Manila Jakarta Perth Brisbane Wellington Calgary Ottawa Portland Phoenix Memphis Detroit Omaha Lima Bogota
Quito Santiago Montevideo Havana Accra Dakar Tunis|Las Vegas|San Diego|Kansas City|Santa Fe|Tel Aviv|Kuala Lumpur|
Addis Ababa|Göteborg|Reykjavík|Łódź""".replace("\n", " ")
NAMES = """Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Klara Leo Mia Noah Olga Paul Rosa Sam Tina Uwe Vera
Will Xenia Yara Zoe Alice Bob Carol Dan Eve Frank Grace Henry Iris Jack Kate Liam Maria Nina Oscar Peter Ruth Steve
Tom Victor Wendy"""
HELD_OUT_NAMES = """Amelia Bruno Cecilia Dmitri Elena Fabian Gloria Heidi Ivan Julia Kenji Lucia Marco Nadia Otto
Priya Quentin Rafael Sofia Tomas Ursula Valentin Wanda Yusuf Zara Ingrid Lorenz Beatrix"""
WORDS = """apple banana lamp river stone cloud tiger window garden silver candle ocean pencil rocket violin mango
forest bridge castle dragon engine feather guitar hammer island jacket kettle ladder mirror needle orange pepper
quartz ribbon saddle tunnel umbrella velvet walnut yellow zebra anchor basket copper desert ember falcon glacier
harbor ivory jungle lantern marble nectar olive planet rabbit shadow thunder valley winter"""
HELD_OUT_WORDS = """acorn badger cactus daisy eagle fiddle ginger helmet iguana jasmine kitten lemon magnet nutmeg
otter parrot quiver raven salmon turtle urchin violet wagon yogurt almond bamboo cobalt dolphin emerald fennel"""
PLAIN = "hello|hi|ok|yes|no|pong|test|done|hello world|ready|ping|banana|good morning|I am ready".split("|")
COLOURS = "red blue green yellow black white orange brown purple pink grey".split()
ADJECTIVES = "red blue green old new small big quiet bright cold warm fast slow happy strange secret lost hidden"
CONDITIONS = """sunny|cloudy|rainy|windy|foggy|snowy|stormy|clear|overcast|partly cloudy|light rain|heavy rain|
thunderstorms|drizzle|hazy|mild and dry|scattered showers|light snow""".replace("\n", "")
EXTENSIONS = "txt md rs py js ts json toml yaml c h cpp go java html css sh cfg log csv".split()
FOLDERS = "src lib docs tests app core utils data config scripts bin pkg include web server client assets".split()
STEMS = """main index notes readme config utils parser server client model test app todo report setup build data list
user query router cache schema token sample""".split()
HELD_OUT_STEMS = """ledger invoice orbit widget planner gadget compass journal budget recipe summary draft letter
sketch registry poem""".split()

_ONSETS = "b c d f g h j k l m n p r s t v w z br ch cl dr fl gr kr pl pr sh sk sl st str th tr".split()
_VOWELS = "a e i o u a e i o u ai au ea ee ie oa oo ou y".split()
_CODAS = ["", "", "", "", "n", "r", "l", "s", "t", "m", "k", "rd", "nd", "st", "x", "p", "g"]


def _split(text: str) -> list[str]:
    """Names separated by spaces; those holding a space themselves stand between bars."""
    first, *rest = text.split("|")
    return first.split() + [part.strip() for part in rest if part.strip()]


class Literals:
    """Draws literals from one random generator; `held_out` switches to the evaluation's names."""

    #: Letter-only pieces of the vocabulary, set once the tokenizer exists.
    pieces: list[str] = []
    #: Short sentences of ordinary text, set where that is at hand.
    snippets: list[str] = []

    def __init__(self, rng: random.Random, held_out: bool = False):
        self.rng = rng
        self.held_out = held_out
        self._cities = _split(HELD_OUT_CITIES if held_out else CITIES)
        self._names = (HELD_OUT_NAMES if held_out else NAMES).split()
        self._words = (HELD_OUT_WORDS if held_out else WORDS).split()
        self._stems = HELD_OUT_STEMS if held_out else STEMS
        self._recent: list[str] = []

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def syllables(self, low: int = 2, high: int = 3) -> str:
        """A made-up word."""
        rng = self.rng
        count = rng.randint(low, high)
        if self.pieces and rng.random() < 0.4:
            return "".join(rng.choice(self.pieces) for _ in range(count))
        return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count))

    def proper(self) -> str:
        word = self.syllables(1, 3)
        return word[:1].upper() + word[1:]

    def city(self) -> str:
        if self.chance(1.0 if self.held_out else 0.4):
            return self.rng.choice(self._cities)
        name = self.proper()
        shape = self.rng.random()
        if shape < 0.06:
            return f"{self.rng.choice(['New', 'San', 'Port', 'Bad', 'Saint', 'El', 'Fort', 'North'])} {name}"
        if shape < 0.10:
            return f"{name} {self.rng.choice(['City', 'Falls', 'Springs', 'Bay', 'upon Tyne'])}"
        if shape < 0.13:
            return f"{name}-{self.proper()}"
        if not self.held_out and shape > 0.94:
            return f"{name} {self.proper()}"
        if shape < (0.18 if self.held_out else 0.23):
            i = self.rng.randrange(len(name) + 1)
            return name[:i] + self.rng.choice("äöüéèñçøåłśžšóíáâŁŻżźčćğıőűßæðøÅÖÉěřňêôãúýÁŚ") + name[i:]
        return name

    def cities(self, count: int) -> list[str]:
        found: list[str] = []
        while len(found) < count:
            city = self.city()
            if city not in found:
                found.append(city)
        return found

    def person(self) -> str:
        return self.rng.choice(self._names) if self.chance(1.0 if self.held_out else 0.4) else self.proper()

    def _again(self, fresh: str) -> str:
        """Now and then a piece that was said just before: copying has to keep its place among repeated pieces.

        Held-out pieces are few, so those repeat by themselves.
        """
        if self.held_out:
            return fresh
        if self._recent and self.rng.random() < 0.14:
            return self.rng.choice(self._recent)
        self._recent = [*self._recent[-3:], fresh]
        return fresh

    def word(self) -> str:
        if self.chance(0.8 if self.held_out else 0.35):
            return self._again(self.rng.choice(self._words))
        return self._again(self.syllables(1, 3))

    def odd(self) -> str:
        """An odd token: digits, mixed case, an identifier."""
        rng = self.rng
        kind = rng.randrange(6)
        if kind == 0:
            return str(rng.randrange(10 ** rng.randint(1, 5)))
        if kind == 1:
            return self.syllables(1, 2).upper()
        if kind == 2:
            return f"{self.word()}_{self.word()}"
        if kind == 3:
            return f"{self.word()}-{rng.randrange(100)}"
        if kind == 4:
            return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(rng.randint(3, 8)))
        return self.proper() + self.proper()

    def words(self, low: int, high: int) -> list[str]:
        odd = 0.0 if self.chance(0.7) else 0.4
        return [self.odd() if self.chance(odd) else self.word() for _ in range(self.rng.randint(low, high))]

    def sentence(self) -> str:
        """A short statement, as a file or note would hold it or a program print it."""
        rng = self.rng
        if self.snippets and rng.random() < 0.2:
            return rng.choice(self.snippets)
        return rng.choice(
            [
                lambda: f"The secret word is {self.word()}.",
                lambda: f"The {self.word()} is {rng.choice(ADJECTIVES.split())}.",
                lambda: f"{self.person()} lives in {self.city()}.",
                lambda: f"The password is {self.odd()}",
                lambda: f"Remember to buy {self.word()} and {self.word()}.",
                lambda: f"Hello from {self.person()}!",
                lambda: f"Version {rng.randrange(10)}.{rng.randrange(20)}.{rng.randrange(10)} of {self.word()}",
                lambda: f"This project is called {self.word()}.",
                lambda: f"The meeting with {self.person()} is at {rng.randrange(24)}:{rng.randrange(60):02d}.",
                lambda: f"{self.word()} = {self.odd()}",
                lambda: f"{self.proper()} likes the {self.word()}",
                lambda: f"# {self.proper()} {self.word()}",
                lambda: f"- {self.word()}: {self.word()}",
                lambda: f"test {self.word()}: ok. {rng.randrange(20)} passed; {rng.randrange(5)} failed",
                lambda: f"{rng.randrange(9)} {self.word()} changed, {rng.randrange(99)} added",
                lambda: f"{self.path()}: {self.word()} ({rng.randrange(99)})",
                lambda: f"{self.code()}",
                lambda: " ".join(self.word() for _ in range(rng.randint(2, 6))),
            ]
        )()

    def stem(self) -> str:
        return self._again(self.rng.choice(self._stems) if self.chance(0.9 if self.held_out else 0.3) else self.syllables(1, 3))

    def file(self) -> str:
        name = self.stem()
        if self.chance(0.12):
            name = f"{name}{self.rng.choice('_-.')}{self.stem()}"
        elif self.chance(0.06):
            name = name.upper()
        return f"{name}.{self.rng.choice(EXTENSIONS)}"

    def folder(self) -> str:
        depth = self.rng.choice([1, 1, 1, 2, 2, 3])
        parts = [self.rng.choice(FOLDERS) if self.chance(0.5) else self.stem() for _ in range(depth)]
        return self.rng.choice(["", "", "", "./", "/", "/home/", "../"]) + "/".join(parts)

    def path(self) -> str:
        return self.file() if self.chance(0.45) else f"{self.folder()}/{self.file()}"

    def glob(self) -> str:
        extension = self.rng.choice(EXTENSIONS)
        return self.rng.choice(
            [
                f"**/*.{extension}",
                f"*.{extension}",
                f"{self.rng.choice(FOLDERS)}/**/*.{extension}",
                f"{self.stem()}*",
                f"**/{self.stem()}.{extension}",
                f"{self.folder()}/*.{extension}",
                f"**/*_{self.stem()}.{extension}",
            ]
        )

    def pattern(self) -> str:
        word = self.stem()
        return self.rng.choice(
            [word, word, f"fn {word}", f"def {word}", f"class {self.proper()}", "TODO", f"import {word}",
             f"{word}_{self.stem()}", f"{word}.*{self.stem()}", f"^{word}", f"{word}\\(", f"use {word}::", f"{self.proper()}Error"]
        )

    def command(self) -> str:
        return self.rng.choice(
            [
                lambda: "ls -la",
                lambda: f"ls {self.folder()}",
                lambda: "git status",
                lambda: f"git log -n {self.rng.randrange(1, 30)}",
                lambda: "cargo test",
                lambda: f"cargo run --bin {self.stem()}",
                lambda: "npm install",
                lambda: f"python {self.path()}",
                lambda: f"cat {self.path()}",
                lambda: f"echo {self.word()}",
                lambda: f"mkdir -p {self.folder()}",
                lambda: f"rm {self.path()}",
                lambda: f"wc -l {self.path()}",
                lambda: "pwd",
                lambda: "date",
                lambda: f"grep -r {self.stem()} {self.folder()}",
                lambda: f"make {self.stem()}",
                lambda: f"cd {self.folder()} && ./{self.stem()}",
                lambda: f"{self.stem()} --{self.stem()} {self.odd()}",
            ]
        )()

    def code(self) -> str:
        """A short piece of code on one line."""
        rng = self.rng
        return rng.choice(
            [
                lambda: f"let {self.stem()} = {rng.randrange(100)};",
                lambda: f"{self.stem()} = {rng.randrange(1000)}",
                lambda: f"print('{self.word()}')",
                lambda: f"return {self.stem()}",
                lambda: f"{self.stem()}()",
                lambda: f"fn {self.stem()}()",
                lambda: f"const {self.stem()} = '{self.word()}';",
                lambda: f"import {self.stem()}",
                lambda: self.stem(),
                lambda: f"# {self.word()} {self.word()}",
                lambda: f"hello {self.word()}",
            ]
        )()

    def number(self) -> int:
        return self.rng.randrange(10 ** self.rng.randint(1, 4))
