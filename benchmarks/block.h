/* One block of a CUDA kernel on a CPU: 128 threads as coroutines, memory that is watched.

   `ptx.py` writes `kernel()`, the body of a thread, and compiles it with this file. A thread runs until it waits for the
   others of its warp or block; then the next one runs. `launch` says in which order, so that a result that depends on
   the order shows. Registers are unsigned integers; `F` and `U` convert their bits from and to floats. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;

enum { THREADS = 128, LANES = 32, STACK = 96 << 10, BUFFERS = 32 };
enum { RUNS, WAITS_FOR_BLOCK, WAITS_FOR_WARP, ENDED };
/* What a launch counts, in the order of `ptx.FAULTS`. */
enum { RACES, OUTSIDE, MISALIGNED, UNWRITTEN, OWN_RESULTS, FAULTS };

typedef struct { u64 start, size; int written; } Buffer;
typedef struct { u32 phase; s16 thread; } Access; /* of a word of shared memory; thread -1: several threads */

static ucontext_t scheduler, threads[THREADS];
static char stacks[THREADS][STACK];
static int state[THREADS], thread;
static u32 block[3], exchanged[THREADS], phase;
static u64 parameter[BUFFERS];
static Buffer buffers[BUFFERS];
static int buffer_count;
static long faults[FAULTS];
static char *shared_memory, nowhere[64];
static u64 shared_size;
static Access *last_write, *last_read;

static void kernel(void);

static inline float F(u32 bits) { float value; memcpy(&value, &bits, 4); return value; }
static inline u32 U(float value) { u32 bits; memcpy(&bits, &value, 4); return bits; }

/* Arithmetic, as the PTX manual defines it. */
static inline u32 max_nan(u32 a, u32 b) {
    if (isnan(F(a)) || isnan(F(b))) return 0x7fffffff;
    return F(a) > F(b) || (F(a) == F(b) && b >> 31) ? a : b;
}
static inline u32 min_nan(u32 a, u32 b) {
    if (isnan(F(a)) || isnan(F(b))) return 0x7fffffff;
    return F(a) < F(b) || (F(a) == F(b) && a >> 31) ? a : b;
}
static inline u32 fma_(u32 a, u32 b, u32 c) { return U(fmaf(F(a), F(b), F(c))); }
static inline u64 fma2(u64 a, u64 b, u64 c) {
    return (u64)fma_(a >> 32, b >> 32, c >> 32) << 32 | fma_((u32)a, (u32)b, (u32)c);
}
static inline u16 to_bf16(u32 a) { return isnan(F(a)) ? 0x7fff : (a + 0x7fff + (a >> 16 & 1)) >> 16; }
static inline u32 to_s32(u32 a) {
    if (isnan(F(a))) return 0;
    return F(a) >= 0x1p31f ? 0x7fffffff : F(a) <= -0x1p31f ? 0x80000000 : (u32)(s32)F(a);
}
static inline u32 field_s(u32 a, u32 first, u32 bits) { return (u32)((s32)(a << (32 - first - bits)) >> (32 - bits)); }
static inline u32 field_u(u32 a, u32 first, u32 bits) { return a >> first & ((1u << bits) - 1); }
static inline u32 leading_zeros(u32 a) { return a ? __builtin_clz(a) : 32; }

/* Waiting. */
static void wait_for(int others) {
    state[thread] = others;
    swapcontext(&threads[thread], &scheduler);
}
static inline void barrier(void) { wait_for(WAITS_FOR_BLOCK); }
static u32 from_lane(u32 value, u32 lane) {
    exchanged[thread] = value;
    wait_for(WAITS_FOR_WARP);
    u32 result = exchanged[(thread & -LANES) | (lane & (LANES - 1))];
    wait_for(WAITS_FOR_WARP); /* before a lane writes its next value */
    return result;
}

