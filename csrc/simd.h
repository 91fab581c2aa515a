/* Vectors of one type of number, the widest that the compiler's flags allow.
 *
 * `Simd<T, Bytes, M>` is the parameter of every kernel: rows are read in vectors of `Bytes`, matrix products compute in wide
 * vectors. `Vector` and `Wide` are values; memory is read and written by the functions below, at any address. Feature maps
 * in memory are of type M, which is T, or BFloat16 with T = float; everything else is of type T.
 */
#pragma once
#include "base.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
#if defined(__AVX512F__) && defined(__AVX512DQ__)
constexpr bool HAS_32_REGISTERS = true;
constexpr int WIDE_BYTES = 64; /* in matrix products; elsewhere, rows of eight pixels are to fill a vector */
#else
constexpr bool HAS_32_REGISTERS = false;
constexpr int WIDE_BYTES = VECTOR_BYTES;
#endif

/* The numbers below Count, as arguments of a template. */
template <int... Number> struct Numbers {};
template <int Count, int... Number> struct NumbersBelow : NumbersBelow<Count - 1, Count - 1, Number...> {};
template <int... Number> struct NumbersBelow<0, Number...> {
    using type = Numbers<Number...>;
};

/* The upper half of a float: a number in memory, which is read as a float and rounded to nearest, ties to even. */
struct BFloat16 {
    uint16_t bits;

    BFloat16() = default;
    INLINE BFloat16(float value)
    {
        uint32_t all;
        memcpy(&all, &value, sizeof all);
        bits = value != value ? 0xffff : (uint16_t)((all + 0x7fff + (all >> 16 & 1)) >> 16);
    }
    INLINE operator float() const
    {
        const uint32_t all = (uint32_t)bits << 16;
        float value;
        memcpy(&value, &all, sizeof value);
        return value;
    }
};

/* A vector of integers, and the same at any address in memory. */
template <typename Integer, int Bytes> struct Integers {
    typedef Integer Value __attribute__((vector_size(Bytes)));
    typedef Integer Memory __attribute__((vector_size(Bytes), aligned(sizeof(Integer)), may_alias));
};

