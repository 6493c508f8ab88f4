"""Problems about counting and probability."""

import math
from fractions import Fraction

from .words import Words, kind, num


@kind
def handshakes(r: Words):
    n = r.int(4, 400)
    who, act = r.choice(
        [
            ('guests', 'shake hands'),
            ('players', 'play a game'),
            ('members', 'exchange one call'),
            ('delegates', 'have a talk'),
            ('robots', 'run one cable'),
            ('dancers', 'dance one dance'),
            ('cities', 'share one direct road'),
        ]
    )
    return (
        r.choice(
            [
                f'Every two of {n} {who} {act} once. How many times does that happen?',
                f'{n} {who} meet, and each pair of them must {act} exactly once. How often is that in all?',
            ]
        ),
        [
            f'Each of the {n} is paired with {n} - 1 = {n - 1} others.',
            f'{n} * {n - 1} = {n * (n - 1)} counts each pair twice.',
            f'{n * (n - 1)} / 2 = {n * (n - 1) // 2}.',
        ],
        n * (n - 1) // 2,
    )


@kind
def outfits(r: Words):
    a, b, c = r.int(2, 14), r.int(2, 12), r.int(2, 9)
    one, two, three = r.choice(
        [
            ('shirts', 'skirts', 'hats'),
            ('starters', 'main courses', 'desserts'),
            ('roads', 'bridges', 'ferries'),
            ('frames', 'saddles', 'bells'),
            ('colors', 'sizes', 'shapes'),
        ]
    )
    return (
        r.choice(
            [
                f'{r.name()} can choose among {a} {one}, {b} {two} and {c} {three}, one of each. How many combinations '
                f'are possible?',
                f'There are {a} {one}, {b} {two} and {c} {three}. In how many ways can one of each be picked?',
            ]
        ),
        [
            f'{one.capitalize()} and {two}: {a} * {b} = {a * b}.',
            f'With the {three}: {a * b} * {c} = {a * b * c}.',
        ],
        a * b * c,
    )


@kind
def arrangements(r: Words):
    n, k = r.int(5, 60), r.int(2, 4)
    factors = [n - i for i in range(k)]
    value = math.prod(factors)
    prize = {2: 'first and second', 3: 'gold, silver and bronze', 4: 'first, second, third and fourth'}[k]
    thing, who = r.thing(), r.name()
    return (
        r.choice(
            [
                f'{n} runners compete. In how many ways can {prize} place be taken?',
                f'{who} has {n} different {thing} and lines up {k} of them on a shelf. How many different rows are '
                f'possible?',
                f'How many codes of {k} different symbols can be made from {n} symbols?',
            ]
        ),
        [
            f'There are {n} choices for the first place, and one fewer for each place after it.',
            f'{" * ".join(map(str, factors))} = {value}.',
        ],
        value,
    )


@kind
def committee(r: Words):
    n, k = r.int(5, 50), r.int(2, 3)
    top, bottom = math.perm(n, k), math.factorial(k)
    group = r.choice(['a club', 'a class', 'an office', 'a choir', 'a council', 'a crew', 'a team'])
    return (
        r.choice(
            [
                f'From {group} of {n} people, a committee of {k} is chosen. How many committees are possible?',
                f'In how many ways can {k} of {n} {r.thing()} be selected, when order does not matter?',
            ]
        ),
        [
            f'In order there are {" * ".join(str(n - i) for i in range(k))} = {top} ways.',
            f'Each choice is counted {bottom} times: {top} / {bottom} = {top // bottom}.',
        ],
        top // bottom,
    )


@kind
def draw_one(r: Words):
    colors = r.sample(['red', 'blue', 'green', 'white', 'black', 'yellow'], 3)
    counts = [r.int(2, 20) for _ in colors]
    total, p = sum(counts), Fraction(counts[0], sum(counts))
    bag = ', '.join(f'{n} {c}' for n, c in zip(counts, colors))
    if r.random() < 0.5:
        return (
            f'{r.choice(["A bag", "An urn", "A box"])} holds {bag} {r.choice(["balls", "marbles", "beads"])}. What is the '
            f'chance of drawing a {colors[0]} one?',
            [
                f'There are {" + ".join(map(str, counts))} = {total} in all.',
                f'{counts[0]} of them are {colors[0]}: {counts[0]}/{total}'
                + (f' = {p}.' if p.denominator != total else '.'),
            ],
            p,
        )
    return (
        f'{r.choice(["A bag", "An urn", "A box"])} holds {bag} {r.choice(["balls", "marbles", "beads"])}. How likely is it '
        f'that one drawn at random is not {colors[0]}?',
        [
            f'There are {" + ".join(map(str, counts))} = {total} in all.',
            f'{total} - {counts[0]} = {total - counts[0]} of them are not {colors[0]}.',
            f'The probability is {total - counts[0]}/{total} = {1 - p}.',
        ],
        1 - p,
    )


