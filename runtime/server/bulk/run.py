"""A run: plan, embed what isn't there yet, and say what was made."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from manifests import __version__
from manifests.errors import DiskError, UsageError, list_problems
from manifests.files import free_space
from manifests.progress import format_duration, format_size
from runtime.adapters.base import ModelConfig
from runtime.adapters.fingerprint import fingerprint
from runtime.server.bulk.output import Done, Output, ids_name, open_output, vectors_name
from runtime.server.bulk.rows import RowFields
from runtime.server.bulk.sources import Scan, Shard, open_source, require_usable
from runtime.server.bulk.team import Team

FORMAT: Final = 1
_TELL_EVERY: Final = 2.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkRequest:
    """What is asked for; ``threads`` None divides the cores among the processes."""

    model: ModelConfig
    input: Path
    output: Path
    fields: RowFields
    shard_rows: int
    processes: int
    cores: int
    threads: int | None = None
    skip_bad: bool = False


Command = Callable[[int], Sequence[str]]
"""Returns the command of a process, for so many CPU threads."""


class Workers(Protocol):
    """What embeds shards: processes of this host, or actors on Ray."""

    def ready(self) -> Mapping[str, Any]:
        """Wait for all, and return what they loaded."""

    def start(self, shards: Sequence[Shard]) -> None:
        """Have them work on shards, in this order."""

    def next_done(self) -> Done:
        """Wait for the next shard, in any order."""


MakeTeam = Callable[[int, int], AbstractContextManager[Workers]]
"""Returns other workers than processes: so many CPU threads each, so many of them."""


def run_bulk(
    request: BulkRequest, command: Command, tell: Callable[[str], None], *, team: MakeTeam | None = None
) -> Mapping[str, Any]:
    """Embed a file, or what is left of it, and return the summary; ``tell`` is told how far it is.

    ``team`` takes the place of the processes of ``command``; what is written is the same.

    Raises:
        UsageError: The input can't be used, or the output belongs to something else.
        AdapterError: The model fails.
        DiskError: No space, no permission, or another run works there.
        IntegrityError: The input changes meanwhile.
    """
    source = open_source(request.input, request.fields)
    with open_output(request.output) as output:
        tell(f"reading {request.input}")
        scan = source.scan(request.shard_rows)
        require_usable(scan, request.input, skip_bad=request.skip_bad)
        asked = describe_request(request, scan)
        if (summary := output.summary) is not None:
            require_same("request", asked, summary["request"], request.output)
            output.tidy()
            tell("everything was there already")
            return summary
        run = _Run(request=request, output=output, scan=scan, asked=asked, command=command, tell=tell, other=team)
        computed, done = run.work()
        summary = summarize(asked, computed, scan, [done[shard.number] for shard in scan.shards])
        output.finish(summary, scan.bad)
        return summary


def describe_request(request: BulkRequest, scan: Scan) -> dict[str, Any]:
    """Return what decides what is written; two requests with the same may share an output."""
    settings = json.dumps(request.model.settings, sort_keys=True).encode()
    return {
        "adapter": request.model.adapter,
        "field": request.fields.text,
        "format": FORMAT,
        "id_field": request.fields.id,
        "input_sha256": scan.sha256,
        "input_size": scan.size,
        "model": request.model.name,
        "model_sha256": fingerprint(request.model.directory),
        "sealift": __version__,
        "settings_sha256": hashlib.sha256(settings).hexdigest(),
        "shard_rows": request.shard_rows,
        "skip_bad": request.skip_bad,
        "threads": request.threads,
    }


def require_same(what: str, asked: Mapping[str, Any], there: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with a folder that was begun otherwise.

    Raises:
        UsageError: Lists every difference.
    """
    keys = sorted(asked.keys() | there.keys())
    differing = [
        f"{key}: {there.get(key)} there, {asked.get(key)} now" for key in keys if asked.get(key) != there.get(key)
    ]
    if differing:
        hint = "choose another --output, or the same model, input and options as before"
        raise UsageError(list_problems(f"{folder}: begun with another {what}", differing), hint=hint)


