import signal
import threading
from io import StringIO

import pytest

from lmplay.cli import run_command
from lmplay.train.console import ConsoleReporter
from lmplay.train.stopping import StopSignal, StopTraining
from tests.helpers import events, progress, stop_at, summary

BOTH = pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])


@pytest.fixture
def stop():
    return StopSignal(ConsoleReporter(StringIO()))


@BOTH
def test_a_first_signal_lets_the_step_end(stop, number):
    with stop.installed(), stop.waits_for_the_step():
        stop.check()
        signal.raise_signal(number)  # and the step goes on
        with pytest.raises(StopTraining, match='interrupted'):
            stop.check()
    assert stop.exit_code == 128 + number
    assert 'Stopping after this step; signal again to stop at once.' in stop.console.out.getvalue()


@BOTH
def test_a_second_signal_ends_it_at_once(stop, number):
    with pytest.raises(KeyboardInterrupt), stop.installed(), stop.waits_for_the_step():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(number)
    assert stop.exit_code == 128 + number


@pytest.mark.parametrize('first', [signal.SIGINT, signal.SIGTERM])
def test_sigterm_at_last_ends_the_command_with_143(stop, first):
    def command():
        with stop.installed(), stop.waits_for_the_step():
            signal.raise_signal(first)
            signal.raise_signal(signal.SIGTERM)

    assert run_command('x', command) == 143


def test_a_signal_in_the_middle_of_a_print_is_told_at_once(tmp_path):
    """The handler writes past the buffers: printing there would raise where a print is interrupted."""
    with open(tmp_path / 'err', 'w') as out:
        stop = StopSignal(ConsoleReporter(out))
        with stop.installed(), stop.waits_for_the_step():
            signal.raise_signal(signal.SIGTERM)
            assert 'Stopping after this step' in (tmp_path / 'err').read_text()
            with pytest.raises(StopTraining):
                stop.check()
    assert (tmp_path / 'err').read_text().count('Stopping') == 1


@BOTH
def test_without_a_step_to_wait_for_the_first_ends_it_at_once(stop, number):
    with pytest.raises(KeyboardInterrupt), stop.installed():
        with stop.waits_for_the_step():
            pass
        signal.raise_signal(number)
    assert stop.exit_code == 128 + number


def test_while_the_state_is_saved_after_an_error_a_signal_still_waits(stop):
    with stop.installed():
        with pytest.raises(StopTraining), stop.waits_for_the_step():
            raise StopTraining('no finite gradient')
        signal.raise_signal(signal.SIGTERM)
    assert stop.number == signal.SIGTERM


@pytest.mark.parametrize('error', [None, ValueError])
def test_handlers_are_those_of_before_whatever_happens(stop, error):
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.getsignal(n) for n in numbers]
    try:
        with stop.installed():
            assert [signal.getsignal(n) for n in numbers] != before
            if error:
                raise error
    except ValueError:
        pass
    assert [signal.getsignal(n) for n in numbers] == before


def test_outside_the_main_thread_it_installs_nothing(stop):
    """Python allows no handlers there; lmplay.train(...) may be called from any thread."""
    before, done = signal.getsignal(signal.SIGINT), []

    def use():
        with stop.installed(), stop.waits_for_the_step():
            stop.check()
            done.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert done == [before]


def test_where_there_was_no_signal_the_exit_code_is_1(stop):
    stop.check()
    assert stop.exit_code == 1


def test_a_run_stops_after_its_step_and_resumes(train, capsys):
    with stop_at(4):
        code, run = train(quiet=False)
    assert code == 130 and progress(run)['step'] == 5
    error = capsys.readouterr().err
    assert f"State saved in '{run}/checkpoints/last'; rerun the same command to resume." in error
    assert not events(run, 'stopped') and not (run / 'summary.json').exists()  # a signal is no finding
    assert train()[0] == 0 and summary(run)['steps'] == 12


def test_a_reason_to_stop_is_recorded(train):
    code, run = train(stage={'on_nan': 'stop'}, nan_from=2, nan_to=3)
    (stopped,) = events(run, 'stopped')
    assert code == 1 and stopped['message'].startswith('Stopped: the gradient was not finite at step 3')
