import pytest

from lmplay.cli import CommandParser, run_command
from lmplay.errors import PlanError, UserError


def parser():
    p = CommandParser('lmp_test', description='A test.')
    p.add_argument('name')
    p.add_argument('--number', type=int)
    p.add_argument('--kind', choices=('a', 'b'))
    return p


@pytest.mark.parametrize(
    'arguments, sentence',
    [
        (['x', '--numbr', '3'], "Unknown option '--numbr'. Did you mean '--number'? See lmp_test --help."),
        (
            ['x', '--num', '3'],
            "Unknown option '--num'. Did you mean '--number'? See lmp_test --help.",
        ),  # no abbreviations
        (['x', 'y'], "Unknown argument 'y'. See lmp_test --help."),
        (['x', '--number', '3.5'], "Argument --number: invalid int value: '3.5'. See lmp_test --help."),
        (['x', '--kind', 'c'], "Argument --kind: invalid choice: 'c'"),
        ([], 'The following arguments are required: name. See lmp_test --help.'),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence):
    with pytest.raises(UserError) as error:
        parser().parse_args(arguments)
    assert str(error.value).startswith(sentence) and '\n' not in str(error.value)


def test_good_options_pass():
    assert vars(parser().parse_args(['x', '--number', '3'])) == {'name': 'x', 'number': 3, 'kind': None}


def test_exit_codes(capsys):
    def fail(error):
        raise error

    assert run_command('lmp_test', lambda: None) == 0 and run_command('lmp_test', lambda: 3) == 3
    assert run_command('lmp_test', lambda: fail(PlanError('No plan.'))) == 2
    assert capsys.readouterr().err == 'lmp_test: No plan.\n'
    assert run_command('lmp_test', lambda: fail(KeyboardInterrupt()), stopped='stopped here.') == 130
    assert capsys.readouterr().err == '\nlmp_test: stopped here.\n'
    with pytest.raises(ZeroDivisionError):  # a bug stays one
        run_command('lmp_test', lambda: 1 / 0)
