"""Names, things and number formats that the problems are made of, and the list of their kinds."""

import random
from collections.abc import Callable
from fractions import Fraction

NAMES = (
    'Ada Aisha Alan Alma Amir Anna Arjun Bela Ben Bruno Carla Carlos Chen Clara Dana Daniel David Diego Elena '
    'Eli Emma Erik Esther Fatima Felix Fiona George Grace Greta Hana Hugo Ida Igor Ines Ivan Jack Jana Jonas '
    'Julia Kai Karim Kofi Lara Leila Leo Lena Liam Lin Lucy Luis Mara Marco Maria Max Maya Mei Mila Mira Nadia '
    'Naomi Nico Nina Noah Nora Oleg Olga Omar Oscar Pablo Paula Petra Priya Rafael Ravi Rita Rosa Ruth Sam '
    'Sara Selma Simon Sofia Sven Tara Theo Tom Uma Vera Victor Wanda Yara Yuki Zoe'
).split()
THINGS = (
    'apples books pencils stamps marbles shells buttons postcards tickets oranges bottles candles cookies '
    'coins cups eggs envelopes flowers keys lemons magnets notebooks paintings peaches plates puzzles ribbons '
    'seeds stickers stones tiles toys tulips umbrellas walnuts badges beads bricks carrots chairs'
).split()
GOODS = (
    'lamp jacket bicycle backpack tent kettle radio blanket guitar camera desk sweater clock printer '
    'skateboard telescope watch helmet chair suitcase keyboard vase fan mixer drill'
).split()
FOODS = 'rice flour sugar lentils oats coffee tea nuts raisins beans almonds cashews'.split()
PLACES = (
    'a bakery,a farm,a school,a library,a museum,a hotel,a shop,a factory,a clinic,a garden center,a theater,a market,'
    'a workshop,a restaurant,a harbor,a warehouse'
).split(',')
VEHICLES = 'car,train,bus,truck,van,motorcycle,tram'.split(',')
DAYS = 'Monday Tuesday Wednesday Thursday Friday Saturday Sunday'.split()


class Words(random.Random):
    """A random generator that also draws names and things."""

    def name(self) -> str:
        return self.choice(NAMES)

    def names(self, count: int) -> list[str]:
        return self.sample(NAMES, count)

    def thing(self) -> str:
        return self.choice(THINGS)

    def things(self, count: int) -> list[str]:
        return self.sample(THINGS, count)

    def proper(self, limit: int) -> Fraction:
        """A fraction between 0 and 1 with a denominator up to `limit`."""
        bottom = self.int(3, limit)
        return Fraction(self.int(1, bottom - 1), bottom)

    def int(self, low: int, high: int, step: int = 1) -> int:
        """A number from low to high, both included."""
        return self.randrange(low, high + 1, step)


Kind = Callable[[Words], tuple[str, list[str], object]]  # -> problem, steps of the solution, answer
KINDS: list[Kind] = []


def kind(make: Kind) -> Kind:
    KINDS.append(make)
    return make


def num(value) -> str:
    """The exact value as a whole number, a decimal of up to four places, or a fraction."""
    value = Fraction(value)
    if value.denominator == 1:
        return str(value.numerator)
    scaled = value * 10_000
    if scaled.denominator == 1:
        return (
            f'{"-" if value < 0 else ""}{abs(int(scaled)) // 10_000}.{abs(int(scaled)) % 10_000:04d}'.rstrip(
                '0'
            )
        )
    return f'{value.numerator}/{value.denominator}'


def usd(cents: int) -> str:
    """An amount of money, 1250 -> '$12.50'."""
    return f'${cents // 100}' if cents % 100 == 0 else f'${cents // 100}.{cents % 100:02d}'


def count(n: int, unit: str) -> str:
    """'1 hour', '2 hours'."""
    return f'{n} {unit}' if n == 1 else f'{n} {unit}s'


def listed(values) -> str:
    """'1, 2 and 3'."""
    values = [str(v) for v in values]
    return f'{", ".join(values[:-1])} and {values[-1]}'


def clock(minutes: int) -> str:
    """Minutes after midnight as '7:05 am'."""
    hour, minute = divmod(minutes % 1440, 60)
    return f'{(hour - 1) % 12 + 1}:{minute:02d} {"am" if hour < 12 else "pm"}'
