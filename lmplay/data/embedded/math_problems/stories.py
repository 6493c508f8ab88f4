"""Problems about people: ages, two unknowns, averages, everyday sums."""

from fractions import Fraction

from .words import PLACES, Words, count, kind, listed, num, usd


@kind
def age_ratio(r: Words):
    young, k, years = r.int(2, 20), r.int(2, 4), r.int(2, 20)
    old = k * (young + years) - years
    one, two = r.names(2)
    times = {2: 'twice', 3: 'three times', 4: 'four times'}[k]
    return (
        r.choice(
            [
                f'In {years} years {one} will be {times} as old as {two}, who is {young} now. How old is {one} today?',
                f'{two} is {young}. {years} years from now, {one} will be {times} as old as {two} then. What is the age '
                f'of {one}?',
            ]
        ),
        [
            f'{two} will then be {young} + {years} = {young + years}.',
            f'{one} will be {k} * {young + years} = {k * (young + years)}.',
            f'Today {one} is {k * (young + years)} - {years} = {old}.',
        ],
        old,
    )


@kind
def age_sum(r: Words):
    young, gap = r.int(3, 40), r.int(2, 30)
    total = 2 * young + gap
    one, two = r.names(2)
    return (
        r.choice(
            [
                f'{one} is {gap} years older than {two}. Together they are {total}. How old are they?',
                f'The ages of {one} and {two} add up to {total}, and {one} is {gap} years older. Find both ages.',
            ]
        ),
        [
            f'Without the difference: {total} - {gap} = {2 * young}.',
            f'{two} is {2 * young} / 2 = {young}, and {one} is {young} + {gap} = {young + gap}.',
        ],
        f'{one} {young + gap}, {two} {young}',
    )


@kind
def age_when(r: Words):
    child, k, wait = r.int(2, 15), r.int(2, 3), r.int(1, 25)
    parent = k * (child + wait) - wait
    gap = parent - child
    one, two = r.names(2)
    return (
        r.choice(
            [
                f'{one} is {parent} and {two} is {child}. In how many years will {one} be {k} times as old as {two}?',
                f'{two} is {child} years old, {one} {parent}. After how many years is {one} exactly {k} times the age of '
                f'{two}?',
            ]
        ),
        [
            f'The difference stays {parent} - {child} = {gap}.',
            f'{one} is {k} times as old when {two} is {gap} / ({k} - 1) = {gap // (k - 1)}.',
            f'{gap // (k - 1)} - {child} = {wait}.',
        ],
        count(wait, 'year'),
    )


@kind
def tickets(r: Words):
    a, b, pa, gap = r.int(5, 90), r.int(5, 90), r.int(3, 15), r.int(2, 9)
    high, n = pa + gap, a + b
    total = a * pa + b * high
    what = r.choice(['a play', 'a concert', 'a zoo', 'a museum', 'a fair', 'a ferry'])
    return (
        r.choice(
            [
                f'For {what}, {n} tickets are sold for ${total} in all. Children pay ${pa}, adults ${high}. How many '
                f'adults came?',
                f'{n} people paid ${total} to see {what}: ${high} for adults, ${pa} for children. Find '
                f'the number of adults.',
            ]
        ),
        [
            f'If all were children it would be {n} * {pa} = {n * pa}.',
            f'{total} - {n * pa} = {total - n * pa} is missing, and each adult adds {high} - {pa} = {gap}.',
            f'{total - n * pa} / {gap} = {b}.',
        ],
        b,
    )


@kind
def heads_legs(r: Words):
    two, four = r.int(2, 60), r.int(2, 60)
    birds, beasts = r.choice(
        [
            ('hens', 'rabbits'),
            ('ducks', 'sheep'),
            ('geese', 'cows'),
            ('bicycles', 'cars'),
            ('turkeys', 'goats'),
        ]
    )
    part, whole = ('wheels', 'vehicles') if birds == 'bicycles' else ('legs', 'animals')
    n, total = two + four, 2 * two + 4 * four
    return (
        r.choice(
            [
                f'There are {n} {birds} and {beasts} with {total} {part} together. How many {beasts} are there?',
                f'{r.name()} counts {n} {whole}, all {birds} or {beasts}, and {total} {part}. How many are {beasts}?',
            ]
        ),
        [
            f'If all were {birds}: 2 * {n} = {2 * n} {part}.',
            f'{total} - {2 * n} = {2 * four} more, and each of the {beasts} adds 2.',
            f'{2 * four} / 2 = {four}.',
        ],
        f'{four} {beasts}',
    )


