"""The mathematics in the docstring of an objective, typeset for terminals and pages.

The docstring begins with the formula, which ends at the first `;` or full stop. What stands behind a comma in it
defines its letters. The gradient is the first clause `phi' = ...` or `dL/d... = ...`, up to the next `;` or full stop:

    KL(p || m), m = alpha p + (1 - alpha) q; phi' = -(1 - alpha) p/m. DistiLLM (arXiv 2402.03898, eq. 5).
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from inspect import Parameter
from typing import Any

from kd.components.signatures import FOR_HYDRA, located, shown
from kd.schedules import Schedule

END = r"(?:;|\.(?=\s+(?:[A-Z(`]|\w-[A-Z]|arXiv))|\.?$)"  # of a clause; "eq. 6" continues one, "f-Distill" begins one
GRADIENT = re.compile(r"(?:phi'|φ′|dL/d\w+) = .*?(?=" + END + ")")
SOURCE = re.compile(
    r"arXiv:?\s?(\d{4}\.\d{4,5})((?:,? (?:eqs?|sections?|appendix|tables?|algorithm|figure)\.? [\w.-]*\w)*)"
)
BOOK = re.compile(r"([A-Z][\w-]+(?: (?:et al\.|(?:and|&) [A-Z]\w+))?, [A-Z][^.;()]{5,100}, (?:19|20)\d\d)\b")
MATHEMATICS = re.compile(r"[|=^_/‖∑Σ√²]|\w\(")
GREEK = {
    **{"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eta": "η", "lambda": "λ", "mu": "μ"},
    **{"rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ"},
}
SIGNS = (
    (rf"(?<![A-Za-z_])({'|'.join(GREEK)})(?![A-Za-z]|_\w\w)", lambda match: GREEK[match[1]]),
    (r"\|\|", "‖"),
    (r"\bsum(?=_)", "Σ"),
    (r"\bsqrt(?=\()", "√"),
    (r"->", "→"),
    (r"<-", "←"),
    (r"<=", "≤"),
    (r">=", "≥"),
    (r"!=", "≠"),
    (r"\^2\b", "²"),
    (r"(?<![\d/])1/2(?![\d/])", "½"),
    (r" \* ", " · "),
    (r"(?<![A-Za-z])([A-Za-zφ])'(?![a-zA-Z])", r"\1′"),
    (r"(?<=\s)-(?=\s)|(?:(?<=^)|(?<=[\s(\[{=/]))-(?=[\w(])", "−"),
)


def typeset(text: str) -> str:
    """The text with the signs that a keyboard lacks: "sum_v p - alpha q" becomes "Σ_v p − α q"; `code` stays."""
    pieces = re.split(r"(`[^`]*`)", text)
    for pattern, sign in SIGNS:
        pieces[::2] = [re.sub(pattern, sign, piece) for piece in pieces[::2]]
    return "".join(pieces)


def prose(objective: Callable) -> str:
    """The docstring of a function, or of a class, as it stands in the source but for the indentation."""
    return inspect.cleandoc(objective.__doc__ or "")


def formula(objective: Callable) -> str:
    """The formula that the docstring begins with, typeset; "" if it begins with words alone."""
    first = " ".join(prose(objective).partition("\n\n")[0].split())
    found = re.match(rf"(.*?){END}", first)
    text = found[1] if found else ""
    return _mathematics(text) if MATHEMATICS.search(text) else ""


def gradient(objective: Callable) -> str:
    """The clause on the gradient, typeset; "" if there is none."""
    for paragraph in prose(objective).split("\n\n"):
        if found := GRADIENT.search(" ".join(paragraph.split())):
            return _mathematics(found[0])
    return ""


def _mathematics(text: str) -> str:
    """The text typeset, where "sum" is no word."""
    return typeset(re.sub(r"\bsum(?= \S)", "Σ", text))


def sources(*texts: str) -> dict[str, str]:
    """The texts' citations: arXiv number -> place in it, "" where no text has one; else "Author, Title, year"."""
    found: dict[str, str] = {}
    for number, place in (pair for text in texts for pair in SOURCE.findall(" ".join(text.split()))):
        found[number] = found.get(number) or place.strip(", ")
    return found or {book: "" for text in texts for book in BOOK.findall(" ".join(text.split()))}


def composed(objective: Mapping[str, Any]) -> str:
    """The weighted sum that a run minimises: "1.0 · KL(p ‖ q) [fkl, T=2] + 0.5 · −log q(y) [sft]".

    In brackets: the term's name, its letters' meanings, and the hyperparameters that the formula shows or that are not
    at their defaults. A loss without a formula is shown by its own name.
    """
    return " + ".join(_summand(name, term) for name, term in objective.items())


def _summand(name: str, term: Mapping[str, Any]) -> str:
    loss = term["loss"]
    weight = _weight(term.get("weight", 1.0))
    callee = located(f"objective.{name}.loss", loss["_target_"])
    what, *where = _clauses(formula(callee) or loss["_target_"].rpartition(".")[2])
    letters = [clause for clause in where if " = " in clause]
    sides = [f"{term['responses']} responses"] if term.get("responses", "all") != "all" else []
    notes = [name, *sides, *letters, *_settings(callee, loss, " ".join([what, *letters]))]
    whole = f"({what})" if re.search(r" [+−] ", _outside(what)) else what
    return f"{weight} · {whole} [{', '.join(notes)}]"


def _weight(weight: Any) -> str:
    """The weight as "0.5", or "(0.005 → 0.001)" where it changes."""
    return f"({Schedule.of(weight)})" if isinstance(weight, Mapping) else str(float(weight))


def _clauses(text: str) -> list[str]:
    """The clauses between the commas that stand in no brackets."""
    bare = _outside(text)
    commas = [i for i, letter in enumerate(bare) if bare[i : i + 2] == ", "]
    return [
        text[start:stop].strip() for start, stop in zip([0, *(i + 1 for i in commas)], [*commas, None], strict=True)
    ]


def _outside(text: str) -> str:
    """The text with all that stands in brackets, or between bars, blanked; the rest is at its old places."""
    depth, kept = 0, []
    for letter in text:
        depth -= letter in ")]}"
        kept.append(letter if depth == 0 else " ")
        depth += letter in "([{"
    return re.sub(r"\|[^|]*\||‖[^‖]*‖", lambda match: " " * len(match[0]), "".join(kept))


def _settings(callee: Callable, node: Mapping[str, Any], text: str) -> Iterator[str]:
    """The settings that `text` names, and those that are not at their defaults."""
    for key, parameter in inspect.signature(callee).parameters.items():
        if key not in node or key in FOR_HYDRA:
            continue
        value, symbol = node[key], "T" if key == "temperature" else typeset(key)
        if isinstance(value, Mapping) and "_target_" in value:
            value = in_short(value)
        named = re.search(rf"(?<!\w){re.escape(symbol)}(?!\w)", text) and not isinstance(value, bool)
        if parameter.default is Parameter.empty or value != parameter.default or named:
            yield _setting(symbol, value)


def _setting(symbol: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"{'T²' if symbol == 'temperature_squared' else symbol} {'on' if value else 'off'}"
    return f"{symbol}={value:g}" if isinstance(value, float) else f"{symbol}={shown(value)}"


def in_short(node: Mapping[str, Any]) -> str:
    """A node with a `_target_`, as a hyperparameter of another: "forward_kl(T=2)"."""
    settings = ", ".join(_settings(located("", node["_target_"]), node, ""))
    return node["_target_"].rpartition(".")[2] + (f"({settings})" if settings else "")
