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
constexpr int STRIDE = 2 * KEYS; // from one row of scores or weights to the next: two blocks of rows lie side by side
constexpr int64_t QUERIES = 192; // rows that are multiplied with it at a time, of all heads that share it
constexpr int64_t MOST_QUERIES = 8 * QUERIES; // for which keys are packed once
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
    int64_t rows_of(int64_t sequence) const { return starts[sequence + 1] - starts[sequence]; }
};

// How sequences are cut into tiles of rows: large ones, as each packs its keys anew, but enough for all threads.
class Tiling {
  public:
    Tiling(const Attention &attention, int64_t least) : attention_(attention) {
        int64_t all = attention.starts[attention.sequences] - attention.starts[0], group = attention.group();
        int64_t shared_out = all * attention.key_heads / least;
        rows_ = std::clamp(shared_out, std::max<int64_t>(1, QUERIES / group), std::max<int64_t>(1, MOST_QUERIES / group));
    }

    int64_t rows() const { return rows_; }
    int64_t tiles_of(int64_t sequence) const { return (attention_.rows_of(sequence) + rows_ - 1) / rows_; }
    int64_t tiles() const {
        int64_t count = 0;
        for (int64_t sequence = 0; sequence < attention_.sequences; sequence++) count += tiles_of(sequence);
        return count;
    }

  private:
    const Attention &attention_;
    int64_t rows_;
};

// Finds the sequence and tile of rising item numbers.
class TileCursor {
  public:
    TileCursor(const Attention &attention, const Tiling &tiling) : attention_(attention), tiling_(tiling) {}

    bool seek(int64_t tile) {
        while (sequence_ < attention_.sequences && tile >= base_ + tiling_.tiles_of(sequence_)) {
            base_ += tiling_.tiles_of(sequence_++);
        }
        tile_ = tile - base_;
        return sequence_ < attention_.sequences;
    }

    int64_t sequence() const { return sequence_; }
    int64_t first() const { return tile_ * tiling_.rows(); }
    int64_t count() const { return std::min(tiling_.rows(), attention_.rows_of(sequence_) - first()); }

  private:
    const Attention &attention_;
    const Tiling &tiling_;
    int64_t sequence_ = 0, base_ = 0, tile_ = 0;
};

// One tile: some rows of one sequence and all heads that share a key head.
template <typename Type>
class TileAttention {
    typedef typename Type::Element Element;

  public:
    TileAttention(const Attention &attention, const TileCursor &cursor, int64_t head)
        : a_(attention), sequence_(cursor.sequence()), head_(head), first_(cursor.first()), count_(cursor.count()) {
        rows_ = count_ * a_.group();
        memory_rows_ = (rows_ + TILE - 1) / TILE * TILE; // those beyond hold whatever it was, and are never read
        length_ = a_.lengths ? a_.lengths[sequence_] : a_.rows_of(sequence_);
        before_ = length_ - a_.rows_of(sequence_) + first_; // keys before the tile's first row
        panels_ = (a_.width + PANEL - 1) / PANEL;
    }

