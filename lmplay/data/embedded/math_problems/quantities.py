"""Problems about measured quantities: speed, work, flow, units, time, mixtures, ratios."""

import math
from fractions import Fraction

from .words import DAYS, FOODS, PLACES, VEHICLES, Words, clock, count, kind, num


@kind
def distance(r: Words):
    speed, hours = r.int(6, 40) * 5, r.int(2, 11)
    who, vehicle = r.name(), r.choice(VEHICLES)
    miles = speed * hours
    form = r.int(1, 3)
    if form == 1:
        return (
            r.choice(
                [
                    f'A {vehicle} travels at {speed} km per hour for {hours} hours. How far does it get?',
                    f'{who} drives for {hours} hours at {speed} km/h. What distance is that?',
                ]
            ),
            [f'Distance is speed times time: {speed} * {hours} = {miles} km.'],
            f'{miles} km',
        )
    if form == 2:
        return (
            r.choice(
                [
                    f'A {vehicle} covers {miles} km at a steady {speed} km/h. How long does it take?',
                    f'How many hours does {who} need for {miles} km at {speed} km per hour?',
                ]
            ),
            [f'Time is distance over speed: {miles} / {speed} = {hours}.'],
            count(hours, 'hour'),
        )
    return (
        r.choice(
            [
                f'A {vehicle} needs {hours} hours for {miles} km. What is its average speed?',
                f'{who} travels {miles} km in {hours} hours. How fast is that on average?',
            ]
        ),
        [f'Speed is distance over time: {miles} / {hours} = {speed}.'],
        f'{speed} km/h',
    )


@kind
def two_legs(r: Words):
    s1, t1, s2, t2 = r.int(4, 24) * 5, r.int(1, 6), r.int(4, 24) * 5, r.int(1, 6)
    d1, d2 = s1 * t1, s2 * t2
    mean = Fraction(d1 + d2, t1 + t2)
    who = r.name()
    return (
        r.choice(
            [
                f'{who} rides {count(t1, "hour")} at {s1} km/h and then {count(t2, "hour")} at {s2} km/h. What is the '
                f'average speed of the whole trip?',
                f'A {r.choice(VEHICLES)} goes {s1} km/h for {count(t1, "hour")}, then {s2} km/h for {count(t2, "hour")}. '
                f'Find its average speed.',
            ]
        ),
        [
            f'The first part is {s1} * {t1} = {d1} km, the second {s2} * {t2} = {d2} km.',
            f'In all {d1} + {d2} = {d1 + d2} km in {t1} + {t2} = {t1 + t2} hours.',
            f'{d1 + d2} / {t1 + t2} = {num(mean)}.',
        ],
        f'{num(mean)} km/h',
    )


@kind
def approaching(r: Words):
    a, b, t = r.int(6, 30) * 5, r.int(6, 30) * 5, r.int(2, 8)
    d = (a + b) * t
    one, two = r.names(2)
    return (
        r.choice(
            [
                f'{one} and {two} start {d} km apart and drive toward each other at {a} and {b} km/h. After how many '
                f'hours do they meet?',
                f'Two {r.choice(VEHICLES)}s that are {d} km apart approach each other at {a} km/h and {b} km/h. When do '
                f'they meet?',
            ]
        ),
        [f'The gap closes at {a} + {b} = {a + b} km per hour.', f'{d} / {a + b} = {t}.'],
        count(t, 'hour'),
    )


@kind
def catching_up(r: Words):
    slow, faster, t = r.int(4, 60), r.int(2, 20), r.int(2, 9)
    head = faster * t
    fast = slow + faster
    one, two = r.names(2)
    return (
        r.choice(
            [
                f'{one} is {head} km ahead of {two}. {one} moves at {slow} km/h, {two} at {fast} km/h. After how long '
                f'does {two} catch up?',
                f'A boat at {fast} km/h follows one at {slow} km/h that has a lead of {head} km. How many hours does it '
                f'take to draw level?',
            ]
        ),
        [f'The lead shrinks by {fast} - {slow} = {faster} km per hour.', f'{head} / {faster} = {t}.'],
        count(t, 'hour'),
    )


