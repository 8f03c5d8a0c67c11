"""The page of a report: one file, no script, nothing from elsewhere, every text of the bundle escaped."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bundler.review.report import Report
from bundler.review.treemap import squarify
from bundler.selfpack import template_root
from manifests.canonical import Json
from manifests.errors import IntegrityError
from manifests.files import disk_error, write_atomic
from manifests.manifest import KINDS
from manifests.policy import CLASSES, Policy, parse_policy
from manifests.progress import format_size

Language: TypeAlias = Literal["en", "ko"]
_WIDTH: Final = 1120
_HEIGHT: Final = 460
_MOST_CELLS: Final = 60
_LABEL_WIDTH: Final = 7.2  # of a letter, about


def write_report(report: Report, folder: Path, language: Language = "en") -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.json`` into a folder, which is made.

    Returns:
        Their paths, in this order.

    Raises:
        DiskError: They can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, f"create {folder}") from error
    page, data = folder / "report.html", folder / "report.json"
    write_atomic(page, render_page(report.document, language).encode("utf-8", "replace"))
    write_atomic(data, json.dumps(report.document, indent=1, sort_keys=True, ensure_ascii=True).encode() + b"\n")
    return page, data


def render_page(document: Mapping[str, Json], language: Language = "en") -> str:
    """Return the page; ``language`` is the one that is shown first, both are in it."""
    policy = _policy(document)
    environment = Environment(loader=FileSystemLoader(template_root()), undefined=StrictUndefined, autoescape=True)
    environment.filters["size"] = format_size
    environment.filters["groups"] = _groups
    return environment.get_template("report.html.j2").render(
        report=document,
        language=language,
        counts=_counts(document),
        actions=[(kind, policy.action(kind)) for kind in CLASSES],
        licenses=policy.licenses,
        map={"width": _WIDTH, "height": _HEIGHT, "cells": list(_cells(document))},
    )


def _policy(document: Mapping[str, Json]) -> Policy:
    stated = document["policy"]
    try:
        return parse_policy(stated if isinstance(stated, Mapping) else {})
    except IntegrityError:
        return Policy(actions={})  # the report's problems say so


def _counts(document: Mapping[str, Json]) -> dict[str, int]:
    decisions = [item["decision"] for item in _objects(document["findings"])]
    return {name: decisions.count(name) for name in ("refused", "waived", "allowed")}


def _cells(document: Mapping[str, Json]) -> Iterator[dict[str, object]]:
    items = sorted(_sizes(document), key=lambda item: (-item[1], item[0]))
    rest = sum(size for _, size, _ in items[_MOST_CELLS:])
    items = items[:_MOST_CELLS] + ([("...", rest, "rest")] if rest else [])
    for cell in squarify([size for _, size, _ in items], _WIDTH, _HEIGHT):
        label, size, kind = items[cell.index]
        room = int((cell.width - 14) / _LABEL_WIDTH)
        text = label if len(label) <= room else f"{label[: room - 1]}…"
        yield {
            "label": label,
            "size": size,
            "kind": kind,
            "x": round(cell.x, 1),
            "y": round(cell.y, 1),
            "width": round(cell.width, 1),
            "height": round(cell.height, 1),
            "text": text if room >= 4 and cell.height >= 44 else "",
        }


def _sizes(document: Mapping[str, Json]) -> Iterator[tuple[str, int, str]]:
    for item in _objects(document["wheels"]):
        yield str(item["name"]), _integer(item["size"]), "wheel"
    for item in _objects(document["models"]):
        yield str(item["name"]), _integer(item["size"]), "model"
    others = [item for item in _objects(document["other"]) if not str(item["path"]).endswith(".whl")]
    for kind in KINDS:
        size = sum(_integer(item["size"]) for item in others if item["kind"] == kind)
        yield kind, size, "app" if kind == "app" else "rest"


def _groups(digest: str) -> list[str]:
    return [digest[start : start + 8] for start in range(0, len(digest), 8)]


def _objects(value: Json) -> Iterator[Mapping[str, Json]]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, Mapping))


def _integer(value: Json) -> int:
    return value if isinstance(value, int) else 0
