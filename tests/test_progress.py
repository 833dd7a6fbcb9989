"""Lines of progress: rates and times left by a scripted clock, and what is left on a terminal and in a pipe.

Run: python -m pytest tests/test_progress.py
"""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from kd import progress
from kd.progress import count_tokens, counted_from_bars, duration, part, phase, remark
from tests import runs

ROOT = Path(__file__).parents[1]
COLUMNS = 80
SCRIPT = """
import time
from kd.progress import part, phase
with part("student before"):
    with phase("evaluate", 4, "references") as shown:
        for _ in range(4):
            time.sleep(0.1)
            shown.tokens += 50
            shown.advance(1)
print("a table")
with phase("train", 6, "steps") as shown:
    for step in range(6):
        time.sleep(0.1)
        shown.notes = ["loss 0.5", *(f"a_term_with_a_long_name_{i} 12.5" for i in range(4))]
        shown.advance(1)
        if step == 3:
            print("printed meanwhile")
            with phase("validate", leaves=False), phase("generate", 3, "answers") as inner:
                time.sleep(0.4)
                inner.advance(3)
with phase("convert model.gguf, once"):
    time.sleep(0.3)
"""
LEFT = [
    r"student before · evaluate  4 references in \d\.\d s  \S+ tokens/s",
    r"a table",
    r"printed meanwhile",
    r"train  6 steps in \d\.\d s  \S+ steps/s  loss 0\.5(  a_term_with_a_long_name_0 12\.5)?",
    r"convert model\.gguf, once  \d\.\d s",
]


class Clock:
    """The time, which only a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    found = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(progress.time, "monotonic", found)
        yield found


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_rate_and_time_left(clock: Clock) -> None:
    """60 s for 120 of 300 steps: 2 a second, and 180 are left for 90 s; 60 000 tokens in 60 s are 1 000 a second."""
    with phase("train", 300, "steps") as shown:
        clock.now += 60
        shown.tokens, shown.notes = 60_000, ["loss 0.5"]
        shown.update(120)
        assert shown.line(clock.now, 80) == "train  120/300 steps  2/s  1,000 tokens/s  loss 0.5  ETA 1 min 30 s"
        assert shown.line(clock.now, 60) == "train  120/300 steps  2/s  1,000 tokens/s  ETA 1 min 30 s"
        assert shown.line(clock.now, 45) == "train  120/300 steps  2/s  ETA 1 min 30 s"
        assert shown.line(clock.now, 39) == "tr…  120/300 steps  2/s  ETA 1 min 30 s"
        clock.now += 90
        shown.tokens = 150_000
        shown.update(300)
        assert shown.summary(clock.now, 80) == "train  300 steps in 2 min 30 s  1,000 tokens/s  2 steps/s  loss 0.5"


def test_a_resumed_run_counts_what_this_process_does(clock: Clock) -> None:
    """60 steps in 30 s, after 120 that were done before: 2 a second, and the 120 that are left take 60 s."""
    with phase("train", 300, "steps", done=120) as shown:
        clock.now += 30
        shown.update(180)
        assert shown.line(clock.now, 80) == "train  180/300 steps  2/s  ETA 1 min 00 s"
        clock.now += 60
        shown.update(300)
        assert shown.summary(clock.now, 80) == "train  300 steps, 180 of them in 1 min 30 s  2 steps/s"


def test_a_budget_that_ends_first_sets_the_time_left(clock: Clock) -> None:
    """A quarter of the budget is used up after 10 s and 5 of 300 steps, so that 30 s are left."""
    with phase("train", 300, "steps", fraction=0.0) as shown:
        clock.now += 10
        shown.update(5, fraction=0.25)
        assert shown.line(clock.now, 80) == "train  5/300 steps  0.5/s  ETA 30 s"
        clock.now += 30
        shown.update(20, fraction=1.0)
        assert shown.summary(clock.now, 80) == "train  20/300 steps in 40 s  0.5 steps/s"


def test_bytes_and_bars_of_libraries(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """24 of 96 MB in 4 s: 6 MB a second, and 72 MB for 12 s. tqdm's bar counts and is not shown."""
    with phase("fetch wheel:model@1.0", unit="bytes") as shown:
        clock.now += 4
        shown.update(24_000_000, 96_000_000)
        assert shown.line(clock.now, 80) == "fetch wheel:model@1.0  24.0 MB of 96.0 MB  6.0 MB/s  ETA 12 s"
    with phase("evaluate", unit="requests") as shown, counted_from_bars(shown):
        clock.now += 2
        print("Requests:  40%|####      | 40/100 [00:02<00:03]", file=sys.stderr, end="\r")
        assert shown.line(clock.now, 80) == "evaluate  40/100 requests  20/s  ETA 3.0 s"
    assert capsys.readouterr().err.splitlines() == [
        "fetch wheel:model@1.0  24.0 MB in 4.0 s  6.0 MB/s",
        "evaluate  40/100 requests in 2.0 s  20 requests/s",
    ]


