"""Problems about lengths, areas, volumes and angles."""

from fractions import Fraction

from .words import Words, kind, num


@kind
def rectangle(r: Words):
    w, h = r.int(3, 60), r.int(3, 60)
    unit, what = r.choice([('m', 'garden'), ('cm', 'card'), ('m', 'hall'), ('ft', 'yard'), ('cm', 'picture')])
    if r.random() < 0.5:
        return (
            r.choice(
                [
                    f'A rectangular {what} is {w} {unit} long and {h} {unit} wide. Find its perimeter and area.',
                    f'How large are the perimeter and the area of a rectangle of {w} {unit} by {h} {unit}?',
                ]
            ),
            [
                f'Perimeter: 2 * ({w} + {h}) = {2 * (w + h)} {unit}.',
                f'Area: {w} * {h} = {w * h} square {unit}.',
            ],
            f'{2 * (w + h)} {unit} and {w * h} square {unit}',
        )
    return (
        r.choice(
            [
                f'A rectangular {what} has a perimeter of {2 * (w + h)} {unit} and is {w} {unit} long. What is its area?',
                f'The sides of a rectangle add up to {2 * (w + h)} {unit}; one side is {w} {unit}. How many square {unit} '
                f'does it cover?',
            ]
        ),
        [
            f'Length and width together are {2 * (w + h)} / 2 = {w + h} {unit}.',
            f'The width is {w + h} - {w} = {h} {unit}.',
            f'{w} * {h} = {w * h} square {unit}.',
        ],
        f'{w * h} square {unit}',
    )


@kind
def triangle(r: Words):
    b, h = r.int(3, 60), r.int(3, 60)
    area = num(Fraction(b * h, 2))
    return (
        r.choice(
            [
                f'A triangle has a base of {b} cm and a height of {h} cm. What is its area?',
                f'A triangular sail is {b} m wide at the foot and {h} m high. How much cloth does it need?',
            ]
        ),
        [f'Base times height: {b} * {h} = {b * h}.', f'Half of that: {b * h} / 2 = {area}.'],
        area,
    )


@kind
def pythagoras(r: Words):
    a, b, c = r.choice(
        [(3, 4, 5), (5, 12, 13), (8, 15, 17), (7, 24, 25), (20, 21, 29), (9, 40, 41), (12, 35, 37)]
    )
    k = r.int(1, 25)
    a, b, c = a * k, b * k, c * k
    if r.random() < 0.5:
        a, b = b, a
    if r.random() < 0.5:
        return (
            r.choice(
                [
                    f'The legs of a right triangle are {a} cm and {b} cm. How long is the hypotenuse?',
                    f'{r.name()} walks {a} m east and then {b} m north. How far is that from the start in a straight '
                    f'line?',
                ]
            ),
            [
                f'{a}^2 + {b}^2 = {a * a} + {b * b} = {c * c}.',
                f'The root of {c * c} is {c}, since {c} * {c} = {c * c}.',
            ],
            c,
        )
    return (
        r.choice(
            [
                f'A ladder of {c} dm leans against a wall with its foot {a} dm from it. How high does it reach?',
                f'In a right triangle the hypotenuse is {c} cm and one leg {a} cm. Find the other leg.',
            ]
        ),
        [f'{c}^2 - {a}^2 = {c * c} - {a * a} = {b * b}.', f'The root of {b * b} is {b}.'],
        b,
    )


@kind
def box(r: Words):
    a, b, c = r.int(2, 25), r.int(2, 25), r.int(2, 25)
    if r.random() < 0.5:
        return (
            r.choice(
                [
                    f'A box is {a} cm long, {b} cm wide and {c} cm high. What is its volume?',
                    f'How many cubes of 1 cm fill a crate of {a} by {b} by {c} cm?',
                ]
            ),
            [f'The floor is {a} * {b} = {a * b} square cm.', f'{a * b} * {c} = {a * b * c} cubic cm.'],
            a * b * c,
        )
    faces = a * b + b * c + a * c
    return (
        r.choice(
            [
                f'How much paper covers a box of {a} by {b} by {c} cm without overlap?',
                f'Find the surface of a block with edges {a}, {b} and {c}.',
            ]
        ),
        [
            f'Three faces: {a} * {b} + {b} * {c} + {a} * {c} = {faces}.',
            f'Each occurs twice: 2 * {faces} = {2 * faces}.',
        ],
        2 * faces,
    )


