// Many rows times a whole packed matrix on a matrix unit: what is kept in which cache.
//
// Tiles are loaded at the speed of the innermost cache or hardly at all. So a
// piece of a panel, at most 512 deep, stays there while all rows of a part
// pass; those lie in the second-level cache, copied into the order in which
// tiles read them. Rows that are too deep for it are taken in such pieces, too,
// and the sums of several panels wait there meanwhile. Sums that wait are exact:
// how a matrix is cut does not change what a row comes to. Finished rows are
// handed on between the multiplications of the next ones, which leave the
// processor's other units idle. Does not know what becomes of sums.
#pragma once

#include "memory.hpp"
#include "tiles.hpp"

#include <cstdlib>
#include <new>

namespace percept {

#if defined(PERCEPT_TILES)

// What a thread has in its second-level cache, beside what passes through it.
class TileMemory {
  public:
    static constexpr int64_t BYTES = 1 << 20;

    TileMemory() : memory_((char *)std::aligned_alloc(LARGE_PAGE, LARGE_PAGE)) {
        if (!memory_) throw std::bad_alloc();
        prefer_large_pages(memory_, LARGE_PAGE);
    }
    TileMemory(const TileMemory &) = delete;
    ~TileMemory() { std::free(memory_); }

    char *begin() { return memory_; }

  private:
    char *memory_;
};

// Rows that lie apart, whose next lines are fetched from far memory step by step.
class FetchRows {
  public:
    FetchRows() = default;
    FetchRows(const char *from, int64_t stride, int64_t rows, int64_t bytes, int64_t steps)
        : row_(from), stride_(stride), rows_(rows), bytes_(bytes), lines_((rows * bytes / 64 + steps - 1) / steps) {}

    void go() {
        for (int64_t line = 0; line < lines_ && rows_ > 0; line++) {
            __builtin_prefetch(row_ + at_, 0, 2);
            if ((at_ += 64) < bytes_) continue;
            at_ = 0;
            row_ += stride_;
            rows_--;
        }
    }

  private:
    const char *row_ = nullptr;
    int64_t stride_ = 0, rows_ = 0, bytes_ = 0, lines_ = 0, at_ = 0;
};

// A linear layer as one thread computes it, item by item: a part of the rows and a group of panels.
class TileLayer {
  public:
    static constexpr int64_t FEWEST_ROWS = 4 * TILE + 1; // for fewer, copying rows costs more than it saves

    TileLayer(const uint16_t *rows, int64_t stride, int64_t count, const Words *weights, int64_t units, int64_t panels,
              int64_t threads)
        : rows_((const char *)rows), weights_((const char *)weights), stride_(stride * 2), count_(count), units_(units),
          panels_(panels), steps_((units + TILE - 1) / TILE), pieces_((steps_ + MOST_STEPS - 1) / MOST_STEPS) {
        whole_ = steps_ * 64 <= 4096;
        int64_t waiting = whole_ ? 1 : std::min<int64_t>(panels, 32), row_bytes = 64 * (whole_ ? steps_ : MOST_STEPS);
        most_rows_ = TileMemory::BYTES / (row_bytes + waiting * UNIT_BYTES) / (2 * TILE) * (2 * TILE);
        sums_at_ = most_rows_ * row_bytes;
        parts_ = (count + most_rows_ - 1) / most_rows_;
        per_group_ = std::clamp<int64_t>(panels * parts_ / (threads * 4), 1, whole_ ? panels : waiting);
        groups_ = (panels + per_group_ - 1) / per_group_;
    }

    int64_t items() const { return parts_ * groups_; }

    // `finish(panel, row, low, high)` gets the sums of each row of the item.
    template <typename Finish>
    void compute(int64_t item, Finish &&finish) {
        static thread_local TileMemory memory;
        take_tiles(TILE);
        part_ = item / groups_;
        first_row_ = begin_of_part(part_);
        part_rows_ = std::min(count_, begin_of_part(part_ + 1)) - first_row_;
        tiles_ = (part_rows_ + TILE - 1) / TILE;
        first_panel_ = item % groups_ * per_group_;
        end_panel_ = std::min(panels_, first_panel_ + per_group_);
        packed_ = memory.begin();
        sums_ = (float *)(packed_ + sums_at_);
        if (whole_) with_whole_rows(finish);
        else with_pieces_of_rows(finish);
    }

