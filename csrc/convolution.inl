/* Convolutions on a group for one type of number: REAL, and SUFFIX for the names. Included by kernels.c. */

/* ---- what one thread works with ------------------------------------------------------------------------------ */

typedef struct {
    Layout layout;
    int32_t *place;          /* in a plane, of each vector of columns */
    REAL basis[ORDER * ORDER];
    REAL *hat, *hat_grad;    /* H x and the gradient of it, (order, I, columns) */
    REAL *strip;             /* products of a block of outputs on a strip, (order, outputs × taps, strip) */
    REAL *planes;            /* of a block of outputs, (outputs, order, size) of y or its gradient */
    REAL *inner;             /* planes of u, (phases, outputs, order, size), of a separable layer */
    REAL *blank;             /* one plane, for shifts that have another phase: zeros to read, rubbish to write */
    REAL *weight_grad;       /* gradient of the blocks W, laid out as in pack() */
    REAL *depth_grad;        /* (O, taps), of factors (O, I, taps) */
    REAL *norm_grad;         /* (2, I) */
} Thread;

INLINE void NAME(lay_places)(const Problem *p, const Tile *t, Thread *w)
{
    const Layout *l = &w->layout;
    (void)p;
    for (index_t f = 0; f < l->phases; f++) {
        const Phase *phase = &l->phase[f];
        for (index_t c = 0; c < phase->count; c += LANES) {
            index_t image = c / phase->image_step, place = t->images * l->image_step; /* past the last image */
            if (image < t->images) {
                index_t rest = c - image * phase->image_step;
                place = image * l->image_step + rest / phase->row_step * l->row_step + rest % phase->row_step;
            }
            w->place[(phase->start + c) / LANES] = (int32_t)(l->margin + place);
        }
    }
}

/* hat ← H x for one tile; values between the rows stay the zeros that they are. It is (order, I, columns), or, as fused
 * products read it, (columns / LANES, I, order, LANES). */
INLINE void NAME(load)(const Problem *p, const Tile *t, const Thread *w, const REAL *x, Affine affine, int fused, int N,
                       int TRANSFORM)
{
    const Layout *l = &w->layout;
    index_t plane = p->height * p->width, fiber = p->in_channels * plane, step = p->in_channels * l->columns;
    index_t channel = fused ? N * LANES : l->columns, along = fused ? p->in_channels * N : 1;
    if (fused) step = LANES;
    for (index_t f = 0; f < l->phases; f++) {
        const Phase *phase = &l->phase[f];
        index_t rows = phase->rows, columns = phase->columns;
        if (!phase->count) continue;
        if (p->stride_y * p->stride_x == 1 && phase->row_step == columns) columns *= rows, rows = 1; /* one long row */
        for (index_t i = 0; i < p->in_channels; i++) {
            REAL scale = affine.scale ? affine.scale[i] : 1, shift = affine.shift ? affine.shift[i] : 0;
            vector none = {0};
            for (index_t image = 0; image < t->images; image++)
                for (index_t r = 0; r < rows; r++) {
                    const REAL *from = x + (t->first_image + image) * N * fiber + i * plane
                        + (t->in_row + p->stride_y * r + phase->row) * p->width + phase->column;
                    index_t column = phase->start + image * phase->image_step + r * phase->row_step;
                    REAL *to = w->hat + i * channel + column * along;
                    index_t c = 0;
                    if (p->stride_x == 1)
                        for (; c + LANES <= columns; c += LANES) {
                            vector v[ORDER];
#pragma GCC unroll 8
                            for (int g = 0; g < N; g++) {
                                v[g] = AT(from + g * fiber + c);
                                if (affine.scale) {
                                    v[g] = v[g] * scale + shift;
                                    v[g] = (vector)((mask)v[g] & ~(v[g] < none)); /* NaN stays */
                                }
                            }
                            NAME(vectors_forward)(v, N, TRANSFORM, w->basis);
#pragma GCC unroll 8
                            for (int g = 0; g < N; g++) AT(to + g * step + c * along) = v[g];
                        }
                    for (; c < columns; c++) {
                        REAL v[ORDER];
#pragma GCC unroll 8
                        for (int g = 0; g < N; g++) {
                            v[g] = from[g * fiber + c * p->stride_x];
                            if (affine.scale) {
                                v[g] = v[g] * scale + shift;
                                v[g] = v[g] < 0 ? 0 : v[g];
                            }
                        }
                        NAME(numbers_forward)(v, N, TRANSFORM, w->basis);
#pragma GCC unroll 8
                        for (int g = 0; g < N; g++) to[g * step + c] = v[g];
                    }
                }
        }
    }
}