@kind
def path_around(r: Words):
    a, b, w = r.int(6, 50), r.int(6, 50), r.int(1, 6)
    A, B = a + 2 * w, b + 2 * w
    what = r.choice(['pool', 'lawn', 'pond', 'flower bed', 'picture', 'stage'])
    return (
        r.choice(
            [
                f'A {what} of {a} m by {b} m is surrounded by a path {w} m wide. What is the area of the path?',
                f'Around a {what} that measures {a} m by {b} m runs a border of {w} m on every side. How large is the '
                f'border?',
            ]
        ),
        [
            f'With the border it measures {a} + 2 * {w} = {A} by {b} + 2 * {w} = {B}.',
            f'The areas are {A} * {B} = {A * B} and {a} * {b} = {a * b}.',
            f'{A * B} - {a * b} = {A * B - a * b} square m.',
        ],
        f'{A * B - a * b} square m',
    )


@kind
def circle(r: Words):
    radius = r.int(2, 120)
    pi = Fraction(314, 100)
    what = r.choice(['table', 'pond', 'plate', 'fountain', 'wheel', 'rug'])
    if r.random() < 0.5:
        return (
            f'{r.choice(["What is the area", "How large is the area"])} of a round {what} with a radius of {radius} cm? Use '
            f'3.14 for pi.',
            [f'{radius} * {radius} = {radius**2}.', f'3.14 * {radius**2} = {num(pi * radius**2)}.'],
            f'{num(pi * radius**2)} square cm',
        )
    return (
        f'{r.choice(["What is the circumference", "How long is the rim"])} of a round {what} with a diameter of '
        f'{2 * radius} cm? Use 3.14 for pi.',
        [f'Circumference is pi times diameter: 3.14 * {2 * radius} = {num(pi * 2 * radius)}.'],
        f'{num(pi * 2 * radius)} cm',
    )


@kind
def angles(r: Words):
    if r.random() < 0.6:
        a = r.int(15, 110)
        b = r.int(15, 165 - a)
        return (
            r.choice(
                [
                    f'Two angles of a triangle are {a} and {b} degrees. Find the third.',
                    f'A triangle has angles of {a} and {b} degrees. How large is the remaining angle?',
                ]
            ),
            [f'{a} + {b} = {a + b}.', f'The angles add up to 180: 180 - {a + b} = {180 - a - b}.'],
            f'{180 - a - b} degrees',
        )
    n = r.int(5, 400)
    total = (n - 2) * 180
    return (
        r.choice(
            [
                f'What is the sum of the interior angles of a polygon with {n} sides?',
                f'A polygon has {n} corners. What do its inner angles add up to?',
            ]
        ),
        [f'It can be cut into {n} - 2 = {n - 2} triangles.', f'{n - 2} * 180 = {total}.'],
        f'{total} degrees',
    )


@kind
def trapezoid(r: Words):
    a, b, h = r.int(3, 40), r.int(3, 40), r.int(2, 30)
    area = num(Fraction((a + b) * h, 2))
    return (
        r.choice(
            [
                f'The parallel sides of a trapezoid are {a} cm and {b} cm, its height is {h} cm. What is its area?',
                f'A field is bounded by parallel fences of {a} m and {b} m that are {h} m apart. How large is it?',
            ]
        ),
        [f'The sides together: {a} + {b} = {a + b}.', f'{a + b} * {h} / 2 = {area}.'],
        area,
    )
