// The certified bound on the product of the norms of diagonal blocks, and its gradient: what
// quarflow.ops.bounds computes by `balanced` and `spectral_bound`, for many small blocks at once.
//
// A vector holds the same entry of as many networks as it has lanes. Whatever the type of the
// weights, all is computed in double precision: one set of weights has one bound.

#include <algorithm>

#include "functions.h"
#include "memory.h"

namespace {

constexpr int SQUARINGS = 6;

template <class T>
Vec<T> root(Vec<T> x) {
    for (int j = 0; j < LANES<T>; j++) x[j] = std::sqrt(x[j]);
    return x;
}

template <class T>
Vec<T> larger(Vec<T> a, Vec<T> b) {
    return a > b ? a : b;
}

// c = a b, all n x n and symmetric, as powers of one matrix are.
template <class T>
void multiply(const Vec<T>* a, const Vec<T>* b, Vec<T>* c, int n) {
    for (int i = 0; i < n; i++)
        for (int j = 0; j <= i; j++) {
            Vec<T> even{}, odd{};
            int k = 0;
            for (; k + 1 < n; k += 2) {
                even += a[i * n + k] * b[j * n + k];
                odd += a[i * n + k + 1] * b[j * n + k + 1];
            }
            if (k < n) even += a[i * n + k] * b[j * n + k];
            c[i * n + j] = c[j * n + i] = even + odd;
        }
}

// The norm of one layer's blocks, m x n.
template <class T>
struct Norm {
    using V = Vec<T>;
    static constexpr T TINY = std::numeric_limits<T>::min();
    int m, n, narrow;
    V *w, *scaled, *gram, *product, *spare;
    V* power[SQUARINGS + 1];
    V norm, bound;

    void lay_out(Space& space, int rows, int columns) {
        m = rows;
        n = columns;
        narrow = std::min(m, n);
        int square = narrow * narrow;
        w = space.take<V>(m * n);
        scaled = space.take<V>(m * n);
        if (narrow == 1) return;
        gram = space.take<V>(square);
        product = space.take<V>(square);
        spare = space.take<V>(square);
        for (V*& p : power) p = space.take<V>(square);
    }

    // It covers rounding in single precision, that of the pass too.
    T slack() const {
        return 1 + 4 * (std::max(m, n) + 2) * T(std::numeric_limits<float>::epsilon());
    }

    // Entry (long, narrow) of the scaled block, whichever way it stands.
    V& tall(int i, int j) { return m >= n ? scaled[i * n + j] : scaled[j * n + i]; }

    void compute() {
        V size = splat<T>(TINY);
        for (int i = 0; i < m * n; i++) size = larger<T>(size, w[i] < 0 ? -w[i] : w[i]);
        for (int i = 0; i < m * n; i++) scaled[i] = w[i] / size;
        if (narrow == 1) {
            V squares{};
            for (int i = 0; i < m * n; i++) squares += scaled[i] * scaled[i];
            norm = root<T>(larger<T>(squares, splat<T>(TINY)));
        } else
            norm = iterate();
        bound = slack() * size * norm;
        // A comparison leaves NaN out; it must not be lost.
        for (int i = 0; i < m * n; i++) bound = w[i] == w[i] ? bound : w[i];
    }

    V iterate() {
        int s = narrow, length = std::max(m, n);
        for (int i = 0; i < s; i++)
            for (int j = 0; j <= i; j++) {
                V sum{};
                for (int k = 0; k < length; k++) sum += tall(k, i) * tall(k, j);
                gram[i * s + j] = gram[j * s + i] = sum;
            }
        V log_norm{};
        T weight = 1;
        std::copy(gram, gram + s * s, power[0]);
        for (int i = 0; i <= SQUARINGS; i++, weight /= 2) {
            if (i % 3 == 0 || i == SQUARINGS) {
                V squares{};
                for (int k = 0; k < s * s; k++) squares += power[i][k] * power[i][k];
                V frobenius = larger<T>(root<T>(squares), splat<T>(TINY));
                for (int k = 0; k < s * s; k++) power[i][k] /= frobenius;
                log_norm += logarithm<T>(frobenius) * weight;
            }
            if (i < SQUARINGS) multiply<T>(power[i], power[i], power[i + 1], s);
        }
        return exp_minus_one<T>(log_norm / 2) + 1;
    }

