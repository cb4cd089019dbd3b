"""One call of the model at a time; calls that wait for it are encoded together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.errors import LexVLAError
from lexvla_indexer.isolating import isolate

__all__ = ["Batcher", "Overdue", "before"]

_MOST = {"encode_text": 64, "encode_image": 8}  # items per call


_patience = threading.local()


class Overdue(Exception):  # noqa: N818 - what the call is
    """A call of the model did not begin before its deadline."""


@contextmanager
def before(deadline: float) -> Iterator[None]:
    """Set a deadline, in `time.monotonic` seconds, for this thread's next model call to begin."""
    _patience.deadline = deadline
    try:
        yield
    finally:
        _patience.deadline = None


@dataclass
class _Job:
    call: Callable[..., Any]
    name: str
    items: list[Any] | None  # that may share a call with those of other jobs
    answer: Future[Any] = field(default_factory=Future)


class Batcher:
    """Call an encoder, one call at a time.

    A call that finds the model free goes through it in the caller's own thread: to hand it to
    another and wait takes longer than a short call needs. Calls that wait while the model is busy
    then go through it together, in a thread of their own. All other attributes are the encoder's;
    its methods take their turns too. A call that has not begun by the caller's deadline (see
    `before`) raises `Overdue`.

    After each call of the model, `observe` is called with the method, the number of items, and how
    many calls are waiting.
    """

    def __init__(
        self, model: Encoder, observe: Callable[[str, int, int], None] | None = None
    ) -> None:
        self.name = model.name
        self.vocabulary = model.vocabulary
        self._model = model
        self._observe = observe
        self._jobs: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._busy = self._closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Return how many calls are waiting for the model."""
        return len(self._jobs)

    def encode_text(self, texts: Sequence[str], **options: Any) -> Encoding:
        """Encode texts; see the encoder."""
        return self._encode("encode_text", list(texts), options)

    def encode_image(self, images: Sequence[Any], **options: Any) -> Encoding:
        """Encode images; see the encoder."""
        return self._encode("encode_image", list(images), options)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._model, name)
        if not callable(value):
            return value
        return lambda *given, **options: self._call(
            _Job(lambda: value(*given, **options), name, None)
        )

    def close(self) -> None:
        """Finish the waiting calls and end the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _encode(self, name: str, items: list[Any], options: dict[str, Any]) -> Encoding:
        encode = getattr(self._model, name)
        if options or not items:
            job = _Job(lambda: encode(items, **options), name, None)
        else:
            job = _Job(encode, name, items)
        made: Encoding = self._call(job)
        return made

    def _call(self, job: _Job) -> Any:
        with self._wake:
            if self._closed:
                raise RuntimeError("the model's thread has ended")
            is_free = not self._busy and not self._jobs
            if is_free:
                self._busy = True
            else:
                self._jobs.append(job)
        if is_free:
            _patience.deadline = None
            self._answer_waiting([job])
            return job.answer.result()
        deadline = getattr(_patience, "deadline", None)
        if deadline is not None:
            try:
                job.answer.exception(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                if job.answer.cancel():  # not begun, and now never will be
                    raise Overdue from None
            _patience.deadline = None
        return job.answer.result()

    def _run(self) -> None:
        while taken := self._next():
            self._answer_waiting(taken)
            del taken  # images, too large to be kept until the next call

    def _answer_waiting(self, taken: list[_Job]) -> None:
        jobs = [job for job in taken if job.answer.set_running_or_notify_cancel()]
        try:
            if jobs:
                self._answer(jobs)
                if self._observe is not None:
                    count = sum(len(job.items or (1,)) for job in jobs)
                    self._observe(jobs[0].name, count, self.waiting)
        finally:
            with self._wake:
                self._busy = False
                if self._jobs or self._closed:
                    self._wake.notify()

    def _next(self) -> list[_Job]:
        """Wait for the first job; return it with those that can share its call."""
        with self._wake:
            while self._busy or not (self._jobs or self._closed):
                self._wake.wait()
            if not self._jobs:
                return []
            self._busy = True
            jobs = [self._jobs.popleft()]
            first = jobs[0]
            if first.items is None:
                return jobs
            count, left = len(first.items), []
            for job in self._jobs:
                fits = job.items is not None and job.name == first.name
                if fits and count + len(job.items or ()) <= _MOST[first.name]:
                    jobs.append(job)
                    count += len(job.items or ())
                else:
                    left.append(job)
            self._jobs = deque(left)
            return jobs

    def _answer(self, jobs: list[_Job]) -> None:
        def call(some: Sequence[_Job]) -> Any:
            first = some[0]
            if first.items is None:
                return first.call()
            return first.call([item for job in some for item in job.items or ()])

        try:
            for group, made in isolate(call, jobs, LexVLAError):
                start = 0
                for job in group:
                    if isinstance(made, LexVLAError):
                        job.answer.set_exception(made)
                    elif len(group) == 1:
                        job.answer.set_result(made)
                    else:
                        end = start + len(job.items or ())
                        job.answer.set_result(made[start:end])
                        start = end
        except BaseException as error:  # noqa: BLE001 - it is raised where the call was made
            for job in jobs:
                if not job.answer.done():
                    job.answer.set_exception(error)
