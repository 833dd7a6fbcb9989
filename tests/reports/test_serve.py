"""The live page: only it is served, to this machine alone, and it is made again when runs changed.

Run: python -m pytest tests/reports/test_serve.py
"""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kd.reports.page import server
from kd.reports.page.server import Live, PageServer
from tests.reports.folders import config, write_grid, write_run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "outputs"
    write_grid(folder, seeds=(1,))
    return folder


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[PageServer]:
    made = PageServer(Live([str(root)]), port=0)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def requested(served: PageServer, path: str, method: str = "GET", host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(server.HOST, served.server_port, timeout=60)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def test_the_page_and_its_content_are_served(served: PageServer) -> None:
    status, page = requested(served, "/")
    assert status == 200
    state = requested(served, "/state")[1]
    assert f'data-live="{state}"' in page
    found = json.loads(requested(served, "/content.json")[1])
    assert len(found["runs"]["rows"]) == 8
    assert found["command"].startswith("python -m kd.reports serve ")


@pytest.mark.parametrize("path", ["/etc/passwd", "/../pyproject.toml", "/report.html", "/%2e%2e/x", "/state/"])
def test_nothing_else_is_served(served: PageServer, path: str) -> None:
    assert requested(served, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_it_can_only_be_read(served: PageServer, method: str) -> None:
    assert requested(served, "/", method)[0] == 501


def test_a_foreign_name_for_this_machine_is_refused(served: PageServer) -> None:
    """A page of another site reads nothing, though its name was made to lead here."""
    assert requested(served, "/content.json", host="evil.example")[0] == 403
    assert requested(served, "/content.json", host=f"evil.example:{served.server_port}")[0] == 403
    assert requested(served, "/content.json", host=f"localhost:{served.server_port}")[0] == 200


def test_a_port_that_is_taken_is_one_sentence(served: PageServer) -> None:
    port = served.server_port
    with pytest.raises(ValueError, match=rf"^port {port} cannot be had \(address already in use\); take another"):
        PageServer(served.live, port)
    with pytest.raises(ValueError, match="--port 70000 is no port"):
        PageServer(served.live, 70000)


def test_it_is_made_again_only_when_a_run_changed(tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    root.mkdir()
    live = Live([str(root)])

    def look() -> tuple[str, dict]:
        live.next = 0.0
        live.refresh()
        return live.made

    state, found = look()
    assert found["runs"]["rows"] == []
    assert "holds no run folder" in found["problems"][0]
    write_run(root)
    other, found = look()
    assert other != state
    assert len(found["runs"]["rows"]) == 1
    assert look()[1] is found
    (root / "going").mkdir()
    (root / "going" / "config.yaml").write_text(json.dumps(config("rkl")))
    (root / "going" / "metrics.csv").write_text("step,split,name,value\n1,train,loss,2.0\n2,train,loss,1.0\n3,tra")
    _, found = look()
    assert found["facts"][0] == ("runs", "1 unfinished, 1 done")
    (group,) = [one for one in found["curves"] if one["group"] == "unfinished runs"]
    assert group["lines"][0]["curves"]["train/loss"] == {"x": [1, 2], "y": [2.0, 1.0]}


def test_a_browser_that_goes_away_and_a_request_that_fails_leave_no_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = PageServer(Live([str(tmp_path)]), port=0)
    try:
        for error in (BrokenPipeError(), ConnectionResetError(), KeyError("title")):
            try:
                raise error
            except Exception:
                made.handle_error(None, ("127.0.0.1", 1))
    finally:
        made.server_close()
    assert capfd.readouterr().err == "caution: a request failed: KeyError: 'title'\n"


def test_a_folder_that_cannot_be_listed_is_a_page_without_runs(tmp_path: Path) -> None:
    """As one that was removed after the command began."""
    live = Live([str(tmp_path / "gone")])
    assert live.made[1]["runs"]["rows"] == []


def test_a_sweep_is_followed_by_its_records_and_runs(tmp_path: Path) -> None:
    sweep = tmp_path / "outputs" / "sweeps" / "one"
    (sweep / "jobs").mkdir(parents=True)
    before = server.signature([str(sweep)])
    record = {"num": 0, "overrides": ["seed=1"], "status": "running", "reason": None, "seconds": None}
    (sweep / "jobs" / "0.json").write_text(json.dumps({**record, "run_folder": "../../r"}))
    started = server.signature([str(sweep)])
    (tmp_path / "outputs" / "r").mkdir()
    (tmp_path / "outputs" / "r" / "metrics.csv").write_text("step,split,name,value\n")
    assert len({before, started, server.signature([str(sweep)])}) == 3
