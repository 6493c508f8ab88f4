"""Pairs of sentences that differ in agreement alone, one of them wrong, in the manner of BLiMP (Warstadt et
al. 2020), in words that small models know.

Each pair has a twin in which the other number is right: "The dog sleeps / sleep" and "The dogs sleep /
sleeps". So a model that goes by words alone, whatever it prefers, is right in exactly half of them.
"""

import random
from collections.abc import Callable
from typing import Any

PAIRS = 50  # with their twins, of each kind
SEED = 0
Forms = tuple[str, str]  # singular and plural

PEOPLE: list[Forms] = [(n, f'{n}s') for n in 'boy girl king queen friend teacher doctor farmer'.split()]
ANIMALS: list[Forms] = [(n, f'{n}s') for n in 'dog cat bird bear rabbit duck frog cow pig horse lion'.split()]
THINGS: list[Forms] = [(n, f'{n}s') for n in 'tree house car flower hill river rock table book ball'.split()]
VERBS: list[Forms] = [(f'{v}s', v) for v in 'run play sing smile jump sleep walk laugh eat swim wait'.split()]
PLACES = ['in the park', 'near the house', 'in the garden', 'every day', 'all day', 'at night', 'in the sun']
STATES = ['happy', 'sad', 'hungry', 'tired', 'very big', 'very small', 'kind', 'at home', 'in the garden']
PAST = ['saw', 'liked', 'found', 'helped', 'wanted', 'called']
ACTIONS = ['looked at', 'hurt', 'talked to', 'helped', 'saw', 'washed']
MEN, WOMEN = ['boy', 'king', 'man'], ['girl', 'queen', 'woman']
Made = Callable[[random.Random], tuple[Forms, Forms]]


def _pair(frames: Forms, forms: Forms) -> tuple[Forms, Forms]:
    """The sentence with a singular subject, right and wrong; the same of the plural. A frame has one gap."""
    (one, many), (single, plural) = frames, forms
    return (one.format(single), one.format(plural)), (many.format(plural), many.format(single))


def _verb(rng: random.Random) -> tuple[Forms, Forms]:
    one, many = rng.choice(PEOPLE + ANIMALS)
    place = rng.choice(PLACES)
    return _pair((f'The {one} {{}} {place}.', f'The {many} {{}} {place}.'), rng.choice(VERBS))


def _be(rng: random.Random) -> tuple[Forms, Forms]:
    one, many = rng.choice(PEOPLE + ANIMALS)
    state = rng.choice(STATES)
    forms = rng.choice([('is', 'are'), ('was', 'were'), ('has been', 'have been')])
    return _pair((f'The {one} {{}} {state}.', f'The {many} {{}} {state}.'), forms)


def _across_a_phrase(rng: random.Random) -> tuple[Forms, Forms]:
    """The noun before the verb has the other number."""
    (one, many), thing = rng.choice(PEOPLE + ANIMALS), rng.choice(THINGS)
    near, place = rng.choice(['near', 'behind', 'next to']), rng.choice(['every day', 'all day', 'at night'])
    frames = (
        f'The {one} {near} the {thing[1]} {{}} {place}.',
        f'The {many} {near} the {thing[0]} {{}} {place}.',
    )
    return _pair(frames, rng.choice(VERBS))


def _across_a_clause(rng: random.Random) -> tuple[Forms, Forms]:
    (one, many), other = rng.sample(PEOPLE + ANIMALS, 2)
    past, place = rng.choice(PAST), rng.choice(PLACES)
    frames = (
        f'The {one} that the {other[1]} {past} {{}} {place}.',
        f'The {many} that the {other[0]} {past} {{}} {place}.',
    )
    return _pair(frames, rng.choice(VERBS))


def _determiner(rng: random.Random) -> tuple[Forms, Forms]:
    name, past = rng.choice(['Tom', 'Lily', 'Mom', 'Dad', 'Ben', 'She', 'He']), rng.choice(PAST)
    near, far = rng.choice([('this', 'these'), ('that', 'those')])
    place = rng.choice(PLACES)
    frames = f'{name} {past} {near} {{}} {place}.', f'{name} {past} {far} {{}} {place}.'
    return _pair(frames, rng.choice(ANIMALS + THINGS + PEOPLE))


def _reflexive(rng: random.Random) -> tuple[Forms, Forms]:
    plural = {'man': 'men', 'woman': 'women'}
    people, own = rng.choice([(MEN, 'himself'), (WOMEN, 'herself')])
    one = rng.choice(people)
    many, action, place = plural.get(one, f'{one}s'), rng.choice(ACTIONS), rng.choice(PLACES)
    frames = f'The {one} {action} {{}} {place}.', f'The {many} {action} {{}} {place}.'
    return _pair(frames, (own, 'themselves'))


KINDS: dict[str, Made] = {
    'verb': _verb,
    'to be': _be,
    'across a phrase': _across_a_phrase,
    'across a clause': _across_a_clause,
    'determiner': _determiner,
    'reflexive': _reflexive,
}


def agreement_items(seed: int = SEED) -> list[dict[str, Any]]:
    """PAIRS pairs with their twins of each kind, all different; the right sentence is first in one of a pair
    and its twin, second in the other, so that no order helps."""
    items = []
    for kind, make in KINDS.items():
        rng, made = random.Random(f'{seed} {kind}'), {}
        while len(made) < PAIRS:
            pair = make(rng)
            made[pair] = None
        for number, ((right, wrong), (twin_right, twin_wrong)) in enumerate(made):
            about = {'kind': kind, 'group': f'{kind} {number}'}
            items.append({'choices': [right, wrong], 'answer': 0} | about)
            items.append({'choices': [twin_wrong, twin_right], 'answer': 1} | about)
    return items
