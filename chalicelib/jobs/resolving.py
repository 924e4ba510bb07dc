"""Resolving: what may be on other networks is put there, kept there, and taken away again.

A manifest that is pushed where resolvers were chosen has a job written (``image``); that one makes
a row for each content and each resolver, with a job (``put``). Once a network has all that a
manifest names, the image is derived that can be pulled from it alone (``derive``). What nobody
wants any more is let go after the grace (``release``), and the network is told (``unpin``). Each
may be interrupted, and be done twice: a row says where a copy is to be, until the network agrees.
"""

import logging
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from weakref import WeakKeyDictionary

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.jobs import DAY, HOUR, GiveUp, Job, Later, NotNow, TryAgain, as_text
from chalicelib.metadata import jobs, resolver_checks, resolver_copies
from chalicelib.metadata.database import Database, Transaction
from chalicelib.metadata.resolver_copies import Task
from chalicelib.resolvers import Resolver, ResolverError, WrongCid, added, images
from chalicelib.resolvers.blocks import fetch
from chalicelib.resolvers.opening import Resolvers
from chalicelib.resolvers.placing import Bytes, Corrupt, Stored, mend, place
from chalicelib.resolvers.unixfs import Cid, of_one_block
from chalicelib.storage import NoSuchObject, StorageError

_log = logging.getLogger(__name__)

PATIENCE = 200, 5.0, float(HOUR)
"""How often it is tried, and after how many seconds: for about a week. A network may be full or
slow for days; while it is down nothing is counted."""
_FIRST_PAUSE, _LAST_PAUSE = 5.0, 300.0
"""Seconds for which a network that is down is left alone: doubled each time."""
_BATCH = 200
_CHECK_AGE = float(DAY)
"""How many seconds a copy is left alone before the network is asked about it again."""
_CHECK_SECONDS, _CHECK_THREADS = 60.0, 8
_MEND_AGE = 600.0
_DERIVED_LIMIT = 512 << 20
"""Bytes of a derived manifest, the largest that may be set with its URLs."""
_ERROR_LENGTH = 500


def image(context: Context, job: Job) -> Later:
    """Have a manifest put where its repository's resolvers are, with all that it names."""
    repository, digest = int(job.data["repository"]), bytes.fromhex(job.data["digest"])

    def later(transaction: Transaction) -> None:
        resolver_copies.want(transaction, repository, [digest])

    return later


def put(context: Context, job: Job) -> Later | None:
    """Put one content where it is to be."""
    copy = _copy(context, job, "waiting", "there")
    if copy is None:
        return None
    if copy.state == "waiting":
        if not copy.wanted:
            _let_go(context, copy)
            return None
        with _using(context, copy) as resolver:
            cid = place(resolver, _content(context, copy), copy.digest)
        if not resolver_copies.record(context.database, *copy.place, cid):
            resolver_copies.take_back(context.database, *copy.place, cid)
            return None
    return _completed(copy)


def derive(context: Context, job: Job) -> Later | None:
    """Put the image on a network that is derived of a manifest, all of which is there."""
    copy = _copy(context, job, "there")
    if copy is None:
        return None
    with _using(context, copy) as resolver:
        try:
            derived = images.derive(context, resolver, copy.digest)
        except LookupError:
            # It has been deleted: its copy goes too.
            return None
    if not resolver_copies.record_derived(context.database, *copy.place, *derived):
        resolver_copies.take_back(context.database, *copy.place, None, *derived)
        return None
    return _completed(copy)


def unpin(context: Context, job: Job) -> Later | None:
    """Have a network keep a copy no longer."""
    copy = _copy(context, job, "leaving")
    if copy is None:
        return None
    text = digests.unpack(copy.digest)
    cids = {
        # A network may have been given what it had not told the CID of.
        text: copy.cid or _computed(context, copy),
        text + images.DERIVED: copy.derived_cid,
        text + images.ROOT: copy.root_cid,
    }
    kept = [(called, cid) for called, cid in cids.items() if cid is not None]
    if kept:
        others = resolver_copies.shared(context.database, *copy.place, [cid for _, cid in kept])
        with _using(context, copy) as resolver:
            for called, cid in kept:
                if cid not in others:
                    resolver.unpin(called, cid)

    def later(transaction: Transaction) -> None:
        # Where it has changed, somebody has put it there meanwhile: another job takes it away.
        if resolver_copies.lock(transaction, *copy.place) == copy.changed_at:
            resolver_copies.end(transaction, *copy.place)

    return later


def release(context: Context, job: Job) -> None:
    """Let go of what nobody has wanted for as long as the grace is, and of resolvers that were
    removed and have nothing more."""
    age = context.settings.grace

    def work(transaction: Transaction) -> int:
        locked = resolver_copies.lock_doubted(transaction, age, _BATCH)
        if locked:
            resolver_copies.judge(transaction, locked)
        return len(locked)

    while context.database.transaction(work) == _BATCH:
        pass
    added.tend(context)


