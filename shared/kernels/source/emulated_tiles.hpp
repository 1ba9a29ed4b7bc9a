// Tile registers in plain C++, for tests on processors without them.
//
// Knows Intel's definition of each instruction, its faults included: what would
// be a fault there ends the process here. Included by tile_registers.hpp alone.
#pragma once

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace percept::tiles {

struct Register {
    int rows = 0, row_bytes = 0;
    alignas(64) uint8_t bytes[16][64] = {};
};

struct Registers {
    bool configured = false;
    Register tiles[8];
};

inline thread_local Registers registers;
inline std::atomic<bool> has_leave{false};

inline void demand(bool condition, const char *what) {
    if (condition) return;
    std::fprintf(stderr, "a tile instruction faults: %s\n", what);
    std::abort();
}

inline bool ask_for_leave() {
#if defined(PERCEPT_REFUSE_TILES)
    return false;
#else
    has_leave = true;
    return true;
#endif
}

inline void configure(const Shapes &shapes) {
    demand(has_leave, "the process has no leave");
    demand(shapes.palette == 1 && shapes.start_row == 0, "palette or start row");
    for (uint8_t byte : shapes.reserved) demand(byte == 0, "reserved bytes");
    for (int tile = 0; tile < 16; tile++) {
        int rows = shapes.rows[tile], row_bytes = shapes.row_bytes[tile];
        demand(rows <= 16 && row_bytes <= 64 && (rows == 0) == (row_bytes == 0), "the shape of a tile");
        demand(tile < 8 || rows == 0, "there are eight tiles");
        if (tile >= 8) continue;
        registers.tiles[tile] = Register();
        registers.tiles[tile].rows = rows;
        registers.tiles[tile].row_bytes = row_bytes;
    }
    registers.configured = true;
}

inline void release() {
    demand(has_leave, "the process has no leave");
    registers = Registers();
}

inline Register &used(int tile) {
    demand(registers.configured, "tiles are not configured");
    demand(registers.tiles[tile].rows > 0, "the tile has no shape");
    return registers.tiles[tile];
}

template <int TILE>
inline void clear() {
    std::memset(used(TILE).bytes, 0, sizeof(Register::bytes));
}

template <int TILE>
inline void load(const void *rows, int64_t stride) {
    Register &tile = used(TILE);
    std::memset(tile.bytes, 0, sizeof tile.bytes);
    for (int row = 0; row < tile.rows; row++) {
        std::memcpy(tile.bytes[row], (const uint8_t *)rows + row * stride, tile.row_bytes);
    }
}

template <int TILE>
inline void load_passing(const void *rows, int64_t stride) {
    load<TILE>(rows, stride);
}

template <int TILE>
inline void store(void *rows, int64_t stride) {
    const Register &tile = used(TILE);
    for (int row = 0; row < tile.rows; row++) {
        std::memcpy((uint8_t *)rows + row * stride, tile.bytes[row], tile.row_bytes);
    }
}

// Numbers below the smallest normal one count as zero, before and after each step.
inline float flushed(float value) { return std::fabs(value) < 1.17549435e-38f ? std::copysign(0.0f, value) : value; }

inline float element(const uint8_t *bytes) {
    uint16_t half;
    std::memcpy(&half, bytes, 2);
    return flushed(BFloat16::widen(half));
}

// The even and the odd elements of a row are summed apart, and joined at the end.
template <int SUMS, int LEFT, int RIGHT>
inline void multiply() {
    static_assert(SUMS != LEFT && SUMS != RIGHT && LEFT != RIGHT, "three different tiles");
    Register &sums = used(SUMS);
    const Register &left = used(LEFT), &right = used(RIGHT);
    demand(sums.rows == left.rows && sums.row_bytes == right.row_bytes, "the shape of the sums");
    demand(left.row_bytes == 4 * right.rows, "the depth of the two factors");
    for (int row = 0; row < sums.rows; row++) {
        for (int column = 0; column < sums.row_bytes / 4; column++) {
            float even = 0, odd = 0, sum;
            for (int pair = 0; pair < right.rows; pair++) {
                const uint8_t *a = left.bytes[row] + 4 * pair, *b = right.bytes[pair] + 4 * column;
                even = flushed(std::fma(element(a), element(b), even));
                odd = flushed(std::fma(element(a + 2), element(b + 2), odd));
            }
            std::memcpy(&sum, sums.bytes[row] + 4 * column, 4);
            sum = flushed(flushed(sum) + flushed(even + odd));
            std::memcpy(sums.bytes[row] + 4 * column, &sum, 4);
        }
    }
}

} // namespace percept::tiles
