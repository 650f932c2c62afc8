/* One forward pass of a Llama-family model over ragged segments, in bf16 with float32 accumulation and residuals.
 *
 * All threads run `forward` in step: every phase divides its rows, columns or heads among them and ends with a barrier.
 * The structs here are mirrored by native.py. */
#define _GNU_SOURCE
#include "pool.h"
#include "attention.h"

/* Adapters' matrices for one linear layer. Each adapter has ranks of its own, whole blocks of them. */
typedef struct {
    const bf16 *a;      /* packed [k, capacity], or NULL when no adapter changes this layer */
    const bf16 *b;      /* packed [capacity, n], its blocks in the layer's order */
    const float *scale; /* [scaled, n padded to whole blocks], less 1; or NULL */
    int capacity, scaled;
} Adapters;

/* Which ranks count in a pass, for each kind of linear layer. */
enum { QKV, OUTPUT, GATE_UP, DOWN, HEAD, KINDS };
typedef struct {
    const int *rows, *wanted; /* the adapter of each row, and of each row whose logits are wanted */
    const int *owners[KINDS]; /* [capacity]: the adapter that has a rank */
    struct { int low, high; } ranks[KINDS];
    bf16 *inner; /* [max_rows, the most ranks of a kind] */
} Plan;

typedef struct {
    const float *attention_norm, *mlp_norm; /* [hidden] */
    const float *q_norm, *k_norm;           /* [head_dim] or NULL */
    Linear qkv;                             /* [hidden, (heads + 2 * kv_heads) * head_dim] */
    Linear output;                          /* [heads * head_dim, hidden] */
    Linear gate_up;                         /* [hidden, 2 * intermediate] */
    Linear down;                            /* [intermediate, hidden] */
    bf16 *keys, *values;                    /* [slots, kv_heads, positions * head_dim] */
    Adapters adapters[HEAD];                /* of qkv, output, gate_up and down */
} Layer;

typedef struct {
    int hidden, intermediate, vocabulary, layer_count, max_rows, threads;
    Attention attention;
    const bf16 *embedding; /* packed [hidden, vocabulary], the head's own when they are tied */
    const float *norm;     /* [hidden] */
    Linear head;           /* [hidden, vocabulary] */
    const Layer *layers;
    const Adapters *head_adapters;
} Model;

typedef struct { int slot, start, count; } Segment; /* as in stack/engine/base.py */

typedef struct {
    Model model;
    Pool *pool;
    float *x;    /* [max_rows, hidden], the residual stream */
    bf16 *normed; /* [max_rows, hidden] */
    float *qkv;  /* [max_rows, (heads + 2 * kv_heads) * head_dim] */
    bf16 *q, *attended; /* [max_rows, heads * head_dim] */
    bf16 *activation;   /* [max_rows, intermediate] */
    int *slot, *position; /* [max_rows] */
    struct Task { int slot, position, row, count; } *tasks; /* [max_rows] queries of one pass over a slot's keys */
    float *space; /* of attend(), for each thread */
    size_t space_size;
} Runner;

typedef struct {
    Runner *runner;
    int rows, task_count, wanted_count;
    const int *tokens, *wanted;
    float *logits;
    const Plan *plan; /* NULL: the base model alone */
    const atomic_int *stop; /* NULL, or not zero from the moment that the pass is to end */
    int stopped; /* what thread 0 saw there, for all */
} Call;

static void embed(const Model *m, int token, float *x) {
    const bf16 *block = m->embedding + (long)(token / LANES) * m->hidden * LANES + token % LANES * 2;
    for (int i = 0; i < m->hidden; i += 2) {
        x[i] = from_bf16(block[i * LANES]);
        x[i + 1] = from_bf16(block[i * LANES + 1]);
    }
}

