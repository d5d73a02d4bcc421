// One residual branch F on a tile: value and diagonal forward, gradients backward, and the
// inverse of x + F(x) by substitution.
//
//   z_l = W_l h_{l-1} + b_l,  h_l = phi(z_l),  u_l = B_l t_{l-1},  t_l = phi'(z_l) u_l
#pragma once

#include <algorithm>

#include "functions.h"
#include "memory.h"
#include "product.h"

template <class T>
struct Branch {
    int features, layers, activation;
    Layer<T> layer[MAX_LAYERS];

    int widest() const {
        int width = 0;
        for (int l = 0; l < layers; l++) width = std::max({width, layer[l].out, layer[l].in});
        return width;
    }
};

// What is known of a hidden layer, each units x TILE; slope and bend only for the way back.
template <class T>
struct Hidden {
    T *h, *t, *slope, *bend;  // phi(z), the tangent, phi'(z), phi''(z) u
};

template <class T>
struct Tape {
    Hidden<T> hidden[MAX_LAYERS];

    // All hidden layers in full, or two that take turns.
    void lay_out(Space& space, const Branch<T>& f, bool keep) {
        for (int l = 0; l + 1 < f.layers; l++) {
            int64_t size = int64_t(f.layer[l].out) * TILE;
            if (keep)
                hidden[l] = {space.take<T>(size), space.take<T>(size), space.take<T>(size),
                             space.take<T>(size)};
            else if (l < 2) {
                size = int64_t(f.widest()) * TILE;
                hidden[l] = {space.take<T>(size), space.take<T>(size), nullptr, nullptr};
            } else
                hidden[l] = hidden[l - 2];
        }
    }
};

// What is made of z: its value alone, the tangent too, or also what the way back needs.
enum Made { VALUES, TANGENTS, KEPT };

// z and u in place of what follows from them: h and t, and of what is KEPT slope and bend.
template <class T, int A, Made MADE, bool SCALARS>
void activate_rows(Hidden<T> at, int rows, int columns) {
    for (int i = 0; i < rows; i++)
        for (int n = 0; n < columns; n += LANES<T>) {
            int64_t p = int64_t(i) * TILE + n;
            Vec<T> z = load(at.h + p), v, s, c;
            if constexpr (SCALARS) {
                for (int j = 0; j < LANES<T>; j++) v[j] = std::sin(z[j]), s[j] = std::cos(z[j]);
                c = -v;
            } else
                activate<T, A>(z, v, s, c);
            store(at.h + p, v);
            if constexpr (MADE != VALUES) {
                Vec<T> u = load(at.t + p);
                store(at.t + p, s * u);
                if constexpr (MADE == KEPT) {
                    store(at.slope + p, s);
                    store(at.bend + p, c * u);
                }
            }
        }
}

template <class T, Made MADE>
void activate_layer(int activation, Hidden<T> at, int rows, int columns) {
    switch (activation) {
        case SIN:
            if (reducible(at.h, rows, columns))
                activate_rows<T, SIN, MADE, false>(at, rows, columns);
            else
                activate_rows<T, SIN, MADE, true>(at, rows, columns);
            break;
        case ELU: activate_rows<T, ELU, MADE, false>(at, rows, columns); break;
        case LIPSWISH: activate_rows<T, LIPSWISH, MADE, false>(at, rows, columns); break;
        default: activate_rows<T, TANH, MADE, false>(at, rows, columns);
    }
}

// F(x) and d; t0 are the tangents that enter, null where they are 1. first: of the points.
template <class T>
void forward(const Branch<T>& f, const T* x, const T* t0, Tape<T>& tape, bool keep, T* F, T* d,
             int64_t first, int points, int columns) {
    const T *h = x, *t = t0;
    for (int l = 0; l < f.layers; l++) {
        const Layer<T>& layer = f.layer[l];
        bool last = l + 1 == f.layers;
        T *z = last ? F : tape.hidden[l].h, *u = last ? d : tape.hidden[l].t;
        layer.product(h, z, first, points, columns);
        if (t)
            layer.through_blocks(t, u, columns);
        else
            for (int i = 0; i < layer.out; i++)
                for (int n = 0; n < columns; n += LANES<T>)
                    store(u + i * TILE + n, splat<T>(layer.B[i]));
        if (last) break;
        if (keep)
            activate_layer<T, KEPT>(f.activation, tape.hidden[l], layer.out, columns);
        else
            activate_layer<T, TANGENTS>(f.activation, tape.hidden[l], layer.out, columns);
        h = tape.hidden[l].h;
        t = tape.hidden[l].t;
    }
}

// Sums of gradients over points; rows are padded to whole vectors.
template <class T>
struct LayerGradients {
    T *W, *B, *b;
    T* b_points;  // shape (N, out), where each point has biases of its own
    int W_row, B_row;
    bool blockwise;  // whether blocks are wide enough for products of their own