/* Memory. */
static void fault(int kind, const char *what, u64 address) {
    if (faults[kind]++ == 0)
        fprintf(stderr, "%s at %#llx, block (%u, %u, %u), thread %d\n", what, (unsigned long long)address, block[0],
                block[1], block[2], thread);
}
static char *global(u64 address, u64 bytes, int write) {
    if (address % bytes) fault(MISALIGNED, "misaligned access", address);
    for (int i = 0; i < buffer_count; i++) {
        if (address < buffers[i].start || address + bytes > buffers[i].start + buffers[i].size) continue;
        if (write && !buffers[i].written) break;
        if (!write && buffers[i].written) fault(OWN_RESULTS, "a result is read", address);
        return (char *)address;
    }
    fault(OUTSIDE, write ? "write outside of the results" : "read outside of all arrays", address);
    return nowhere;
}
static int by_another(Access access) { return access.phase == phase && access.thread != thread; }
static char *shared(u64 address, u64 bytes, const void *written) {
    if (address % bytes) fault(MISALIGNED, "misaligned access to shared memory", address);
    if (address + bytes > shared_size) {
        fault(OUTSIDE, "access outside of shared memory", address);
        return nowhere;
    }
    for (u64 word = address / 4; word < (address + bytes) / 4; word++) {
        if (!written) {
            if (!last_write[word].phase) fault(UNWRITTEN, "shared memory is read that nobody wrote", address);
            if (by_another(last_write[word])) fault(RACES, "a read races with a write", address);
            last_read[word] = (Access){phase, by_another(last_read[word]) ? -1 : thread};
        } else {
            int changes = memcmp(shared_memory + address, written, bytes); /* lanes may all write one value */
            if (changes && (by_another(last_write[word]) || by_another(last_read[word])))
                fault(RACES, "a write races with another access", address);
            last_write[word] = (Access){phase, thread};
        }
    }
    return shared_memory + address;
}

/* The launch. */
static void start(void) {
    kernel();
    wait_for(ENDED);
}
static int count(int first, int threads, int wanted) {
    int found = 0;
    for (int i = first; i < first + threads; i++) found += state[i] == wanted;
    return found;
}
static void release(int first, int threads) {
    for (int i = first; i < first + threads; i++) state[i] = RUNS;
}
static int run_block(const int *order) {
    memset(shared_memory, 0xff, shared_size);
    memset(last_write, 0, shared_size / 4 * sizeof(Access));
    memset(last_read, 0, shared_size / 4 * sizeof(Access));
    phase = 1;
    for (thread = 0; thread < THREADS; thread++) {
        getcontext(&threads[thread]);
        threads[thread].uc_stack.ss_sp = stacks[thread];
        threads[thread].uc_stack.ss_size = STACK;
        makecontext(&threads[thread], start, 0);
        state[thread] = RUNS;
    }
    while (count(0, THREADS, ENDED) < THREADS) {
        for (int i = 0; i < THREADS; i++) {
            thread = order[i];
            if (state[thread] == RUNS) swapcontext(&scheduler, &threads[thread]);
        }
        int moved = 0;
        for (int warp = 0; warp < THREADS; warp += LANES)
            if (count(warp, LANES, WAITS_FOR_WARP) == LANES) release(warp, LANES), moved = 1;
        if (count(0, THREADS, WAITS_FOR_BLOCK) == THREADS) release(0, THREADS), phase++, moved = 1;
        if (!moved && count(0, THREADS, ENDED) < THREADS) return 0; /* some wait for others that never come */
    }
    return 1;
}

/* Runs the kernel. `order[k]` is the buffer of parameter k; `seed` 0 runs blocks and threads in ascending order,
   another seed runs blocks in descending order and threads in random ones. Returns 0, or 1 if threads wait for ever. */
int launch(const Buffer *given, int buffer_number, const int *order, const u32 *grid, u64 shared_bytes, u64 seed,
           long *counted) {
    int threads_in_order[THREADS], stuck = 0;
    buffer_count = buffer_number;
    memcpy(buffers, given, buffer_number * sizeof(Buffer));
    for (int i = 0; i < buffer_number; i++) parameter[i] = given[order[i]].start;
    for (int i = 0; i < THREADS; i++) threads_in_order[i] = i;
    memset(faults, 0, sizeof faults);
    shared_size = shared_bytes;
    shared_memory = malloc(shared_bytes + 1);
    last_write = malloc(shared_bytes / 4 * sizeof(Access) + 1);
    last_read = malloc(shared_bytes / 4 * sizeof(Access) + 1);
    srandom(seed);
    u64 blocks = (u64)grid[0] * grid[1] * grid[2];
    for (u64 i = 0; i < blocks && !stuck; i++) {
        u64 number = seed ? blocks - 1 - i : i;
        block[0] = number % grid[0];
        block[1] = number / grid[0] % grid[1];
        block[2] = number / grid[0] / grid[1];
        for (int k = THREADS - 1; seed && k > 0; k--) {
            int other = random() % (k + 1), swapped = threads_in_order[k];
            threads_in_order[k] = threads_in_order[other];
            threads_in_order[other] = swapped;
        }
        stuck = !run_block(threads_in_order);
    }
    memcpy(counted, faults, sizeof faults);
    free(shared_memory), free(last_write), free(last_read);
    return stuck;
}
