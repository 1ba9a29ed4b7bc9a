// The library's face: teams of threads, and lists of operations that they run.
//
// A caller describes a model once as an array of `Operation`, whose pointers and
// sizes stay; how many rows there are is read anew at every run. Does not know
// models or files.

#include "attention.hpp"
#include "rows.hpp"
#include "threads.hpp"
#include "tile_layer.hpp"

#include <system_error>

using namespace percept;

namespace {

enum Kind : int32_t { LINEAR = 1, NORM = 2, ANGLES = 3, ROTATE = 4, ATTENTION = 5, PACK = 6, UNPACK = 7, ADD = 8 };
enum DataType : int32_t { FLOAT32 = 1, BFLOAT16 = 2 };

// The same struct in shared/kernels/operation.py. Strides and sizes are in elements.
struct Operation {
    int32_t kind, data_type;
    const int64_t *rows; // how many there are at a run
    const void *input;
    int64_t input_stride;
    void *output;
    int64_t output_stride;
    int64_t columns, depth; // of a matrix; of NORM and ADD, depth is the row's width
    const void *weight;
    const void *bias;     // or nullptr
    const void *residual; // or nullptr: rows of the output's shape that are added
    int64_t residual_stride;
    const int64_t *index; // UNPACK: the matrix row of each output row
    int32_t activation;
    int32_t wide;    // LINEAR: the output is float32 whatever the data type; NORM: centred
    float epsilon;   // NORM, ROTATE; of ANGLES the factor on cosines and sines
    int32_t heads, key_heads, width; // ROTATE
    const float *cosines, *sines;    // ROTATE: (rows, width / 2)
    void *keys, *values;             // ROTATE: caches to write to, or nullptr
    const int64_t *slots;            // ROTATE: where each row's key and value go
    const int64_t *positions;        // ANGLES: (axes, rows)
    int64_t position_stride;
    const float *frequencies; // ANGLES: (width / 2)
    const int32_t *axes;      // ANGLES: which axis each frequency takes
    const Attention *attention;
    const int64_t *sequences; // ATTENTION: how many there are at a run
    const void *query_norm, *key_norm; // ROTATE: (width), or nullptr where heads are rotated as they are
};

// Items at a time: enough that the counter is no bottleneck, few enough that threads end together.
int64_t share(int64_t items, int threads) { return std::max<int64_t>(1, items / (threads * 8)); }

template <typename Task>
void for_items(Team &team, int64_t items, int64_t at_a_time, Task &&task) {
    for (int64_t first; (first = team.take(at_a_time)) < items;) {
        for (int64_t item = first; item < std::min(items, first + at_a_time); item++) task(item);
    }
}

// Panels of a packed matrix; where gates and ups share a panel, sixteen columns of each.
int64_t panels_of(const Operation &o) {
    if (o.activation == SILU_GATE) return (o.columns / 2 + LANES - 1) / LANES;
    return (o.columns + PANEL - 1) / PANEL;
}

template <typename Type>
class Linear {
    typedef typename Type::Element Element;

  public:
    Linear(const Operation &o, int64_t rows) : o_(o), rows_(rows), units_(units_of<Type>(o.depth)) {
        panels_ = panels_of(o);
    }

    void run(Team &team) const {
#if defined(PERCEPT_TILES)
        if constexpr (std::is_same_v<Type, BFloat16>) {
            if (rows_ >= TileLayer::FEWEST_ROWS && has_tiles()) return run_on_tiles(team);
        }
#endif
        // Few panels and many rows: the rows are shared out, too.
        int64_t parts = std::clamp<int64_t>(4 * team.size() / panels_, 1, std::max<int64_t>(1, (rows_ + 47) / 48));
        int64_t items = panels_ * parts;
        for_items(team, items, rows_ <= 8 * TILE_ROWS ? share(items, team.size()) : 1, [&](int64_t item) {
            int64_t panel = item % panels_, part = item / panels_;
            compute(panel, rows_ * part / parts, rows_ * (part + 1) / parts);
        });
    }

