// The steps of a QuAR flow, with affine maps between them: forward, and backward.
//
//   y = scale_0 x + shift_0;  y <- scale_{t+1} (y + F_t(y)) + shift_{t+1}
//
// Each thread takes tile after tile of the points through all steps, so that hidden layers never
// leave its cache. The way back computes them once more, tile by tile: that is faster than to
// write them to memory and to read them again, and no memory is taken for them.
//
// With a mask, y, d and what comes back are 0 where it is: features that are not modelled.

#include <vector>

#include "branch.h"
#include "substitution.h"

namespace {

template <class T>
struct Chain {
    int64_t points;
    int features, steps, threads, per_tile;
    const T *scale, *shift;  // (steps + 1, features)
    std::vector<Branch<T>> branch;

    // numbers: points, features, steps, layers, activation, threads, whether each
    // point has biases of its own, units per feature of each layer (layers + 1), whether reversed
    // (steps).
    // tensors: scale, shift, W, B, b of each layer.
    Chain(const int64_t* numbers, void* const* tensors)
        : points(numbers[0]),
          features(int(numbers[1])),
          steps(int(numbers[2])),
          threads(int(numbers[5])),
          scale(static_cast<const T*>(tensors[0])),
          shift(static_cast<const T*>(tensors[1])) {
        int layers = int(numbers[3]);
        bool own = numbers[6];
        const int64_t *k = numbers + 7, *reverse = k + layers + 1;
        for (int t = 0; t < steps; t++) {
            Branch<T> f{features, layers, int(numbers[4]), {}};
            for (int l = 0; l < layers; l++) {
                Layer<T>& a = f.layer[l];
                a.k_in = int(k[l]);
                a.k_out = int(k[l + 1]);
                a.blocks = features;
                a.in = features * a.k_in;
                a.out = features * a.k_out;
                a.reverse = reverse[t];
                a.dense = false;
                a.W = static_cast<const T*>(tensors[2 + l]) + int64_t(t) * a.out * a.in;
                a.B = static_cast<const T*>(tensors[2 + layers + l]) + int64_t(t) * a.out * a.k_in;
                a.b = static_cast<const T*>(tensors[2 + 2 * layers + l]) +
                      int64_t(t) * a.out * (own ? points : 1);
                a.b_row = own ? a.out : 0;
            }
            branch.push_back(f);
        }
        int64_t share = (points + threads - 1) / threads;
        per_tile = int(std::min<int64_t>(TILE, round_up(int(std::min<int64_t>(share, TILE)),
                                                        STRIDE<T>)));
        threads = int(std::max<int64_t>(1, std::min<int64_t>(threads, tiles())));
    }

    int64_t tiles() const { return (points + per_tile - 1) / per_tile; }
    const T* scales(int t) const { return scale + int64_t(t) * features; }
    const T* shifts(int t) const { return shift + int64_t(t) * features; }
};

// One tile of one step: what enters, what leaves before the affine map, d, hidden layers.
template <class T>
struct Step {
    T *x, *y, *d;
    Tape<T> tape;

    void lay_out(Space& space, const Branch<T>& f, bool keep) {
        int64_t size = int64_t(f.features) * TILE;
        x = space.take<T>(size);
        y = space.take<T>(size);
        d = space.take<T>(size);
        tape.lay_out(space, f, keep);
    }
};

template <class T>
struct Tile {
    int64_t first;
    int points, columns;

