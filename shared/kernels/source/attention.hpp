// Attention of rows over their own sequences, keys and values read where they lie.
//
// Knows sequences as runs of rows, and keys by block tables (a paged cache) or
// as rows of the same buffer. Does not know who wrote them. The softmax is
// taken block by block of keys with a running maximum (Milakov and Gimelshein,
// "Online normalizer calculation for softmax", 2018), so that scores are never
// stored beyond one block.
#pragma once

#include "few_rows.hpp"
#include "tiles.hpp"

#include <algorithm>
#include <vector>

namespace percept {

constexpr int KEYS = 4 * PANEL;  // keys of one block of scores
constexpr int64_t QUERIES = 192; // rows that are multiplied with it at a time, of all heads that share it
constexpr float LOG2_E = 1.44269504088896341f;

struct Attention {
    const void *query;    // row 0, head 0
    const void *key;      // slot 0 or row 0, head 0
    const void *value;    // likewise
    void *output;         // row 0, head 0
    const int32_t *starts;  // first row of each sequence, and the end of the last
    const int32_t *lengths; // keys of each sequence; nullptr: its own rows
    const int64_t *tables;  // block ids, one row per sequence; nullptr: keys are rows
    int64_t table_stride;
    int64_t block_size;
    int64_t sequences;
    int64_t heads, key_heads, width; // width of a head
    int64_t query_stride, key_stride, output_stride; // elements from row to row
    int64_t window;                  // keys that a row sees, itself included; 0: all
    int64_t causal;
    float scale;

    int64_t group() const { return heads / key_heads; }
    int64_t tile_rows() const { return std::max<int64_t>(1, QUERIES / group()); }
    int64_t rows_of(int64_t sequence) const { return starts[sequence + 1] - starts[sequence]; }
    int64_t tiles_of(int64_t sequence) const { return (rows_of(sequence) + tile_rows() - 1) / tile_rows(); }
};

// Finds the sequence and tile of rising item numbers.
class TileCursor {
  public:
    explicit TileCursor(const Attention &attention) : attention_(attention) {}

    bool seek(int64_t tile) {
        while (sequence_ < attention_.sequences && tile >= base_ + attention_.tiles_of(sequence_)) {
            base_ += attention_.tiles_of(sequence_++);
        }
        tile_ = tile - base_;
        return sequence_ < attention_.sequences;
    }

    int64_t sequence() const { return sequence_; }
    int64_t first() const { return tile_ * attention_.tile_rows(); }

  private:
    const Attention &attention_;
    int64_t sequence_ = 0, base_ = 0, tile_ = 0;
};

// One tile: up to `tile_rows` rows of one sequence and all heads that share a key head.
template <typename Type>
class TileAttention {
    typedef typename Type::Element Element;

  public:
    TileAttention(const Attention &attention, int64_t sequence, int64_t head, int64_t first)
        : a_(attention), sequence_(sequence), head_(head), first_(first) {
        count_ = std::min(a_.tile_rows(), a_.rows_of(sequence) - first);
        rows_ = count_ * a_.group();
        memory_rows_ = (rows_ + TILE - 1) / TILE * TILE; // those beyond hold whatever it was, and are never read
        length_ = a_.lengths ? a_.lengths[sequence] : a_.rows_of(sequence);
        before_ = length_ - a_.rows_of(sequence) + first; // keys before the tile's first row
        panels_ = (a_.width + PANEL - 1) / PANEL;
    }

    void run() {
        start(0);
        for (int64_t key = begin(); key < end(); key += KEYS) {
            int64_t count = std::min<int64_t>(KEYS, end() - key);
            pack_keys(key, count);
            pack_values(key, count);
            score();
            for (int64_t row = 0; row < rows_; row++) weigh(row, key, count);
            gather_values(count);
        }
        write();
    }

    bool has_few_rows() const { return rows_ <= FEW_ROWS; }

