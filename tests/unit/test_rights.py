"""What a key may do: never more than its principal, and nothing that an older reader of its records would add."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_identity import access
from octavo_identity.granting import with_grant, without_grant
from octavo_identity.records import AdapterHead, KeyHead
from octavo_identity.rights import ALL, Right, covers, grant_role, rights, scopes_of
from octavo_shared.errors import AdapterNotFound, InvalidRequest, NotPermitted
from octavo_shared.messages.grants import GrantRole
from octavo_shared.messages.keys import Role, Scope
from octavo_shared.references import ADAPTERS_PATTERN, AdapterId, TenantId

PEOPLE = ("alice@home", "carol@home", "bob@away")
ADAPTERS = ("", "home/diary", "home/d*", "home/*", "home/other", "away/*")


def key(principal: str = "alice@home", role: Role = Role.OWNER, **fields: object) -> KeyHead:
    made = KeyHead("0" * 16, b"", principal, principal.split("@")[1], role)
    return msgspec.structs.replace(made, **fields)


def head(**roles: GrantRole) -> AdapterHead:
    """Return alice's ``home/diary`` with ``roles``; ``_at_`` stands for the @, and ``all`` for the star."""
    made = AdapterHead(AdapterId("a"), TenantId("t"), "home/diary", "alice@home", 1, (), {})
    for name, role in roles.items():
        made = with_grant(made, name.replace("_at_", "@").replace("all@", "*@"), role)
    return made


keys = st.builds(
    key,
    st.sampled_from(PEOPLE),
    st.sampled_from(Role),
    scopes=st.lists(st.sampled_from(Scope), unique=True).map(tuple),
    adapters=st.sampled_from(ADAPTERS),
)
grants = st.dictionaries(st.sampled_from((*PEOPLE, "*@home", "*@away")), st.sampled_from(GrantRole))


def granted(roles: dict[str, GrantRole]) -> AdapterHead:
    made = head()
    for who, role in roles.items():
        made = with_grant(made, who, role)
    return made


@given(keys, grants)
def test_a_narrowed_key_never_does_more_than_one_that_is_not(one: KeyHead, roles: dict[str, GrantRole]) -> None:
    wide = msgspec.structs.replace(one, scopes=(), adapters="")
    assert rights(one, granted(roles)) in rights(wide, granted(roles))


@given(keys, keys, grants)
def test_what_does_no_more_than_another_key_does_no_more_to_any_adapter(
    one: KeyHead, other: KeyHead, roles: dict[str, GrantRole]
) -> None:
    if one.principal == other.principal and access.does_no_more(one, other):
        # Admins make auditors, and do not see themselves what these see.
        is_made = other.role is Role.ADMIN and one.role is Role.AUDITOR
        more = Right.SEE | Right.AUDIT if is_made else Right.NONE
        assert rights(one, granted(roles)) in rights(other, granted(roles)) | more


@given(keys, grants)
def test_the_one_answer_goes_to_exactly_those_who_may_not_see(one: KeyHead, roles: dict[str, GrantRole]) -> None:
    found = rights(one, granted(roles))
    for check, right in (
        (access.check_see, Right.SEE), (access.check_use, Right.USE), (access.check_edit, Right.EDIT),
        (access.check_own, Right.OWN), (access.check_locate, Right.LOCATE), (access.check_verify, Right.AUDIT),
    ):  # fmt: skip
        if right in found:
            assert check(one, granted(roles)) == granted(roles)
        else:
            with pytest.raises(NotPermitted if Right.SEE in found else AdapterNotFound):
                check(one, granted(roles))
        with pytest.raises(AdapterNotFound):
            check(one, None)


@given(grants, st.sampled_from(PEOPLE), st.sampled_from(GrantRole))
def test_a_principal_has_one_role_and_what_is_taken_back_leaves_nothing(
    roles: dict[str, GrantRole], who: str, role: GrantRole
) -> None:
    changed = with_grant(granted(roles), who, role)
    assert grant_role(changed, who) is role
    assert {other: grant_role(changed, other) for other in roles if other != who} == {
        other: role for other, role in roles.items() if other != who
    }
    assert set(changed.editors) <= set(changed.grants)
    assert not set(changed.auditors) & set(changed.grants)
    assert without_grant(changed, who) == without_grant(granted(roles), who)