    Tile(const Chain<T>& chain, int64_t index)
        : first(index * chain.per_tile),
          points(int(std::min<int64_t>(chain.per_tile, chain.points - first))),
          columns(round_up(points, STRIDE<T>)) {}
};

// y = scale x + shift, unit by unit
template <class T>
void affine(const T* x, const T* scale, const T* shift, T* y, int units, int columns) {
    for (int i = 0; i < units; i++)
        for (int n = 0; n < columns; n += LANES<T>)
            store(y + i * TILE + n, load(x + i * TILE + n) * scale[i] + shift[i]);
}

// y += x
template <class T>
void add_tile(const T* x, T* y, int units, int columns) {
    for (int i = 0; i < units; i++)
        for (int n = 0; n < columns; n += LANES<T>) {
            int64_t at = int64_t(i) * TILE + n;
            store(y + at, load(y + at) + load(x + at));
        }
}

// y = 0 where the mask is; without a mask nothing.
template <class T>
void keep_modelled(const T* mask, T* y, int units, int columns) {
    if (!mask) return;
    for (int i = 0; i < units; i++)
        for (int n = 0; n < columns; n += LANES<T>) {
            int64_t at = int64_t(i) * TILE + n;
            store(y + at, load(mask + at) != 0 ? load(y + at) : Vec<T>{});
        }
}

// total[n] += sum of log(1 + d) over the units. Few logarithms of products of many; a factor
// below 0 makes NaN, however many there are.
template <class T>
void add_log(const T* d, T* total, int units, int columns) {
    constexpr int TOGETHER = 8;
    for (int n = 0; n < columns; n += LANES<T>) {
        Vec<T> sum = load(total + n), lowest = splat<T>(1);
        for (int i = 0; i < units; i += TOGETHER) {
            Vec<T> product = splat<T>(1);
            for (int j = i; j < std::min(units, i + TOGETHER); j++) {
                Vec<T> factor = 1 + load(d + j * TILE + n);
                product *= factor;
                lowest = factor < lowest ? factor : lowest;
            }
            sum += logarithm<T>(product);
        }
        Vec<T> undefined = splat<T>(std::numeric_limits<T>::quiet_NaN());
        store(total + n, lowest < 0 ? undefined : sum);
    }
}

// The mask of a tile where there is room for it; null where all is modelled.
template <class T>
const T* mask_of_tile(const Chain<T>& chain, const Tile<T>& tile, const T* modelled, T* room) {
    if (!modelled) return nullptr;
    int D = chain.features;
    points_to_tile(modelled + tile.first * D, D, room, tile.points, tile.columns, D);
    return room;
}

// A tile forward through all steps; leaves z in the x of the step after the last.
template <class T>
void forward_tile(const Chain<T>& chain, const Tile<T>& tile, const T* mask, const T* x,
                  std::vector<Step<T>>& steps, bool keep, T* z, T* ladj) {
    int D = chain.features;
    T total[TILE] = {};
    points_to_tile(x + tile.first * D, D, z, tile.points, tile.columns, D);
    affine(z, chain.scales(0), chain.shifts(0), steps[0].x, D, tile.columns);
    keep_modelled(mask, steps[0].x, D, tile.columns);
    for (int t = 0; t < chain.steps; t++) {
        Step<T>& step = steps[t];
        forward(chain.branch[t], step.x, static_cast<const T*>(nullptr), step.tape, keep, step.y,
                step.d, tile.first, tile.points, tile.columns);
        add_tile(step.x, step.y, D, tile.columns);
        keep_modelled(mask, step.d, D, tile.columns);
        add_log(step.d, total, D, tile.columns);
        T* next = t + 1 < chain.steps ? steps[t + 1].x : z;
        affine(step.y, chain.scales(t + 1), chain.shifts(t + 1), next, D, tile.columns);
        keep_modelled(mask, next, D, tile.columns);
    }
    if (ladj) std::copy(total, total + tile.points, ladj + tile.first);
}

template <class T>
std::vector<Step<T>> lay_out_steps(const Chain<T>& chain, Space& space, bool keep) {
    std::vector<Step<T>> steps(chain.steps);
    for (int t = 0; t < chain.steps; t++)
        if (keep || t == 0)
            steps[t].lay_out(space, chain.branch[t], keep);
        else
            steps[t] = steps[0];
    return steps;
}

template <class T>
bool forward_all(const Chain<T>& chain, const T* modelled, const T* x, T* z, T* ladj) {
    int D = chain.features;
    return in_parallel(chain.threads, [&](int thread) {
        static thread_local Block block;
        T *out, *room;
        std::vector<Step<T>> steps;
        in_block(block, [&](Space& space) {
            out = space.take<T>(int64_t(D) * TILE);
            room = space.take<T>(modelled ? int64_t(D) * TILE : 0);
            steps = lay_out_steps(chain, space, false);
        });
        for (int64_t i = thread; i < chain.tiles(); i += chain.threads) {
            Tile<T> tile(chain, i);
            const T* mask = mask_of_tile(chain, tile, modelled, room);
            forward_tile(chain, tile, mask, x, steps, false, out, ladj);
            transpose(out, TILE, z + tile.first * D, D, D, tile.points);
        }
        block.done();
    });
}

// Sums of gradients that one thread made.
template <class T>
struct Sums {
    T *scale, *shift;
    int row;
    std::vector<LayerGradients<T>> layers;  // step by step