@kind
def coins(r: Words):
    (low, high) = r.choice([(5, 10), (5, 25), (10, 25), (10, 50), (20, 50), (1, 5)])
    a, b = r.int(3, 50), r.int(3, 50)
    total = a * low + b * high
    return (
        r.choice(
            [
                f'A jar has {a + b} coins of {low} and {high} cents, worth {usd(total)}. How many of each are there?',
                f'{r.name()} has {a + b} coins, each of {low} or {high} cents, {usd(total)} altogether. How many coins of '
                f'each sort are that?',
            ]
        ),
        [
            f'All at {low} cents would be {a + b} * {low} = {(a + b) * low}.',
            f'{total} - {(a + b) * low} = {b * (high - low)}, and {b * (high - low)} / {high - low} = {b} coins of {high}.',
            f'{a + b} - {b} = {a} coins of {low}.',
        ],
        f'{a} of {low} cents and {b} of {high} cents',
    )


@kind
def two_prices(r: Words):
    x, y, a, b, c = r.int(2, 20), r.int(2, 20), r.int(2, 7), r.int(2, 7), r.int(1, 5)
    one, two = r.things(2)
    p, q = a * x + b * y, (a + c) * x + b * y
    return (
        r.choice(
            [
                f'{a} {one} and {b} {two} cost ${p}; {a + c} {one} and {b} {two} cost ${q}. What is the price of each?',
                f'{r.name()} pays ${p} for {a} {one} and {b} {two}, and ${q} for {a + c} {one} and {b} {two}. Find both '
                f'prices.',
            ]
        ),
        [
            f'The second purchase has {c} more of the {one}: {q} - {p} = {c * x}, and {c * x} / {c} = {x}.',
            f'{p} - {a} * {x} = {b * y}, and {b * y} / {b} = {y}.',
        ],
        f'${x} and ${y}',
    )


@kind
def times_as_many(r: Words):
    small, k, more = r.int(3, 60), r.int(2, 6), r.int(2, 40)
    one, two, three = r.names(3)
    thing = r.thing()
    a, b = k * small, small + more
    return (
        r.choice(
            [
                f'{one} has {k} times as many {thing} as {two}, who has {small}. {three} has {more} more than {two}. How '
                f'many do they have together?',
                f'{two} owns {small} {thing}, {one} {k} times that many, and {three} {more} more than {two}. What is the '
                f'total?',
            ]
        ),
        [
            f'{one} has {k} * {small} = {a}.',
            f'{three} has {small} + {more} = {b}.',
            f'{a} + {small} + {b} = {a + small + b}.',
        ],
        f'{a + small + b} {thing}',
    )


@kind
def giving_away(r: Words):
    f, unit, gift = r.proper(6), r.int(3, 25), r.int(2, 20)
    start = f.denominator * unit
    gone = f.numerator * unit
    left = start - gone + gift
    who, thing, other = r.name(), r.thing(), r.name()
    return (
        r.choice(
            [
                f'{who} has {start} {thing}, gives away {f} of them and then finds {gift} more. How many {thing} are '
                f'there now?',
                f'Of {start} {thing}, {f} are sold by {who}, and {gift} new ones arrive. How many are in '
                f'stock?',
                f'{other} takes {f} of the {start} {thing} of {who} and brings back {gift} later. How many does {who} '
                f'have in the end?',
            ]
        ),
        [
            f'{start} / {f.denominator} = {unit}, and {f.numerator} * {unit} = {gone} go.',
            f'{start} - {gone} = {start - gone}.',
            f'{start - gone} + {gift} = {left}.',
        ],
        left,
    )


