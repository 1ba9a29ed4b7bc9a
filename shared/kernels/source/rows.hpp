// What is done to each row by itself: norms, rotary embedding, element-wise functions.
//
// Knows rows. Does not know threads. Everything is computed in float32 and
// rounded once, when it is stored.
#pragma once

#include "vector.hpp"

#include <algorithm>

namespace percept {

enum Activation : int32_t { NONE = 0, GELU = 1, GELU_TANH = 2, QUICK_GELU = 3, SILU = 4, SILU_GATE = 5, RELU = 6 };

inline Floats activate(int32_t kind, Floats x) {
    switch (kind) {
    case GELU: return 0.5f * x * (1.0f + error_function(x * 0.70710678118654752f));
    case GELU_TANH: return x * sigmoid(1.5957691216057308f * (x + 0.044715f * x * x * x));
    case QUICK_GELU: return x * sigmoid(1.702f * x);
    case SILU: return x * sigmoid(x);
    case RELU: return maximum(x, Floats{});
    default: return x;
    }
}

// Root-mean-square norm, or layer norm where `centred`; bias may be nullptr.
template <typename Type>
void normalise(const typename Type::Element *row, const typename Type::Element *weight,
               const typename Type::Element *bias, typename Type::Element *output, int64_t width, float epsilon,
               bool centred) {
    int64_t whole = width / LANES * LANES;
    Floats total = {};
    float rest = 0;
    for (int64_t c = 0; c < whole; c += LANES) total += Type::load(row + c);
    for (int64_t c = whole; c < width; c++) rest += Type::widen(row[c]);
    float mean = centred ? (sum(total) + rest) / width : 0.0f;
    Floats squares = {};
    rest = 0;
    for (int64_t c = 0; c < whole; c += LANES) {
        Floats x = Type::load(row + c) - mean;
        squares += x * x;
    }
    for (int64_t c = whole; c < width; c++) {
        float x = Type::widen(row[c]) - mean;
        rest += x * x;
    }
    float scale = 1.0f / std::sqrt((sum(squares) + rest) / width + epsilon);
    for (int64_t c = 0; c < whole; c += LANES) {
        Floats x = (Type::load(row + c) - mean) * scale * Type::load(weight + c);
        Type::store(output + c, bias ? x + Type::load(bias + c) : x);
    }
    for (int64_t c = whole; c < width; c++) {
        float x = (Type::widen(row[c]) - mean) * scale * Type::widen(weight[c]);
        output[c] = Type::narrow(bias ? x + Type::widen(bias[c]) : x);
    }
}

// Rotates a head in place: its first half and its second are the two coordinates of `width / 2` points.
template <typename Type>
void rotate(typename Type::Element *head, const float *cosines, const float *sines, int64_t width) {
    int64_t half = width / 2, whole = half / LANES * LANES;
    for (int64_t c = 0; c < whole; c += LANES) {
        Floats x = Type::load(head + c), y = Type::load(head + half + c);
        Floats cosine = load_vector<Floats>(cosines + c), sine = load_vector<Floats>(sines + c);
        Type::store(head + c, x * cosine - y * sine);
        Type::store(head + half + c, y * cosine + x * sine);
    }
    for (int64_t c = whole; c < half; c++) {
        float x = Type::widen(head[c]), y = Type::widen(head[half + c]);
        head[c] = Type::narrow(x * cosines[c] - y * sines[c]);
        head[half + c] = Type::narrow(y * cosines[c] + x * sines[c]);
    }
}

} // namespace percept