    void run() {
        const Element *keys[KEYS], *values[KEYS];
        start(0);
        for (int64_t key = begin(); key < end(); key += KEYS) {
            int64_t count = std::min<int64_t>(KEYS, end() - key);
            find(a_.key, key, count, keys);
            find(a_.value, key, count, values);
            fetch(keys, count);
            fetch(values, count);
            pack_keys(keys, count);
            pack_values(values, count);
            look(key, count);
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
        int64_t queries = reserve(memory_rows_ * a_.width * element), sums = reserve(memory_rows_ * panels_ * PANEL * 4);
        int64_t at_a_time = std::clamp(memory_rows_, 2 * TILE, QUERIES);
        int64_t scores = reserve(at_a_time * STRIDE * 4), weights = reserve(at_a_time * STRIDE * element);
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
                    head.scores_[row * STRIDE + key] = product<Type>(head.queries_ + row * width, at, width);
                }
                at += width;
            }
        }
        for (TileAttention &head : heads) Weighing(head, {first, count}, 0, rows, head.scores_, head.weights_).finish();
        heads[0].find(heads[0].a_.value, first, count, found);
        for (int64_t key = 0; key < count; key++) {
            const Element *at = found[key];
            for (TileAttention &head : heads) {
                for (int64_t row = 0; row < rows; row++) {
                    float weight = Type::widen(head.weights_[row * STRIDE + key]);
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

    // All of them at once: the processor does not know where the next block of a table lies.
    void fetch(const Element *const *found, int64_t count) const {
        int64_t bytes = a_.width * sizeof(Element);
        for (int64_t key = 0; key < count; key++) {
            for (int64_t byte = 0; byte < bytes; byte += 64) prefetch((const char *)found[key] + byte);
        }
    }

    void pack_keys(const Element *const *found, int64_t count) {
        const Element *rows[PANEL];
        for (int64_t begin = 0; begin < count; begin += PANEL) {
            for (int64_t row = 0; row < PANEL; row++) rows[row] = begin + row < count ? found[begin + row] : nullptr;
            pack_rows<Type>(rows, a_.width, keys_ + begin / PANEL * units_of<Type>(a_.width) * 2);
        }
    }

    // Values are multiplied along keys: a word holds what PER_UNIT neighbouring keys have in one column.
    void pack_values(const Element *const *found, int64_t count) {
        static const Element zeros[4096] = {};
        int64_t pairs = units_of<Type>(count);
        for (int64_t pair = 0; pair < pairs; pair++) {
            int64_t key = pair * Type::PER_UNIT;
            const Element *low = found[key], *high = zeros;
            if (Type::PER_UNIT == 2 && key + 1 < count) high = found[key + 1];
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

    // Rows of the tile that see any of a block of keys: from the first to the end.
    int64_t first_that_sees(int64_t key) const {
        return a_.causal ? std::clamp<int64_t>((key - before_) * a_.group(), 0, rows_) : 0;
    }
    int64_t end_of_those_that_see(int64_t last_key) const {
        return a_.window ? std::clamp<int64_t>((last_key + a_.window - before_) * a_.group(), 0, rows_) : rows_;
    }

    // All rows that see any of a block's keys, block by block of rows.
    void look(int64_t key, int64_t count) {
        int64_t first = first_that_sees(key), end = end_of_those_that_see(key + count - 1);
#if defined(PERCEPT_TILES)
        if constexpr (std::is_same_v<Type, BFloat16>) {
            if (has_tiles()) return look_on_tiles(first / TILE * TILE, end, key, count);
        }
#endif
        for (; first < end; first += QUERIES) {
            int64_t rows = std::min(QUERIES, end - first);
            score(first, rows, count);
            Weighing(*this, {key, count}, first, rows, scores_, weights_).finish();
            gather_values(first, rows, count);
        }
    }

    // What was scored before stays where a block has fewer keys; no row sees it.
    void score(int64_t first, int64_t rows, int64_t count) {
        int64_t units = units_of<Type>(a_.width);
        for (int64_t panel = 0; panel < key_panels(count); panel++) {
            multiply_panel<Type>(queries_ + first * a_.width, a_.width, rows, keys_ + panel * units * 2, units, false,
                                 [&](int64_t row, Floats low, Floats high) {
                                     float *at = scores_ + row * STRIDE + panel * PANEL;
                                     store_vector(at, low);
                                     store_vector(at + LANES, high);
                                 });
        }
    }

    void gather_values(int64_t first, int64_t rows, int64_t count) {
        for (int64_t panel = 0; panel < panels_; panel++) {
            float *sums = sums_ + first * panels_ * PANEL + panel * PANEL;
            multiply_panel<Type>(weights_, STRIDE, rows, values_of(panel), units_of<Type>(count), false,
                                 [&](int64_t row, Floats low, Floats high) {
                                     float *at = sums + row * panels_ * PANEL;
                                     store_vector(at, load_vector<Floats>(at) + low);
                                     store_vector(at + LANES, load_vector<Floats>(at + LANES) + high);
                                 });
        }
    }

    static int64_t key_panels(int64_t count) { return (count + PANEL - 1) / PANEL; }

    const Words *values_of(int64_t panel) const { return values_ + panel * units_of<Type>(KEYS) * 2; }

#if defined(PERCEPT_TILES)
    static constexpr int64_t ROWS = 2 * TILE; // that tiles multiply at a time

    // Multiplications of 32 rows last about as long as the softmax of as many on the processor's other units. So each
    // turn scores 32 rows and gathers values for those two blocks before them, and weighs the ones between: a row
    // after every other multiplication, as the processor looks only some hundred instructions ahead.
    void look_on_tiles(int64_t first, int64_t end, int64_t key, int64_t count) {
        take_tiles(TILE);
        int64_t blocks = (end - first + ROWS - 1) / ROWS;
        end = std::min(rows_, first + blocks * ROWS); // none is gathered for that was not weighed
        int64_t steps = 2 * (key_panels(count) * steps_of(a_.width) + panels_ * steps_of(count));
        for (int64_t turn = 0; turn < blocks + 2; turn++) {
            int64_t weighed = first + (turn - 1) * ROWS, rows = turn >= 1 ? std::clamp<int64_t>(end - weighed, 0, ROWS) : 0;
            Weighing weighing(*this, {key, count}, weighed, rows, scores_of(turn - 1), weights_of(turn - 1));
            auto between = [&] { weighing.go(steps); };
            if (turn < blocks) score_on_tiles(turn, first + turn * ROWS, count, between);
            if (turn >= 2) gather_on_tiles(turn - 2, first + (turn - 2) * ROWS, count, between);
            weighing.finish();
        }
    }

    static int64_t steps_of(int64_t depth) { return (units_of<Type>(depth) + TILE - 1) / TILE; }

    // Of 32 rows; those of the next block are written while these are read.
    float *scores_of(int64_t block) const { return scores_ + (block & 1) * KEYS; }
    Element *weights_of(int64_t block) const { return weights_ + (block & 1) * KEYS; }

    template <typename Between>
    void score_on_tiles(int64_t block, int64_t row, int64_t count, Between &&between) {
        int64_t units = units_of<Type>(a_.width);
        for (int64_t panel = 0; panel < key_panels(count); panel++) {
            TilePanel keys(keys_ + panel * units * 2, units);
            const char *queries = (const char *)(queries_ + row * a_.width);
            float *scores = scores_of(block) + panel * PANEL;
            if (memory_rows_ - row > TILE) keys.multiply<2>(queries, a_.width * 2, scores, STRIDE * 4, between);
            else keys.multiply<1>(queries, a_.width * 2, scores, STRIDE * 4, between);
        }
    }

    template <typename Between>
    void gather_on_tiles(int64_t block, int64_t row, int64_t count, Between &&between) {
        for (int64_t panel = 0; panel < panels_; panel++) {
            TilePanel values(values_of(panel), units_of<Type>(count));
            const char *weights = (const char *)weights_of(block);
            float *sums = sums_ + row * panels_ * PANEL + panel * PANEL;
            int64_t stride = panels_ * PANEL * 4;
            if (memory_rows_ - row > TILE) values.multiply<2, true>(weights, STRIDE * 2, sums, stride, between);
            else values.multiply<1, true>(weights, STRIDE * 2, sums, stride, between);
        }
    }
#endif

    struct KeyBlock {
        int64_t first, count;
    };

    // Which of a block's keys a row sees.
    struct Seen {
        int64_t begin, end;
        bool all() const { return begin <= 0 && end >= KEYS; }
    };

    Seen seen(int64_t row, KeyBlock keys) const {
        int64_t position = before_ + row / a_.group(); // the row's own key
        int64_t end = a_.causal ? std::min(keys.count, position + 1 - keys.first) : keys.count;
        return {a_.window ? std::max<int64_t>(0, position + 1 - a_.window - keys.first) : 0, end};
    }

    // Rows from `first` on, scores to weights, one after the other; in between there may be other work.
    class Weighing {
      public:
        Weighing(TileAttention &tile, KeyBlock keys, int64_t first, int64_t rows, const float *scores, Element *weights)
            : tile_(tile), keys_(keys), first_(first), rows_(rows), scores_(scores), weights_(weights) {
            if (rows_) next_ = greatest(0);
        }

        // One of so many steps.
        void go(int64_t steps) { weigh_to(rows_ * ++step_ / steps); }
        void finish() { weigh_to(rows_); }

      private:
        // The greatest score of a row takes long to find and little work: it is looked for a row ahead.
        void weigh_to(int64_t end) {
            for (; row_ < end; row_++) {
                float most = next_;
                if (row_ + 1 < rows_) next_ = greatest(row_ + 1);
                tile_.weigh(first_ + row_, tile_.seen(first_ + row_, keys_), most, scores_ + row_ * STRIDE, weights_ + row_ * STRIDE);
            }
        }

        float greatest(int64_t row) const {
            return tile_.greatest(first_ + row, tile_.seen(first_ + row, keys_), scores_ + row * STRIDE);
        }

        TileAttention &tile_;
        const KeyBlock keys_;
        const int64_t first_, rows_;
        const float *scores_;
        Element *weights_;
        int64_t step_ = 0, row_ = 0;
        float next_ = -INFINITY;
    };

    template <bool ALL>
    static Floats masked(const float *scores, int part, Seen seen) {
        Floats values = load_vector<Floats>(scores + part * LANES);
        if constexpr (ALL) return values;
        Ints key = lanes() + part * LANES;
        return select((key >= (int32_t)seen.begin) & (key < (int32_t)seen.end), values, all(-INFINITY));
    }

    // The greatest score of a row so far, not yet scaled.
    float greatest(int64_t row, Seen seen, const float *scores) const {
        return std::max(most_[row], seen.all() ? greatest_of<true>(seen, scores) : greatest_of<false>(seen, scores));
    }

    template <bool ALL>
    static float greatest_of(Seen seen, const float *scores) {
        Floats most[2] = {all(-INFINITY), all(-INFINITY)};
#pragma GCC unroll 8
        for (int part = 0; part < KEYS / LANES; part++) most[part % 2] = maximum(most[part % 2], masked<ALL>(scores, part, seen));
        return largest(maximum(most[0], most[1]));
    }

    // Scores of one row to weights, relative to the greatest score so far.
    void weigh(int64_t row, Seen seen, float greatest, const float *scores, Element *weights) {
        if (greatest == -INFINITY) { // nothing to see yet
            for (int part = 0; part < KEYS / LANES; part++) Type::store(weights + part * LANES, Floats{});
            return;
        }
        float scale = a_.scale * LOG2_E;
        if (greatest > most_[row]) { // what was summed so far was relative to a smaller one
            if (most_[row] > -INFINITY) fade(row, power_of_two(all((most_[row] - greatest) * scale))[0]);
            most_[row] = greatest;
        }
        Floats total = seen.all() ? weigh_some<true>(seen, greatest, scale, scores, weights)
                                  : weigh_some<false>(seen, greatest, scale, scores, weights);
        store_vector(total_ + row * LANES, load_vector<Floats>(total_ + row * LANES) + total);
    }

    template <bool ALL>
    static Floats weigh_some(Seen seen, float greatest, float scale, const float *scores, Element *weights) {
        Floats totals[2] = {};
#pragma GCC unroll 8
        for (int part = 0; part < KEYS / LANES; part++) {
            Floats score = masked<ALL>(scores, part, seen), weight = Type::power_of_two(score * scale - greatest * scale);
            if constexpr (!ALL) weight = select(score > all(-INFINITY), weight, Floats{});
            totals[part % 2] += weight;
            Type::store(weights + part * LANES, weight);
        }
        return totals[0] + totals[1];
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