  private:
#if defined(PERCEPT_TILES)
    void run_on_tiles(Team &team) const {
        TileLayer layer((const Element *)o_.input, o_.input_stride, rows_, (const Words *)o_.weight, units_, panels_,
                        team.size());
        bool streams = fills_lines() && rows_ * o_.output_stride * 2 > FAR_BYTES;
        for_items(team, layer.items(), 1, [&](int64_t item) {
            layer.compute(item, [&](int64_t panel, int64_t row, Floats low, Floats high) {
                int64_t column = panel * (o_.activation == SILU_GATE ? LANES : PANEL);
                fetch(row + 2 * TILE, column, streams);
                if (streams && column + PANEL <= o_.columns) stream(row, column, low, high);
                else finish(panel, row, low, high);
            });
        });
        if (streams) end_streams();
    }

    static constexpr int64_t FAR_BYTES = 4 << 20; // of an output that no cache of a core keeps for who reads it next

    // A panel's columns of a row are a whole line of the output.
    bool fills_lines() const {
        bool lies_even = (int64_t)o_.output % 64 == 0 && o_.output_stride * 2 % 64 == 0;
        return o_.activation != SILU_GATE && !o_.wide && lies_even;
    }

    void stream(int64_t row, int64_t column, Floats low, Floats high) const {
        low = finished(row, column, low);
        high = finished(row, column + LANES, high);
        stream_line((Element *)o_.output + row * o_.output_stride + column, Type::pair(low, high));
    }

    // Some rows ahead: a line of far memory takes as long as several rows.
    void fetch(int64_t row, int64_t column, bool streams) const {
        int64_t size = o_.wide ? 4 : sizeof(Element);
        if (!streams) __builtin_prefetch((const char *)o_.output + (row * o_.output_stride + column) * size, 1, 3);
        if (o_.residual) __builtin_prefetch((const Element *)o_.residual + row * o_.residual_stride + column, 0, 3);
    }
#endif

    void compute(int64_t panel, int64_t first, int64_t end) const {
        const Words *packed = (const Words *)o_.weight + panel * units_ * 2;
        const Element *rows = (const Element *)o_.input + first * o_.input_stride;
        multiply_rows<Type>(rows, o_.input_stride, end - first, packed, units_,
                            [&](int64_t row, Floats low, Floats high) { finish(panel, first + row, low, high); });
    }

    void finish(int64_t panel, int64_t row, Floats low, Floats high) const {
        if (o_.activation == SILU_GATE) { // gate and up stand side by side in a panel, their biases one after the other
            int64_t half = o_.columns / 2, column = panel * LANES;
            low = with_bias(low, column, half);
            high = with_bias(high, half + column, o_.columns);
            store(row, column, half, activate<Type>(SILU, low) * high);
            return;
        }
        int64_t column = panel * PANEL;
        store(row, column, o_.columns, activate<Type>(o_.activation, with_bias(low, column, o_.columns)));
        column += LANES;
        store(row, column, o_.columns, activate<Type>(o_.activation, with_bias(high, column, o_.columns)));
    }

    // Of a vector whose columns are all there.
    Floats finished(int64_t row, int64_t column, Floats sums) const {
        Floats value = activate<Type>(o_.activation, with_bias(sums, column, o_.columns));
        if (o_.residual) value += Type::load((const Element *)o_.residual + row * o_.residual_stride + column);
        return value;
    }

    Floats with_bias(Floats sums, int64_t column, int64_t end) const {
        if (!o_.bias || column >= end) return sums;
        const Element *bias = (const Element *)o_.bias + column;
        if (column + LANES <= end) return sums + Type::load(bias);
        for (int64_t lane = 0; column + lane < end; lane++) sums[lane] += Type::widen(bias[lane]);
        return sums;
    }

    void store(int64_t row, int64_t column, int64_t width, Floats value) const {
        if (column + LANES > width) return store_some(row, column, width, value);
        if (o_.residual) value += Type::load((const Element *)o_.residual + row * o_.residual_stride + column);
        int64_t at = row * o_.output_stride + column;
        if (o_.wide) store_vector((float *)o_.output + at, value);
        else Type::store((Element *)o_.output + at, value);
    }

