// A row with a key, and a weighted value to a row, read where they lie.
//
// Knows vectors. Does not know sequences, caches or softmax. What bounds them is memory: a decoding
// step reads every key and value once, and does little with each.
#pragma once

#include "vector.hpp"

namespace percept {

constexpr int64_t FEW_ROWS = 4; // up to so many rows, nothing is packed

template <typename Type, int PARTS>
inline float product_of(const typename Type::Element *query, const typename Type::Element *key) {
    Floats total = Type::load(query) * Type::load(key);
    for (int p = 1; p < PARTS; p++) total += Type::load(query + p * LANES) * Type::load(key + p * LANES);
    return sum(total);
}

// Of two rows of `width` elements.
template <typename Type>
inline float product(const typename Type::Element *query, const typename Type::Element *key, int64_t width) {
    if (width == 64) return product_of<Type, 4>(query, key);
    if (width == 128) return product_of<Type, 8>(query, key);
    int64_t whole = width / LANES * LANES;
    Floats total = {};
    float rest = 0;
    for (int64_t c = 0; c < whole; c += LANES) total += Type::load(query + c) * Type::load(key + c);
    for (int64_t c = whole; c < width; c++) rest += Type::widen(query[c]) * Type::widen(key[c]);
    return sum(total) + rest;
}

template <typename Type, int PARTS>
inline void add_weighted_of(float weight, const typename Type::Element *value, float *sums) {
    for (int p = 0; p < PARTS; p++) {
        store_vector(sums + p * LANES, load_vector<Floats>(sums + p * LANES) + weight * Type::load(value + p * LANES));
    }
}

// Adds `width` elements, times a weight.
template <typename Type>
inline void add_weighted(float weight, const typename Type::Element *value, int64_t width, float *sums) {
    if (width == 64) return add_weighted_of<Type, 4>(weight, value, sums);
    if (width == 128) return add_weighted_of<Type, 8>(weight, value, sums);
    int64_t whole = width / LANES * LANES;
    for (int64_t c = 0; c < whole; c += LANES) {
        store_vector(sums + c, load_vector<Floats>(sums + c) + weight * Type::load(value + c));
    }
    for (int64_t c = whole; c < width; c++) sums[c] += weight * Type::widen(value[c]);
}

} // namespace percept
