/* The Fourier transform along the group axis: v ← H v and v ← Hᵀ v, of numbers or of vectors of them.
 *
 * A transform is a parameter of the functions that use it. The two fast ones are the bases of p4 and p4m with their scales
 * left out; `with_transform` calls a function with the one of a problem.
 */
#pragma once
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

/* Any basis, as a matrix, of any order up to that of the cube's symmetries. */
template <typename T> struct GeneralTransform {
    static constexpr int capacity = MAX_ORDER;
    int order;
    const T *basis; /* (order, order) */

    template <typename V> INLINE void forward(V *v) const
    {
        V out[capacity];
        for (int i = 0; i < order; i++) {
            out[i] = basis[i * order] * v[0];
            for (int j = 1; j < order; j++) out[i] += basis[i * order + j] * v[j];
        }
        for (int i = 0; i < order; i++) v[i] = out[i];
    }
    template <typename V> INLINE void inverse(V *v) const
    {
        V out[capacity];
        for (int j = 0; j < order; j++) {
            out[j] = basis[j] * v[0];
            for (int i = 1; i < order; i++) out[j] += basis[i * order + j] * v[i];
        }
        for (int j = 0; j < order; j++) v[j] = out[j];
    }
};

/* Call a function, which is compiled for each transform, with that of the problem. */
template <typename T, class Function> INLINE void with_transform(const Problem &p, const T *basis, Function function)
{
    if (p.transform == DIHEDRAL4)
        function(Dihedral4{});
    else if (p.transform == CYCLIC4)
        function(Cyclic4{});
    else
        function(GeneralTransform<T>{(int)p.order, basis});
}

} // namespace
