"""What the registry refuses, of adapters, their revisions and aliases, bases and statements."""

from octavo_shared.errors.tree import OctavoError


class AdapterNotFound(OctavoError):
    code, http_status = "adapter_not_found", 404

    def __init__(self) -> None:
        # The reference is left out on purpose: the body must not differ between 'not there' and 'not yours'.
        super().__init__("no such adapter or revision, or this key may not use it")


class RevisionConflict(OctavoError):
    code, http_status, is_retryable = "revision_conflict", 409, True

    def __init__(self, problem: str = "the adapter changed at the same time; look again and retry") -> None:
        super().__init__(problem)


class AliasMoved(OctavoError):
    code, http_status = "alias_moved", 409

    def __init__(self, alias: str, *, expected: int, actual: int) -> None:
        named = f"names revision {actual}" if actual else "names no revision"
        wanted = f"revision {expected}" if expected else "no revision"
        super().__init__(f"'{alias}' {named}, not {wanted}", alias=alias, expected=expected, actual=actual)


class RevisionInUse(OctavoError):
    code, http_status = "revision_in_use", 409

    def __init__(self, number: int, alias: str) -> None:
        super().__init__(f"revision {number} is what '{alias}' names; move or remove the alias first",
                         number=number, alias=alias)  # fmt: skip


class GateRefused(OctavoError):
    """``detail`` says what is wrong with each rule that does not hold; the other fields are those of the first one."""

    code, http_status = "gate_refused", 409

    def __init__(self, alias: str, number: int, detail: str, **rule: str | int | float) -> None:
        super().__init__(f"'{alias}' may not name revision {number}: {detail}",
                         alias=alias, number=number, detail=detail, **rule)  # fmt: skip


class NameTaken(OctavoError):
    code, http_status = "name_taken", 409

    def __init__(self, name: str) -> None:
        super().__init__(f"'{name}' exists already", name=name)


class BaseMismatch(OctavoError):
    code, http_status = "base_mismatch", 409

    def __init__(self, *, adapter_base: str, served_base: str) -> None:
        super().__init__(
            f"the adapter was made for base {adapter_base}; the base served here is {served_base}",
            adapter_base=adapter_base,
            served_base=served_base,
        )


class BaseUnknown(OctavoError):
    code, http_status = "base_unknown", 404

    def __init__(self, base: str) -> None:
        super().__init__(f"base '{base}' is not registered here", base=base)


class BaseRetired(OctavoError):
    """``base`` and ``successor`` are labels; the latter is empty where nothing superseded it."""

    code, http_status = "base_retired", 410

    def __init__(self, base: str, successor: str = "") -> None:
        instead = f"; train for {successor}" if successor else ""
        super().__init__(f"base {base} is retired and takes nothing new{instead}", base=base, successor=successor)


class ParentMoved(OctavoError):
    """Retryable, but with another statement: ``parent`` is what it must name, empty for none."""

    code, http_status = "parent_moved", 409

    def __init__(self, *, stated: str, actual: str) -> None:
        said, served = stated or "no revision", actual or "no revision"
        super().__init__(
            f"the statement names {said} as parent, and {served} is served; sign again", stated=stated, parent=actual
        )


class RevisionRetired(OctavoError):
    code, http_status = "revision_retired", 410

    def __init__(self, number: int) -> None:
        super().__init__(f"revision {number} is retired", number=number)


class AdapterErased(OctavoError):
    code, http_status = "adapter_erased", 410

    def __init__(self) -> None:
        super().__init__("the adapter was erased; nothing of it is left")


class AdapterRefused(OctavoError):
    code, http_status = "adapter_refused", 422

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}", rule=rule, detail=detail)


class ProvenanceRefused(OctavoError):
    code, http_status = "provenance_refused", 422

    def __init__(self, field: str, stated: str, actual: str) -> None:
        super().__init__(f"the statement's '{field}' is {stated!r}, and what was made has {actual!r}", field=field)
