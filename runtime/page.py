"""The go-live report as one HTML page: no script, nothing loaded, readable on a telephone and on paper."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template
from typing import Final

from manifests.progress import format_size
from runtime.page_text import LABELS, PAGE, SECTION_NAMES, VERDICTS

_LONG: Final = frozenset(LABELS[key] for key in ("answers", "difference", "found", "looked_at", "needed", "remedy"))
_MARKS: Final = {"ok": "ok", "good": "ok", "note": "note", "warning": "warning", "failed": "failed"}


def render_page(document: Mapping[str, object], *, data_name: str, data_digest: str) -> str:
    """Return the page for a document of :func:`runtime.report.report_document`."""
    bundle, release = _table(document, "bundle"), _table(document, "release")
    good = document["verdict"] == "good"
    values = {
        "title": escape(f"{bundle['name']} {bundle['version']}"),
        "verdict": VERDICTS[good],
        "class": "good" if good else "bad",
        "outcome": escape(f"exit code {document['exit_code']}, {_count_problems(document)} findings"),
        "facts": _facts(_summary(document)),
        "limits": _limits(document),
        "sections": "".join(_section_row(row) for row in _rows(document, "sections")),
        "models": _models(document),
        "network": _facts(_network_facts(document)),
        "preflight": _preflight(document),
        "host": _facts(_host_facts(document)),
        "overrides": _overrides(document),
        "data": escape(data_name),
        "digest": escape(data_digest),
        "release": escape(str(release["name"])),
        **{f"label_{key}": value for key, value in LABELS.items()},
    }
    return Template(PAGE).substitute(values)


def _summary(document: Mapping[str, object]) -> Iterable[tuple[str, str]]:
    bundle, release = _table(document, "bundle"), _table(document, "release")
    trust, done = _table(document, "trust"), _table(document, "verification")
    by = _table(done, "by")
    size = bundle["size"]
    yield LABELS["digest"], _code(str(bundle["digest"]))
    yield LABELS["target"], escape(str(bundle["target"]))
    held = f"{bundle['files']} files, {format_size(size) if isinstance(size, int) else size}, {bundle['wheels']} wheels"
    yield LABELS["content"], escape(held)
    yield LABELS["release"], f"{_code(str(release['name']))} {escape(str(release['prefix']))}"
    yield LABELS["installed"], escape(f"{release['installed']}, Python {release['python']}")
    yield LABELS["signed"], "<br>".join(_code(str(signer)) for signer in _list(trust, "signers"))
    yield (
        LABELS["trust"],
        escape(f"{trust['source']}; {trust['signatures_needed']} signature needed {trust['time_note']}".strip()),
    )
    sudo = f", called by {by['sudo_user']}" if "sudo_user" in by else ""
    yield LABELS["verified"], escape(f"{done['ended']} by {by['name']} (uid {by['uid']}{sudo}), {done['seconds']} s")
    yield LABELS["depth"], escape(f"{done['depth']}; Sealift {done['sealift']}, Python {done['python']}")


def _limits(document: Mapping[str, object]) -> str:
    """Return what a reader might take for said, and isn't."""
    trust, done = _table(document, "trust"), _table(document, "verification")
    models, bundle = _rows(document, "models"), _table(document, "bundle")
    found: list[str] = []
    if str(trust["source"]).startswith("the prefix itself"):
        found.append(LABELS["limit_trust"])
    if done["depth"] == "quick":
        found.append(LABELS["limit_quick"])
    if _list(bundle, "models") and not models:
        found.append(LABELS["limit_models"])
    if any(row["probes"] != row["compared"] for row in models):
        found.append(LABELS["limit_unrecorded"])
    if _table(document, "network")["default_routes"]:
        found.append(LABELS["limit_network"])
    items = "".join(f"<li>{text}</li>" for text in found)
    return f'<section class="limits"><h2>{LABELS["limits"]}</h2><ul>{items}</ul></section>' if found else ""


def _section_row(row: Mapping[str, object]) -> str:
    problems = _list(row, "problems")
    name = str(row["name"])
    more = "".join(f"<li>{escape(str(problem))}</li>" for problem in problems)
    detail = f"<ul class=problems>{more}</ul>" if more else ""
    cells = (
        (LABELS["check"], f"<b>{escape(name)}</b> {SECTION_NAMES.get(name, '')}"),
        (LABELS["result"], _mark("failed" if problems else "ok")),
        (LABELS["looked_at"], escape(str(row["checked"])) + detail),
        (LABELS["seconds"], escape(f"{row['seconds']}")),
    )
    return _row(cells)


def _models(document: Mapping[str, object]) -> str:
    rows = [
        _row(
            (
                (LABELS["model"], f"<b>{escape(str(row['name']))}</b>"),
                (LABELS["result"], _mark("failed" if row["problems"] else "ok")),
                (LABELS["answers"], _answers(row)),
                (LABELS["difference"], _difference(row, str(document["tolerance"]))),
                (LABELS["computed"], escape(f"{row['dtype']} on {row['device']}" if row["device"] else "not loaded")),
                (LABELS["seconds"], escape(str(row["seconds"]))),
            )
        )
        for row in _rows(document, "models")
    ]
    heads = ("model", "result", "answers", "difference", "computed", "seconds")
    return _whole_table(heads, rows) if rows else f"<p>{LABELS['no_models']}</p>"


