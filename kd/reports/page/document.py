"""The page as one file: its content as JSON, its style and its scripts, and a policy that lets nothing else in."""

import base64
import hashlib
import html
import json
import os
import webbrowser
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from kd.artifacts import write_atomically
from kd.errors import sentence
from kd.reports.frame import frame_of, identity
from kd.reports.page.content import content
from kd.reports.palette import COLOURS, SHADES
from kd.reports.runs import Job, read_jobs
from kd.reports.sweep import Choices, near

SCRIPTS = ("elements.js", "tables.js", "charts.js", "figures.js", "runs.js", "page.js")  # in this order


def read_once(paths: Iterable[str | os.PathLike[str]]) -> list[Job]:
    """The jobs of all paths, each run once."""
    return list({identity(job): job for path in paths for job in read_jobs(path)}.values())


def write_page(choices: Choices, file: str | os.PathLike[str]) -> None:
    """Write the page of the runs that the paths of `choices` stand for into one file.

    Raises FileNotFoundError where there is no run folder.
    """
    found = content(frame_of(read_once(choices.paths)), choices, os.fspath(file))
    write_atomically(Path(file), document(found))


def end_with_page(folder: Path, *, paper: str | None = None, open_it: bool = False) -> None:
    """Write the page of a run or sweep into its folder, and print its name; one line where that fails, and no more.

    Args:
        folder: of the run or sweep.
        paper: the one with the published numbers that stand beside ours.
        open_it: also open it in the browser.
    """
    file = folder / "report.html"
    try:
        write_page(Choices(paths=[near(folder)], paper=paper), near(file))
        print(f"Page: {near(file)}", flush=True)
        if open_it:
            webbrowser.open(file.absolute().as_uri())
    except Exception as error:  # a page is no reason for a run to fail
        print(f"caution: {near(file)} is not written: {sentence(error)}", flush=True)


def document(found: Mapping[str, Any], *, live: str | None = None) -> str:
    """The HTML of a content; `live`: the state of the content; its script requests the next one."""
    style = "\n".join([_colours(), _text("page.css")])
    script = "\n".join(map(_text, SCRIPTS))
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_digest(script)}'",
            f"style-src '{_digest(style)}'",
            "connect-src 'none'" if live is None else "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    parts = {
        "POLICY": html.escape(policy, quote=True),
        "TITLE": html.escape(str(found["title"])),
        "LIVE": "" if live is None else f' data-live="{html.escape(live, quote=True)}"',
        "STYLE": style,
        "CONTENT": embedded(found),
        "SCRIPT": script,
    }
    pieces = _text("page.html").split("@@")  # text, name, text, name, … text: what is put in is never searched again
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def embedded(found: Mapping[str, Any]) -> str:
    """JSON that ends no `<script>` around it and begins no comment there: `<` is escaped."""
    return encoded(found).replace("<", "\\u003c")


def encoded(found: Mapping[str, Any]) -> str:
    """The content as JSON, without spaces. Lone surrogates, which no encoding has, are escaped."""
    text = json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _colours() -> str:
    """The palette of all figures as variables."""
    lines = [f"--line{i}: {colour};" for i, colour in enumerate(COLOURS)]
    lines += [f"--shade{i}: {colour};" for i, colour in enumerate(SHADES)]
    return ":root { " + " ".join(lines) + " }"


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _text(name: str) -> str:
    return files("kd.reports.page").joinpath(name).read_text(encoding="utf-8").strip()
