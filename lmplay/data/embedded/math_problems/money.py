"""Problems about money: prices, interest, wages, savings."""

from fractions import Fraction

from .words import GOODS, PLACES, Words, count, kind, num, usd


@kind
def shopping(r: Words):
    a, b, pa, pb = r.int(2, 9), r.int(2, 9), r.int(2, 30) * 5, r.int(2, 40) * 5
    one, two = r.things(2)
    total = a * pa + b * pb
    paid = -(-total // 500) * 500 + r.choice([0, 500, 1000])
    who = r.name()
    return (
        r.choice(
            [
                f'{who} buys {a} {one} at {usd(pa)} each and {b} {two} at {usd(pb)} each, and pays with {usd(paid)}. How '
                f'much change is due?',
                f'{one.capitalize()} cost {usd(pa)} and {two} {usd(pb)} apiece. {who} takes {a} {one} and {b} {two} and '
                f'hands over {usd(paid)}. What comes back?',
            ]
        ),
        [
            f'The {one}: {a} * {usd(pa)} = {usd(a * pa)}.',
            f'The {two}: {b} * {usd(pb)} = {usd(b * pb)}.',
            f'Together {usd(a * pa)} + {usd(b * pb)} = {usd(total)}.',
            f'{usd(paid)} - {usd(total)} = {usd(paid - total)}.',
        ],
        usd(paid - total),
    )


@kind
def discount_tax(r: Words):
    price, off, tax = r.int(2, 40) * 1000, r.int(1, 12) * 5, r.choice([2, 4, 6, 8, 10, 20])
    cut = price * off // 100
    net = price - cut
    extra = net * tax // 100
    return (
        r.choice(
            [
                f'A {r.choice(GOODS)} costs {usd(price)}. It is reduced by {off}%, then {tax}% tax is added. What is the '
                f'final price?',
                f'{r.name()} gets {off}% off a {r.choice(GOODS)} priced at {usd(price)} and pays {tax}% tax on what is '
                f'left. How much is it?',
            ]
        ),
        [
            f'The reduction is {usd(price)} * {num(Fraction(off, 100))} = {usd(cut)}.',
            f'{usd(price)} - {usd(cut)} = {usd(net)}.',
            f'The tax is {usd(net)} * {num(Fraction(tax, 100))} = {usd(extra)}.',
            f'{usd(net)} + {usd(extra)} = {usd(net + extra)}.',
        ],
        usd(net + extra),
    )


@kind
def price_before(r: Words):
    price, off = r.int(2, 90) * 10, r.int(1, 12) * 5
    now = Fraction(price * (100 - off), 100)
    return (
        r.choice(
            [
                f'After a discount of {off}%, a {r.choice(GOODS)} costs ${num(now)}. What did it cost before?',
                f'{r.name()} paid ${num(now)} for a {r.choice(GOODS)} in a sale at {off}% off. Find the full price.',
            ]
        ),
        [
            f'What was paid is 100 - {off} = {100 - off} percent of the full price.',
            f'{num(now)} / {num(Fraction(100 - off, 100))} = {price}.',
        ],
        f'${price}',
    )


@kind
def tip(r: Words):
    people, bill, p = r.int(2, 8), r.int(4, 60) * 1000, r.choice([5, 10, 15, 20])
    bill = bill // 1000 * people * 100
    extra = bill * p // 100
    each = Fraction(bill + extra, 100 * people)
    return (
        r.choice(
            [
                f'{people} friends have a dinner for {usd(bill)} and add a tip of {p}%. How much does each pay?',
                f'A bill of {usd(bill)} plus {p}% tip is split evenly among {people} people. What is one share?',
            ]
        ),
        [
            f'The tip is {usd(bill)} * {num(Fraction(p, 100))} = {usd(extra)}.',
            f'{usd(bill)} + {usd(extra)} = {usd(bill + extra)}.',
            f'{usd(bill + extra)} / {people} = {usd(int(each * 100))}.',
        ],
        usd(int(each * 100)),
    )


@kind
def commission(r: Words):
    base, sales, p = r.int(8, 40) * 50, r.int(10, 200) * 100, r.int(2, 12)
    extra = sales * p // 100
    who = r.name()
    return (
        r.choice(
            [
                f'{who} earns ${base} a month plus {p}% of all sales. What is the pay in a month with sales of ${sales}?',
                f'A seller gets a fixed ${base} and a commission of {p}%. How much is earned by selling goods for '
                f'${sales}?',
            ]
        ),
        [
            f'The commission is {sales} * {num(Fraction(p, 100))} = {extra}.',
            f'{base} + {extra} = {base + extra}.',
        ],
        f'${base + extra}',
    )


@kind
def simple_interest(r: Words):
    money, p, years = r.int(2, 90) * 100, r.int(1, 9), r.int(2, 12)
    each = money * p // 100
    who = r.name()
    return (
        r.choice(
            [
                f'{who} lends ${money} at {p}% simple interest a year. How much is owed after {years} years?',
                f'What do ${money} grow to in {years} years at a simple interest of {p}% per year?',
            ]
        ),
        [
            f'One year brings {money} * {num(Fraction(p, 100))} = {each}.',
            f'{years} years bring {years} * {each} = {years * each}.',
            f'{money} + {years * each} = {money + years * each}.',
        ],
        f'${money + years * each}',
    )


@kind
def compound_interest(r: Words):
    money, p = r.int(1, 80) * 100, r.choice([2, 3, 4, 5, 6, 8, 10, 15, 20])
    one = Fraction(money * (100 + p), 100)
    two = one * (100 + p) / 100
    return (
        r.choice(
            [
                f'{r.name()} puts ${money} in an account that pays {p}% interest each year, on the interest too. What is '
                f'in it after 2 years?',
                f'What are ${money} worth after two years at {p}% compound interest?',
            ]
        ),
        [
            f'After one year: {money} * {num(Fraction(100 + p, 100))} = {num(one)}.',
            f'After two years: {num(one)} * {num(Fraction(100 + p, 100))} = {num(two)}.',
        ],
        f'${num(two)}',
    )


@kind
def profit(r: Words):
    n, cost, price, rent = r.int(20, 200), r.int(2, 15), r.int(16, 40), r.int(1, 20) * 10
    gain = n * (price - cost) - rent
    thing, who = r.thing(), r.name()
    return (
        r.choice(
            [
                f'{who} makes {n} {thing} for ${cost} each, sells them for ${price} each and pays ${rent} for the stall. '
                f'What is the profit?',
                f'{n} {thing} are bought at ${cost} and sold at ${price}. Fixed costs are '
                f'${rent}. How much is earned?',
            ]
        ),
        [
            f'Each brings {price} - {cost} = {price - cost} dollars.',
            f'{n} * {price - cost} = {n * (price - cost)}.',
            f'{n * (price - cost)} - {rent} = {gain}.'
            if gain >= 0
            else f'{n * (price - cost)} - {rent} = {gain}, a loss.',
        ],
        f'{gain} dollars',
    )


@kind
def break_even(r: Words):
    margin, n, cost = r.int(2, 20), r.int(10, 150), r.int(2, 20)
    fixed = margin * n
    thing = r.thing()
    return (
        r.choice(
            [
                f'{r.choice(PLACES).capitalize()} has fixed costs of ${fixed} and makes {thing} for ${cost} each that '
                f'sell for ${cost + margin}. How many must be sold to cover all costs?',
                f'{r.name()} invests ${fixed} to produce {thing}. One costs ${cost} to make and sells for '
                f'${cost + margin}. After how many is the investment paid back?',
            ]
        ),
        [f'Each leaves {cost + margin} - {cost} = {margin} dollars.', f'{fixed} / {margin} = {n}.'],
        n,
    )


@kind
def phone_plans(r: Words):
    fee, other, per, minutes = r.int(10, 40), r.int(2, 9), r.int(5, 20), r.int(5, 40) * 10
    first, second = fee * 100 + 2 * minutes, other * 100 + per * minutes
    if first == second:
        second += 100
        other += 1
    best = 'A' if first < second else 'B'
    unit = r.choice(['minute', 'message', 'page', 'kilometer', 'call', 'photo'])
    return (
        r.choice(
            [
                f'Plan A costs {usd(fee * 100)} and 2 cents per {unit}, plan B {usd(other * 100)} and {per} cents per '
                f'{unit}. Which is cheaper for {minutes} {unit}s, and by how much?',
                f'Offer A: {usd(fee * 100)} fixed, 2 cents each {unit}. Offer B: {usd(other * 100)} fixed, {per} cents '
                f'each {unit}. Compare them for {minutes} {unit}s.',
            ]
        ),
        [
            f'A: {fee * 100} + 2 * {minutes} = {first} cents.',
            f'B: {other * 100} + {per} * {minutes} = {second} cents.',
            f'{max(first, second)} - {min(first, second)} = {abs(first - second)} cents, or {usd(abs(first - second))}.',
        ],
        f'{best}, by {usd(abs(first - second))}',
    )


@kind
def overtime(r: Words):
    wage, extra = r.int(5, 20) * 2, r.int(2, 14)
    usual = 40 * wage
    more = wage * 3 // 2
    who = r.name()
    return (
        r.choice(
            [
                f'{who} earns ${wage} an hour, and one and a half times that beyond 40 hours a week. What is the pay for '
                f'{40 + extra} hours?',
                f'The hourly wage is ${wage}; overtime above 40 hours pays 1.5 times as much. '
                f'What does a week of {40 + extra} hours bring {who}?',
            ]
        ),
        [
            f'40 * {wage} = {usual}.',
            f'Overtime pays 1.5 * {wage} = {more} for {40 + extra} - 40 = {extra} hours: {more} * '
            f'{extra} = {more * extra}.',
            f'{usual} + {more * extra} = {usual + more * extra}.',
        ],
        f'${usual + more * extra}',
    )


@kind
def saving(r: Words):
    have, week, n, bonus = r.int(5, 90), r.int(3, 40), r.int(4, 30), r.int(5, 60)
    goal = have + week * n + bonus
    who, good = r.name(), r.choice(GOODS)
    return (
        r.choice(
            [
                f'{who} has ${have}, gets ${bonus} as a present and saves ${week} a week. After how many weeks can a '
                f'{good} for ${goal} be bought?',
                f'A {good} costs ${goal}. {who} owns ${have}, is given ${bonus} and puts aside ${week} every week. How '
                f'long does it take?',
            ]
        ),
        [
            f'{have} + {bonus} = {have + bonus} dollars are there.',
            f'{goal} - {have + bonus} = {week * n} are missing.',
            f'{week * n} / {week} = {n}.',
        ],
        count(n, 'week'),
    )


@kind
def growing_savings(r: Words):
    first, more, weeks = r.int(1, 20), r.int(1, 9), r.int(5, 20)
    last = first + more * (weeks - 1)
    total = weeks * (first + last) // 2
    return (
        r.choice(
            [
                f'{r.name()} saves ${first} in the first week and ${more} more each week than in the one before. How much '
                f'is saved in {weeks} weeks?',
                f'In week one {r.name()} walks {first} km, and every week {more} km more. How many km are that in {weeks} '
                f'weeks?',
            ]
        ),
        [
            f'In the last week it is {first} + {weeks - 1} * {more} = {last}.',
            f'({first} + {last}) * {weeks} / 2 = {total}.',
        ],
        total,
    )


@kind
def max_items(r: Words):
    budget, fee, each = r.int(30, 300), r.int(3, 20), r.int(3, 19)
    n, thing = (budget - fee) // each, r.thing()
    return (
        r.choice(
            [
                f'{r.name()} has ${budget}. {thing.capitalize()} cost ${each} each and delivery ${fee}. How many can be '
                f'ordered at most?',
                f'Shipping is ${fee} and {thing} are ${each} apiece. What is the largest number of '
                f'{thing} that ${budget} will pay for?',
            ]
        ),
        [
            f'{budget} - {fee} = {budget - fee} dollars remain for the {thing}.',
            f'{n} * {each} = {n * each} fits, {n + 1} * {each} = {(n + 1) * each} does not.',
        ],
        n,
    )


@kind
def exchange(r: Words):
    rate, amount = Fraction(r.int(21, 390), 20), r.int(2, 60) * 10
    coin = r.choice(['crowns', 'pesos', 'rupees', 'francs', 'dinars', 'lira'])
    if r.random() < 0.5:
        return (
            f'One dollar buys {num(rate)} {coin}. '
            f'{r.choice(["How many " + coin + " are", "What does " + r.name() + " get for"])} ${amount}?',
            [f'{amount} * {num(rate)} = {num(amount * rate)}.'],
            f'{num(amount * rate)} {coin}',
        )
    return (
        r.choice(
            [
                f'{r.name()} changes {num(amount * rate)} {coin} at {num(rate)} {coin} to the dollar. How many dollars '
                f'are that?',
                f'A ticket costs {num(amount * rate)} {coin}. A dollar is worth {num(rate)} {coin}. What is '
                f'the price in dollars?',
            ]
        ),
        [f'{num(amount * rate)} / {num(rate)} = {amount}.'],
        f'${amount}',
    )
