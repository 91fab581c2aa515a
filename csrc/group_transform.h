/* The Fourier transform along the group axis: v ← H v and v ← Hᵀ v, of numbers or of vectors of them.
 *
 * A transform is a parameter of the functions that use it. The fast ones are bases of p4 and p4m, and of the rotations and
 * of all symmetries of a cube, with their scales left out; `transform.py` states the same as matrices and finds the groups
 * that they serve. `with_transform` calls a function with the one of a problem.
 */
#pragma once
#include "arena.h"
#include "simd.h"

namespace {

struct Cyclic4 {
    static constexpr int order = 4, capacity = 4;

    template <typename V> INLINE void forward(V *v) const
    {
        V s02 = v[0] + v[2], s13 = v[1] + v[3], d02 = v[0] - v[2], d13 = v[1] - v[3];
        v[0] = s02 + s13, v[1] = s02 - s13, v[2] = d02, v[3] = d13;
    }
    template <typename V> INLINE void inverse(V *v) const
    {
        V p = v[0] + v[1], m = v[0] - v[1], s = v[2], d = v[3];
        v[0] = p + s, v[1] = m + d, v[2] = p - s, v[3] = m - d;
    }
};

struct Dihedral4 {
    static constexpr int order = 8, capacity = 8;

    template <typename V> INLINE void forward(V *v) const
    {
        V s0 = v[0] + v[4], s1 = v[1] + v[5], s2 = v[2] + v[6], s3 = v[3] + v[7];
        V d0 = v[0] - v[4], d1 = v[1] - v[5], d2 = v[2] - v[6], d3 = v[3] - v[7];
        V s02 = s0 + s2, s13 = s1 + s3, d02 = d0 + d2, d13 = d1 + d3;
        v[0] = s02 + s13, v[1] = d02 + d13, v[2] = s02 - s13, v[3] = d02 - d13;
        v[4] = s0 - s2, v[5] = s1 - s3, v[6] = d3 - d1, v[7] = d0 - d2;
    }
    template <typename V> INLINE void inverse(V *v) const
    {
        V p = v[0] + v[2], m = v[0] - v[2], q = v[1] + v[3], n = v[1] - v[3];
        V s0 = p + v[4], s2 = p - v[4], s1 = m + v[5], s3 = m - v[5];
        V d0 = q + v[7], d2 = q - v[7], d1 = n - v[6], d3 = n + v[6];
        v[0] = s0 + d0, v[1] = s1 + d1, v[2] = s2 + d2, v[3] = s3 + d3;
        v[4] = s0 - d0, v[5] = s1 - d1, v[6] = s2 - d2, v[7] = s3 - d3;
    }
};

/* The rotations of a cube, v[4·c + n] that of n, a rotation by 180° about an axis or none, before c, which exchanges axes.
 * Sums over n by the signs of each axis come first; for no signs, and for those of each axis, a small transform over c
 * remains. 82 additions in place of 576 multiplications. */
template <typename T> struct Octahedral {
    static constexpr int order = 24, capacity = 24;

    template <typename V> NOINLINE void forward(V *v) const
    {
        V t[4][6]; /* by sign: none, of each axis */
#pragma GCC unroll 6
        for (int c = 0; c < 6; c++) {
            V s = v[4 * c] + v[4 * c + 1], d = v[4 * c] - v[4 * c + 1];
            V s2 = v[4 * c + 2] + v[4 * c + 3], d2 = v[4 * c + 2] - v[4 * c + 3];
            t[0][c] = s + s2, t[1][c] = s - s2, t[2][c] = d - d2, t[3][c] = d + d2;
        }
        const V *e = t[0];
        V even = e[1] + e[2], odd = e[4] + e[5], all_even = e[0] + even, all_odd = e[3] + odd;
        V p = e[0] + e[0] - even, r = e[3] + e[3] - odd, q = (e[1] - e[2]) * ROOT3, w = (e[5] - e[4]) * ROOT3;
        v[0] = all_even + all_odd, v[1] = all_even - all_odd;
        v[2] = p + r, v[3] = w - q, v[4] = q + w, v[5] = p - r;
#pragma GCC unroll 3
        for (int j = 0; j < 3; j++)
#pragma GCC unroll 3
            for (int i = 0; i < 3; i++) {
                V a = t[1 + j][even_coset(i, j)], b = t[1 + j][odd_coset(i, j)];
                v[plus(i, j)] = a + b, v[minus(i, j)] = a - b;
            }
    }
    template <typename V> NOINLINE void inverse(V *v) const
    {
        V t[4][6], *e = t[0];
        V s = v[0] + v[1], d = v[0] - v[1], p = v[2] + v[5], r = v[2] - v[5];
        V q = (v[4] - v[3]) * ROOT3, w = (v[3] + v[4]) * ROOT3, rest = s - p, odd_rest = d - r;
        e[0] = s + p + p, e[1] = rest + q, e[2] = rest - q;
        e[3] = d + r + r, e[4] = odd_rest - w, e[5] = odd_rest + w;
#pragma GCC unroll 3
        for (int j = 0; j < 3; j++)
#pragma GCC unroll 3
            for (int i = 0; i < 3; i++) {
                V a = v[plus(i, j)], b = v[minus(i, j)];
                t[1 + j][even_coset(i, j)] = a + b, t[1 + j][odd_coset(i, j)] = a - b;
            }
#pragma GCC unroll 6
        for (int c = 0; c < 6; c++) {
            V a = t[0][c] + t[1][c], b = t[0][c] - t[1][c], f = t[2][c] + t[3][c], g = t[3][c] - t[2][c];
            v[4 * c] = a + f, v[4 * c + 1] = a - f, v[4 * c + 2] = b + g, v[4 * c + 3] = b - g;
        }
    }

private:
    static constexpr T ROOT3 = 1.7320508075688772935;
    /* The even and the odd permutation of axes that move axis j to i; the odd one reverses axis 1. */
    static constexpr int even_coset(int i, int j) { return (i - j + 3) % 3; }
    static constexpr int odd_coset(int i, int j) { return 3 + 2 * (i + j) % 3; }
    static constexpr int plus(int i, int j) { return (i == 1 ? 15 : 6) + 3 * i + j; }
    static constexpr int minus(int i, int j) { return (i == 1 ? 6 : 15) + 3 * i + j; }
};

/* All symmetries of a cube: the rotations, then each after the inversion. */
template <typename T> struct FullOctahedral {
    static constexpr int order = 48, capacity = 48;

    template <typename V> INLINE void forward(V *v) const
    {
        exchange(v);
        Octahedral<T>{}.forward(v), Octahedral<T>{}.forward(v + 24);
    }
    template <typename V> INLINE void inverse(V *v) const
    {
        Octahedral<T>{}.inverse(v), Octahedral<T>{}.inverse(v + 24);
        exchange(v);
    }

private:
    template <typename V> INLINE void exchange(V *v) const
    {
        for (int g = 0; g < 24; g++) {
            V sum = v[g] + v[g + 24];
            v[g + 24] = v[g] - v[g + 24], v[g] = sum;
        }
    }
};

/* The rows of a matrix without its zeros: bases have many. */
template <typename T> struct SparseRows {
    Array<int32_t> end, column; /* of each row, where it ends; of each value */
    Array<T> value;

    SparseRows(Arena &arena, const double *matrix, index_t order, index_t row_step, index_t column_step)
        : end(arena.take<int32_t>(order)), column(arena.take<int32_t>(order * order)), value(arena.take<T>(order * order))
    {
        if (arena.measures()) return;
        int32_t count = 0;
        for (index_t i = 0; i < order; end[i++] = count)
            for (index_t j = 0; j < order; j++)
                if (double entry = matrix[i * row_step + j * column_step])
                    column[count] = (int32_t)j, value[count++] = (T)entry;
    }

    template <typename V> INLINE void multiply(V *v) const
    {
        V out[MAX_ORDER];
        const int order = (int)end.size;
        for (int i = 0, n = 0; i < order; i++) {
            V sum = V{};
            for (; n < end[i]; n++) sum += value[n] * v[column[n]];
            out[i] = sum;
        }
        for (int i = 0; i < order; i++) v[i] = out[i];
    }
};

template <typename T> struct Basis {
    SparseRows<T> rows, columns;

    Basis(Arena &arena, const Problem &p)
        : rows(arena, p.basis, p.order, p.order, 1), columns(arena, p.basis, p.order, 1, p.order)
    {
    }
};

/* Any basis, of any order up to that of the cube's symmetries. */
template <typename T> struct GeneralTransform {
    static constexpr int capacity = MAX_ORDER;
    int order;
    const Basis<T> *basis;

    template <typename V> INLINE void forward(V *v) const { basis->rows.multiply(v); }
    template <typename V> INLINE void inverse(V *v) const { basis->columns.multiply(v); }
};

/* Call a function, which is compiled for each transform, with that of the problem. */
template <typename T, class Function> INLINE void with_transform(const Problem &p, const Basis<T> &basis, Function function)
{
    if (p.transform == DIHEDRAL4)
        function(Dihedral4{});
    else if (p.transform == CYCLIC4)
        function(Cyclic4{});
    else if (p.transform == OCTAHEDRAL)
        function(Octahedral<T>{});
    else if (p.transform == FULL_OCTAHEDRAL)
        function(FullOctahedral<T>{});
    else
        function(GeneralTransform<T>{(int)p.order, &basis});
}

} // namespace
