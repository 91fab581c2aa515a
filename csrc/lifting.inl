/* Direct convolution of a few planes with filters transformed by every group element, for one type of number:
 *
 *     y[o,g](q) = bias[o] + Σ_i Σ_t w[o,i,t] x[i](q + g·t - padding).
 *
 * A band of the input lies in the cache with zeros around it, and every output reads its terms (i,t) from there.
 * Stride 1. Included by kernels.c.
 */

/* Bands of output rows, and a band of the input: (I, rows + what a filter spans, step). */
typedef struct { index_t bands, rows, step, size, room, terms; } Frame;

static Frame NAME(frame)(const Problem *p)
{
    Frame f = {.step = p->width + 2 * p->padding_x, .terms = p->taps * p->in_channels};
    index_t span = p->height + 2 * p->padding_y - p->out_height;
    index_t rows = smaller(p->out_height, larger(8, 8192 / (f.step * p->in_channels)));
    f.bands = (p->out_height + rows - 1) / rows;
    if (p->batch * f.bands < p->threads) f.bands = smaller(p->out_height, p->threads);
    f.rows = (p->out_height + f.bands - 1) / f.bands;
    f.size = (f.rows + span) * f.step;
    f.room = round_up(p->in_channels * f.size + f.step - p->out_width + WIDTH, WIDTH); /* vectors reach past the end */
    return f;
}

/* Copy the band of the input that `rows` output rows from `first` on read. */
static void NAME(fill)(const Problem *p, const Frame *f, const REAL *x, index_t first, index_t rows, REAL *frame)
{
    index_t top = first - p->padding_y, low = larger(0, top);
    index_t high = smaller(p->height, top + rows + f->size / f->step - f->rows);
    memset(frame, 0, f->room * sizeof(REAL));
    for (index_t i = 0; i < p->in_channels; i++)
        for (index_t r = low; r < high; r++)
            memcpy(frame + i * f->size + (r - top) * f->step + p->padding_x, x + (i * p->height + r) * p->width,
                   p->width * sizeof(REAL));
}

/* Where in a frame element g finds each term; those past the last repeat it, unread. */
INLINE void NAME(find_terms)(const Problem *p, const Frame *f, index_t g, REAL *frame, REAL **from)
{
    for (index_t i = 0; i < p->in_channels; i++)
        for (index_t tap = 0; tap < p->taps; tap++) {
            const int32_t *place = p->moved + 2 * (tap * p->order + g);
            from[i * p->taps + tap] = frame + i * f->size + place[0] * f->step + place[1];
        }
    for (index_t term = f->terms; term % TERMS; term++) from[term] = from[term - 1];
}

/* Values of work space that lift (0) or lift_back (1) needs. */
index_t NAME(lift_workspace)(const Problem *p, int backward)
{
    Frame f = NAME(frame)(p);
    index_t own = f.rows * f.step + WIDTH + p->out_channels * (f.terms + 1); /* a band of the gradient, and sums */
    if (backward) return p->threads * (f.room + round_up(own, WIDTH));
    return p->threads * f.room + NAME(moments_size)(p->batch * f.bands * p->out_channels);
}

/* y (B,|H|,O,Y',X') of x (B,I,Y,X); weight (O,I,taps), at most TAPS terms; bias (O) or null; mean and var (O) of y, or
 * null. */
