// Rows times a packed matrix: the inner loop of every linear layer and of attention.
//
// A packed matrix of shape (columns, depth) is cut into panels of 32 columns. A
// panel is read from beginning to end: for each unit of depth (one float, or two
// neighbouring bfloat16), 32 words, one per column. So a few rows run at the
// speed of memory, and many rows at the speed of arithmetic.
#pragma once

#include "vector.hpp"

namespace percept {

constexpr int PANEL = 2 * LANES;
constexpr int REGISTERS = 4 * PANEL / REGISTER_BYTES; // that hold a panel's columns
#if defined(__AVX512F__)
constexpr int TILE_ROWS = 12; // 24 of 32 registers are sums, and those left hold weights
#elif defined(__AVX__)
constexpr int TILE_ROWS = 3; // 12 of 16
#elif defined(__aarch64__)
constexpr int TILE_ROWS = 3; // 24 of 32
#else
constexpr int TILE_ROWS = 1; // 8 of 16
#endif
constexpr int64_t AHEAD = 8192; // bytes; the processor's own prefetching stops at every 4 KiB

template <typename Type>
constexpr int64_t units_of(int64_t depth) { return (depth + Type::PER_UNIT - 1) / Type::PER_UNIT; }

// Into the second-level cache: a panel overflows the innermost one, and would push out what is multiplied now.
inline void prefetch(const void *address) { __builtin_prefetch(address, 0, 2); }

// Sums of ROWS rows over all units of one panel, 32 columns of each row. Not
// inlined: the sums must stay in registers, whatever becomes of them afterwards.
// Where a panel's columns are two registers, they stay while the rows pass; of
// smaller registers there are too few, and the rows' elements stay instead.
template <typename Type, int ROWS>
__attribute__((noinline)) void multiply_tile(const typename Type::Element *rows, int64_t stride, const Words *panel,
                                             int64_t units, const char *wanted, int64_t every, Floats *result) {
    FloatRegister sums[ROWS][REGISTERS] = {};
    const char *row[ROWS];
    for (int r = 0; r < ROWS; r++) row[r] = (const char *)(rows + r * stride);
    for (int64_t unit = 0; unit < units;) {
        int64_t end = units;
        if (wanted != nullptr) {
            prefetch(wanted);
            prefetch(wanted + 64);
            wanted += 128;
            end = unit + every < units ? unit + every : units;
        }
        for (; unit < end; unit++) {
            if constexpr (REGISTERS == 2) {
                WordRegister first = load_vector<WordRegister>(panel), second = load_vector<WordRegister>(panel + 1);
#pragma GCC unroll 16
                for (int r = 0; r < ROWS; r++) {
                    uint32_t value;
                    std::memcpy(&value, row[r] + unit * 4, 4);
                    sums[r][0] = Type::multiply_add(sums[r][0], first, value);
                    sums[r][1] = Type::multiply_add(sums[r][1], second, value);
                }
            } else {
                uint32_t values[ROWS];
#pragma GCC unroll 16
                for (int r = 0; r < ROWS; r++) std::memcpy(&values[r], row[r] + unit * 4, 4);
#pragma GCC unroll 8
                for (int i = 0; i < REGISTERS; i++) {
                    WordRegister weights = load_vector<WordRegister>((const char *)panel + i * REGISTER_BYTES);
#pragma GCC unroll 16
                    for (int r = 0; r < ROWS; r++) sums[r][i] = Type::multiply_add(sums[r][i], weights, values[r]);
                }
            }
            panel += 2;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 8
        for (int i = 0; i < REGISTERS; i++) store_vector((char *)(result + 2 * r) + i * REGISTER_BYTES, sums[r][i]);
    }
}

// Calls `task.template operator()<ROWS>()` with the run-time count as a constant.
template <int MOST, typename Task>
inline void with_rows(int count, Task &&task) {
    if constexpr (MOST > 1) {
        if (count != MOST) return with_rows<MOST - 1>(count, task);
    }
    task.template operator()<MOST>();
}

// Multiplies any number of rows with one panel; `finish(row, sums of the row)` gets the two vectors of each row.
//
// A panel larger than the innermost cache comes from memory once, while the
// first rows are computed; with more rows than a tile, the next panel is
// fetched meanwhile.
template <typename Type, typename Finish>
inline void multiply_panel(const typename Type::Element *rows, int64_t stride, int64_t count, const Words *panel,
                           int64_t units, bool streamed, Finish &&finish) {
    int64_t passes = (count + TILE_ROWS - 1) / TILE_ROWS;
    int64_t bytes = units * 2 * (int64_t)sizeof(Words);
    for (int64_t pass = 0, first = 0; pass < passes; pass++) {
        int tile = (int)((count - first + passes - pass - 1) / (passes - pass));
        const char *wanted = nullptr;
        if (streamed && passes > 1) wanted = (const char *)panel + bytes + bytes * pass / passes;
        else if (streamed && count > 4) wanted = (const char *)panel + AHEAD;
        with_rows<TILE_ROWS>(tile, [&]<int ROWS>() {
            Floats sums[2 * ROWS];
            multiply_tile<Type, ROWS>(rows + first * stride, stride, panel, units, wanted, passes, sums);
            for (int r = 0; r < ROWS; r++) finish(first + r, sums[2 * r], sums[2 * r + 1]);
        });
        first += tile;
    }
}

#if defined(__AVX512F__)
// Sixteen rows of sixteen words, mirrored: word w of row r becomes word r of output w.
inline void transpose_words(const __m512i (&rows)[LANES], uint32_t *output, int64_t stride) {
    __m512i pairs[LANES], fours[LANES], eights[LANES];
#pragma GCC unroll 8
    for (int i = 0; i < LANES; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < LANES; i += 4) { // now fours[i + w] holds word w of each quarter, of rows i to i + 3
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
#pragma GCC unroll 4
    for (int w = 0; w < 4; w++) { // quarters 0 and 2 of eight rows, then 1 and 3
        eights[w] = _mm512_shuffle_i32x4(fours[w], fours[4 + w], 0x88);
        eights[4 + w] = _mm512_shuffle_i32x4(fours[w], fours[4 + w], 0xdd);
        eights[8 + w] = _mm512_shuffle_i32x4(fours[8 + w], fours[12 + w], 0x88);
        eights[12 + w] = _mm512_shuffle_i32x4(fours[8 + w], fours[12 + w], 0xdd);
    }
#pragma GCC unroll 4
    for (int w = 0; w < 4; w++) {
        _mm512_storeu_si512(output + w * stride, _mm512_shuffle_i32x4(eights[w], eights[8 + w], 0x88));
        _mm512_storeu_si512(output + (8 + w) * stride, _mm512_shuffle_i32x4(eights[w], eights[8 + w], 0xdd));
        _mm512_storeu_si512(output + (4 + w) * stride, _mm512_shuffle_i32x4(eights[4 + w], eights[12 + w], 0x88));
        _mm512_storeu_si512(output + (12 + w) * stride, _mm512_shuffle_i32x4(eights[4 + w], eights[12 + w], 0xdd));
    }
}

// The words of sixteen units of 32 rows; missing rows (nullptr) are zeros.
inline void pack_square(const char *const *rows, int64_t unit, uint32_t *words) {
    for (int half = 0; half < PANEL; half += LANES) {
        __m512i loaded[LANES];
        for (int row = 0; row < LANES; row++) {
            const char *from = rows[half + row];
            loaded[row] = from ? _mm512_loadu_si512(from + unit * 4) : _mm512_setzero_si512();
        }
        transpose_words(loaded, words + unit * PANEL + half, PANEL);
    }
}
#endif

// Writes words of 32 rows of a row-major matrix as one panel; missing rows (nullptr) become zeros.
template <typename Type>
inline void pack_rows(const typename Type::Element *const *rows, int64_t depth, Words *panel) {
    int64_t units = units_of<Type>(depth), whole = depth / Type::PER_UNIT;
    uint32_t *words = (uint32_t *)panel;
    int64_t done = 0;
#if defined(__AVX512F__)
    for (; done + LANES <= whole; done += LANES) pack_square((const char *const *)rows, done, words);
#endif
    for (int column = 0; column < PANEL; column++) {
        if (rows[column] == nullptr) {
            for (int64_t unit = done; unit < units; unit++) words[unit * PANEL + column] = 0;
            continue;
        }
        const char *row = (const char *)rows[column];
        for (int64_t unit = done; unit < whole; unit++) std::memcpy(words + unit * PANEL + column, row + unit * 4, 4);
        if (whole < units) { // an odd last element, alone in its unit
            uint32_t last = 0;
            std::memcpy(&last, row + whole * 4, sizeof(typename Type::Element));
            words[whole * PANEL + column] = last;
        }
    }
}

} // namespace percept
