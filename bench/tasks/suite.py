"""A suite that ships with greenllm: five tasks that need no file and no network.

They are made here, by rule, from short lists of words: nobody's test set, so that no model was trained on it. They
say what compression breaks (agreement over a distance, sums, copying, looking up, other languages), not how good a
model is.

* ``suite/grammar``: the verb, reflexive or noun that agrees with its subject, against the one that does not; the idea
  of minimal pairs is BLiMP's (Warstadt et al., 2020, arXiv:1912.00582, section 3).
* ``suite/arithmetic``: sums and differences up to 99, after three that are done.
* ``suite/copying``: a list of words, once more, against three in which two words changed places.
* ``suite/retrieval``: whose number is which, among eight that were told (Ruler's key-value task, Hsieh et al., 2024,
  arXiv:2404.06654, section 3).
* ``suite/languages``: agreement in German, French, Spanish, Italian, Dutch; words that fit, in Chinese.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from random import Random

from greenllm.bench.tasks.items import Item, Task
from greenllm.bench.texts import spread

NAME = "suite"

_NOUNS = [("key", "keys"), ("picture", "pictures"), ("letter", "letters"), ("road", "roads"), ("report", "reports"),
          ("box", "boxes")]  # fmt: skip
_OTHERS = [("the cabinet", "the cabinets"), ("my friend", "my friends"), ("the old house", "the old houses"),
           ("the girl", "the girls")]  # fmt: skip
_VERBS = [("is", "are", "very old."), ("was", "were", "lost last year."), ("has", "have", "to be replaced.")]
_PEOPLE = [("The woman", "herself", "themselves"), ("The boys", "themselves", "himself"),
           ("My father", "himself", "themselves"), ("The teachers", "themselves", "herself")]  # fmt: skip
_DEEDS = ["hurt", "described", "taught", "helped", "introduced"]
_COUNTED = [("These", "houses", "house"), ("This", "letter", "letters"), ("Two", "cats", "cat"),
            ("One", "road", "roads"), ("Many", "trees", "tree"), ("Each", "door", "doors")]  # fmt: skip
_THINGS = [
    "river",
    "lamp",
    "stone",
    "bread",
    "window",
    "horse",
    "cloud",
    "paper",
    "garden",
    "bottle",
    "music",
    "winter",
]
_NAMES = ["Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry"]
_SPOKEN = [  # subjects of one, of many, and the verb for either
    (["Der Hund", "Mein Bruder", "Die Frau"], ["Die Kinder", "Meine Freunde", "Die Frauen"],
     [("ist", "sind", "im Garten."), ("war", "waren", "zu Hause."), ("kommt", "kommen", "morgen an.")]),
    (["Le chien", "Mon frère", "La femme"], ["Les enfants", "Mes amis", "Les femmes"],
     [("est", "sont", "dans le jardin."), ("va", "vont", "à la maison."), ("a", "ont", "faim.")]),
    (["El perro", "Mi hermano", "La mujer"], ["Los niños", "Mis amigos", "Las mujeres"],
     [("está", "están", "en el jardín."), ("va", "van", "a casa."), ("tiene", "tienen", "hambre.")]),
    (["Il cane", "Mio fratello", "La donna"], ["I bambini", "I miei amici", "Le donne"],
     [("è", "sono", "nel giardino."), ("va", "vanno", "a casa."), ("ha", "hanno", "fame.")]),
    (["De hond", "Mijn broer", "De vrouw"], ["De kinderen", "Mijn vrienden", "De vrouwen"],
     [("is", "zijn", "in de tuin."), ("gaat", "gaan", "naar huis."), ("heeft", "hebben", "honger.")]),
]  # fmt: skip
_CHINESE = [
    ("我口渴了，想喝一杯", "水。", "书。"),
    ("他饿了，正在吃一碗", "米饭。", "桌子。"),
    ("她在图书馆里看一本", "书。", "茶。"),
    ("天气很冷，你应该穿一件", "大衣。", "苹果。"),
    ("他坐在一把", "椅子上。", "牛奶上。"),
    ("我们坐飞机去", "北京。", "苹果。"),
    ("医生在医院里给病人", "看病。", "做饭。"),
    ("老师在学校里教学生", "汉语。", "牛奶。"),
]
_SHOWN = "2 + 3 = 5\n9 - 4 = 5\n12 + 5 = 17\n"
_EACH = 100  # items of a task at most


def tasks() -> list[Task]:
    """The five tasks, the same on every machine."""
    made = {"grammar": _grammar(), "arithmetic": _arithmetic(), "copying": _copying(), "retrieval": _retrieval(),
            "languages": _languages()}  # fmt: skip
    kept = {name: spread(list(items), _EACH) for name, items in made.items()}
    return [Task(f"{NAME}/{name}", items, len(items)) for name, items in kept.items()]


def _grammar() -> Iterator[Item]:
    for (noun, nouns), (other, others), (one, many, rest) in product(_NOUNS, _OTHERS, _VERBS):
        # the noun nearest to the verb is of the other number
        yield Item(f"The {noun} of {others}", (f"{one} {rest}", f"{many} {rest}"), 0)
        yield Item(f"The {nouns} of {other}", (f"{one} {rest}", f"{many} {rest}"), 1)
    for (who, right, wrong), deed in product(_PEOPLE, _DEEDS):
        yield Item(f"{who} {deed}", (f"{right}.", f"{wrong}."), 0)
    for (word, right, wrong), rest in product(_COUNTED, ["over there.", "in the picture."]):
        yield Item(word, (f"{right} {rest}", f"{wrong} {rest}"), 0)


def _arithmetic() -> Iterator[Item]:
    draw = Random(0)  # noqa: S311 - no secret
    for i in range(_EACH):
        a, b = draw.randrange(11, 60), draw.randrange(2, 40)
        a, b, sign = (a, b, "+") if i % 2 else (max(a, b), min(a, b), "-")
        right = a + b if sign == "+" else a - b
        wrong = [right + d for d in draw.sample([-10, -2, -1, 1, 2, 10], 3)]
        yield _shuffled(f"{_SHOWN}{a} {sign} {b} =", str(right), [str(w) for w in wrong], draw)


def _copying() -> Iterator[Item]:
    draw = Random(1)  # noqa: S311
    for _ in range(_EACH):
        words = draw.sample(_THINGS, 6)
        swapped = []
        for i in draw.sample(range(len(words) - 1), 3):
            other = [*words]
            other[i], other[i + 1] = words[i + 1], words[i]
            swapped.append(" ".join(other))
        said = " ".join(words)
        yield _shuffled(f"The list is: {said}\nOnce more, the list is:", said, swapped, draw)


def _retrieval() -> Iterator[Item]:
    draw = Random(2)  # noqa: S311
    for i in range(_EACH):
        numbers = draw.sample(range(1000, 9999), len(_NAMES))
        pairs = dict(zip(draw.sample(_NAMES, len(_NAMES)), numbers, strict=True))
        told = "\n".join(f"{name}'s number is {number}." for name, number in pairs.items())
        name = list(pairs)[i % len(pairs)]
        wrong = draw.sample([n for n in numbers if n != pairs[name]], 3)
        yield _shuffled(f"{told}\nOnce more: {name}'s number is", f"{pairs[name]}.", [f"{n}." for n in wrong], draw)


def _languages() -> Iterator[Item]:
    for singular, plural, verbs in _SPOKEN:
        for one, many, rest in verbs:
            forms = (f"{one} {rest}", f"{many} {rest}")
            yield from (Item(subject, forms, 0) for subject in singular)
            yield from (Item(subject, forms, 1) for subject in plural)
    for context, right, wrong in _CHINESE:
        yield Item(context, (right, wrong), 0, gap="")


def _shuffled(context: str, right: str, wrong: list[str], draw: Random) -> Item:
    choices = [right, *wrong]
    draw.shuffle(choices)
    return Item(context, tuple(choices), choices.index(right))