    void lay_out(Space& space, const Chain<T>& chain) {
        row = round_up(chain.features, LANES<T>);
        scale = space.take<T>(int64_t(chain.steps + 1) * row);
        shift = space.take<T>(int64_t(chain.steps + 1) * row);
        layers.clear();
        for (const Branch<T>& f : chain.branch)
            for (int l = 0; l < f.layers; l++) {
                layers.emplace_back();
                layers.back().lay_out(space, f.layer[l]);
            }
    }
};

// Gradients of the affine map t, which g enters from behind, and g times its scale.
template <class T>
void backward_affine(const Chain<T>& chain, int t, const T* x, T* g, Sums<T>& sums, int columns) {
    add_dots<T>(sums.scale + t * sums.row, chain.features, columns,
                [=](int p, const T*& a, const T*& b) {
                    a = g + p * TILE;
                    b = x + p * TILE;
                });
    add_dots<T>(sums.shift + t * sums.row, chain.features, columns,
                [=](int p, const T*& a, const T*& b) {
                    a = g + p * TILE;
                    b = nullptr;
                });
    for (int i = 0; i < chain.features; i++)
        for (int n = 0; n < columns; n += LANES<T>) {
            T* at = g + i * TILE + n;
            store(at, load(at) * chain.scales(t)[i]);
        }
}

// gradients: of x, scale, shift, then W, B, b of each layer.
template <class T>
bool backward_all(const Chain<T>& chain, const T* modelled, const T* x, const T* gz, const T* gl,
                  void* const* gradients) {
    int D = chain.features, layers = chain.branch[0].layers;
    std::vector<Sums<T>> all(chain.threads);
    T* gx = static_cast<T*>(gradients[0]);
    auto tensor = [&](int i) { return static_cast<T*>(gradients[i]); };
    std::vector<Block>& blocks = blocks_for(chain.threads);
    bool fine = in_parallel(chain.threads, [&](int thread) {
        static thread_local Block block;
        Sums<T>& sums = all[thread];
        std::vector<Step<T>> steps;
        T *g, *gd, *own, *z, *room;
        Scratch<T> scratch;
        int64_t size = int64_t(D) * TILE;
        in_block(block, [&](Space& space) {
            g = space.take<T>(size);
            gd = space.take<T>(size);
            own = space.take<T>(size);
            z = space.take<T>(size);
            room = space.take<T>(modelled ? size : 0);
            scratch.lay_out(space, chain.branch[0].widest());
            steps = lay_out_steps(chain, space, true);
        });
        in_block(blocks[thread], [&](Space& space) { sums.lay_out(space, chain); }, true);
        for (int t = 0; t < chain.steps; t++)
            for (int l = 0; l < layers; l++) {
                const Layer<T>& a = chain.branch[t].layer[l];
                if (a.b_row)
                    sums.layers[t * layers + l].b_points =
                        tensor(3 + 2 * layers + l) + t * chain.points * a.out;
            }
        for (int64_t i = thread; i < chain.tiles(); i += chain.threads) {
            Tile<T> tile(chain, i);
            const T* mask = mask_of_tile(chain, tile, modelled, room);
            forward_tile(chain, tile, mask, x, steps, true, z, static_cast<T*>(nullptr));
            T slope[TILE] = {};
            std::copy(gl + tile.first, gl + tile.first + tile.points, slope);
            points_to_tile(gz + tile.first * D, D, g, tile.points, tile.columns, D);
            keep_modelled(mask, g, D, tile.columns);
            for (int t = chain.steps - 1; t >= 0; t--) {
                Step<T>& step = steps[t];
                backward_affine(chain, t + 1, step.y, g, sums, tile.columns);
                for (int j = 0; j < D; j++)
                    for (int n = 0; n < tile.columns; n += LANES<T>)
                        store(gd + j * TILE + n,
                              load(slope + n) / (1 + load(step.d + j * TILE + n)));
                keep_modelled(mask, gd, D, tile.columns);
                backward(chain.branch[t], step.x, static_cast<const T*>(nullptr), step.tape, g, gd,
                         &sums.layers[t * layers], scratch, own, static_cast<T*>(nullptr),
                         tile.first, tile.points, tile.columns);
                add_tile(own, g, D, tile.columns);
                keep_modelled(mask, g, D, tile.columns);
            }
            points_to_tile(x + tile.first * D, D, z, tile.points, tile.columns, D);
            backward_affine(chain, 0, z, g, sums, tile.columns);
            transpose(g, TILE, gx + tile.first * D, D, D, tile.points);
        }
        block.done();
    });
    if (!fine) return false;
    // Threads in their order: the same sums each time.
    fine = in_parallel(chain.threads, [&](int thread) {
        for (int s = 0; s < chain.threads; s++) {
            if (thread == 0) {
                add_rows(tensor(1), all[s].scale, all[s].row, chain.steps + 1, D, s > 0);
                add_rows(tensor(2), all[s].shift, all[s].row, chain.steps + 1, D, s > 0);
            }
            for (int i = thread; i < chain.steps * layers; i += chain.threads) {
                int t = i / layers, l = i % layers;
                const Layer<T>& a = chain.branch[t].layer[l];
                add_layer(a, all[s].layers[i], tensor(3 + l) + int64_t(t) * a.out * a.in,
                          tensor(3 + layers + l) + int64_t(t) * a.out * a.k_in,
                          tensor(3 + 2 * layers + l) + int64_t(t) * a.out, s > 0);
            }
        }
    });
    for (Block& block : blocks) block.done();
    return fine;
}

// F and d of the only step of a chain.
template <class T>
bool branch_all(const Chain<T>& chain, const T* x, T* F, T* d) {
    int D = chain.features;
    return in_parallel(chain.threads, [&](int thread) {
        static thread_local Block block;
        Step<T> step;
        in_block(block, [&](Space& space) { step.lay_out(space, chain.branch[0], false); });
        for (int64_t i = thread; i < chain.tiles(); i += chain.threads) {
            Tile<T> tile(chain, i);
            points_to_tile(x + tile.first * D, D, step.x, tile.points, tile.columns, D);
            forward(chain.branch[0], step.x, static_cast<const T*>(nullptr), step.tape, false,
                    step.y, step.d, tile.first, tile.points, tile.columns);
            transpose(step.y, TILE, F + tile.first * D, D, D, tile.points);
            transpose(step.d, TILE, d + tile.first * D, D, D, tile.points);
        }
        block.done();
    });
}

// The inverse of the only step of a chain: x holds where to start and gets the root; slopes,
// residuals and the number of evaluations at it.
template <class T>
bool solve_all(const Chain<T>& chain, const T* y, T* x, T* slope, T* residual, int64_t* used,
               Goal goal) {
    int D = chain.features;
    return in_parallel(chain.threads, [&](int thread) {
        static thread_local Block block;
        Step<T> step;
        Searching<T> s;
        Rough rough;
        T* target;
        in_block(block, [&](Space& space) {
            step.lay_out(space, chain.branch[0], false);
            s.lay_out(space, chain.branch[0]);
            rough.lay_out(space, chain.branch[0]);
            target = space.take<T>(int64_t(D) * TILE);
        });
        bound_bends(chain.branch[0], s);
        rough.fill(chain.branch[0]);
        for (int64_t i = thread; i < chain.tiles(); i += chain.threads) {
            Tile<T> tile(chain, i);
            int64_t at = tile.first * D, evaluations[TILE] = {};
            points_to_tile(y + at, D, target, tile.points, tile.columns, D);
            points_to_tile(x + at, D, step.x, tile.points, tile.columns, D);
            substitute(chain.branch[0], target, step.x, s, rough, goal, tile.first, tile.points,
                       tile.columns, evaluations);
            forward(chain.branch[0], step.x, static_cast<const T*>(nullptr), step.tape, false,
                    step.y, step.d, tile.first, tile.points, tile.columns);
            transpose(step.x, TILE, x + at, D, D, tile.points);
            for (int n = 0; n < tile.points; n++) {
                T worst = 0;
                for (int j = 0; j < D; j++) {
                    T y_j = target[j * TILE + n];
                    T error = std::abs(step.x[j * TILE + n] + step.y[j * TILE + n] - y_j);
                    error /= 1 + std::abs(y_j);
                    worst = error > worst || error != error ? error : worst;  // NaN stays
                    slope[at + n * D + j] = 1 + step.d[j * TILE + n];
                }
                residual[tile.first + n] = worst;
                used[tile.first + n] = evaluations[n] + 1;
            }
        }
        block.done();
    });
}

}  // namespace

