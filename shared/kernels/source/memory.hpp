// Memory in large pages, where the system has them.
//
// A second-level cache is looked up by physical addresses. Pages of 4 KiB lie
// anywhere, so that some of its sets overflow long before it is full; and many
// small pages are slow to translate. Knows the system's call for that alone.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace percept {

constexpr int64_t LARGE_PAGE = 2 << 20;

// Asks for large pages for memory that nobody has touched yet: a wish, which a system may refuse.
inline void prefer_large_pages([[maybe_unused]] void *memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    uintptr_t first = ((uintptr_t)memory + LARGE_PAGE - 1) & -(uintptr_t)LARGE_PAGE;
    uintptr_t end = ((uintptr_t)memory + bytes) & -(uintptr_t)LARGE_PAGE;
    if (first < end) madvise((void *)first, end - first, MADV_HUGEPAGE);
#endif
}

} // namespace percept
