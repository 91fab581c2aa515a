/* The transform along the group axis for one type of number: REAL, and SUFFIX for the names. Included by kernels.c. */

/* v ← H v, and v ← Hᵀ v. The two fast ones are the bases of p4 and p4m with their scales left out. */
#define DEFINE_TRANSFORM(TYPE, name)                                                                                  \
    INLINE void NAME(name##_forward)(TYPE *v, int order, int transform, const REAL *basis)                            \
    {                                                                                                                 \
        if (transform == DIHEDRAL4) {                                                                                 \
            TYPE s0 = v[0] + v[4], s1 = v[1] + v[5], s2 = v[2] + v[6], s3 = v[3] + v[7];                              \
            TYPE d0 = v[0] - v[4], d1 = v[1] - v[5], d2 = v[2] - v[6], d3 = v[3] - v[7];                              \
            TYPE s02 = s0 + s2, s13 = s1 + s3, d02 = d0 + d2, d13 = d1 + d3;                                          \
            v[0] = s02 + s13, v[1] = d02 + d13, v[2] = s02 - s13, v[3] = d02 - d13;                                   \
            v[4] = s0 - s2, v[5] = s1 - s3, v[6] = d3 - d1, v[7] = d0 - d2;                                           \
        } else if (transform == CYCLIC4) {                                                                            \
            TYPE s02 = v[0] + v[2], s13 = v[1] + v[3], d02 = v[0] - v[2], d13 = v[1] - v[3];                          \
            v[0] = s02 + s13, v[1] = s02 - s13, v[2] = d02, v[3] = d13;                                               \
        } else {                                                                                                      \
            TYPE out[ORDER];                                                                                          \
            for (int i = 0; i < order; i++) {                                                                         \
                out[i] = basis[i * order] * v[0];                                                                     \
                for (int j = 1; j < order; j++) out[i] += basis[i * order + j] * v[j];                                \
            }                                                                                                         \
            for (int i = 0; i < order; i++) v[i] = out[i];                                                            \
        }                                                                                                             \
    }                                                                                                                 \
    INLINE void NAME(name##_inverse)(TYPE *v, int order, int transform, const REAL *basis)                            \
    {                                                                                                                 \
        if (transform == DIHEDRAL4) {                                                                                 \
            TYPE p = v[0] + v[2], m = v[0] - v[2], q = v[1] + v[3], n = v[1] - v[3];                                  \
            TYPE s0 = p + v[4], s2 = p - v[4], s1 = m + v[5], s3 = m - v[5];                                          \
            TYPE d0 = q + v[7], d2 = q - v[7], d1 = n - v[6], d3 = n + v[6];                                          \
            v[0] = s0 + d0, v[1] = s1 + d1, v[2] = s2 + d2, v[3] = s3 + d3;                                           \
            v[4] = s0 - d0, v[5] = s1 - d1, v[6] = s2 - d2, v[7] = s3 - d3;                                           \
        } else if (transform == CYCLIC4) {                                                                            \
            TYPE p = v[0] + v[1], m = v[0] - v[1], s = v[2], d = v[3];                                                \
            v[0] = p + s, v[1] = m + d, v[2] = p - s, v[3] = m - d;                                                   \
        } else {                                                                                                      \
            TYPE out[ORDER];                                                                                          \
            for (int j = 0; j < order; j++) {                                                                         \
                out[j] = basis[j] * v[0];                                                                             \
                for (int i = 1; i < order; i++) out[j] += basis[i * order + j] * v[i];                                \
            }                                                                                                         \
            for (int j = 0; j < order; j++) v[j] = out[j];                                                            \
        }                                                                                                             \
    }
DEFINE_TRANSFORM(vector, vectors)
DEFINE_TRANSFORM(REAL, numbers)

/* Call a function whose loops the compiler unrolls for each order. */
#define BY_ORDER(p, call)                                                                                             \
    do {                                                                                                              \
        if ((p)->transform == DIHEDRAL4) { enum { N = 8, TRANSFORM = DIHEDRAL4 }; call; }                             \
        else if ((p)->transform == CYCLIC4) { enum { N = 4, TRANSFORM = CYCLIC4 }; call; }                            \
        else { const int N = (int)(p)->order; enum { TRANSFORM = GENERAL }; call; }                                   \
    } while (0)
