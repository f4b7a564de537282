// Runs one kernel of a CUDA source on the CPU: a fiber a thread, every exchange between threads a meeting point. Macros THREADS and CLUSTER give the size.
// Only what selection.cu uses; whole warps take part in every exchange, and blocks of one cluster run together.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <vector>

#define __device__ static
#define __global__
#define __launch_bounds__(...)
#define __cluster_dims__(...)

using std::max;
using std::min;
struct uint2 { unsigned x, y; };
struct float4 { float x, y, z, w; };
struct Index { int x; };

constexpr int FIBERS = THREADS * CLUSTER, WARP = 32;
constexpr size_t SHARED = 1 << 18, STACK = 1 << 16;
static Index threadIdx, blockIdx;
static int current, alive;
static ucontext_t scheduler, fibers[FIBERS];
static bool finished[FIBERS];
static char memories[CLUSTER][SHARED];
static unsigned exchanged[FIBERS];
static std::function<void()> kernel;
#define shared ((uint2*)memories[current / THREADS])

struct Meeting {
    int arrived = 0;
    unsigned round = 0;
    void wait(int expected) {
        const unsigned mine = round;
        if (++arrived == expected) { arrived = 0; round++; return; }
        while (round == mine) swapcontext(&fibers[current], &scheduler);
    }
};
static Meeting warps[FIBERS / WARP], blocks[CLUSTER], cluster;

static void __syncthreads() { blocks[current / THREADS].wait(THREADS); }
static void cluster_barrier() { cluster.wait(FIBERS); }
static int cluster_rank() { return current / THREADS; }

// All lanes show a value; each computes its result from all 32.
template <class Result>
static unsigned exchange(unsigned value, Result result) {
    exchanged[current] = value;
    warps[current / WARP].wait(WARP);
    const unsigned mine = result(&exchanged[current / WARP * WARP], current % WARP);
    warps[current / WARP].wait(WARP);
    return mine;
}
template <class Combine>
static unsigned reduce(unsigned value, Combine combine) {
    return exchange(value, [&](unsigned* lanes, int) {
        unsigned all = lanes[0];
        for (int i = 1; i < WARP; i++) all = combine(all, lanes[i]);
        return all;
    });
}
static unsigned __shfl_sync(unsigned, unsigned value, int lane) {
    return exchange(value, [&](unsigned* lanes, int) { return lanes[lane]; });
}
static unsigned __ballot_sync(unsigned, bool value) {
    return reduce((unsigned)value << current % WARP, [](unsigned a, unsigned b) { return a | b; });
}
static unsigned __reduce_add_sync(unsigned, unsigned value) { return reduce(value, [](unsigned a, unsigned b) { return a + b; }); }
static unsigned __reduce_min_sync(unsigned, unsigned value) { return reduce(value, [](unsigned a, unsigned b) { return min(a, b); }); }
static unsigned __reduce_max_sync(unsigned, unsigned value) { return reduce(value, [](unsigned a, unsigned b) { return max(a, b); }); }
static unsigned scan_lanes(unsigned value) {
    return exchange(value, [](unsigned* lanes, int lane) {
        unsigned sum = 0;
        for (int i = 0; i <= lane; i++) sum += lanes[i];
        return sum;
    });
}
static unsigned lanes_below() { return (1u << current % WARP) - 1; }

static unsigned __cvta_generic_to_shared(const void* place) { return (const char*)place - memories[current / THREADS]; }
static unsigned remote(const unsigned* word, unsigned rank) {
    return *(const unsigned*)(memories[rank] + __cvta_generic_to_shared(word));
}
static unsigned add_shared(unsigned address, unsigned value) {
    unsigned* word = (unsigned*)(memories[current / THREADS] + address);
    *word += value;
    return *word - value;
}
static void store_pair(unsigned address, float value, int position) {
    memcpy(memories[current / THREADS] + address, &value, 4);
    memcpy(memories[current / THREADS] + address + 4, &position, 4);
}
static void atomicAdd(unsigned* word, unsigned value) { *word += value; }
static void atomicMin(unsigned* word, unsigned value) { *word = min(*word, value); }
static void atomicMax(unsigned* word, unsigned value) { *word = max(*word, value); }

static uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
template <class Value>
static Value __ldg(const Value* place) { return *place; }
template <class Value>
static Value __ldcs(const Value* place) { return *place; }
static float __uint_as_float(unsigned bits) { float value; memcpy(&value, &bits, 4); return value; }
static unsigned __float_as_uint(float value) {
    // A GPU's operations give this NaN alone.
    if (value != value) return 0x7FFFFFFFu;
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}
static int __clz(unsigned value) { return value ? __builtin_clz(value) : 32; }
static int __popc(unsigned value) { return __builtin_popcount(value); }
static unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) { return high << shift | low >> (32 - shift); }

static void fiber() {
    kernel();
    finished[current] = true;
    alive--;
    swapcontext(&fibers[current], &scheduler);
}

// Run `work` as block number `block` … block + CLUSTER − 1, on memory full of garbage; false if the threads wait for each other for ever.
static bool run_cluster(int block, std::function<void()> work) {
    static std::vector<char> stacks(FIBERS * STACK);
    kernel = work;
    memset(memories, 0xAB, sizeof memories);
    for (Meeting& meeting : warps) meeting = {};
    for (Meeting& meeting : blocks) meeting = {};
    cluster = {};
    alive = FIBERS;
    for (int i = 0; i < FIBERS; i++) {
        getcontext(&fibers[i]);
        fibers[i].uc_stack.ss_sp = &stacks[i * STACK];
        fibers[i].uc_stack.ss_size = STACK;
        finished[i] = false;
        makecontext(&fibers[i], fiber, 0);
    }
    for (long turn = 0; alive; turn++) {
        if (turn > 1000000) return false;
        // Another thread begins each turn.
        for (int i = 0; i < FIBERS; i++) {
            current = (i + turn * 37) % FIBERS;
            if (finished[current]) continue;
            threadIdx.x = current % THREADS;
            blockIdx.x = block + current / THREADS;
            swapcontext(&scheduler, &fibers[current]);
        }
    }
    return true;
}
