// Exact top-C selection, one thread block (or a cluster of them) a row; the contract is selection.select's.
//
// Fast way: a sample of the row gives a bar that a few more than C keys should reach; warps stream the row in chunks and push what reaches the bar into
// a pool in shared memory, noting for each chunk where its keys lie; a radix search over the pool finds the exact C-th best; the best are written in
// order of their chunks. A cluster splits the row, and its first block joins the pools.
//
// Sure way, where too few or too many keys reach the bar (clustered values): the radix search and the ordered writing read the row itself.
//
// Set by the compiler's command line: THREADS, BLOCKS (at least so many blocks a multiprocessor), CLUSTER (blocks a row), VECTOR (1: rows are aligned to
// 16 bytes). A compiler for CPUs brings its own stand-ins for what __CUDACC__ guards (tests/kernels/cuda_on_cpu.h).

typedef unsigned int uint;

constexpr int WARPS = THREADS / 32;
constexpr int CHUNK = 512;          // keys that a warp looks at together
constexpr int EACH = CHUNK / 32;    // of them a thread's
constexpr int BINS = 2048;          // of the radix search
constexpr int DIGIT = 11;           // bits that they tell apart
constexpr int SAMPLE = 4096;        // keys of a row
constexpr int RUN = 8;              // neighbours that are sampled together: one sector of memory
constexpr int BLOCK_BYTES = 8704;   // shared memory in front of the pool
constexpr uint ALL = 0xFFFFFFFFu;
constexpr uint MINUS_INFINITY = 0x007FFFFFu;  // key of −∞, and of NaN

struct Block {
    uint bins[BINS];
    uint sums[2][32];           // of each warp
    uint bin, above, inside;    // what find_bin found
    uint held, low, high;       // keys in the pool, the lowest and the highest
};
static_assert(sizeof(Block) <= BLOCK_BYTES, "the pool begins behind the block");

struct Threshold {
    uint key;   // all keys above it are selected
    uint room;  // and so many that equal it
};

#ifdef __CUDACC__
extern __shared__ uint2 shared[];

__device__ uint lanes_below() {
    uint mask;
    asm("mov.u32 %0, %%lanemask_lt;" : "=r"(mask));
    return mask;
}

// Inclusive sum over a warp's lanes.
__device__ uint scan_lanes(uint value) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2)
        asm volatile(
            "{.reg .pred inside; .reg .u32 other;\n"
            "shfl.sync.up.b32 other|inside, %0, %1, 0, 0xFFFFFFFF;\n"
            "@inside add.u32 %0, %0, other;}"
            : "+r"(value)
            : "r"(step));
    return value;
}

__device__ uint add_shared(uint address, uint value) {
    uint before;
    asm volatile("atom.shared.add.u32 %0, [%1], %2;" : "=r"(before) : "r"(address), "r"(value) : "memory");
    return before;
}

__device__ void store_pair(uint address, float value, int position) {
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "f"(value), "r"(position) : "memory");
}

#if CLUSTER > 1
__device__ uint cluster_rank() {
    uint rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// Word of another block's shared memory that stands where `word` stands in one's own.
__device__ uint remote(const uint* word, uint rank) {
    const uint own = __cvta_generic_to_shared(word);
    uint address, value;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(own), "r"(rank));
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}
#endif
#endif

// Keys in the order of the values: NaN is −∞, −0 is +0.
__device__ uint ordered_key(float value) {
    uint bits = __float_as_uint(value + 0.0f);
    if (value != value) bits = 0xFF800000u;
    return bits ^ ((int)bits < 0 ? ALL : 0x80000000u);
}

__device__ float value_of(uint key) { return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key); }

// The bin, counted from the largest, that holds the `rank`-th key; called by all threads, with the bins complete.
__device__ void find_bin(Block& block, uint rank) {
    constexpr int SHARE = BINS / THREADS;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int top = BINS - SHARE * threadIdx.x;
    uint counts[SHARE], sum = 0;
    for (int i = 0; i < SHARE; i++) sum += counts[i] = block.bins[top - 1 - i];
    const uint scan = scan_lanes(sum);
    if (lane == 31) block.sums[0][warp] = scan;
    __syncthreads();
    uint before = scan - sum;
    for (int i = 0; i < WARPS; i++) before += i < warp ? block.sums[0][i] : 0;
    if (before < rank && rank <= before + sum) {
        int i = 0;
        while (before + counts[i] < rank) before += counts[i++];
        block.bin = top - 1 - i;
        block.above = before;
        block.inside = counts[i];
    }
    __syncthreads();
}

