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
};

template <class T>
bool any(const T& mask) {
    uint64_t words[sizeof(T) / 8], found = 0;
    std::memcpy(words, &mask, sizeof(T));
    for (uint64_t w : words) found |= w;
    return found;
}

template <class T>
struct Searching {
    Tape<T> tape;           // hidden layers of all variables found so far; slopes are not used
    T* base[MAX_LAYERS];    // of one variable: what the earlier ones contribute, units x TILE
    T* tangent[MAX_LAYERS]; // of one variable
    T *F, *d;               // of one variable

    void lay_out(Space& space, const Branch<T>& f) {
        for (int l = 0; l < f.layers; l++) {
            const Layer<T>& a = f.layer[l];
            base[l] = space.take<T>(int64_t(a.k_out) * TILE);
            tangent[l] = space.take<T>(int64_t(a.k_out) * TILE);
            if (l + 1 < f.layers) tape.hidden[l].h = space.take<T>(int64_t(a.out) * TILE);
        }
        F = space.take<T>(TILE);
        d = space.take<T>(TILE);
    }
};

// What layer l of variable i gets from the variables before it, and from the bias.
template <class T>
void contribution(const Branch<T>& f, int l, int i, const T* x, Searching<T>& s, int64_t first,
                  int points, int columns) {
    const Layer<T>& a = f.layer[l];
    const T* h = l ? s.tape.hidden[l - 1].h : x;
    int row = i * a.k_out, way = a.reverse ? -1 : 1, from = a.reverse ? a.in - 1 : 0;
    int count = (a.reverse ? f.features - 1 - i : i) * a.k_in;
    if (a.b_row)
        points_to_tile(a.b + first * a.b_row + row, a.b_row, s.base[l], points, columns, a.k_out);
    small_product<T>(a.k_out, {a.W + int64_t(row) * a.in + from, a.in, way}, h + from * TILE,
                     way * TILE, count, s.base[l], TILE, columns, a.b_row ? nullptr : a.b + row,
                     a.b_row != 0);
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
            int64_t* evaluations) {
    constexpr int L = LANES<T>, V = STRIDE<T> / LANES<T>;
    const Vec<T> infinity = splat<T>(std::numeric_limits<T>::infinity());
    const T largest = std::numeric_limits<T>::max();
    Vec<T> low[V], high[V], before[V], step[V];
    for (int c = 0; c < V; c++) low[c] = -infinity, high[c] = infinity, before[c] = infinity;
    int used = 0;
    for (int sweep = 0; sweep < goal.evaluations; sweep++) {
        evaluate(f, i, x, s, n);
        used++;
        bool moved = false, last = true;
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
            // Newton squares the ratio of residuals: where that will do, the next evaluation would
            // only confirm it. (Before the first step the ratio is 0 / infinity: not known.)
            Vec<T> ratio = size / before[c];
            auto unsure = 4 * size * ratio * ratio > T(goal.tolerance) * (1 + of);
            unsure |= (before[c] == infinity) | halve | !(size < before[c]);
            if (any(open & unsure)) last = false;
            before[c] = size;
            step[c] = next - now;
        }
        if (!moved) break;
        if (last) {
            follow(f, i, s, n, step);
            break;
        }
    }
    for (int c = 0; c < STRIDE<T>; c++)
        evaluations[n + c] = std::max<int64_t>(evaluations[n + c], used);
}

// x from y, both tiles; x holds where to start. evaluations: at most so many of a variable.
template <class T>
void substitute(const Branch<T>& f, const T* y, T* x, Searching<T>& s, Goal goal, int64_t first,
                int points, int columns, int64_t* evaluations) {
    for (int k = 0; k < f.features; k++) {
        int i = f.layer[0].reverse ? f.features - 1 - k : k;
        for (int l = 0; l < f.layers; l++) contribution(f, l, i, x, s, first, points, columns);
        for (int n = 0; n < columns; n += STRIDE<T>) search(f, i, y, x, s, goal, n, evaluations);
    }
}
