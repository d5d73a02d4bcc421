// Products with block-triangular matrices that leave the zeros out.
#pragma once

#include "vector.h"

constexpr int PANEL = BYTES == 64 ? 8 : 4;  // rows computed at once: as registers allow

// out[m][n] = bias[m] (or 0, or add[m][n]) + sum of a[m][k] b[k][n] over k from k0 to k1.
template <class T, int M, int N>
inline void panel(const T* a, int64_t am, int64_t ak, const T* b, int64_t bk, int k0, int k1,
                  T* out, int64_t om, const T* bias, const T* add) {
    constexpr int L = LANES<T>;
    Vec<T> sum[M][N];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 2
        for (int n = 0; n < N; n++)
            sum[m][n] = add    ? load(add + m * om + n * L)
                        : bias ? splat<T>(bias[m])
                               : Vec<T>{};
    for (int k = k0; k < k1; k++) {
        Vec<T> row[N];
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) row[n] = load(b + k * bk + n * L);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            Vec<T> weight = splat<T>(a[m * am + k * ak]);
#pragma GCC unroll 2
            for (int n = 0; n < N; n++) sum[m][n] = fused(weight, row[n], sum[m][n]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) store(out + m * om + n * L, sum[m][n]);
}

// A matrix as it is read: element (m, k) is at m * row + k * column.
template <class T>
struct Matrix {
    const T* data;
    int64_t row, column;
};

// The same for any number of rows up to PANEL, and columns in whole vectors; add may be out.
template <class T>
inline void rows_times(int rows, Matrix<T> a, const T* b, int64_t bk, int k0, int k1, T* out,
                       int64_t om, int columns, const T* bias = nullptr,
                       const T* add = nullptr) {
    constexpr int L = LANES<T>;
#define CASE(M)                                                                                  \
    case M: {                                                                                    \
        int n = 0;                                                                               \
        for (; n + 2 * L <= columns; n += 2 * L)                                                 \
            panel<T, M, 2>(a.data, a.row, a.column, b + n, bk, k0, k1, out + n, om, bias,        \
                           add ? add + n : nullptr);                                             \
        if (n < columns)                                                                         \
            panel<T, M, 1>(a.data, a.row, a.column, b + n, bk, k0, k1, out + n, om, bias,        \
                           add ? add + n : nullptr);                                             \
        break;                                                                                   \
    }
    switch (rows) {
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4)
#if defined(__AVX512F__)
        CASE(5)
        CASE(6)
        CASE(7)
        CASE(8)
#endif
    }
#undef CASE
}

// All rows of a small dense product, panel by panel.
template <class T>
inline void small_product(int rows, Matrix<T> a, const T* b, int64_t bk, int inner, T* out,
                          int64_t om, int columns, const T* bias = nullptr,
                          const T* add = nullptr) {
    for (int m = 0; m < rows; m += PANEL) {
        int here = rows - m < PANEL ? rows - m : PANEL;
        rows_times<T>(here, {a.data + m * a.row, a.row, a.column}, b, bk, 0, inner, out + m * om,
                      om, columns, bias ? bias + m : nullptr, add ? add + m * om : nullptr);
    }
}

struct Range {
    int begin, end;
};

// One linear layer: W (out, in) with D x D blocks of k_out x k_in, of which those above the
// diagonal (or below it, reversed) are zero; B are the D blocks on it. A dense one joins all, and
// need not be of D x D blocks: through a convolution's taps other pixels are read besides.
template <class T>
struct Layer {
    const T *W, *B, *b;
    int64_t b_row;  // between the biases of two points; 0 where all have the same
    int out, in, blocks, k_out, k_in;
    bool reverse, dense;

    // Inputs that outputs from r0 to r1 read.
    Range inputs(int r0, int r1) const {
        if (dense) return {0, in};
        if (reverse) return {r0 / k_out * k_in, in};
        return {0, ((r1 - 1) / k_out + 1) * k_in};
    }

    // Outputs that read inputs from c0 to c1.
    Range outputs(int c0, int c1) const {
        if (dense) return {0, out};
        if (reverse) return {0, ((c1 - 1) / k_in + 1) * k_out};
        return {c0 / k_in * k_out, out};
    }

    // z = W h + b, for points from first on. Summed from the variables that come first in the
    // order to those that come last: substitution does so, and then rounding is the same.
    void product(const T* h, T* z, int64_t first, int points, int columns) const {
        bool own = b && b_row;
        if (own) points_to_tile(b + first * b_row, b_row, z, points, columns, out);
        for (int r = 0; r < out; r += PANEL) {
            int rows = out - r < PANEL ? out - r : PANEL;
            Range k = inputs(r, r + rows);
            const T* row = W + int64_t(r) * in;
            int way = reverse ? -1 : 1, from = reverse ? k.end - 1 : k.begin;
            rows_times<T>(rows, {row + from, in, way}, h + from * TILE, way * TILE, 0,
                          k.end - k.begin, z + r * TILE, TILE, columns,
                          b && !own ? b + r : nullptr, own ? z + r * TILE : nullptr);
        }
    }

    // gh = W^T gz
    void transposed(const T* gz, T* gh, int columns) const {
        for (int c = 0; c < in; c += PANEL) {
            int rows = in - c < PANEL ? in - c : PANEL;
            Range k = outputs(c, c + rows);
            rows_times<T>(rows, {W + c, 1, in}, gz, TILE, k.begin, k.end, gh + c * TILE, TILE,
                          columns);
        }
    }

    // gW += gz h^T where W is not zero, with in_padded numbers in a row of gW and of h^T.
    void gradient(const T* gz, const T* h_transposed, T* gW, int columns) const {
        constexpr int L = LANES<T>;
        int padded = round_up(in, L);
        for (int r = 0; r < out; r += PANEL) {
            int rows = out - r < PANEL ? out - r : PANEL;
            Range c = inputs(r, r + rows);
            int begin = c.begin / L * L;
            T* sums = gW + int64_t(r) * padded + begin;
            rows_times<T>(rows, {gz + r * TILE, TILE, 1}, h_transposed + begin, padded, 0, columns,
                          sums, padded, round_up(c.end, L) - begin, nullptr, sums);
        }
    }

    // u = B t, block by block.
    void through_blocks(const T* t, T* u, int columns) const {
        for (int i = 0; i < blocks; i++)
            small_product<T>(k_out, {B + int64_t(i) * k_out * k_in, k_in, 1}, t + i * k_in * TILE,
                             TILE, k_in, u + i * k_out * TILE, TILE, columns);
    }

    // gt = B^T gu, block by block.
    void back_through_blocks(const T* gu, T* gt, int columns) const {
        for (int i = 0; i < blocks; i++)
            small_product<T>(k_in, {B + int64_t(i) * k_out * k_in, 1, k_in}, gu + i * k_out * TILE,
                             TILE, k_out, gt + i * k_in * TILE, TILE, columns);
    }
};

// out[p] += sum over points of a(p) b(p), where pair(p, a, b) gives rows of tiles; b may be null.
template <class T, class Pair>
inline void add_dots(T* out, int count, int columns, Pair pair) {
    constexpr int L = LANES<T>;
    for (int p = 0; p < count; p += L) {
        Vec<T> r[L] = {};
        for (int q = 0; q < L && p + q < count; q++) {
            const T *a, *b;
            pair(p + q, a, b);
            Vec<T> sum{};
            for (int n = 0; n < columns; n += L) {
                Vec<T> v = load(a + n);
                sum += b ? v * load(b + n) : v;
            }
            r[q] = sum;
        }
        store(out + p, load(out + p) + sums<T>(r));
    }
}
