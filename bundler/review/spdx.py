"""Licences as SPDX expressions: out of a wheel's METADATA or a licence's text, and against an allow-list.

Core metadata: https://packaging.python.org/en/latest/specifications/core-metadata/ (``License-Expression``, PEP 639).
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from email.message import Message
from typing import Final

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

_CLASSIFIER: Final = "License :: "
_CLASSIFIERS: Final[Mapping[str, str]] = {
    "Academic Free License (AFL)": "AFL-3.0",
    "Apache Software License": "Apache-2.0",
    "Artistic License": "Artistic-2.0",
    "Boost Software License 1.0 (BSL-1.0)": "BSL-1.0",
    "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": "CC0-1.0",
    "European Union Public Licence 1.2 (EUPL 1.2)": "EUPL-1.2",
    "GNU Affero General Public License v3": "AGPL-3.0-only",
    "GNU Affero General Public License v3 or later (AGPLv3+)": "AGPL-3.0-or-later",
    "GNU General Public License (GPL)": "GPL-1.0-or-later",
    "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
    "GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    "GNU Lesser General Public License v2 (LGPLv2)": "LGPL-2.0-only",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    "GNU Library or Lesser General Public License (LGPL)": "LGPL-2.0-or-later",
    "Historical Permission Notice and Disclaimer (HPND)": "HPND",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "Mozilla Public License 1.1 (MPL 1.1)": "MPL-1.1",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Other/Proprietary License": "LicenseRef-Proprietary",
    "Public Domain": "LicenseRef-Public-Domain",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "Universal Permissive License (UPL)": "UPL-1.0",
    "zlib/libpng License": "Zlib",
}
_FIELDS: Final[Mapping[str, str]] = {
    "2-clause bsd": "BSD-2-Clause",
    "3-clause bsd": "BSD-3-Clause",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license 2.0": "Apache-2.0",
    "bsd 2-clause": "BSD-2-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "gplv2": "GPL-2.0-only",
    "gplv3": "GPL-3.0-only",
    "gplv3+": "GPL-3.0-or-later",
    "modified bsd": "BSD-3-Clause",
    "mpl 2.0": "MPL-2.0",
    "mpl-2": "MPL-2.0",
    "new bsd": "BSD-3-Clause",
    "psf": "PSF-2.0",
    "python software foundation": "PSF-2.0",
    "simplified bsd": "BSD-2-Clause",
}
_TEXTS: Final[Sequence[tuple[str, str]]] = (
    (r"GNU AFFERO GENERAL PUBLIC LICENSE\s+Version 3", "AGPL-3.0-only"),
    (r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 3", "LGPL-3.0-only"),
    (r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 2\.1", "LGPL-2.1-only"),
    (r"GNU GENERAL PUBLIC LICENSE\s+Version 3", "GPL-3.0-only"),
    (r"GNU GENERAL PUBLIC LICENSE\s+Version 2", "GPL-2.0-only"),
    (r"Mozilla Public License,? (?:Version|v\.?) ?2\.0", "MPL-2.0"),
    (r"Apache License\s+Version 2\.0", "Apache-2.0"),
    (r"Permission to use, copy, modify, and/or distribute this software for any\s+purpose", "ISC"),
    (r"Permission is hereby granted, free of charge, to any person obtaining a\s+copy", "MIT"),
    (r"Redistribution and use in source and binary forms[\s\S]{0,1600}(?:Neither the name|names? of)", "BSD-3-Clause"),
    (r"Redistribution and use in source and binary forms", "BSD-2-Clause"),
)
_UNKNOWN: Final = {"", "other", "unknown", "none", "n/a", "unlicensed", "see license", "license"}
_TOKEN: Final = re.compile(r"\(|\)|[^\s()]+")
_LONGEST: Final = 200  # of a License field that may be more than a whole licence
_TEXT_HEAD: Final = 32_000


def canonical_license(text: str) -> str:
    """Return the SPDX expression that a short text is or means, empty where nobody can tell."""
    words = " ".join(text.split())
    plain = re.sub(r"^the | licen[cs]e$", "", words.lower())
    if plain in _UNKNOWN or len(words) > _LONGEST:
        return ""
    for candidate in (_FIELDS.get(words.lower(), ""), _FIELDS.get(plain, ""), words, plain):
        try:
            if candidate:
                return str(canonicalize_license_expression(candidate))
        except InvalidLicenseExpression:
            continue
    return ""


def model_license(identifier: str) -> str:
    """Return the SPDX expression for a licence as a model's page names it; one that SPDX lacks is a ``LicenseRef-``."""
    if found := canonical_license(identifier):
        return found
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", identifier).strip("-")
    return "" if identifier.lower() in _UNKNOWN or not name else f"LicenseRef-{name}"


