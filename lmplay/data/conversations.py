"""Conversations as documents: which turns are learned, and how the turns before them are written."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from ..errors import DataError, unknown


def string_of(value: object, column: str, place: str) -> str:
    """A column's value as text, '' for null. Raises DataError for what is not text."""
    if value is None:
        return ''
    if not isinstance(value, str):
        shown = json.dumps(value, default=repr)[:40]
        raise DataError(f"{place}: column '{column}' holds {shown}, which is not text.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: column '{column}' holds half of a surrogate pair "
                f'(\\u{ord(value[error.start]):04x}), which is not a character.'
            ) from error
    return value


def conversation(messages: object, spec: dict[str, Any], place: str) -> Iterator[tuple[str, str, str]]:
    """(text, prompt, group) of the assistant's turns that are learned: the last, with "turns" "all" each.

    The prompt is all that comes before the turn, to where its content begins. Turns of one conversation have
    one group, so that none is held out while another is trained on. Raises DataError for what is no list of
    turns, and for a role that the template lacks.
    """
    column, template = spec['messages'], spec.get('template')
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and {'role', 'content'} <= m.keys() for m in messages
    ):
        raise DataError(f'{place}: column \'{column}\' is not a list of {{"role", "content"}} objects.')
    answers = [i for i, m in enumerate(messages) if m['role'] == 'assistant']
    if not answers:
        yield '', '', ''
        return
    every = spec.get('turns') == 'all'
    group = hashlib.sha256(json.dumps(messages, default=repr).encode()).hexdigest()[:16] if every else ''
    written = ''
    for i, message in enumerate(messages[: answers[-1] + 1]):
        content = string_of(message['content'], f'{column}.content', place)
        before, after = _around(str(message['role']), template, place)
        if i in answers and (every or i == answers[-1]):
            yield content + after.rstrip(), written + before, group
        written += before + content + after


def _around(role: str, template: dict[str, str] | None, place: str) -> tuple[str, str]:
    """What a turn of that role begins and ends with."""
    if template is None:
        return f'{role.capitalize()}:\n', '\n\n'
    if role not in template:
        raise DataError(unknown('role', role, template, f'{place}, "template"'))
    before, after = template[role].split('{content}')
    return before, after
