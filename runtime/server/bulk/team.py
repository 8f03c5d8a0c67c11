"""The processes that work for a run, each with a thread that gives it shards and waits for it."""

import json
import queue
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from manifests.errors import AdapterError, DiskError, IntegrityError, SealiftError, UsageError
from runtime.server.bulk.output import Done
from runtime.server.bulk.sources import Shard

_KINDS: Final[Mapping[int, type[SealiftError]]] = {
    kind.exit_code: kind for kind in (AdapterError, DiskError, IntegrityError, UsageError)
}


@dataclass(slots=True, kw_only=True)
class Team:
    """Processes of one command; leaving the context ends them, at once where they aren't through.

    Args:
        command: What to start.
        environment: Of the processes.
        size: How many.
        held: A descriptor that they keep open: the lock on the output.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    size: int
    held: int
    _processes: "list[subprocess.Popen[str]]" = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _results: "queue.Queue[Done | Exception]" = field(default_factory=queue.Queue)
    _shards: "queue.Queue[Shard]" = field(default_factory=queue.Queue)

    def __enter__(self) -> Self:
        for _ in range(self.size):
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self.environment,
                pass_fds=(self.held,),
                start_new_session=True,  # Ctrl-C is for the run, which ends them
            )
            self._processes.append(process)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
        for thread in self._threads:
            thread.join()
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    _close(stream)

    def ready(self) -> Mapping[str, Any]:
        """Wait for all, and return what they loaded.

        Raises:
            AdapterError: A process ended, or they didn't load the same.
        """
        loaded: list[Mapping[str, Any]] = [_receive(process)["ready"] for process in self._processes]
        if any(one != loaded[0] for one in loaded):
            raise AdapterError(f"the processes loaded the model differently: {loaded}")
        return loaded[0]

    def start(self, shards: Sequence[Shard]) -> None:
        """Have them work on shards, in this order."""
        for shard in shards:
            self._shards.put(shard)
        self._threads = [threading.Thread(target=self._feed, args=(process,)) for process in self._processes]
        for thread in self._threads:
            thread.start()

    def next_done(self) -> Done:
        """Wait for the next shard, in any order.

        Raises:
            AdapterError: A process ended or the model failed.
            DiskError: Nothing can be written.
            IntegrityError: The input changed.
        """
        result = self._results.get()
        if isinstance(result, Exception):
            raise result
        return result

    def _feed(self, process: "subprocess.Popen[str]") -> None:
        try:
            while (shard := self._take()) is not None:
                _send(process, json.dumps(shard.to_json()))
                self._results.put(Done(**_receive(process)["done"]))
        except Exception as error:  # noqa: BLE001 - raised again by next_done, in the thread that waits
            self._results.put(error)

    def _take(self) -> Shard | None:
        try:
            return self._shards.get_nowait()
        except queue.Empty:
            return None


def _send(process: "subprocess.Popen[str]", line: str) -> None:
    if process.stdin is None:
        raise AssertionError("started with a pipe")
    try:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
    except BrokenPipeError:
        raise _ended(process) from None


def _receive(process: "subprocess.Popen[str]") -> Mapping[str, Any]:
    if process.stdout is None:
        raise AssertionError("started with a pipe")
    line = process.stdout.readline()
    if not line.endswith("\n"):
        raise _ended(process)
    answer: Mapping[str, Any] = json.loads(line)
    if "error" in answer:
        raise _KINDS.get(answer["code"], AdapterError)(answer["error"], hint=answer["hint"])
    return answer


def _ended(process: "subprocess.Popen[str]") -> AdapterError:
    code = process.wait()
    how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
    hint = "what is done is kept: run the same command again; signal 9 is often memory: fewer --processes"
    return AdapterError(f"an embedding process (PID {process.pid}) {how}", hint=hint)


def _close(stream: Any) -> None:  # noqa: ANN401 - either end of a pipe
    try:
        stream.close()
    except BrokenPipeError:
        return  # what was buffered was for a process that is gone