def test_roles_of_a_principal_and_of_its_tenant_add_up() -> None:
    both = head(bob_at_away=GrantRole.EDITOR, all_at_away=GrantRole.AUDITOR)
    assert rights(key("bob@away"), both) == Right.SEE | Right.USE | Right.EDIT | Right.AUDIT
    assert rights(key("eve@away"), both) == Right.SEE | Right.AUDIT
    assert rights(key("carol@home"), both) is Right.NONE
    assert rights(key(), both) == ALL


def test_a_reader_that_knows_no_roles_lets_nobody_do_more() -> None:
    """As replicas of two versions run side by side for a while: editors use, and auditors may do nothing."""
    new = head(bob_at_away=GrantRole.EDITOR, eve_at_away=GrantRole.AUDITOR, una_at_away=GrantRole.USER)
    assert new.grants == ("bob@away", "una@away")


def test_records_from_before_there_were_roles_and_scopes_still_mean_the_same() -> None:
    old_head = {"type": "adapter", "adapter_id": "a", "tenant_id": "t", "name": "home/diary", "owner": "alice@home",
                "num_revisions": 1, "revisions": [], "aliases": {}, "grants": ["bob@away"]}  # fmt: skip
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(old_head), type=AdapterHead)
    assert grant_role(read, "bob@away") is GrantRole.USER
    old_key = {"type": "key", "key_id": "0" * 16, "secret_sha256": b"x", "principal": "alice@home", "tenant": "home",
               "role": "owner", "is_revoked": False}  # fmt: skip
    one = msgspec.msgpack.decode(msgspec.msgpack.encode(old_key), type=KeyHead)
    assert scopes_of(one) == tuple(Scope)
    assert rights(one, read) == ALL
    assert one.expires_at_ms == 0


def test_an_auditors_key_uses_nothing_even_of_its_own() -> None:
    assert rights(key(role=Role.AUDITOR), head()) == Right.SEE | Right.AUDIT
    assert rights(key("tess@home", Role.AUDITOR), head()) == Right.SEE | Right.AUDIT
    assert rights(key("tess@away", Role.AUDITOR), head()) is Right.NONE
    assert rights(key(role=Role.AUDITOR, scopes=(Scope.USE,)), head()) is Right.NONE


@pytest.mark.parametrize(
    ("adapters", "other", "is_covered"),
    [
        ("", "home/diary", True), ("", "", True), ("home/*", "", False), ("home/diary", "home/diary", True),
        ("home/diary", "home/diary2", False), ("home/d*", "home/diary", True), ("home/d*", "home/d", True),
        ("home/d*", "home/d*", True), ("home/d*", "home/di*", True), ("home/di*", "home/d*", False),
        ("home/*", "home/d*", True), ("home/*", "home2/d", False), ("home/d*", "home/*", False),
        ("home/diary", "home/diary*", False), ("home/diary*", "home/diary", True),
    ],
)  # fmt: skip
def test_a_pattern_covers_what_it_is_no_narrower_than(adapters: str, other: str, is_covered: bool) -> None:
    assert covers(adapters, other) == is_covered


@pytest.mark.parametrize(
    "text", ["*", "*/*", "home", "home/", "/d", "home*", "home/d**", "home/*d", "Home/d", "h/d*\n"]
)
def test_a_pattern_is_one_tenants_and_has_its_star_at_the_end(text: str) -> None:
    assert ADAPTERS_PATTERN.match(text) is None


def test_an_adapter_grants_no_more_than_so_many_roles() -> None:
    full = msgspec.structs.replace(head(), grants=tuple(f"u{n:03}@away" for n in range(255)), auditors=("eve@away",))
    with pytest.raises(InvalidRequest, match="256"):
        with_grant(full, "one-more@away", GrantRole.AUDITOR)
    assert len(with_grant(full, "eve@away", GrantRole.EDITOR).grants) == 256