/* x_grad ← more + Hᵀ hat_grad for one tile, through the norm: that of its statistics is left to the caller. */
INLINE void NAME(unload)(const Problem *p, const Tile *t, const Thread *w, const REAL *x, const REAL *more,
                         REAL *x_grad, Affine affine, int N, int TRANSFORM)
{
    const Layout *l = &w->layout;
    index_t plane = p->height * p->width, fiber = p->in_channels * plane, step = p->in_channels * l->columns;
    for (index_t f = 0; f < l->phases; f++) {
        const Phase *phase = &l->phase[f];
        index_t rows = phase->rows, columns = phase->columns;
        if (p->stride_y * p->stride_x == 1 && phase->row_step == columns && phase->count) columns *= rows, rows = 1;
        for (index_t i = 0; i < p->in_channels; i++) {
            REAL scale = affine.scale ? affine.scale[i] : 1, shift = affine.shift ? affine.shift[i] : 0;
            vector none = {0}, scale_grad = {0}, shift_grad = {0};
            REAL scale_rest = 0, shift_rest = 0;
            for (index_t image = 0; image < t->images; image++)
                for (index_t r = 0; r < rows; r++) {
                    index_t at = (t->first_image + image) * N * fiber + i * plane
                        + (t->in_row + p->stride_y * r + phase->row) * p->width + phase->column;
                    REAL *to = x_grad + at;
                    const REAL *input = x + at, *also = more ? more + at : NULL;
                    if (!phase->count) {
                        for (int g = 0; g < N; g++)
                            for (index_t c = 0, offset = g * fiber; c < columns; c++, offset += p->stride_x)
                                to[offset] = also ? also[offset] : 0;
                        continue;
                    }
                    const REAL *from =
                        w->hat_grad + i * l->columns + phase->start + image * phase->image_step + r * phase->row_step;
                    index_t c = 0;
                    if (p->stride_x == 1)
                        for (; c + LANES <= columns; c += LANES) {
                            vector v[ORDER];
#pragma GCC unroll 8
                            for (int g = 0; g < N; g++) v[g] = AT(from + g * step + c);
                            NAME(vectors_inverse)(v, N, TRANSFORM, w->basis);
#pragma GCC unroll 8
                            for (int g = 0; g < N; g++) {
                                if (affine.scale) {
                                    vector value = AT(input + g * fiber + c);
                                    v[g] = (vector)((mask)v[g] & ~(value * scale + shift <= none));
                                    shift_grad += v[g];
                                    scale_grad += v[g] * value;
                                    v[g] *= scale;
                                }
                                if (also) v[g] += AT(also + g * fiber + c);
                                AT(to + g * fiber + c) = v[g];
                            }
                        }
                    for (; c < columns; c++) {
                        REAL v[ORDER];
#pragma GCC unroll 8
                        for (int g = 0; g < N; g++) v[g] = from[g * step + c];
                        NAME(numbers_inverse)(v, N, TRANSFORM, w->basis);
#pragma GCC unroll 8
                        for (int g = 0; g < N; g++) {
                            index_t offset = g * fiber + c * p->stride_x;
                            if (affine.scale) {
                                v[g] = input[offset] * scale + shift <= 0 ? 0 : v[g];
                                shift_rest += v[g];
                                scale_rest += v[g] * input[offset];
                                v[g] *= scale;
                            }
                            to[offset] = v[g] + (also ? also[offset] : 0);
                        }
                    }
                }
            if (affine.scale) {
                for (index_t lane = 0; lane < LANES; lane++)
                    scale_rest += scale_grad[lane], shift_rest += shift_grad[lane];
                w->norm_grad[i] += scale_rest;
                w->norm_grad[p->in_channels + i] += shift_rest;
            }
        }
    }
}

/* A tile's part of the gradient of y to planes, (outputs, order, size), zeros between; and back, plus bias and more. */
static void NAME(read_planes)(const Problem *p, const Tile *t, const Thread *w, index_t first, index_t outputs,
                              const REAL *y)
{
    const Layout *l = &w->layout;
    index_t plane = p->out_height * p->out_width;
    for (index_t image = 0; image < t->images; image++)
        for (index_t g = 0; g < p->order; g++)
            for (index_t o = 0; o < outputs; o++) {
                const REAL *from = y + (((t->first_image + image) * p->order + g) * p->out_channels + first + o) * plane
                    + t->out_row * p->out_width;
                REAL *to = w->planes + (o * p->order + g) * l->size + l->margin + image * l->image_step;
                for (index_t r = 0; r < t->out_rows; r++)
                    for (index_t c = 0; c < p->out_width; c++) to[r * l->row_step + c] = from[r * p->out_width + c];
            }
}

static void NAME(write_planes)(const Problem *p, const Tile *t, const Thread *w, index_t first, index_t outputs,
                               const REAL *bias, const REAL *more, REAL *y, Moments *moments)
{
    const Layout *l = &w->layout;
    index_t plane = p->out_height * p->out_width;
    for (index_t image = 0; image < t->images; image++)
        for (index_t g = 0; g < p->order; g++)
            for (index_t o = 0; o < outputs; o++) {
                const REAL *from = w->planes + (o * p->order + g) * l->size + l->margin + image * l->image_step;
                index_t start = (((t->first_image + image) * p->order + g) * p->out_channels + first + o) * plane
                    + t->out_row * p->out_width, place = start;
                REAL added = bias ? bias[first + o] : 0;
                for (index_t r = 0; r < t->out_rows; r++, place += p->out_width, from += l->row_step)
                    if (more)
                        for (index_t c = 0; c < p->out_width; c++) y[place + c] = from[c] + added + more[place + c];
                    else
                        for (index_t c = 0; c < p->out_width; c++) y[place + c] = from[c] + added;
                if (moments) NAME(join_values)(moments + first + o, y + start, place - start);
            }
}

/* ---- filters -------------------------------------------------------------------------------------------------- */

/* Whether blocks of this size stay in factors, in a phase with this number of taps. */
INLINE int NAME(in_factors)(const Problem *p, index_t size, index_t taps)
{
    return KEEPS_FACTORS && p->kind == FACTORED && size == 2 && taps == FACTORED_TAPS && p->taps == taps;
}

/* Where the blocks W of a phase lie: one after another, each (size, O, taps of the phase, size, I) for
 * W[(a,o,t), (c,i)] = Σ_k irrep[a,c,k] w[o,i,k,t]; those in factors have the pointwise one for w, and one tap. */
INLINE index_t NAME(blocks_size)(const Problem *p, index_t taps)
{
    index_t total = 0;
    for (index_t b = 0; b < p->blocks; b++) {
        index_t size = p->block[3 * b + 1];
        total += size * size * (NAME(in_factors)(p, size, taps) ? 1 : taps);
    }
    return total * p->out_channels * p->in_channels;
}

INLINE index_t NAME(phase_taps)(const Problem *p, const Phase *phase)
{
    return p->kind == SEPARABLE ? phase->taps > 0 : phase->taps;
}

/* Values of the depthwise factor. */
INLINE index_t NAME(depth_size)(const Problem *p)
{
    return p->kind == DENSE ? 0 : p->out_channels * p->taps * (p->kind == FACTORED ? p->in_channels : 1);
}

/* A filter (O, I, |H|, taps), or a pointwise one (O, I, |H|) and for FACTORED its depth (O, I, taps); the gradients. */
typedef struct { const REAL *weight, *depth; REAL *weight_grad, *depth_grad; } Filter;

/* Gradients of parts of the tiles, so far apart; null for none. */
typedef struct { REAL *grads; index_t count, step; } Parts;