// The `rank`-th largest of the keys in [low, high] that `visit` shows, exact but for its last `blur` bits; there are at least `rank` of them.
template <class Visit>
__device__ Threshold ranked_key(Block& block, Visit visit, uint low, uint high, uint rank, int blur) {
    int bits = 32 - __clz(high - low);
    while (bits > blur) {
        const int shift = max(bits - DIGIT, 0);
        const uint limit = ALL >> (32 - bits);
        for (int i = threadIdx.x; i < BINS; i += THREADS) block.bins[i] = 0;
        __syncthreads();
        visit([&](uint key) {
            const uint offset = key - low;
            if (offset <= limit) atomicAdd(&block.bins[offset >> shift], 1u);
        });
        __syncthreads();
        find_bin(block, rank);
        low += block.bin << shift;
        rank -= block.above;
        bits = shift;
        // All keys of the bin are wanted.
        if (block.inside == rank) break;
    }
    return {low, rank};
}

// A value that a few more than C of the row's keys are expected to reach.
__device__ float sampled_bar(Block& block, const float* row, int start, int length, int num_selected, float margin) {
    constexpr int MINE = SAMPLE / THREADS;
    uint keys[MINE];
    const int step = length / (SAMPLE / RUN);
#pragma unroll
    for (int i = 0; i < MINE; i++) {
        const int place = i * THREADS + threadIdx.x;
        keys[i] = ordered_key(__ldg(row + start + (place / RUN) * step + place % RUN));
    }
    const float share = (float)num_selected * SAMPLE / length;
    const uint rank = min((uint)(share + margin * sqrtf(share) + 4.0f), (uint)SAMPLE);
    auto visit = [&](auto take) {
#pragma unroll
        for (int i = 0; i < MINE; i++) take(keys[i]);
    };
    return value_of(max(ranked_key(block, visit, 0u, ALL, rank, 10).key, MINUS_INFINITY));
}

// A warp's chunk; a lane's values are four groups of four neighbours.
__device__ void load_chunk(float (&values)[EACH], const float* row, int first, int num_keys) {
    const int place = first + (threadIdx.x & 31) * 4;
    const bool whole = first + CHUNK <= num_keys;
#if VECTOR
    if (whole) {
#pragma unroll
        for (int j = 0; j < EACH / 4; j++) {
            const float4 four = __ldcs((const float4*)(row + place) + j * 32);
            values[4 * j] = four.x, values[4 * j + 1] = four.y, values[4 * j + 2] = four.z, values[4 * j + 3] = four.w;
        }
        return;
    }
#endif
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int position = place + i / 4 * 128 + i % 4;
        values[i] = whole || position < num_keys ? __ldcs(row + position) : 0.0f;
    }
}