  private:
    static constexpr int64_t MOST_STEPS = 16; // of a piece, which makes 32 KiB of a panel
    static constexpr int64_t TILE_BYTES = 64 * TILE;

    // Rows whose sums are complete, and wait to be handed on.
    struct Finished {
        int64_t panel = 0, row = 0, end = 0;
        const float *sums = nullptr;
    };

    template <typename Finish>
    void with_whole_rows(Finish &&finish) {
        if (packed_part_ != part_) pack(0, steps_);
        packed_part_ = part_;
        for (int64_t panel = first_panel_; panel < end_panel_; panel++) {
            for (int64_t piece = 0; piece < pieces_; piece++) {
                const char *next = piece + 1 < pieces_ ? weights_of(panel, piece + 1) : weights_of(panel + 1, 0);
                multiply(panel, piece, packed_ + begin_of(piece) * 2 * TILE_BYTES, steps_ * TILE_BYTES, sums_, next, finish);
            }
        }
        hand_on(finished_.end - finished_.row, finish);
    }

    template <typename Finish>
    void with_pieces_of_rows(Finish &&finish) {
        for (int64_t piece = 0; piece < pieces_; piece++) {
            pack(begin_of(piece), begin_of(piece + 1));
            fetch_rows_ = rows_after(piece);
            for (int64_t panel = first_panel_; panel < end_panel_; panel++) {
                float *sums = sums_ + (panel - first_panel_) * tiles_ * TILE * PANEL;
                const char *next = weights_of(panel + 1, piece);
                if (panel + 1 == end_panel_) {
                    next = piece + 1 < pieces_ ? weights_of(first_panel_, piece + 1) : weights_of(end_panel_, 0);
                }
                multiply(panel, piece, packed_, steps_of(piece) * TILE_BYTES, sums, next, finish);
            }
        }
        hand_on_rows(finish);
    }

    // A few rows at a time, panel by panel: who finishes them reads and writes far memory from beginning to end.
    template <typename Finish>
    void hand_on_rows(Finish &&finish) {
        constexpr int64_t AT_A_TIME = 8;
        for (int64_t first = 0; first < part_rows_; first += AT_A_TIME) {
            for (int64_t panel = first_panel_; panel < end_panel_; panel++) {
                const float *sums = sums_ + ((panel - first_panel_) * tiles_ * TILE + first) * PANEL;
                for (int64_t row = first; row < std::min(part_rows_, first + AT_A_TIME); row++, sums += PANEL) {
                    finish(panel, first_row_ + row, load_vector<Floats>(sums), load_vector<Floats>(sums + LANES));
                }
            }
        }
    }

    // In whole pairs of tiles: a pair takes as long with a row as with all.
    int64_t begin_of_part(int64_t part) const {
        int64_t pairs = (count_ + 2 * TILE - 1) / (2 * TILE);
        return part * pairs / parts_ * 2 * TILE;
    }

    int64_t begin_of(int64_t piece) const { return steps_ * piece / pieces_; }
    int64_t steps_of(int64_t piece) const { return begin_of(piece + 1) - begin_of(piece); }

    const char *weights_of(int64_t panel, int64_t piece) const {
        return weights_ + panel * units_ * UNIT_BYTES + begin_of(piece) * STEP_BYTES;
    }

    // Step by step of 32 rows, two tiles side by side, then the next 32; what is missing of the last tile is zeros.
    void pack(int64_t begin, int64_t end) {
        int64_t steps = end - begin, whole = std::min(end, units_ / TILE) - begin;
        for (int64_t row = 0; row < tiles_ * TILE; row++) {
            char *to = packed_ + row / (2 * TILE) * steps * 2 * TILE_BYTES + row % (2 * TILE) * 64;
            if (row >= part_rows_) {
                for (int64_t step = 0; step < steps; step++) std::memset(to + step * 2 * TILE_BYTES, 0, 64);
                continue;
            }
            const char *from = rows_ + (first_row_ + row) * stride_ + begin * 64;
            for (int64_t step = 0; step < whole; step++) std::memcpy(to + step * 2 * TILE_BYTES, from + step * 64, 64);
            if (whole < steps) copy_words(from + whole * 64, units_ % TILE, to + whole * 2 * TILE_BYTES);
        }
    }

    // The rows' next piece, or the first again for the next group of panels.
    FetchRows rows_after(int64_t piece) const {
        int64_t next = piece + 1 < pieces_ ? piece + 1 : 0;
        int64_t steps = (end_panel_ - first_panel_) * ((tiles_ + 1) / 2) * steps_of(piece);
        return {rows_ + first_row_ * stride_ + begin_of(next) * 64, stride_, part_rows_, steps_of(next) * 64, steps};
    }