/* The blocks of a filter or, if there are parts, its gradients: the sums of their blocks, transformed back. */
static void NAME(transform_filters)(const Problem *p, const Layout *l, index_t o, Filter filter, REAL *blocks, Parts parts)
{
    index_t I = p->in_channels, order = p->order, taps = p->taps, own = p->kind == DENSE ? taps : 1; /* of weight */
    REAL values[ORDER * TAPS][LANES], depth[TAPS][LANES]; /* of LANES input channels, */
    REAL value_grads[ORDER * TAPS][LANES], depth_grads[TAPS][LANES];
    for (index_t first = 0; first < I; first += LANES) {
        index_t lanes = smaller(LANES, I - first), start = 0;
        index_t at_weight = (o * I + first) * order * own, at_depth = (o * I + first) * taps;
        for (index_t lane = 0; lane < LANES; lane++) { /* the last again where there are no more */
            index_t from = smaller(lane, lanes - 1);
            const REAL *weight = filter.weight + at_weight + from * order * own;
            for (index_t n = 0; n < order * own; n++) values[n][lane] = weight[n];
            for (index_t t = 0; t < taps && p->kind == FACTORED; t++)
                depth[t][lane] = filter.depth[at_depth + from * taps + t];
        }
        memset(value_grads, 0, order * own * sizeof *value_grads);
        memset(depth_grads, 0, taps * sizeof *depth_grads);
        for (index_t f = 0; f < l->phases; f++) {
            index_t count = NAME(phase_taps)(p, &l->phase[f]);
            const double *irrep = p->irreps;
            for (index_t b = 0; b < p->blocks; b++) {
                index_t size = p->block[3 * b + 1];
                int factors = NAME(in_factors)(p, size, count), multiplied = p->kind == FACTORED && !factors;
                index_t rows = factors ? 1 : count;
                for (index_t entry = 0; entry < size * size; entry++, irrep += order) {
                    vector hat = {0}, hat_grad = {0}; /* of a pointwise factor */
                    for (index_t k = 0; k < order && p->kind != DENSE; k++) hat += (REAL)irrep[k] * AT(values[k]);
                    for (index_t n = 0; n < rows; n++) {
                        index_t tap = l->phase[f].tap[n], a = entry / size, c = entry % size;
                        index_t at = start + (((a * p->out_channels + o) * rows + n) * size + c) * I + first;
                        vector factor = (vector){0} + 1;
                        if (multiplied) factor = AT(depth[tap]);
                        if (parts.grads) {
                            vector sum = {0};
                            for (index_t part = 0; part < parts.count; part++)
                                sum += NAME(take)(parts.grads + part * parts.step + at, lanes);
                            for (index_t k = 0; k < order && p->kind == DENSE; k++)
                                AT(value_grads[k * taps + tap]) += (REAL)irrep[k] * sum;
                            if (multiplied) AT(depth_grads[tap]) += hat * sum;
                            hat_grad += factor * sum;
                        } else {
                            vector total = hat * factor;
                            for (index_t k = 0; k < order && p->kind == DENSE; k++)
                                total += (REAL)irrep[k] * AT(values[k * taps + tap]);
                            NAME(put)(blocks + at, total, lanes);
                        }
                    }
                    for (index_t k = 0; k < order && p->kind != DENSE; k++)
                        AT(value_grads[k]) += (REAL)irrep[k] * hat_grad;
                }
                start += size * size * p->out_channels * rows * I;
            }
        }
        for (index_t lane = 0; lane < lanes && parts.grads; lane++) {
            for (index_t n = 0; n < order * own; n++)
                filter.weight_grad[at_weight + lane * order * own + n] = value_grads[n][lane];
            for (index_t t = 0; t < taps && p->kind == FACTORED; t++)
                filter.depth_grad[at_depth + lane * taps + t] += depth_grads[t][lane];
        }
    }
}

/* ---- a block of outputs on a strip of columns ------------------------------------------------------------------ */

typedef struct { index_t outputs, columns, step; } Strip; /* of how many outputs and columns, and of its rows */

static Strip NAME(strip_of)(const Problem *p, int backward)
{
    index_t taps = p->kind == SEPARABLE ? 1 : p->taps;
    index_t most = backward ? 28 : NAME(fuses)(p) ? 6 : 14; /* forward, planes of u take room */
    if (p->kind != SEPARABLE) most = larger(1, 36 / taps);
    index_t outputs = even_part(p->out_channels, most, 1);
    index_t columns = (backward ? 122880 : 49152) / (taps * outputs * p->order) / WIDTH;
    columns = smaller(64, larger(2, columns)) * WIDTH;
    return (Strip){outputs, columns, columns / WIDTH % 2 ? columns : columns + WIDTH};
}

/* Visit each block of W and each copy of it: matrices (rows, size·I), rows (size) apart for each a. */
#define FOR_BLOCKS(p, phase_start, count, ...)                                                                        \
    do {                                                                                                              \
        index_t base = (phase_start);                                                                                 \
        for (index_t b = 0; b < (p)->blocks; b++) {                                                                   \
            index_t size = (p)->block[3 * b + 1], depth = size * (p)->in_channels;                                    \
            int factors = NAME(in_factors)(p, size, count);                                                           \
            for (index_t a = 0; a < size; a++, base += (p)->out_channels * (factors ? 1 : (count)) * depth)           \
                for (index_t copy = 0; copy < (p)->block[3 * b + 2]; copy++) {                                        \
                    index_t input = (p)->block[3 * b] + copy * size;                                                  \
                    __VA_ARGS__;                                                                                      \
                }                                                                                                     \
        }                                                                                                             \
    } while (0)

/* strip (order, rows, columns) ← W hat, for outputs from `first` on; `taps` rows of each are of the phase. */
static void NAME(multiply)(const Problem *p, const Thread *w, const REAL *blocks, const REAL *filter, index_t start,
                           index_t taps, index_t first, index_t outputs, index_t column, index_t count, Strip s)
{
    index_t I = p->in_channels, rows = outputs * taps, hat_step = w->layout.columns;
    FOR_BLOCKS(p, start, taps,
        const REAL *hat = w->hat + input * I * hat_step + column;
        REAL *strip = w->strip + (input + a) * rows * s.step;
        if (!factors)
            NAME(product)(rows, depth, count, blocks + base + first * taps * depth, depth, hat, hat_step, strip, s.step);
        else if (a == 0)
            for (index_t j = 0; j < count; j += WIDE_LANES)
                for (index_t o = 0; o < outputs; o++)
                    NAME(through)(I, blocks + base + (first + o) * depth, p->out_channels * depth,
                                  filter + (first + o) * I * taps, hat + j, hat_step, strip + o * taps * s.step + j,
                                  s.step, rows * s.step));
}

