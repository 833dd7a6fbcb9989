"""Functions in the sandbox: their values, their failures, and that no verdict sees another.

Run: python -m pytest tests/sandbox/test_verdict.py
"""

import operator
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kd.sandbox import Limits, NoVerdict, SandboxError, calls, concurrently, verdict
from tests.sandbox import verifiers


def test_values_come_back(mechanism):
    before = calls()
    assert verdict(operator.add, (1, 2)) == 3
    assert verdict(operator.add, ("a" * 50_000, "ü"))[-2:] == "aü"
    assert verdict(verifiers.evaluated, ("{'a': [1, None, 0.5]}",)) == {"a": [1, None, 0.5]}
    assert verdict(verifiers.prefixed, ("x",), setup=("p-",)) == "p-x"
    assert verdict(verifiers.prefixed, ("x",), setup=("q-",)) == "q-x"
    assert calls() - before == 5


@pytest.mark.parametrize(
    ("text", "status", "error"),
    [
        ("1 / 0", "raised", "ZeroDivisionError"),
        ("__import__('sys').exit(0)", "raised", "SystemExit: 0"),
        ("(_ for _ in ()).throw(KeyboardInterrupt)", "raised", "KeyboardInterrupt"),
        ("9**9**9**9", "timeout", "it was stopped after 1 s of processor time"),
        ("__import__('os')._exit(0)", "exit", "it ended with exit code 0"),
        ("__import__('os').kill(__import__('os').getpid(), 9)", "killed", "it was ended by SIGKILL"),
        ("'x' * 10**6", "raised", "its value is longer than 65536 bytes"),
        ("object()", "raised", "TypeError: Object of type object is not JSON serializable"),
        ("__import__('os').write(4, b'[1]\\n')", "raised", "it wrote something else in the place of its answer"),
        ("__import__('os').write(4, b'[' * 50000 + b'\\n')", "raised", "it wrote something else"),
    ],
)
def test_a_text_that_gives_no_value_is_no_verdict(text, status, error, mechanism):
    with pytest.raises(NoVerdict, match="^" + error.replace(".", r"\.")) as caught:
        verdict(verifiers.evaluated, (text,), limits=Limits(cpu_seconds=1))
    assert caught.value.status == status


def test_a_verdict_does_not_see_the_one_before(mechanism, tmp_path):
    assert [verdict(verifiers.count, ("x",)) for _ in range(5)] == [1] * 5
    assert [verdict(verifiers.write, (str(tmp_path),)) for _ in range(3)] == [""] * 3
    assert list(tmp_path.iterdir()) == []
    assert verifiers.write(str(tmp_path)) == str(tmp_path)  # outside it does


def test_the_process_is_clean(mechanism):
    found = verdict(verifiers.surroundings, ())
    assert (found["torch"], found["threads"]) == (False, 1)
    assert found["descriptors"] == [0, 1, 2, 4]  # standard ones and the answer's
    assert {"PATH", "USER"} & {*found["environment"]} == set()
    assert all(name.startswith(("PYTHON", "OMP_", "OPENBLAS_", "GLIBC_", "LC_", "LD_")) for name in found["environment"]
               if name not in ("HOME", "TMPDIR", "PWD"))  # fmt: skip


def test_threads_share_the_workers(mechanism):
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda i: verdict(operator.mul, (i, i)), range(60)))
    assert found == [i * i for i in range(60)]


def test_calls_that_use_the_sandbox_overlap_and_keep_their_order(mechanism):
    inside, together, guard = set[int](), list[int](), threading.Lock()

    def square(i: int) -> int:
        with guard:
            inside.add(i)
            together.append(len(inside))
        verdict(verifiers.sleep, (0.02,))
        with guard:
            inside.discard(i)
        return i * i

    assert concurrently(square, range(12)) == [i * i for i in range(12)]
    assert together[0] == 1
    assert max(together) > 1


def test_calls_that_use_no_sandbox_stay_in_their_thread():
    found = concurrently(lambda i: (i, threading.get_ident()), range(50))
    assert found == [(i, threading.get_ident()) for i in range(50)]
    assert concurrently(str, []) == []


def test_an_error_is_that_of_the_first_item_which_has_one(mechanism):
    def judge(i: int) -> int:
        return int(verdict(verifiers.evaluated, (f"10 // {3 - i % 4} + {i}",)))

    with pytest.raises(NoVerdict, match="ZeroDivisionError"):
        concurrently(judge, range(20))
    outcomes = concurrently(lambda i: _tried(judge, i), range(20))
    assert outcomes == ["raised" if i % 4 == 3 else 10 // (3 - i % 4) + i for i in range(20)]


def _tried(judge, i):
    try:
        return judge(i)
    except NoVerdict as error:
        return error.status


def test_what_cannot_be_called_is_no_fault_of_the_text():
    with pytest.raises(SandboxError, match=r"verifiers.unfit cannot be set up in the sandbox: ImportError: no x"):
        verdict(verifiers.unfit, (), setup=("x",))
    with pytest.raises(SandboxError, match="cannot be imported; give a function that a module defines"):
        verdict(lambda: 1, ())
