"""Questions about small invented worlds, in SQuAD's format: data that a demonstration needs no network for.

A context is a row of portraits, of people, ships and buildings, with scenes of no consequence between them. Only the first sentence of a portrait is sure to name its subject; the others often
say "she" or "it", so the answer belongs to whoever was named last before it: without the order of tokens it cannot be told from the same
fact of a neighbour. Names of training and evaluation do not overlap.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fact:
    """One thing that is told of a subject: sentences with ``{name}`` and ``{value}``, questions with ``{name}``, and possible values."""

    sentences: tuple[str, ...]
    questions: tuple[str, ...]
    values: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_TOWNS = _words(
    "Bergen Lisbon Turin Gdansk Aarhus Porto Leiden Graz Malmo Split Tartu Cork Basel Nantes Ghent Bilbao Brno Varna"
)
_YEARS = tuple(str(year) for year in range(1871, 1996))
_SURNAMES = _words(
    "Holm Okafor Lindgren Castro Weber Novak Duarte Haddad Kimura Larsen Moreau Petrov Quist Rinaldi Sorensen Tanaka Ullman Vargas Wolff "
    "Yilmaz Zeman Abara Brandt Costa Dahl Ekman Fontaine Greco Hansen Ivanov Jansen Keller Lopes Marek Nilsen Orlov Pauls Reyes"
)
_WOMEN = _words("Mira Ada Clara Ines Johanna Leila Nora Petra Ruth Sofia Tilda Yara Elena Greta Hana Katrin")
_MEN = _words("Tomas Emil Jonas Karim Luca Marco Nils Oskar Pavel Rafael Stefan Viktor Anton Bruno Dario Felix")
_SHIPS = _words(
    "Albatross Meridian Northwind Halcyon Petrel Corsair Dauntless Evening Firefly Gannet Harrier Kestrel Lantern Minerva"
)
_BUILDINGS = _words(
    "Amber Beacon Copper Dovetail Ember Foxglove Granite Hazel Ivory Juniper Larkspur Marble Nettle Orchard"
)

_PERSON = {
    "town": Fact(
        (
            "{name} lives in {value}.",
            "The home of {name} is in {value}.",
            "For many years {name} has lived in {value}.",
        ),
        ("Where does {name} live?", "In which town does {name} live?"),
        _TOWNS,
    ),
    "job": Fact(
        ("{name} works as a {value}.", "By profession {name} is a {value}.", "{name} earns a living as a {value}."),
        ("What does {name} work as?", "What is the profession of {name}?"),
        _words(
            "baker surveyor glazier nurse pilot carpenter chemist dentist farmer judge librarian plumber tailor welder"
        ),
    ),
    "instrument": Fact(
        ("In the evenings {name} plays the {value}.", "{name} has played the {value} since childhood."),
        ("Which instrument does {name} play?", "What does {name} play?"),
        _words("cello flute trumpet piano violin harp oboe guitar clarinet accordion banjo trombone"),
    ),
    "born": Fact(
        ("{name} was born in {value}.", "{name} came into the world in {value}."),
        ("When was {name} born?", "In what year was {name} born?"),
        _YEARS,
    ),
    "pet": Fact(
        ("{name} keeps a {value}.", "At home {name} looks after a {value}."),
        ("Which animal does {name} keep?", "What kind of pet does {name} have?"),
        _words("parrot tortoise rabbit terrier goat hedgehog canary donkey ferret poodle lizard pony"),
    ),
}
_SHIP = {
    "port": Fact(
        ("{name} sails from {value}.", "The home port of {name} is {value}."),
        ("Where does {name} sail from?", "What is the home port of {name}?"),
        _TOWNS,
    ),
    "cargo": Fact(
        ("{name} usually carries {value}.", "The hold of {name} is filled with {value}."),
        ("What does {name} carry?", "What is the cargo of {name}?"),
        _words("timber coal grain wool salt copper coffee tea cement paper rubber sugar"),
    ),
    "launched": Fact(
        ("{name} was launched in {value}.", "The launch of {name} took place in {value}."),
        ("When was {name} launched?", "In what year was {name} launched?"),
        _YEARS,
    ),
}
_BUILDING = {
    "height": Fact(
        ("{name} is {value} high.", "The roof of {name} stands {value} above the street."),
        ("How high is {name}?", "What is the height of {name}?"),
        tuple(f"{metres} metres" for metres in range(18, 96)),
    ),
    "material": Fact(
        ("{name} is built of {value}.", "The walls of {name} are made of {value}."),
        ("What is {name} built of?", "What are the walls of {name} made of?"),
        _words("brick granite limestone concrete sandstone timber slate steel marble glass"),
    ),
    "opened": Fact(
        ("{name} was opened in {value}.", "The doors of {name} first opened in {value}."),
        ("When was {name} opened?", "In what year was {name} opened?"),
        _YEARS,
    ),
}


_SCENES = (
    "The {0} road by the {1} was {2} that {3}.",
    "A {0} wind came over the {1} and it grew {2} before {3}.",
    "Nobody crossed the {0} {1} on that {2} {3}.",
    "Beyond the {1} lay a {0} field, {2} in the light of {3}.",
    "It was a {2} {3}, and the {1} looked {0}.",
)
_SCENE_WORDS = (
    _words("narrow muddy empty crooked silver distant broad silent stony shaded"),
    _words("mill orchard harbour bridge quarry meadow market chapel canal forest"),
    _words("cold wet bright grey warm misty quiet dusty pale calm"),
    _words("morning evening winter dawn noon autumn night spring dusk afternoon"),
)


def _scene(chance: random.Random) -> str:
    """A sentence that answers no question."""
    return chance.choice(_SCENES).format(*(chance.choice(words) for words in _SCENE_WORDS))


def _subject(chance: random.Random, surnames: Sequence[str]) -> tuple[str, str, dict[str, Fact]]:
    kind = chance.choices(("woman", "man", "ship", "building"), (4, 4, 2, 2))[0]
    surname = chance.choice(surnames)
    if kind == "woman":
        return f"{chance.choice(_WOMEN)} {surname}", "she", _PERSON
    if kind == "man":
        return f"{chance.choice(_MEN)} {surname}", "he", _PERSON
    if kind == "ship":
        return f"the {chance.choice(_SHIPS)} of {surname}", "it", _SHIP
    return f"the {chance.choice(_BUILDINGS)} House of {surname}", "it", _BUILDING


def _sentence(template: str, who: str, value: str) -> str:
    text = template.format(name=who, value=value)
    return text[0].upper() + text[1:]


def make_row(
    chance: random.Random, surnames: Sequence[str], portraits: int, scenes: int, number: int
) -> dict[str, Any]:
    """One question about one of ``portraits`` portraits, between which stand ``scenes`` sentences, as a row of SQuAD's flat schema."""
    told: list[str] = []
    before_portrait = [0] * portraits
    for _ in range(scenes):
        before_portrait[chance.randrange(portraits)] += 1
    asked = chance.randrange(portraits)
    names: set[str] = set()
    question, answer, start = "", "", 0
    for place in range(portraits):
        told += [_scene(chance) for _ in range(before_portrait[place])]
        name, pronoun, facts = _subject(chance, surnames)
        while name in names:
            name, pronoun, facts = _subject(chance, surnames)
        names.add(name)
        chosen = chance.sample(sorted(facts), chance.randint(2, 3))
        wanted = chance.choice(chosen)
        for position, key in enumerate(chosen):
            fact = facts[key]
            value = chance.choice(fact.values)
            who = name if position == 0 or chance.random() < 0.4 else pronoun
            template = chance.choice(fact.sentences)
            # "of she" is no English: such sentences name their subject
            if who == pronoun and not template.startswith("{name}") and " of {name}" in template:
                who = name
            sentence = _sentence(template, who, value)
            if place == asked and key == wanted:
                question = chance.choice(fact.questions).format(name=name)
                answer = value
                before = " ".join(told)
                start = len(before) + (1 if before else 0) + sentence.rindex(value)
            told.append(sentence)
    context = " ".join(told)
    assert context[start : start + len(answer)] == answer
    return {
        "id": f"invented-{number}",
        "question": question,
        "context": context,
        "answers": {"text": [answer], "answer_start": [start]},
    }


def make_rows(
    count: int, *, seed: int, shapes: Sequence[tuple[int, int]], held_out: bool = False
) -> list[dict[str, Any]]:
    """``count`` rows whose numbers of portraits and of scenes between them go round ``shapes``; with ``held_out`` names that the others
    never use.

    A portrait has about 25 word pieces, a scene 12. Equal arguments give equal rows.
    """
    chance = random.Random(f"{seed}-{held_out}")
    surnames = _SURNAMES[1::4] if held_out else tuple(name for i, name in enumerate(_SURNAMES) if i % 4 != 1)
    return [make_row(chance, surnames, *shapes[number % len(shapes)], number) for number in range(count)]