    // The last columns of a matrix whose width is no multiple of the lanes.
    void store_some(int64_t row, int64_t column, int64_t width, Floats value) const {
        for (int64_t lane = 0; column + lane < width; lane++) {
            int64_t from = row * o_.residual_stride + column + lane, to = row * o_.output_stride + column + lane;
            float sum = value[lane];
            if (o_.residual) sum += Type::widen(((const Element *)o_.residual)[from]);
            if (o_.wide) ((float *)o_.output)[to] = sum;
            else ((Element *)o_.output)[to] = Type::narrow(sum);
        }
    }

    const Operation &o_;
    int64_t rows_, units_, panels_;
};

template <typename Type>
void norm(Team &team, const Operation &o, int64_t rows) {
    typedef typename Type::Element Element;
    for_items(team, rows, share(rows, team.size()), [&](int64_t row) {
        const Element *from = (const Element *)o.input + row * o.input_stride;
        normalise<Type>(from, (const Element *)o.weight, (const Element *)o.bias, (Element *)o.output + row * o.output_stride,
                        o.depth, o.epsilon, o.wide);
    });
}

// Cosines and sines of each row's angles; `output` holds the cosines, `keys` the sines.
void angles(Team &team, const Operation &o, int64_t rows) {
    int64_t half = o.width / 2;
    for_items(team, rows, share(rows, team.size()), [&](int64_t row) {
        for (int64_t c = 0; c < half; c++) {
            float angle = (float)o.positions[o.axes[c] * o.position_stride + row] * o.frequencies[c];
            ((float *)o.output)[row * half + c] = std::cos(angle) * o.epsilon;
            ((float *)o.keys)[row * half + c] = std::sin(angle) * o.epsilon;
        }
    });
}

// Rows hold query heads, key heads, value heads. Queries and keys are rotated in
// place, normed before where there are weights for it; with caches, keys and values
// then go to the row's slot.
template <typename Type>
void rotate_rows(Team &team, const Operation &o, int64_t rows) {
    typedef typename Type::Element Element;
    int64_t key_width = (int64_t)o.key_heads * o.width;
    for_items(team, rows, share(rows, team.size()), [&](int64_t row) {
        Element *query = (Element *)o.output + row * o.output_stride;
        const float *cosines = o.cosines + row * (o.width / 2), *sines = o.sines + row * (o.width / 2);
        for (int64_t head = 0; head < o.heads + o.key_heads; head++) {
            Element *at = query + head * o.width;
            const Element *weight = (const Element *)(head < o.heads ? o.query_norm : o.key_norm);
            if (weight) normalise<Type>(at, weight, nullptr, at, o.width, o.epsilon, false);
            rotate<Type>(at, cosines, sines, o.width);
        }
        if (!o.keys) return;
        const Element *key = query + (int64_t)o.heads * o.width;
        int64_t at = o.slots[row] * key_width;
        std::memcpy((Element *)o.keys + at, key, key_width * sizeof(Element));
        std::memcpy((Element *)o.values + at, key + key_width, key_width * sizeof(Element));
    });
}

// Adds the input's rows to the output's.
template <typename Type>
void add_rows(Team &team, const Operation &o, int64_t rows) {
    typedef typename Type::Element Element;
    for_items(team, rows, share(rows, team.size()), [&](int64_t row) {
        add<Type>((const Element *)o.input + row * o.input_stride, (Element *)o.output + row * o.output_stride, o.depth);
    });
}

constexpr int64_t TURNS = 4; // of attention for each thread, where there is so much

template <typename Type>
void attend(Team &team, const Operation &o) {
    Attention attention = *o.attention;
    attention.sequences = *o.sequences;
    Tiling tiling(attention, TURNS * team.size());
    TileCursor cursor(attention, tiling);
    // Heads lie side by side: as many go together as leave each thread a few turns.
    int64_t together = std::max<int64_t>(1, tiling.tiles() * attention.key_heads / (TURNS * team.size()));
    int64_t groups = (attention.key_heads + together - 1) / together;
    for (int64_t item; cursor.seek((item = team.take(1)) / groups);) {
        int64_t first = item % groups * together, end = std::min(attention.key_heads, first + together);
        std::vector<TileAttention<Type>> heads;
        for (int64_t head = first; head < end; head++) heads.emplace_back(attention, cursor, head);
        if (heads[0].has_few_rows()) TileAttention<Type>::run_together(heads);
        else for (TileAttention<Type> &head : heads) head.run();
    }
}

// A row-major (columns, depth) matrix to panels. With SILU_GATE, `weight` holds
// the gate and `residual` the up matrix, (columns / 2, depth) each.
template <typename Type>
void pack(Team &team, const Operation &o) {
    typedef typename Type::Element Element;
    prefer_large_pages(o.output, panels_of(o) * units_of<Type>(o.depth) * 2 * (int64_t)sizeof(Words));
    for_items(team, panels_of(o), 1, [&](int64_t panel) {
        const Element *rows[PANEL];
        for (int column = 0; column < PANEL; column++) {
            const Element *matrix = (const Element *)o.weight;
            int64_t from = panel * PANEL + column, end = o.columns;
            if (o.activation == SILU_GATE) {
                if (column >= LANES) matrix = (const Element *)o.residual;
                from = panel * LANES + column % LANES;
                end = o.columns / 2;
            }
            rows[column] = from < end ? matrix + from * o.depth : nullptr;
        }
        pack_rows<Type>(rows, o.depth, (Words *)o.output + panel * units_of<Type>(o.depth) * 2);
    });
}

// Rows of a packed matrix as they were: output row i is matrix row index[i].
template <typename Type>
void unpack(Team &team, const Operation &o, int64_t rows) {
    typedef typename Type::Element Element;
    int64_t units = units_of<Type>(o.depth);
    for_items(team, rows, share(rows, team.size()), [&](int64_t row) {
        const uint32_t *words = (const uint32_t *)o.weight + o.index[row] / PANEL * units * PANEL;
        char *output = (char *)((Element *)o.output + row * o.output_stride);
        for (int64_t unit = 0; unit < units; unit++) {
            std::memcpy(output + unit * 4, words + unit * PANEL + o.index[row] % PANEL, 4);
        }
    });
}

template <typename Type>
void run_operation(Team &team, const Operation &o) {
    int64_t rows = o.rows ? *o.rows : 0;
    switch (o.kind) {
    case LINEAR: return Linear<Type>(o, rows).run(team);
    case NORM: return norm<Type>(team, o, rows);
    case ANGLES: return angles(team, o, rows);
    case ROTATE: return rotate_rows<Type>(team, o, rows);
    case ATTENTION: return attend<Type>(team, o);
    case PACK: return pack<Type>(team, o);
    case UNPACK: return unpack<Type>(team, o, rows);
    case ADD: return add_rows<Type>(team, o, rows);
    }
}

} // namespace