/* hat_grad = (of the first outputs) or += Wᵀ strip, and the gradient of W += strip hatᵀ. */
static void NAME(multiply_back)(const Problem *p, const Thread *w, const REAL *blocks, const REAL *filter,
                                index_t start, index_t taps, index_t first, index_t outputs, index_t column,
                                index_t count, Strip s)
{
    index_t I = p->in_channels, rows = outputs * taps, hat_step = w->layout.columns;
    FOR_BLOCKS(p, start, taps,
        const REAL *grad = w->strip + (input + a) * rows * s.step, *hat = w->hat + input * I * hat_step + column;
        REAL *hat_grad = w->hat_grad + input * I * hat_step + column;
        index_t each = (factors ? 1 : taps) * depth, place = base + first * each, sides = p->out_channels * each;
        if (!factors) {
            if (a == 0 && p->wants_x)
                NAME(transposed_product)(first > 0, depth, size, rows, count, blocks + place, sides, depth, grad, s.step,
                                         hat_grad, hat_step);
            if (p->wants_filters)
                NAME(inner_products)(rows, depth, count, grad, s.step, hat, hat_step, w->weight_grad + place, depth);
        } else if (a == 0) {
            for (index_t pair = 0; pair < outputs * I; pair++) {
                index_t o = pair / I, i = pair % I, at = place + o * depth + i, at_depth = (first * I + pair) * taps;
                const REAL point[4] = {blocks[at], blocks[at + I], blocks[at + sides], blocks[at + sides + I]};
                REAL total[FACTORED_TAPS + 7] = {0};
                NAME(through_back)(first + o > 0, count, point, filter + at_depth, hat + i * hat_step,
                                   hat_grad + i * hat_step, I * hat_step, grad + o * taps * s.step, s.step,
                                   rows * s.step, total);
                for (index_t t = 0; t < FACTORED_TAPS; t++) w->depth_grad[at_depth + t] += total[t];
                w->weight_grad[at] += total[FACTORED_TAPS], w->weight_grad[at + I] += total[FACTORED_TAPS + 1];
                w->weight_grad[at + sides] += total[FACTORED_TAPS + 2];
                w->weight_grad[at + sides + I] += total[FACTORED_TAPS + 3];
            }
        });
}

/* planes[o,g] shifted += Hᵀ strip. */
INLINE void NAME(scatter)(const Thread *w, index_t f, index_t outputs, index_t column, index_t count,
                          Strip s, int N, int TRANSFORM)
{
    const Layout *l = &w->layout;
    const Phase *phase = &l->phase[f];
    const int32_t *place = w->place + column / LANES;
    index_t rows = outputs * phase->taps;
    for (index_t m = 0; m < rows; m++) {
        index_t o = m / phase->taps, tap = phase->tap[m % phase->taps];
        REAL *to[ORDER];
        for (int g = 0; g < N; g++)
            to[g] = l->phase_of[tap][g] == f ? w->planes + (o * N + g) * l->size - l->shift[tap][g] : w->blank;
        for (index_t c = 0; c < count; c += LANES) {
            vector v[ORDER];
            index_t at = place[c / LANES];
#pragma GCC unroll 8
            for (int g = 0; g < N; g++) v[g] = AT(w->strip + (g * rows + m) * s.step + c);
            NAME(vectors_inverse)(v, N, TRANSFORM, w->basis);
#pragma GCC unroll 8
            for (int g = 0; g < N; g++) AT(to[g] + at) += v[g];
        }
    }
}

/* strip ← H of the planes, shifted: the gradient of W hat. */
INLINE void NAME(gather)(const Thread *w, index_t f, index_t outputs, index_t column, index_t count,
                         Strip s, int N, int TRANSFORM)
{
    const Layout *l = &w->layout;
    const Phase *phase = &l->phase[f];
    const int32_t *place = w->place + column / LANES;
    index_t rows = outputs * phase->taps;
    for (index_t m = 0; m < rows; m++) {
        index_t o = m / phase->taps, tap = phase->tap[m % phase->taps];
        const REAL *from[ORDER];
        for (int g = 0; g < N; g++)
            from[g] = l->phase_of[tap][g] == f ? w->planes + (o * N + g) * l->size - l->shift[tap][g] : w->blank;
        for (index_t c = 0; c < count; c += LANES) {
            vector v[ORDER];
            index_t at = place[c / LANES];
#pragma GCC unroll 8
            for (int g = 0; g < N; g++) v[g] = AT(from[g] + at);
            NAME(vectors_forward)(v, N, TRANSFORM, w->basis);
#pragma GCC unroll 8
            for (int g = 0; g < N; g++) AT(w->strip + (g * rows + m) * s.step + c) = v[g];
        }
    }
}

/* inner[f,o,g] ← u = Hᵀ strip, of a separable layer. */
INLINE void NAME(spread)(const Thread *w, index_t f, index_t outputs, index_t column, index_t count,
                         Strip s, int N, int TRANSFORM)
{
    const Layout *l = &w->layout;
    const int32_t *place = w->place + column / LANES;
    for (index_t o = 0; o < outputs; o++) {
        REAL *to = w->inner + (f * s.outputs + o) * N * l->size;
        for (index_t c = 0; c < count; c += LANES) {
            vector v[ORDER];
            index_t at = place[c / LANES];
#pragma GCC unroll 8
            for (int g = 0; g < N; g++) v[g] = AT(w->strip + (g * outputs + o) * s.step + c);
            NAME(vectors_inverse)(v, N, TRANSFORM, w->basis);
#pragma GCC unroll 8
            for (int g = 0; g < N; g++) AT(to + g * l->size + at) = v[g];
        }
    }
}

/* Vectors of bias + more + Σ_t weight[t] from[t], of which `count` values are wanted; more may be null. */
INLINE void NAME(weighted_sum)(const REAL *weight, REAL *const *from, index_t at, REAL bias, const REAL *more, REAL *to,
                               index_t count, int vectors, int T)
{
    vector sum[2];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) {
        sum[v] = (vector){0} + bias;
        if (more) sum[v] += NAME(take)(more + v * LANES, count - v * LANES);
    }
#pragma GCC unroll 9
    for (int tap = 0; tap < T; tap++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) sum[v] += weight[tap] * AT(from[tap] + at + v * LANES);
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) NAME(put)(to + v * LANES, sum[v], count - v * LANES);
}

