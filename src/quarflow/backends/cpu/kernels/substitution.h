// The inverse of x + F(x), one variable after the other.
//
// Given the variables before it, a variable's equation has one unknown, and only its own diagonal
// blocks have to be evaluated again and again. What the earlier variables contribute is computed
// once, so that all D variables together cost about one forward pass, plus the searches. Each
// search ends with an evaluation at its root, so the residuals are known without another pass.
#pragma once

#include "branch.h"

// Where a search stops: at this residual, relative to 1 + |y|.
struct Goal {
    double tolerance;
    int evaluations;
    bool slopes;         // whether the slopes at the root are asked for
    bool rough = false;  // only a start is wanted: no residual need be known
};

// A slope that is known this well at the least makes steps that leave so much of a residual.
constexpr double LEFT = 1.0 / 64;
constexpr double ROUGH = 5e-7;  // where a first search in float32 stops

template <class T>
bool any(const T& mask) {
    uint64_t words[sizeof(T) / 8], found = 0;
    std::memcpy(words, &mask, sizeof(T));
    for (uint64_t w : words) found |= w;
    return found;
}

template <class T>
inline T magnitude(T x) {
    return x < 0 ? -x : x;
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
    T *low, *high;          // its bracket
    T *x, *error, *gain;    // where it was evaluated before, with slopes; gain is 1 / slope
    T *left;                // its residuals, relative to 1 + |y|
    int columns, together;  // of a tile; variables in a group
    T* bend;                // of each variable: how much its units and F curve in it at most
    // Of STRIDE points each: whether the search goes on, and the next evaluation only confirms.
    bool open[TILE], sure[TILE];

    void lay_out(Space& space, const Branch<T>& f) {
        together = std::min(f.features, group_size(f.layer[0].k_out));
        for (int l = 0; l < f.layers; l++) {
            const Layer<T>& a = f.layer[l];
            group[l] = space.take<T>(int64_t(together) * a.k_out * TILE);
            base[l] = group[l];
            tangent[l] = space.take<T>(int64_t(a.k_out) * TILE);
            if (l + 1 < f.layers) tape.hidden[l].h = space.take<T>(int64_t(a.out) * TILE);
        }
        for (T** row : {&F, &d, &low, &high, &x, &error, &gain, &left}) *row = space.take<T>(TILE);
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
                     s.columns, add ? nullptr : a.b + row, add ? out : nullptr);
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

// F of variable i, and d if asked for, at some points from column n on; leaves its hidden units
// where later variables read them.
template <class T>
void evaluate(const Branch<T>& f, int i, const T* x, Searching<T>& s, int n, int columns,
              bool tangents) {
    const T* v = x + i * TILE + n;
    for (int l = 0; l < f.layers; l++) {
        const Layer<T>& a = f.layer[l];
        bool last = l + 1 == f.layers;
        T* z = (last ? s.F : s.tape.hidden[l].h + i * a.k_out * TILE) + n;
        T* u = (last ? s.d : s.tangent[l]) + n;
        const T* B = a.B + int64_t(i) * a.k_out * a.k_in;
        int way = a.reverse ? -1 : 1, from = a.reverse ? a.k_in - 1 : 0;
        small_product<T>(a.k_out, {B + from, a.k_in, way}, v + from * TILE, way * TILE, a.k_in, z,
                         TILE, columns, nullptr, s.base[l] + n);
        if (tangents && l)
            small_product<T>(a.k_out, {B, a.k_in, 1}, s.tangent[l - 1] + n, TILE, a.k_in, u, TILE,
                             columns);
        else if (tangents)
            for (int r = 0; r < a.k_out; r++)
                for (int c = 0; c < columns; c += LANES<T>) store(u + r * TILE + c, splat<T>(B[r]));
        if (last) return;
        if (tangents)
            activate_layer<T, TANGENTS>(f.activation, {z, u, nullptr, nullptr}, a.k_out, columns);
        else
            activate_layer<T, VALUES>(f.activation, {z, u, nullptr, nullptr}, a.k_out, columns);
        v = z;
    }
}

// By how much a Newton step has to be corrected for the bend of f between two evaluations: the
// inverse of f is interpolated, with both slopes. 0 where they do not close in on the root.
template <class T>
Vec<T> correction(Vec<T> now, Vec<T> error, Vec<T> gain, Vec<T> x, Vec<T> was, Vec<T> gain_was) {
    Vec<T> apart = 1 / (was - error), mean = (x - now) * apart;
    Vec<T> near = (mean - gain) * apart, far = (gain_was - mean) * apart;
    Vec<T> found = error * error * (near - was * (far - near) * apart);
    auto good = (2 * magnitude(error) < magnitude(was)) &
                (2 * magnitude(found) <= magnitude(error * gain));
    return good ? found : splat<T>(0);
}

// What an evaluation of variable i at STRIDE points tells: residuals, the bracket, and where to
// go next, inside it. fresh: whether slopes were computed with it.
template <class T>
void advance(int i, const T* y, T* x, Searching<T>& s, Goal goal, int sweep, bool fresh, int n) {
    const T largest = std::numeric_limits<T>::max(), tolerance = T(goal.tolerance);
    bool moved = false, sure = true;
    for (int p = n; p < n + STRIDE<T>; p += LANES<T>) {
        Vec<T> now = load(x + i * TILE + p), target = load(y + i * TILE + p);
        Vec<T> error = now + load(s.F + p) - target, gain = 1 / (1 + load(s.d + p));
        Vec<T> size = magnitude(error), unit = 1 + magnitude(target), aim = tolerance * unit;
        store(s.left + p, size / unit);
        // f is increasing in its own variable: the sign tells on which side the root is.
        Vec<T> low = error < 0 ? now : load(s.low + p), high = error > 0 ? now : load(s.high + p);
        store(s.low + p, low);
        store(s.high + p, high);
        Vec<T> bent = splat<T>(0), middle = low / 2 + high / 2;
        if (fresh) {
            bent = correction<T>(now, error, gain, load(s.x + p), load(s.error + p),
                                 load(s.gain + p));
            store(s.x + p, now);
            store(s.error + p, error);
            store(s.gain + p, gain);
        }
        // While one side is open, ever longer steps: slopes that mislead cannot hold it up.
        Vec<T> next = now - error * gain * T(int64_t(1) << std::min(sweep / 8, 40)) + bent;
        auto halve = (next <= low) | (next >= high);
        if (sweep % 4 == 3 && sweep > 8) halve |= size >= 0;
        next = (halve & (magnitude(middle) <= largest)) ? middle : next;
        auto open = size > aim;
        next = open ? next : now;
        if (any(next != now)) moved = true;
        // What is left then: the square of the step, times how much F bends; less than what the
        // bend was found to make; or some of the residual, where the slope is an earlier one.
        Vec<T> step = next - now;
        auto enough = size * T(LEFT) <= aim;
        if (fresh)
            enough = (step * step * s.bend[i] <= aim) |
                     ((bent != 0) & (magnitude(bent) <= 4 * aim));
        if (any(open & (halve | ~enough))) sure = false;
        if (sweep + 1 < goal.evaluations) store(x + i * TILE + p, next);
    }
    s.open[n / STRIDE<T>] = moved && !(goal.rough && sure);
    s.sure[n / STRIDE<T>] = sure && sweep < 8;
}

// Variable i at all points: Newton with corrections, inside a bracket once there is one. Only
// where it goes on are points evaluated, neighbours together.
template <class T>
void search(const Branch<T>& f, int i, const T* y, T* x, Searching<T>& s, Goal goal,
            int64_t* evaluations) {
    constexpr int S = STRIDE<T>;
    const Vec<T> infinity = splat<T>(std::numeric_limits<T>::infinity());
    for (int n = 0; n < s.columns; n += LANES<T>) {
        store(s.low + n, -infinity);
        store(s.high + n, infinity);
        store(s.error + n, splat<T>(0));
    }
    std::fill(s.open, s.open + TILE, true);
    bool going = true;
    for (int sweep = 0; going && sweep < goal.evaluations; sweep++) {
        going = false;
        for (int n = 0, end; n < s.columns; n = end) {
            int k = n / S;
            end = n + S;
            if (!s.open[k]) continue;
            while (end < s.columns && s.open[end / S] && s.sure[end / S] == s.sure[k]) end += S;
            bool fresh = goal.slopes || !s.sure[k];
            evaluate(f, i, x, s, n, end - n, fresh);
            for (int p = n; p < end; p += S) {
                advance(i, y, x, s, goal, sweep, fresh, p);
                going |= s.open[p / S];
            }
            for (int p = n; p < end; p++) evaluations[p]++;
        }
    }
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

    // Variable i of x, where it is to be found from what is known in s, and its slope there;
    // counts evaluations.
    template <class T>
    void start(int i, const T* from_y, T* to_x, Searching<T>& known, int64_t* evaluations) {
        int row = i * TILE, columns = known.columns;
        s.columns = round_up(columns, STRIDE<float>);
        for (int l = 0; l < f.layers; l++)
            for (int r = 0; r < f.layer[l].k_out; r++)
                for (int n = 0; n < s.columns; n++)
                    s.base[l][r * TILE + n] = n < columns ? float(known.base[l][r * TILE + n]) : 0;
        for (int n = 0; n < s.columns; n++) {
            y[row + n] = n < columns ? float(from_y[row + n]) : 0;
            x[row + n] = n < columns ? float(to_x[row + n]) : 0;
        }
        std::fill(s.sure, s.sure + TILE, false);
        search(f, i, y, x, s, {ROUGH, 6, true, true}, evaluations);
        for (int n = 0; n < columns; n++) {
            if (x[row + n] != float(to_x[row + n]) && std::isfinite(x[row + n]))
                to_x[row + n] = x[row + n];
            known.d[n] = s.d[n];
        }
    }
};

// Where slopes of the first search do for a step in T: they are sound, and it need not be exact.
template <class T>
void trust(Searching<T>& s, Goal goal) {
    std::fill(s.sure, s.sure + TILE, goal.tolerance >= ROUGH * LEFT);
    for (int n = 0; n < s.columns; n++)
        if (!(s.d[n] > -1 && s.d[n] < 1)) s.sure[n / STRIDE<T>] = false;
}

// x from y, both tiles; x holds where to start, and slope gets those at x if they are asked for.
// evaluations: of the variable that takes most, of which goal has the most there may be.
template <class T>
void substitute(const Branch<T>& f, const T* y, T* x, T* slope, T* residual, Searching<T>& s,
                Rough& rough, Goal goal, int64_t first, int points, int columns,
                int64_t* evaluations) {
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
        int64_t used[TILE] = {};
        std::fill(s.sure, s.sure + TILE, false);
        if constexpr (sizeof(T) == sizeof(double)) {
            rough.start(i, y, x, s, used);
            trust(s, goal);
        }
        search(f, i, y, x, s, goal, used);
        for (int n = 0; n < columns; n++) {
            T left = s.left[n];
            residual[n] = left > residual[n] || left != left ? left : residual[n];  // NaN stays
            evaluations[n] = std::max(evaluations[n], used[n]);
            if (slope) slope[i * TILE + n] = 1 + s.d[n];
        }
    }
}
