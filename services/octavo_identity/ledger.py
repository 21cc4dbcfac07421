"""Signs the roots of the registry's Merkle tree, a moment behind the events, and holds the tree to what it signed."""

import asyncio

from octavo_identity.checkpoints import Checkpoints
from octavo_identity.heads import HeadStore
from octavo_identity.projection import Projection
from octavo_shared.checkpoint import Checkpoint, CheckpointRefused, Signer
from octavo_shared.errors import DependencyUnavailable, RevisionConflict
from octavo_shared.merkle import Tree
from octavo_shared.messages.ledger import SignedRoot
from octavo_shared.telemetry import log

_SIGN_EVERY_S = 1.0
_WAIT_S = 3.0
_NAME = "the ledger"


class Ledger:
    """What proofs are made from: the tree, and the newest checkpoint that it agrees with.

    Any number of replicas may sign: a checkpoint is only added behind one that is smaller and that this replica's tree
    contains, by compare-and-set. A tree that contradicts a checkpoint is read from the stream again, once; if it still
    does, the stream was changed, and nothing is signed any more.
    """

    def __init__(self, heads: HeadStore, projection: Projection, checkpoints: Checkpoints, signer: Signer) -> None:
        self._heads = heads
        self._projection = projection
        self._checkpoints = checkpoints
        self._signer = signer
        self._newest: tuple[Checkpoint, str] | None = None
        self._changed = asyncio.Condition()
        self._problem = ""
        self._is_reread = False

    @property
    def tree(self) -> Tree:
        return self._projection.tree

    async def run(self) -> None:
        """Sign for ever, at most once per ``_SIGN_EVERY_S`` and only when there is something new."""
        while True:
            try:
                await self.sign_behind()
            except DependencyUnavailable as error:
                log.debug("ledger_waits", detail=error.message)
            await asyncio.sleep(_SIGN_EVERY_S)

    async def sign_behind(self) -> None:
        """Take note of the newest checkpoint, and add one if the tree has grown since."""
        found = await self._checkpoints.newest()
        note, sequence = found if found else ("", 0)
        try:
            newest = self._signer.verifier.open(note) if found else None
        except CheckpointRefused as error:
            self._object(str(error))
            return
        tree, is_whole = self.tree, self._projection.is_caught_up
        if newest is not None:
            await self._take(newest, note)
        if not is_whole or (newest is not None and not await self._agrees(tree, newest)):
            return
        if tree.size <= (newest.size if newest else 0) or not await self._is_of_this_stream(tree):
            return
        size = tree.size
        root = tree.root(size)
        note = self._signer.sign(size, root)
        try:
            await self._checkpoints.append(note, sequence)
        except RevisionConflict:
            # Another replica was a moment faster.
            return
        await self._take(Checkpoint(self._signer.verifier.name, size, root), note)

    async def signed_root(self, at_least: int, old_size: int) -> SignedRoot:
        """Return a checkpoint of ``at_least`` leaves and how it follows from ``old_size`` leaves.

        Waits for one that is as large as both. A log that stays smaller than ``old_size`` gets no consistency proof:
        there is none. Raises ``DependencyUnavailable`` when there is no checkpoint of ``at_least`` leaves.
        """
        try:
            async with asyncio.timeout(_WAIT_S), self._changed:
                await self._changed.wait_for(lambda: self._is_ready(max(at_least, old_size)))
        except TimeoutError:
            if not self._is_ready(at_least):
                raise DependencyUnavailable(_NAME) from None
        assert self._newest is not None, "it is as large as was asked for"
        checkpoint, note = self._newest
        consistency = self.tree.consistency_proof(old_size, checkpoint.size) if old_size <= checkpoint.size else ()
        return SignedRoot(note, str(self._signer.verifier), consistency)

    def size_of(self, signed: SignedRoot) -> int:
        """Return how many leaves a checkpoint of ours covers."""
        return self._signer.verifier.open(signed.checkpoint).size

    def _is_ready(self, size: int) -> bool:
        return self._newest is not None and size <= self._newest[0].size <= self.tree.size

    async def _take(self, newest: Checkpoint, note: str) -> None:
        async with self._changed:
            self._newest = newest, note
            self._changed.notify_all()

    async def _agrees(self, tree: Tree, newest: Checkpoint) -> bool:
        """Tell whether the whole tree contains what was signed; one that does not is reported and read again, once."""
        if newest.size <= tree.size and tree.root(newest.size) == newest.root:
            self._problem, self._is_reread = "", False
            return True
        if newest.size > tree.size:
            # Another replica may be ahead for a moment, but not of the stream itself.
            if (await self._heads.state()).last_sequence < newest.size:
                self._object(f"the stream has fewer events than the {newest.size} that were signed")
            return False
        if not self._is_reread:
            self._is_reread = True
            self._projection.rebuild("its leaves do not lead to the signed root of the ledger")
        else:
            self._object(f"the first {newest.size} events of the stream do not lead to the root that was signed")
        return False

    async def _is_of_this_stream(self, tree: Tree) -> bool:
        """Tell whether the tree is still that of the stream, which may have been replaced a moment ago."""
        state = await self._heads.state()
        return state.created == self._projection.created and state.last_sequence >= tree.size and tree is self.tree

    def _object(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            log.error("ledger_contradicted", problem=problem)