    void lay_out(Space& space, const Layer<T>& layer) {
        constexpr int L = LANES<T>;
        W_row = round_up(layer.in, L);
        bool wide = layer.k_in > 1 && layer.k_in >= L / 2;
        B_row = wide ? round_up(layer.k_in, L) : layer.k_in;
        blockwise = wide;
        W = space.take<T>(int64_t(layer.out) * W_row);
        B = space.take<T>(round_up(layer.blocks * layer.k_out * B_row, L));
        b = space.take<T>(round_up(layer.out, L));
        b_points = nullptr;
    }
};

template <class T>
struct Scratch {
    T *gz, *gu, *gh, *gt, *transposed;

    void lay_out(Space& space, int width) {
        int64_t size = int64_t(width) * TILE;
        gz = space.take<T>(size);
        gu = space.take<T>(size);
        gh = space.take<T>(size);
        gt = space.take<T>(size);
        transposed = space.take<T>(int64_t(round_up(width, LANES<T>)) * TILE + LANES<T>);
    }
};

// to (rows, columns) = from or, after the first thread, to + from.
template <class T>
void add_rows(T* to, const T* from, int from_row, int64_t rows, int columns, bool add) {
    for (int64_t i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++)
            to[i * columns + j] = (add ? to[i * columns + j] : 0) + from[i * from_row + j];
}

// The same for the gradients of a layer, to where its parameters have theirs.
template <class T>
void add_layer(const Layer<T>& layer, const LayerGradients<T>& sum, T* W, T* B, T* b, bool add) {
    add_rows(W, sum.W, sum.W_row, layer.out, layer.in, add);
    add_rows(B, sum.B, sum.B_row, layer.blocks * layer.k_out, layer.k_in, add);
    if (layer.b && !layer.b_row) add_rows(b, sum.b, layer.out, 1, layer.out, add);
}

template <class T>
void add_block_gradient(const Layer<T>& layer, const T* gu, const T* t, LayerGradients<T>& sum,
                        T* transposed, int columns) {
    if (!sum.blockwise) {
        int k_in = layer.k_in, k_out = layer.k_out;
        add_dots<T>(sum.B, layer.blocks * k_out * k_in, columns, [=](int p, const T*& a, const T*& b) {
            int row = p / k_in;
            a = gu + row * TILE;
            b = t ? t + (row / k_out * k_in + p % k_in) * TILE : nullptr;
        });
        return;
    }
    int units = layer.blocks * layer.k_in, row = round_up(units, LANES<T>);
    transpose(t, TILE, transposed, row, units, columns);
    for (int i = 0; i < layer.blocks; i++)
        for (int m = 0; m < layer.k_out; m += PANEL) {
            int r = i * layer.k_out + m;
            T* sums = sum.B + r * sum.B_row;
            rows_times<T>(std::min(PANEL, layer.k_out - m), {gu + r * TILE, TILE, 1},
                          transposed + i * layer.k_in, row, 0, columns, sums, sum.B_row, sum.B_row,
                          nullptr, sums);
        }
}

// Gradients from those of F and d: of the layers (added), of x and, if asked for, of t0.
template <class T>
void backward(const Branch<T>& f, const T* x, const T* t0, const Tape<T>& tape, const T* gF,
              const T* gd, LayerGradients<T>* sums, Scratch<T> scratch, T* gx, T* gt0,
              int64_t first, int points, int columns) {
    const T *gz = gF, *gu = gd;
    for (int l = f.layers - 1; l >= 0; l--) {
        const Layer<T>& layer = f.layer[l];
        LayerGradients<T>& sum = sums[l];
        const T* h = l ? tape.hidden[l - 1].h : x;
        const T* t = l ? tape.hidden[l - 1].t : t0;
        transpose(h, TILE, scratch.transposed, round_up(layer.in, LANES<T>), layer.in, columns);
        layer.gradient(gz, scratch.transposed, sum.W, columns);
        if (sum.b_points)
            transpose(gz, TILE, sum.b_points + first * layer.out, layer.out, layer.out, points);
        else if (layer.b)
            add_dots<T>(sum.b, layer.out, columns, [=](int p, const T*& a, const T*& b) {
                a = gz + p * TILE;
                b = nullptr;
            });
        add_block_gradient(layer, gu, t, sum, scratch.transposed, columns);
        if (l == 0) {
            if (gt0) layer.back_through_blocks(gu, gt0, columns);
            if (gx) layer.transposed(gz, gx, columns);
            return;
        }
        layer.back_through_blocks(gu, scratch.gt, columns);
        layer.transposed(gz, scratch.gh, columns);
        const Hidden<T>& at = tape.hidden[l - 1];
        for (int i = 0; i < layer.in; i++)
            for (int n = 0; n < columns; n += LANES<T>) {
                int64_t p = int64_t(i) * TILE + n;
                Vec<T> s = load(at.slope + p), gt = load(scratch.gt + p);
                store(scratch.gz + p, s * load(scratch.gh + p) + load(at.bend + p) * gt);
                store(scratch.gu + p, s * gt);
            }
        gz = scratch.gz;
        gu = scratch.gu;
    }
}