@kind
def fraction_of_rest(r: Words):
    a, b, unit = r.int(2, 6), r.int(2, 6), r.int(2, 20)
    total = a * b * unit
    first = total // a
    rest = total - first
    second = Fraction(rest, b)
    who = r.name()
    return (
        r.choice(
            [
                f'{who} spends 1/{a} of ${total} on food and 1/{b} of the rest on travel. How much is left?',
                f'From ${total}, {who} pays 1/{a} for rent and then 1/{b} of what remains for books. What is still '
                f'there?',
            ]
        ),
        [
            f'{total} / {a} = {first}, which leaves {total} - {first} = {rest}.',
            f'{rest} / {b} = {num(second)}.',
            f'{rest} - {num(second)} = {num(rest - second)}.',
        ],
        f'${num(rest - second)}',
    )


@kind
def mean(r: Words):
    n = r.int(4, 7)
    values = [r.int(5, 99) for _ in range(n)]
    total = sum(values)
    what = r.choice(
        ['The scores', 'The temperatures', 'The weights', 'The ages', 'The daily sales', 'The times']
    )
    if r.random() < 0.5:
        return (
            r.choice(
                [f'{what} are {listed(values)}. What is the mean?', f'Find the average of {listed(values)}.']
            ),
            [f'{" + ".join(map(str, values))} = {total}.', f'{total} / {n} = {num(Fraction(total, n))}.'],
            num(Fraction(total, n)),
        )
    ordered = sorted(values)
    middle = Fraction(ordered[(n - 1) // 2] + ordered[n // 2], 2)
    between = f'lies between {ordered[n // 2 - 1]} and {ordered[n // 2]}, at'
    return (
        r.choice(
            [
                f'{what} are {listed(values)}. Find the median and the range.',
                f'What are the median and the range of {listed(values)}?',
            ]
        ),
        [
            f'In order: {", ".join(map(str, ordered))}.',
            f'The middle {"is" if n % 2 else between} {num(middle)}.',
            f'{ordered[-1]} - {ordered[0]} = {ordered[-1] - ordered[0]}.',
        ],
        f'median {num(middle)}, range {ordered[-1] - ordered[0]}',
    )


@kind
def needed_score(r: Words):
    n, goal = r.int(3, 6), r.int(60, 95)
    scores = [goal + r.int(-8, 6) for _ in range(n)]
    total, need = sum(scores), goal * (n + 1)
    who = r.name()
    return (
        r.choice(
            [
                f'{who} scored {listed(scores)} in {n} tests. What must the next score be for an average of {goal}?',
                f'After results of {listed(scores)}, which result does {who} need next to bring the mean to {goal}?',
            ]
        ),
        [
            f'An average of {goal} over {n + 1} tests takes {goal} * {n + 1} = {need} points.',
            f'So far there are {" + ".join(map(str, scores))} = {total}.',
            f'{need} - {total} = {need - total}.',
        ],
        need - total,
    )


@kind
def combined_mean(r: Words):
    a, b, x, y = r.int(5, 40), r.int(5, 40), r.int(50, 99), r.int(50, 99)
    total = a * x + b * y
    value = Fraction(total, a + b)
    return (
        r.choice(
            [
                f'A class of {a} has an average of {x} points, another of {b} an average of {y}. What is the average '
                f'of all?',
                f'{a} boxes weigh {x} kg on average and {b} others {y} kg. Find the mean weight of all '
                f'boxes.',
            ]
        ),
        [
            f'{a} * {x} = {a * x} and {b} * {y} = {b * y}.',
            f'{a * x} + {b * y} = {total}, for {a} + {b} = {a + b} in all.',
            f'{total} / {a + b} = {num(value)}.',
        ],
        num(value),
    )


@kind
def new_mean(r: Words):
    n, m, d = r.int(3, 15), r.int(10, 90), r.int(1, 6)
    new = m * n + (n + 1) * d + m - m * n
    what = r.choice(['players', 'parcels', 'numbers', 'plants', 'students'])
    return (
        r.choice(
            [
                f'The mean of {n} {what} is {m}. One more comes, and the mean rises to {m + d}. What is the value of the '
                f'new one?',
                f'{n} values average {m}. Adding another one makes the average {m + d}. Find it.',
            ]
        ),
        [
            f'Before: {n} * {m} = {n * m}.',
            f'After: {n + 1} * {m + d} = {(n + 1) * (m + d)}.',
            f'{(n + 1) * (m + d)} - {n * m} = {new}.',
        ],
        new,
    )


@kind
def seating(r: Words):
    per, buses, rest = r.int(12, 60), r.int(2, 15), r.int(1, 11)
    people = per * buses + rest
    what, group = r.choice(
        [
            ('buses', 'travelers'),
            ('tables', 'guests'),
            ('boats', 'tourists'),
            ('cabins', 'campers'),
            ('vans', 'workers'),
        ]
    )
    return (
        r.choice(
            [
                f'{people} {group} are to sit in {what} with {per} places each. How many {what} are needed, and how many '
                f'places stay empty?',
                f'How many {what} of {per} seats must be ordered for {people} {group}, and what is '
                f'the number of free seats?',
            ]
        ),
        [
            f'{buses} {what} hold {buses} * {per} = {buses * per}, which leaves {people} - {buses * per} = {rest}.',
            f'So {buses} + 1 = {buses + 1} are needed, with {per} - {rest} = {per - rest} places empty.',
        ],
        f'{buses + 1} {what}, {per - rest} empty places',
    )


@kind
def exam(r: Words):
    right, wrong, points, minus = r.int(5, 40), r.int(1, 20), r.int(2, 6), r.int(1, 2)
    n, score = right + wrong, right * points - wrong * minus
    who = r.name()
    return (
        r.choice(
            [
                f'An exam has {n} questions: {points} points for a right answer, minus {minus} for a wrong one. {who} '
                f'answers all and gets {score}. How many were right?',
                f'{who} answers {n} questions, earning {points} each time it is right and losing {minus} otherwise, and '
                f'ends with {score} points. Count the right answers.',
            ]
        ),
        [
            f'All right would be {n} * {points} = {n * points}.',
            f'{n * points} - {score} = {n * points - score} points were lost, {points} + {minus} = {points + minus} for each '
            f'wrong answer.'
            if score >= 0
            else f'{n * points} + {-score} = {n * points - score} points were lost, {points} + {minus} = {points + minus} for each '
            f'wrong answer.',
            f'{n * points - score} / {points + minus} = {wrong} were wrong, so {n} - {wrong} = {right} were right.',
        ],
        right,
    )


@kind
def survey(r: Words):
    both, only_a, only_b, none = (r.int(2, 40) for _ in range(4))
    total = both + only_a + only_b + none
    one, two = r.sample(
        ['tea', 'coffee', 'chess', 'football', 'opera', 'swimming', 'painting', 'hiking', 'cycling', 'jazz'],
        2,
    )
    return (
        r.choice(
            [
                f'Of {total} people, {only_a + both} like {one}, {only_b + both} like {two} and {both} like both. How '
                f'many like neither?',
                f'{total} people are asked: {only_a + both} choose {one}, {only_b + both} choose '
                f'{two}, {both} of them both. How many choose none of the two?',
            ]
        ),
        [
            f'{only_a + both} + {only_b + both} - {both} = {only_a + only_b + both} like at least one.',
            f'{total} - {only_a + only_b + both} = {none}.',
        ],
        none,
    )


@kind
def stock(r: Words):
    start, out, back, days = r.int(300, 900), r.int(5, 40), r.int(1, 4), r.int(3, 7)
    end = start - (out - back) * days
    place, thing = r.choice(PLACES), r.thing()
    return (
        r.choice(
            [
                f'{place.capitalize()} has {start} {thing}. Each day {out} go out and {back} come back. How many are '
                f'there after {days} days?',
                f'There are {start} {thing} in {place}. Every day {out} are taken and {back} returned. What is left after '
                f'{days} days?',
            ]
        ),
        [
            f'Each day {out} - {back} = {out - back} are lost.',
            f'{days} * {out - back} = {days * (out - back)}.',
            f'{start} - {days * (out - back)} = {end}.',
        ],
        f'{end} {thing}',
    )