def license_of(headers: Message, texts: Iterable[str]) -> tuple[str, str]:
    """Return a wheel's licence and what says so: ``expression``, ``field``, ``classifiers``, ``text``, or two times ''.

    Args:
        headers: Its METADATA.
        texts: The licence texts it carries; asked only where METADATA doesn't say.
    """
    expression = canonical_license(str(headers.get("License-Expression") or ""))
    if expression:
        return expression, "expression"
    if found := canonical_license(str(headers.get("License") or "")):
        return found, "field"
    if found := _of_classifiers(headers):
        return found, "classifiers"
    kinds = sorted({kind for text in texts for kind in licenses_of_text(text)})
    return (" AND ".join(kinds), "text") if kinds else ("", "")


def licenses_of_text(text: str) -> frozenset[str]:
    """Return which well-known licences a text holds, several where it holds several."""
    head = text[:_TEXT_HEAD]
    found = {spdx for pattern, spdx in _TEXTS if re.search(pattern, head)}
    return frozenset(found - {"BSD-2-Clause"} if "BSD-3-Clause" in found else found)


def _of_classifiers(headers: Message) -> str:
    """Return what the classifiers name; several are all binding, since nothing says that one may choose."""
    named = [str(item).strip() for item in headers.get_all("Classifier", ())]
    last = [item.rpartition(" :: ")[2] for item in named if item.startswith(_CLASSIFIER)]
    found = [_CLASSIFIERS.get(name, "") for name in last if name != "OSI Approved"]
    return " AND ".join(sorted(set(found))) if found and all(found) else ""


def satisfies(expression: str, allowed: Collection[str]) -> bool:
    """Whether an SPDX expression can be kept with licences of an allow-list alone.

    ``OR`` needs one side, ``AND`` both; ``X WITH Y`` is allowed where ``X`` is, since an exception only permits more.
    """
    names = {name.lower() for name in allowed}
    tokens = _TOKEN.findall(expression)
    value, rest = _alternatives(tokens, names)
    return value and not rest


def _alternatives(tokens: list[str], names: Collection[str]) -> tuple[bool, list[str]]:
    value, tokens = _all_of(tokens, names)
    while tokens[:1] == ["OR"]:
        other, tokens = _all_of(tokens[1:], names)
        value = value or other
    return value, tokens


def _all_of(tokens: list[str], names: Collection[str]) -> tuple[bool, list[str]]:
    value, tokens = _one(tokens, names)
    while tokens[:1] == ["AND"]:
        other, tokens = _one(tokens[1:], names)
        value = value and other
    return value, tokens


def _one(tokens: list[str], names: Collection[str]) -> tuple[bool, list[str]]:
    if tokens[:1] == ["("]:
        value, rest = _alternatives(tokens[1:], names)
        return value and rest[:1] == [")"], rest[1:]
    if tokens[1:2] == ["WITH"]:
        whole = " ".join(tokens[:3]).lower()
        return tokens[0].lower() in names or whole in names, tokens[3:]
    return bool(tokens) and tokens[0].lower() in names, tokens[1:]


def identifiers(expression: str) -> Iterator[str]:
    """Yield the licences that an expression names."""
    words = _TOKEN.findall(expression)
    yield from (word for index, word in enumerate(words) if _is_name(words, index))


def _is_name(words: Sequence[str], index: int) -> bool:
    return words[index] not in {"(", ")", "AND", "OR", "WITH"} and (index == 0 or words[index - 1] != "WITH")
