"""Tables for the LaTeX package booktabs, which pdflatex compiles whatever names hold."""

import unicodedata
from collections.abc import Iterable

from kd.reports.grid import Cell, Grid

PLAIN = {  # a character -> what stands for it
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"},
    **{"–": "--", "−": "$-$", "×": r"$\times$", "‖": r"$\Vert$", "…": r"\dots{}", "→": r"$\to$", "±": r"$\pm$"},
    **{"|": "$|$", '"': "''", "“": "``", "”": "''", "‘": "`", "’": "'", "—": "---", "·": r"$\cdot$"},
    **{"≤": r"$\leq$", "≥": r"$\geq$", "≠": r"$\neq$", "≈": r"$\approx$", "∞": r"$\infty$", "√": r"$\surd$"},
    **{"←": r"$\leftarrow$", "↔": r"$\leftrightarrow$", "•": r"\textbullet{}", "°": r"$^\circ$", "µ": r"$\mu$"},
    **{"ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ø": r"\o{}", "Ø": r"\O{}"},
    **{"ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}", "²": "$^2$", "³": "$^3$", "\n": " ", "\t": " ", "\u00a0": "~"},
}
ACCENTS = {  # a combining mark -> the command that sets it
    **{"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u0304": "=", "\u0307": "."},
    **{"\u030a": "r", "\u0327": "c", "\u0306": "u", "\u030b": "H", "\u030c": "v"},
}
LIKE_LATIN = dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧο", "ABEZHIKMNOPTXo", strict=True))  # of which LaTeX has no command
GREEK = {  # a letter -> its command; that of a small one begins with a small letter
    **{"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta"},
    **{"ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho"},
    **{"ς": "varsigma", "σ": "sigma", "τ": "tau", "υ": "upsilon", "φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega"},
    **{"Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Υ": "Upsilon"},
    **{"Φ": "Phi", "Ψ": "Psi", "Ω": "Omega"},
}


def latex(grid: Grid) -> str:
    """A `table` for the package booktabs; intervals are smaller, the best bold.

    Notes and command are comments; of a table without columns, the title, too.
    """
    under = [f"% {' '.join(note.split())}" for note in grid.footer]
    if not grid.header:
        return "\n".join([f"% {' '.join(grid.title.split())}", *under]) + "\n"
    columns = ["r" if any(map(_is_number, column)) else "l" for column in zip(*grid.rows, strict=True)]
    words = "".join(columns or "l" * len(grid.header))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{tex(grid.title)}}}", rf"\begin{{tabular}}{{{words}}}"]
    lines += [r"\toprule", _ampersands(map(tex, grid.header)), r"\midrule"]
    lines += [_ampersands(map(_tex_cell, row)) for row in grid.rows]
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join([*lines, *under]) + "\n"


def tex(text: str) -> str:
    """The text as LaTeX; a character that pdflatex has no sign for by its number, as `[U+65E5]`."""
    parts = unicodedata.normalize("NFC", str(text)).split("--")  # two hyphens are no dash
    return "-{}-".join("".join(map(_sign, part)) for part in parts)


def _sign(char: str) -> str:
    if char in PLAIN:
        return PLAIN[char]
    if " " <= char <= "~":
        return char
    if char in GREEK:
        return rf"$\{GREEK[char]}$"
    if char in LIKE_LATIN:
        return LIKE_LATIN[char]
    base, *marks = list(unicodedata.normalize("NFD", char))
    if len(marks) == 1 and marks[0] in ACCENTS and base.isascii() and base.isalpha():
        return rf"\{ACCENTS[marks[0]]}{{{base}}}"
    return "" if unicodedata.category(char) == "Cc" else f"[U+{ord(char):04X}]"


def _is_number(cell: str) -> bool:
    return isinstance(cell, Cell) and cell.value is not None


def _ampersands(cells: Iterable[str]) -> str:
    r"""A row. A bracket or star at its start would be an argument of the `\\` before it."""
    line = " & ".join(cells) + r" \\"
    return f"{{}}{line}" if line[0] in "[*" else line


def _tex_cell(cell: str) -> str:
    text = " ".join(cell.split()) if isinstance(cell, Cell) else str(cell)
    start, bracket, rest = text.partition(" [") if isinstance(cell, Cell) else (text, "", "")
    plain = rf"\textbf{{{tex(start)}}}" if isinstance(cell, Cell) and cell.best else tex(start)
    return plain + (rf" {{\scriptsize [{tex(rest)}}}" if bracket else "")
