// Rows times a panel on a matrix unit, where the processor has one.
//
// Knows how panels and rows fit tile registers: sixteen units of a panel are two
// tiles as they lie, and so are sixteen rows. Two by two tiles of sums give four
// multiplications for four loads. Does not know linear layers or attention.
#pragma once

#include "matrix.hpp"
#include "tile_registers.hpp"

#include <algorithm>
#include <type_traits>

namespace percept {

constexpr int64_t TILE = 16;              // rows of a tile, and units of depth of one multiplication
constexpr int64_t UNIT_BYTES = 4 * PANEL; // of a panel
constexpr int64_t STEP_BYTES = TILE * UNIT_BYTES;

#if defined(PERCEPT_TILES)

inline thread_local int64_t rows_in_use = 0; // of a tile of rows or sums; 0 while nobody uses tiles

inline bool has_tiles() {
    static const bool leave = tiles::ask_for_leave();
    return leave;
}

// Tiles of rows and of sums get `rows` rows: nothing is read or written beyond fewer than sixteen.
inline void take_tiles(int64_t rows) {
    if (rows_in_use == rows) return;
    tiles::Shapes shapes;
    std::fill_n(shapes.row_bytes, 8, 64);
    std::fill_n(shapes.rows, 8, TILE);
    std::fill_n(shapes.rows, 6, rows);
    tiles::configure(shapes);
    rows_in_use = rows;
}

// Tiles that nobody uses need not be saved when the system changes threads.
inline void leave_tiles() {
    if (rows_in_use) tiles::release();
    rows_in_use = 0;
}

// Copies up to sixteen words and fills up with zeros, without reading any further.
inline void copy_words(const char *from, int64_t count, char *to) {
#if defined(__AVX512F__)
    _mm512_storeu_si512(to, _mm512_maskz_loadu_epi32((__mmask16)((1u << count) - 1), from));
#else
    std::memset(to, 0, 64);
    std::memcpy(to, from, count * 4);
#endif
}

// Fetches a share of the memory that comes next, some of it in each step.
class Fetch {
  public:
    Fetch() = default;
    Fetch(const char *from, const char *end, int64_t lines) : next_(from), end_(end), lines_(lines) {}

    void go() {
        for (int64_t line = 0; line < lines_ && next_ < end_; line++, next_ += 64) __builtin_prefetch(next_, 0, 2);
    }

  private:
    const char *next_ = nullptr, *end_ = nullptr;
    int64_t lines_ = 0;
};

// Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 weights.
template <int HEIGHT>
inline void clear_sums() {
    tiles::clear<0>();
    tiles::clear<1>();
    if constexpr (HEIGHT == 2) {
        tiles::clear<2>();
        tiles::clear<3>();
    }
}

template <int HEIGHT>
inline void load_sums(const float *sums, int64_t stride) {
    tiles::load<0>(sums, stride);
    tiles::load<1>(sums + LANES, stride);
    if constexpr (HEIGHT == 2) {
        tiles::load<2>(sums + TILE * stride / 4, stride);
        tiles::load<3>(sums + TILE * stride / 4 + LANES, stride);
    }
}

template <int HEIGHT>
inline void store_sums(float *sums, int64_t stride) {
    tiles::store<0>(sums, stride);
    tiles::store<1>(sums + LANES, stride);
    if constexpr (HEIGHT == 2) {
        tiles::store<2>(sums + TILE * stride / 4, stride);
        tiles::store<3>(sums + TILE * stride / 4 + LANES, stride);
    }
}

// One panel, and blocks of 16 or 32 rows that are multiplied with it, or a block of fewer.
class TilePanel {
  public:
    TilePanel(const Words *panel, int64_t units) : panel_((const char *)panel), steps_(units / TILE), left_(units % TILE) {
        if (!left_) return;
        for (int64_t unit = 0; unit < TILE; unit++) {
            const char *from = panel_ + steps_ * STEP_BYTES + unit * UNIT_BYTES;
            copy_words(from, unit < left_ ? TILE : 0, last_weights_ + unit * UNIT_BYTES);
            copy_words(from + 64, unit < left_ ? TILE : 0, last_weights_ + unit * UNIT_BYTES + 64);
        }
    }

    // Sums of `16 * HEIGHT` rows and 32 columns, row by row, or what is there and these. Strides are in bytes.
    // `between()` is called after every other multiplication.
    template <int HEIGHT, bool ADDS = false, typename Between>
    void multiply(const char *rows, int64_t stride, float *sums, int64_t sums_stride, Between &&between) {
        if constexpr (ADDS) load_sums<HEIGHT>(sums, sums_stride);
        else clear_sums<HEIGHT>();
        const char *weights = panel_;
        for (int64_t step = 0, steps = steps_; step < steps; step++, weights += STEP_BYTES) {
            add<HEIGHT>(rows + step * 64, stride, weights, between);
        }
        if (left_) add_last<HEIGHT>(rows + steps_ * 64, stride, between);
        store_sums<HEIGHT>(sums, sums_stride);
    }

