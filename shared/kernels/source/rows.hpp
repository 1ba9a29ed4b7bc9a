// What is done to each row by itself: norms, rotary embedding, element-wise functions.
//
// Knows rows. Does not know threads. Everything is computed in float32 and
// rounded once, when it is stored.
#pragma once

#include "vector.hpp"

#include <algorithm>
#include <type_traits>

namespace percept {

enum Activation : int32_t { NONE = 0, GELU = 1, GELU_TANH = 2, QUICK_GELU = 3, SILU = 4, SILU_GATE = 5, RELU = 6 };

// x times the normal distribution's share below it, absolute error below 2e-5: the error function of x / sqrt 2 as x times
// a polynomial of x^2, fitted to [0, 4.5] for the least greatest error of the product, and one beyond. It needs no
// division, and a third of the steps of `error_function`.
inline Floats rough_gelu(Floats x) {
    constexpr float FITTED[] = {-2.915087611e-3f, 9.230753943e-3f,  -1.378121468e-2f, 2.041790059e-2f,  -3.606011036e-2f,
                                5.717692655e-2f,  -8.064874705e-2f, 1.093549697e-1f,  -1.543635079e-1f, 3.138103391e-1f};
    Floats y = minimum(maximum(x, all(-4.5f)), all(4.5f)), half = 0.5f * x;
    Floats u = y * y * (2.0f / (4.5f * 4.5f)) - 1.0f, p = all(FITTED[0]);
#pragma GCC unroll 9
    for (int power = 1; power < 10; power++) p = p * u + FITTED[power];
    return half * (y * p) + half;
}

template <typename Type>
Floats activate(int32_t kind, Floats x) {
    if constexpr (std::is_same_v<Type, BFloat16>) {
        if (kind == GELU) return rough_gelu(x); // rounding the output adds far more
    }
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

// Adds a row to another.
template <typename Type>
void add(const typename Type::Element *row, typename Type::Element *output, int64_t width) {
    int64_t whole = width / LANES * LANES;
    for (int64_t c = 0; c < whole; c += LANES) Type::store(output + c, Type::load(output + c) + Type::load(row + c));
    for (int64_t c = whole; c < width; c++) output[c] = Type::narrow(Type::widen(output[c]) + Type::widen(row[c]));
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