def fill(context: Context, job: Job) -> Later:
    """Have some manifests of a repository put where they are to be, and let go of where they may
    not be any more; the next job goes on."""
    repository, after = int(job.data["repository"]), bytes.fromhex(job.data["after"])
    found = resolver_copies.manifests_after(context.database, repository, after, _BATCH)

    def later(transaction: Transaction) -> None:
        if not found:
            return
        resolver_copies.want(transaction, repository, found)
        unwanted = resolver_copies.lock_unwanted(transaction, repository, found)
        if unwanted:
            resolver_copies.judge(transaction, unwanted)
        if len(found) == _BATCH:
            jobs.add(transaction, job.kind, {**job.data, "after": found[-1].hex()})

    return later


def check(context: Context, job: Job) -> None:
    """Ask the networks whether they keep what they were given, what was asked about longest ago
    first, and put what they have lost there again."""
    until = time.monotonic() + _CHECK_SECONDS
    for name in resolver_checks.unchecked_resolvers(context.database, _CHECK_AGE):
        resolver = context.resolvers.get(name)
        if resolver is None:
            continue
        try:
            _circuit(context.resolvers, name).enter(context, resolver)
            while time.monotonic() < until and _check_some(context, resolver, name) == _BATCH:
                pass
        except (NotNow, ResolverError) as error:
            _log.warning("the copies of %s were not looked at: %s", name, error)


def _check_some(context: Context, resolver: Resolver, name: str) -> int:
    """Ask about some copies; gives how many. Raises ``ResolverError``."""
    database = context.database
    found = resolver_checks.unchecked(database, name, _CHECK_AGE, _BATCH)

    def missing(copy: resolver_checks.Kept) -> tuple[bool, bool]:
        text = digests.unpack(copy.digest)
        itself = resolver.status(text, copy.cid)
        if itself.state == "there" and itself.lacking:
            _mend(context, resolver, copy)
        derived = {images.DERIVED: copy.derived_cid, images.ROOT: copy.root_cid}
        return itself.state == "missing", any(
            resolver.status(text + suffix, cid).state == "missing"
            for suffix, cid in derived.items()
            if cid is not None
        )

    with ThreadPoolExecutor(_CHECK_THREADS, thread_name_prefix="check") as pool:
        answers = list(zip(found, pool.map(missing, found), strict=True))
    gone = [copy.digest for copy, (itself, _) in answers if itself]
    if gone:
        _log.error("%s has lost %d copies; they are put there again", name, len(gone))
        resolver_checks.lost(database, name, gone, f"The resolver {name} had lost it.")
    if outdated := [copy.digest for copy, (_, derived) in answers if derived]:
        resolver_checks.lost_derived(database, name, outdated)
    resolver_checks.checked(database, name, [copy.digest for copy in found])
    return len(found)


def _mend(context: Context, resolver: Resolver, copy: resolver_checks.Kept) -> None:
    """Put what some nodes of a network keep on those that do not. It is there meanwhile: what
    cannot be done now is tried with the next check."""
    found = resolver_copies.find(context.database, copy.digest, resolver.name, context.store.name)
    if found is None or found.state != "there":
        return
    text = digests.unpack(copy.digest)
    try:
        mend(resolver, _content(context, found), copy.digest, copy.cid)
        for suffix, cid in ((images.DERIVED, copy.derived_cid), (images.ROOT, copy.root_cid)):
            if cid is not None:
                data = fetch([resolver], cid, _DERIVED_LIMIT)
                resolver.mend(Bytes(text + suffix, data), cid)
    except (ResolverError, Corrupt, StorageError, ValueError) as error:
        _log.warning("%s is not on all nodes of %s: %s", text, resolver.name, error)


def catch_up(context: Context, job: Job) -> None:
    """Mend what was missed: where nothing goes wrong there is nothing to do."""
    database = context.database
    resolver_checks.mend(database, _MEND_AGE)
    derive_all(database)
    resolver_copies.fill(database)


def derive_all(database: Database) -> None:
    """Have the images derived whose content networks have, and which nobody has noticed."""
    found = resolver_checks.incomplete(database)
    for name, places in groupby(found, lambda place: place[1]):
        waiting = [digest for digest, _ in places]
        for start in range(0, len(waiting), _BATCH):
            resolver_copies.complete(database, name, waiting[start : start + _BATCH])


def _copy(context: Context, job: Job, *states: str) -> Task | None:
    """The copy that a job is about; None where it is in none of these states any more."""
    name, digest = str(job.data["resolver"]), bytes.fromhex(job.data["digest"])
    found = resolver_copies.find(context.database, digest, name, context.store.name)
    return found if found is not None and found.state in states else None


