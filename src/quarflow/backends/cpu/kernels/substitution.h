// The inverse of x + F(x), one variable after the other.
//
// Given the variables before it, a variable's equation has one unknown, and only its own diagonal
// blocks have to be evaluated again and again. What the earlier variables contribute is computed
// once, so that all D variables together cost about one forward pass, plus the searches.
#pragma once

#include "branch.h"

// Where a search stops: at this residual, relative to 1 + |y|.
struct Goal {
    double tolerance;
    int evaluations;
    bool rough = false;  // only a start is wanted: no residual need be known
};

constexpr int MARGIN = 8;  // by how much a confirming evaluation must be needless

template <class T>
bool any(const T& mask) {
    uint64_t words[sizeof(T) / 8], found = 0;
    std::memcpy(words, &mask, sizeof(T));
    for (uint64_t w : words) found |= w;
    return found;
}

// Variables from begin to end in the order, whose units are computed in panels as far as they
// read variables before them all.
struct Group {
    int begin, end;
};

inline int group_size(int units) { return std::max(1, PANEL / units); }

template <class T>
struct Searching {
    Tape<T> tape;           // hidden layers of all variables found so far; slopes are not used
    T* base[MAX_LAYERS];    // of one variable, in its group: what all earlier ones contribute
    T* tangent[MAX_LAYERS]; // of one variable
    T* group[MAX_LAYERS];   // of a group of variables: what those before the group contribute
    T *F, *d;               // of one variable
    int columns, together;  // of a tile; variables in a group
    T* bend;                // of each variable: how much its units and F curve in it at most

    void lay_out(Space& space, const Branch<T>& f) {
        together = std::min(f.features, group_size(f.layer[0].k_out));
        for (int l = 0; l < f.layers; l++) {
            const Layer<T>& a = f.layer[l];
            group[l] = space.take<T>(int64_t(together) * a.k_out * TILE);
            base[l] = group[l];
            tangent[l] = space.take<T>(int64_t(a.k_out) * TILE);
            if (l + 1 < f.layers) tape.hidden[l].h = space.take<T>(int64_t(a.out) * TILE);
        }
        F = space.take<T>(TILE);
        d = space.take<T>(TILE);
        bend = space.take<T>(f.features);
    }
};

// Bounds of second derivatives: of the hidden units of each variable, and of F, to the variable.
// From layer to layer, with curvatures of activations that are at most 1, and slopes too:
//   |z'| <= |B| |h'|,  |z''| <= |B| |h''|,  |h'| <= |z'|,  |h''| <= |z'|^2 + |z''|
template <class T>
void bound_bends(const Branch<T>& f, Searching<T>& s) {
    for (int i = 0; i < f.features; i++) {
        s.bend[i] = 0;
        for (int l = 0; l < f.layers; l++) {
            const Layer<T>& a = f.layer[l];
            const T* B = a.B + int64_t(i) * a.k_out * a.k_in;
            // In the place of what a search will have: h' and h'', of this layer and the last.
            for (int r = 0; r < a.k_out; r++) {
                T first = 0, second = 0;
                for (int c = 0; c < a.k_in; c++) {
                    T weight = std::abs(B[r * a.k_in + c]);
                    first += weight * (l ? s.tangent[l - 1][c] : 1);
                    second += weight * (l ? s.base[l - 1][c] : 0);
                }
                if (l + 1 < f.layers) second += first * first;
                s.tangent[l][r] = first;
                s.base[l][r] = second;
                s.bend[i] = std::max(s.bend[i], second);
            }
        }
    }
}

// What layer l of a group of variables, or of one of a group, gets from those before: all that
// come before the group and the bias for the group; and those within the group for one of it.
template <class T>
void contribution(const Branch<T>& f, int l, Group to, Group from, const T* x, Searching<T>& s,
                  T* out, bool add) {
    const Layer<T>& a = f.layer[l];
    const T* h = l ? s.tape.hidden[l - 1].h : x;
    int D = f.features, way = a.reverse ? -1 : 1;
    int row = (a.reverse ? D - to.end : to.begin) * a.k_out;
    int column = a.reverse ? (D - from.begin) * a.k_in - 1 : from.begin * a.k_in;
    small_product<T>((to.end - to.begin) * a.k_out, {a.W + int64_t(row) * a.in + column, a.in, way},
                     h + column * TILE, way * TILE, (from.end - from.begin) * a.k_in, out, TILE,
                     s.columns, add ? nullptr : a.b + row, add);
}

