"""Worded math problems with worked solutions, an endless stream of them from a seed.

The templates are data, `problems.txt`, whose head explains their format; here they are compiled to functions.
A calculation in a solution is written out with the values drawn and evaluated exactly, so it is true.
"""

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from math import gcd, lcm
from pathlib import Path
from random import Random
from typing import Any

COUNT = 20_000  # problems in the embedded corpus
TEMPLATES = Path(__file__).with_name('problems.txt')

Pick = Callable[[Sequence], Any]  # Random.choice
Template = Callable[[Pick], tuple[str, list[str], str]]  # -> problem, steps of the solution, answer
Pools = dict[str, tuple[str, ...]]  # name in capitals -> words


class Unfit(Exception):
    """The numbers drawn break a condition of the template or do not come out even."""


def problems(seed: int = 0) -> Iterator[tuple[str, str]]:
    """(problem, solution), without end; the same for the same seed."""
    pick, made = Random(seed).choice, tuple(templates().values())
    while True:
        problem, steps, answer = draw(pick(made), pick)
        separator = pick(('\n', '\n', ' '))
        end = pick(('Answer: {}', 'Result: {}', 'The answer is {}.', 'The result is {}.', 'So it is {}.'))
        yield problem, separator.join([*steps, end.format(answer)])


def draw(template: Template, pick: Pick) -> tuple[str, list[str], str]:
    """One problem of a template, its steps and its answer."""
    while True:
        try:
            return template(pick)
        except Unfit:
            continue


@cache
def templates() -> dict[str, Template]:
    """Every template of `problems.txt` by its name: a function that makes one problem or raises Unfit."""
    pools: Pools = {}
    blocks: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in re.sub(r'\n {4,}', ' ', TEMPLATES.read_text(encoding='utf-8')).splitlines():
        if line.startswith('%'):
            name, words = line[1:].split(': ')
            pools[name.upper()] = tuple(words.split(', '))
        elif line.startswith('  '):
            lines.append(line.strip())
        elif line and not line.startswith('#'):
            blocks[line] = lines = []
    return dict(_compiled(head, lines, pools) for head, lines in blocks.items())


# -- what the compiled functions call ------------------------------------------------------------------------


def over(a: int | Fraction, b: int | Fraction) -> int | Fraction:
    """a / b, exactly."""
    return a // b if type(a) is type(b) is int and a % b == 0 else Fraction(a, b)


def decimal(value: int | Fraction | str) -> str:
    """A value with up to four decimals; Unfit where it needs more."""
    if not isinstance(value, Fraction):
        return str(value)
    if 10_000 % value.denominator:
        raise Unfit
    return f'{value.numerator / value.denominator:.4f}'.rstrip('0').rstrip('.')


def dollars(value: int | Fraction) -> str:
    """'$12' or '$12.50'; Unfit where it needs a part of a cent."""
    if 100 % value.denominator:
        raise Unfit
    amount = abs(value) if value.denominator == 1 else f'{abs(value.numerator) / value.denominator:.2f}'
    return f'{"-" if value < 0 else ""}${amount}'


def clock(minutes: int) -> str:
    """Minutes after midnight as '7:05 am'."""
    hour, minute = divmod(minutes % 1440, 60)
    return f'{(hour - 1) % 12 + 1}:{minute:02d} {"am" if hour < 12 else "pm"}'


def plural(count: str, noun: str) -> str:
    """'1 hour', '2 hours'."""
    return f'{count} {noun}' if count == '1' else f'{count} {noun}s'


def term(value: str) -> str:
    """A value within a product, a quotient, or a power."""
    return f'({value})' if '/' in value or value.startswith('-') else value


def articles(text: str) -> str:
    """'a' becomes 'an' before a vowel that is spoken as one, and before 8, 11, 18, and 80 to 89."""
    return re.sub(r'\b([Aa])(?= (?:[aeio]|um|8\d?\b|1[18]\b))', r'\1n', text)


CALLED = (Fraction, Unfit, articles, clock, dollars, gcd, lcm, over, plural, term)

# -- from a template to the source of a function -------------------------------------------------------------

PART = re.compile(r'\[([^][]*)\]|(\$?)\{([^{}]*)\}|(\$|[^][{}$]+)')  # [options], ${value}, literal text
OPERAND = re.compile(r'(\$?)\b([a-z][\w.]*)|([^a-z$]+)')  # a name of a calculation, or what is between names


