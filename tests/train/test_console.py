from io import StringIO

import pytest

from lmplay.train.console import ConsoleReporter
from lmplay.train.length import SampleLength
from lmplay.train.plan import Stage
from lmplay.train.state import TrainState
from tests.helpers import tiny

LENGTH = SampleLength(4, 1, 40, 40, 40)
RECORD = {
    'stage': 's',
    'loss': 2.5,
    'lr': 0.001,
    'grad_norm': 1.25,
    'tokens_per_second': 12345.0,
    'memory': 2**31,
    'data_wait': 0.0,
}


class Terminal(StringIO):
    def isatty(self):
        return True


@pytest.fixture
def console():
    return ConsoleReporter(StringIO())


def said(console):
    return console.out.getvalue()


def test_a_point_of_the_curve_is_a_line_from_time_to_time_and_at_the_end(console):
    for samples in (4, 8, 40):
        console.train(RECORD, TrainState(step=samples // 4, samples=samples, stage_seconds=1.0), LENGTH)
    lines = said(console).splitlines()
    assert len(lines) == 2  # not ten seconds passed between the first two
    assert lines[0] == 's step 1/10 loss 2.5000 lr 1.00e-03 |g| 1.25 12.3 k tok/s 2.0 GiB left 0:09'
    assert lines[1].startswith('s step 10/10 ')


@pytest.mark.parametrize(
    'record, shown',
    [
        ({'mfu': 0.42}, 'MFU 42%'),
        ({'data_wait': 0.3}, 'data wait 30%'),
        ({'tokens_per_second': None}, '0 tok/s'),
    ],
)
def test_figures_that_are_shown_where_they_matter(console, record, shown):
    console.train(RECORD | record, TrainState(step=1, samples=4), LENGTH)
    assert shown in said(console)


def test_an_evaluation_comes_with_an_example_and_domains_where_there_are_several(console):
    domains = {'a': {'loss': 1.0}, 'b': {'loss': 2.0}}
    record = {'samples': 1200, 'loss': 1.5, 'accuracy': 0.25, 'perplexity': 4.48, 'bits_per_byte': 2.1}
    example = {'prompt': 'one\n two', 'truth': ' three', 'prediction': ' four'}
    console.validation(record | {'domains': domains, 'loss_with_pad': 0.5}, example)
    first, *rest = said(console).splitlines()
    assert first == (
        'validation at 1,200 sequences: loss 1.5000 accuracy 25.0% perplexity 4.48 bits/byte 2.1000 '
        'loss with padding 0.5000 | a 1.000 b 2.000'
    )
    assert rest == ['  prompt     one two', '  truth      three', '  prediction four']


def test_gradients_that_are_missing_are_told_by_name(console):
    model = tiny()
    model.pos_embed.requires_grad_(False)
    for name, p in model.named_parameters():
        p.grad = p.detach() * 0 + (name != 'fc.bias')
    console.gradients(model, Stage(dataset='embedded'))
    lines = said(console).splitlines()
    assert 'Updated by adamw, weight decay 0.01, head: fc.weight (4,112 parameters)' in lines
    assert [line for line in lines if not line.startswith('Updated by')] == [
        '1 parameters frozen: pos_embed',
        '1 parameters without a gradient: fc.bias',
    ]


def test_quiet_says_nothing():
    console = ConsoleReporter(StringIO(), quiet=True)
    console.line('something')
    console.train(RECORD, TrainState(step=1, samples=40), LENGTH)
    assert said(console) == ''


def test_a_terminal_gets_a_bar_that_lines_do_not_tear(train, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr('sys.stderr', terminal)
    assert train(exp='mean', quiet=False)[0] == 0
    shown = terminal.getvalue()
    assert '48/48' in shown and 'seq' in shown
    lines = [line for line in shown.replace('\r', '\n').splitlines() if 'validation at 48' in line]
    assert len(lines) == 1 and lines[0].startswith('validation at 48 sequences')
