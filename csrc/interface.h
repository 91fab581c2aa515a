/* What Python and the kernels hand to each other. `library.py` declares the same structures with ctypes; the library's
 * `version`, `problem_bytes` and `tensors_bytes` must agree when it is loaded, and a test compares the fields.
 */
#pragma once
#include <stdint.h>

constexpr int INTERFACE_VERSION = 14; /* changes with everything declared here */
constexpr int AXES = 3;              /* spatial axes; an image has one slice, and its slice axis has stride 1 */
constexpr int MAX_ORDER = 48;        /* group elements, those of the cube with its reflections */
constexpr int MAX_STRIDE = 3;        /* along each axis */
constexpr int MAX_ELEMENTS = 343;    /* of a kernel: 7×7×7 */
constexpr int MAX_POOL_WINDOW = 8;   /* along each axis */

enum DataType { FLOAT32 = 0, FLOAT64 = 1, BFLOAT16 = 2 }; /* of feature maps; with BFLOAT16 all else is FLOAT32 */
/* separable: gc; factored: g; direct: lifting, and dense or g filters with blocks of channels; gathered: see gather.h */
enum Kind { DENSE = 0, SEPARABLE = 1, FACTORED = 2, DIRECT = 3, GATHERED = 4 };
enum TransformKind { GENERAL = 0, CYCLIC4 = 4, DIHEDRAL4 = 8, OCTAHEDRAL = 24, FULL_OCTAHEDRAL = 48 };
enum Pass { FORWARD = 0, BACKWARD = 1, EXPAND = 2 };

/* One convolution: y (batch, order, out_channels, out_size) of x (batch, in_order, in_channels, in_size). */
struct Problem {
    int64_t dtype, kind, transform, threads;
    int64_t batch, order, in_channels, out_channels;
    int64_t in_order, groups; /* the order, or 1 of images to lift; blocks of channels */
    int64_t in_size[AXES], out_size[AXES], stride[AXES], padding[AXES];
    int64_t elements;         /* of the kernel */
    int64_t blocks;           /* of the Fourier basis */
    int64_t batch_stats;      /* whether mean and var are those of x, so that gradients pass through them */
    double eps;               /* of the batch norm */
    double low, high;         /* bounds of norm_clamp, which may be infinite */
    int64_t window[AXES];     /* of max_pool */
    const int32_t *block;     /* (blocks, 3): first row of the basis, size, copies */
    const int32_t *offset;    /* (elements, order, AXES): where each group element moves each kernel element, in pixels */
    const int32_t *product;   /* (order, order): the index of g·h */
    const double *basis;      /* (order, order): H */
    const double *irreps;     /* (Σ size², order): W[a,c] = Σ_h irrep[a,c,h] w[h], scaled to go with H */
};

/* An address that becomes a pointer to the values of whoever reads it. */
struct Address {
    void *address;
    template <typename T> operator T *() const { return static_cast<T *>(address); }
    explicit operator bool() const { return address != nullptr; }
};

/* Every tensor that a kernel reads or writes, contiguous; null where there is none, or a result is not wanted. x, residual,
 * y and their gradients are feature maps. */
struct Tensors {
    Address x;           /* (B, in_order, I, …) */
    Address weight;      /* (O, I/groups, in_order, k…); (O, I/groups, |H|) beside depthwise; (O, elements·I, |H|) gathered */
    Address depthwise;   /* (O, k…) of a separable filter, (O, I, k…) of one in factors */
    Address expanded;    /* filters of expand_filters, read in place of weight and depthwise */
    Address bias;        /* (O); of a transposed convolution, computed as dx, (I) */
    Address gamma;       /* (I), of a batch norm: where mean is given, relu(norm(x)) is convolved */
    Address beta;        /* (I) */
    Address mean;        /* (I) */
    Address var;         /* (I) */
    Address residual;    /* (B, |H|, O, …), added to y */
    Address y;           /* (B, |H|, O, …) */
    Address index;       /* int64, of y's shape: where max_pool found each value, if wanted */
    Address y_mean;      /* (O), statistics of y */
    Address y_var;       /* (O), biased */
    Address grad;        /* of y */
    Address other_grad;  /* of x's shape, added to dx */
    Address dx;
    Address dweight;
    Address ddepthwise;
    Address dbias;
    Address dgamma;
    Address dbeta;
    Address dresidual;   /* of norm_clamp */
    Address products;    /* (saved_products): of x and a separable filter; written forward, read backward */
    Address workspace;   /* as many bytes as `workspace_bytes` returns */
};
