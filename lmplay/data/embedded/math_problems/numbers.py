"""Problems about numbers: percentages, fractions, equations, sequences, divisibility."""

import math
from fractions import Fraction

from .words import Words, count, kind, listed, num


@kind
def percent_of(r: Words):
    p, n = r.int(2, 99), r.int(3, 90) * 20
    value = num(Fraction(p * n, 100))
    return (
        r.choice([f'What is {p}% of {n}?', f'Find {p} percent of {n}.', f'Compute {p}% of the number {n}.']),
        r.choice(
            [
                [
                    f'{p}% means {p} / 100 = {num(Fraction(p, 100))}.',
                    f'{num(Fraction(p, 100))} * {n} = {value}.',
                ],
                [
                    f'1% of {n} is {n} / 100 = {num(Fraction(n, 100))}.',
                    f'{p} times that is {p} * {num(Fraction(n, 100))} = {value}.',
                ],
            ]
        ),
        value,
    )


@kind
def what_percent(r: Words):
    p, n = r.int(1, 40) * 5, r.int(2, 60) * 20
    part = p * n // 100
    return (
        r.choice(
            [
                f'{part} is what percent of {n}?',
                f'What percentage of {n} is {part}?',
                f'Express {part} as a percentage of {n}.',
            ]
        ),
        [
            f'Divide the part by the whole: {part} / {n} = {num(Fraction(p, 100))}.',
            f'As a percentage: {num(Fraction(p, 100))} * 100 = {p}.',
        ],
        f'{p}%',
    )


@kind
def percent_change(r: Words):
    old, p = r.int(2, 50) * 20, r.int(1, 18) * 5
    up = r.random() < 0.5
    change = old * p // 100
    new = old + change if up else old - change
    verb = 'rises' if up else 'falls'
    what = r.choice(
        [
            'The number of visitors',
            'The price of a share',
            'The output of a plant',
            'The water level',
            'The membership of a club',
        ]
    )
    return (
        r.choice(
            [
                f'{what} {verb} from {old} to {new}. By what percent does it change?',
                f'{what} was {old} and is now {new}. What is the percentage {"increase" if up else "decrease"}?',
            ]
        ),
        [
            f'The change is {f"{new} - {old}" if up else f"{old} - {new}"} = {change}.',
            f'Compared with the old value: {change} / {old} = {num(Fraction(p, 100))}, which is {p}%.',
        ],
        f'{p}% {"increase" if up else "decrease"}',
    )


@kind
def two_changes(r: Words):
    start, p, q = r.int(2, 30) * 100, r.int(1, 9) * 10, r.int(1, 6) * 10
    first, last = Fraction(start * (100 + p), 100), Fraction(start * (100 + p) * (100 - q), 10_000)
    town = r.choice(['A club has', 'A library has', 'A party has', 'A forum has', 'A union has'])
    return (
        r.choice(
            [
                f'{town} {start} members. The number grows by {p}% in one year and shrinks by {q}% in the next. How many '
                f'are there then?',
                f'A quantity of {start} is increased by {p}% and the result is decreased by {q}%. What is left?',
            ]
        ),
        [
            f'After the increase: {start} * {num(Fraction(100 + p, 100))} = {num(first)}.',
            f'After the decrease: {num(first)} * {num(Fraction(100 - q, 100))} = {num(last)}.',
        ],
        num(last),
    )


@kind
def add_fractions(r: Words):
    a, b = r.proper(15), r.proper(15)
    while a.denominator == b.denominator:
        b = r.proper(15)
    minus = r.random() < 0.4
    if minus and a < b:
        a, b = b, a
    common = math.lcm(a.denominator, b.denominator)
    x, y = int(a * common), int(b * common)
    sign, total = ('-', a - b) if minus else ('+', a + b)
    return (
        r.choice(
            [
                f'Calculate {a} {sign} {b}.',
                f'What is {a} {sign} {b} in lowest terms?',
                f'Work out {a} {sign} {b} as a fraction.',
            ]
        ),
        [
            f'The common denominator of {a.denominator} and {b.denominator} is {common}.',
            f'{a} = {x}/{common} and {b} = {y}/{common}.',
            f'{x}/{common} {sign} {y}/{common} = {x - y if minus else x + y}/{common}'
            + (f' = {total}.' if total.denominator != common else '.'),
        ],
        total,
    )


