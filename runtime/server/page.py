"""The page at ``/``: what a person wants to know of a server at a glance. Plain HTML, no script, nothing fetched."""

import time
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Final

from runtime.host import available_memory
from runtime.seal import attempt_count
from runtime.server.loading import Served
from runtime.server.metrics import resident_bytes
from runtime.server.service import Service

PAGE_HEADERS: Final[Mapping[str, str]] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_STYLE: Final = """
:root { color-scheme: light dark; --line: #8885; --good: #1a7f37; --wait: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --good: #3fb950; --wait: #d29922; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 46rem; padding: 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; }
h2 { font-size: 1.1rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
section { border: 1px solid var(--line); border-radius: .5rem; margin: 1rem 0; padding: .75rem 1rem; }
dl { display: grid; gap: .1rem 1rem; grid-template-columns: minmax(7rem, max-content) 1fr; margin: 0; }
dt { opacity: .75; }
dd { margin: 0; overflow-wrap: anywhere; }
ul { margin: .5rem 0 0; padding-left: 1.2rem; }
li { overflow-wrap: anywhere; }
.good { color: var(--good); font-weight: 600; }
.wait { color: var(--wait); font-weight: 600; }
"""


def status_page(service: Service, started: float) -> str:
    """Return the page; it is loaded again every ten seconds.

    Args:
        service: The models.
        started: When the server started, in seconds since 1970.
    """
    state = ("good", "ready") if service.ready else ("wait", "loading")
    models = "".join(_model(service, name) for name in service.names)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="refresh" content="10"><title>Sealift</title>'
        f"<style>{_STYLE}</style></head><body><main>"
        f'<h1>Sealift: <span class="{state[0]}">{state[1]}</span></h1>{_facts(_of_server(service, started))}{models}'
        "</main></body></html>\n"
    )


def _of_server(service: Service, started: float) -> Iterator[tuple[str, str]]:
    total, left = service.metrics.total, available_memory()
    yield "running for", _ago(time.time() - started)
    yield "requests", f"{total('sealift_requests_total'):.0f}, {total('sealift_cancelled_total'):.0f} left early"
    read, made = total("sealift_prompt_tokens_total"), total("sealift_completion_tokens_total")
    yield "tokens", f"{read:,.0f} read, {made:,.0f} made"
    yield "texts cut", f"{total('sealift_truncated_inputs_total'):.0f}"
    yield "memory", f"{resident_bytes() / 1e9:.2f} GB" + ("" if left is None else f", {left / 1e9:.1f} GB free")
    yield "network", f"{attempt_count()} refused tries to reach it"


def _model(service: Service, name: str) -> str:
    served = service.served(name)
    if served is None:
        words = "not loaded; it is when it is asked for" if service.ready else "loading"
        return f'<section><h2>{escape(name)}</h2><p class="wait">{words}</p></section>'
    notes = "".join(f"<li>{escape(note)}</li>" for note in served.info.notes)
    facts = _facts(_of_model(service, name, served))
    return f"<section><h2>{escape(name)}</h2>{facts}<ul>{notes}</ul></section>"


def _of_model(service: Service, name: str, served: Served) -> Iterator[tuple[str, str]]:
    info = served.info
    route = "/v1/embeddings" if info.kind == "embedder" else "/v1/chat/completions"
    yield "answers at", route
    yield "model", f"{info.architecture} ({info.adapter})"
    yield "runs on", f"{info.device}, {info.dtype}"
    yield "limit", f"{info.limit:,} tokens" + (f", {info.dimension} dimensions" if info.dimension else "")
    yield "now", f"{service.active(name)} in work, {service.waiting(name)} waiting"
    yield "probes", served.probed


def _facts(facts: Iterator[tuple[str, str]] | Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f"<dl>{rows}</dl>"


def _ago(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86400)
    hours, minutes = rest // 3600, rest // 60 % 60
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min"