#define EXPORT(T, NAME)                                                                           \
    extern "C" int forward_##NAME(const int64_t* numbers, void* const* tensors,                   \
                                  const T* modelled, const T* x, T* z, T* ladj) {                 \
        return forward_all(Chain<T>(numbers, tensors), modelled, x, z, ladj);                     \
    }                                                                                             \
    extern "C" int backward_##NAME(const int64_t* numbers, void* const* tensors,                  \
                                   const T* modelled, const T* x, const T* gz, const T* gl,       \
                                   void* const* gradients) {                                      \
        return backward_all(Chain<T>(numbers, tensors), modelled, x, gz, gl, gradients);          \
    }                                                                                             \
    extern "C" int branch_##NAME(const int64_t* numbers, void* const* tensors, const T* x, T* F,  \
                                 T* d) {                                                          \
        return branch_all(Chain<T>(numbers, tensors), x, F, d);                                   \
    }                                                                                             \
    extern "C" int solve_##NAME(const int64_t* numbers, void* const* tensors, const T* y, T* x,   \
                                T* slope, T* residual, int64_t* used, double tolerance,           \
                                int evaluations) {                                                \
        return solve_all(Chain<T>(numbers, tensors), y, x, slope, residual, used,                 \
                         {tolerance, evaluations});                                               \
    }

EXPORT(float, f32)
EXPORT(double, f64)
