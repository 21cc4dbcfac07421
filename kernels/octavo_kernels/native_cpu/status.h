// What every call of the library returns: an index into ERRORS of native.py. Values are checked before the first write.
#pragma once

namespace {

enum { OK, BAD_GROUPS, BAD_SLOT, BAD_RANK, BAD_OFFSET, BAD_CONTEXT, BAD_TYPE, BAD_PRODUCT };

}  // namespace