@kind
def river(r: Words):
    boat, flow, t = r.int(10, 60), r.int(1, 9), r.int(2, 8)
    down, up = boat + flow, boat - flow
    if r.random() < 0.5:
        return (
            r.choice(
                [
                    f'A boat makes {boat} km/h in still water. The river flows at {flow} km/h. How much farther does it '
                    f'get in {t} hours downstream than in {t} hours upstream?',
                    f'{r.name()} rows a boat that does {boat} km/h on a lake. In a current of {flow} km/h, how do {t} '
                    f'hours with the current compare with {t} hours against it?',
                ]
            ),
            [
                f'Downstream: ({boat} + {flow}) * {t} = {down * t} km.',
                f'Upstream: ({boat} - {flow}) * {t} = {up * t} km.',
                f'{down * t} - {up * t} = {(down - up) * t} km.',
            ],
            f'{(down - up) * t} km',
        )
    return (
        r.choice(
            [
                f'A ship goes {down} km/h with the current and {up} km/h against it. How fast is the current?',
                f'With the stream a canoe covers {down} km each hour, against it {up} km. Find the speed of the stream.',
            ]
        ),
        [
            f'The two speeds differ by twice the current: {down} - {up} = {2 * flow}.',
            f'{2 * flow} / 2 = {flow}.',
        ],
        f'{flow} km/h',
    )


@kind
def working_together(r: Words):
    a, b = r.int(3, 20), r.int(3, 20)
    rate = Fraction(1, a) + Fraction(1, b)
    one, two = r.names(2)
    job = r.choice(
        [
            'paint a fence',
            'clean a hall',
            'type a report',
            'mow a meadow',
            'unload a truck',
            'sort the mail',
            'plant a hedge',
        ]
    )
    return (
        r.choice(
            [
                f'{one} can {job} in {a} hours, {two} in {b} hours. How many hours do they need together?',
                f'Alone, {one} needs {a} hours to {job} and {two} needs {b}. How long does it take both?',
            ]
        ),
        [f'In one hour they do 1/{a} + 1/{b} = {rate} of the work.', f'1 / ({rate}) = {1 / rate}.'],
        f'{1 / rate} hours',
    )


@kind
def tank(r: Words):
    fill, drain, t = r.int(8, 60), r.int(2, 7), r.int(5, 40)
    net = fill - drain
    start = r.int(1, 20) * 10
    full = start + net * t
    return (
        r.choice(
            [
                f'A tank holds {start} liters. Each minute {fill} liters flow in and {drain} leak out. After how many '
                f'minutes does it hold {full} liters?',
                f'Water runs into a basin at {fill} liters a minute and out at {drain}. There are {start} liters in it '
                f'now. How long until there are {full}?',
            ]
        ),
        [
            f'It gains {fill} - {drain} = {net} liters a minute.',
            f'It needs {full} - {start} = {full - start} liters more.',
            f'{full - start} / {net} = {t}.',
        ],
        count(t, 'minute'),
    )


@kind
def machines(r: Words):
    m, t, per = r.int(2, 12), r.int(2, 9), r.int(2, 15)
    made = m * t * per
    m2, t2 = r.int(2, 20), r.int(2, 12)
    what = r.choice(['screws', 'toys', 'bottles', 'lenses', 'chips', 'envelopes', 'pipes'])
    return (
        r.choice(
            [
                f'{m} machines make {made} {what} in {t} hours. How many {what} do {m2} machines make in {t2} hours?',
                f'If {m} machines turn out {made} {what} within {t} hours, what is the output of {m2} such machines in '
                f'{t2} hours?',
            ]
        ),
        [
            f'One machine makes {made} / {m} = {made // m} in {t} hours.',
            f'That is {made // m} / {t} = {per} an hour.',
            f'{m2} * {t2} * {per} = {m2 * t2 * per}.',
        ],
        m2 * t2 * per,
    )


