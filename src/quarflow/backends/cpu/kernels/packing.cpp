// Between the weights that exist and the dense block-triangular matrices made of them.
//
// The off-diagonal weights of a step stand row by row: in each row those of the dimensions before
// it (after it, reversed), which are neighbours in the dense matrix too.

#include <algorithm>

#include "memory.h"

namespace {

struct Packing {
    int64_t steps, features, layers, threads;
    const int64_t *reverse, *units;
    int64_t k_out = 0, k_in = 0;

    // numbers: steps, features, layers, threads, then whether reversed (steps), then units from
    // those of the first layer's input to those of the last one's output (layers + 1).
    explicit Packing(const int64_t* n)
        : steps(n[0]), features(n[1]), layers(n[2]), threads(n[3]), reverse(n + 4),
          units(n + 4 + n[0]) {}

    // One of the layers.
    Packing layer(int64_t l) const {
        Packing one = *this;
        one.k_in = units[l], one.k_out = units[l + 1];
        return one;
    }

    // copy(in dense, in off-diagonal, in diagonal, numbers before, of the diagonal, after it) for
    // each row; what is before or after stands in the off-diagonal weights, or is zero.
    template <class Row>
    bool each_row(Row row) const {
        int64_t rows = features * k_out, columns = features * k_in;
        int64_t off = features * (features - 1) / 2 * k_out * k_in, on = rows * k_in;
        int workers = int(std::max<int64_t>(1, std::min(threads, steps * rows * columns >> 16)));
        return in_parallel(workers, [&](int worker) {
            for (int64_t t = worker; t < steps; t += workers) {
                int64_t at = t * off;
                for (int64_t r = 0; r < rows; r++) {
                    int64_t i = r / k_out, before = i * k_in, after = columns - before - k_in;
                    row((t * rows + r) * columns, at, t * on + r * k_in, before, k_in, after,
                        reverse[t] != 0);
                    at += reverse[t] ? after : before;
                }
            }
        });
    }
};

template <class T>
bool assemble(const Packing& p, const T* off, const T* on, T* dense) {
    return p.each_row([=](int64_t d, int64_t o, int64_t b, int64_t before, int64_t own,
                          int64_t after, bool reversed) {
        T* at = dense + d;
        at = reversed ? std::fill_n(at, before, T(0)) : std::copy_n(off + o, before, at);
        at = std::copy_n(on + b, own, at);
        reversed ? std::copy_n(off + o, after, at) : std::fill_n(at, after, T(0));
    });
}

template <class T>
bool collect(const Packing& p, const T* dense, T* off, T* on) {
    return p.each_row([=](int64_t d, int64_t o, int64_t b, int64_t before, int64_t own,
                          int64_t after, bool reversed) {
        std::copy_n(dense + d + before, own, on + b);
        if (reversed)
            std::copy_n(dense + d + before + own, after, off + o);
        else
            std::copy_n(dense + d, before, off + o);
    });
}

}  // namespace

#define EXPORT(T, NAME)                                                                       \
    extern "C" int assemble_##NAME(const int64_t* numbers, const T* const* off,               \
                                   const T* const* on, T* const* dense) {                     \
        Packing p(numbers);                                                                   \
        for (int64_t l = 0; l < p.layers; l++)                                                \
            if (!assemble(p.layer(l), off[l], on[l], dense[l])) return false;                 \
        return true;                                                                          \
    }                                                                                         \
    extern "C" int collect_##NAME(const int64_t* numbers, const T* const* dense,              \
                                  T* const* off, T* const* on) {                              \
        Packing p(numbers);                                                                   \
        for (int64_t l = 0; l < p.layers; l++)                                                \
            if (!collect(p.layer(l), dense[l], off[l], on[l])) return false;                  \
        return true;                                                                          \
    }

EXPORT(float, f32)
EXPORT(double, f64)