def _answers(row: Mapping[str, object]) -> str:
    more = "".join(f"<li>{escape(str(problem))}</li>" for problem in _list(row, "problems"))
    words = f"{row['probes']} asked, {row['compared']} compared with recorded answers"
    return escape(words) + (f"<ul class=problems>{more}</ul>" if more else "")


def _difference(row: Mapping[str, object], tolerance: str) -> str:
    if row["worst_difference"] is None:
        return "text must be equal" if row["compared"] else "nothing recorded"
    explained = f"; {row['explanation']}" if row["explanation"] else ""
    return escape(f"{row['worst_difference']} at most, allowed {tolerance}{explained}")


def _network_facts(document: Mapping[str, object]) -> Iterable[tuple[str, str]]:
    network = _table(document, "network")
    yield LABELS["routes"], escape(", ".join(map(str, _list(network, "default_routes"))) or "none")
    yield LABELS["interfaces"], escape(", ".join(map(str, _list(network, "interfaces"))) or "loopback alone")
    yield LABELS["resolvers"], escape(", ".join(map(str, _list(network, "name_servers"))) or "none")
    attempts = _list(network, "attempts")
    asked = "none" if network["models_asked"] else "no model was asked"
    yield LABELS["attempts"], "<br>".join(_code(str(attempt)) for attempt in attempts) or asked
    packets = network["unroutable_packets"]
    yield (
        LABELS["kernel"],
        escape("not told" if packets is None else f"{packets} packets without a route, all processes"),
    )


def _preflight(document: Mapping[str, object]) -> str:
    rows = [
        _row(
            (
                (LABELS["check"], f"<b>{escape(str(row['name']))}</b>"),
                (LABELS["result"], _mark(str(row["verdict"]))),
                (LABELS["found"], escape(str(row["found"]))),
                (LABELS["needed"], escape(str(row["needed"]))),
                (LABELS["remedy"], escape(str(row["remedy"]))),
            )
        )
        for row in _rows(document, "preflight")
    ]
    return _whole_table(("check", "result", "found", "needed", "remedy"), rows)


def _host_facts(document: Mapping[str, object]) -> Iterable[tuple[str, str]]:
    host = _table(document, "host")
    memory, whole = host["memory"], host["memory_of_host"]
    yield LABELS["system"], escape(f"{host['name']}: {host['system']}, {host['kernel']}, {host['libc']}")
    features = ", ".join(map(str, _list(host, "cpu_features")))
    yield LABELS["cpu"], escape(f"{host['cpu']} ({host['machine']}); {features}")
    yield LABELS["cores"], escape(f"{host['cores']:g} of {host['cores_of_host']:g}")
    if isinstance(memory, int) and isinstance(whole, int):
        yield LABELS["memory"], escape(f"{format_size(memory)} of {format_size(whole)}")
    gpus = "; ".join(map(str, _list(host, "gpus"))) or "none"
    yield LABELS["gpu"], escape(f"{gpus}, driver {host['gpu_driver'] or 'none'}")


def _overrides(document: Mapping[str, object]) -> str:
    names = _list(document, "overrides")
    items = "".join(f"<li>{_code(str(name))}</li>" for name in names)
    return f"<ul>{items}</ul>" if items else f"<p>{LABELS['no_overrides']}</p>"


def _count_problems(document: Mapping[str, object]) -> int:
    return sum(len(_list(section, "problems")) for section in _rows(document, "sections"))


def _whole_table(heads: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f"<th>{LABELS[head]}</th>" for head in heads)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(cells: Iterable[tuple[str, str]]) -> str:
    """Return a row; each cell also has its label, which a narrow screen shows instead of the head."""
    shown = "".join(
        f'<td{" class=long" if label in _LONG else ""} data-label="{escape(_plain(label))}">{content}</td>'
        for label, content in cells
    )
    return f"<tr>{shown}</tr>"


def _facts(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in pairs) + "</dl>"


def _mark(verdict: str) -> str:
    return f'<span class="mark {_MARKS.get(verdict, "note")}">{VERDICTS[verdict]}</span>'


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _plain(label: str) -> str:
    return label.replace("<small>", "").replace("</small>", "")


def _table(document: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = document[key]
    assert isinstance(value, Mapping)  # noqa: S101 # of our own making
    return value


def _rows(document: Mapping[str, object], key: str) -> list[Mapping[str, object]]:
    return [row for row in _list(document, key) if isinstance(row, Mapping)]


def _list(document: Mapping[str, object], key: str) -> Sequence[object]:
    value = document[key]
    return value if isinstance(value, list | tuple) else ()
