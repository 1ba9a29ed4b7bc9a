// The tile registers of Intel's AMX: eight, each of up to 16 rows of 64 bytes.
//
// Knows the instructions, and how a process asks the system for them. Does not
// know matrices. PERCEPT_TILES is set where there is something to ask for;
// PERCEPT_NO_TILES leaves them out, PERCEPT_EMULATE_TILES computes them in C++.
#pragma once

#include "vector.hpp"

namespace percept::tiles {

// What LDTILECFG reads: the size of every tile.
struct alignas(64) Shapes {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};
static_assert(sizeof(Shapes) == 64, "the processor reads 64 bytes");

} // namespace percept::tiles

// Clang's names before version 15.
#if (defined(__AMX_TILE__) && defined(__AMX_BF16__)) || (defined(__AMXTILE__) && defined(__AMXBF16__))
#define PERCEPT_PROCESSOR_HAS_TILES
#endif

#if defined(PERCEPT_NO_TILES)
#elif defined(PERCEPT_EMULATE_TILES)

#define PERCEPT_TILES
#include "emulated_tiles.hpp"

#elif defined(PERCEPT_PROCESSOR_HAS_TILES) && defined(__linux__) && defined(__x86_64__)

#define PERCEPT_TILES

#include <sys/syscall.h>
#include <unistd.h>

namespace percept::tiles {

// Linux saves 8 KiB of tiles only for processes that ask; without leave, the
// first tile instruction would end the process. The answer is read back: a
// sandbox may accept a call that it does not carry out.
inline bool ask_for_leave() {
    constexpr long GET_PERMISSION = 0x1022, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    unsigned long granted = 0;
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) != 0) return false;
    if (syscall(SYS_arch_prctl, GET_PERMISSION, &granted) != 0) return false;
    return granted >> TILE_DATA & 1;
}

// Instructions by the number of their tile. Compilers' own functions take literals alone.
inline void configure(const Shapes &shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }

inline void release() { asm volatile("tilerelease"); }

template <int TILE>
inline void clear() {
    asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
}

template <int TILE>
inline void load(const void *rows, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(TILE) : "memory");
}

// As `load`, of what is not read again soon: it need not stay in the innermost cache.
template <int TILE>
inline void load_passing(const void *rows, int64_t stride) {
    asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(TILE) : "memory");
}

template <int TILE>
inline void store(void *rows, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(TILE) : "memory");
}

// SUMS += LEFT x RIGHT, whose elements are pairs of bfloat16.
template <int SUMS, int LEFT, int RIGHT>
inline void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(LEFT), "i"(RIGHT));
}

} // namespace percept::tiles

#endif