INLINE void NAME(weighted_row)(const REAL *weight, REAL *const *from, index_t at, REAL bias, const REAL *more, REAL *to,
                               index_t count, int T)
{
    index_t c = 0;
    for (; c + LANES < count; c += WIDTH)
        NAME(weighted_sum)(weight, from, at + c, bias, more ? more + c : NULL, to + c, count - c, 2, T);
    if (c < count) NAME(weighted_sum)(weight, from, at + c, bias, more ? more + c : NULL, to + c, count - c, 1, T);
}

/* y[o,g](q) = bias[o] + Σ_t depth[o,t] inner[o,g](q shifted), plus more. */
INLINE void NAME(weigh)(const Problem *p, const Tile *t, const Thread *w, index_t first, index_t outputs,
                        const REAL *depth, const REAL *bias, const REAL *more, REAL *y, Moments *moments, Strip s,
                        int T)
{
    const Layout *l = &w->layout;
    index_t plane = p->out_height * p->out_width, part = t->out_rows * p->out_width;
    for (index_t o = 0; o < outputs; o++)
        for (index_t g = 0; g < p->order; g++) {
            REAL weight[TAPS], *from[TAPS], added = bias ? bias[first + o] : 0;
            for (int tap = 0; tap < T; tap++) {
                weight[tap] = depth[(first + o) * T + tap];
                from[tap] = w->inner + ((l->phase_of[tap][g] * s.outputs + o) * p->order + g) * l->size
                    + l->shift[tap][g] + l->margin;
            }
            for (index_t image = 0; image < t->images; image++) {
                index_t place = (((t->first_image + image) * p->order + g) * p->out_channels + first + o) * plane
                    + t->out_row * p->out_width, at = image * l->image_step;
                const REAL *also = more ? more + place : NULL;
                for (index_t c = 0; c < part; c += p->out_width, at += l->row_step)
                    NAME(weighted_row)(weight, from, at, added, also ? also + c : NULL, y + place + c, p->out_width, T);
                if (moments) NAME(join_values)(moments + first + o, y + place, part);
            }
        }
}

/* One vector in each of R rows of bias + more + a 3×3 correlation; `count` values of it are wanted. */
INLINE void NAME(correlate)(const vector *weight, const REAL *from, index_t row_step, REAL bias, const REAL *more,
                            REAL *to, index_t to_step, index_t count, int R)
{
    vector sum[4];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
        sum[r] = (vector){0} + bias;
        if (more) sum[r] += NAME(take)(more + r * to_step, count);
    }
#pragma GCC unroll 6
    for (int row = 0; row < R + 2; row++)
#pragma GCC unroll 3
        for (int column = 0; column < 3; column++) {
            vector value = AT(from + row * row_step + column);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++)
                if (row - r >= 0 && row - r < 3) sum[r] += weight[3 * (row - r) + column] * value;
        }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) NAME(put)(to + r * to_step, sum[r], count);
}

INLINE void NAME(correlate_rows)(const vector *weight, const REAL *from, index_t row_step, REAL bias,
                                 const REAL *more, REAL *to, index_t to_step, index_t count, int R)
{
    index_t c = 0;
    for (; c + LANES <= count; c += LANES)
        NAME(correlate)(weight, from + c, row_step, bias, more ? more + c : NULL, to + c, to_step, LANES, R);
    if (c == count) return;
    index_t back = c ? c + LANES - count : 0; /* the last vector overlaps the one before if it can */
    c -= back, count = smaller(count - c, LANES);
    NAME(correlate)(weight, from + c, row_step, bias, more ? more + c : NULL, to + c, to_step, count, R);
}

/* The same of 3×3 taps side by side, at stride 1: each value is read once for all rows that it reaches. */
INLINE void NAME(weigh_square)(const Problem *p, const Tile *t, const Thread *w, index_t first, index_t outputs,
                               const REAL *depth, const REAL *bias, const REAL *more, REAL *y, Moments *moments)
{
    const Layout *l = &w->layout;
    index_t plane = p->out_height * p->out_width, width = p->out_width, step = l->row_step;
    for (index_t o = 0; o < outputs; o++)
        for (index_t g = 0; g < p->order; g++) {
            vector weight[9];
            REAL added = bias ? bias[first + o] : 0;
            for (int tap = 0; tap < 9; tap++) {
                const int32_t *place = p->moved + 2 * (tap * p->order + g);
                weight[3 * place[0] + place[1]] = (vector){0} + depth[(first + o) * 9 + tap];
            }
            for (index_t image = 0; image < t->images; image++) {
                const REAL *from = w->inner + (o * p->order + g) * l->size + l->margin + image * l->image_step
                    - l->padding * step - p->padding_x;
                index_t place = (((t->first_image + image) * p->order + g) * p->out_channels + first + o) * plane
                    + t->out_row * width, r = 0;
                REAL *to = y + place;
                const REAL *also = more ? more + place : NULL;
                for (; r + 4 <= t->out_rows; r += 4, from += 4 * step, to += 4 * width, also += also ? 4 * width : 0)
                    NAME(correlate_rows)(weight, from, step, added, also, to, width, width, 4);
                for (; r < t->out_rows; r++, from += step, to += width, also += also ? width : 0)
                    NAME(correlate_rows)(weight, from, step, added, also, to, width, width, 1);
                if (moments) NAME(join_values)(moments + first + o, y + place, t->out_rows * width);
            }
        }
}

/* u in, the gradient of it out: Σ_t depth[t] from[t]; total[t] += u·from[t]. */
INLINE void NAME(weigh_row_back)(const REAL *depth, const REAL *const *from, const int32_t *place, REAL *row,
                                 index_t count, vector *total, int T)
{
    vector sum[TAPS], weight[TAPS];
#pragma GCC unroll 9
    for (int tap = 0; tap < T; tap++) sum[tap] = total[tap], weight[tap] = (vector){0} + depth[tap];
    for (index_t c = 0; c < count; c += WIDTH, row += WIDTH) { /* two vectors, that a weight may serve both */
        index_t at = place[c / LANES], at2 = place[c / LANES + 1];
        vector u = AT(row), u2 = AT(row + LANES), grad = {0}, grad2 = {0};
#pragma GCC unroll 9
        for (int tap = 0; tap < T; tap++) {
            vector shifted = AT(from[tap] + at), shifted2 = AT(from[tap] + at2);
            grad += weight[tap] * shifted, grad2 += weight[tap] * shifted2;
            sum[tap] += u * shifted;
            sum[tap] += u2 * shifted2;
        }
        AT(row) = grad, AT(row + LANES) = grad2;
    }
#pragma GCC unroll 9
    for (int tap = 0; tap < T; tap++) total[tap] = sum[tap];
}

