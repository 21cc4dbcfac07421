"""Types of query parameters."""

from typing import Annotated

from litestar.params import QueryParameter

COUNT_MAX = 2**53
"""Further than anything counts here, and as far as JSON's numbers are whole everywhere."""

Count = Annotated[int, QueryParameter(ge=-COUNT_MAX, le=COUNT_MAX)]
"""A whole number that can be sent on; whether it makes sense is for whoever gets it to say."""

MaybeCount = Annotated[int | None, QueryParameter(ge=-COUNT_MAX, le=COUNT_MAX)]