    // Heads side by side of one tile with few rows. Packing pays where many rows are multiplied with what is packed: a
    // few read keys and values where they lie, all heads of one key and then the next, as only memory that is read from
    // beginning to end comes at full speed.
    static void run_together(std::vector<TileAttention> &heads) {
        for (size_t index = 0; index < heads.size(); index++) heads[index].start(index);
        int64_t end = heads[0].end();
        for (int64_t key = heads[0].begin(); key < end; key += KEYS) {
            step_together(heads, key, std::min<int64_t>(KEYS, end - key));
        }
        for (TileAttention &head : heads) head.write();
    }

  private:
    int64_t end() const { return a_.causal ? before_ + count_ : length_; }
    int64_t begin() const { return a_.window ? std::max<int64_t>(0, before_ + 1 - a_.window) : 0; }

    // Each of the tiles that one thread works on at a time has memory of its own.
    void start(size_t place) {
        take_memory(place);
        gather_queries();
    }

    void take_memory(size_t place) {
        static thread_local std::vector<std::vector<Floats>> memories;
        if (memories.size() <= place) memories.resize(place + 1);
        std::vector<Floats> &memory = memories[place];
        int64_t element = sizeof(Element), lines = 0;
        auto reserve = [&](int64_t bytes) {
            int64_t at = lines;
            lines += (bytes + 63) / 64;
            return at;
        };
        int64_t depth = units_of<Type>(a_.width), pairs = units_of<Type>(KEYS);
        int64_t queries = reserve(memory_rows_ * a_.width * element), weights = reserve(memory_rows_ * KEYS * element);
        int64_t scores = reserve(memory_rows_ * KEYS * 4), sums = reserve(memory_rows_ * panels_ * PANEL * 4);
        int64_t keys = reserve(KEYS / PANEL * depth * 128), values = reserve(panels_ * pairs * 128);
        int64_t most = reserve(rows_ * 4), total = reserve(rows_ * LANES * 4);
        if ((int64_t)memory.size() < lines) memory.resize(lines);
        queries_ = (Element *)&memory[queries];
        weights_ = (Element *)&memory[weights];
        scores_ = (float *)&memory[scores];
        sums_ = (float *)&memory[sums];
        keys_ = (Words *)&memory[keys];
        values_ = (Words *)&memory[values];
        most_ = (float *)&memory[most];
        total_ = (float *)&memory[total];
        std::fill(sums_, sums_ + rows_ * panels_ * PANEL, 0.0f);
        std::fill(most_, most_ + rows_, -INFINITY);
        std::fill(total_, total_ + rows_ * LANES, 0.0f);
    }

    const Element *query(int64_t row) const {
        int64_t at = a_.starts[sequence_] + first_ + row;
        return (const Element *)a_.query + at * a_.query_stride + head_ * a_.group() * a_.width;
    }

    void gather_queries() {
        int64_t bytes = a_.group() * a_.width * sizeof(Element);
        for (int64_t row = 0; row < count_; row++) {
            std::memcpy(queries_ + row * a_.group() * a_.width, query(row), bytes);
        }
    }

    const Element *cached(const void *base, int64_t key) const {
        int64_t slot = a_.starts[sequence_] + key;
        if (a_.tables) {
            const int64_t *table = a_.tables + sequence_ * a_.table_stride;
            slot = table[key / a_.block_size] * a_.block_size + key % a_.block_size;
        }
        return (const Element *)base + slot * a_.key_stride + head_ * a_.width;
    }

    static void step_together(std::vector<TileAttention> &heads, int64_t first, int64_t count) {
        const Element *found[KEYS];
        int64_t width = heads[0].a_.width, rows = heads[0].rows_, stride = heads[0].panels_ * PANEL;
        heads[0].find(heads[0].a_.key, first, count, found);
        for (int64_t key = 0; key < count; key++) {
            const Element *at = found[key];
            for (TileAttention &head : heads) {
                for (int64_t row = 0; row < rows; row++) {
                    head.scores_[row * KEYS + key] = product<Type>(head.queries_ + row * width, at, width);
                }
                at += width;
            }
        }
        for (TileAttention &head : heads) {
            for (int64_t row = 0; row < rows; row++) head.weigh(row, first, count);
        }
        heads[0].find(heads[0].a_.value, first, count, found);
        for (int64_t key = 0; key < count; key++) {
            const Element *at = found[key];
            for (TileAttention &head : heads) {
                for (int64_t row = 0; row < rows; row++) {
                    float weight = Type::widen(head.weights_[row * KEYS + key]);
                    add_weighted<Type>(weight, at, width, head.sums_ + row * stride);
                }
                at += width;
            }
        }
    }

