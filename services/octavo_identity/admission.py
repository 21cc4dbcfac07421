"""What may be put on a base, and how bases become known: by themselves, when they are first seen."""

import asyncio

import msgspec

from octavo_identity.bases import Bases, Book
from octavo_identity.fleet import Fleet
from octavo_identity.records import AdapterHead
from octavo_shared.bases import labels_of
from octavo_shared.errors import BaseNotServed, BaseUnknown, DependencyUnavailable, OctavoError
from octavo_shared.manifest import fetch_manifest
from octavo_shared.objects import ObjectStore, ObjectTooLarge
from octavo_shared.references import DIGEST_PATTERN, Fingerprint
from octavo_shared.telemetry import log

_LOOK_EVERY_S = 0.5
_AGAIN_S = 5.0


class Admission:
    """Decides from the leader's book of bases. What workers have is heard, so it only ever refuses what would fail."""

    def __init__(self, bases: Bases, store: ObjectStore, fleet: Fleet) -> None:
        self._bases = bases
        self._store = store
        self._fleet = fleet

    async def known(self, text: str) -> Book:
        """Return the book, with the base in it that ``text`` means, if it is a fingerprint that was published.

        Raises ``BaseUnknown`` for a fingerprint that was not.
        """
        book = await self._bases.read()
        fingerprint = Fingerprint(text)
        if book.find(fingerprint) is not None or DIGEST_PATTERN.match(text) is None:
            return book
        try:
            manifest = await fetch_manifest(self._store, fingerprint)
        except (msgspec.MsgspecError, ObjectTooLarge):
            log.warning("base_manifest_damaged", base=text)
            manifest = None
        if manifest is None or manifest.fingerprint != fingerprint:
            raise BaseUnknown(text)
        book = await self._bases.register(fingerprint, manifest.name)
        log.info("base_registered", base=text, name=manifest.name)
        return book

    async def check_push(self, served: Fingerprint, declared: Fingerprint | None) -> None:
        """Raise ``BaseRetired`` or ``BaseUnknown`` when nothing new may be put on what a push is for.

        One that was made for a retired base is told so, also where another base is served.
        """
        book = await self.known(served)
        if declared is not None and book.find(declared) is not None:
            book.check_new(declared)
        book.check_new(served)

    async def check_alias(self, head: AdapterHead | None, alias: str, base: Fingerprint) -> None:
        """Raise when ``alias`` may not come to name a revision on ``base``.

        Raises what ``check_push`` does, and ``BaseNotServed`` when workers are heard and none has the base, unless the
        alias names a revision on it already: then moving it makes nothing worse.
        """
        book = await self.known(base)
        book.check_new(base)
        served = self._fleet.bases()
        if not served or base in served or (head is not None and _base_of(head, alias) == base):
            return
        known = {one: found.name if (found := book.find(one)) else "" for one in served}
        raise BaseNotServed(book.label(base), labels_of(known))

    async def warnings(self, base: Fingerprint) -> tuple[str, ...]:
        """Return what somebody who put something on ``base`` should know."""
        return (await self._bases.read()).warnings(base)

    async def run(self) -> None:
        """Register for ever what workers have."""
        registered: set[Fingerprint] = set()
        while True:
            for base in self._fleet.bases_so_far() - registered:
                try:
                    await self.known(base)
                    registered.add(base)
                except DependencyUnavailable as error:
                    log.debug("base_not_registered_yet", base=base, detail=error.message)
                except OctavoError as error:
                    log.warning("base_not_registered", base=base, code=error.code, detail=error.message)
                    await asyncio.sleep(_AGAIN_S)
            await asyncio.sleep(_LOOK_EVERY_S)


def _base_of(head: AdapterHead, alias: str) -> Fingerprint | None:
    number = head.aliases.get(alias)
    return next((one.revision.base for one in head.revisions if one.revision.number == number), None)