template <class T>
void contribution_to_group(const Branch<T>& f, int l, Group to, const T* x, Searching<T>& s,
                           int64_t first, int points) {
    const Layer<T>& a = f.layer[l];
    int row = (a.reverse ? f.features - to.end : to.begin) * a.k_out;
    int rows = (to.end - to.begin) * a.k_out;
    if (a.b_row)
        points_to_tile(a.b + first * a.b_row + row, a.b_row, s.group[l], points, s.columns, rows);
    contribution(f, l, to, {0, to.begin}, x, s, s.group[l], a.b_row != 0);
}

// F and d of variable i, at STRIDE points from column n on; leaves its hidden units where later
// variables read them.
template <class T>
void evaluate(const Branch<T>& f, int i, const T* x, Searching<T>& s, int n) {
    constexpr int L = LANES<T>, S = STRIDE<T>;
    const T* v = x + i * TILE + n;
    const T* t = nullptr;
    for (int l = 0; l < f.layers; l++) {
        const Layer<T>& a = f.layer[l];
        bool last = l + 1 == f.layers;
        T* z = (last ? s.F : s.tape.hidden[l].h + i * a.k_out * TILE) + n;
        T* u = (last ? s.d : s.tangent[l]) + n;
        const T* B = a.B + int64_t(i) * a.k_out * a.k_in;
        int way = a.reverse ? -1 : 1, from = a.reverse ? a.k_in - 1 : 0;
        for (int r = 0; r < a.k_out; r++)
            for (int c = 0; c < S; c += L) {
                store(z + r * TILE + c, load(s.base[l] + r * TILE + n + c));
                if (!t) store(u + r * TILE + c, splat<T>(B[r]));
            }
        small_product<T>(a.k_out, {B + from, a.k_in, way}, v + from * TILE, way * TILE, a.k_in, z,
                         TILE, S, nullptr, true);
        if (t) small_product<T>(a.k_out, {B, a.k_in, 1}, t, TILE, a.k_in, u, TILE, S);
        if (last) return;
        activate_layer<T, false>(f.activation, {z, u, nullptr, nullptr}, a.k_out, S);
        v = z;
        t = u;
    }
}

// Moves the hidden units of variable i along with a last small step of the variable itself.
template <class T>
void follow(const Branch<T>& f, int i, Searching<T>& s, int n, const Vec<T>* step) {
    constexpr int L = LANES<T>, S = STRIDE<T>;
    for (int l = 0; l + 1 < f.layers; l++) {
        int k = f.layer[l].k_out;
        T* h = s.tape.hidden[l].h + i * k * TILE + n;
        const T* t = s.tangent[l] + n;
        for (int r = 0; r < k; r++)
            for (int c = 0; c < S; c += L) {
                T* at = h + r * TILE + c;
                store(at, load(at) + step[c / L] * load(t + r * TILE + c));
            }
    }
}

// Variable i at STRIDE points: Newton, inside a bracket once there is one.
template <class T>
void search(const Branch<T>& f, int i, const T* y, T* x, Searching<T>& s, Goal goal, int n,
            const int64_t* before, int64_t* evaluations) {
    constexpr int L = LANES<T>, V = STRIDE<T> / LANES<T>;
    const Vec<T> infinity = splat<T>(std::numeric_limits<T>::infinity());
    const T largest = std::numeric_limits<T>::max();
    Vec<T> low[V], high[V], step[V];
    for (int c = 0; c < V; c++) low[c] = -infinity, high[c] = infinity;
    // Close to the size of rounding only an evaluation tells what the residual is.
    bool resolved = goal.rough || goal.tolerance >= 64 * double(std::numeric_limits<T>::epsilon());
    int used = 0;
    for (int sweep = 0; sweep < goal.evaluations; sweep++) {
        evaluate(f, i, x, s, n);
        used++;
        bool moved = false, last = resolved && sweep < 8;
        for (int c = 0; c < V; c++) {
            T* at = x + i * TILE + n + c * L;
            Vec<T> now = load(at), target = load(y + i * TILE + n + c * L);
            Vec<T> error = now + load(s.F + n + c * L) - target, slope = 1 + load(s.d + n + c * L);
            Vec<T> size = error < 0 ? -error : error, of = target < 0 ? -target : target;
            // f is increasing in its own variable: the sign tells on which side the root is.
            low[c] = error < 0 ? now : low[c];
            high[c] = error > 0 ? now : high[c];
            Vec<T> middle = low[c] / 2 + high[c] / 2;
            // While one side is open, ever longer steps: slopes that mislead cannot hold it up.
            Vec<T> next = now - error / slope * T(int64_t(1) << std::min(sweep / 8, 40));
            auto closed = (middle < 0 ? -middle : middle) <= largest;
            auto halve = (next <= low[c]) | (next >= high[c]);
            if (sweep % 4 == 3 && sweep > 8) halve |= size >= 0;
            next = (halve & closed) ? middle : next;
            auto open = size > T(goal.tolerance) * (1 + of);
            next = open ? next : now;
            if (any(next != now)) {
                moved = true;
                store(at, next);
            }
            // What a step leaves behind is the square of it, times how much units and F bend:
            // where that is far below the goal, the next evaluation would only confirm it.
            step[c] = next - now;
            Vec<T> bent = step[c] * step[c] * s.bend[i] * MARGIN;
            auto sure = bent <= T(goal.tolerance) * (1 + of);
            if (any(open & (halve | ~sure))) last = false;
        }
        if (!moved) break;
        if (last) {
            follow(f, i, s, n, step);
            break;
        }
    }
    for (int c = 0; c < STRIDE<T>; c++)
        evaluations[n + c] = std::max<int64_t>(evaluations[n + c], before[n + c] + used);
}

