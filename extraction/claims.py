"""Work that independent workers share: each claims pieces by files in the folder of the result, without a meeting.

A worker shows that it lives by a file that it changes from time to time. The claims of a worker that has ended, or
whose file does not change any longer, are taken over.
"""

from __future__ import annotations

import os
import platform
import random
import re
import secrets
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from modeling_radio.extraction.store import Store


WORK = ".work"
WORKERS, CLAIMS = f"{WORK}/workers", f"{WORK}/claims"
BEAT_S = 15.0
"""Seconds between two signs of life."""
LEASE_S = 60.0
"""A worker without a sign of life for so long is taken for dead. Both are our choices: three signs may get lost, and a
dead machine costs a minute. If it does live, its piece is only made twice: with equal bytes on processors of one
instruction set."""
WAIT_S = 1.0
"""Seconds between two looks at what others hold."""
LIST_SHARE = 20
"""Our choice: after listing what is done no other listing for as many times as long, at least `WAIT_S`."""
_WORKER = re.compile(r"[\w-]+\.\d+\.[0-9a-f]+")


class Claims:
    """The claims of one worker.

    Whoever creates the file `NAME.0` has the piece `NAME`. If that worker dies, whoever creates `NAME.1` has it, and so
    on: a file is created by one process only, on file systems as well as on object stores with conditional writes. The
    age of a sign of life is measured by the watcher's own clock, so that clocks may differ.

    Args:
        store: Folder of the result.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._machine = re.sub(r"[^\w-]", "-", f"{platform.node()}-{uuid.getnode():x}")
        self.worker = f"{self._machine}.{os.getpid()}.{secrets.token_hex(4)}"
        self._held: dict[str, int] = {}
        self._seen: dict[str, tuple[bytes, float]] = {}

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Show signs of life until the end of the context; then this worker's claims are free."""
        ended, count = threading.Event(), 0

        def beat() -> None:
            nonlocal count
            while not ended.wait(BEAT_S):
                count += 1
                with suppress(OSError):  # the next one may succeed; else others take over
                    self.store.write(f"{WORKERS}/{self.worker}", str(count).encode())

        self.store.create(f"{WORKERS}/{self.worker}", b"0")
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.store.remove(f"{WORKERS}/{self.worker}")
            self.store.remove_empty(WORKERS, CLAIMS, WORK)

    def others(self, besides: Sequence[str] = ()) -> bool:
        """Return whether another worker lives, besides those of this run."""
        names = self.store.names(WORKERS)
        return any(
            _WORKER.fullmatch(name) and name not in (self.worker, *besides) and not self._is_gone(name)
            for name in names
        )

    def take(self, name: str) -> bool:
        """Claim a piece; return whether this worker has it now."""
        generation = 0
        while not self.store.create(f"{CLAIMS}/{name}.{generation}", self.worker.encode()):
            try:
                content = self.store.read(f"{CLAIMS}/{name}.{generation}")
            except FileNotFoundError:
                return False  # given back right now
            holder = content.decode(errors="replace")
            is_named = _WORKER.fullmatch(holder) is not None  # else it is not written yet, or by its dead creator
            if not (self._is_gone(holder) if is_named else self._is_unchanged(f"{name}.{generation}", content)):
                return False
            generation += 1
        self._held[name] = generation
        return True

    def give_back(self, name: str) -> None:
        """End a claim, and those of the dead before it."""
        for generation in range(self._held.pop(name), -1, -1):
            self.store.remove(f"{CLAIMS}/{name}.{generation}")

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Wait until no other worker is in this context of the same name."""
        while not self.take(name):
            time.sleep(WAIT_S)
        try:
            yield
        finally:
            self.give_back(name)

    def pieces(self, names: Sequence[str], done: Callable[[], set[str]]) -> Iterator[int]:
        """Yield the numbers of pieces as this worker claims them; ends without waiting for those that others hold.

        A worker that is not the first begins anywhere, so that they seldom meet.

        Args:
            names: Names of missing pieces.
            done: Returns the names of all pieces that are done.
        """
        start = random.randrange(len(names)) if names and self.others() else 0
        known, next_listing = set[str](), 0.0
        for number in (*range(start, len(names)), *range(start)):
            name = names[number]
            if name in known:
                continue
            if self.take(name):
                yield number
            elif time.monotonic() >= next_listing:
                before = time.monotonic()
                known = done()
                now = time.monotonic()
                next_listing = now + max(WAIT_S, LIST_SHARE * (now - before))

    def remove_abandoned(self, folder: str) -> None:
        """Remove files that dead workers left half written in a folder.

        A worker is dead if it has neither a lock nor a sign of life. Locks alone are not enough, because some file
        systems only show them to one machine; nor are signs of life, because two containers may share a machine's name.
        """
        for owner in filter(_WORKER.fullmatch, self.store.owners(folder)):
            if self._is_gone(owner):
                self.store.remove_abandoned(folder, owner)

    def clear(self) -> None:
        """Remove the claims of the dead, and their last signs of life; all work is done."""
        for name in self.store.names(CLAIMS):
            self.store.remove(f"{CLAIMS}/{name}")
        for name in filter(_WORKER.fullmatch, self.store.names(WORKERS)):
            if self._is_gone(name):
                self.store.remove(f"{WORKERS}/{name}")

    def _is_gone(self, worker: str) -> bool:
        try:
            sign = self.store.read(f"{WORKERS}/{worker}")
        except FileNotFoundError:
            return True
        machine, pid, _ = worker.split(".")
        if machine == self._machine and not _runs(int(pid)):
            return True
        return self._is_unchanged(worker, sign)

    def _is_unchanged(self, name: str, content: bytes) -> bool:
        """Return whether a file has had this content since this worker saw it so, longer than a lease."""
        now = time.monotonic()
        last, since = self._seen.get(name, (None, now))
        self._seen[name] = (content, since if content == last else now)
        return content == last and now - since > LEASE_S


def _runs(pid: int) -> bool:
    """Return whether a process of this machine runs; True where that cannot be asked."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # one of another user
        return True
    return True