    // Where the keys or values of a block are.
    void find(const void *base, int64_t first, int64_t count, const Element **found) const {
        for (int64_t key = 0; key < count;) {
            const Element *at = cached(base, first + key);
            int64_t run = a_.tables ? a_.block_size - (first + key) % a_.block_size : count;
            for (int64_t end = std::min(count, key + run); key < end; key++, at += a_.key_stride) found[key] = at;
        }
    }

    void pack_keys(int64_t first, int64_t count) {
        const Element *rows[PANEL];
        for (int64_t begin = 0; begin < KEYS; begin += PANEL) {
            for (int64_t row = 0; row < PANEL; row++) {
                rows[row] = begin + row < count ? cached(a_.key, first + begin + row) : nullptr;
            }
            pack_rows<Type>(rows, a_.width, keys_ + begin / PANEL * units_of<Type>(a_.width) * 2);
        }
    }

    // Values are multiplied along keys: a word holds what PER_UNIT neighbouring keys have in one column.
    void pack_values(int64_t first, int64_t count) {
        static const Element zeros[4096] = {};
        int64_t pairs = units_of<Type>(count);
        for (int64_t pair = 0; pair < pairs; pair++) {
            int64_t key = pair * Type::PER_UNIT;
            const Element *low = cached(a_.value, first + key), *high = zeros;
            if (Type::PER_UNIT == 2 && key + 1 < count) high = cached(a_.value, first + key + 1);
            for (int64_t panel = 0; panel < panels_; panel++) {
                uint32_t *words = (uint32_t *)(values_ + (panel * units_of<Type>(KEYS) + pair) * 2);
                int64_t begin = panel * PANEL, width = std::min<int64_t>(PANEL, a_.width - begin);
                if constexpr (Type::PER_UNIT == 1) {
                    std::memcpy(words, low + begin, width * 4);
                } else {
                    int64_t c = 0;
#if defined(__AVX512F__)
                    for (; c + LANES <= width; c += LANES) {
                        __m512i first = widened(low + begin + c), second = widened(high + begin + c);
                        _mm512_storeu_si512(words + c, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
                    }
#endif
                    for (; c < width; c++) {
                        words[c] = (uint32_t)low[begin + c] | (uint32_t)high[begin + c] << 16;
                    }
                }
                for (int64_t c = width; c < PANEL; c++) words[c] = 0;
            }
        }
    }

#if defined(__AVX512F__)
    static __m512i widened(const Element *from) {
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    }
#endif

    // Products of all rows with one panel, to `sums` or added to them; from one row to the next are `stride` floats.
    template <bool ADDS>
    void multiply(const Element *rows, int64_t depth, const Words *panel, int64_t units, float *sums, int64_t stride) {
#if defined(PERCEPT_TILES)
        if constexpr (std::is_same_v<Type, BFloat16>) {
            if (has_tiles()) return multiply_tiles_into<ADDS>(rows, depth, memory_rows_, panel, units, sums, stride);
        }
#endif
        multiply_panel<Type>(rows, depth, rows_, panel, units, false, [&](int64_t row, Floats low, Floats high) {
            float *at = sums + row * stride;
            store_vector(at, ADDS ? load_vector<Floats>(at) + low : low);
            store_vector(at + LANES, ADDS ? load_vector<Floats>(at + LANES) + high : high);
        });
    }

    void score() {
        int64_t units = units_of<Type>(a_.width);
        for (int panel = 0; panel < KEYS / PANEL; panel++) {
            multiply<false>(queries_, a_.width, keys_ + panel * units * 2, units, scores_ + panel * PANEL, KEYS);
        }
    }

    // Scores of one row, not yet scaled, to weights, relative to the greatest score so far.
    void weigh(int64_t row, int64_t first, int64_t count) {
        int64_t position = before_ + row / a_.group(); // the row's own key
        int64_t end = a_.causal ? std::min(count, position + 1 - first) : count;
        int64_t begin = a_.window ? std::max<int64_t>(0, position + 1 - a_.window - first) : 0;
        const float *scores = scores_ + row * KEYS;
        Element *weights = weights_ + row * KEYS;
        Floats masked[KEYS / LANES], most = all(-INFINITY);
        for (int part = 0; part < KEYS / LANES; part++) {
            masked[part] = load_vector<Floats>(scores + part * LANES);
            if (begin > part * LANES || end < (part + 1) * LANES) {
                Ints key = lanes() + part * LANES;
                masked[part] = select((key >= (int32_t)begin) & (key < (int32_t)end), masked[part], all(-INFINITY));
            }
            most = maximum(most, masked[part]);
        }
        float greatest = std::max(most_[row], largest(most));
        if (greatest == -INFINITY) { // nothing to see yet
            for (int part = 0; part < KEYS / LANES; part++) Type::store(weights + part * LANES, Floats{});
            return;
        }
        float scale = a_.scale * LOG2_E;
        Floats total = {};
        bool whole = begin <= 0 && end >= KEYS;
        for (int part = 0; part < KEYS / LANES; part++) {
            Floats weight = power_of_two((masked[part] - greatest) * scale);
            if (!whole) weight = select(masked[part] > all(-INFINITY), weight, Floats{});
            total += weight;
            Type::store(weights + part * LANES, weight);
        }
        if (greatest > most_[row]) { // what was summed so far was relative to a smaller one
            if (most_[row] > -INFINITY) fade(row, power_of_two(all((most_[row] - greatest) * scale))[0]);
            most_[row] = greatest;
        }
        store_vector(total_ + row * LANES, load_vector<Floats>(total_ + row * LANES) + total);
    }

    static Ints lanes() {
        Ints value;
        for (int lane = 0; lane < LANES; lane++) value[lane] = lane;
        return value;
    }

    void fade(int64_t row, float factor) {
        store_vector(total_ + row * LANES, load_vector<Floats>(total_ + row * LANES) * factor);
        float *sums = sums_ + row * panels_ * PANEL;
        for (int64_t at = 0; at < panels_ * PANEL; at += LANES) {
            store_vector(sums + at, load_vector<Floats>(sums + at) * factor);
        }
    }

    void gather_values(int64_t count) {
        for (int64_t panel = 0; panel < panels_; panel++) {
            const Words *values = values_ + panel * units_of<Type>(KEYS) * 2;
            multiply<true>(weights_, KEYS, values, units_of<Type>(count), sums_ + panel * PANEL, panels_ * PANEL);
        }
    }

    void write() {
        for (int64_t row = 0; row < rows_; row++) {
            int64_t at = a_.starts[sequence_] + first_ + row / a_.group();
            int64_t head = head_ * a_.group() + row % a_.group();
            Element *output = (Element *)a_.output + at * a_.output_stride + head * a_.width;
            const float *sums = sums_ + row * panels_ * PANEL;
            float total = sum(load_vector<Floats>(total_ + row * LANES)), scale = total > 0 ? 1.0f / total : 0.0f;
            int64_t whole = a_.width / LANES * LANES;
            for (int64_t c = 0; c < whole; c += LANES) Type::store(output + c, load_vector<Floats>(sums + c) * scale);
            for (int64_t c = whole; c < a_.width; c++) output[c] = Type::narrow(sums[c] * scale);
        }
    }

    const Attention &a_;
    int64_t sequence_, head_, first_, count_, rows_, memory_rows_, length_, before_, panels_;
    Element *queries_, *weights_;
    float *scores_, *sums_, *most_, *total_;
    Words *keys_, *values_;
};

} // namespace percept
