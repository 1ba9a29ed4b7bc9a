// Sixteen floats at a time, and the element types of tensors.
//
// Knows numbers. Does not know tensors, threads or models. Written with the
// compiler's own vector types, so that it runs wherever a compiler does; what a
// processor can do better is chosen by the macros that -march=native sets.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace percept {

constexpr int LANES = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));

// One register of this processor. Compilers keep larger vectors in memory, which inner loops cannot afford.
#if defined(__AVX512F__)
constexpr int REGISTER_BYTES = 64;
#elif defined(__AVX__)
constexpr int REGISTER_BYTES = 32;
#else
constexpr int REGISTER_BYTES = 16;
#endif
typedef float FloatRegister __attribute__((vector_size(REGISTER_BYTES)));
typedef uint32_t WordRegister __attribute__((vector_size(REGISTER_BYTES)));

inline Floats all(float value) { return value - Floats{}; }

template <typename Vector>
inline Vector load_vector(const void *from) {
    Vector value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <typename Vector>
inline void store_vector(void *to, Vector value) { std::memcpy(to, &value, sizeof value); }

// Memory that is read from a cache much later, or never: whole lines go past the caches, which are not made to fetch
// them first. Another thread sees them once `end_streams` has been called.
#if defined(__AVX512F__)
inline void stream_line(void *to, Words line) { _mm512_stream_si512((__m512i *)to, (__m512i)line); }
inline void end_streams() { _mm_sfence(); }
#else
inline void stream_line(void *to, Words line) { store_vector(to, line); }
inline void end_streams() {}
#endif

inline Floats select(Ints condition, Floats yes, Floats no) {
    return (Floats)((condition & (Ints)yes) | (~condition & (Ints)no));
}

inline float sum(Floats value) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)value);
#else
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += value[lane];
    return total;
#endif
}

inline float largest(Floats value) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)value);
#else
    float most = value[0];
    for (int lane = 1; lane < LANES; lane++) most = value[lane] > most ? value[lane] : most;
    return most;
#endif
}

inline Floats maximum(Floats a, Floats b) {
#if defined(__AVX512F__)
    return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return select(a > b, a, b);
#endif
}

inline Floats minimum(Floats a, Floats b) {
#if defined(__AVX512F__)
    return (Floats)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return select(a < b, a, b);
#endif
}

// 1.5 * 2^23: adding it leaves the nearest whole number in the low bits, and nothing else in the lowest nine.
constexpr float ROUND = 12582912.0f;

// e to the power of x, relative error about 1e-7: x = n ln 2 + r, a polynomial of r, n into the exponent.
inline Floats exponential(Floats x) {
    x = minimum(maximum(x, all(-87.0f)), all(88.0f));
    Floats shifted = x * 1.44269504088896341f + ROUND;
    Floats whole = shifted - ROUND;
    Floats r = x - whole * 0.693359375f;
    r = r + whole * 2.12194440e-4f;
    Floats p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (Floats)((Ints)p + ((Ints)shifted << 23));
}

// 2 to the power of x for x up to 0, relative error below 2e-7, and 2^-126 for whatever is less: x = n + r, a
// polynomial of r that was fitted to [-1/2, 1/2] for the least greatest error, n into the exponent.
inline Floats power_of_two(Floats x) {
    x = maximum(x, all(-126.0f));
    Floats shifted = x + ROUND;
    Floats r = x - (shifted - ROUND);
    Floats p = all(1.326472707e-3f);
    p = p * r + 9.671512649e-3f;
    p = p * r + 5.550733744e-2f;
    p = p * r + 2.402224209e-1f;
    p = p * r + 6.931469776e-1f;
    p = p * r + 1.0f;
    return (Floats)((Ints)p + ((Ints)shifted << 23));
}

// As `power_of_two`, relative error below 8e-5, a fiftieth of what rounding to bfloat16 adds.
inline Floats rough_power_of_two(Floats x) {
#if defined(__AVX512DQ__)
    Floats r = (Floats)_mm512_reduce_ps((__m512)x, 0x09); // what lies above the whole number below
    Floats p = all(7.80245200e-2f);
    p = p * r + 2.26067155e-1f;
    p = p * r + 6.95833541e-1f;
    p = p * r + 9.99925218e-1f;
    return (Floats)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
    return power_of_two(x);
#endif
}

// Error function, absolute error below 2e-7 (Abramowitz and Stegun, formula 7.1.26).
inline Floats error_function(Floats x) {
    Floats size = (Floats)((Ints)x & 0x7fffffff);
    Floats t = 1.0f / (1.0f + 0.3275911f * size);
    Floats p = all(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    Floats y = 1.0f - p * t * exponential(-size * size);
    return (Floats)((Ints)y | ((Ints)x & (int32_t)0x80000000));
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

// Element types. A `Unit` is what one multiply-add step takes of a row: 32 bits.
struct Float32 {
    typedef float Element;
    static constexpr int PER_UNIT = 1;

    static Floats load(const Element *from) { return load_vector<Floats>(from); }
    static void store(Element *to, Floats value) { store_vector(to, value); }
    static Floats power_of_two(Floats x) { return percept::power_of_two(x); }
    static float widen(Element value) { return value; }
    static Element narrow(float value) { return value; }

    // sum += weight * one unit of a row, for as many columns as a register has
    static FloatRegister multiply_add(FloatRegister sum, WordRegister weight, uint32_t unit) {
        float value;
        std::memcpy(&value, &unit, sizeof value);
        return sum + (FloatRegister)weight * value;
    }
};

struct BFloat16 {
    typedef uint16_t Element;
    static constexpr int PER_UNIT = 2;

    static Floats power_of_two(Floats x) { return rough_power_of_two(x); }

    static float widen(Element value) {
        uint32_t bits = (uint32_t)value << 16;
        float wide;
        std::memcpy(&wide, &bits, sizeof wide);
        return wide;
    }

    static Element narrow(float value) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        if ((bits & 0x7fffffff) > 0x7f800000) return (Element)(bits >> 16 | 0x40);
        return (Element)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }

    static Floats load(const Element *from) {
#if defined(__AVX512F__)
        return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16);
#else
        Floats wide;
        for (int lane = 0; lane < LANES; lane++) wide[lane] = widen(from[lane]);
        return wide;
#endif
    }

    static void store(Element *to, Floats value) {
#if defined(__AVX512BF16__)
        _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh((__m512)value));
#else
        for (int lane = 0; lane < LANES; lane++) to[lane] = narrow(value[lane]);
#endif
    }

    // Two vectors side by side, which make a line.
    static Words pair(Floats low, Floats high) {
#if defined(__AVX512BF16__)
        return (Words)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
#else
        Words line;
        store((Element *)&line, low);
        store((Element *)&line + LANES, high);
        return line;
#endif
    }

    // Two products per column: a unit holds two neighbouring elements of a row, a word the same of a column.
    static FloatRegister multiply_add(FloatRegister sum, WordRegister weight, uint32_t unit) {
#if defined(__AVX512BF16__)
        return (FloatRegister)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weight, (__m512bh)_mm512_set1_epi32((int)unit));
#else
        WordRegister both = unit - WordRegister{};
        sum += (FloatRegister)(weight << 16) * (FloatRegister)(both << 16);
        return sum + (FloatRegister)(weight & 0xffff0000u) * (FloatRegister)(both & 0xffff0000u);
#endif
    }
};

} // namespace percept