// Push a chunk's values that are not below the bar, in order; returns its entry of the table, place | count << 20.
__device__ uint push_chunk(
    uint held_at, uint pool_at, uint capacity, const float (&values)[EACH], float minus_bar, int first, int start, int end
) {
    const int lane = threadIdx.x & 31, mine = first + lane * 4;
    // Bit i says that value i is below the bar: the sign of their difference. NaN is below nothing and comes along.
    uint mask = 0;
#pragma unroll
    for (int i = EACH - 1; i >= 0; i--) mask = __funnelshift_l(__float_as_uint(values[i] + minus_bar), mask, 1);
    mask ^= (1u << EACH) - 1;
    if (first < start || first + CHUNK > end) {
#pragma unroll 1
        for (int j = 0; j < EACH / 4; j++) {
            const int low = min(max(start - mine - j * 128, 0), 4), high = min(max(end - mine - j * 128, 0), 4);
            mask &= ~(0xFu << 4 * j) | ((1u << high) - 1 & ~((1u << low) - 1)) << 4 * j;
        }
    }
    // The counts of the four groups travel through one scan, 8 bits each: 128 at most.
    const uint pairs = mask - (mask >> 1 & 0x5555u);
    uint counts = (pairs & 0x3333u) + (pairs >> 2 & 0x3333u);
    counts = (counts | counts << 8) & 0x00FF00FFu;
    counts = (counts | counts << 4) & 0x0F0F0F0Fu;
    const uint scan = scan_lanes(counts);
    const uint totals = __shfl_sync(ALL, scan, 31);
    const uint count = (totals & 0xFF) + (totals >> 8 & 0xFF) + (totals >> 16 & 0xFF) + (totals >> 24);
    if (count == 0) return 0;
    uint place = 0;
    if (lane == 0) place = add_shared(held_at, count);
    place = __shfl_sync(ALL, place, 0);
    if (place + count > capacity) return 0;
    const uint before = scan - counts;
    uint group = pool_at + 8 * place;
#pragma unroll
    for (int j = 0; j < EACH / 4; j++) {
        uint slot = group + 8 * (before >> 8 * j & 0xFF);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (mask >> (4 * j + i) & 1) {
                store_pair(slot, values[4 * j + i], mine + j * 128 + i);
                slot += 8;
            }
        }
        group += 8 * (totals >> 8 * j & 0xFF);
    }
    return place | count << 20;
}

// Stream chunks first … last − 1 of a row.
__device__ void collect(
    Block& block, uint2* pool, uint* table, uint capacity, const float* row, float bar, int start, int end, int first, int last,
    int num_keys
) {
    const uint held_at = __cvta_generic_to_shared(&block.held), pool_at = __cvta_generic_to_shared(pool);
    // From 0, so that the negative of 0 is +0, and −0 is not below it.
    const float minus_bar = 0.0f - bar;
    auto push = [&](const float (&values)[EACH], int chunk) {
        const uint entry = push_chunk(held_at, pool_at, capacity, values, minus_bar, chunk * CHUNK, start, end);
        if ((threadIdx.x & 31) == 0) table[chunk - first] = entry;
    };
    // The next chunk is on its way while one is looked at.
    float values[EACH], later[EACH];
    int chunk = first + (threadIdx.x >> 5);
    if (chunk < last) load_chunk(values, row, chunk * CHUNK, num_keys);
    while (chunk < last) {
        if (chunk + WARPS < last) load_chunk(later, row, (chunk + WARPS) * CHUNK, num_keys);
        push(values, chunk);
        chunk += WARPS;
        if (chunk >= last) break;
        if (chunk + WARPS < last) load_chunk(values, row, (chunk + WARPS) * CHUNK, num_keys);
        push(later, chunk);
        chunk += WARPS;
    }
}

// A warp writes those of 32 consecutive keys that are selected; `above` and `equal` count the row's keys so far.
__device__ void write_selected(int* chosen, Threshold limit, bool live, uint key, int position, uint& above, uint& equal) {
    const bool is_above = live && key > limit.key, is_equal = live && key == limit.key;
    const uint above_mask = __ballot_sync(ALL, is_above), equal_mask = __ballot_sync(ALL, is_equal), below = lanes_below();
    const uint my_equal = equal + __popc(equal_mask & below);
    if (is_above || (is_equal && my_equal < limit.room))
        chosen[above + __popc(above_mask & below) + min(my_equal, limit.room)] = position;
    above += __popc(above_mask);
    equal += __popc(equal_mask);
}

// Add up both counts over the warps before this one.
__device__ void count_before(Block& block, uint above, uint equal, uint& above_before, uint& equal_before) {
    const int warp = threadIdx.x >> 5;
    above = __reduce_add_sync(ALL, above);
    equal = __reduce_add_sync(ALL, equal);
    if ((threadIdx.x & 31) == 0) block.sums[0][warp] = above, block.sums[1][warp] = equal;
    __syncthreads();
    for (int i = 0; i < warp; i++) above_before += block.sums[0][i], equal_before += block.sums[1][i];
}

