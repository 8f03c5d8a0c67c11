"""docs/reference/settings.md lists the settings that there are, with their defaults, and no others."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Final

import pytest

from manifests.modelsettings import KINDS, REFUSED

_TEXT: Final = (Path(__file__).parent.parent / "docs/reference/settings.md").read_text(encoding="utf-8")
_ROW: Final = re.compile(r"^\| `(\w+)` \| (.*?) \| .*\|$", re.MULTILINE)
_BLOCKS: Final = {
    "bge-m3": ("## All adapters", "## `bge-m3` and `sentence-transformer`", "Of `bge-m3` alone:"),
    "sentence-transformer": (
        "## All adapters",
        "## `bge-m3` and `sentence-transformer`",
        "Of `sentence-transformer` alone:",
    ),
    "causal-lm": ("## All adapters", "## `causal-lm` and `hcx`"),
    "hcx": ("## All adapters", "## `causal-lm` and `hcx`"),
}
_OWN: Final = {
    ("bge-m3", "normalize_embeddings"): "`true`",
    ("sentence-transformer", "normalize_embeddings"): "nothing",
}


def rows_below(heading: str) -> dict[str, str]:
    """Return key -> default of the first table below a line."""
    after = _TEXT.split(f"\n{heading}\n", 1)[1]
    table = re.split(r"\n(?:## |Of `|A key)", after, maxsplit=1)[0]
    return dict(_ROW.findall(table))


def written(default: object) -> str:
    """Return a default as the document has it."""
    if default is None:
        return "nothing"
    if isinstance(default, str) and default:
        return f"`{default}`"
    return f"`{json.dumps(list(default) if isinstance(default, tuple) else default)}`"


@pytest.mark.parametrize("adapter", sorted(KINDS))
def test_every_setting_stands_there_with_its_default(adapter: str) -> None:
    listed = {key: default for heading in _BLOCKS[adapter] for key, default in rows_below(heading).items()}
    settings = KINDS[adapter]()
    own = {item.name: written(getattr(settings, item.name)) for item in dataclasses.fields(settings)}
    if "normalize_embeddings" in own:
        assert own.pop("normalize_embeddings") == _OWN[adapter, "normalize_embeddings"]
        assert listed.pop("normalize_embeddings") == "`true` / nothing"
    assert listed == own


def test_every_refused_key_stands_there_with_its_reason() -> None:
    assert rows_of_reasons() == dict(REFUSED)


def rows_of_reasons() -> dict[str, str]:
    """Return key -> reason of the last table."""
    return dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", _TEXT.split("\n## Refused\n", 1)[1], re.MULTILINE))