@kind
def multiply_fractions(r: Words):
    a, b = r.proper(20), r.proper(20)
    top, bottom = a.numerator * b.numerator, a.denominator * b.denominator
    if r.random() < 0.5:
        return (
            r.choice([f'Multiply {a} by {b}.', f'What is {a} of {b}?', f'Find the product of {a} and {b}.']),
            [
                f'Multiply the tops: {a.numerator} * {b.numerator} = {top}.',
                f'Multiply the bottoms: {a.denominator} * {b.denominator} = {bottom}.',
                f'In lowest terms {top}/{bottom} = {a * b}.',
            ],
            a * b,
        )
    return (
        r.choice(
            [
                f'Divide {a} by {b}.',
                f'What is ({a}) / ({b})?',
                f'How many times does {b} go into {a}? Give a fraction.',
            ]
        ),
        [
            f'Dividing by {b} is multiplying by {b.denominator}/{b.numerator}.',
            f'{a.numerator} * {b.denominator} = {a.numerator * b.denominator} and {a.denominator} * {b.numerator} = '
            f'{a.denominator * b.numerator}.',
            f'({a}) / ({b}) = {a / b}.',
        ],
        a / b,
    )


@kind
def compare_fractions(r: Words):
    a, b = r.proper(25), r.proper(25)
    while a == b:
        b = r.proper(25)
    left, right = a.numerator * b.denominator, b.numerator * a.denominator
    return (
        r.choice(
            [f'Which is larger, {a} or {b}?', f'Compare the fractions {a} and {b}: which one is greater?']
        ),
        [
            f'Multiply crosswise: {a.numerator} * {b.denominator} = {left} and {b.numerator} * {a.denominator} = {right}.',
            f'Since {left} is {"more" if left > right else "less"} than {right}, {a} is {"more" if a > b else "less"} '
            f'than {b}.',
        ],
        max(a, b),
    )


@kind
def whole_from_part(r: Words):
    f, unit = r.proper(9), r.int(3, 60)
    whole, part = f.denominator * unit, f.numerator * unit
    thing = r.thing()
    return (
        r.choice(
            [
                f'{f} of a number is {part}. What is the number?',
                f'If {part} {thing} are {f} of a box, how many {thing} does the box hold?',
                f'After packing {f} of the {thing}, {r.name()} has packed {part}. How many {thing} are there in all?',
            ]
        ),
        [
            f'1/{f.denominator} of the whole is {part} / {f.numerator} = {unit}.',
            f'The whole is {f.denominator} * {unit} = {whole}.',
        ],
        whole,
    )


@kind
def linear(r: Words):
    a, x, b = r.int(2, 19), r.int(-20, 30), r.int(1, 60)
    v, minus = r.choice('xynzt'), r.random() < 0.5
    c = a * x - b if minus else a * x + b
    return (
        r.choice(['Solve for {v}: {e}.', 'Find {v} if {e}.', 'What value of {v} satisfies {e}?']).format(
            v=v, e=f'{a}{v} {"-" if minus else "+"} {b} = {c}'
        ),
        [
            f'{"Add" if minus else "Subtract"} {b} {"to" if minus else "from"} both sides: {c} {"+" if minus else "-"} {b} = '
            f'{a * x}, so {a}{v} = {a * x}.',
            f'Divide by {a}: {a * x} / {a} = {x}.',
        ],
        f'{v} = {x}',
    )


@kind
def linear_both_sides(r: Words):
    c, d, x, b = r.int(2, 9), r.int(1, 9), r.int(2, 25), r.int(1, 40)
    a, v = c + d, r.choice('xyw')
    e = a * x + b - c * x
    return (
        r.choice(
            [
                f'Solve {a}{v} + {b} = {c}{v} + {e}.',
                f'Find {v}: {a}{v} + {b} = {c}{v} + {e}.',
                f'For which {v} are {a}{v} + {b} and {c}{v} + {e} equal?',
            ]
        ),
        [
            f'Take {c}{v} from both sides: {d}{v} + {b} = {e}.',
            f'Take {b} from both sides: {e} - {b} = {d * x}, so {d}{v} = {d * x}.',
            f'{d * x} / {d} = {x}.',
        ],
        f'{v} = {x}',
    )


