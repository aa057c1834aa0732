"""What reaches the terminal, and how the command ends when a signal, a full disk or a closed pipe ends it."""

import errno
import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
from command_line import QUICK

from adapterx.cli import process, reporting
from adapterx.cli.refusals import LONGEST, errors_in_one_line, fail

COMMAND = (sys.executable, "-m", "adapterx.cli")
UNSEEN = {
    "\x1b[31mred": r"\x1b[31mred",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "a\rb": r"a\rb",
    "a\nb\tc": r"a\nb\tc",
    "\x9b2J": r"\x9b2J",
    "a\x00b\x7f": r"a\x00b\x7f",
    "one\u2028two": r"one\u2028two",
    "user\u202etxt.exe": r"user\u202etxt.exe",
    "\udcff": r"\udcff",
    "né 日本 👍\u200d🔥 [b]": "né 日本 👍\u200d🔥 [b]",
}


@pytest.mark.parametrize("text", UNSEEN, ids=ascii)
def test_text_of_strangers_is_shown_and_not_obeyed(text, capsys):
    assert reporting.printable(text) == UNSEEN[text]
    reporting.print_figures(text, {text: text})
    shown = capsys.readouterr().out
    assert shown.count(UNSEEN[text]) == 3
    assert "\x1b" not in shown
    with pytest.raises(SystemExit):
        fail(f"info: {text}")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_nothing_is_read_as_markup_or_as_an_emoji(capsys):
    text = "[/n] [bold]b[/] :smile:"
    reporting.say(text)
    reporting.print_figures(text, {text: text})
    assert capsys.readouterr().out.count(text) == 4


def test_what_a_program_reads_is_exact(capsysbinary):
    reporting.put("\x1b[31m\r\né\udcff")
    assert capsysbinary.readouterr().out == b"\x1b[31m\r\n\xc3\xa9\\udcff"


FAULTS = {
    "full": (OSError(errno.ENOSPC, "No space left on device", "x"), "error: predict: x: No space left on device"),
    "a folder": (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), "error: predict: x: Is a directory"),
    "a long name": (OSError(errno.ENAMETOOLONG, "File name too long", "n" * 9000), "characters ...]"),
    "input and output": (OSError(errno.EIO, "Input/output error"), "error: predict: Input/output error"),
    "memory": (MemoryError(), "there must be more memory"),
    "torch's memory": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "more memory"),
    "depth": (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
    "interrupted": (KeyboardInterrupt(), "error: interrupted"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_a_machine_causes_is_one_line(name, capsys):
    error, said = FAULTS[name]
    with pytest.raises(SystemExit) as stopped, errors_in_one_line("predict"):
        raise error
    assert stopped.value.code == (130 if name == "interrupted" else 2)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert said in line
    assert len(line) < LONGEST + 100


def test_our_own_fault_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="a bug"), errors_in_one_line("predict"):
        raise RuntimeError("a bug")


# -- real processes


def test_interrupt_while_libraries_are_imported():
    running = subprocess.Popen(
        [*COMMAND, "info"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=with_ordinary_signals,
    )
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    told = running.communicate()[1]
    assert (running.returncode, told) == (130, "error: interrupted\n")


def test_signal_in_a_training_gives_the_terminal_back(model, data, tmp_path):
    ours, theirs = pty.openpty()
    options = ("--model", model, "--data", data, "--output", tmp_path / "run", *QUICK, "--epochs", "9999")
    running = subprocess.Popen(
        [*COMMAND, "train", *map(str, options)],
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        preexec_fn=with_ordinary_signals,
    )
    os.close(theirs)
    read_until(ours, b"\x1b[?25l")  # the bar is shown, the cursor hidden
    running.terminate()
    shown = read_until(ours, None)
    assert running.wait() == 143
    assert b"\x1b[?25h" in shown
    assert b"Traceback" not in shown
    assert b"error: terminated" in shown


def read_until(terminal, wanted):
    """Read from a terminal until `wanted` was shown, or (None) until the other side has gone."""
    shown = b""
    while wanted is None or wanted not in shown:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # Linux says EIO when nobody writes any more
            break
        if not part:
            break
        shown += part
    return shown


def with_ordinary_signals():
    """Let a child end by signals, also where nohup or a job in the background has told this process to ignore them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


# The room needs the standard library only, and a process that loads nothing else starts at once.
UNSET = {"PYTHONUNBUFFERED": ""}  # it would let every print fail at once
LOADED = f"""
import importlib.util, os, signal, sys, time
spec = importlib.util.spec_from_file_location("process", {process.__file__!r})
process = importlib.util.module_from_spec(spec)
spec.loader.exec_module(process)
"""


def run(body, **settings):
    code = LOADED + "with process.prepared():\n    process.ready()\n" + "".join(f"    {line}\n" for line in body)
    usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": with_ordinary_signals}
    settings = usual | {"env": os.environ | UNSET} | settings
    running = subprocess.Popen([sys.executable, "-c", code], **settings)
    out, told = running.communicate(timeout=60)
    return running.returncode, out, told


def test_a_terminal_that_lacks_a_character_gets_its_number():
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    body = ["print('\\u00e9 \\u65e5')", "print('\\u65e5', file=sys.stderr)"]
    assert run(body, env=ascii_only) == (0, b"\\xe9 \\u65e5\n", b"\\u65e5\n")


def test_output_that_is_full_or_has_no_reader():
    with open("/dev/full", "wb") as full:
        assert run(["print('line')"], stdout=full)[::2] == (
            2,
            b"error: standard output: No space left on device\n",
        )
    reading, unread = os.pipe()
    os.close(reading)
    assert run(["print('line')"], stdout=unread)[::2] == (141, b"")
    os.close(unread)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_stream_that_is_closed_is_no_place_for_another_file(number):
    body = [
        "opened = os.open(os.devnull, os.O_RDONLY)",
        "print('line')",
        "sys.stdin and sys.stdin.read()",
        "os._exit(opened)",
    ]
    code, _, told = run(body, preexec_fn=lambda: os.close(number), stdin=subprocess.DEVNULL)
    assert code > 2
    assert told == b""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_signal_runs_what_tidies_up(name):
    body = [f"try: os.kill(os.getpid(), signal.{name}); time.sleep(60)", "finally: print('tidied', flush=True)"]
    code, out, told = run(body)
    assert (code, out) == (128 + getattr(signal, name), b"tidied\n")
    assert told == (b"error: interrupted\n" if name == "SIGINT" else b"error: terminated\n")


def test_a_second_signal_does_not_cut_the_tidying_short():
    body = ["def end(): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.1)", "try: end()"]
    assert run([*body, "finally: end(); print('tidied', flush=True)"])[:2] == (143, b"tidied\n")


def test_ignored_signals_stay_ignored():
    """As in a command that `nohup` started."""
    body = ["os.kill(os.getpid(), signal.SIGHUP)", "os.kill(os.getpid(), signal.SIGINT)", "print('alive')"]

    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    assert run(body, preexec_fn=ignore) == (0, b"alive\n", b"")


def test_json_is_utf_8_whatever_the_terminal(trained, data):
    from command_line import invoke

    shown = invoke("predict", trained, "é good", "--format", "jsonl").stdout_bytes
    assert json.loads(shown)["text"] == "é good"
    assert "é".encode() in shown