extern "C" {

__attribute__((visibility("default"))) int64_t percept_operation_size() { return sizeof(Operation); }

__attribute__((visibility("default"))) int64_t percept_attention_size() { return sizeof(Attention); }

// nullptr where the system gives no more threads.
__attribute__((visibility("default"))) void *percept_make_team(int threads) {
    try {
        return new Team(threads);
    } catch (const std::system_error &) {
        return nullptr;
    }
}

// The team takes its part of `cores` from now on: `own` of `count` places is its own.
__attribute__((visibility("default"))) void percept_share_cores(void *team, void *places, int count, int own,
                                                                int cores) {
    ((Team *)team)->share(CoreShare((CorePlace *)places, count, own, cores));
}

// Threads that a job would get now.
__attribute__((visibility("default"))) int percept_next_part(void *team) { return ((Team *)team)->next_part(); }

__attribute__((visibility("default"))) void percept_drop_team(void *team) { delete (Team *)team; }

__attribute__((visibility("default"))) void percept_run(void *team, const Operation *operations, int64_t count) {
    Team &threads = *(Team *)team;
    threads.run(count, [&](int64_t index) {
        const Operation &operation = operations[index];
        if (operation.data_type == BFLOAT16) run_operation<BFloat16>(threads, operation);
        else run_operation<Float32>(threads, operation);
        leave_tiles();
    });
}
}