@kind
def draw_two(r: Words):
    a, b = r.int(2, 15), r.int(2, 15)
    n, thing = a + b, r.choice(['socks', 'balls', 'cards', 'chips', 'gloves', 'beads'])
    first, second = r.sample(['red', 'blue', 'green', 'white', 'black'], 2)
    p = Fraction(a * (a - 1), n * (n - 1))
    return (
        r.choice(
            [
                f'A drawer has {a} {first} and {b} {second} {thing}. Two are taken without looking. What is the '
                f'probability that both are {first}?',
                f'Two of {a} {first} and {b} {second} {thing} are drawn one after the other, without putting back. How '
                f'likely are two {first} ones?',
            ]
        ),
        [
            f'There are {a} + {b} = {n} {thing}. The first is {first} with probability {a}/{n}.',
            f'Then {a - 1} of {n - 1} are {first}: probability {a - 1}/{n - 1}.',
            f'({a}/{n}) * ({a - 1}/{n - 1}) = {p}.',
        ],
        p,
    )


@kind
def dice(r: Words):
    sides, other = r.choice([4, 6, 8, 10, 12, 20]), r.choice([4, 6, 8, 10, 12, 20])
    total = r.int(3, sides + other - 1)
    ways = sum(1 for i in range(1, sides + 1) if 1 <= total - i <= other)
    p, who = Fraction(ways, sides * other), r.name()
    return (
        r.choice(
            [
                f'{who} throws a die with {sides} sides and one with {other} sides. What is the probability that the sum '
                f'is {total}?',
                f'What is the chance that {who} gets a total of {total} with two dice, one of {sides} and one of {other} '
                f'faces?',
            ]
        ),
        [
            f'There are {sides} * {other} = {sides * other} equally likely results.',
            f'{ways} of them {"has" if ways == 1 else "have"} the sum {total}.',
            f'The probability is {ways}/{sides * other} = {p}.',
        ],
        p,
    )


@kind
def at_least_one(r: Words):
    p, n = r.proper(8), r.int(2, 3)
    miss = 1 - p
    none = miss**n
    who, act = (
        r.name(),
        r.choice(
            [
                'hits the target',
                'wins a round',
                'finds a seat',
                'gets an answer',
                'catches the early bus',
                'scores',
            ]
        ),
    )
    return (
        r.choice(
            [
                f'{who} {act} with probability {p} each time. How likely is it to happen at least once in {n} tries?',
                f'The chance that {who} {act} is {p}. What is the probability of at least one success in {n} independent '
                f'tries?',
            ]
        ),
        [
            f'One try fails with probability 1 - {p} = {miss}.',
            f'All {n} fail with probability ({miss})^{n} = {none}.',
            f'1 - {none} = {1 - none}.',
        ],
        1 - none,
    )


@kind
def expected_value(r: Words):
    n = r.choice([4, 5, 8, 10, 20])
    win, prize, cost = r.int(1, n // 2), r.int(2, 30), r.int(1, 5)
    mean = Fraction(win * prize, n)
    return (
        r.choice(
            [
                f'A wheel has {n} equal fields, {win} of which {"pays" if win == 1 else "pay"} ${prize}. A spin costs '
                f'${cost}. What does a player win on average per spin?',
                f'{r.name()} sells {n} raffle tickets at ${cost} each; {win} of them {"wins" if win == 1 else "win"} '
                f'${prize}. What is the expected gain of a ticket?',
            ]
        ),
        [
            f'The mean prize is {win} * {prize} / {n} = {num(mean)}.',
            f'After the cost: {num(mean)} - {cost} = {num(mean - cost)}.',
        ],
        f'{num(mean - cost)} dollars',
    )