  private:
    template <int HEIGHT, typename Between>
    static void add(const char *rows, int64_t stride, const char *weights, Between &&between) {
        tiles::load<6>(weights, UNIT_BYTES);
        tiles::load<4>(rows, stride);
        tiles::multiply<0, 4, 6>();
        tiles::load<7>(weights + 64, UNIT_BYTES);
        tiles::multiply<1, 4, 7>();
        between();
        if constexpr (HEIGHT == 2) {
            tiles::load<5>(rows + TILE * stride, stride);
            tiles::multiply<2, 5, 6>();
            tiles::multiply<3, 5, 7>();
            between();
        }
    }

    // Fewer than sixteen units are left: zeros fill them up, on both sides, because any number may stand there.
    template <int HEIGHT, typename Between>
    void add_last(const char *rows, int64_t stride, Between &&between) {
        alignas(64) char last_rows[HEIGHT * TILE * 64];
        int64_t count = (HEIGHT - 1) * TILE + rows_in_use;
        for (int64_t row = 0; row < count; row++) copy_words(rows + row * stride, left_, last_rows + row * 64);
        add<HEIGHT>(last_rows, 64, last_weights_, between);
    }

    const char *panel_;
    int64_t steps_, left_;
    alignas(64) char last_weights_[STEP_BYTES];
};

// What is fetched between multiplications of a panel, by `per_step` calls for each step: a single pass runs at the speed
// of memory, and fetches its own weights; several fetch the next panel.
inline Fetch fetch_beside(const Words *panel, int64_t units, int64_t passes, int64_t pass, int64_t per_step) {
    const char *from = (const char *)panel;
    int64_t bytes = units / TILE * STEP_BYTES, lines = STEP_BYTES / 64, turns = passes * per_step;
    if (passes == 1) return {from + AHEAD, from + AHEAD + bytes, lines / per_step};
    const char *next = from + units * UNIT_BYTES;
    return {next + bytes * pass / passes, next + bytes * (pass + 1) / passes, (lines + turns - 1) / turns};
}

// As `multiply_panel`. Where the number of rows is no
// multiple of a tile's, the last tile begins earlier: its first sums are known
// already and dropped.
template <typename Finish>
inline void multiply_tiles(const uint16_t *rows, int64_t stride, int64_t count, const Words *panel, int64_t units,
                           Finish &&finish) {
    take_tiles(std::min(count, TILE));
    alignas(64) float sums[2 * TILE * PANEL];
    int64_t passes = (count + 2 * TILE - 1) / (2 * TILE);
    TilePanel packed(panel, units);
    for (int64_t done = 0, pass = 0; done < count; pass++) {
        int64_t height = count - done > TILE && count >= 2 * TILE ? 2 : 1;
        int64_t first = std::min(done, std::max<int64_t>(0, count - height * TILE));
        const char *from = (const char *)(rows + first * stride);
        Fetch fetch = fetch_beside(panel, units, passes, pass, height);
        auto between = [&] { fetch.go(); };
        if (height == 2) packed.multiply<2>(from, stride * 2, sums, UNIT_BYTES, between);
        else packed.multiply<1>(from, stride * 2, sums, UNIT_BYTES, between);
        for (int64_t row = done; row < std::min(count, first + height * TILE); row++) {
            const float *of_row = sums + (row - first) * PANEL;
            finish(row, load_vector<Floats>(of_row), load_vector<Floats>(of_row + LANES));
        }
        done = first + height * TILE;
    }
}

#else

inline bool has_tiles() { return false; }
inline void leave_tiles() {}

#endif

// Multiplies rows with one panel, on tiles where there are any: a single row, too, as loading panels into tiles
// reads memory faster than vectors do. See `multiply_panel`.
template <typename Type, typename Finish>
inline void multiply_rows(const typename Type::Element *rows, int64_t stride, int64_t count, const Words *panel,
                          int64_t units, Finish &&finish) {
#if defined(PERCEPT_TILES)
    if constexpr (std::is_same_v<Type, BFloat16>) {
        if (has_tiles()) return multiply_tiles(rows, stride, count, panel, units, finish);
    }
#endif
    multiply_panel<Type>(rows, stride, count, panel, units, true, finish);
}

} // namespace percept
