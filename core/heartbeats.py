"""Heartbeats: where each rank of a run is, and one line that names the rank for which the others wait."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Collection
from datetime import timedelta
from types import TracebackType
from typing import NamedTuple

from torch import distributed

from modeling_radio.core.errors import UserError, first_few
from modeling_radio.core.ranks import GOES_ON, is_lost_connection, rank_and_count


logger = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between two beats of a rank. Our choice: the store gets as many messages a second as there are ranks, and one
takes it 4 microseconds (measured)."""
SILENCE = 3 * INTERVAL
"""Seconds without a beat after which a rank counts as lost. Our choice: a busy machine may be late for one or two."""
PATIENCE = 300.0
"""Seconds without progress after which a warning names the rank that others wait for. Our choice: a third of
`core.ranks.STEP_TIMEOUT`; with NCCL the process is killed then, and nothing else can be said."""
_ANSWER = 10.0  # seconds; the store's own machine may hang
_MOST_NAMED = 4


class Beat(NamedTuple):
    """The message that a rank sends to say that it lives.

    Attributes:
        count: Number of its beats so far.
        step: Steps that it has finished.
        phase: Its present work.
        place: Its machine and process.
        is_lost: Whether it has lost the others itself, and only looks for the cause.
    """

    count: int
    step: int
    phase: str
    place: str
    is_lost: bool


class Heartbeats:
    """While entered, tells the other ranks where this one is, by the store at which they found each other.

    A thread with its own connection sends a beat every second, without exchanges and files. If a connection between
    ranks breaks or times out inside, the error names the ranks that are silent, or else those that are behind; if this
    rank makes no progress for some minutes, a warning of the lowest waiting rank does. A single process does nothing.

    Args:
        position: Returns the finished steps and the present phase of this rank; called by the thread.
        alone: Phases in which a rank waits for no other: who is in one while others are not, is behind.

    Raises:
        UserError: On leaving, in place of the error of a lost connection.
    """

    def __init__(self, position: Callable[[], tuple[int, str]], alone: Collection[str]) -> None:
        self.position, self.alone = position, alone
        self.rank, self.num_ranks = rank_and_count()
        self._store = _own_connection() if self.num_ranks > 1 else None
        self._count = 0
        self._is_lost = False
        self._place = f"host {socket.gethostname()}, process {os.getpid()}"
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Heartbeats:
        if self._store is not None:
            self.send()
            self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self._store is not None and is_lost_connection(error):
            self._is_lost = True
            self.send()
            finding = self._find()
            if self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                time.sleep(2 * SILENCE)  # the store ends with this process, and others still ask it
            self._end()
            if finding:
                raise UserError(f"Rank {self.rank} waited in vain for {finding}. {GOES_ON}") from error
        self._end()

    def _end(self) -> None:
        """End the thread: one that comes back from the store while the interpreter ends would abort the process."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_ANSWER)

    def send(self) -> None:
        """Send a beat now; a store that cannot be reached is no error, as the ranks will notice."""
        if self._store is None:
            return
        self._count += 1
        beat = Beat(self._count, *self.position(), self._place, self._is_lost)
        try:
            self._store.set(str(self.rank), json.dumps(beat))
        except RuntimeError:
            logger.debug("no beat", exc_info=True)

    def _run(self) -> None:
        last, since, is_told = self.position(), time.monotonic(), False
        while not self._ended.wait(INTERVAL):
            self.send()
            if (now := self.position()) != last:
                last, since, is_told = now, time.monotonic(), False
            elif not is_told and time.monotonic() - since > PATIENCE:
                is_told = True
                threading.Thread(target=self._warn, daemon=True).start()  # this one goes on to beat

    def _warn(self) -> None:
        finding = self._find(is_first_only=True)
        if finding and not self._ended.is_set():
            logger.warning("no progress for %.0f seconds: the other ranks wait for %s", PATIENCE, finding)

    def _find(self, *, is_first_only: bool = False) -> str:
        """Return which ranks the others wait for, in words; empty if that cannot be told.

        Args:
            is_first_only: Answer only on the lowest rank that waits.
        """
        before = self._read()
        time.sleep(SILENCE)
        now = self._read()
        if before is None or now is None:
            is_elsewhere = self.rank > 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
            return "rank 0, whose store does not answer: it ended, hangs or cannot be reached" if is_elsewhere else ""
        silent = [rank for rank in now if rank != self.rank and not now[rank].is_lost and now[rank] == before.get(rank)]
        behind = [] if silent else self._behind(now)
        if is_first_only and self.rank != min(set(now) - {*silent, *behind}, default=None):
            return ""
        names = first_few([_describe(rank, now[rank]) for rank in silent or behind], _MOST_NAMED)
        if silent:
            return f"{names}: no sign of life since, it ended, hangs or cannot be reached"
        return f"{names}: alive, but behind" if behind else ""

    def _behind(self, beats: dict[int, Beat]) -> list[int]:
        steps = {rank: beat.step for rank, beat in beats.items()}
        last = [rank for rank, step in steps.items() if step == min(steps.values())]
        if len(last) < len(beats):
            return last
        alone = [rank for rank, beat in beats.items() if beat.phase in self.alone]
        return alone if len(alone) < len(beats) else []

    def _read(self) -> dict[int, Beat] | None:
        """Return the last beat of each rank that has sent one; None if the store does not answer."""
        answer: list[dict[int, Beat]] = []

        def read() -> None:
            assert self._store is not None
            try:
                ranks = [rank for rank in range(self.num_ranks) if self._store.check([str(rank)])]
                texts = self._store.multi_get([str(rank) for rank in ranks])
            except RuntimeError:
                return
            answer.append({rank: Beat(*json.loads(text)) for rank, text in zip(ranks, texts, strict=True)})

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(_ANSWER)
        return answer[0] if answer else None


def _describe(rank: int, beat: Beat) -> str:
    return f"rank {rank} ({beat.place}; after step {beat.step}, in {beat.phase!r})"


def _own_connection() -> distributed.Store | None:
    """Return a connection to the store at which the ranks met; None if it is no server, or refuses.

    PyTorch's own connection is locked while it waits there for another rank.
    """
    store = distributed.distributed_c10d._get_default_store()
    while isinstance(store, distributed.PrefixStore):
        store = store.underlying_store
    if not isinstance(store, distributed.TCPStore):
        return None
    try:
        own = distributed.TCPStore(
            store.host, store.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=_ANSWER)
        )
    except RuntimeError as error:
        logger.warning("no heartbeats, so that nothing will name a rank that is lost: %s", error)
        return None
    # A launcher that starts the ranks anew keeps its store, and what was in it.
    return distributed.PrefixStore(f"heartbeats/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", own)