def _compiled(head: str, lines: list[str], pools: Pools) -> tuple[str, Template]:
    name, draws = head.split(': ', 1)
    name, as_fractions, _ = name.partition(' (fractions)')
    *questions, solution = (line[2:] for line in lines)
    solution, answer = solution.split(' => ')
    steps = ', '.join(map(_text, re.split(r'(?<=\.) ', solution)))
    body = [_drawn(item) for item in draws.split('; ')] + _words(' '.join(lines), pools)
    body.append(f'return {_options(questions)}, [{steps}], {_text(answer)}')
    source = '\n '.join(['def make(pick):', *body])
    scope: dict[str, Any] = (
        {f.__name__: f for f in CALLED} | pools | {'num': str if as_fractions else decimal}
    )
    exec(compile(source, f'{TEMPLATES.name}: {name}', 'exec'), scope)
    return name, scope['make']


def _drawn(item: str) -> str:
    """The statement for `a, b = 3..40 by 5`, `x = red | blue`, `c = a * b`, or the condition `a < b`."""
    names, equals, values = item.partition(' = ')
    if not equals:
        return f'if not ({_exact(item)}): raise Unfit'
    if bounds := re.fullmatch(r'(.+?)\.\.(.+?)(?: by (\d+))?', values):
        options = f'range({bounds[1]}, {bounds[2]} + 1, {bounds[3] or 1})'
    elif ' | ' in values:
        rows = [[int(v) if v.isdecimal() else v for v in row.split(', ')] for row in values.split(' | ')]
        if len(rows[0]) > 1:
            return f'{names} = pick({tuple(map(tuple, rows))})'
        options = tuple(value for (value,) in rows)
    else:
        return f'{names} = {_exact(values)}'
    return '; '.join(f'{name} = pick({options})' for name in names.split(', '))


def _words(text: str, pools: Pools) -> list[str]:
    """The statements that draw the words a text names, no word of a pool twice."""
    named = {word.lower() for word in re.findall(r'\{([A-Za-z]+\d?)\}', text)}
    drawn: dict[str, list[str]] = {}
    for word in sorted(named):
        if (pool := word.rstrip('23').upper()) in pools:
            drawn.setdefault(pool, []).append(word)
    return [
        f'while ({word} := pick({pool})) in ({"".join(f"{w}, " for w in words[:i])}): pass'
        for pool, words in drawn.items()
        for i, word in enumerate(words)
    ]


def _options(options: list[str]) -> str:
    """The source of one of the texts, with equal chances."""
    if not any(set('{[') & set(option) for option in options):
        return f'pick({tuple(options)})'
    *firsts, last = map(_text, options)
    which = f'(which := pick({tuple(range(len(options)))}))'
    cases = [f'{source} if {"which" if i else which} == {i} else ' for i, source in enumerate(firsts)]
    return f'({"".join(cases)}{last})'


def _text(text: str) -> str:
    """The source of a text with its [options] and {values} filled in."""
    parts = [
        _options(options.split('|')) if options else _value(value, money) if value else repr(literal)
        for options, money, value, literal in PART.findall(text)
    ]
    joined = f"''.join([{', '.join(parts)}])"
    return f'articles({joined})' if re.search(r'\b[Aa] [\[{]', text) else joined


def _value(value: str, money: str) -> str:
    """The source of what stands in braces: a value, a count of things, or a calculation with its result."""
    form = 'dollars' if money else 'num'
    if shown := re.fullmatch(r'(\w*) ?= (.+)', value):
        wrap = 'term' if re.search(r'[*/^]', shown[2]) else ''
        parts = [
            repr(literal) if literal else f'dollars({name})' if dollar else f'{wrap}(num({name}))'
            for dollar, name, literal in OPERAND.findall(shown[2])
        ]
        return f"{', '.join(parts)}, ' = ', {form}({shown[1] or '_'} := {_exact(shown[2])})"
    if counted := re.fullmatch(r'(\w+) ([a-z]+)', value):
        return f'plural(num({counted[1]}), {counted[2]!r})'
    return f'{value.lower()}.capitalize()' if value[0].isupper() else f'{form}({_exact(value)})'


class _Exact(ast.NodeTransformer):
    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        return _call('over', node.left, node.right) if isinstance(node.op, ast.Div) else node

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return _call('Fraction', ast.Constant(str(node.value))) if isinstance(node.value, float) else node


def _call(function: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(function), list(arguments), [])


def _exact(expression: str) -> str:
    """An expression in exact arithmetic, with ^ for powers."""
    tree = ast.parse(expression.replace('$', '').replace('^', '**'), mode='eval')
    return ast.unparse(_Exact().visit(tree))