    // gradient of w, from that of the bound
    void gradient(V of_bound, V* g) {
        of_bound *= slack();
        if (narrow == 1) {
            for (int i = 0; i < m * n; i++) g[i] = of_bound * scaled[i] / norm;
            return;
        }
        int s = narrow, length = std::max(m, n);
        V *K = product, *other = spare;
        std::copy(power[0], power[0] + s * s, K);
        for (int i = 1; i <= SQUARINGS; i++) {
            multiply<T>(K, power[i], other, s);
            std::swap(K, other);
        }
        V trace{};
        for (int k = 0; k < s * s; k++) trace += K[k] * gram[k];
        of_bound *= norm / larger<T>(trace, splat<T>(TINY));
        for (int i = 0; i < length; i++)
            for (int j = 0; j < s; j++) {
                V sum{};
                for (int k = 0; k < s; k++) sum += tall(i, k) * K[k * s + j];
                (m >= n ? g[i * n + j] : g[j * n + i]) = of_bound * sum;
            }
    }
};

// The networks of LANES steps or dimensions.
template <class T>
struct Networks {
    using V = Vec<T>;
    int layers;
    Norm<T> norm[MAX_LAYERS];
    V *scale[MAX_LAYERS], *g[MAX_LAYERS];  // of hidden units; gradients

    void lay_out(Space& space, int count, const int64_t* units) {
        layers = count;
        for (int l = 0; l < layers; l++) {
            norm[l].lay_out(space, int(units[l + 1]), int(units[l]));
            scale[l] = space.take<V>(units[l + 1]);
            g[l] = space.take<V>(units[l + 1] * units[l]);
        }
    }

    template <class S>
    void read(const S* const* blocks, int64_t first, int64_t total) {
        for (int l = 0; l < layers; l++)
            for (int lane = 0; lane < LANES<T>; lane++) {
                int size = norm[l].m * norm[l].n;
                const S* from = blocks[l] + std::min(first + lane, total - 1) * size;
                for (int i = 0; i < size; i++) norm[l].w[i][lane] = from[i];
            }
    }

    template <class S>
    void write(S* const* gradients, int64_t first, int64_t total) {
        for (int l = 0; l < layers; l++)
            for (int lane = 0; lane < LANES<T> && first + lane < total; lane++) {
                int size = norm[l].m * norm[l].n;
                S* to = gradients[l] + (first + lane) * size;
                for (int i = 0; i < size; i++) to[i] = S(g[l][i][lane]);
            }
    }

    // Sizes of what enters unit j of layer l and of what leaves it, and what keeps both above 0.
    void sizes(int l, int j, V& entering, V& leaving, V& floor) {
        const Norm<T>&a = norm[l], &b = norm[l + 1];
        V in{}, out{};
        for (int k = 0; k < a.n; k++) in += a.w[j * a.n + k] * a.w[j * a.n + k];
        for (int k = 0; k < b.m; k++) out += b.w[k * b.n + j] * b.w[k * b.n + j];
        entering = root<T>(in);
        leaving = root<T>(out);
        const T least = std::sqrt(std::sqrt(std::numeric_limits<T>::min()));
        floor = larger<T>(entering, leaving) * T(1e-3) + least;
    }

    void rescale(int l, int j, V by) {
        for (int k = 0; k < norm[l].n; k++) norm[l].w[j * norm[l].n + k] /= by;
        for (int k = 0; k < norm[l + 1].m; k++) norm[l + 1].w[k * norm[l + 1].n + j] *= by;
    }