// Write the selected keys of the pool, chunk after chunk; each warp takes an equal number of chunks.
__device__ void write_pool(Block& block, const uint2* pool, const uint* table, int num_chunks, Threshold limit, int* chosen) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int share = (num_chunks + WARPS - 1) / WARPS;
    const int first = min(warp * share, num_chunks), last = min(first + share, num_chunks);
    uint above = 0, equal = 0;
    for (int chunk = first; chunk < last; chunk++) {
        const uint entry = table[chunk], place = entry & 0xFFFFF, count = entry >> 20;
        for (uint i = lane; i < count; i += 32) {
            const uint key = pool[place + i].x;
            above += key > limit.key;
            equal += key == limit.key;
        }
    }
    uint above_before = 0, equal_before = 0;
    count_before(block, above, equal, above_before, equal_before);
    for (int chunk = first; chunk < last; chunk++) {
        const uint entry = table[chunk], place = entry & 0xFFFFF, count = entry >> 20;
        for (uint i = 0; i < count; i += 32) {
            const bool live = i + lane < count;
            const uint2 one = live ? pool[place + i + lane] : make_uint2(0, 0);
            write_selected(chosen, limit, live, one.x, one.y, above_before, equal_before);
        }
    }
}

// The sure way, over the row itself. Keys below `floor` are left alone, unless fewer than wanted reach it.
__device__ void select_surely(
    Block& block, const float* row, int start, int end, int num_keys, uint wanted, uint floor, int* chosen
) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    auto visit = [&](auto take) {
        for (int first = (start / CHUNK + warp) * CHUNK; first < end; first += WARPS * CHUNK) {
            float values[EACH];
            load_chunk(values, row, first, num_keys);
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                const int position = first + i / 4 * 128 + lane * 4 + i % 4;
                const uint key = ordered_key(values[i]);
                if (key >= floor && position >= start && position < end) take(key);
            }
        }
    };
    while (true) {
        __syncthreads();
        if (threadIdx.x == 0) block.held = 0, block.low = ALL, block.high = 0;
        __syncthreads();
        uint count = 0, low = ALL, high = 0;
        visit([&](uint key) { count++, low = min(low, key), high = max(high, key); });
        count = __reduce_add_sync(ALL, count), low = __reduce_min_sync(ALL, low), high = __reduce_max_sync(ALL, high);
        if (lane == 0) atomicAdd(&block.held, count), atomicMin(&block.low, low), atomicMax(&block.high, high);
        __syncthreads();
        if (block.held >= wanted) break;
        // NaN came along when the keys at the bar were counted, but it is none of them.
        floor = 0;
    }
    const Threshold limit = ranked_key(block, visit, block.low, block.high, wanted, 0);
    uint above = 0, equal = 0;
    for (int first = start; above + min(equal, limit.room) < wanted; first += THREADS * EACH) {
        const int mine = first + warp * CHUNK + lane;
        uint keys[EACH], my_above = 0, my_equal = 0;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int position = mine + 32 * i;
            keys[i] = position < end ? ordered_key(row[position]) : 0;
            my_above += keys[i] > limit.key;
            my_equal += keys[i] == limit.key;
        }
        uint above_before = above, equal_before = equal;
        count_before(block, my_above, my_equal, above_before, equal_before);
        for (int i = 0; i < WARPS; i++) above += block.sums[0][i], equal += block.sums[1][i];
        __syncthreads();
        if (!__ballot_sync(ALL, my_above + my_equal > 0)) continue;
#pragma unroll
        for (int i = 0; i < EACH; i++)
            write_selected(chosen, limit, keys[i] != 0, keys[i], mine + 32 * i, above_before, equal_before);
    }
}

#if CLUSTER > 1
// Join the pools of a cluster's other blocks, whose chunks come later in the row, behind that of its first.
__device__ void join_pools(Block& block, uint2* pool, uint* table, uint capacity, int num_chunks, int share) {
    uint total = block.held;
    for (uint rank = 1; rank < CLUSTER; rank++) {
        const uint held = remote(&block.held, rank);
        if (total + held <= capacity) {
            for (uint i = threadIdx.x; i < held; i += THREADS)
                pool[total + i] = make_uint2(remote(&pool[i].x, rank), remote(&pool[i].y, rank));
            const int first = min((int)rank * share, num_chunks), last = min(first + share, num_chunks);
            for (int chunk = first + threadIdx.x; chunk < last; chunk += THREADS) {
                const uint entry = remote(&table[chunk - first], rank);
                table[chunk] = entry + (entry ? total : 0);
            }
        }
        total = min(total + held, 1u << 30);
    }
    __syncthreads();
    if (threadIdx.x == 0) block.held = total;
    __syncthreads();
}
#endif

