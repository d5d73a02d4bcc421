// Elementary functions of vectors, with the derivatives that activations need.
//
// Polynomials and reductions are those of Cephes (float) and fdlibm (double); the errors are
// a few units in the last place.
#pragma once

#include <cmath>
#include <limits>

#include "vector.h"

template <class T>
struct Constants;

template <>
struct Constants<float> {
    static constexpr float round = 12582912.0f;  // 1.5 * 2^23
    static constexpr float half_pi[] = {1.57079637050628662109375f, -4.37113882867379e-8f,
                                        -1.7151245100059e-15f};
    static constexpr float sine[] = {-1.6666654611e-1f, 8.3321608736e-3f, -1.9515295891e-4f};
    static constexpr float cosine[] = {4.166664568298827e-2f, -1.388731625493765e-3f,
                                       2.443315711809948e-5f};
    static constexpr float ln2[] = {0.693359375f, -2.12194440e-4f};
    static constexpr float exponential[] = {5.0000001201e-1f, 1.6666665459e-1f, 4.1665795894e-2f,
                                            8.3334519073e-3f, 1.3981999507e-3f, 1.9875691500e-4f};
    static constexpr float logarithm[] = {0.66666662693f, 0.40000972152f, 0.28498786688f,
                                          0.24279078841f};
    static constexpr float lowest = -87.0f, highest = 88.0f;
    static constexpr int mantissa = 23, bias = 127;
    static constexpr int32_t one = 0x3f800000, root_half = 0x3f3504f3, fraction = 0x007fffff;
};

