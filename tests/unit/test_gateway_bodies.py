"""What is wrong in a JSON body is said by the name of its field, wherever it stands."""

from typing import Annotated

import msgspec
import pytest

from octavo_gateway.bodies import decode_body
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.usage import Quota

Slug = Annotated[str, msgspec.Meta(pattern=r"^[a-z]+\Z")]


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    numbers: list[int] = []


class Body(msgspec.Struct, forbid_unknown_fields=True):
    inner: Inner
    limits: dict[Quota, int | None] = {}
    slugs: dict[Slug, int] = {}


@pytest.mark.parametrize(
    ("raw", "kind", "field", "problem"),
    [
        (b'{"inner": {"numbers": [1, "2"]}}', Body, "inner.numbers[1]", "wrong type or value"),
        (b'{"inner": {"other": 1}}', Body, "inner.other", "is not a known parameter"),
        (b"{}", Body, "inner", "is required"),
        (b'{"inner": {}, "limits": {"lemons": 1}}', Body, "limits.lemons", "is not a known parameter"),
        (b'{"inner": {}, "limits": {"adapters": "1"}}', Body, "limits[...]", "wrong type or value"),
        (b'{"inner": {}, "slugs": {"A": 1}}', Body, "slugs", "has a member whose name is wrong"),
        (b'{"lemons": 1}', dict[Quota, int], "lemons", "is not a known parameter"),
        (b"[]", dict[Quota, int], "body", "wrong type or value"),
        # What a caller wrote cannot pass for the place.
        (b'{"x - at `$.inner`": 1}', dict[Quota, int], "x - at `$.inner`", "is not a known parameter"),
    ],
)
def test_what_is_wrong_is_named(raw: bytes, kind: type, field: str, problem: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        decode_body(raw, kind)
    assert refusal.value.fields["field"] == field
    assert problem in refusal.value.message
    assert "`$" not in refusal.value.message.removeprefix(f"'{field}'")


def test_a_name_from_the_caller_is_echoed_but_never_at_any_length() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        decode_body(b'{"%s": 1}' % (b"x" * 1_000), dict[Quota, int])
    assert len(str(refusal.value.fields["field"])) == 80