/* Deals the call's tasks, times key-value heads, out to the threads one by one: they differ in length. */
static void attention_share(const Call *call, Pool *pool, int thread, const Layer *layer) {
    const Runner *s = call->runner;
    const Attention *a = &s->model.attention;
    const int total = call->task_count * a->kv_heads, group = a->heads / a->kv_heads, width = a->heads * a->head_dim;
    float *space = s->space + thread * s->space_size;
    for (int after, index = atomic_fetch_add(&pool->next, 1); index < total; index = after) {
        after = atomic_fetch_add(&pool->next, 1);
        const struct Task *task = &s->tasks[index / a->kv_heads];
        const int head = index % a->kv_heads, next = after < total ? after : index;
        const Blocked keys = keys_of(a, layer->keys, task->slot, head);
        const Blocked values = values_of(a, layer->values, task->slot, head);
        const bf16 *next_keys = keys_of(a, layer->keys, s->tasks[next / a->kv_heads].slot, next % a->kv_heads).data;
        const long at = (long)task->row * width + head * group * a->head_dim;
        if (task->count == 1) { /* the heads of a group are the rows: keys and values are read once */
            attend(a, s->q + at, a->head_dim, group, keys, values, task->position, 0, next_keys, space,
                   s->attended + at);
            continue;
        }
        for (int g = 0; g < group; g++)
            attend(a, s->q + at + g * a->head_dim, width, task->count, keys, values, task->position, 1, next_keys,
                   space, s->attended + at + g * a->head_dim);
    }
}

/* linear_share with what the adapters of the rows add. Two phases, with a barrier between them. */
static void adapted_share(const Call *call, Pool *pool, int thread, const Linear *linear, const Adapters *adapters,
                          int kind, const bf16 *x, int rows, Then then, void *out, long stride) {
    const Plan *plan = call->plan;
    if (!plan || !adapters->a || plan->ranks[kind].low == plan->ranks[kind].high) {
        linear_share(pool, thread, linear, x, rows, then, out, stride, NULL);
        return;
    }
    const int low = plan->ranks[kind].low, ranks = plan->ranks[kind].high - low, k = linear->k;
    const Added added = {.adapters = kind == HEAD ? plan->wanted : plan->rows,
                         .owners = plan->owners[kind] + low,
                         .inner = plan->inner,
                         .ranks = ranks,
                         .b = {adapters->b + (long)low * LANES, (long)adapters->capacity * LANES, 2 * LANES},
                         .scale = adapters->scale,
                         .scaled = adapters->scaled};
    const Linear down = {adapters->a + (long)low * k, NULL, k, ranks};
    linear_share(pool, thread, &down, x, rows, MASK, plan->inner, ranks, &added);
    barrier(pool);
    linear_share(pool, thread, linear, x, rows, then, out, stride, &added);
}

static void forward(void *argument, Pool *pool, int thread) {
    Call *call = argument;
    const Runner *s = call->runner;
    const Model *m = &s->model;
    const Attention *a = &m->attention;
    const int rows = call->rows, width = a->heads * a->head_dim, qkv_width = (a->heads + 2 * a->kv_heads) * a->head_dim;
    int first, last;
    share(pool, thread, rows, 1, &first, &last);
    for (int r = first; r < last; r++) embed(m, call->tokens[r], s->x + (long)r * m->hidden);
    for (int l = 0; l < m->layer_count; l++) {
        const Layer *layer = &m->layers[l];
        for (int r = first; r < last; r++)
            rms_norm(s->x + (long)r * m->hidden, layer->attention_norm, m->hidden, a->eps, s->normed + (long)r * m->hidden);
        if (thread == 0 && call->stop) call->stopped = atomic_load(call->stop);
        barrier(pool);
        if (call->stopped) return;
        adapted_share(call, pool, thread, &layer->qkv, &layer->adapters[QKV], QKV, s->normed, rows, STORE, s->qkv, qkv_width);
        barrier(pool);
        for (int r = first; r < last; r++)
            rope_and_store(a, s->qkv + (long)r * qkv_width, layer->q_norm, layer->k_norm, s->slot[r], s->position[r],
                           s->q + (long)r * width, layer->keys, layer->values);
        barrier(pool);
        attention_share(call, pool, thread, layer);
        barrier(pool);
        adapted_share(call, pool, thread, &layer->output, &layer->adapters[OUTPUT], OUTPUT, s->attended, rows, ADD, s->x,
                      m->hidden);
        barrier(pool);
        for (int r = first; r < last; r++)
            rms_norm(s->x + (long)r * m->hidden, layer->mlp_norm, m->hidden, a->eps, s->normed + (long)r * m->hidden);
        barrier(pool);
        adapted_share(call, pool, thread, &layer->gate_up, &layer->adapters[GATE_UP], GATE_UP, s->normed, rows, SWIGLU,
                      s->activation, m->intermediate);
        barrier(pool);
        adapted_share(call, pool, thread, &layer->down, &layer->adapters[DOWN], DOWN, s->activation, rows, ADD, s->x,
                      m->hidden);
        barrier(pool);
    }
    share(pool, thread, call->wanted_count, 1, &first, &last);
    for (int i = first; i < last; i++)
        rms_norm(s->x + (long)call->wanted[i] * m->hidden, m->norm, m->hidden, a->eps, s->normed + (long)i * m->hidden);
    barrier(pool);
    adapted_share(call, pool, thread, &m->head, m->head_adapters, HEAD, s->normed, call->wanted_count, STORE, call->logits,
                  m->vocabulary);
}