    // Multiplies one piece of a panel with all rows of the part; from one pair of tiles to the next are 2 x `tile_bytes`.
    template <typename Finish>
    void multiply(int64_t panel, int64_t piece, const char *rows, int64_t tile_bytes, float *sums, const char *next,
                  Finish &&finish) {
        int64_t steps = steps_of(piece), passes = (tiles_ + 1) / 2;
        Piece weights{weights_of(panel, piece), steps, piece > 0};
        alignas(64) char filled_up[STEP_BYTES];
        if (piece + 1 == pieces_ && units_ % TILE) weights.last = fill_up(weights.last, filled_up);
        Fetch fetch(next, next + steps * STEP_BYTES, (STEP_BYTES / 64 + passes - 1) / passes);
        for (int64_t tile = 0; tile < tiles_; tile += 2, rows += 2 * tile_bytes, sums += 2 * TILE * PANEL) {
            int64_t waiting = (finished_.end - finished_.row + steps - 1) / steps;
            auto between = [&] {
                fetch.go();
                fetch_rows_.go();
                hand_on(waiting, finish);
            };
            if (tile + 1 < tiles_) multiply_tiles<2>(weights, rows, rows + TILE_BYTES, sums, between);
            else multiply_tiles<1>(weights, rows, rows, sums, between);
            if (piece + 1 < pieces_ || !whole_) continue;
            int64_t first = first_row_ + tile * TILE;
            finished_ = {panel, first, std::min(first + 2 * TILE, first_row_ + part_rows_), sums};
        }
    }

    // What stays in the innermost cache.
    struct Piece {
        const char *weights;
        int64_t steps;
        bool adds;
        const char *last = weights + (steps - 1) * STEP_BYTES;
    };

    const char *fill_up(const char *weights, char *to) const {
        std::memset(to, 0, STEP_BYTES);
        std::memcpy(to, weights, units_ % TILE * UNIT_BYTES);
        return to;
    }

    template <int HEIGHT, typename Between>
    static void multiply_tiles(const Piece &piece, const char *rows, const char *more_rows, float *sums,
                               Between &&between) {
        if (piece.adds) load_sums<HEIGHT>(sums, UNIT_BYTES);
        else clear_sums<HEIGHT>();
        const char *weights = piece.weights;
        for (int64_t step = 1; step < piece.steps; step++) {
            add<HEIGHT>(rows, more_rows, weights);
            between();
            weights += STEP_BYTES, rows += 2 * TILE_BYTES, more_rows += 2 * TILE_BYTES;
        }
        add<HEIGHT>(rows, more_rows, piece.last);
        between();
        store_sums<HEIGHT>(sums, UNIT_BYTES);
    }

    template <int HEIGHT>
    static void add(const char *rows, const char *more_rows, const char *weights) {
        tiles::load<6>(weights, UNIT_BYTES);
        tiles::load_passing<4>(rows, 64);
        tiles::multiply<0, 4, 6>();
        tiles::load<7>(weights + 64, UNIT_BYTES);
        tiles::multiply<1, 4, 7>();
        if constexpr (HEIGHT == 2) {
            tiles::load_passing<5>(more_rows, 64);
            tiles::multiply<2, 5, 6>();
            tiles::multiply<3, 5, 7>();
        }
    }

    template <typename Finish>
    void hand_on(int64_t most, Finish &&finish) {
        for (int64_t end = std::min(finished_.end, finished_.row + most); finished_.row < end; finished_.row++) {
            finish(finished_.panel, finished_.row, load_vector<Floats>(finished_.sums),
                   load_vector<Floats>(finished_.sums + LANES));
            finished_.sums += PANEL;
        }
    }

    const char *rows_, *weights_;
    int64_t stride_, count_, units_, panels_, steps_, pieces_, most_rows_, sums_at_, parts_, per_group_, groups_;
    bool whole_; // all of a part's rows are kept
    int64_t part_ = 0, first_row_ = 0, part_rows_ = 0, tiles_ = 0, first_panel_ = 0, end_panel_ = 0; // of an item
    int64_t packed_part_ = -1;
    char *packed_ = nullptr;
    float *sums_ = nullptr;
    FetchRows fetch_rows_;
    Finished finished_;
};

#endif

} // namespace percept