    V product() {
        for (int l = 0; l + 1 < layers; l++)
            for (int j = 0; j < norm[l].m; j++) {
                V entering, leaving, floor;
                sizes(l, j, entering, leaving, floor);
                scale[l][j] = root<T>((entering + floor) / (leaving + floor));
                rescale(l, j, scale[l][j]);
            }
        V all = splat<T>(1);
        for (int l = 0; l < layers; l++) {
            norm[l].compute();
            all *= norm[l].bound;
        }
        return all;
    }

    void gradient(V of_product) {
        for (int l = 0; l < layers; l++) {
            V others = of_product;
            for (int k = 0; k < layers; k++)
                if (k != l) others *= norm[k].bound;
            norm[l].gradient(others, g[l]);
        }
        for (int l = layers - 2; l >= 0; l--)
            for (int j = 0; j < norm[l].m; j++) back_through_scale(l, j);
    }

    void back_through_scale(int l, int j) {
        const Norm<T>&a = norm[l], &b = norm[l + 1];
        V s = scale[l][j], entering, leaving, floor, of_log{};
        // w' = w / s and w' = w s: with respect to log s, minus g w' and plus g w'.
        for (int k = 0; k < a.n; k++) of_log -= g[l][j * a.n + k] * a.w[j * a.n + k];
        for (int k = 0; k < b.m; k++) of_log += g[l + 1][k * b.n + j] * b.w[k * b.n + j];
        rescale(l, j, 1 / s);
        sizes(l, j, entering, leaving, floor);
        // 2 log s = log(entering + floor) - log(leaving + floor)
        V x = 1 / (entering + floor), y = 1 / (leaving + floor), both = (x - y) * T(1e-3);
        V share = entering > leaving   ? splat<T>(1)
                  : entering < leaving ? splat<T>(0)
                                       : splat<T>(0.5);
        V of_entering = (x + share * both) * of_log / 2;
        V of_leaving = ((1 - share) * both - y) * of_log / 2;
        of_entering = entering > 0 ? of_entering / entering : splat<T>(0);
        of_leaving = leaving > 0 ? of_leaving / leaving : splat<T>(0);
        for (int k = 0; k < a.n; k++) {
            V& at = g[l][j * a.n + k];
            at = at / s + of_entering * a.w[j * a.n + k];
        }
        for (int k = 0; k < b.m; k++) {
            V& at = g[l + 1][k * b.n + j];
            at = at * s + of_leaving * b.w[k * b.n + j];
        }
    }
};

// numbers: networks, layers, threads, then units of each layer (layers + 1).
template <class S>
bool bounds(const int64_t* numbers, const S* const* blocks, double* product,
            const double* of_product, S* const* gradients) {
    constexpr int L = LANES<double>;
    int64_t total = numbers[0], groups = (total + L - 1) / L;
    int threads = int(std::min(numbers[2], groups));
    return in_parallel(threads, [&](int thread) {
        static thread_local Block block;
        Networks<double> networks;
        in_block(block, [&](Space& space) {
            networks.lay_out(space, int(numbers[1]), numbers + 3);
        });
        for (int64_t i = thread; i < groups; i += threads) {
            int64_t first = i * L;
            networks.read(blocks, first, total);
            Vec<double> all = networks.product(), g{};
            for (int j = 0; j < L && first + j < total; j++)
                if (gradients)
                    g[j] = of_product[first + j];
                else
                    product[first + j] = all[j];
            if (!gradients) continue;
            networks.gradient(g);
            networks.write(gradients, first, total);
        }
        block.done();
    });
}

}  // namespace

#define EXPORT(S, NAME)                                                                          \
    extern "C" int bounds_##NAME(const int64_t* numbers, const S* const* blocks,                 \
                                 double* product, const double* of_product,                      \
                                 S* const* gradients) {                                          \
        return bounds<S>(numbers, blocks, product, of_product, gradients);                       \
    }

EXPORT(float, f32)
EXPORT(double, f64)