// The fast way, once the pool holds between C and `capacity` keys of the row.
__device__ void select_from_pool(Block& block, uint2* pool, const uint* table, int num_chunks, uint wanted, int* chosen) {
    const uint held = block.held;
    uint low = ALL, high = 0;
    for (uint i = threadIdx.x; i < held; i += THREADS) {
        const uint key = ordered_key(__uint_as_float(pool[i].x));
        pool[i].x = key;
        low = min(low, key), high = max(high, key);
    }
    low = __reduce_min_sync(ALL, low), high = __reduce_max_sync(ALL, high);
    if ((threadIdx.x & 31) == 0) atomicMin(&block.low, low), atomicMax(&block.high, high);
    __syncthreads();
    auto visit = [&](auto take) {
        for (uint i = threadIdx.x; i < held; i += THREADS) take(pool[i].x);
    };
    const Threshold limit = ranked_key(block, visit, block.low, block.high, wanted, 0);
    write_pool(block, pool, table, num_chunks, limit, chosen);
}

// Rows of `num_keys` float32; bounds are int32 (bound_words 1) or int64 (2); `capacity` is the pool's, 0 to take the sure way.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
#if CLUSTER > 1
__cluster_dims__(CLUSTER, 1, 1)
#endif
select_rows(
    const float* logits, const int* starts, const int* ends, int* indices, int* counts, long long num_keys, int num_selected,
    int capacity, int bound_words, float margin
) {
    Block& block = *(Block*)shared;
    uint2* pool = shared + BLOCK_BYTES / 8;
    uint* table = (uint*)(pool + capacity);
    const long long row_number = blockIdx.x / CLUSTER;
#if CLUSTER > 1
    const int rank = cluster_rank();
#else
    const int rank = 0;
#endif
    const float* row = logits + row_number * num_keys;
    int* chosen = indices + row_number * num_selected;
    const int start = starts[row_number * bound_words], end = ends[row_number * bound_words], length = end - start;
    if (rank == 0 && threadIdx.x == 0) counts[row_number] = max(min(length, num_selected), 0);
    if (length <= num_selected) {
        for (int i = rank * THREADS + threadIdx.x; i < num_selected; i += CLUSTER * THREADS)
            chosen[i] = i < length ? start + i : -1;
        return;
    }
    const int first_chunk = start / CHUNK, num_chunks = (end + CHUNK - 1) / CHUNK - first_chunk;
    const int share = (num_chunks + CLUSTER - 1) / CLUSTER;
    const bool quick = num_selected < capacity;
    float bar = value_of(MINUS_INFINITY);
    if (quick) {
        if (threadIdx.x == 0) block.held = 0, block.low = ALL, block.high = 0;
        __syncthreads();
        if (length > capacity) bar = sampled_bar(block, row, start, length, num_selected, margin);
        const int first = first_chunk + min(rank * share, num_chunks), last = min(first + share, first_chunk + num_chunks);
        collect(block, pool, table, capacity, row, bar, start, end, first, last, num_keys);
        __syncthreads();
    }
#if CLUSTER > 1
    cluster_barrier();
    if (rank == 0 && quick) join_pools(block, pool, table, capacity, num_chunks, share);
    // Nobody leaves before the first block has read the others' memory.
    cluster_barrier();
    if (rank) return;
#endif
    if (quick && block.held >= (uint)num_selected && block.held <= (uint)capacity)
        select_from_pool(block, pool, table, num_chunks, num_selected, chosen);
    else
        select_surely(
            block, row, start, end, num_keys, num_selected, quick && block.held > (uint)capacity ? ordered_key(bar) : 0, chosen
        );
}
