"""Programs in the sandbox: what they are given, what comes back.

Run: python -m pytest tests/sandbox/test_run.py
"""

import pytest

from kd.sandbox import Limits, run

SHORT = Limits(cpu_seconds=1, seconds=0.5, memory=256 << 20, output=1000)


def test_a_program_reads_its_input_and_files_and_writes(mechanism):
    code = "import sys, os\nname = input()\n"
    code += "print(name, open('data/a.txt').read(), sorted(os.listdir()), file=sys.stderr)\n"
    outcome = run(
        f"{code}open('new', 'w').write('y'); print(open('new').read())", stdin="b\n", files={"data/a.txt": "ü"}
    )
    assert (outcome.status, outcome.stdout, outcome.stderr, outcome.error) == ("ok", "y\n", "b ü ['data']\n", "")
    assert 0 < outcome.seconds < 30


def test_the_whole_input_can_be_read_at_once_and_is_larger_than_a_pipe(mechanism):
    assert run("print(len(open(0).read()))", stdin="x" * 200_000).stdout == "200000\n"


def test_a_module_among_the_files_and_packages_can_be_imported(mechanism):
    outcome = run("import mine, numpy, json; print(mine.two + int(numpy.ones(3).sum()))", files={"mine.py": "two = 2"})
    assert outcome.stdout == "5\n"


def test_folders_and_threads_work(mechanism):
    code = "import tempfile, threading, os\nwith tempfile.TemporaryDirectory() as f: open(f + '/a', 'w').write('1')\n"
    assert run(code + "t = threading.Thread(target=print, args=(7,)); t.start(); t.join()").stdout == "7\n"


def test_nothing_is_left_for_the_next_program(mechanism):
    leave = "import os, builtins; os.makedirs('a/b'); open('a/b/c', 'w'); os.symlink('a', 'l'); builtins.x = 1"
    for _ in range(3):  # more than there are workers
        assert run(leave).status == "ok"
    for _ in range(3):
        assert run("import os, builtins; print(os.listdir(), hasattr(builtins, 'x'))").stdout == "[] False\n"


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("print(1)", "ok", ""),
        ("1 / 0", "raised", "ZeroDivisionError: division by zero"),
        ("raise KeyboardInterrupt", "raised", "KeyboardInterrupt:"),
        ("def f(): f()\nf()", "raised", "RecursionError: maximum recursion"),
        ("(", "raised", "SyntaxError: '(' was never closed"),
        ("class E(Exception):\n    def __str__(self): 1 / 0\nraise E", "raised", "E"),
        ("raise SystemExit(0)", "exit", "it called exit(0)"),
        ("import os; os._exit(0)", "exit", "it ended with exit code 0"),
        ("import os; os.abort()", "killed", "it was ended by SIGABRT"),
        ("import ctypes; ctypes.string_at(0)", "killed", "it was ended by SIGSEGV"),
        ("x = bytearray(1 << 30)", "raised", "MemoryError:"),
        ("while True: pass", "timeout", "it was stopped after 1 s of processor time"),
    ],
)
def test_every_end_has_its_status(code, status, error, mechanism):
    outcome = run(code, limits=Limits(cpu_seconds=1, memory=256 << 20))
    assert outcome.status == status
    assert outcome.error.startswith(error)
    assert bool(outcome.error) == bool(error)


def test_what_waits_is_stopped_by_the_clock(mechanism):
    outcome = run("import time; print('first', flush=True); time.sleep(60)", limits=SHORT)
    assert (outcome.status, outcome.error, outcome.stdout) == ("timeout", "it was stopped after 0.5 s", "first\n")


def test_output_is_cut_and_may_be_no_text(mechanism):
    outcome = run("import os; os.write(1, b'\\xff'); print('x' * 10**6); os.write(2, b'y' * 10**6)", limits=SHORT)
    assert outcome.stdout == "\ufffd" + 999 * "x"
    assert outcome.stderr == 1000 * "y"


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", ""])
def test_files_stay_inside(name):
    with pytest.raises(ValueError, match="is not a path inside the sandbox's folder"):
        run("", files={name: "x"})