@kind
def brackets(r: Words):
    a, b, x = r.int(2, 15), r.int(1, 30), r.int(1, 40)
    c = a * (x + b)
    return (
        r.choice(
            [
                f'Solve {a}(x + {b}) = {c}.',
                f'If {a}(x + {b}) = {c}, what is x?',
                f'A number is increased by {b} and the sum is multiplied by {a}. The result is {c}. Find the number.',
            ]
        ),
        r.choice(
            [
                [f'Divide both sides by {a}: {c} / {a} = {x + b}.', f'Subtract {b}: {x + b} - {b} = {x}.'],
                [
                    f'Expand: {a} * {b} = {a * b}, so {a}x + {a * b} = {c}.',
                    f'{c} - {a * b} = {a * x} and {a * x} / {a} = {x}.',
                ],
            ]
        ),
        x,
    )


@kind
def thought_of(r: Words):
    n, m, a, d = r.int(2, 40), r.int(2, 9), r.int(1, 30), r.choice([2, 3, 4, 5])
    n *= d
    result = n * m // d + a
    who = r.name()
    return (
        r.choice(
            [
                f'{who} thinks of a number, multiplies it by {m}, divides by {d} and adds {a}. The result is {result}. '
                f'What was the number?',
                f'I multiply a number by {m}, divide what I get by {d}, then add {a}, and end at {result}. Where did I '
                f'start?',
            ]
        ),
        [
            f'Work backwards. Before adding: {result} - {a} = {result - a}.',
            f'Before dividing: {result - a} * {d} = {(result - a) * d}.',
            f'Before multiplying: {(result - a) * d} / {m} = {n}.',
        ],
        n,
    )