template <>
struct Constants<double> {
    static constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr double half_pi[] = {1.5707963267948966, 6.123233995736766e-17,
                                         -1.4973849048591833e-33};
    static constexpr double sine[] = {-1.66666666666666324348e-01, 8.33333333332248946124e-03,
                                      -1.98412698298579493134e-04, 2.75573137070700676789e-06,
                                      -2.50507602534068634195e-08, 1.58969099521155010221e-10};
    static constexpr double cosine[] = {4.16666666666666019037e-02, -1.38888888888741095749e-03,
                                        2.48015872894767294178e-05, -2.75573143513906633035e-07,
                                        2.08757232129817482790e-09, -1.13596475577881948265e-11};
    static constexpr double ln2[] = {6.93145751953125e-1, 1.42860682030941723212e-6};
    static constexpr double exponential[] = {1.0 / 2,        1.0 / 6,         1.0 / 24,
                                             1.0 / 120,      1.0 / 720,       1.0 / 5040,
                                             1.0 / 40320,    1.0 / 362880,    1.0 / 3628800,
                                             1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
    static constexpr double logarithm[] = {
        6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01,
        2.222219843214978396e-01, 1.818357216161805012e-01, 1.531383769920937332e-01,
        1.479819860511658591e-01};
    static constexpr double lowest = -708.0, highest = 709.0;
    static constexpr int mantissa = 52, bias = 1023;
    static constexpr int64_t one = 0x3ff0000000000000, root_half = 0x3fe6a09e667f3bcd,
                             fraction = 0x000fffffffffffff;
};

// c[0] + c[1] x + c[2] x^2 + ...
template <class T, int N>
inline Vec<T> polynomial(Vec<T> x, const T (&c)[N]) {
    Vec<T> y = splat<T>(c[N - 1]);
    for (int i = N - 2; i >= 0; i--) y = fused(y, x, splat<T>(c[i]));
    return y;
}

template <class T>
inline Vec<T> rounded(Vec<T> x) {
    return (x + Constants<T>::round) - Constants<T>::round;
}

// Up to here arguments are reduced exactly enough, if products and sums are fused.
constexpr double REDUCIBLE = FUSED ? 1e5 : 0;

template <class T>
inline void sine_cosine(Vec<T> x, Vec<T>& s, Vec<T>& c) {
    using K = Constants<T>;
    Vec<T> k = rounded<T>(x * T(0.63661977236758134308));
    Vec<T> r = x;
    for (T part : K::half_pi) r = fused(-k, splat<T>(part), r);
    Int<T> quarter = __builtin_convertvector(k, Int<T>);
    Vec<T> z = r * r;
    Vec<T> sine = r + r * z * polynomial<T>(z, K::sine);
    Vec<T> cosine = (1 - z / 2) + z * z * polynomial<T>(z, K::cosine);
    auto odd = (quarter & 1) != 0;
    Vec<T> a = odd ? cosine : sine, b = odd ? sine : cosine;
    s = (quarter & 2) != 0 ? -a : a;
    c = ((quarter + 1) & 2) != 0 ? -b : b;
}

template <class T>
inline Vec<T> exp_minus_one(Vec<T> x) {
    using K = Constants<T>;
    // NaN compares false, and so stays.
    x = x < K::lowest ? splat<T>(K::lowest) : x;
    x = x > K::highest ? splat<T>(K::highest) : x;
    Vec<T> k = rounded<T>(x * T(1.44269504088896340736));
    Vec<T> r = (x - k * K::ln2[0]) - k * K::ln2[1];
    Vec<T> p = r + r * r * polynomial<T>(r, K::exponential);
    Bits<T> bits = (Bits<T>(__builtin_convertvector(k, Int<T>)) + K::bias) << K::mantissa;
    Vec<T> power;
    std::memcpy(&power, &bits, sizeof power);
    return power * p + (power - 1);
}

// Of positive, normal numbers; NaN and infinity stay what they are.
template <class T>
inline Vec<T> logarithm(Vec<T> x) {
    using K = Constants<T>;
    Bits<T> bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits += K::one - K::root_half;
    Vec<T> k = __builtin_convertvector((Int<T>(bits) >> K::mantissa) - K::bias, Vec<T>);
    bits = (bits & K::fraction) + K::root_half;
    Vec<T> m;
    std::memcpy(&m, &bits, sizeof m);
    Vec<T> f = m - 1, s = f / (2 + f), z = s * s, half = f * f / 2;
    Vec<T> tail = s * (half + z * polynomial<T>(z, K::logarithm));
    Vec<T> y = k * K::ln2[0] - ((half - (tail + k * K::ln2[1])) - f);
    y = x <= std::numeric_limits<T>::max() ? y : x;
    return x == 0 ? splat<T>(-std::numeric_limits<T>::infinity()) : y;
}

enum Activation { ELU, SIN, LIPSWISH, TANH };

// Value, slope and curvature.
template <class T, int A>
inline void activate(Vec<T> x, Vec<T>& v, Vec<T>& s, Vec<T>& c) {
    if constexpr (A == SIN) {
        sine_cosine<T>(x, v, s);
        c = -v;
    } else if constexpr (A == ELU) {
        Vec<T> e = exp_minus_one<T>(x > 0 ? splat<T>(0) : x);
        v = x > 0 ? x : e;
        s = e + 1;
        c = v < 0 ? s : splat<T>(0);
    } else if constexpr (A == TANH) {
        Vec<T> y = x > T(20) ? splat<T>(20) : x;
        Vec<T> e = exp_minus_one<T>(2 * y);
        v = e / (e + 2);
        s = 1 - v * v;
        c = -2 * v * s;
    } else {
        // Further out g stays what it is at the ends of exp_minus_one; times what grows on, there
        // it would make slopes above 1, or no number of infinity.
        const T end = Constants<T>::highest;
        Vec<T> near = x < -end ? splat<T>(-end) : x > end ? splat<T>(end) : x;
        Vec<T> g = 1 / (2 + exp_minus_one<T>(-near));
        Vec<T> y = near * g;
        v = (x > end ? x : y) * T(1 / 1.1);
        s = (g + y * (1 - g)) * T(1 / 1.1);
        c = g * (1 - g) * (2 + near * (1 - 2 * g)) * T(1 / 1.1);
    }
}

// Whether sines of all these numbers can be had by reduction; NaN can.
template <class T>
inline bool reducible(const T* x, int rows, int columns) {
    Vec<T> largest{};
    for (int i = 0; i < rows; i++)
        for (int n = 0; n < columns; n += LANES<T>) {
            Vec<T> v = load(x + i * TILE + n);
            v = v < 0 ? -v : v;
            largest = v > largest ? v : largest;
        }
    bool all = true;
    for (int j = 0; j < LANES<T>; j++) all &= largest[j] <= T(REDUCIBLE);
    return all;
}