/* Apart, where the compiler has all registers for it. */
static __attribute__((noinline)) void NAME(weigh_nine_back)(const REAL *depth, const REAL *const *from,
                                                            const int32_t *place, REAL *row, index_t count,
                                                            vector *total)
{
    NAME(weigh_row_back)(depth, from, place, row, count, total, 9);
}

/* strip: û in, the gradient of it out; depth_grad[o,t] += Σ_g u[o,g] · (gradient of y, shifted). */
INLINE void NAME(weigh_back)(const Thread *w, index_t f, index_t first, index_t outputs,
                             index_t column, index_t count, const REAL *depth, Strip s, int N, int TRANSFORM, int T)
{
    const Layout *l = &w->layout;
    const int32_t *place = w->place + column / LANES;
    for (index_t o = 0; o < outputs; o++) {
        REAL *strip = w->strip + o * s.step;
        index_t step = outputs * s.step;
        vector total[TAPS];
        for (int tap = 0; tap < T; tap++) total[tap] = (vector){0};
        for (index_t c = 0; c < count; c += LANES) {
            vector v[ORDER];
#pragma GCC unroll 8
            for (int g = 0; g < N; g++) v[g] = AT(strip + g * step + c);
            NAME(vectors_inverse)(v, N, TRANSFORM, w->basis);
#pragma GCC unroll 8
            for (int g = 0; g < N; g++) AT(strip + g * step + c) = v[g];
        }
        for (int g = 0; g < N; g++) {
            const REAL *from[TAPS];
            for (int tap = 0; tap < T; tap++)
                from[tap] = l->phase_of[tap][g] == f ? w->planes + (o * N + g) * l->size - l->shift[tap][g] : w->blank;
            if (T == 9)
                NAME(weigh_nine_back)(depth + (first + o) * T, from, place, strip + g * step, count, total);
            else
                NAME(weigh_row_back)(depth + (first + o) * T, from, place, strip + g * step, count, total, T);
        }
        for (index_t c = 0; c < count; c += LANES) {
            vector v[ORDER];
#pragma GCC unroll 8
            for (int g = 0; g < N; g++) v[g] = AT(strip + g * step + c);
            NAME(vectors_forward)(v, N, TRANSFORM, w->basis);
#pragma GCC unroll 8
            for (int g = 0; g < N; g++) AT(strip + g * step + c) = v[g];
        }
        for (int tap = 0; tap < T; tap++)
            for (index_t lane = 0; lane < LANES; lane++) w->depth_grad[(first + o) * T + tap] += total[tap][lane];
    }
}

/* ---- whole tiles ------------------------------------------------------------------------------------------------ */

static void NAME(forward_tile)(const Problem *p, const Tile *t, Thread *w, const REAL *x, Affine affine,
                               const REAL *blocks, const REAL *depth, const REAL *bias, const REAL *more, REAL *y,
                               Moments *moments, Strip s)
{
    const Layout *l = &w->layout;
    int fused = NAME(fuses)(p);
    if (fused)
        NAME(load)(p, t, w, x, affine, 1, 8, DIHEDRAL4);
    else
        BY_ORDER(p, NAME(load)(p, t, w, x, affine, 0, N, TRANSFORM));
    for (index_t first = 0; first < p->out_channels; first += s.outputs) {
        index_t outputs = smaller(s.outputs, p->out_channels - first), start = 0;
        const REAL *filter = blocks + NAME(blocks_size)(p, 1) + first * p->in_channels * 8;
        for (index_t c = 0; fused && c < l->phase[0].count; c += LANES)
            NAME(fused)(outputs, p->in_channels, filter, w->hat + c * p->in_channels * 8, w->inner + w->place[c / LANES],
                        l->size);
        if (p->kind != SEPARABLE) memset(w->planes, 0, outputs * p->order * l->size * sizeof(REAL));
        for (index_t f = 0; !fused && f < l->phases; f++) {
            const Phase *phase = &l->phase[f];
            index_t taps = NAME(phase_taps)(p, phase);
            index_t strip = even_part(phase->count, s.columns, WIDTH);
            for (index_t c = 0; c < phase->count; c += strip) {
                index_t column = phase->start + c, count = smaller(strip, phase->count - c);
                NAME(multiply)(p, w, blocks, depth, start, taps, first, outputs, column, count, s);
                if (p->kind != SEPARABLE)
                    BY_ORDER(p, NAME(scatter)(w, f, outputs, column, count, s, N, TRANSFORM));
                else
                    BY_ORDER(p, NAME(spread)(w, f, outputs, column, count, s, N, TRANSFORM));
            }
            start += NAME(blocks_size)(p, taps);
        }
        if (p->kind != SEPARABLE)
            NAME(write_planes)(p, t, w, first, outputs, bias, more, y, moments);
        else if (l->square)
            NAME(weigh_square)(p, t, w, first, outputs, depth, bias, more, y, moments);
        else if (p->taps == 9) /* spelled out, so that the weights stay in registers */
            NAME(weigh)(p, t, w, first, outputs, depth, bias, more, y, moments, s, 9);
        else
            NAME(weigh)(p, t, w, first, outputs, depth, bias, more, y, moments, s, (int)p->taps);
    }
}

static void NAME(backward_tile)(const Problem *p, const Tile *t, Thread *w, const REAL *x, Affine affine,
                                const REAL *blocks, const REAL *depth, const REAL *y_grad, const REAL *more,
                                REAL *x_grad, Strip s)
{
    const Layout *l = &w->layout;
    BY_ORDER(p, NAME(load)(p, t, w, x, affine, 0, N, TRANSFORM));
    for (index_t first = 0; first < p->out_channels; first += s.outputs) {
        index_t outputs = smaller(s.outputs, p->out_channels - first), start = 0;
        NAME(read_planes)(p, t, w, first, outputs, y_grad);
        for (index_t f = 0; f < l->phases; f++) {
            const Phase *phase = &l->phase[f];
            index_t taps = NAME(phase_taps)(p, phase);
            index_t strip = even_part(phase->count, s.columns, WIDTH);
            for (index_t c = 0; c < phase->count; c += strip) {
                index_t column = phase->start + c, count = smaller(strip, phase->count - c);
                if (p->kind != SEPARABLE) {
                    BY_ORDER(p, NAME(gather)(w, f, outputs, column, count, s, N, TRANSFORM));
                } else {
                    if (p->wants_filters) /* u is read by the gradient of the depthwise factor alone */
                        NAME(multiply)(p, w, blocks, depth, start, taps, first, outputs, column, count, s);
                    if (p->taps == 9)
                        BY_ORDER(p, NAME(weigh_back)(w, f, first, outputs, column, count, depth, s, N, TRANSFORM, 9));
                    else
                        BY_ORDER(p, NAME(weigh_back)(w, f, first, outputs, column, count, depth, s, N, TRANSFORM,
                                                     (int)p->taps));
                }
                NAME(multiply_back)(p, w, blocks, depth, start, taps, first, outputs, column, count, s);
            }
            start += NAME(blocks_size)(p, taps);
        }
    }
    if (p->wants_x) BY_ORDER(p, NAME(unload)(p, t, w, x, more, x_grad, affine, N, TRANSFORM));
}

