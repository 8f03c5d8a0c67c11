"""docs/spec.md has every key that a spec may have, and no other."""

import re
from pathlib import Path
from typing import Final

import pytest

from bundler.specparse import parse_spec
from manifests.errors import SpecError

PAGE: Final = Path(__file__).parent.parent / "docs" / "spec.md"
GOOD: Final[dict[str, object]] = {"bundle": {"name": "demo", "version": "1"}}
MODEL: Final = {"name": "m", "source": "dir:m", "adapter": "hcx"}
BAD: Final[dict[str, object]] = {"zzzzzzzz": 1}
TABLES: Final[dict[str, dict[str, object]]] = {
    "Top level": BAD,
    "`[bundle]`": {"bundle": {"name": "demo", "version": "1", **BAD}},
    "`[target]`": {"target": BAD},
    "`[packages]`": {"packages": BAD},
    "`[[packages.index]]`": {"packages": {"index": [BAD]}},
    "`[python]`": {"python": {"version": "3.11", **BAD}},
    "`[[model]]`": {"model": [{**MODEL, **BAD}]},
    "`[[app]]`": {"app": [{"source": "dir:x", **BAD}]},
    "`[[probe]]`": {"model": [MODEL], "probe": [{"model": "m", "inputs": ["x"], **BAD}]},
    "`[rehearsal]`": {"rehearsal": BAD},
    "`[[rehearsal.allow-network]]`": {"rehearsal": {"allow-network": [BAD]}},
    "`[requires]`": {"requires": BAD},
    "`[requires.recommended]`": {"requires": {"recommended": BAD}},
    "`[policy]`": {"policy": BAD},
    "`[[policy.waiver]]`": {"policy": {"waiver": [BAD]}},
}


def sections() -> dict[str, str]:
    parts = re.split(r"^#{2,3} (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("heading", TABLES)
def test_every_key_is_described_and_none_that_is_not_there(heading: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(GOOD | TABLES[heading], Path("spec.toml"))
    assert "zzzzzzzz: unknown key" in caught.value.message
    assert caught.value.hint is not None
    known = set(caught.value.hint.removeprefix("known: ").split(", "))
    described = set(re.findall(r"^\| `([a-z0-9-]+)` \|", sections()[heading], flags=re.MULTILINE))
    assert described == known


def test_every_table_has_its_section() -> None:
    top = re.findall(r"^\| `([a-z]+)` \|", sections()["Top level"], flags=re.MULTILINE)
    headings = " ".join(sections())
    assert [name for name in top if name != "extends" and f"[{name}]" not in headings] == []
