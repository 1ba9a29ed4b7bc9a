// One row with many keys, and many weighted values to one row, read where they lie.
//
// Knows rows by their addresses. Does not know sequences, caches or softmax. What bounds it is
// memory: a decoding step reads every key and value once, and does little with each.
#pragma once

#include "vector.hpp"

namespace percept {

constexpr int64_t FEW_ROWS = 4; // up to so many rows, nothing is packed
constexpr int64_t ROWS_AHEAD = 16; // more would push each other out: so far apart, they share few sets of a cache

// Rows in the order in which they are read. Memory is asked for some ahead: they lie a row of all heads apart, too far
// for what a processor fetches by itself.
template <typename Element>
struct Rows {
    const Element *const *row;
    int64_t count;

    const Element *operator[](int64_t index) const { return row[index]; }

    void ask_ahead(int64_t index, int64_t width) const {
        if (index + ROWS_AHEAD >= count) return;
        for (int64_t byte = 0; byte < width * (int64_t)sizeof(Element); byte += 64) {
            __builtin_prefetch((const char *)row[index + ROWS_AHEAD] + byte);
        }
    }
};

// Registers of a row of PARTS * LANES elements.
template <typename Type, int PARTS>
struct Row {
    Floats part[PARTS];

    explicit Row(const typename Type::Element *from) {
        for (int p = 0; p < PARTS; p++) part[p] = Type::load(from + p * LANES);
    }
};

template <typename Type, int PARTS>
void dot_products_of(const typename Type::Element *query, Rows<typename Type::Element> keys, float *products) {
    Row<Type, PARTS> wanted(query);
    for (int64_t key = 0; key < keys.count; key++) {
        keys.ask_ahead(key, PARTS * LANES);
        Row<Type, PARTS> found(keys[key]);
        Floats total = wanted.part[0] * found.part[0];
        for (int p = 1; p < PARTS; p++) total += wanted.part[p] * found.part[p];
        products[key] = sum(total);
    }
}

// Products of `query` with each key, (width) each.
template <typename Type>
void dot_products(const typename Type::Element *query, Rows<typename Type::Element> keys, int64_t width,
                  float *products) {
    if (width == 64) return dot_products_of<Type, 4>(query, keys, products);
    if (width == 128) return dot_products_of<Type, 8>(query, keys, products);
    int64_t whole = width / LANES * LANES;
    for (int64_t key = 0; key < keys.count; key++) {
        keys.ask_ahead(key, width);
        Floats total = {};
        float rest = 0;
        for (int64_t c = 0; c < whole; c += LANES) total += Type::load(query + c) * Type::load(keys[key] + c);
        for (int64_t c = whole; c < width; c++) rest += Type::widen(query[c]) * Type::widen(keys[key][c]);
        products[key] = sum(total) + rest;
    }
}

template <typename Type, int PARTS>
void add_weighted_of(const typename Type::Element *weights, Rows<typename Type::Element> values, float *sums) {
    Floats total[PARTS];
    for (int p = 0; p < PARTS; p++) total[p] = load_vector<Floats>(sums + p * LANES);
    for (int64_t key = 0; key < values.count; key++) {
        values.ask_ahead(key, PARTS * LANES);
        float weight = Type::widen(weights[key]);
        Row<Type, PARTS> found(values[key]);
        for (int p = 0; p < PARTS; p++) total[p] += weight * found.part[p];
    }
    for (int p = 0; p < PARTS; p++) store_vector(sums + p * LANES, total[p]);
}

// Adds each value, (width), times its weight.
template <typename Type>
void add_weighted(const typename Type::Element *weights, Rows<typename Type::Element> values, int64_t width,
                  float *sums) {
    if (width == 64) return add_weighted_of<Type, 4>(weights, values, sums);
    if (width == 128) return add_weighted_of<Type, 8>(weights, values, sums);
    int64_t whole = width / LANES * LANES;
    for (int64_t key = 0; key < values.count; key++) {
        values.ask_ahead(key, width);
        float weight = Type::widen(weights[key]);
        for (int64_t c = 0; c < whole; c += LANES) {
            store_vector(sums + c, load_vector<Floats>(sums + c) + weight * Type::load(values[key] + c));
        }
        for (int64_t c = whole; c < width; c++) sums[c] += weight * Type::widen(values[key][c]);
    }
}

} // namespace percept