/* Names that Python calls. */

int stack_lanes(void) { return LANES; }

void stack_pack(const bf16 *w, int rows, int k, bf16 *out, long spacing) { pack(w, rows, k, out, spacing); }

void stack_free(Runner *s) {
    if (!s) return;
    if (s->pool) pool_free(s->pool);
    void *buffers[] = {s->x, s->normed, s->qkv, s->q, s->attended, s->activation, s->slot, s->position, s->tasks, s->space};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) free(buffers[i]);
    free(s);
}

static void *buffer(size_t count, size_t size) { return aligned_alloc(64, (count * size + 63) / 64 * 64); }

/* NULL when memory is short. `model` and what it points to must outlive the runner. */
Runner *stack_new(const Model *model) {
    Runner *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->model = *model;
    const Attention *a = &model->attention;
    const size_t rows = (size_t)model->max_rows, group = (size_t)(a->heads / a->kv_heads);
    s->pool = pool_new(model->threads);
    s->x = buffer(rows * model->hidden, sizeof *s->x);
    s->normed = buffer(rows * model->hidden, sizeof *s->normed);
    s->qkv = buffer(rows * (a->heads + 2 * a->kv_heads) * a->head_dim, sizeof *s->qkv);
    s->q = buffer(rows * a->heads * a->head_dim, sizeof *s->q);
    s->attended = buffer(rows * a->heads * a->head_dim, sizeof *s->attended);
    s->activation = buffer(rows * model->intermediate, sizeof *s->activation);
    s->slot = buffer(rows, sizeof *s->slot);
    s->position = buffer(rows, sizeof *s->position);
    s->tasks = buffer(rows, sizeof *s->tasks);
    s->space_size = attention_space(a, (int)(group > QUERY_ROWS ? group : QUERY_ROWS)) / 16 * 16 + 16;
    s->space = buffer(s->space_size * model->threads, sizeof *s->space);
    if (s->pool && s->x && s->normed && s->qkv && s->q && s->attended && s->activation && s->slot && s->position &&
        s->tasks && s->space)
        return s;
    stack_free(s);
    return NULL;
}

/* tokens [sum of counts <= max_rows]; wanted: rows whose logits are written to `logits` [wanted_count, vocabulary];
 * plan: NULL when no row wants an adapter; stop: NULL, or what another thread sets to end the pass before its next
 * layer. Returns whether that happened: then there are no logits. */
int stack_forward(Runner *s, const Segment *segments, int segment_count, const int *tokens, const int *wanted,
                  int wanted_count, float *logits, const Plan *plan, const atomic_int *stop) {
    Call call = {.runner = s, .tokens = tokens, .wanted = wanted, .wanted_count = wanted_count, .logits = logits,
                 .plan = plan, .stop = stop};
    for (int i = 0; i < segment_count; i++) {
        Segment segment = segments[i];
        for (int j = 0; j < segment.count; j++) {
            s->slot[call.rows + j] = segment.slot;
            s->position[call.rows + j] = segment.start + j;
        }
        for (int j = 0, n; j < segment.count; j += n) {
            n = part(segment.count - j, QUERY_ROWS);
            s->tasks[call.task_count++] = (struct Task){segment.slot, segment.start + j, call.rows + j, n};
        }
        call.rows += segment.count;
    }
    pool_run(s->pool, forward, &call);
    return call.stopped;
}