// A first search in float32: most evaluations on the way to a root in float64 need no more, and
// they cost less than half.
struct Rough {
    Branch<float> f;
    Searching<float> s;
    float *x, *y, *B[MAX_LAYERS];

    template <class T>
    void lay_out(Space& space, const Branch<T>& from) {
        f = {from.features, from.layers, from.activation, {}};
        for (int l = 0; l < f.layers; l++) {
            const Layer<T>& a = from.layer[l];
            B[l] = space.take<float>(int64_t(a.out) * a.k_in);
            f.layer[l] = {nullptr,  B[l],    nullptr,  0,      a.out, a.in,
                          a.blocks, a.k_out, a.k_in, a.reverse, a.dense};
        }
        s.lay_out(space, f);
        x = space.take<float>(int64_t(f.features) * TILE);
        y = space.take<float>(int64_t(f.features) * TILE);
    }

    template <class T>
    void fill(const Branch<T>& from) {
        for (int l = 0; l < f.layers; l++) {
            int64_t count = int64_t(f.layer[l].out) * f.layer[l].k_in;
            for (int64_t j = 0; j < count; j++) B[l][j] = float(from.layer[l].B[j]);
        }
        bound_bends(f, s);
    }

    // Variable i of x, where it is to be found from what is known in s; counts evaluations.
    template <class T>
    void start(int i, const T* from_y, T* to_x, const Searching<T>& known, int columns,
               int64_t* evaluations) {
        int row = i * TILE, all = round_up(columns, STRIDE<float>);
        for (int l = 0; l < f.layers; l++)
            for (int r = 0; r < f.layer[l].k_out; r++)
                for (int n = 0; n < all; n++)
                    s.base[l][r * TILE + n] = n < columns ? float(known.base[l][r * TILE + n]) : 0;
        for (int n = 0; n < all; n++) {
            y[row + n] = n < columns ? float(from_y[row + n]) : 0;
            x[row + n] = n < columns ? float(to_x[row + n]) : 0;
        }
        int64_t none[TILE] = {};
        for (int n = 0; n < all; n += STRIDE<float>)
            search(f, i, y, x, s, {5e-7, 6, true}, n, none, evaluations);
        for (int n = 0; n < columns; n++)
            if (x[row + n] != float(to_x[row + n]) && std::isfinite(x[row + n]))
                to_x[row + n] = x[row + n];
    }
};

// x from y, both tiles; x holds where to start. evaluations: at most so many of a variable.
template <class T>
void substitute(const Branch<T>& f, const T* y, T* x, Searching<T>& s, Rough& rough, Goal goal,
                int64_t first, int points, int columns, int64_t* evaluations) {
    bool reverse = f.layer[0].reverse;
    s.columns = columns;
    for (int k = 0; k < f.features; k++) {
        int i = reverse ? f.features - 1 - k : k, within = k % s.together;
        Group group{k - within, std::min(f.features, k - within + s.together)};
        int place = reverse ? group.end - 1 - k : within;
        for (int l = 0; l < f.layers; l++) {
            if (!within) contribution_to_group(f, l, group, x, s, first, points);
            s.base[l] = s.group[l] + place * f.layer[l].k_out * TILE;
            if (within) contribution(f, l, {k, k + 1}, {group.begin, k}, x, s, s.base[l], true);
        }
        int64_t before[TILE] = {};
        if constexpr (sizeof(T) == sizeof(double)) rough.start(i, y, x, s, columns, before);
        for (int n = 0; n < columns; n += STRIDE<T>)
            search(f, i, y, x, s, goal, n, before, evaluations);
    }
}