template <typename T, int Bytes, typename M = T> struct Simd {
    using Scalar = T;
    using Map = M;
    typedef T Vector __attribute__((vector_size(Bytes)));
    typedef T Wide __attribute__((vector_size(WIDE_BYTES)));
    using Mask = decltype(Vector{} < Vector{});
    using Bits = typename Integers<uint32_t, Bytes>::Value; /* of vectors of floats */
    using Halves = Integers<uint16_t, Bytes / 2>;
    static constexpr index_t lanes = Bytes / sizeof(T);
    static constexpr index_t wide_lanes = WIDE_BYTES / sizeof(T);
    static constexpr index_t pair = 2 * lanes; /* columns of tiles and of matrix products come in pairs of vectors */

    typedef T Memory __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
    typedef T WideMemory __attribute__((vector_size(WIDE_BYTES), aligned(sizeof(T)), may_alias));

    static INLINE Vector load(const T *from) { return *reinterpret_cast<const Memory *>(from); }
    static INLINE void store(T *to, Vector v) { *reinterpret_cast<Memory *>(to) = v; }
    static INLINE Vector load(const BFloat16 *from)
    {
        return floats(*reinterpret_cast<const typename Halves::Memory *>(from));
    }
    static INLINE void store(BFloat16 *to, Vector v) { *reinterpret_cast<typename Halves::Memory *>(to) = halves(v); }
    static INLINE Wide load_wide(const T *from) { return *reinterpret_cast<const WideMemory *>(from); }
    static INLINE void store_wide(T *to, Wide v) { *reinterpret_cast<WideMemory *>(to) = v; }

    /* Read up to a vector of values, zeros after them; write as many: masked, or in parts of sizes that the compiler knows. */
    template <typename E> static INLINE Vector load(const E *from, index_t count)
    {
        if (count >= lanes) return load(from);
#if defined(__AVX512VL__) && defined(__AVX512BW__)
        const auto mask = (uint16_t)((1 << count) - 1);
        if constexpr (sizeof(E) == 4 && Bytes == 32) return (Vector)_mm256_maskz_loadu_ps((uint8_t)mask, from);
        if constexpr (sizeof(E) == 4 && Bytes == 64) return (Vector)_mm512_maskz_loadu_ps(mask, from);
        if constexpr (sizeof(E) == 2 && Bytes == 32) return floats((HalfVector)_mm_maskz_loadu_epi16((uint8_t)mask, from));
        if constexpr (sizeof(E) == 2 && Bytes == 64) return floats((HalfVector)_mm256_maskz_loadu_epi16(mask, from));
#endif
        E some[lanes] = {};
        copy_some<lanes / 2>(some, from, count);
        return load(some);
    }
    template <typename E> static INLINE void store(E *to, Vector v, index_t count)
    {
        if (count >= lanes) return store(to, v);
#if defined(__AVX512VL__) && defined(__AVX512BW__)
        const auto mask = (uint16_t)((1 << count) - 1);
        if constexpr (sizeof(E) == 4 && Bytes == 32) return _mm256_mask_storeu_ps(to, (uint8_t)mask, (__m256)v);
        if constexpr (sizeof(E) == 4 && Bytes == 64) return _mm512_mask_storeu_ps(to, mask, (__m512)v);
        if constexpr (sizeof(E) == 2 && Bytes == 32) return _mm_mask_storeu_epi16(to, (uint8_t)mask, (__m128i)halves(v));
        if constexpr (sizeof(E) == 2 && Bytes == 64) return _mm256_mask_storeu_epi16(to, mask, (__m256i)halves(v));
#endif
        E some[lanes];
        store(some, v);
        copy_some<lanes / 2>(to, some, count);
    }

    /* Read or write every stride-th value of a vector, or one value if V is a number. */
    template <class V, typename E, class Stride> static INLINE void read(V &v, const E *from, Stride stride)
    {
        if constexpr (sizeof(V) == sizeof(T))
            v = *from;
        else if constexpr (Stride::capacity == 1)
            v = load(from);
        else {
            Vector some = {};
#pragma GCC unroll 16
            for (index_t lane = 0; lane < lanes; lane++) some[lane] = from[lane * stride];
            v = some;
        }
    }
    template <class V, typename E, class Stride> static INLINE void write(E *to, V v, Stride stride)
    {
        if constexpr (sizeof(V) == sizeof(T))
            *to = v;
        else if constexpr (Stride::capacity == 1)
            store(to, v);
        else
#pragma GCC unroll 16
            for (index_t lane = 0; lane < lanes; lane++) to[lane * stride] = v[lane];
    }
    /* Return v where gate > 0 or NaN, else 0. */
    template <class V> static INLINE V where_positive(V gate, V v)
    {
        if constexpr (sizeof(V) == sizeof(T))
            return gate <= 0 ? 0 : v;
        else
            return where(~(gate <= V{}), v);
    }

    /* Transpose as many vectors as a vector has lanes: exchange squares of 1, 2, 4, … lanes. */
    static INLINE void transpose(Vector *v) { exchange<1>(v, typename NumbersBelow<lanes>::type{}); }

    /* Return the values at even places of two vectors that follow each other. */
    static INLINE Vector even_places(Vector a, Vector b)
    {
        return even_places(a, b, typename NumbersBelow<lanes>::type{});
    }

    static INLINE Vector broadcast(T value) { return Vector{} + value; }
    static INLINE T sum(Vector v)
    {
        T total = 0;
        for (index_t lane = 0; lane < lanes; lane++) total += v[lane];
        return total;
    }

    /* Where the mask is set, v, else 0; NaN is left out too. */
    static INLINE Vector where(Mask mask, Vector v) { return (Vector)(mask & (Mask)v); }
    static INLINE Vector select(Mask mask, Vector a, Vector b) { return (Vector)((mask & (Mask)a) | (~mask & (Mask)b)); }

private:
    using HalfVector = typename Halves::Value;

    static INLINE Vector floats(HalfVector halves)
    {
#if defined(__AVX2__) /* one instruction, which the compiler does not find */
        if constexpr (Bytes == 32) return (Vector)((Bits)_mm256_cvtepu16_epi32((__m128i)halves) << 16);
#endif
        return (Vector)(__builtin_convertvector(halves, Bits) << 16);
    }
    static INLINE HalfVector halves(Vector v)
    {
        const Bits bits = (Bits)v, nan = (Bits)(v != v), rounded = bits + 0x7fff + (bits >> 16 & 1);
        return __builtin_convertvector((rounded | nan) >> 16, HalfVector);
    }
    template <int... Lane> static INLINE Vector even_places(Vector a, Vector b, Numbers<Lane...>)
    {
        return Vector{(2 * Lane < lanes ? a[2 * Lane % lanes] : b[2 * Lane % lanes])...};
    }
    template <int Step, int... Lane> static INLINE void exchange(Vector *v, Numbers<Lane...> all)
    {
        if constexpr (Step < lanes) {
#pragma GCC unroll 16
            for (index_t i = 0; i < lanes; i++)
                if (!(i & Step)) {
                    Vector a = v[i], b = v[i + Step];
                    v[i] = Vector{(Lane & Step ? b[Lane & ~Step] : a[Lane])...};
                    v[i + Step] = Vector{(Lane & Step ? b[Lane] : a[Lane | Step])...};
                }
            exchange<2 * Step>(v, all);
        }
    }

    /* Copy fewer values than 2·Part. */
    template <index_t Part, typename E> static INLINE void copy_some(E *to, const E *from, index_t count)
    {
        const index_t part = count & Part;
        if (part) memcpy(to, from, Part * sizeof(E));
        if constexpr (Part > 1) copy_some<Part / 2>(to + part, from + part, count);
    }
};