/* ---- whole convolutions ----------------------------------------------------------------------------------------- */

/* How many values each part of the work space holds: blocks and affine maps that are shared, then each thread's own, then
 * gradients of parts of the tiles. Threads ask for parts, but each sums its tiles in one order, whoever takes it. */
typedef struct {
    index_t blocks, affine, shared, places, hat, strip, planes, inner, blank, thread, weight_grad, depth_grad, norm_grad,
        grads, parts;
} Room;

static Room NAME(room)(const Problem *p, const Division *d, Strip s, int backward)
{
    Room room = {0};
    Layout l = {.images = -1};
    for (index_t band = 0; band < d->bands; band++) { /* images of later tiles are as many or fewer */
        Tile t = tile_at(p, d, band, backward);
        index_t blocks = 0;
        lay_out(p, &t, LANES, &l);
        for (index_t f = 0; f < l.phases; f++) blocks += NAME(blocks_size)(p, NAME(phase_taps)(p, &l.phase[f]));
        if (!backward && NAME(fuses)(p)) blocks += p->out_channels * p->in_channels * 8;
        room.blocks = larger(room.blocks, round_up(blocks, WIDTH));
        room.places = larger(room.places, round_up(l.columns / LANES, WIDTH));
        room.hat = larger(room.hat, p->order * p->in_channels * l.columns);
        room.blank = larger(room.blank, round_up(l.size, WIDTH));
    }
    room.affine = round_up(4 * p->in_channels, WIDTH);
    room.shared = room.blocks + room.affine;
    room.strip = !backward && NAME(fuses)(p) ? 0 : p->order * s.outputs * (p->kind == SEPARABLE ? 1 : p->taps) * s.step;
    room.planes = backward || p->kind != SEPARABLE ? s.outputs * p->order * room.blank : 0;
    room.inner = backward || p->kind != SEPARABLE ? 0 : p->stride_y * p->stride_x * s.outputs * p->order * room.blank;
    room.weight_grad = backward ? room.blocks : 0;
    room.depth_grad = backward ? round_up(NAME(depth_size)(p), WIDTH) : 0;
    room.norm_grad = backward ? round_up(2 * p->in_channels, WIDTH) : 0;
    room.thread = room.places + (backward ? 2 : 1) * room.hat + room.strip + room.planes + room.inner + room.blank;
    room.grads = room.weight_grad + room.depth_grad + room.norm_grad;
    room.parts = p->threads == 1 ? 1 : smaller(4 * p->threads, 786432 / larger(1, room.grads)); /* few stay in caches */
    room.parts = smaller(d->tiles, larger(p->threads, room.parts));
    return room;
}

static Thread NAME(settle)(const Problem *p, Room room, int backward, REAL *space)
{
    Thread w = {.layout = {.images = -1}};
    for (index_t i = 0; i < p->order * p->order; i++) w.basis[i] = (REAL)p->basis[i];
    w.place = (int32_t *)space, space += room.places;
    w.hat = space, space += room.hat;
    w.hat_grad = space, space += backward ? room.hat : 0;
    w.strip = space, space += room.strip;
    w.planes = space, space += room.planes;
    w.inner = space, space += room.inner;
    w.blank = space;
    return w;
}

/* Lay a tile out, and put zeros wherever this layout has them. */
static void NAME(prepare)(const Problem *p, const Tile *t, Thread *w, Room room)
{
    if (!lay_out(p, t, LANES, &w->layout)) return;
    NAME(lay_places)(p, t, w);
    memset(w->hat, 0, room.hat * sizeof(REAL));
    memset(w->planes, 0, (room.planes + room.inner + room.blank) * sizeof(REAL));
}

/* Values of work space that forward (0) or backward (1) needs. */
index_t NAME(workspace)(const Problem *p, int backward)
{
    Division d = divide(p, backward ? p->height : p->out_height, backward);
    Room room = NAME(room)(p, &d, NAME(strip_of)(p, backward), backward);
    index_t own = room.shared + p->threads * room.thread;
    return own + (backward ? room.parts * room.grads : NAME(moments_size)(d.tiles * p->out_channels));
}

/* The taps of each phase: the same in all tiles, which start at whole strides. */
static Layout NAME(whole_layout)(const Problem *p, const Division *d, int backward)
{
    Tile whole = tile_at(p, d, 0, backward);
    Layout l = {.images = -1};
    lay_out(p, &whole, LANES, &l);
    return l;
}

/* What forward reads in place of a filter: its blocks, and in fused layers the same once more, interleaved. Fused are
 * those whose rows fill vectors. First the number of values in a vector, then the values that forward reads. */
index_t NAME(vector_values)(void) { return LANES; }

index_t NAME(filters_size)(const Problem *p)
{
    Division d = divide(p, p->out_height, 0);
    return NAME(room)(p, &d, NAME(strip_of)(p, 0), 0).blocks;
}

static void NAME(expand_output)(const Problem *p, const Layout *l, index_t o, const REAL *weight, const REAL *depth,
                                REAL *blocks)
{
    NAME(transform_filters)(p, l, o, (Filter){weight, depth, NULL, NULL}, blocks, (Parts){0});
    if (NAME(fuses)(p))
        NAME(interleave)(p->in_channels, p->out_channels, o, blocks,
                         blocks + NAME(blocks_size)(p, 1) + o * p->in_channels * 8);
}