void NAME(lift)(const Problem *p, const REAL *x, const REAL *weight, const REAL *bias, REAL *y, REAL *mean, REAL *var,
                REAL *space)
{
    Frame f = NAME(frame)(p);
    index_t plane = p->out_height * p->out_width, parts = p->batch * f.bands;
    Moments *moments = (Moments *)(space + p->threads * f.room);
    if (mean) memset(moments, 0, parts * p->out_channels * sizeof *moments);
#pragma omp parallel num_threads((int)p->threads) if (p->threads > 1)
    {
        REAL *frame = space + thread_number() * f.room, *from[TAPS + TERMS];
#pragma omp for schedule(static)
        for (index_t n = 0; n < parts; n++) {
            index_t image = n / f.bands, first = n % f.bands * f.rows;
            index_t rows = larger(0, smaller(f.rows, p->out_height - first));
            NAME(fill)(p, &f, x + image * p->in_channels * p->height * p->width, first, rows, frame);
            for (index_t g = 0; g < p->order; g++) {
                NAME(find_terms)(p, &f, g, frame, from);
                for (index_t o = 0; o < p->out_channels; o++) {
                    REAL *to = y + ((image * p->order + g) * p->out_channels + o) * plane + first * p->out_width;
                    const REAL *w = weight + o * f.terms, added = bias ? bias[o] : 0;
                    for (index_t r = 0; r < rows; r++)
                        if (f.terms == 9)
                            NAME(weighted_row)(w, from, r * f.step, added, NULL, to + r * p->out_width, p->out_width, 9);
                        else
                            NAME(weighted_row)(w, from, r * f.step, added, NULL, to + r * p->out_width, p->out_width,
                                               (int)f.terms);
                    if (mean) NAME(join_values)(moments + n * p->out_channels + o, to, rows * p->out_width);
                }
            }
        }
    }
    if (mean) NAME(tell_all)(moments, parts, p->out_channels, mean, var);
}

/* Gradients of weight and bias (or null), overwritten. */
void NAME(lift_back)(const Problem *p, const REAL *x, const REAL *y_grad, REAL *weight_grad, REAL *bias_grad,
                     REAL *space)
{
    Frame f = NAME(frame)(p);
    index_t plane = p->out_height * p->out_width, room = NAME(lift_workspace)(p, 1) / p->threads;
    index_t to_grad = f.room, to_sums = to_grad + f.rows * f.step + WIDTH;
    memset(space, 0, p->threads * room * sizeof(REAL)); /* all: there may come fewer threads than were asked for */
#pragma omp parallel num_threads((int)p->threads) if (p->threads > 1)
    {
        REAL *frame = space + thread_number() * room, *grad = frame + to_grad, *sums = frame + to_sums;
        REAL *from[TAPS + TERMS];
#pragma omp for schedule(static)
        for (index_t n = 0; n < p->batch * f.bands; n++) {
            index_t image = n / f.bands, first = n % f.bands * f.rows;
            index_t rows = larger(0, smaller(f.rows, p->out_height - first));
            NAME(fill)(p, &f, x + image * p->in_channels * p->height * p->width, first, rows, frame);
            if (rows < f.rows) memset(grad, 0, f.rows * f.step * sizeof(REAL));
            for (index_t g = 0; g < p->order; g++) {
                NAME(find_terms)(p, &f, g, frame, from);
                for (index_t o = 0; o < p->out_channels; o++) {
                    const REAL *read = y_grad + ((image * p->order + g) * p->out_channels + o) * plane
                        + first * p->out_width;
                    for (index_t r = 0; r < rows; r++) /* the zeros between rows stay */
                        for (index_t c = 0; c < p->out_width; c++)
                            grad[r * f.step + c] = read[r * p->out_width + c];
                    REAL *own = sums + o * (f.terms + 1), totals[TERMS + 1];
                    for (index_t start = 0; start < f.terms; start += TERMS) {
                        vector sum[TERMS + 1];
#pragma GCC unroll 10
                        for (int k = 0; k <= TERMS; k++) sum[k] = (vector){0};
                        for (index_t c = 0; c < rows * f.step; c += LANES) {
                            vector v = AT(grad + c);
#pragma GCC unroll 9
                            for (int k = 0; k < TERMS; k++) sum[k] += v * AT(from[start + k] + c);
                            sum[TERMS] += v;
                        }
                        for (int k = 0; k <= TERMS; k++) {
                            totals[k] = 0;
                            for (index_t lane = 0; lane < LANES; lane++) totals[k] += sum[k][lane];
                        }
                        for (int k = 0; k < smaller(TERMS, f.terms - start); k++) own[start + k] += totals[k];
                    }
                    own[f.terms] += totals[TERMS];
                }
            }
        }
    }
    for (index_t o = 0; o < p->out_channels; o++)
        for (index_t term = 0; term <= f.terms; term++) {
            REAL total = 0;
            for (index_t thread = 0; thread < p->threads; thread++)
                total += space[thread * room + to_sums + o * (f.terms + 1) + term];
            if (term < f.terms) weight_grad[o * f.terms + term] = total;
            else if (bias_grad) bias_grad[o] = total;
        }
}
