import msgspec
import pytest

from octavo_identity import access
from octavo_identity.records import AdapterHead, KeyHead
from octavo_shared.errors import AdapterNotFound, NotPermitted
from octavo_shared.messages.keys import Role
from octavo_shared.references import AdapterId, TenantId


def key(principal: str, role: Role = Role.OWNER) -> KeyHead:
    return KeyHead("0" * 16, b"", principal, principal.split("@")[1], role)


def head(*grants: str) -> AdapterHead:
    return AdapterHead(AdapterId("a"), TenantId("t"), "home/diary", "alice@home", 1, (), {}, grants)


ALICE, CAROL, BOB = key("alice@home"), key("carol@home"), key("bob@away")
ADMIN = key("admin@octavo", Role.ADMIN)


def test_owners_and_those_granted_may_use() -> None:
    assert access.may_use(ALICE, head())
    assert access.may_use(BOB, head("bob@away"))
    assert access.may_use(BOB, head("*@away"))


@pytest.mark.parametrize("stranger", [CAROL, BOB, ADMIN], ids=lambda one: one.principal)
def test_not_there_and_not_yours_are_one_answer(stranger: KeyHead) -> None:
    answers = []
    for found in (None, head(), head("bob@elsewhere", "*@elsewhere")):
        with pytest.raises(AdapterNotFound) as error:
            access.check_use(stranger, found)
        answers.append(error.value.refusal())
    assert answers[0] == answers[1] == answers[2]


def test_those_granted_use_but_do_not_change() -> None:
    with pytest.raises(NotPermitted):
        access.check_own(BOB, head("bob@away"))
    with pytest.raises(AdapterNotFound):
        access.check_own(BOB, head())


def test_pushing_needs_an_owner_of_the_tenant() -> None:
    access.check_push(ALICE, "home/diary", None)
    access.check_push(ALICE, "home/diary", head())
    with pytest.raises(AdapterNotFound):
        access.check_push(CAROL, "home/diary", head())
    with pytest.raises(AdapterNotFound):
        access.check_push(BOB, "home/diary", None)
    with pytest.raises(NotPermitted):
        access.check_push(key("dave@home", Role.USER), "home/diary", None)


def test_owners_and_admins_locate_and_users_get_a_plain_no() -> None:
    for who in (ALICE, ADMIN):
        assert access.check_locate(who, head()) == head()
        with pytest.raises(AdapterNotFound):
            access.check_locate(who, None)
    for granted in (head("bob@away"), head("*@away")):
        with pytest.raises(NotPermitted, match="evict this adapter"):
            access.check_locate(BOB, granted)
    for stranger in (CAROL, BOB, key("dave@home", Role.USER)):
        with pytest.raises(AdapterNotFound):
            access.check_locate(stranger, head())


USER = key("alice@home", Role.USER)


@pytest.mark.parametrize(
    ("who", "principal", "role", "is_allowed"),
    [
        (ADMIN, "anyone@anywhere", Role.ADMIN, True),
        (ADMIN, "alice@home", Role.OWNER, True),
        (ALICE, "alice@home", Role.OWNER, True),
        (ALICE, "alice@home", Role.USER, True),
        (USER, "alice@home", Role.USER, True),
        (ALICE, "alice@home", Role.ADMIN, False),
        (ALICE, "carol@home", Role.USER, False),
        (ALICE, "carol@home", Role.OWNER, False),
        (ALICE, "nobody-yet@home", Role.USER, False),
        (ALICE, "alice@away", Role.USER, False),
        (USER, "alice@home", Role.OWNER, False),
    ],
    ids=str,
)
def test_keys_of_others_are_an_admins_business(who: KeyHead, principal: str, role: Role, is_allowed: bool) -> None:
    other = msgspec.structs.replace(key(principal, role), key_id="1" * 16)
    assert access.may_end_key(who, other) == is_allowed
    if is_allowed:
        access.check_issue_key(who, other)
    else:
        with pytest.raises(NotPermitted):
            access.check_issue_key(who, other)