def test_durations() -> None:
    found = {s: duration(s) for s in (0.04, 9.94, 9.96, 59.4, 59.6, 65, 3599.6, 7500, 180_000)}
    assert list(found.values()) == [
        *("0.0 s", "9.9 s", "10 s", "59 s", "1 min 00 s", "1 min 05 s", "1 h 00 min", "2 h 05 min", "50 h 00 min")
    ]


def test_a_file_gets_a_line_every_few_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A step a second: lines are 5 s apart at first, and later a twentieth of the time so far."""
    with phase("train", 1000, "steps") as shown:
        for _ in range(1000):
            clock.now += 1
            shown.advance(1)
            with phase("generate", 1, "answers") as inner:
                count_tokens(3)
                inner.advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "train  1,000 steps in 16 min 40 s  1 steps/s"
    steps = [int(re.fullmatch(r"train  (\d+)/1,000 steps  1/s  ETA .*", line)[1]) for line in lines[:-1]]
    assert steps[:4] == [5, 10, 15, 20]
    gaps = [b - a for a, b in pairwise(steps)]
    assert min(gaps) == 5
    assert all(gap <= max(5, a / 20 + 1) for a, gap in zip(steps, gaps, strict=False))
    assert len(lines) < 80


def test_what_fails_or_has_nothing_to_count_leaves_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(ZeroDivisionError), phase("evaluate", 3, "references") as shown:
        shown.advance(1 / 0)
    with phase("evaluate", 0, "references"):
        pass
    with phase("fetch hub:org/name@main", unit="files"):
        pass
    assert capsys.readouterr() == ("", "")
    with phase("fetch wheel:model@1.0", unit="bytes"):  # a local one: pip does not count its bytes
        pass
    assert capsys.readouterr().err == "fetch wheel:model@1.0  0.0 s\n"


def test_other_ranks_show_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with phase("generate", 3, "answers") as shown:
        shown.advance(3)
    assert capsys.readouterr().err == ""


def test_jobs_side_by_side_are_distinguished_and_draw_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with part("job 3", beside=True), phase("train", 2, "steps") as shown:
        remark("resumed")
        shown.update(2)
    out, err = capsys.readouterr()
    assert out == "job 3 · resumed\n"
    assert re.fullmatch(r"job 3 · train  2 steps in 0\.0 s  \S+ steps/s\n", err)


# ---- a terminal, and a pipe ------------------------------------------------------------------------------------------


def on_a_terminal(command: list[str], folder: Path = ROOT, **variables: str) -> tuple[int, str]:
    """The exit code, and all that was written in `folder` to a terminal of 80 columns."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.environ.pop("COLUMNS", None)
        os.execvpe(command[0], command, {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT), **variables})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    written = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux's end of a terminal that nothing writes to any more
            break
        if not data:
            break
        written += data
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), written.decode()


def screen(written: str) -> tuple[list[str], int]:
    """The lines that are left on a terminal without an edge, and the length of the longest that was ever written."""
    lines, row, column, longest = [""], 0, 0, 0
    for token in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|.", written, flags=re.DOTALL):
        if token == "\r":
            column = 0
        elif token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif token == "\x1b[2K":
            lines[row] = ""
        elif up := re.fullmatch(r"\x1b\[(\d*)A", token):
            row -= int(up[1] or 1)
        elif token.startswith("\x1b["):
            assert re.fullmatch(r"\x1b\[(\?25[lh]|[0-9;]*m)", token), f"{token!r} moves something else"
        else:
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + 1 :]
            column += 1
            longest = max(longest, column)
    return [line.rstrip() for line in lines], longest


def matched(lines: list[str], patterns: list[str]) -> None:
    """Each line is as its pattern has it."""
    assert len(lines) == len(patterns), "\n".join(lines)
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), f"{line!r} is not {pattern!r}"


def test_a_long_sentence_is_broken_between_words_on_a_terminal_alone() -> None:
    """A path is never broken, and the home folder is ~."""
    words = "a sentence " * 9 + str(Path.home() / "cache/kd/prepared/0123456789ab")
    script = f"from kd.progress import part, remark\nwith part('baseline sft'): remark({words!r})"
    lines, longest = screen(on_a_terminal([sys.executable, "-c", script])[1])
    assert longest < COLUMNS
    assert [line for line in lines if line] == [
        "baseline sft · " + "a sentence " * 5 + "a",
        "  sentence a sentence a sentence a sentence ~/cache/kd/prepared/0123456789ab",
    ]
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    piped = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert piped.stdout == "baseline sft · " + "a sentence " * 9 + "~/cache/kd/prepared/0123456789ab\n"