def summarize(
    asked: Mapping[str, Any], computed: Mapping[str, Any], scan: Scan, done: Sequence[Done]
) -> dict[str, Any]:
    """Return what a finished folder says of itself; no times, so that the same work gives the same bytes."""
    return {
        "computed": dict(computed),
        "request": dict(asked),
        "shards": [_shard_entry(one) for one in done],
        "skipped": len(scan.bad),
        "texts": sum(one.rows for one in done),
        "tokens": sum(one.tokens for one in done),
        "truncated": sum(one.truncated for one in done),
    }


def _shard_entry(done: Done) -> dict[str, Any]:
    return {
        "ids": ids_name(done.number),
        "ids_sha256": done.ids_sha256,
        "rows": done.rows,
        "truncated": done.truncated,
        "vectors": vectors_name(done.number),
        "vectors_sha256": done.vectors_sha256,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A run that isn't finished: what is asked for, where, and how processes are started."""

    request: BulkRequest
    output: Output
    scan: Scan
    asked: Mapping[str, Any]
    command: Command
    tell: Callable[[str], None]
    other: MakeTeam | None

    def work(self) -> tuple[Mapping[str, Any], dict[int, Done]]:
        """Embed the shards that aren't there; return what computed them, and all of them."""
        plan = self.output.plan
        if plan is None:
            return self._embed(None, {})
        require_same("request", self.asked, plan["request"], self.request.output)
        done = self.output.finished(self.scan.shards)
        return (plan["computed"], done) if len(done) == len(self.scan.shards) else self._embed(plan["computed"], done)

    def _embed(
        self, before: Mapping[str, Any] | None, done: dict[int, Done]
    ) -> tuple[Mapping[str, Any], dict[int, Done]]:
        missing = [shard for shard in self.scan.shards if shard.number not in done]
        size = min(self.request.processes, len(missing))
        # The number of threads changes the last bit of a sum: a run goes on with those that it began with.
        threads = before["threads"] if before else self.request.threads or max(1, self.request.cores // size)
        self.tell(
            f"{len(missing)} of {len(self.scan.shards)} shards to do; processes: {size}, threads of each: {threads}"
        )
        with self._team(threads, size) as team:
            computed = team.ready()
            require_same("computation", computed, before or computed, self.request.output)
            _require_space(self.request.output, missing, computed["dimension"])
            self.output.begin({"computed": computed, "request": self.asked})
            team.start(missing)
            self._collect(team, len(missing), done)
        return computed, done

    def _team(self, threads: int, size: int) -> AbstractContextManager[Workers]:
        if self.other is not None:
            return self.other(threads, size)
        return Team(command=self.command(threads), environment=os.environ, size=size, held=self.output.descriptor)

    def _collect(self, team: Workers, count: int, done: dict[int, Done]) -> None:
        progress = Progress(scan=self.scan, done=sum(one.rows for one in done.values()), tell=self.tell)
        for _ in range(count):
            one = team.next_done()
            self.output.add(one)
            done[one.number] = one
            progress.advance(one.rows)


def _require_space(folder: Path, missing: Sequence[Shard], dimension: int) -> None:
    needed, free = 4 * dimension * sum(shard.rows for shard in missing), free_space(folder)
    if needed > free:
        msg = f"{folder}: the vectors need {format_size(needed)}, {format_size(free)} are free"
        raise DiskError(msg, hint="free some space, or choose another folder")


class Progress:
    """Says how far a run is, every two seconds and at the end."""

    def __init__(self, *, scan: Scan, done: int, tell: Callable[[str], None]) -> None:
        self._total, self._before, self._done = scan.rows, done, done
        self._tell = tell
        self._start = self._told = time.monotonic()

    def advance(self, rows: int) -> None:
        """Count more texts."""
        self._done += rows
        now = time.monotonic()
        if self._done < self._total and now - self._told < _TELL_EVERY:
            return
        self._told = now
        rate = (self._done - self._before) / max(now - self._start, 1e-9)
        left = format_duration((self._total - self._done) / rate)
        self._tell(f"{self._done} of {self._total} texts, {rate:.1f} texts/s, {left} left")