def _completed(copy: Task) -> Later:
    """Have derived what is whole now that this is there."""

    def later(transaction: Transaction) -> None:
        resolver_copies.complete(transaction, copy.resolver, [copy.digest])

    return later


def _let_go(context: Context, copy: Task) -> None:
    """Put nothing where nobody wants it. Where somebody does after all, it is looked at again."""

    def work(transaction: Transaction) -> bool:
        # Where it has changed, somebody has let it go meanwhile, or another job puts it.
        if resolver_copies.lock(transaction, *copy.place) != copy.changed_at:
            return True
        return bool(resolver_copies.judge(transaction, [copy.place]))

    if not context.database.transaction(work):
        raise NotNow(1)


def _computed(context: Context, copy: Task) -> str | None:
    """The CID of content, None where nobody can tell any more."""
    if (cid := of_one_block(copy.digest, copy.size)) is not None:
        return cid
    computing = Cid()
    try:
        for piece in _content(context, copy).open():
            computing.update(piece)
    except StorageError as error:
        _log.warning("the CID of %s is not known: %s", digests.unpack(copy.digest), error)
        return None
    return computing.finish()


def _content(context: Context, copy: Task) -> Bytes | Stored:
    text = digests.unpack(copy.digest)
    if copy.payload is not None:
        return Bytes(text, copy.payload)
    if copy.key is None:
        raise NoSuchObject("Object storage does not have it.")
    return Stored(text, copy.size, copy.key, context.store)


@contextmanager
def _using(context: Context, copy: Task) -> Iterator[Resolver]:
    """Its resolver, for something about one copy. What goes wrong is kept in the copy's row, where
    people see it. Where the network is down all jobs for it are put off together."""
    resolver = context.resolvers.get(copy.resolver)
    if resolver is None:
        _tell(context, copy, f"There is no resolver {copy.resolver} here now.")
        raise NotNow(HOUR)
    circuit = _circuit(context.resolvers, copy.resolver)
    circuit.enter(context, resolver)
    try:
        yield resolver
    except (WrongCid, Corrupt) as error:
        _tell(context, copy, str(error))
        raise GiveUp(str(error)) from error
    except StorageError as error:
        sentence = f"Object storage does not give its bytes: {error}"
        _tell(context, copy, sentence)
        raise TryAgain(sentence) from error
    except ResolverError as error:
        _tell(context, copy, str(error))
        circuit.failed(context, resolver)
        raise TryAgain(str(error)) from error


def _tell(context: Context, copy: Task, sentence: str) -> None:
    error = as_text(sentence, _ERROR_LENGTH)
    resolver_copies.fail(context.database, copy.digest, copy.resolver, error)


class _Circuit:
    """Whether a network is down, as far as this process knows. Then one job after a while tries
    it, and the others wait. A job that begins before that, since it is new or a person had it
    retried, tries it too, now and then."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._until: float | None = None
        self._pause = _FIRST_PAUSE
        self._tried = 0.0
        self._trying = False

    def enter(self, context: Context, resolver: Resolver) -> None:
        """Raise ``NotNow`` where the network is down."""
        with self._lock:
            if self._until is None:
                return
            if self._trying:
                raise NotNow(1 + random.random())  # noqa: S311
            now = time.monotonic()
            left = self._until - now
            if left > 0 and now < self._tried + _FIRST_PAUSE:
                raise NotNow(left + random.random())  # noqa: S311
            self._trying = True
        try:
            self.failed(context, resolver)
            with self._lock:
                self._until, self._pause = None, _FIRST_PAUSE
        finally:
            self._trying = False

    def failed(self, context: Context, resolver: Resolver) -> None:
        """Raise ``NotNow`` where the network cannot be used at all, and put off all jobs for it."""
        try:
            resolver.check()
            return
        except ResolverError as error:
            failure = error
        with self._lock:
            now = self._tried = time.monotonic()
            if self._until is not None and self._until > now:
                # Others have noticed, and have put off all jobs.
                raise NotNow(self._until - now + random.random())  # noqa: S311
            pause = self._pause
            self._until = now + pause
            self._pause = min(2 * pause, _LAST_PAUSE)
        _log.warning("the resolver %s is down: %s", self._name, failure)
        resolver_copies.put_off(
            context.database, self._name, pause, as_text(str(failure), _ERROR_LENGTH)
        )
        raise NotNow(pause)


_circuits: "WeakKeyDictionary[Resolvers, dict[str, _Circuit]]" = WeakKeyDictionary()
_circuits_lock = threading.Lock()


def _circuit(resolvers: Resolvers, name: str) -> _Circuit:
    with _circuits_lock:
        return _circuits.setdefault(resolvers, {}).setdefault(name, _Circuit(name))