void NAME(expand_filters)(const Problem *p, const REAL *weight, const REAL *depth, REAL *blocks)
{
    Division d = divide(p, p->out_height, 0);
    Layout l = NAME(whole_layout)(p, &d, 0);
    for (index_t o = 0; o < p->out_channels; o++) NAME(expand_output)(p, &l, o, weight, depth, blocks);
}

/* y (B,|H|,O,Y',X') of x (B,|H|,I,Y,X); weight (O,I,|H|,taps), or (O,I,|H|) with depth (O,taps) or (O,I,taps); bias (O)
 * or null; gamma, beta, mean and var (I) of a norm: where mean is not null, relu(norm(x)) is convolved; more, of y's shape
 * or null, is added; y_mean and y_var (O) or null: those of y. Expanded filters (expand_filters) are used if not null. */
void NAME(forward)(const Problem *p, const REAL *x, const REAL *weight, const REAL *depth, const REAL *bias,
                   const REAL *gamma, const REAL *beta, const REAL *mean, const REAL *var, const REAL *more,
                   const REAL *expanded, REAL *y, REAL *y_mean, REAL *y_var, REAL *space)
{
    Division d = divide(p, p->out_height, 0);
    Strip s = NAME(strip_of)(p, 0);
    Room room = NAME(room)(p, &d, s, 0);
    Layout l = NAME(whole_layout)(p, &d, 0);
    const REAL *blocks = expanded ? expanded : space;
    Affine affine = NAME(affine_of)((Norm){gamma, beta, mean, var, p->eps}, p->in_channels, space + room.blocks);
    Moments *moments = (Moments *)(space + room.shared + p->threads * room.thread); /* of each tile's outputs */
    if (y_mean) memset(moments, 0, d.tiles * p->out_channels * sizeof *moments);
#pragma omp parallel num_threads((int)p->threads) if (p->threads > 1)
    {
        if (!expanded)
#pragma omp for
            for (index_t o = 0; o < p->out_channels; o++) NAME(expand_output)(p, &l, o, weight, depth, space);
        Thread w = NAME(settle)(p, room, 0, space + room.shared + thread_number() * room.thread);
#pragma omp for schedule(dynamic)
        for (index_t n = 0; n < d.tiles; n++) {
            Tile t = tile_at(p, &d, n, 0);
            NAME(prepare)(p, &t, &w, room);
            NAME(forward_tile)(p, &t, &w, x, affine, blocks, depth, bias, more, y,
                               y_mean ? moments + n * p->out_channels : NULL, s);
        }
    }
    if (y_mean) NAME(tell_all)(moments, d.tiles, p->out_channels, y_mean, y_var);
}

/* Gradients of x, weight, depth, gamma and beta, all of them overwritten; more, of x's shape or null, is added to that
 * of x. Where they are not wanted, x_grad, gamma_grad and beta_grad, or weight_grad and depth_grad, are not touched. */
void NAME(backward)(const Problem *p, const REAL *x, const REAL *weight, const REAL *depth, const REAL *gamma,
                    const REAL *beta, const REAL *mean, const REAL *var, const REAL *y_grad, const REAL *more,
                    REAL *x_grad, REAL *weight_grad, REAL *depth_grad, REAL *gamma_grad, REAL *beta_grad, REAL *space)
{
    Division d = divide(p, p->height, 1);
    Strip s = NAME(strip_of)(p, 1);
    Room room = NAME(room)(p, &d, s, 1);
    Layout l = NAME(whole_layout)(p, &d, 1);
    Norm norm = {gamma, beta, mean, var, p->eps};
    Affine affine = NAME(affine_of)(norm, p->in_channels, space + room.blocks);
    REAL *slope = space + room.blocks + 2 * p->in_channels, *offset = slope + p->in_channels;
    REAL *own = space + room.shared;
    Parts parts = {own + p->threads * room.thread, room.parts, room.grads};
    index_t pixels = p->height * p->width, map = p->in_channels * pixels, maps = p->batch * p->order;
#pragma omp parallel num_threads((int)p->threads) if (p->threads > 1)
    {
#pragma omp for
        for (index_t o = 0; o < p->out_channels; o++)
            NAME(transform_filters)(p, &l, o, (Filter){weight, depth, NULL, NULL}, space, (Parts){0});
        Thread w = NAME(settle)(p, room, 1, own + thread_number() * room.thread);
#pragma omp for schedule(dynamic)
        for (index_t part = 0; part < parts.count; part++) {
            w.weight_grad = parts.grads + part * parts.step;
            w.depth_grad = w.weight_grad + room.weight_grad;
            w.norm_grad = w.depth_grad + room.depth_grad;
            memset(w.weight_grad, 0, room.grads * sizeof(REAL));
            for (index_t n = d.tiles * part / parts.count; n < d.tiles * (part + 1) / parts.count; n++) {
                Tile t = tile_at(p, &d, n, 1);
                NAME(prepare)(p, &t, &w, room);
                NAME(backward_tile)(p, &t, &w, x, affine, space, depth, y_grad, more, x_grad, s);
            }
        }
        const REAL *depth_grads = parts.grads + room.weight_grad, *norm_grads = depth_grads + room.depth_grad;
#pragma omp for nowait
        for (index_t i = 0; i < (mean && p->wants_x ? p->in_channels : 0); i++) {
            double by_scale = 0, by_shift = 0;
            for (index_t part = 0; part < parts.count; part++) {
                by_scale += (double)norm_grads[part * parts.step + i];
                by_shift += (double)norm_grads[part * parts.step + p->in_channels + i];
            }
            NAME(norm_back)(norm, i, (double)(maps * pixels), by_scale, by_shift, gamma_grad + i, beta_grad + i,
                            slope + i, offset + i);
        }
        index_t each = NAME(depth_size)(p) / p->out_channels;
#pragma omp for
        for (index_t o = 0; o < (p->wants_filters ? p->out_channels : 0); o++) {
            for (index_t i = o * each; i < (o + 1) * each; i++) {
                depth_grad[i] = 0;
                for (index_t part = 0; part < parts.count; part++) depth_grad[i] += depth_grads[part * parts.step + i];
            }
            NAME(transform_filters)(p, &l, o, (Filter){weight, depth, weight_grad, depth_grad}, NULL, parts);
        }
        if (mean && p->batch_stats && p->wants_x)
#pragma omp for schedule(static)
            for (index_t n = 0; n < maps; n++)
                NAME(add_affine)(p->in_channels, pixels, x + n * map, (Affine){slope, offset}, x_grad + n * map);
    }
}
