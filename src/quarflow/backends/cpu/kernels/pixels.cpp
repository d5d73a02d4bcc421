// The hidden layers of a convolutional branch: between the taps that are gathered before it and
// the products that are summed over taps after it, every pixel is on its own.

#include <vector>

#include "branch.h"

namespace {

template <class T>
struct Pixels {
    int64_t points;
    int channels, threads;
    bool tangents;  // whether some enter; otherwise they are 1
    Branch<T> branch;

    // numbers: pixels, channels, layers, activation, threads, what the first layer reads, what the
    // last one gives, whether tangents enter, whether reversed, units per channel (layers + 1).
    // tensors: W, B of each layer, b of all but the last.
    Pixels(const int64_t* numbers, void* const* tensors)
        : points(numbers[0]), channels(int(numbers[1])), tangents(numbers[7]) {
        int layers = int(numbers[2]);
        const int64_t* k = numbers + 9;
        branch.features = channels;
        branch.layers = layers;
        branch.activation = int(numbers[3]);
        for (int l = 0; l < layers; l++) {
            bool first = l == 0, last = l + 1 == layers;
            Layer<T>& a = branch.layer[l];
            a.blocks = channels;
            a.k_in = int(k[l]);
            a.k_out = int(k[l + 1]);
            a.in = first ? int(numbers[5]) : channels * a.k_in;
            a.out = last ? int(numbers[6]) : channels * a.k_out;
            a.dense = first || last;
            a.reverse = numbers[8] && !a.dense;
            a.W = static_cast<const T*>(tensors[l]);
            a.B = static_cast<const T*>(tensors[layers + l]);
            a.b = last ? nullptr : static_cast<const T*>(tensors[2 * layers + l]);
            a.b_row = 0;
        }
        threads = int(std::max<int64_t>(1, std::min<int64_t>(numbers[4], tiles())));
    }

    int64_t tiles() const { return (points + TILE - 1) / TILE; }
    int inputs() const { return branch.layer[0].in; }
    int outputs() const { return branch.layer[branch.layers - 1].out; }
};

// What enters and leaves for one tile.
template <class T>
struct Work {
    T *x, *t0, *y, *d;
    Tape<T> tape;
    int64_t first;
    int points, columns;

    void lay_out(Space& space, const Pixels<T>& p, bool keep) {
        x = space.take<T>(int64_t(p.inputs()) * TILE);
        t0 = space.take<T>(int64_t(p.channels) * TILE);
        y = space.take<T>(int64_t(p.outputs()) * TILE);
        d = space.take<T>(int64_t(p.channels) * TILE);
        tape.lay_out(space, p.branch, keep);
    }

    const T* entering(const Pixels<T>& p) const { return p.tangents ? t0 : nullptr; }

    void forward_tile(const Pixels<T>& p, int64_t index, const T* A, const T* slopes, bool keep) {
        first = index * TILE;
        points = int(std::min<int64_t>(TILE, p.points - first));
        columns = round_up(points, STRIDE<T>);
        points_to_tile(A + first * p.inputs(), p.inputs(), x, points, columns, p.inputs());
        if (p.tangents)
            points_to_tile(slopes + first * p.channels, p.channels, t0, points, columns,
                           p.channels);
        forward(p.branch, x, entering(p), tape, keep, y, d, first, points, columns);
    }
};

template <class T>
bool forward_pixels(const Pixels<T>& p, const T* A, const T* slopes, T* y, T* d) {
    return in_parallel(p.threads, [&](int thread) {
        static thread_local Block block;
        Work<T> work;
        in_block(block, [&](Space& space) { work.lay_out(space, p, false); });
        for (int64_t i = thread; i < p.tiles(); i += p.threads) {
            work.forward_tile(p, i, A, slopes, false);
            transpose(work.y, TILE, y + work.first * p.outputs(), p.outputs(), p.outputs(),
                      work.points);
            transpose(work.d, TILE, d + work.first * p.channels, p.channels, p.channels,
                      work.points);
        }
        block.done();
    });
}

// gradients: of A and the tangents that enter (or null), then W and B of each layer, and b.
template <class T>
bool backward_pixels(const Pixels<T>& p, const T* A, const T* slopes, const T* gy, const T* gd,
                     void* const* gradients) {
    int layers = p.branch.layers;
    auto tensor = [&](int i) { return static_cast<T*>(gradients[i]); };
    std::vector<Block>& blocks = blocks_for(p.threads);
    std::vector<std::vector<LayerGradients<T>>> all(p.threads);
    bool fine = in_parallel(p.threads, [&](int thread) {
        static thread_local Block block;
        Work<T> work;
        Scratch<T> scratch;
        T *of_y, *of_d, *of_x, *of_t0;
        in_block(block, [&](Space& space) {
            work.lay_out(space, p, true);
            scratch.lay_out(space, p.branch.widest());
            of_y = space.take<T>(int64_t(p.outputs()) * TILE);
            of_d = space.take<T>(int64_t(p.channels) * TILE);
            of_x = space.take<T>(int64_t(p.inputs()) * TILE);
            of_t0 = space.take<T>(int64_t(p.channels) * TILE);
        });
        std::vector<LayerGradients<T>>& sums = all[thread];
        sums.resize(layers);
        in_block(
            blocks[thread],
            [&](Space& space) {
                for (int l = 0; l < layers; l++) sums[l].lay_out(space, p.branch.layer[l]);
            },
            true);
        T* to_t0 = p.tangents && gradients[1] ? of_t0 : nullptr;
        for (int64_t i = thread; i < p.tiles(); i += p.threads) {
            work.forward_tile(p, i, A, slopes, true);
            points_to_tile(gy + work.first * p.outputs(), p.outputs(), of_y, work.points,
                           work.columns, p.outputs());
            points_to_tile(gd + work.first * p.channels, p.channels, of_d, work.points,
                           work.columns, p.channels);
            backward(p.branch, work.x, work.entering(p), work.tape, of_y, of_d, sums.data(),
                     scratch, gradients[0] ? of_x : nullptr, to_t0, work.first, work.points,
                     work.columns);
            if (gradients[0])
                transpose(of_x, TILE, tensor(0) + work.first * p.inputs(), p.inputs(), p.inputs(),
                          work.points);
            if (to_t0)
                transpose(of_t0, TILE, tensor(1) + work.first * p.channels, p.channels, p.channels,
                          work.points);
        }
        block.done();
    });
    if (fine)
        for (int s = 0; s < p.threads; s++)
            for (int l = 0; l < layers; l++)
                add_layer(p.branch.layer[l], all[s][l], tensor(2 + l), tensor(2 + layers + l),
                          l + 1 < layers ? tensor(2 + 2 * layers + l) : nullptr, s > 0);
    for (Block& block : blocks) block.done();
    return fine;
}

}  // namespace

#define EXPORT(T, NAME)                                                                          \
    extern "C" int pixels_forward_##NAME(const int64_t* numbers, void* const* tensors,           \
                                         const T* A, const T* slopes, T* y, T* d) {              \
        return forward_pixels(Pixels<T>(numbers, tensors), A, slopes, y, d);                     \
    }                                                                                            \
    extern "C" int pixels_backward_##NAME(const int64_t* numbers, void* const* tensors,          \
                                          const T* A, const T* slopes, const T* gy, const T* gd, \
                                          void* const* gradients) {                              \
        return backward_pixels(Pixels<T>(numbers, tensors), A, slopes, gy, gd, gradients);       \
    }

EXPORT(float, f32)
EXPORT(double, f64)
