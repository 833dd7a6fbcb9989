"""The page in a browser without a network: what a reader does with it, on a desk, on a phone, by keyboard, in the dark.

Run: python -m pytest tests/reports/test_browser.py
"""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kd.reports.page.document import write_page
from kd.reports.page.server import Live, PageServer
from kd.reports.palette import COLOURS
from kd.reports.sweep import Choices
from tests.reports.folders import config, write_grid, write_run
from tests.reports.test_html_page import HOSTILE

pytestmark = pytest.mark.long
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = {"desk": 1280, "phone": 390}
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a grid, and one with HTML in its texts."""
    folder = tmp_path_factory.mktemp("browser") / "outputs"
    write_grid(folder, seeds=(1, 2))
    sections = {"name": "hostile", "teacher": {"_target_": HOSTILE}}
    hostile = write_run(folder, "fkl", "sums", 7, right=0.6, sections=sections)
    answer = dict.fromkeys(("id", "prompt", "reference", "response", "verifier_error"), HOSTILE)
    hostile.write_samples([{**answer, "skill": "sums", "score": 1.0, "system": name} for name in ("before", "after")])
    hostile.finish(hostile.results())
    return folder


@pytest.fixture(scope="module")
def file(root: Path) -> Path:
    write_page(Choices(paths=[str(root)]), root.parent / "report.html")
    return root.parent / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    library = pytest.importorskip("playwright.sync_api", reason="playwright, of the extra `dev`, is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    with library.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


class Opened:
    """A page in a context of its own, with its requests and its messages."""

    def __init__(self, browser: Any, address: str, width: int = WIDTHS["desk"], offline: bool = True, **options: Any):
        self.context = browser.new_context(offline=offline, viewport={"width": width, "height": 844}, **options)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.goto(address)
        self.page.wait_for_selector("#runs-table tbody tr")

    def column(self, name: str, table: str = "runs-table") -> list[str]:
        """The texts of a column, as they stand."""
        heads = [text.split("\n")[0].strip() for text in self.page.locator(f"#{table} thead button").all_inner_texts()]
        place = heads.index(name) + 1
        return self.page.locator(f"#{table} tbody tr > :nth-child({place})").all_inner_texts()


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Opened]:
    """The page on a desk; nothing may have left the machine, and nothing may have gone wrong in it."""
    found = Opened(browser, file.as_uri())
    yield found
    assert [address for address in found.requests if not address.startswith(("file:", "data:"))] == []
    assert found.messages == []
    found.context.close()


def test_a_column_sorts_both_ways_and_shows_which(opened: Opened) -> None:
    head = opened.page.locator("#runs-table thead th", has_text="accuracy").first
    head.locator("button").click()
    values = [float(text.split()[0]) for text in opened.column("accuracy")]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) > 2
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").press("Enter")
    assert [float(text.split()[0]) for text in opened.column("accuracy")] == sorted(values)
    assert head.get_attribute("aria-sort") == "ascending"


def test_the_filter_keeps_the_rows_with_all_words_and_counts_them(opened: Opened) -> None:
    opened.page.keyboard.press("/")
    opened.page.keyboard.type("jsd words")
    assert [name.split("-s")[0] for name in opened.column("job")] == ["words-jsd", "words-jsd"]
    assert opened.page.locator("#runs .count").inner_text() == "2 of 17 rows"
    opened.page.locator("#runs-table-filter").fill("")
    assert len(opened.column("job")) == 17


def test_a_run_opens_and_escape_closes_it(opened: Opened) -> None:
    opened.page.locator("#runs-table button.link", has_text="sums-fkl-s2").focus()
    opened.page.keyboard.press("Enter")
    dialog = opened.page.locator("dialog#run")
    assert dialog.is_visible()
    text = dialog.inner_text()
    assert "sums-fkl-s2" in text
    assert "student, distilled" in text
    assert "▲ gained" in text
    assert "train/loss" in text
    assert opened.page.locator("dialog svg.chart path.line").count() == 1
    dialog.locator("select").select_option("gained")
    assert set(dialog.locator(".change").all_inner_texts()) == {"▲ gained"}
    dialog.locator("summary", has_text="Settings").click()
    dialog.locator("input[type=search]").fill("optim.lr")
    assert "0.001" in dialog.locator("details table").inner_text()
    opened.page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert opened.page.evaluate("document.activeElement.textContent").startswith("sums-fkl-s2")


def test_the_address_names_the_open_run(opened: Opened, browser: Any, file: Path) -> None:
    opened.page.locator("#runs-table button.link").nth(3).click()
    title = opened.page.locator("#run-title").inner_text()
    other = Opened(browser, opened.page.url)
    assert other.page.locator("#run-title").inner_text() == title
    other.context.close()


def test_texts_of_models_stay_texts(opened: Opened) -> None:
    opened.page.locator("#runs-table button.link", has_text="hostile").click()
    dialog = opened.page.locator("dialog#run")
    assert dialog.locator(".asked p").first.inner_text() == HOSTILE.replace("\u2028", "\u2028")
    assert opened.page.locator("img").count() == 0
    assert opened.page.locator("script").count() == 2


def test_the_heat_map_follows_its_selects_and_its_cells_open_runs(opened: Opened) -> None:
    page = opened.page
    assert page.locator("#heat td").count() >= 8
    before = page.locator("#heat").inner_text()
    page.locator("#pivot-2").select_option("bits per byte")
    assert page.locator("#heat").inner_text() != before
    assert "bits per byte" in page.locator("#heat caption").inner_text()
    page.locator("#pivot-0").select_option("trained on")
    assert page.locator("#heat thead th").first.inner_text() == "trained on"
    page.locator("#heat td button").first.press("Enter")
    assert page.locator("dialog#run").is_visible()


def test_values_show_on_hover_and_by_arrow_keys(opened: Opened) -> None:
    page = opened.page
    chart = page.locator("#curves svg.chart")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.locator("#tip.shown strong").inner_text() == "step 20"
    assert "fkl" in page.locator("#tip").inner_text()
    page.mouse.move(0, 0)
    chart.focus()
    page.keyboard.press("ArrowRight")
    step = page.locator("#tip.shown strong").inner_text()
    page.keyboard.press("ArrowRight")
    assert int(page.locator("#tip.shown strong").inner_text().split()[1]) > int(step.split()[1])
    assert page.locator("#cost svg.chart .mark title").count() > 1
    titles = page.locator("#cost svg.chart .mark title").all_text_contents()
    assert all("n = 32" in title and "seed" in title for title in titles)


def test_a_line_can_be_hidden_and_lines_have_the_palette_of_the_figures(opened: Opened) -> None:
    lines = opened.page.locator("#curves svg.chart path.line")
    count = lines.count()
    colours = [lines.nth(i).evaluate("one => getComputedStyle(one).stroke") for i in range(count)]
    arms = COLOURS[1 : 1 + count]  # that of the first arm, which logged nothing, is not taken
    palette = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in arms]
    assert colours == [f"rgb({', '.join(map(str, parts))})" for parts in palette]
    opened.page.locator("#curves .keys button").first.click()
    lines.nth(count - 1).wait_for(state="detached")
    assert lines.count() == count - 1
    opened.page.locator("#curve-seeds").check()
    lines.nth(count).wait_for(state="attached")  # the figure is drawn anew
    assert lines.count() > count


def test_each_figure_states_n_seeds_and_intervals(opened: Opened) -> None:
    for name in ("scores", "differences", "curves", "cost"):
        text = opened.page.locator(f"#{name} .notes").last.inner_text()
        assert "eed" in text, name
        assert "interval" in text, name
    assert "n = 32 items" in opened.page.locator("#scores .notes").inner_text()


@pytest.mark.parametrize("width", [WIDTHS["phone"], 320])
def test_a_phone_scrolls_no_page_sideways(browser: Any, file: Path, width: int) -> None:
    found = Opened(browser, file.as_uri(), width, has_touch=True)
    assert found.page.evaluate(OVERFLOW) == 0
    assert found.page.evaluate("document.querySelector('#runs .scroll').scrollWidth") > width  # the table does
    found.page.locator("#runs-table button.link").first.tap()
    assert found.page.evaluate(OVERFLOW) == 0
    assert found.page.evaluate("(d => d.scrollWidth - d.clientWidth)(document.querySelector('dialog'))") == 0
    assert found.messages == []
    found.context.close()


def test_dark_follows_the_system_and_the_button(browser: Any, file: Path) -> None:
    found = Opened(browser, file.as_uri(), color_scheme="dark")

    def light() -> tuple[bool, bool]:
        """Whether page and text are light."""
        colours = found.page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
        page, text = (sum(map(int, colour[4:-1].split(","))) / 3 > 127 for colour in colours)
        return page, text

    assert light() == (False, True)
    found.page.locator("#theme").click()
    assert light() == (True, False)
    found.page.locator("#theme").click()
    assert light() == (False, True)
    found.context.close()


def test_the_keyboard_reaches_everything_and_the_focus_is_seen(opened: Opened) -> None:
    page = opened.page
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.closest('[id]')?.id"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
    assert {"nav", "theme", "pivot-0", "heat"} <= reached


def test_the_live_page_shows_a_new_run_by_itself(browser: Any, root: Path, tmp_path: Path) -> None:
    live = tmp_path / "outputs"
    write_run(live, seed=1)
    served = PageServer(Live([str(live)]), port=0)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    found = Opened(browser, served.address, offline=False)
    assert found.page.locator("#runs-table tbody tr").count() == 1
    found.page.locator("#runs-table-filter").fill("sums")
    write_run(live, seed=2)
    (live / "going").mkdir()
    (live / "going" / "config.yaml").write_text(str(config("rkl")).replace("None", "null"))
    (live / "going" / "metrics.csv").write_text("step,split,name,value\n1,train,loss,2.0\n2,train,loss,1.0\n")
    found.page.locator("#runs-table tbody tr").nth(1).wait_for(timeout=60_000)
    assert found.page.locator("#runs-table-filter").input_value() == "sums"
    found.page.locator("#runs-table-filter").fill("")
    assert "unfinished" in found.page.locator("#runs-table").inner_text()
    assert {address.partition("//")[2].partition("/")[0] for address in found.requests if address[:4] == "http"} == {
        f"127.0.0.1:{served.server_port}"
    }
    assert found.messages == []
    found.context.close()
    served.shutdown()
    served.server_close()
