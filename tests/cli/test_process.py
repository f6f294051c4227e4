"""What a command does with the process around it: streams, signals, folders, its own faults."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time

import pytest

from bksdm.cli import main, samplers
from bksdm.cli.commands import COMMANDS
from bksdm.cli.process import Stopped
from bksdm.engines.errors import EngineError, RequestError

unix = pytest.mark.skipif(sys.platform == "win32", reason="signals and shells of Unix")


def fault(monkeypatch, error):
    def run(options):
        raise error

    monkeypatch.setattr(samplers, "run", run)


@pytest.mark.parametrize(
    ("error", "code", "named"),
    [
        (RuntimeError("a\x1b[31m\nb"), 70, r"error: RuntimeError: a\x1b[31m b; this is a fault"),
        (KeyError("x"), 70, "error: KeyError: 'x'; this is a fault of the program"),
        (RecursionError("deep"), 70, "RecursionError: deep"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), 70, "UnicodeDecodeError"),
        (MemoryError(), 2, "error: not enough memory"),
        (OSError(28, "No space left on device", "/x/y"), 2, "error: /x/y: No space left on"),
        (OSError(5, "Input/output error"), 2, "error: Input/output error"),
        (OSError("odd"), 2, "error: odd"),
        (RequestError("two\nlines \x9b31m"), 2, r"error: two lines \x9b31m"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_error_is_one_line(run, monkeypatch, error, code, named):
    fault(monkeypatch, error)
    found, out, err = run("samplers")
    assert (found, out) == (code, "")
    assert named in err
    assert err.count("\n") == 1
    assert ("report" in err) == ("--debug" in err) == (code == 70)


@pytest.mark.parametrize(
    ("interrupt", "code", "named"),
    [(Stopped(15), 143, "ended by SIGTERM"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_an_import_that_is_interrupted_is_no_broken_package(
    run, monkeypatch, interrupt, code, named
):
    try:
        raise ImportError("initialization failed") from interrupt
    except ImportError as raised:
        try:
            raise EngineError("the package cannot be imported") from raised
        except EngineError as error:
            fault(monkeypatch, error)
    assert run("samplers") == (code, "", f"bksdm: {named}\n")


@pytest.mark.parametrize("command", [["--debug", "samplers"], ["samplers", "--debug"]])
def test_debug_shows_where_an_error_comes_from(run, monkeypatch, command):
    assert run(*command)[0] == 0
    fault(monkeypatch, RuntimeError("a\x1b[31m"))
    code, _, err = run(*command)
    assert code == 70
    assert err.startswith("Traceback")
    assert __file__ in err
    assert err.splitlines()[-1].startswith("bksdm: error: RuntimeError")
    assert "\x1b" not in err


@pytest.mark.parametrize(
    "words",
    [
        *([name, "--debug"] for name in COMMANDS),
        ["--debug", "bench", "latency"],
        ["bench", "--debug", "latency"],
        ["bench", "latency", "--debug"],
    ],
)
def test_debug_is_known_everywhere(run, words):
    code, out, err = run(*words, "--help")
    assert (code, err) == (0, "")
    assert "--debug" in out


def test_help_keeps_capital_letters(run):
    assert "Compile a bundle for a GPU, or tune it to this CPU." in run("build", "--help")[1]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "required: COMMAND"),
        (["generat"], "unknown 'generat'; did you mean generate?"),
        (["quux"], "unknown 'quux'; known: generate, export"),
        (["--verbose", "samplers"], "unknown option '--verbose'"),
        (["--debug=1", "samplers"], "--debug takes no value, such as '1'"),
        (["samplers", "--jsn"], "unknown option '--jsn'; did you mean --json?"),
        (["samplers", "--js"], "did you mean --json?"),
        (["samplers", "x"], "unexpected argument 'x'"),
        (["samplers", "--json=1"], "--json takes no value, such as '1'"),
        (["bench", "latenci"], "did you mean latency?"),
        (["bench", "latency", "--step", "3"], "did you mean --steps?"),
        (["generate", "x", "--steps"], "--steps needs a value"),
        (["generate", "x", "--negative", "-y"], "is written --negative=VALUE"),
        (["export", "x", "-o", "y", "--dtype", "float8"], "unknown 'float8'; did you mean float"),
        (["x\x1b[31m\u202e"], r"'x\x1b[31m\u202e'"),
    ],
)
def test_words_that_are_unknown_are_one_line(run, words, named):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert named in err
    assert "--help`" in err
    assert err.count("\n") == 1
    assert "\x1b" not in err


class Stream(io.TextIOWrapper):
    """Standard output in a given encoding."""

    def __init__(self, encoding, raw=None):
        super().__init__(raw or io.BytesIO(), encoding=encoding)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "naïve 日本 → ß"),
        ("cp1252", r"naïve \u65e5\u672c \u2192 ß"),
        ("ascii", r"na\xefve \u65e5\u672c \u2192 \xdf"),
        ("utf-16", "naïve 日本 → ß"),
    ],
)
def test_every_encoding_takes_every_text(draw, tmp_path, monkeypatch, encoding, shown):
    path = tmp_path / "→.png"
    stream = Stream(encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert draw("-o", path, "--negative", "naïve 日本 → ß")[0] == 0
    assert main(["info", str(path)]) == 0
    assert f"negative_prompt: {shown}\n" in stream.buffer.getvalue().decode(encoding)
    for command in ([], *([name] for name in COMMANDS)):
        assert main([*command, "--help"]) == 0


@unix
def test_bytes_of_a_name_come_out_as_they_were(draw, tmp_path, monkeypatch):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    stream = Stream("utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    assert draw("-o", path)[0] == 0
    assert stream.buffer.getvalue() == os.fsencode(path) + b"\n"


class Terminal(Stream):
    def isatty(self):
        return True


def test_a_terminal_is_sent_no_picture_and_no_control_characters(draw, tmp_path, monkeypatch):
    stream = Terminal("utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    code, _, err = draw("-o", "-")
    assert code == 2
    assert "a terminal shows no such file" in err
    if sys.platform != "win32":
        assert draw("-o", tmp_path / "\x1b[31m.png")[0] == 0
        assert stream.buffer.getvalue().decode().endswith("/\\x1b[31m.png\n")


class Broken(io.BytesIO):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, content):
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "named"),
    [
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (OSError(28, "No space left on device"), 2, "bksdm: error: {}No space left on device\n"),
    ],
)
@pytest.mark.parametrize("words", [["samplers"], ["samplers", "--help"], ["info", "{}", "--json"]])
def test_output_that_nobody_takes(run, tiny_bundle, monkeypatch, error, code, named, words):
    monkeypatch.setattr(sys, "stdout", Stream("utf-8", Broken(error)))
    found, _, err = run(*(word.format(tiny_bundle) for word in words))
    assert found == code
    assert err in [named.format(cause) for cause in ("", "cannot write standard output: ")]
    sys.stdout.buffer.error = None
    monkeypatch.undo()


@unix
@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("samplers >&-", 0, b"", b""),
        ("samplers --nosuch 2>&-", 2, b"", b""),
        ("samplers >&- 2>&- <&-", 0, b"", b""),
        ("generate x --steps 1 -o - >&-", 2, b"", b"standard output is closed\n"),
        ("samplers > /dev/full", 2, b"", b"No space left on device\n"),
        ("--help | head -1; exit ${PIPESTATUS[0]}", 0, b"usage: bksdm", b""),
    ],
)
def test_closed_and_full_streams(tmp_path, line, code, out, err):
    if "full" in line and sys.platform != "linux":
        pytest.skip("no /dev/full")
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m bksdm.cli {line}"],
        capture_output=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == code
    assert done.stdout.startswith(out)
    assert done.stderr.endswith(err)
    assert done.stderr.count(b"\n") == bool(err)
    assert list(tmp_path.iterdir()) == []


WITHOUT_FOLDER = [
    ["generate", "x"],
    ["generate", "x", "--model", "bundle", "-o", "{}/y.png"],
    ["info", "x.png"],
    ["export", "{}", "-o", "{}/z"],
    ["dummy", "nano", "-o", "{}/z"],
    ["dummy", "nano", "-o", "z"],
    ["verify", "{}", "--against", "{}"],
    ["verify", "--all"],
    ["build", "x", "--list"],
    ["calibrate", "x"],
    ["bench", "latency", "--json", "x.json"],
    ["bench", "compare", "a.json", "b.json"],
    ["bench", "peers", "x"],
]


@unix
def test_a_working_directory_that_is_gone(run, draw, tiny_bundle, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for words in WITHOUT_FOLDER:
        code, out, err = run(*(word.format(tmp_path) for word in words))
        assert (code, out) == (2, ""), words
        assert "the working directory is gone" in err, words
        assert err.count("\n") == 1
    # Where no name is relative to it, nothing is amiss.
    assert run("samplers")[0] == 0
    assert run("info", tiny_bundle)[0] == 0
    assert draw("-o", tmp_path / "x.png")[:2] == (0, f"{tmp_path}/x.png\n")
    assert run("info", tmp_path / "x.png")[0] == 0


@unix
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_drawing_leaves_whole_steps_and_no_picture(
    tiny_bundle, tmp_path, name, code
):
    steps = tmp_path / "steps"
    command = [
        sys.executable,
        "-m",
        "bksdm.cli",
        "generate",
        "x",
        "--model",
        str(tiny_bundle),
        "--steps",
        "900",
        "--save-steps",
        str(steps),
        "-o",
        str(tmp_path / "x.png"),
    ]
    # A test run in the background has inherited that interrupts are ignored.
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stderr is not None
        while not any(steps.glob("step-*.png")):
            assert process.poll() is None, "it ends before its first step"
            time.sleep(0.01)
        process.send_signal(getattr(signal, name))
        rest = process.stderr.read()
        assert process.wait(20) == code
    assert rest.splitlines()[-1].endswith({130: "interrupted", 143: "ended by SIGTERM"}[code])
    assert "Traceback" not in rest
    assert [path.name for path in tmp_path.iterdir()] == ["steps"]
    assert all(path.name.startswith("step-") for path in steps.iterdir())


@unix
def test_signals_are_handled_as_before_afterwards(run, usual_signals):
    numbers = (signal.SIGTERM, signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    before = [signal.getsignal(number) for number in numbers]
    seen = []

    def look(options):
        seen.extend(signal.getsignal(number) for number in numbers)
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samplers, "run", look)
        assert run("samplers")[0] == 0
    assert callable(seen[0])
    # As `nohup` has it.
    assert seen[1] == signal.SIG_IGN
    assert [signal.getsignal(number) for number in numbers] == before


ENDLESS = """
import hashlib
from bksdm.cli import process
process.GRACE_SECONDS = 0.5
with process.stop_signals():
    print("begun", flush=True)
    # Like a network's run: Python hears of no signal before it returns.
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2**31 - 1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM on Windows")
def test_a_run_that_hears_of_no_signal_ends_all_the_same():
    with subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        # Time to begin; a signal before would be heard.
        time.sleep(0.5)
        process.terminate()
        assert process.wait(timeout=30) == 143