def over(text: str) -> list[str]:
    """The lines of phases that are over."""
    return re.findall(r"^.*  [\d/]+ \w+(?:, \d+ of them)? in \d\S* (?:s|min).*$", text, flags=re.MULTILINE)


def test_a_terminal_keeps_one_line_of_each_phase() -> None:
    code, written = on_a_terminal([sys.executable, "-c", SCRIPT])
    lines, longest = screen(written)
    assert code == 0, written
    matched([line for line in lines if line], LEFT)
    assert longest < COLUMNS
    for while_it_lasts in (
        r"student before · evaluate  [1-3]/4 references",
        r"train  \d/6 steps  \S+/s  loss 0\.5.*  ETA \d\.\d s",
        r"train · validate  0\.\d s",
        r"train · validate · generate  0/3 answers",
        r"convert model\.gguf, once  \d\.\d s",
    ):
        assert re.search(while_it_lasts, written)


def test_a_pipe_gets_no_control_characters() -> None:
    command = [sys.executable, "-c", SCRIPT]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)
    matched(lines, [*LEFT[:-1], r"convert model\.gguf, once \.\.\.", LEFT[-1]])
    assert max(map(len, lines)) <= COLUMNS


# ---- training --------------------------------------------------------------------------------------------------------


def test_the_line_of_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One, however often it validates and answers; resumed, it counts its own steps and shows where it began."""
    overrides = ("checkpoint.answers=2", "evaluation.max_new_tokens=2")
    with pytest.raises(SystemExit):
        runs.train(runs.config(*overrides, rollout=runs.scripted(tmp_path, (4, 0, "SIGTERM"))), tmp_path)
    first = capsys.readouterr()
    matched(over(first.err), [r"train  4/10 steps in \S+ s  \S+ tokens/s  \S+ steps/s  loss \S+"])
    runs.train(runs.config(*overrides, rollout=runs.scripted(tmp_path)), tmp_path)
    second = capsys.readouterr()
    matched(over(second.err), [r"train  10 steps, 6 of them in \S+ s  \S+ tokens/s  \S+ steps/s  loss \S+"])
    assert f"resumed after step 4 of 10 ({tmp_path.name})\n" in second.out


# ---- a whole run -----------------------------------------------------------------------------------------------------

RUN = [
    *("teacher=tiny", "student=tiny", "skill=spell_backward", "teacher.prepare.steps=2", "trainer=cpu"),
    *("optim.steps=2", "evaluation=quick", "skill.train=32", "skill.validation=8", "skill.test=8"),
]
LINES = [  # up to the time that a phase took; what is cached is not measured again
    "prepare teacher · train  2 steps",
    "teacher · evaluate  4 references",
    "baseline sft · student before · evaluate  4 references",
    "baseline sft · student before · generate  2 answers",
    "baseline sft · train  2 steps",
    "baseline sft · student after · evaluate  4 references",
    "baseline sft · student after · generate  2 answers",
    "baseline sft · teacher · generate  2 answers",
    "train  2 steps",
    "student after · evaluate  4 references",
    "student after · generate  2 answers",
]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["terminal", "pipe"])
def test_every_line_of_a_run(kind: str, tmp_path: Path) -> None:
    """Each phase has one line, the baseline's table is headed as its, nothing is repeated, and no library prints."""
    command = [sys.executable, str(ROOT / "run.py"), *RUN]  # in the folder of its outputs, so that paths are short
    own = {"KD_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    if kind == "terminal":
        code, written = on_a_terminal(command, tmp_path, **own)
        lines, longest = screen(written)
        paths = [len(line) for line in lines if line.strip().startswith(str(tmp_path))]  # which are not broken
        assert longest <= max(COLUMNS, *paths), [line for line in lines if len(line) > COLUMNS]
    else:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        code, lines = done.returncode, done.stdout.splitlines()
        assert not re.search(r"[\x1b\r]", done.stdout)
    text = "\n".join(lines)
    assert code == 0, text
    left = over(text)
    assert [line.partition(" in ")[0] for line in left] == LINES, text
    room = COLUMNS - len("  1,000,000 tokens/s")  # a rate may be long, and a duration; a pipe has a wider line
    assert all("tokens/s" in line for line in left if len(line) < room), text
    assert not re.search(r"Warning|Epoch|it/s|\d+%\|", text)
    titles = [line for line in lines if line.startswith("Held-out scores of")]
    assert titles[0].startswith("Held-out scores of the baseline: sft with equal steps")
    assert titles[1].startswith("Held-out scores of spell_backward-fkl-s1-")
    for once in ("prepare teacher · 2 steps of sft, once for all runs", "objective = "):
        assert sum(line.startswith(once) for line in lines) == 1