@kind
def consecutive(r: Words):
    k, first, step = r.choice([3, 5, 7]), r.int(3, 600), r.choice([1, 2])
    values = [first + step * i for i in range(k)]
    total, middle = sum(values), values[k // 2]
    sort = {
        1: 'consecutive integers',
        2: 'consecutive even numbers' if first % 2 == 0 else 'consecutive odd numbers',
    }[step]
    return (
        r.choice(
            [
                f'The sum of {k} {sort} is {total}. Find the smallest.',
                f'{k} {sort} add up to {total}. What is the smallest of them?',
            ]
        ),
        [
            f'Their middle one is the mean: {total} / {k} = {middle}.',
            f'The smallest is {count(k // 2, "step")} of {step} below: {middle} - {k // 2 * step} = {first}.',
        ],
        first,
    )


@kind
def elimination(r: Words):
    x, y, a, b = r.int(1, 20), r.int(1, 20), r.int(2, 9), r.int(2, 9)
    c, d = a * x + b * y, a * x - b * y
    return (
        r.choice(
            [
                f'Solve the system {a}x + {b}y = {c} and {a}x - {b}y = {d}.',
                f'Find x and y such that {a}x + {b}y = {c} and {a}x - {b}y = {d}.',
            ]
        ),
        [
            f'Add the equations: {c} {"+" if d >= 0 else "-"} {abs(d)} = {2 * a * x}, so {2 * a}x = {2 * a * x}.',
            f'{2 * a * x} / {2 * a} = {x}.',
            f'Put x in the first: {a} * {x} = {a * x}, {c} - {a * x} = {b * y}, and {b * y} / {b} = {y}.',
        ],
        f'x = {x}, y = {y}',
    )


@kind
def quadratic(r: Words):
    p = r.int(1, 60)
    q = p + r.int(1, 40)
    s, t = p + q, p * q
    return (
        r.choice(
            [
                f'Solve x^2 - {s}x + {t} = 0.',
                f'Find both roots of x^2 - {s}x + {t} = 0.',
                f'Two numbers add up to {s} and their product is {t}. Find them.',
            ]
        ),
        [f'We look for two numbers with sum {s} and product {t}.', f'{p} + {q} = {s} and {p} * {q} = {t}.'],
        f'{p} and {q}',
    )


@kind
def arithmetic_term(r: Words):
    a, d, n = r.int(1, 40), r.int(2, 15), r.int(8, 60)
    term = a + (n - 1) * d
    return (
        r.choice(
            [
                f'What is term number {n} of the sequence {a}, {a + d}, {a + 2 * d}, ...?',
                f'A sequence starts with {a} and grows by {d} each step. Find its term number {n}.',
            ]
        ),
        [
            f'From the first term to term {n} there are {n} - 1 = {n - 1} steps of {d}.',
            f'{n - 1} * {d} = {(n - 1) * d}.',
            f'{a} + {(n - 1) * d} = {term}.',
        ],
        term,
    )


@kind
def arithmetic_sum(r: Words):
    a, d, n = r.int(1, 30), r.int(1, 12), r.int(6, 40)
    last = a + (n - 1) * d
    return (
        r.choice(
            [
                f'Add the first {n} terms of {a}, {a + d}, {a + 2 * d}, ...',
                f'A hall has {n} rows of seats, {a} seats in the first row and {d} more in each following row. How many '
                f'seats are there?',
            ]
        ),
        [
            f'The last term is {a} + {n - 1} * {d} = {last}.',
            f'First and last together are {a} + {last} = {a + last}.',
            f'{n} * {a + last} / 2 = {n * (a + last) // 2}.',
        ],
        n * (a + last) // 2,
    )


@kind
def geometric_term(r: Words):
    a, q, n = r.int(2, 120), r.int(2, 4), r.int(4, 8)
    term = a * q ** (n - 1)
    return (
        r.choice(
            [
                f'A sequence begins {a}, {a * q}, {a * q * q}. Each term is {q} times the one before. What is term {n}?',
                f'A culture of {a} cells becomes {q} times as large every hour. How many cells are there after {n - 1} '
                f'hours?',
            ]
        ),
        [f'{q}^{n - 1} = {q ** (n - 1)}.', f'{a} * {q ** (n - 1)} = {term}.'],
        term,
    )


@kind
def next_term(r: Words):
    start, first, growth = r.int(1, 30), r.int(1, 12), r.int(1, 9)
    terms, gap = [start], first
    for _ in range(4):
        terms.append(terms[-1] + gap)
        gap += growth
    gaps = [b - a for a, b in zip(terms, terms[1:])]
    return (
        r.choice(
            [
                f'Which number continues the sequence {", ".join(map(str, terms))}?',
                f'Find the next number: {", ".join(map(str, terms))}, ...',
            ]
        ),
        [
            f'The differences are {listed(gaps)}, each {growth} more than the one before.',
            f'The next difference is {gaps[-1]} + {growth} = {gap}.',
            f'{terms[-1]} + {gap} = {terms[-1] + gap}.',
        ],
        terms[-1] + gap,
    )


@kind
def common_divisor(r: Words):
    g, a, b = r.int(2, 24), r.int(2, 15), r.int(2, 15)
    while math.gcd(a, b) != 1:
        b = r.int(2, 15)
    x, y = max(a, b) * g, min(a, b) * g
    steps, (p, q) = [], (x, y)
    while q:
        steps.append(f'{p} = {p // q} * {q} + {p % q}.')
        p, q = q, p % q
    one, two = r.things(2)
    return (
        r.choice(
            [
                f'Find the greatest common divisor of {x} and {y}.',
                f'What is the largest number that divides both {x} and {y}?',
                f'{x} {one} and {y} {two} are shared out so that all bags are alike and none is left over. How many bags '
                f'are possible at most?',
            ]
        ),
        [*steps, f'The last divisor is {g}.'],
        g,
    )


@kind
def common_multiple(r: Words):
    a, b = r.int(4, 40), r.int(4, 40)
    while a == b:
        b = r.int(4, 40)
    g = math.gcd(a, b)
    lcm = a * b // g
    one, two = r.names(2)
    return (
        r.choice(
            [
                f'Find the least common multiple of {a} and {b}.',
                f'{one} visits every {a} days and {two} every {b} days. They meet today. In how many days do they meet '
                f'again?',
                f'One light flashes every {a} seconds, another every {b} seconds. They flash together now. After how many '
                f'seconds does that happen again?',
            ]
        ),
        [f'The greatest common divisor of {a} and {b} is {g}.', f'{a} * {b} / {g} = {lcm}.'],
        lcm,
    )


@kind
def remainder(r: Words):
    d, q = r.int(3, 40), r.int(5, 90)
    left = r.int(1, d - 1)
    n, thing = d * q + left, r.thing()
    return (
        r.choice(
            [
                f'{n} {thing} are packed in boxes of {d}. How many boxes are full, and how many {thing} remain?',
                f'Divide {n} by {d} and give the quotient and the remainder.',
                f'{r.name()} shares {n} {thing} equally among {d} people. How many does each get, and how many are left?',
            ]
        ),
        [f'{d} * {q} = {d * q}.', f'{n} - {d * q} = {left}, which is less than {d}.'],
        f'{q}, remainder {left}',
    )


@kind
def prime_factors(r: Words):
    factors = sorted(r.choice([2, 2, 2, 3, 3, 5, 5, 7, 11, 13, 17, 19, 23]) for _ in range(r.int(3, 5)))
    n = left = math.prod(factors)
    steps = []
    for p in factors[:-1]:
        steps.append(f'{left} / {p} = {left // p}.')
        left //= p
    if r.random() < 0.6:
        return (
            r.choice(
                [
                    f'Write {n} as a product of primes.',
                    f'Find the prime factorization of {n}.',
                    f'Which primes multiply to {n}?',
                ]
            ),
            [*steps, f'{left} is prime.', f'{" * ".join(map(str, factors))} = {n}.'],
            ' * '.join(map(str, factors)),
        )
    powers = [factors.count(p) for p in sorted(set(factors))]
    divisors = math.prod(e + 1 for e in powers)
    return (
        r.choice([f'How many divisors does {n} have?', f'Count the positive divisors of {n}.']),
        [
            f'{n} = {" * ".join(map(str, factors))}.',
            f'The exponents of its primes are {", ".join(map(str, powers))}.',
            f'{" * ".join(f"({e} + 1)" for e in powers)} = {divisors}.',
        ],
        divisors,
    )


@kind
def base_two(r: Words):
    n = r.int(18, 4095)
    bits = f'{n:b}'
    powers = [2**i for i in range(len(bits) - 1, -1, -1) if n >> i & 1]
    if r.random() < 0.5:
        return (
            r.choice(
                [
                    f'Convert the binary number {bits} to decimal.',
                    f'Which decimal number is {bits} in base two?',
                ]
            ),
            [f'The ones stand for {", ".join(map(str, powers))}.', f'{" + ".join(map(str, powers))} = {n}.'],
            n,
        )
    return (
        r.choice([f'Write {n} in binary.', f'What is {n} in base two?']),
        [
            f'{n} = {" + ".join(map(str, powers))}.',
            'Put a 1 for each of these powers of two and a 0 for the others.',
        ],
        bits,
    )


@kind
def order_of_operations(r: Words):
    a, b, c, d = r.int(2, 40), r.int(2, 15), r.int(2, 15), r.int(2, 9)
    top = r.int(2, 12) * d
    form = r.int(1, 3)
    if form == 1:
        text, steps, value = (
            f'{a} + {b} * {c} - {top} / {d}',
            [
                f'{b} * {c} = {b * c} and {top} / {d} = {top // d}.',
                f'{a} + {b * c} - {top // d} = {a + b * c - top // d}.',
            ],
            a + b * c - top // d,
        )
    elif form == 2:
        text, steps, value = (
            f'({a} + {b}) * {c} - {d}^2',
            [
                f'{a} + {b} = {a + b}.',
                f'{a + b} * {c} = {(a + b) * c} and {d}^2 = {d * d}.',
                f'{(a + b) * c} - {d * d} = {(a + b) * c - d * d}.',
            ],
            (a + b) * c - d * d,
        )
    else:
        text, steps, value = (
            f'{a} * ({b} + {top} / {d}) + {c}',
            [
                f'{top} / {d} = {top // d}.',
                f'{b} + {top // d} = {b + top // d}.',
                f'{a} * {b + top // d} + {c} = {a * (b + top // d) + c}.',
            ],
            a * (b + top // d) + c,
        )
    return (
        r.choice([f'Evaluate {text}.', f'Calculate {text}.', f'What is the value of {text}?']),
        steps,
        value,
    )


@kind
def long_multiplication(r: Words):
    a, b = r.int(102, 999), r.int(12, 99)
    tens, ones = b // 10 * 10, b % 10
    return (
        r.choice(
            [
                f'Multiply {a} by {b} without a calculator.',
                f'What is {a} times {b}?',
                f'{r.name()} orders {b} crates of {a} nails. How many nails are that?',
            ]
        ),
        [f'{a} * {tens} = {a * tens}.', f'{a} * {ones} = {a * ones}.', f'{a * tens} + {a * ones} = {a * b}.'],
        a * b,
    )


@kind
def digit_pages(r: Words):
    pages = r.int(100, 999)
    digits = 9 + 180 + 3 * (pages - 99)
    return (
        r.choice(
            [
                f'A book by {r.name()} has {pages} numbered pages, starting at 1. How many digits are printed in the page '
                f'numbers?',
                f'How many digits does one write when writing all whole numbers from 1 to {pages}?',
            ]
        ),
        [
            'One digit each for 1 to 9: 9 digits.',
            'Two digits each for 10 to 99: 90 * 2 = 180.',
            f'Three digits each for the other {pages} - 99 = {pages - 99}: {pages - 99} * 3 = {3 * (pages - 99)}.',
            f'9 + 180 + {3 * (pages - 99)} = {digits}.',
        ],
        count(digits, 'digit'),
    )
