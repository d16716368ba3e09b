"""Workers of a batch on a cluster, through Ray: placed, watched, started again, stopped.

Each is an actor that runs the very same `batch.work` on the folder that all machines share. So what
a dead node leaves is known to the others by its claims, and news that get lost harm nothing.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from . import batch_ray_cluster as cluster
from .batch import WATCH_SECONDS, Stages
from .batch_claims import MAX_ATTEMPTS
from .batch_ray_worker import News, RayOrder, RayWorker
from .batch_store import INNER, BatchFolder, Item, Tell
from .batch_workers import STOP_SECONDS

KILL_SECONDS = 5.0  # until killed workers are known to be dead; takes milliseconds as a rule
_PASSED_ON = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")  # variables, with all of V3D


@dataclass
class _Slot:
    """A place for a worker, as the driver sees it."""

    actor: Any = None
    call: Callable[[], Any] | None = None  # the last one, to repeat it
    answer: Any = None  # what it will return
    holder: tuple[str, int] | None = None  # host and process id, once it is placed
    took: int = 0
    idle_deaths: int = 0  # in a row, without any item taken

    def ask(self, call: Callable[[], Any]) -> None:
        """Call a method of the actor; its answer comes later."""
        self.call, self.answer = call, call()


@dataclass
class RayWorkers:
    """The workers of a batch on a cluster; see the module.

    Args:
        ray: The package, connected.
        make_stages: Makes a worker's stages, in it; a function that can be pickled.
        places: How many workers, and what each of them needs.
    """

    ray: Any
    make_stages: Callable[[], Stages]
    places: cluster.RayPlaces
    dead: set[tuple[str, int]] = field(default_factory=set)  # whose claims nobody needs

    def kept(
        self, items: Sequence[Item], store: BatchFolder, tick: Callable[[], None] = lambda: None
    ) -> set[str]:
        """Names of items whose results are there; one worker looks, for it knows the device."""
        names: set[str] = set()
        with self._order(items, store, 0.0) as order:
            self._drive(1, store, "kept", order, lambda _, row: names.update(row["names"]), tick)
        return names

    def run(
        self,
        items: Sequence[Item],
        store: BatchFolder,
        *,
        since: float,
        tell: Tell,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        """Do items; arguments and errors as of `batch_workers.run_workers`.

        Raises:
            RuntimeError: For `batch_ray_cluster.ROOM_SECONDS` no worker could be placed, or workers
                die without taking any item.
        """
        with self._order(items, store, since) as order:
            self._drive(self.places.workers, store, "begin", order, tell, tick)

    @contextmanager
    def _order(self, items: Sequence[Item], store: BatchFolder, since: float) -> Iterator[RayOrder]:
        mark = store.out / INNER / f"shared.{secrets.token_hex(8)}"
        mark.touch()
        try:
            yield RayOrder(
                items=tuple(items),
                out=store.out,
                stale_seconds=store.claims.stale_seconds,
                make_stages=self.make_stages,
                since=since,
                folder=os.getcwd(),
                mark=mark,
            )
        finally:
            mark.unlink(missing_ok=True)

    def _drive(
        self,
        workers: int,
        store: BatchFolder,
        method: str,
        order: RayOrder,
        tell: Tell,
        tick: Callable[[], None],
    ) -> None:
        """Have workers do what a method begins until it is over, and start others for dead ones."""
        shared = self.ray.put(order)
        running = [_Slot() for _ in range(workers)]
        placed = time.monotonic()  # when a worker was seen last
        one_is_over = False  # so all items have ended, and nobody waits for workers without a place
        try:
            for slot in running:
                self._start(slot)
            while running:
                tick()
                if any(slot.holder for slot in running):
                    placed = time.monotonic()
                elif one_is_over:
                    break
                elif time.monotonic() - placed > cluster.ROOM_SECONDS:
                    raise RuntimeError(cluster.no_room(self.ray, self.places))
                for slot in self._answered(running, 1, WATCH_SECONDS):
                    answer = self._answer(slot, store)
                    if answer is None:
                        continue
                    if slot.holder is None:
                        slot.holder = answer
                        slot.ask(lambda slot=slot: getattr(slot.actor, method).remote(shared))
                    elif self._hear(slot, answer, tell):
                        running.remove(slot)
                        one_is_over = True
                        self.ray.kill(slot.actor)
                    else:
                        slot.ask(lambda slot=slot: slot.actor.news.remote())
        finally:
            self._end(running, store, tell)

    def _start(self, slot: _Slot) -> None:
        variables = {n: v for n, v in os.environ.items() if n.startswith("V3D_") or n in _PASSED_ON}
        actor = self.ray.remote(
            num_cpus=self.places.cpus,
            num_gpus=self.places.gpus,
            max_restarts=0,  # here they are started again, and counted
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": variables},
        )(RayWorker)
        slot.actor, slot.holder, slot.took = actor.remote(), None, 0
        slot.ask(lambda: slot.actor.where.remote())

    def _answer(self, slot: _Slot, store: BatchFolder) -> Any:
        """What a slot's worker has answered; None when it could not, and is asked again."""
        errors = self.ray.exceptions
        try:
            return self.ray.get(slot.answer)
        except errors.RayTaskError as error:
            raise (error.cause or error) from error
        except errors.ActorUnavailableError:  # it may be back, or be found dead
            assert slot.call is not None
            time.sleep(WATCH_SECONDS)
            slot.ask(slot.call)
        except errors.RayActorError as error:
            holders = {slot.holder} if slot.holder else set()
            self.dead |= holders
            took = slot.took or store.claims.held_by(holders)
            slot.idle_deaths = 0 if took else slot.idle_deaths + 1
            if slot.idle_deaths > MAX_ATTEMPTS:
                raise RuntimeError(
                    f"workers end before they take any item, {slot.idle_deaths} in a row: {error}"
                ) from error
            self._start(slot)
        return None

    def _hear(self, slot: _Slot, told: News, tell: Tell) -> bool:
        """Pass news on; whether the worker's work is over."""
        for event, row in told:
            if event == "broken":
                raise RuntimeError(row["error"])
            if event == "over":
                return True
            slot.took += event == "took"
            tell(event, row)
        return False

    def _end(self, running: list[_Slot], store: BatchFolder, tell: Tell) -> None:
        """Stop workers; what does not end by itself is killed, and its items are freed."""
        placed = [slot for slot in running if slot.holder]
        for slot in placed:
            slot.ask(lambda slot=slot: slot.actor.stop.remote())
        for slot in self._answered(placed, len(placed), STOP_SECONDS):
            with suppress(self.ray.exceptions.RayError):
                for event, row in self.ray.get(slot.answer):
                    if event == "ended":
                        tell(event, row)
        for slot in running:
            self.ray.kill(slot.actor)
        self._see_die(placed)
        for name in store.claims.release_of(self.dead):
            store.clean(name)

    def _see_die(self, slots: list[_Slot]) -> None:
        """Wait for the end of killed workers; the claims of one that is not seen go stale."""
        for slot in slots:
            slot.ask(lambda slot=slot: slot.actor.where.remote())
        left, deadline = list(slots), time.monotonic() + KILL_SECONDS
        while left and time.monotonic() < deadline:
            for slot in self._answered(left, 1, WATCH_SECONDS):
                try:
                    self.ray.get(slot.answer)
                except self.ray.exceptions.ActorDiedError:
                    if slot.holder:
                        self.dead.add(slot.holder)
                    left.remove(slot)
                    continue
                except self.ray.exceptions.RayError:  # on the way
                    pass
                slot.ask(lambda slot=slot: slot.actor.where.remote())
            time.sleep(WATCH_SECONDS / 10)

    def _answered(self, slots: list[_Slot], count: int, seconds: float) -> list[_Slot]:
        """Those with an answer, once there are so many or the time is over."""
        answers = [slot.answer for slot in slots]
        if not answers:
            return []
        ready, _ = self.ray.wait(answers, num_returns=count, timeout=seconds)
        return [slot for slot in slots if slot.answer in ready]
