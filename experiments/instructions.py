"""Types of instructions over common words, each with one right answer that a program knows.

Not a study. Three things are kept from training: a quarter of the words, the last two phrasings of
every type, and whole types. Half of the words in training are made up: of a few hundred real ones a
small model learns each by itself, and copies no other.

| type | example | answer |
|---|---|---|
| repeat, twice | Say river twice. | river river |
| swap | Swap: king river | river king |
| first, last | Last word: king river house tree | tree |
| after | After river: king river house tree | house |
| present | Is river here? king house tree | no |
| which | Is it river or ship? king river tree | river |
| count | How many words? king river house | three |
| feeling | Good or bad: a cruel king | bad |
| held out: second | Second word: king river house tree | river |
| held out: before | Before river: king river house tree | king |
| held out: thrice | Say river three times. | river river river |
| held out: absent | Is river missing? king house tree | yes |
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import NamedTuple

from rlhf_jax.data.chat import Turn, transcript
from rlhf_jax.data.feedback import Demonstration
from rlhf_jax.evals.prompting import Item
from rlhf_jax.study import ConfigError

WORDS = """king house land hand heart father son day earth head eyes world work year lord man men life people child
    war blood death city fire sea water river night face wife door bread tree stone gold hill field road
    ship horse sheep lion bird fish rose wind rain snow sun moon star light bed book table room ring sword
    crown gate wall tower garden mountain brother sister mother friend servant priest prince queen lady
    captain doctor song voice story letter line age hour morning summer winter spring wine oil salt corn
    fruit milk meat honey iron silver glass paper coat hat bell bridge boat market village island forest
    lake desert cloud storm dust grass leaf root seed flower hair arm foot lips ear nose neck knee bone
    back game dance feast gift price debt law peace hope joy love fear faith dream sleep time place
    children kings sons daughter hands feet heaven thing things power spirit state nation office party
    wood glory kingdom grace honour reason against away bring call come give hear know like look made more
    much never offer over part pass put right saying send set speak take tell think under went whole young
    above air alone along always angel animal apple army around ask baby ball bank base beach bear beard
    bee begin below bend best better between big bit black blue board body bow box boy branch brick bright
    broad brown brush busy butter buy cake calm camp candle card care carry case castle cat catch cause
    chain chair chance chest chief choose class clay clean clear climb clock close clothes club coast cold
    collar colour common cook cool copper corner cost country course court cover cow cream cup curtain
    dark date dear deep deer dish distance dog double draw dress drink drive drop dry duck early east easy
    edge egg eight engine enough evening example eye fact fall far farm fast feather feed feel fence few
    figure fill find finger finish firm fit floor flow fold follow food force form found fox free fresh
    full fur gas gather girl glove goat goose grain grand grape green grey ground grow guard guide habit
    half hall hammer hard harp health heavy height help high hole home hook horn hotel hundred hunt ice
    inch ink inside jacket join jump keep key kite knot lamp large late laugh lead learn leather left lend
    lesson level lift linen lip list listen little load lock long loud low lunch machine map march mark
    mask master match meal mean measure meet metal mile mind miss model moment month mouse mouth move mud
    music nail narrow near needle nest new news nine noise north note nurse oak ocean old open orange
    order oven owner page paint pair palace pan park path pay pen pepper person piece pig pilot pin pink
    pipe plain plan plant plate play plough pocket poem poet point pole pond pony pool pot pound press
    print prize proud pull pump purple purse push question quick quiet race rail raise range rat read
    ready red report rest rice ride rise roof rope rough row royal rule run sack sail salad same sand save
    scale seat sell serve seven shade shadow shape share sharp sheet shelf shell shine shirt shop short
    shoulder show sign silk simple sing sit six size skin sky slow small smell smile smoke smooth snake
    soap soft soil sort sound soup south space speed spoon square stair stand station stay steam steel
    stem step stick stop store straw stream street strong sugar suit supper swan sweep swim tail tall tea
    team tent test thick thin third thousand thread throat throw thumb ticket tiger tin toe tool top touch
    town toy trade train travel trip trouble trunk try twelve uncle useful view visit wait walk want warm
    wash watch wave wax weather week weight well west wet wheat wheel whistle white wide wild win window
    wing wish wolf woman wool worth yard yellow"""  # noqa: E501
GOOD = """good happy kind glad sweet brave wise gentle honest noble merry beautiful wonderful friendly cheerful
    excellent pleasant great fair true holy perfect"""  # noqa: E501
BAD = """bad sad cruel angry ugly wicked bitter foolish evil terrible horrible sick false guilty lonely dreadful
    awful stupid miserable poor weak dead"""  # noqa: E501
REAL = frozenset(f"{WORDS} {GOOD} {BAD}".split())
SYLLABLES = (  # of made-up words: what they begin with, a vowel, what they end with
    "b c d f g h k l m n p r s t w br ch cr dr fr gr pl pr sh sl st th tr",
    "a e i o u ai ea ee oa oo",
    "b d g k l m n p r s t ck ld ll nd ng nt rd rk rn sh st th",
)
MADE_UP = 0.5  # share of the words in training records
NUMBERS = ("one", "two", "three", "four", "five")
YES_NO = ("yes", "no")
TRAINED, NEW_PHRASINGS, NEW_TYPES = "trained types", "held-out phrasings", "held-out types"
NEW = 2  # phrasings of each type, the last, that are held out
TURNS = (1, 1, 2, 4)  # instructions in one training record, each as likely as the others


class Case(NamedTuple):
    """What fills the slots of a phrasing, and what is right and wrong then."""

    slots: dict[str, str]
    answer: str
    distractors: tuple[str, ...]


class Words(NamedTuple):
    """Words of a split: any, and those that speak well or badly of a thing."""

    any: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]


Maker = Callable[[random.Random, int, Words], Case]  # the i-th case, so that answers are balanced


class Kind(NamedTuple):
    """A type of instruction."""

    make: Maker
    phrasings: tuple[str, ...]


def repeated(times: int) -> Maker:
    """A word said so many times."""

    def make(rng: random.Random, i: int, words: Words) -> Case:
        word, other = rng.sample(words.any, 2)
        said = [" ".join([word] * n) for n in (1, 2, 3) if n != times]
        wrong = (*said, " ".join([other] * times))
        return Case({"w": word}, " ".join([word] * times), wrong)

    return make


def swapped(rng: random.Random, i: int, words: Words) -> Case:
    a, b = rng.sample(words.any, 2)
    return Case({"l": f"{a} {b}"}, f"{b} {a}", (f"{a} {b}", f"{a} {a}", f"{b} {b}"))


def at(place: int) -> Maker:
    """The word at a place of four."""

    def make(rng: random.Random, i: int, words: Words) -> Case:
        line = rng.sample(words.any, 4)
        answer = line[place]
        return Case({"l": " ".join(line)}, answer, tuple(w for w in line if w != answer))

    return make


def beside(step: int) -> Maker:
    """The word after one of four, or before it."""

    def make(rng: random.Random, i: int, words: Words) -> Case:
        line = rng.sample(words.any, 4)
        known = i % 3 + (step < 0)
        answer = line[known + step]
        wrong = tuple(w for w in line if w != answer)
        return Case({"w": line[known], "l": " ".join(line)}, answer, wrong)

    return make


def contained(if_there: str) -> Maker:
    """Yes or no, of whether a word is among three; `if_there` is the answer when it is."""

    def make(rng: random.Random, i: int, words: Words) -> Case:
        *line, other = rng.sample(words.any, 4)
        there = i % 2 == 0
        yes, no = YES_NO if if_there == "yes" else YES_NO[::-1]
        answer, wrong = (yes, no) if there else (no, yes)
        slots = {"w": rng.choice(line) if there else other, "l": " ".join(line)}
        return Case(slots, answer, (wrong,))

    return make


def which(rng: random.Random, i: int, words: Words) -> Case:
    *line, other = rng.sample(words.any, 4)
    there = rng.choice(line)
    a, b = (there, other) if i % 2 == 0 else (other, there)
    return Case({"a": a, "b": b, "l": " ".join(line)}, there, (other,))


def counted(rng: random.Random, i: int, words: Words) -> Case:
    n = i % len(NUMBERS)
    line = " ".join(rng.sample(words.any, n + 1))
    return Case({"l": line}, NUMBERS[n], tuple(x for x in NUMBERS if x != NUMBERS[n]))


def felt(rng: random.Random, i: int, words: Words) -> Case:
    answer, wrong = ("good", "bad") if i % 2 == 0 else ("bad", "good")
    word = rng.choice(words.good if answer == "good" else words.bad)
    return Case({"w": word, "n": rng.choice(words.any)}, answer, (wrong,))


TRAINED_TYPES: dict[str, Kind] = {
    "repeat": Kind(
        repeated(1),
        (
            "Repeat: {w}",
            "Repeat the word {w}.",
            "Say {w}.",
            "Write {w}.",
            "Say the word {w} once.",
            "Copy: {w}",
        ),
    ),
    "twice": Kind(
        repeated(2),
        (
            "Twice: {w}",
            "Repeat {w} two times.",
            "Say {w} twice.",
            "Write {w} twice.",
            "Say the word {w} and say it again.",
            "Two times: {w}",
        ),
    ),
    "swap": Kind(
        swapped,
        (
            "Swap: {l}",
            "Swap the words {l}.",
            "The other way round: {l}",
            "Turn round: {l}",
            "Say {l} the other way.",
            "Change places: {l}",
        ),
    ),
    "first": Kind(
        at(0),
        (
            "First word: {l}",
            "The first of these words: {l}",
            "Which word is first? {l}",
            "Say the first of {l}.",
            "The word at the start: {l}",
            "What is first in {l}?",
        ),
    ),
    "last": Kind(
        at(3),
        (
            "Last word: {l}",
            "The last of these words: {l}",
            "Which word is last? {l}",
            "Say the last of {l}.",
            "The word at the end: {l}",
            "What is last in {l}?",
        ),
    ),
    "after": Kind(
        beside(1),
        (
            "After {w}: {l}",
            "The word after {w}: {l}",
            "Which word follows {w}? {l}",
            "Say what follows {w}: {l}",
            "What comes after {w}? {l}",
            "Go on from {w}: {l}",
        ),
    ),
    "present": Kind(
        contained("yes"),
        (
            "Is {w} here? {l}",
            "Is {w} one of these? {l}",
            "Is there {w} in {l}?",
            "Does this have {w}? {l}",
            "Can you see {w} in {l}?",
            "{l}: is {w} there?",
        ),
    ),
    "which": Kind(
        which,
        (
            "Is it {a} or {b}? {l}",
            "{a} or {b}: {l}",
            "Which is here, {a} or {b}? {l}",
            "Say {a} or {b}: {l}",
            "Is there {a} or {b} in {l}?",
            "{l}: is it {a} or {b}?",
        ),
    ),
    "count": Kind(
        counted,
        (
            "How many words? {l}",
            "Count: {l}",
            "Count the words: {l}",
            "Say how many: {l}",
            "The number of words: {l}",
            "How many are these? {l}",
        ),
    ),
    "feeling": Kind(
        felt,
        (
            "Good or bad: a {w} {n}",
            "Good or bad? The {n} is {w}.",
            "Is a {w} {n} good or bad?",
            "Judge the {w} {n}: good or bad?",
            "The {n} was {w}. Good or bad?",
            "Say good or bad: {w} {n}",
        ),
    ),
}
HELD_OUT_TYPES: dict[str, Kind] = {
    "second": Kind(
        at(1),
        (
            "Second word: {l}",
            "The second of these words: {l}",
            "Which word is second? {l}",
            "Say the second of {l}.",
        ),
    ),
    "before": Kind(
        beside(-1),
        (
            "Before {w}: {l}",
            "The word before {w}: {l}",
            "Which word is before {w}? {l}",
            "Say what is before {w}: {l}",
        ),
    ),
    "thrice": Kind(
        repeated(3),
        (
            "Three times: {w}",
            "Repeat {w} three times.",
            "Say {w} three times.",
            "Write {w} three times.",
        ),
    ),
    "absent": Kind(
        contained("no"),
        (
            "Is {w} missing? {l}",
            "Is {w} not here? {l}",
            "Is there no {w} in {l}?",
            "Does this lack {w}? {l}",
        ),
    ),
}


def words_of(split: str) -> Words:
    """A quarter of the words, by their hash, is for every split but `train`."""

    def part(words: str) -> tuple[str, ...]:
        held = {w: hashlib.sha256(w.encode()).digest()[0] % 4 == 0 for w in words.split()}
        return tuple(w for w in held if held[w] != (split == "train"))

    return Words(part(WORDS), part(GOOD), part(BAD))


def with_made_up(rng: random.Random, words: Words) -> Words:
    """A few of the words, a share of them replaced by made-up ones."""
    some = [_made_up(rng) if rng.random() < MADE_UP else word for word in rng.sample(words.any, 8)]
    return words._replace(any=tuple(dict.fromkeys(some)))


def _made_up(rng: random.Random) -> str:
    """A syllable that is none of the words."""
    while (word := "".join(rng.choice(part.split()) for part in SYLLABLES)) in REAL:
        pass
    return word


def records(split: str, n: int, seed: int) -> list[Demonstration]:
    """Conversations in which the user gives one to four instructions of trained types, in trained
    phrasings, and the assistant answers each."""
    rng, words = random.Random(f"records {split} {seed}"), words_of(split)
    found = []
    for _ in range(n):
        turns: list[Turn] = []
        for _ in range(rng.choice(TURNS)):
            kind = TRAINED_TYPES[rng.choice(list(TRAINED_TYPES))]
            case = kind.make(rng, rng.randrange(60), with_made_up(rng, words))
            text = rng.choice(kind.phrasings[:-NEW]).format(**case.slots)
            turns += [Turn("user", text), Turn("assistant", f" {case.answer}")]
        prompt = transcript([*turns[:-1], Turn("assistant", "")])
        found.append(Demonstration(prompt, turns[-1].text))
    return found


def prompts(split: str, n: int, seed: int) -> list[str]:
    """What the assistant answers last in each of the records."""
    return [record.prompt for record in records(split, n, seed)]


def items(split: str, n: int, seed: int) -> list[Item]:
    """`n` different items of every trained type, of every trained type in held-out phrasings, and
    of every held-out type. A smaller `n` gives the first of them."""
    found = []
    for group, kinds in (
        (TRAINED, TRAINED_TYPES),
        (NEW_PHRASINGS, TRAINED_TYPES),
        (NEW_TYPES, HELD_OUT_TYPES),
    ):
        for name, kind in kinds.items():
            phrasings = {TRAINED: kind.phrasings[:-NEW], NEW_PHRASINGS: kind.phrasings[-NEW:]}
            chosen = phrasings.get(group, kind.phrasings)
            found += _items(name, group, kind.make, chosen, split, n, seed)
    return found


def _items(
    name: str, group: str, make: Maker, phrasings: tuple[str, ...], split: str, n: int, seed: int
) -> list[Item]:
    rng, words = random.Random(f"{name} {group} {split} {seed}"), words_of(split)
    found: dict[str, Item] = {}
    for _ in range(100 * n):
        if len(found) == n:
            break
        case = make(rng, len(found), words)
        text = rng.choice(phrasings).format(**case.slots)
        found.setdefault(text, Item(name, group, text, case.answer, case.distractors))
    if len(found) < n:
        raise ConfigError(
            f"{n} items of {name!r} ({group}, {split} split), but its words and phrasings make "
            f"only about {len(found)}; ask for fewer"
        )
    return list(found.values())