/* Copy values, of feature maps or of a thread. */
template <class S, typename From, typename To> INLINE void copy_values(index_t count, const From *from, To *to)
{
    if constexpr (sizeof(From) == sizeof(To))
        for (index_t c = 0; c < count; c++) to[c] = from[c];
    else
        for (index_t c = 0; c < count; c += S::lanes) S::store(to + c, S::load(from + c, count - c), count - c);
}

/* Keep a value in a register: not read from memory by each product in turn. Only worth it where there are many. */
template <typename V> INLINE void hold_in_register(V &v)
{
#if defined(__AVX512F__)
    __asm__("" : "+v"(v));
#else
    (void)v;
#endif
}

/* Add the sums of four wide vectors' values to c[0..3], of which `columns` are there. */
template <class S>
INLINE void add_sums(const typename S::Wide *sum, typename S::Scalar *c, index_t columns)
{
    using T = typename S::Scalar;
    T total[4];
#if defined(__AVX2__)
    if constexpr (sizeof(T) == 4) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
        __m512 s0 = (__m512)sum[0], s1 = (__m512)sum[1], s2 = (__m512)sum[2], s3 = (__m512)sum[3];
        __m512d s01 = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(s0, s1), _mm512_unpackhi_ps(s0, s1));
        __m512d s23 = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(s2, s3), _mm512_unpackhi_ps(s2, s3));
        __m512 fours = _mm512_add_ps((__m512)_mm512_unpacklo_pd(s01, s23), (__m512)_mm512_unpackhi_pd(s01, s23));
        __m256 pairs = _mm256_add_ps(_mm512_castps512_ps256(fours), _mm512_extractf32x8_ps(fours, 1));
#else
        __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps((__m256)sum[0], (__m256)sum[1]),
                                      _mm256_hadd_ps((__m256)sum[2], (__m256)sum[3]));
#endif
        __m128 all = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
        if (columns >= 4) {
            _mm_storeu_ps(c, _mm_add_ps(_mm_loadu_ps(c), all));
            return;
        }
        memcpy(total, &all, sizeof total);
    } else
#endif
        for (int n = 0; n < 4; n++) {
            total[n] = 0;
            for (index_t lane = 0; lane < S::wide_lanes; lane++) total[n] += sum[n][lane];
        }
    for (index_t n = 0; n < 4 && n < columns; n++) c[n] += total[n];
}

} // namespace