@kind
def inverse_proportion(r: Words):
    workers, days = r.int(2, 20), r.int(2, 20)
    total = workers * days
    fewer = r.choice([d for d in range(2, total + 1) if total % d == 0 and d != workers])
    job = r.choice(
        ['build a wall', 'lay a road', 'pick an orchard', 'copy an archive', 'dig a canal', 'harvest a field']
    )
    return (
        r.choice(
            [
                f'{workers} workers {job} in {count(days, "day")}. How many days does it take if there are {fewer}?',
                f'It takes {workers} people {count(days, "day")} to {job}. How long do {fewer} need at the same pace?',
            ]
        ),
        [
            f'The whole job is {workers} * {days} = {total} days of work for one person.',
            f'{total} / {fewer} = {total // fewer}.',
        ],
        count(total // fewer, 'day'),
    )


@kind
def reading(r: Words):
    per, days, rest = r.int(8, 60), r.int(3, 20), r.int(20, 300)
    pages = per * days + rest
    who = r.name()
    return (
        r.choice(
            [
                f'{who} reads {per} pages a day of a book with {pages} pages. How many pages are left after {days} days?',
                f'A book has {pages} pages. {who} reads {per} of them every day for {days} days. How many remain?',
            ]
        ),
        [f'Read so far: {per} * {days} = {per * days} pages.', f'{pages} - {per * days} = {rest}.'],
        count(rest, 'page'),
    )


@kind
def fuel(r: Words):
    liters, km, price = r.int(4, 15), r.int(2, 40) * 50, r.int(2, 9) * 25
    used = Fraction(liters * km, 100)
    cost = used * price / 100
    return (
        r.choice(
            [
                f'A {r.choice(VEHICLES)} burns {liters} liters per 100 km. A liter costs ${num(Fraction(price, 100))}. '
                f'What does the fuel for {km} km cost?',
                f'{r.name()} drives {km} km. The car needs {liters} liters for every 100 km, at '
                f'${num(Fraction(price, 100))} a liter. How much is the fuel?',
            ]
        ),
        [
            f'{km} / 100 * {liters} = {num(used)} liters.',
            f'{num(used)} * {num(Fraction(price, 100))} = {num(cost)}.',
        ],
        f'${num(cost)}',
    )


@kind
def convert(r: Words):
    big, small, factor = r.choice(
        [
            ('kilometers', 'meters', 1000),
            ('meters', 'centimeters', 100),
            ('kilograms', 'grams', 1000),
            ('liters', 'milliliters', 1000),
            ('hours', 'minutes', 60),
            ('days', 'hours', 24),
            ('feet', 'inches', 12),
            ('pounds', 'ounces', 16),
            ('yards', 'feet', 3),
            ('weeks', 'days', 7),
            ('gallons', 'quarts', 4),
            ('dozens', 'pieces', 12),
            ('minutes', 'seconds', 60),
        ]
    )
    whole, rest = r.int(2, 60), r.int(1, factor - 1)
    total = whole * factor + rest
    if r.random() < 0.5:
        return (
            r.choice(
                [
                    f'How many {small} are {whole} {big} and {rest} {small}?',
                    f'Express {whole} {big} {rest} {small} in {small} only.',
                ]
            ),
            [
                f'{whole} {big} are {whole} * {factor} = {whole * factor} {small}.',
                f'{whole * factor} + {rest} = {total}.',
            ],
            f'{total} {small}',
        )
    return (
        r.choice(
            [
                f'Write {total} {small} as {big} and {small}.',
                f'How many whole {big} are in {total} {small}, and how many {small} remain?',
            ]
        ),
        [
            f'{whole} * {factor} = {whole * factor}, and one more {factor} would be too much.',
            f'{total} - {whole * factor} = {rest}.',
        ],
        f'{whole} {big} and {rest} {small}',
    )


@kind
def speed_units(r: Words):
    ms = Fraction(r.int(4, 500), 4)
    kmh, meters, ms = num(ms * 36 / 10), num(ms * 3600), num(ms)
    if r.random() < 0.5:
        return (
            r.choice(
                [
                    f'A {r.choice(VEHICLES)} moves at {ms} meters per second. What is that in km per hour?',
                    f'Convert {ms} m/s to km/h.',
                ]
            ),
            [f'In an hour it covers {ms} * 3600 = {meters} meters.', f'{meters} / 1000 = {kmh}.'],
            f'{kmh} km/h',
        )
    return (
        r.choice(
            [
                f'Convert {kmh} km/h to meters per second.',
                f'{r.name()} cycles at {kmh} km per hour. How many meters is that each second?',
            ]
        ),
        [f'{kmh} * 1000 = {meters} meters in 3600 seconds.', f'{meters} / 3600 = {ms}.'],
        f'{ms} m/s',
    )


@kind
def temperature(r: Words):
    c = r.int(-60, 400)
    f = Fraction(c * 9, 5) + 32
    if r.random() < 0.5:
        return (
            r.choice(
                [
                    f'Convert {c} degrees Celsius to Fahrenheit.',
                    f'A thermometer shows {c} C. What is that in degrees Fahrenheit?',
                ]
            ),
            [f'{c} * 9 / 5 = {num(Fraction(c * 9, 5))}.', f'{num(Fraction(c * 9, 5))} + 32 = {num(f)}.'],
            f'{num(f)} F',
        )
    return (
        r.choice(
            [
                f'Convert {num(f)} degrees Fahrenheit to Celsius.',
                f'The oven is set to {num(f)} F. How many degrees Celsius are that?',
            ]
        ),
        [f'{num(f)} - 32 = {num(f - 32)}.', f'{num(f - 32)} * 5 / 9 = {c}.'],
        f'{c} C',
    )


@kind
def map_scale(r: Words):
    scale, cm = r.choice([10, 20, 25, 50, 100, 200, 250]) * 1000, Fraction(r.int(3, 200), 2)
    km = cm * scale / 100_000
    return (
        r.choice(
            [
                f'On a map of scale 1:{scale}, two towns are {num(cm)} cm apart. What is the real distance in km?',
                f'A hike measures {num(cm)} cm on a 1:{scale} map. How many kilometers is it?',
            ]
        ),
        [
            f'{num(cm)} * {scale} = {num(cm * scale)} cm in nature.',
            f'{num(cm * scale)} / 100000 = {num(km)} km.',
        ],
        f'{num(km)} km',
    )


@kind
def end_time(r: Words):
    start, length = r.int(6 * 12, 20 * 12) * 5, r.int(5, 60) * 5
    hours, minutes = divmod(length, 60)
    what = r.choice(['A film', 'A concert', 'A flight', 'A lesson', 'A train ride', 'A match', 'A meeting'])
    if r.random() < 0.5:
        return (
            r.choice(
                [
                    f'{what} starts at {clock(start)} and lasts {length} minutes. When does it end?',
                    f'{what} of {length} minutes begins at {clock(start)}. At what time is it over?',
                ]
            ),
            [
                f'{length} = {hours} * 60 + {minutes}, so it lasts {count(hours, "hour")} and {count(minutes, "minute")}.',
                f'{count(hours, "hour")} after {clock(start)} it is {clock(start + 60 * hours)}, and {minutes} minutes later '
                f'{clock(start + length)}.',
            ],
            clock(start + length),
        )
    return (
        r.choice(
            [
                f'{what} begins at {clock(start)} and ends at {clock(start + length)}. How many minutes does it last?',
                f'How long is it from {clock(start)} to {clock(start + length)}, in minutes?',
            ]
        ),
        [
            f'From {clock(start)} to {clock(start + 60 * hours)} there are {count(hours, "hour")}, {hours} * 60 = {60 * hours} '
            f'minutes.',
            f'{minutes} more minutes make {60 * hours} + {minutes} = {length}.',
        ],
        count(length, 'minute'),
    )


@kind
def weekday(r: Words):
    today, n = r.int(0, 6), r.int(10, 900)
    left = n % 7
    who = r.name()
    return (
        r.choice(
            [
                f'Today is {DAYS[today]}. Which day of the week is it in {n} days?',
                f'{who} writes a letter on a {DAYS[today]} and gets the answer {n} days later. On which weekday is that?',
            ]
        ),
        [
            f'{n} = {n // 7} * 7 + {left}.',
            f'Whole weeks change nothing, so count {count(left, "day")} on from {DAYS[today]}.',
        ],
        DAYS[(today + left) % 7],
    )


@kind
def clock_gain(r: Words):
    seconds, days = r.int(2, 50), r.int(4, 60)
    total = seconds * days
    how = r.choice(['gains', 'loses'])
    return (
        r.choice(
            [
                f'A clock {how} {seconds} seconds a day. How many minutes and seconds is it off after {days} days?',
                f'{r.name()} owns a watch that {how} {seconds} seconds every day. What is its error after {days} days?',
            ]
        ),
        [f'{seconds} * {days} = {total} seconds.', f'{total} = {total // 60} * 60 + {total % 60}.'],
        f'{count(total // 60, "minute")} and {count(total % 60, "second")}',
    )


@kind
def mix_solutions(r: Words):
    a, b, p, q = r.int(1, 12), r.int(1, 12), r.int(1, 12) * 5, r.int(1, 16) * 5
    salt = Fraction(a * p + b * q, 100)
    share = salt / (a + b) * 100
    stuff = r.choice(['salt', 'acid', 'sugar', 'alcohol', 'juice'])
    return (
        r.choice(
            [
                f'{count(a, "liter")} of a {p}% {stuff} solution {"is" if a == 1 else "are"} mixed with '
                f'{count(b, "liter")} of a {q}% one. What is the concentration of the mixture?',
                f'{r.name()} pours {count(b, "liter")} of liquid with {q}% {stuff} into {count(a, "liter")} with {p}%. '
                f'What percentage of the result is {stuff}?',
            ]
        ),
        [
            f'There are {a} * {num(Fraction(p, 100))} + {b} * {num(Fraction(q, 100))} = {num(salt)} liters of {stuff}.',
            f'The mixture has {a} + {b} = {count(a + b, "liter")}.',
            f'{num(salt)} / {a + b} * 100 = {num(share)}.',
        ],
        f'{num(share)}%',
    )


@kind
def dilute(r: Words):
    q, liters, factor = r.choice([2, 3, 4, 5, 6, 8]), r.int(2, 40), r.choice([2, 3, 4, 5])
    p = q * factor * 2
    stuff, who = r.choice(['salt', 'acid', 'cleaner', 'fertilizer', 'syrup']), r.name()
    pure, total = Fraction(liters * p, 100), liters * factor
    return (
        r.choice(
            [
                f'How much water must be added to {liters} liters of a {p}% {stuff} solution to make it a {2 * q}% one?',
                f'{who} wants to thin {liters} liters with {p}% {stuff} down to {2 * q}%. How many liters of water does '
                f'that take?',
            ]
        ),
        [
            f'The {stuff} in it: {liters} * {num(Fraction(p, 100))} = {num(pure)} liters.',
            f'At {2 * q}% the total must be {num(pure)} / {num(Fraction(2 * q, 100))} = {total} liters.',
            f'{total} - {liters} = {total - liters}.',
        ],
        f'{total - liters} liters',
    )


@kind
def blend(r: Words):
    a, b = r.int(2, 20), r.int(2, 20)
    pa, pb = r.int(2, 24), r.int(2, 24)
    one, two = r.sample(FOODS, 2)
    price = Fraction(a * pa + b * pb, a + b)
    return (
        r.choice(
            [
                f'{a} kg of {one} at ${pa} a kg and {b} kg of {two} at ${pb} a kg are mixed. What is a kg of the mixture '
                f'worth?',
                f'{r.name()} blends {a} kg of {one} (${pa} per kg) with {b} kg of {two} (${pb} per kg). Find the price '
                f'per kg of the blend.',
            ]
        ),
        [
            f'{a} * {pa} = {a * pa} and {b} * {pb} = {b * pb} dollars.',
            f'In all {a * pa} + {b * pb} = {a * pa + b * pb} dollars for {a} + {b} = {a + b} kg.',
            f'{a * pa + b * pb} / {a + b} = {num(price)}.',
        ],
        f'${num(price)}',
    )


@kind
def recipe(r: Words):
    for_, grams, people = r.int(2, 8), r.int(2, 30) * 10, r.int(3, 30)
    total = Fraction(grams * people, for_)
    food, one = r.choice(FOODS), num(Fraction(grams, for_))
    return (
        r.choice(
            [
                f'A recipe for {for_} people takes {grams} g of {food}. How much is needed for {people} people?',
                f'{r.name()} cooks for {people}. The recipe says {grams} g of {food} for {for_}. How many grams are '
                f'right?',
            ]
        ),
        [f'{grams} / {for_} = {one} g for one person.', f'{one} * {people} = {num(total)}.'],
        f'{num(total)} g',
    )


@kind
def share_ratio(r: Words):
    a, b, c = r.int(1, 9), r.int(1, 9), r.int(1, 9)
    g = math.gcd(a, b, c)
    a, b, c = a // g, b // g, c // g
    unit = r.int(4, 60)
    total = (a + b + c) * unit
    one, two, three = r.names(3)
    return (
        r.choice(
            [
                f'{one}, {two} and {three} share ${total} in the ratio {a}:{b}:{c}. How much does each get?',
                f'A prize of ${total} goes to {one}, {two} and {three} in parts of {a} to {b} to {c}. What are the '
                f'shares?',
            ]
        ),
        [
            f'There are {a} + {b} + {c} = {a + b + c} parts of {total} / {a + b + c} = {unit}.',
            f'{a} * {unit} = {a * unit}, {b} * {unit} = {b * unit}, {c} * {unit} = {c * unit}.',
        ],
        f'{one} ${a * unit}, {two} ${b * unit}, {three} ${c * unit}',
    )


@kind
def fence_posts(r: Words):
    gap, n = r.int(2, 25), r.int(5, 80)
    length = gap * n
    what = r.choice(['posts', 'lamps', 'trees', 'flags', 'benches'])
    if r.random() < 0.5:
        return (
            r.choice(
                [
                    f'{what.capitalize()} stand every {gap} m along a straight road of {length} m, at both ends too. How '
                    f'many are there?',
                    f'How many {what} does a straight {length} m path need with one every {gap} m, '
                    f'including both ends?',
                ]
            ),
            [f'There are {length} / {gap} = {n} gaps.', f'One more than gaps: {n} + 1 = {n + 1}.'],
            n + 1,
        )
    return (
        r.choice(
            [
                f'{n} {what} are spaced evenly around a round lake with a shore of {length} m. How far apart are they?',
                f'Around a track of {length} m there are {n} {what} at equal distances. What is the distance between '
                f'neighbors?',
            ]
        ),
        [f'On a closed line there are as many gaps as {what}: {n}.', f'{length} / {n} = {gap} m.'],
        f'{gap} m',
    )


@kind
def tiling(r: Words):
    tile = r.choice([10, 15, 20, 25, 30, 40, 50])
    a, b = r.int(4, 40), r.int(4, 40)
    where = r.choice(PLACES)
    return (
        r.choice(
            [
                f'The floor of {where} is {a * tile} cm by {b * tile} cm. How many square tiles of {tile} cm cover it?',
                f'{r.name()} lays square tiles with sides of {tile} cm on a floor of {a * tile} by {b * tile} cm. How '
                f'many are needed?',
            ]
        ),
        [
            f'{a * tile} / {tile} = {a} tiles fit along one side and {b * tile} / {tile} = {b} along the other.',
            f'{a} * {b} = {a * b}.',
        ],
        count(a * b, 'tile'),
    )
