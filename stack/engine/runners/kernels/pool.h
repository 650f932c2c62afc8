/* A team of threads that runs one function at a time, in step. The machine's other processes want the CPU too, so a
 * thread that waits spins for some microseconds (a phase of a decode step is 5 to 100 of them) and then sleeps. */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "vec.h"
#if defined(__x86_64__)
#define RELAX() _mm_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ __volatile__("yield")
#else
#define RELAX() ((void)0)
#endif

#ifndef SPINS
#define SPINS 1000
#endif

typedef struct Pool Pool;
typedef void Work(void *argument, Pool *pool, int thread);

struct Pool {
    _Alignas(64) atomic_uint phase; /* changes when all threads have arrived */
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_int next; /* task of this phase, for phases that deal tasks out one by one */
    _Alignas(64) atomic_uint job; /* changes when there is work */
    _Alignas(64) atomic_int sleeping;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    Work *work;
    void *argument;
    bool stop;
    int threads;
    pthread_t *handles;
};

typedef struct { Pool *pool; int thread; } Worker;

static void pool_wait(Pool *pool, atomic_uint *word, unsigned old) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != old) return;
        RELAX();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleeping, 1); /* before the check, so that a change is either seen or signalled */
    while (atomic_load(word) == old) pthread_cond_wait(&pool->changed, &pool->mutex);
    atomic_fetch_sub(&pool->sleeping, 1);
    pthread_mutex_unlock(&pool->mutex);
}

static void pool_change(Pool *pool, atomic_uint *word) {
    atomic_fetch_add(word, 1);
    if (atomic_load(&pool->sleeping) > 0) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_broadcast(&pool->changed);
        pthread_mutex_unlock(&pool->mutex);
    }
}

/* Returns when all threads have called it. */
static void barrier(Pool *pool) {
    if (pool->threads == 1) {
        atomic_store(&pool->next, 0);
        return;
    }
    unsigned phase = atomic_load_explicit(&pool->phase, memory_order_relaxed);
    if (atomic_fetch_add(&pool->arrived, 1) == pool->threads - 1) {
        atomic_store(&pool->arrived, 0);
        atomic_store(&pool->next, 0);
        pool_change(pool, &pool->phase);
    } else {
        pool_wait(pool, &pool->phase, phase);
    }
}

static void *pool_worker(void *argument) {
    Worker worker = *(Worker *)argument;
    Pool *pool = worker.pool;
    free(argument);
    for (unsigned job = 0;; job++) {
        pool_wait(pool, &pool->job, job);
        if (pool->stop) return NULL;
        pool->work(pool->argument, pool, worker.thread);
        barrier(pool);
    }
}

/* Runs work(argument, pool, thread) on every thread, the caller being thread 0. */
static void pool_run(Pool *pool, Work *work, void *argument) {
    pool->work = work;
    pool->argument = argument;
    if (pool->threads > 1) pool_change(pool, &pool->job);
    work(argument, pool, 0);
    barrier(pool);
}

static void pool_free(Pool *pool) {
    pool->stop = true;
    if (pool->threads > 1) pool_change(pool, &pool->job);
    for (int i = 1; i < pool->threads; i++) pthread_join(pool->handles[i], NULL);
    pthread_mutex_destroy(&pool->mutex);
    pthread_cond_destroy(&pool->changed);
    free(pool->handles);
    free(pool);
}

/* With fewer threads than asked when the system has no more. */
static Pool *pool_new(int threads) {
    Pool *pool = aligned_alloc(64, sizeof(Pool));
    if (!pool) return NULL;
    memset(pool, 0, sizeof *pool);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->changed, NULL);
    pool->handles = calloc((size_t)threads, sizeof(pthread_t));
    int started = 1;
    for (; started < threads; started++) {
        Worker *worker = malloc(sizeof *worker);
        *worker = (Worker){pool, started};
        if (pthread_create(&pool->handles[started], NULL, pool_worker, worker)) {
            free(worker);
            break;
        }
    }
    pool->threads = started; /* the workers read it only after the first job */
    return pool;
}

/* This thread's part [*begin, *end) of `count` things, in multiples of `unit`. */
INLINE void share(const Pool *pool, int thread, int count, int unit, int *begin, int *end) {
    long units = (count + unit - 1) / unit;
    *begin = (int)(units * thread / pool->threads) * unit;
    *end = (int)(units * (thread + 1) / pool->threads) * unit;
    if (*end > count) *end = count;
}
