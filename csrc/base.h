/* Integers, and what the compiler is told. Everything is compiled in one unit, so each header is in an anonymous namespace. */
#pragma once
#include "interface.h"
#include <math.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#define INLINE __attribute__((always_inline)) inline
#define INLINE_LAMBDA __attribute__((always_inline))
#define NOINLINE __attribute__((noinline)) /* where a function is to have all registers for itself */

namespace {

using index_t = int64_t;

INLINE constexpr index_t smaller(index_t a, index_t b) { return a < b ? a : b; }
INLINE constexpr index_t larger(index_t a, index_t b) { return a > b ? a : b; }
INLINE constexpr index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; } /* of a ≥ 0 */
INLINE constexpr index_t floor_div(index_t a, index_t b) { return b == 1 ? a : a >= 0 ? a / b : -((-a + b - 1) / b); }
INLINE constexpr index_t round_up(index_t a, index_t step) { return ceil_div(a, step) * step; }

/* Return a multiple of `step` rounded up to an odd one. Rows that are a multiple of many cache lines apart would all fall on
 * the same few places of a cache. */
INLINE constexpr index_t odd_multiple(index_t size, index_t step) { return size / step % 2 ? size : size + step; }

/* Return the size of the fewest parts of at most `most` that cover `all`, equal but for rounding up to `step`. */
INLINE constexpr index_t equal_part_size(index_t all, index_t most, index_t step)
{
    const index_t parts = larger(1, ceil_div(all, most));
    return round_up(larger(1, ceil_div(all, parts)), step);
}

INLINE constexpr index_t product(const int64_t *sizes, int count = AXES)
{
    index_t result = 1;
    for (int axis = 0; axis < count; axis++) result *= sizes[axis];
    return result;
}

/* A number that the compiler knows, as an argument; and one that it does not. */
template <int N> struct Constant {
    static constexpr int value = N, capacity = N;
    constexpr operator int() const { return N; }
};

template <int Capacity> struct Variable {
    static constexpr int capacity = Capacity;
    int value;
    operator int() const { return value; }
};

INLINE index_t thread_number()
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

} // namespace
