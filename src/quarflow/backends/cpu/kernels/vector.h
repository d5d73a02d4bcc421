// Vectors of as many numbers as a register of this machine holds, and tiles made of them.
//
// A tile is a matrix of units x points, stored with a fixed distance of TILE numbers between
// its rows: what one thread works on at a time, small enough for its cache.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX__) || defined(__FMA__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif

constexpr int TILE = 64;  // points, a multiple of two vectors

constexpr int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

template <class T>
struct Types;
template <>
struct Types<float> {
    typedef float V __attribute__((vector_size(BYTES)));
    typedef int32_t I __attribute__((vector_size(BYTES)));
    typedef uint32_t U __attribute__((vector_size(BYTES)));
};
template <>
struct Types<double> {
    typedef double V __attribute__((vector_size(BYTES)));
    typedef int64_t I __attribute__((vector_size(BYTES)));
    typedef uint64_t U __attribute__((vector_size(BYTES)));
};

template <class T>
using Vec = typename Types<T>::V;
template <class T>
using Int = typename Types<T>::I;
template <class T>
using Bits = typename Types<T>::U;  // those of NaN may overflow
template <class T>
constexpr int LANES = BYTES / sizeof(T);
template <class T>
constexpr int STRIDE = 2 * LANES<T>;  // points are computed in multiples of it

template <class T>
inline Vec<T> load(const T* p) {
    Vec<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class T>
inline void store(T* p, Vec<T> v) {
    std::memcpy(p, &v, sizeof v);
}

template <class T>
inline Vec<T> splat(T value) {
    return value - Vec<T>{};
}

// a b + c, rounded once where the machine can do that fast (FUSED), whatever the compiler would
// have made of the product and the sum.
#if defined(__AVX512F__)
constexpr bool FUSED = true;
inline Vec<float> fused(Vec<float> a, Vec<float> b, Vec<float> c) {
    return Vec<float>(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
}
inline Vec<double> fused(Vec<double> a, Vec<double> b, Vec<double> c) {
    return Vec<double>(_mm512_fmadd_pd(__m512d(a), __m512d(b), __m512d(c)));
}
#elif defined(__AVX__) && defined(__FMA__)
constexpr bool FUSED = true;
inline Vec<float> fused(Vec<float> a, Vec<float> b, Vec<float> c) {
    return Vec<float>(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
}
inline Vec<double> fused(Vec<double> a, Vec<double> b, Vec<double> c) {
    return Vec<double>(_mm256_fmadd_pd(__m256d(a), __m256d(b), __m256d(c)));
}
#elif defined(__aarch64__)
constexpr bool FUSED = true;
template <class V>
inline V fused(V a, V b, V c) {
    for (unsigned j = 0; j < sizeof(V) / sizeof(a[0]); j++) c[j] = std::fma(a[j], b[j], c[j]);
    return c;
}
#else
constexpr bool FUSED = false;
template <class V>
inline V fused(V a, V b, V c) {
    return a * b + c;
}
#endif

#if defined(__clang__)
constexpr bool SHUFFLES = false;
#else
constexpr bool SHUFFLES = true;

// One round of a transposition: blocks of B x B change places.
template <class T, int B>
inline void exchange(Vec<T>* r) {
    constexpr int L = LANES<T>;
    Int<T> low{}, high{};
    for (int j = 0; j < L; j++) {
        low[j] = j & B ? L + j - B : j;
        high[j] = j & B ? L + j : j + B;
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; i++)
        if (!(i & B)) {
            Vec<T> a = r[i], b = r[i + B];
            r[i] = __builtin_shuffle(a, b, low);
            r[i + B] = __builtin_shuffle(a, b, high);
        }
}

template <class T, int B = LANES<T> / 2>
inline void transpose_square(Vec<T>* r) {
    exchange<T, B>(r);
    if constexpr (B > 1) transpose_square<T, B / 2>(r);
}
#endif

// to[j][i] = from[i][j], for i < rows and j < columns.
template <class T>
inline void transpose(const T* from, int64_t ld_from, T* to, int64_t ld_to, int rows, int columns) {
    constexpr int L = LANES<T>;
    int full_rows = SHUFFLES ? rows / L * L : 0, full_columns = SHUFFLES ? columns / L * L : 0;
#if !defined(__clang__)
    for (int i = 0; i < full_rows; i += L)
        for (int j = 0; j < full_columns; j += L) {
            Vec<T> r[L];
#pragma GCC unroll 16
            for (int a = 0; a < L; a++) r[a] = load(from + (i + a) * ld_from + j);
            transpose_square<T>(r);
#pragma GCC unroll 16
            for (int a = 0; a < L; a++) store(to + (j + a) * ld_to + i, r[a]);
        }
#endif
    for (int i = 0; i < rows; i++)
        for (int j = i < full_rows ? full_columns : 0; j < columns; j++)
            to[j * ld_to + i] = from[i * ld_from + j];
}

// Points (rows of numbers) to a tile; columns beyond the points become 0.
template <class T>
inline void points_to_tile(const T* from, int64_t ld, T* tile, int points, int columns, int units) {
    transpose(from, ld, tile, TILE, points, units);
    for (int i = 0; i < units; i++)
        for (int n = points; n < columns; n++) tile[i * TILE + n] = 0;
}

// The sum of each of LANES vectors.
template <class T>
inline Vec<T> sums(Vec<T>* r) {
#if defined(__clang__)
    Vec<T> total{};
    for (int i = 0; i < LANES<T>; i++)
        for (int j = 0; j < LANES<T>; j++) total[i] += r[i][j];
    return total;
#else
    transpose_square<T>(r);
    for (int step = 1; step < LANES<T>; step *= 2)
        for (int i = 0; i < LANES<T>; i += 2 * step) r[i] += r[i + step];
    return r[0];
#endif
}
