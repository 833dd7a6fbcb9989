"""The licence of an installed package, as its metadata declares it."""

import re
from importlib.metadata import Distribution

# SPDX identifiers (https://spdx.org/licenses) that require no more than that the notice is kept.
PERMISSIVE = frozenset(
    {"0BSD", "BSD-2-Clause", "BSD-3-Clause", "MIT", "MIT-0", "MIT-CMU", "ISC", "Zlib", "BSL-1.0", "Apache-2.0"}
    | {"LLVM-exception", "PSF-2.0", "Python-2.0", "CC0-1.0", "Unlicense"}
)
BSD = "BSD-3-Clause"  # what "BSD" without a number of clauses is taken for; either kind is permissive

CLASSIFIED = {  # trove classifiers, after "License :: OSI Approved :: "
    "Apache Software License": "Apache-2.0",
    "BSD License": BSD,
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "zlib/libpng License": "Zlib",
}
WRITTEN = {  # the old free-text field, in small letters and without "license"
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "bsd": BSD,
    "bsd 3-clause": BSD,
    "bsd-3-clause": BSD,
    "isc": "ISC",
    "mit": "MIT",
}


def permissive_licence(package: Distribution) -> str:
    """The package's licence as an SPDX expression.

    Each identifier in it must be in `PERMISSIVE`, those of alternatives ("MIT OR GPL-2.0") too: it errs on the safe
    side. The newest form in the metadata counts: expression, then classifiers, then free text.

    Raises:
        ValueError: the licence is another, or the metadata declares none.
    """
    declared = _declared(package)
    identifiers = set(re.split(r"\s*\b(?:AND|OR|WITH)\b\s*|[()\s]+", declared)) - {""}
    if not identifiers or identifiers - PERMISSIVE:
        raise ValueError(
            f"package {package.name} declares the licence {declared or 'nothing'!r}, which is not known to be "
            "permissive; take it out of corpus.packages"
        )
    return declared


def _declared(package: Distribution) -> str:
    """An SPDX expression where the words are known, else the words."""
    metadata = package.metadata
    if expression := metadata.json.get("license_expression"):
        return str(expression)
    classifiers = [c.split(" :: ")[-1] for c in metadata.get_all("Classifier") or () if c.startswith("License :: ")]
    if classifiers:
        return " AND ".join(sorted({CLASSIFIED.get(name, name) for name in classifiers}))
    words = str(metadata.json.get("license", "")).strip()
    return WRITTEN.get(words.lower().replace("license", "").strip(), words.partition("\n")[0])
