"""What each role may do on NATS, spelt once: the subjects that it publishes and those that it subscribes to.

Whatever is not here is refused by the server. A subscription written ``"subject group"`` is allowed only as a member of
that queue group, so that nobody reads along with what another member serves. Answers go to inboxes; each role has a
prefix of its own for them, and only those who answer a role may publish to its inboxes. Each worker is a user of its
own: it hears what is sent to its own id, and answers to itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from octavo_shared import subjects

INBOX = "_INBOX"
"""What every reply subject begins with, also those of clients without credentials."""

_STREAM_CALLS = ("CREATE", "INFO", "MSG.GET")
"""What identity asks JetStream to do with a stream of its own. Only data keys may be deleted, and nothing purged."""
_STREAMS = (*subjects.IDENTITY_STREAMS, subjects.USAGE_STREAM)
_COPIED_STREAMS = (subjects.REGISTRY_STREAM, subjects.USAGE_STREAM, subjects.KEY_STREAM)


class BusRole(StrEnum):
    """Who somebody is on NATS. ``CLIENT`` is anybody who sends requests there."""

    GATEWAY = "gateway"
    IDENTITY = "identity"
    RESIDENCY = "residency"
    WORKER = "worker"
    CLIENT = "client"


@dataclass(frozen=True)
class Permissions:
    """Subjects, which may hold wildcards. Neither is ever empty: to a server, an empty list allows everything."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def inbox_prefix(role: BusRole, member: str = "") -> str:
    """Return what the reply subjects of ``role``, or of one ``member`` of it, begin with."""
    return f"{INBOX}_{role}.{member}" if member else f"{INBOX}_{role}"


def is_inbox(subject: str) -> bool:
    """Tell whether an answer may go to ``subject``.

    Whoever answers may publish more than whoever asks: a request whose reply subject is the registry's would have
    identity write there.
    """
    return subject.startswith(INBOX)


def _inboxes(role: BusRole, member: str = "") -> str:
    return f"{inbox_prefix(role, member)}.>"


def _in_group(subject: str, queue: str) -> str:
    return f"{subject} {queue}"


PERMISSIONS: Mapping[BusRole, Permissions] = {
    BusRole.GATEWAY: Permissions(
        publish=(
            subjects.identity("*"),
            subjects.residency("evict"),
            subjects.residency("view"),
            subjects.worker("*", "generate"),
            subjects.worker("*", "cancel"),
            subjects.DEMAND,
            subjects.LEASE,
            subjects.usage("*"),
            _inboxes(BusRole.CLIENT),
        ),
        subscribe=(
            _in_group(subjects.GENERATE, subjects.GATEWAY_QUEUE),
            subjects.HEARTBEAT,
            _inboxes(BusRole.GATEWAY),
        ),
    ),
    BusRole.IDENTITY: Permissions(
        publish=(
            *(subject for stream_subjects in subjects.IDENTITY_STREAMS.values() for subject in stream_subjects),
            *(f"$JS.API.STREAM.{call}.{stream}" for stream in _STREAMS for call in _STREAM_CALLS),
            *(subjects.copies(stream) for stream in _COPIED_STREAMS),
            *(f"$JS.API.STREAM.MSG.DELETE.{stream}" for stream in subjects.DELETABLE_STREAMS),
            subjects.worker("*", "erase"),
            subjects.AUDITED,
            _inboxes(BusRole.GATEWAY),
            _inboxes(BusRole.WORKER),
        ),
        subscribe=(
            _in_group(subjects.identity("*"), subjects.IDENTITY_QUEUE),
            subjects.HEARTBEAT,
            subjects.AUDITED,
            _inboxes(BusRole.IDENTITY),
        ),
    ),
    BusRole.RESIDENCY: Permissions(
        publish=(
            subjects.worker("*", "prefetch"),
            subjects.worker("*", "evict"),
            _inboxes(BusRole.GATEWAY),
        ),
        subscribe=(
            _in_group(subjects.residency("*"), subjects.RESIDENCY_QUEUE),
            _in_group(subjects.DEMAND, subjects.RESIDENCY_QUEUE),
            subjects.HEARTBEAT,
            _inboxes(BusRole.RESIDENCY),
        ),
    ),
    BusRole.CLIENT: Permissions(
        publish=(subjects.GENERATE,),
        subscribe=(_inboxes(BusRole.CLIENT),),
    ),
}
"""Of every role but the worker's, which has no member like another."""


def worker_permissions(worker_id: str) -> Permissions:
    """Return what the worker ``worker_id`` may do: it asks for data keys and what was erased, and nothing else."""
    return Permissions(
        publish=(
            subjects.HEARTBEAT,
            subjects.identity("unwrap"),
            subjects.identity("erasures"),
            _inboxes(BusRole.GATEWAY),
            _inboxes(BusRole.RESIDENCY),
            _inboxes(BusRole.IDENTITY),
        ),
        subscribe=(subjects.worker(worker_id, "*"), subjects.LEASE, _inboxes(BusRole.WORKER, worker_id)),
    )
