"""Batched decoding: rows join and leave one running batch, and no row changes what another row answers.

For whoever drives it (a server's worker thread, a LangChain object, a plain loop)::

    engine = adapter.engine                          # every CausalLmAdapter has one
    handle = engine.add(prompt, params)              # cheap, from any thread: tokenises and checks, computes nothing
    while engine.busy:                               #   raises RequestError / ContextTooLongError there and then
        for changed in engine.step():                # one token for every row; handles that have news
            for piece in changed.take():             # Piece, in order; the last one has finish_reason
                ...
            if changed.done and changed.error:       # GenerationError of this row alone; its neighbours go on
                ...
    handle.cancel()                                  # from any thread; the row leaves at the next step

``step`` takes a lock of its own, so several threads may drive one engine: each moves everybody's rows on. It never
raises because of a row. A handle is done after its last piece, its error, or its cancellation (no last piece then).
``adapter.stream`` and ``adapter.generate`` are rows of the same engine: what they answer alone, they answer in a batch.

How: a prompt is prefilled alone, in chunks of fixed size, so those numbers are the same whatever else runs. Then its
keys and values join the running batch, padded on the left; rows that leave are cut out and padding that nobody needs
any more is trimmed. Each row has its own sampler (its own seed), stop strings, limits and end tokens. Models whose
cache can't be padded (sliding windows, recurrent states) decode row by row, in turn.

Limits of sameness: matrix products of another number of rows round otherwise, about 1e-6 of a score in float32. That
changes a greedy answer only where two tokens tie to six digits. In bfloat16 and float16 the rounding is about 1e-2,
ties are common, and a batched answer may leave the path of the single one; set dtype float32 or enable_batching false
where answers are compared with recorded ones.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from runtime.adapters.base import DEFAULT_PARAMS, FinishReason, GenerationError, GenerationParams, Piece, Prompt
from runtime.adapters.decoding import Sampler
from runtime.adapters.hardware import is_out_of_memory
from runtime.adapters.reading import AnswerReader
from runtime.adapters.rows import CachedNetwork, RowGroup

PREFILL_TOKENS: Final = 512
"""A prompt goes through the model in pieces of so many tokens, between which the other rows get their next token."""


@dataclass(slots=True, kw_only=True, eq=False)
class DecodeHandle:
    """One answer in the making. ``take`` may be called from any one thread while another steps the engine.

    Attributes:
        prompt_tokens: Tokens of the prompt after templating.
        done: Nothing more will come.
        error: Why it ended without a finish reason; None after a cancellation.
    """

    prompt_tokens: int
    done: bool = False
    error: GenerationError | None = None
    cancelled: bool = False
    _pieces: deque[Piece] = field(default_factory=deque)

    def take(self) -> list[Piece]:
        """Return the pieces that came since the last call."""
        return [self._pieces.popleft() for _ in range(len(self._pieces))]

    def cancel(self) -> None:
        """Ask that the row leaves; harmless when it is done."""
        self.cancelled = True

    @property
    def has_news(self) -> bool:
        """Whether pieces wait or the answer ended."""
        return self.done or bool(self._pieces)

    def put(self, piece: Piece) -> None:
        """Add a piece; for the engine."""
        self._pieces.append(piece)


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """One prompt and what is needed to continue it; made by the adapter, changed by the engine only.

    Attributes:
        ids: The prompt, then also the answer.
        sampler: Chooses its tokens.
        reader: Turns its tokens into text and knows when it ends.
        room: Tokens that the answer may have.
        handle: Where its pieces go.
    """

    ids: list[int]
    sampler: Sampler
    reader: AnswerReader
    room: int
    handle: DecodeHandle
    fed: int = 0
    count: int = 0

    @property
    def reserved(self) -> int:
        """Return the cached tokens that it may come to."""
        return self.handle.prompt_tokens + self.room


class DecodeEngine:
    """Continuous batching over one network.

    Args:
        network: The network, its cache and its device.
        prepare: Turns a request into a row; raises :class:`RequestError` where it can't be answered.
        model: The model's name, for messages.
        max_rows: Rows that decode together.
        max_tokens: Cached tokens of all rows together, padding included; one row alone may have more.
        prefill_tokens: Tokens of a prompt that go through the model at once.
    """

    def __init__(
        self,
        network: CachedNetwork,
        prepare: Callable[[Prompt, GenerationParams], Row],
        *,
        model: str,
        max_rows: int,
        max_tokens: int,
        prefill_tokens: int = PREFILL_TOKENS,
    ) -> None:
        self._network = network
        self._prepare = prepare
        self._model = model
        self._max_rows, self._max_tokens, self._prefill_tokens = max_rows, max_tokens, prefill_tokens
        self._group_rows = max_rows
        self._lock = threading.Lock()
        self._waiting: deque[Row] = deque()
        self._filling: RowGroup[Row] | None = None
        self._groups: list[RowGroup[Row]] = []
        self._news: list[DecodeHandle] = []

    @property
    def busy(self) -> bool:
        """Whether a step would have something to do."""
        return bool(self.waiting or self._filling or self._groups)

    @property
    def waiting(self) -> int:
        """Return how many rows wait for their turn."""
        return sum(not row.handle.done for row in tuple(self._waiting))

    @property
    def active(self) -> int:
        """Return how many rows are in the model, prefill included."""
        return len(self._active_rows())

    @property
    def max_rows(self) -> int:
        """Return how many rows decode together at most."""
        return self._max_rows

    def add(self, prompt: Prompt, params: GenerationParams = DEFAULT_PARAMS) -> DecodeHandle:
        """Queue a request; nothing is computed yet.

        Raises:
            ContextTooLongError: Prompt and answer don't fit.
            RequestError: A parameter is out of range, or the template refuses the conversation.
        """
        row = self._prepare(prompt, params)
        self._waiting.append(row)
        return row.handle

    def cancel(self, handle: DecodeHandle) -> None:
        """Cancel a row and free what it holds: now if nobody steps, else at the end of that step or in the next."""
        handle.cancel()
        if self._lock.acquire(blocking=False):  # a stream that is collected as garbage may come here within a step
            try:
                self._drop_cancelled()
            finally:
                self._lock.release()

    def step(self) -> tuple[DecodeHandle, ...]:
        """Give every running row its next token and prefill waiting ones; return the handles that have news."""
        with self._lock:
            return self._step()

    def step_for(self, handle: DecodeHandle) -> None:
        """Step once unless ``handle`` has news, which another thread's step may have brought meanwhile."""
        with self._lock:
            if not handle.has_news:
                self._step()

    def _step(self) -> tuple[DecodeHandle, ...]:
        self._news = []
        self._drop_cancelled()
        for group in tuple(self._groups):
            self._decode(group)
        self._prefill()
        self._merge()
        self._drop_cancelled()
        if not self.busy:
            self._group_rows = self._max_rows
        return tuple(dict.fromkeys(self._news))

    def _active_rows(self) -> list[Row]:
        groups = [*self._groups, *([self._filling] if self._filling else [])]
        return [row for group in groups for row in group.rows]

    def _drop_cancelled(self) -> None:
        for row in (*self._waiting, *self._active_rows()):
            if row.handle.cancelled and not row.handle.done:
                self._close(row)
        while self._waiting and self._waiting[0].handle.done:  # in place: other threads append meanwhile
            self._waiting.popleft()
        if self._filling and self._filling.rows[0].handle.done:
            self._filling = None
        self._sweep()

    def _sweep(self) -> None:
        for group in self._groups:
            group.keep([index for index, row in enumerate(group.rows) if not row.handle.done])
        self._groups = [group for group in self._groups if group.rows]

    def _merge(self) -> None:
        """Put rows together that may decode together, up to the number that memory was seen to bear."""
        joined: list[RowGroup[Row]] = []
        for group in sorted(self._groups, key=lambda group: -len(group.rows)):
            home = next((other for other in joined if self._can_join(other, group)), None)
            if home is None or not self._absorb(home, group):
                joined.append(group)
        self._groups = joined

    def _absorb(self, home: RowGroup[Row], group: RowGroup[Row]) -> bool:
        try:
            home.absorb(group)
        except RuntimeError:  # no memory for the copy: they decode apart
            self._group_rows = len(home.rows)
            return False
        return True

    def _can_join(self, home: RowGroup[Row], group: RowGroup[Row]) -> bool:
        return home.joinable and group.joinable and len(home.rows) + len(group.rows) <= self._group_rows

    def _prefill(self) -> None:
        """Feed prompts, one chunk at a time, until this step's share is used up."""
        used = 0
        while used < self._prefill_tokens:
            if self._filling is None and (row := self._admit()) is not None:
                self._filling = self._network.start_group(row)
            if self._filling is None:
                return
            used += self._feed(self._filling)

    def _admit(self) -> Row | None:
        while self._waiting and self._waiting[0].handle.done:
            self._waiting.popleft()
        if not self._waiting:
            return None
        first, running = self._waiting[0], self._active_rows()
        longest = max(row.reserved for row in (first, *running))
        fits = len(running) < self._max_rows and longest * (len(running) + 1) <= self._max_tokens
        return self._waiting.popleft() if fits or not running else None

    def _feed(self, group: RowGroup[Row]) -> int:
        row = group.rows[0]
        chunk = row.ids[row.fed : row.fed + self._prefill_tokens]
        try:
            scores = group.prefill(chunk)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to this row
            self._filling = None
            self._fail(row, error)
            return len(chunk)
        row.fed += len(chunk)
        if row.fed == len(row.ids):
            self._filling = None
            self._advance([row], scores)
            self._groups += [] if row.handle.done else [group]
        return len(chunk)

    def _decode(self, group: RowGroup[Row]) -> None:
        try:
            scores = group.decode([row.ids[-1] for row in group.rows])
        except Exception as error:  # noqa: BLE001 - whose fault it is shows when each goes alone
            self._decode_apart(group, error)
            return
        self._advance(group.rows, scores)
        self._sweep()

    def _decode_apart(self, group: RowGroup[Row], error: Exception) -> None:
        self._groups.remove(group)
        if len(group.rows) == 1:
            self._fail(group.rows[0], error)
            return
        if is_out_of_memory(error):
            self._group_rows = max(1, len(group.rows) // 2)
        for single in group.split():
            self._groups.append(single)
            self._decode(single)

    def _advance(self, rows: Sequence[Row], scores: torch.Tensor) -> None:
        for row, row_scores in zip(tuple(rows), scores, strict=True):
            try:
                self._take_token(row, row.sampler.choose(row_scores, row.ids))
            except Exception as error:  # noqa: BLE001 - a neighbour must not suffer from it
                self._fail(row, error)

    def _take_token(self, row: Row, token: int) -> None:
        row.ids.append(token)
        row.count += 1
        fresh = row.reader.push(token)
        ends = row.reader.stopped or row.count >= row.room
        if ends and not row.reader.stopped:
            fresh += row.reader.finish()
        if not (fresh or ends):
            return
        reason: FinishReason | None = ("stop" if row.reader.stopped else "length") if ends else None
        counts = {"prompt_tokens": row.handle.prompt_tokens, "completion_tokens": row.count}
        row.handle.put(Piece(text=fresh.text, reasoning=fresh.reasoning, finish_reason=reason, **counts))
        self._news.append(row.handle)
        if ends:
            self._close(row)

    def _fail(self, row: Row, error: Exception) -> None:
        reason = "out of memory" if is_out_of_memory(error) else str(error) or type(error).__name__
        failure = GenerationError(f"model {self._model!r}: generation failed: {reason}")
        failure.__cause__ = error
        row.handle.error = failure
        self._close(row)

    def _close(self, row: Row) -> None:
        row.handle.done = True
        self._news.append(row.handle)
