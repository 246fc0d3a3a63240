"""The run log: a line of JSON for every call that a server has completed, on the disk before anyone sees its result.

A call's key is a digest of what determines it (model, prompt, options, seed) and of nothing else, so that a run which was killed asks
its log first, and goes on where it stood.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def key_of(request: Mapping[str, Any]) -> str:
    """What a call is known by: 128 bits of its request."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


class RunLog:
    """A file of completed calls, open for one process.

    A last line that a killed process left unfinished is dropped. What cannot be written (a full disk) is kept, and written before anything else
    once that is possible.

    Raises:
      BlockingIOError: when another process writes to the file.
      ValueError: for a file that is no run log, with the line.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).expanduser()
        self.calls: dict[str, dict[str, Any]] = {}
        self.unwritten: list[bytes] = []
        self.file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError as error:
            os.close(self.file)
            raise BlockingIOError(f"run log {self.path}: another process writes to it; give each run a log of its own") from error
        except BaseException:
            os.close(self.file)
            raise

    def _read(self) -> None:
        content = self.path.read_bytes()
        *lines, unfinished = content.split(b"\n")
        try:
            for number, line in enumerate(lines, 1):  # noqa: B007 - the error tells it
                call = json.loads(line)
                self.calls[call["key"]] = call
            if unfinished and not lines and not b'{"key": '.startswith(unfinished[:8]):
                raise ValueError("no line of it is whole")
        except (ValueError, KeyError, TypeError) as error:
            number = number if lines else 1  # pyright: ignore[reportPossiblyUnboundVariable] - there are lines
            raise ValueError(f"run log {self.path}, line {number}: not a completed call; is it another file?") from error
        if unfinished:
            os.ftruncate(self.file, len(content) - len(unfinished))

    def append(self, call: dict[str, Any]) -> None:
        """Keeps a call: it is on the disk when this returns.

        Raises:
          OSError: when it cannot be written; the call is kept in memory all the same, and no half of a line is left.
        """
        self.calls[call["key"]] = call
        self.unwritten.append(json.dumps(call, ensure_ascii=False).encode() + b"\n")
        while self.unwritten:
            self._write(self.unwritten[0])
            self.unwritten.pop(0)

    def _write(self, line: bytes) -> None:
        end = os.fstat(self.file).st_size
        try:
            written = os.write(self.file, line)
            if written < len(line):  # a disk takes what it has room for, and refuses the next byte
                os.write(self.file, line[written:])
            os.fsync(self.file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self.file, end)
            kept = f"{len(self.calls) - len(self.unwritten)} calls are in it, {len(self.unwritten)} more in this process"
            why = f"run log {self.path} cannot be written ({error.strerror}): {kept}; make room and run again, no call is made twice"
            raise OSError(error.errno, why) from error

    def close(self) -> None:
        os.close(self.file)
