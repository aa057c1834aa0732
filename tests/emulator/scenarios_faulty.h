// The faulty kernels of scenarios.cpp, included there: each with the words that must stop it on some schedule.

const std::vector<Scenario> kFaulty = {
    {"no wait for a load", "wrong numbers", 64, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x == 0) load(t, s);
       copy_out(t, data_in(s), kCount);
       barrier_wait(barrier_in(s), 0);
     }},
    {"a wait for the other parity", "wrong numbers", 64, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x == 0) load(t, s);
       barrier_wait(barrier_in(s), 1);
       copy_out(t, data_in(s), kCount);
       barrier_wait(barrier_in(s), 0);
     }},
    {"more bytes expected than copied", "in phase 0, lacks 0 arrivals and 16 bytes", 64, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x == 0) {
         barrier_expect(barrier_in(s), 80);
         bulk_load(data_in(s), t.in, 64, barrier_in(s));
       }
       barrier_wait(barrier_in(s), 0);
     }},
    {"more bytes copied than expected", "lacks 0 arrivals and -16 bytes", 64, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x == 0) {
         barrier_expect(barrier_in(s), 48);
         bulk_load(data_in(s), t.in, 64, barrier_in(s));
       }
       barrier_wait(barrier_in(s), 0);
     }},
    {"an arrival that does not come", "lacks 1 arrivals", 64, 1,
     [](const Tensors&, unsigned char* s) {
       ready(s, 2);
       if (threadIdx.x == 0) barrier_arrive(barrier_in(s));
       barrier_wait(barrier_in(s), 0);
     }},
    {"an arrival too many", "an arrival too many", 64, 1,
     [](const Tensors&, unsigned char* s) {
       ready(s);
       if (threadIdx.x == 0) barrier_expect(barrier_in(s), 16), barrier_arrive(barrier_in(s));
     }},
    {"a phase that ends unseen", "a second phase of an mbarrier ended", 64, 1,
     [](const Tensors&, unsigned char* s) {
       ready(s);
       if (threadIdx.x == 0) barrier_wait(barrier_in(s), 0);
       if (threadIdx.x == 63) barrier_arrive(barrier_in(s)), barrier_arrive(barrier_in(s));
     }},
    {"global memory before dependency_wait", "touched before dependency_wait", 32, 1,
     [](const Tensors& t, unsigned char*) {
       const unsigned word = t.in[threadIdx.x];
       dependency_wait();
       t.out[threadIdx.x] = word;
     },
     true},
    {"a copy before dependency_wait", "touched before dependency_wait", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x == 0) load(t, s);
       dependency_wait();
       barrier_wait(barrier_in(s), 0);
     },
     true},
#ifndef __SANITIZE_ADDRESS__  // UBSan is with it, and ends the program there
    {"a vector from between", "misaligned memory access", 32, 1,
     [](const Tensors& t, unsigned char*) {
       const auto two = *reinterpret_cast<const uint2*>(t.in + 1);
       t.out[0] = two.x + two.y;
     }},
#endif
    {"no mbarrier there", "not initialised", 32, 1,
     [](const Tensors&, unsigned char* s) { barrier_arrive(barrier_in(s)); }},
    {"an mbarrier overwritten", "not initialised, or was overwritten", 32, 1,
     [](const Tensors&, unsigned char* s) {
       ready(s);
       if (threadIdx.x == 0) *barrier_in(s) = 0;
       __syncwarp();
       barrier_wait(barrier_in(s), 1);
     }},
    {"an mbarrier made twice", "initialised twice", 32, 1,
     [](const Tensors&, unsigned char* s) { barrier_init(barrier_in(s), 1); }},
    {"no fence behind barrier_init", "before its maker's fence", 64, 1,
     [](const Tensors&, unsigned char* s) {
       if (threadIdx.x == 0) barrier_init(barrier_in(s), 1);
       __syncthreads();
       if (threadIdx.x == 32) barrier_arrive(barrier_in(s));
     }},
    {"no barrier behind the fence", "before its maker's fence", 64, 1,
     [](const Tensors&, unsigned char* s) {
       set_up(barrier_in(s), 1);
       if (threadIdx.x == 32) barrier_arrive(barrier_in(s));
     }},
    {"the fence behind the cluster's arrival", "before its maker's fence", 32, 2,
     [](const Tensors&, unsigned char* s) {
       if (threadIdx.x == 0) barrier_init(barrier_in(s), 1);
       cluster_arrive();
       barrier_init_fence();
       cluster_wait();
       if (threadIdx.x == 0) store_remote(reinterpret_cast<uint2*>(s + 128), cluster_rank() ^ 1, {}, barrier_in(s));
       cluster_sync();
     }},
    {"the block's barrier in place of the cluster's", "not initialised", 32, 2,
     [](const Tensors&, unsigned char* s) {
       set_up(barrier_in(s), 1);
       __syncthreads();
       if (threadIdx.x == 0) store_remote(reinterpret_cast<uint2*>(s + 128), cluster_rank() ^ 1, {}, barrier_in(s));
       cluster_sync();
     }},
    {"a copy before barrier_init_fence", "before barrier_init_fence", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       if (threadIdx.x > 0) return;
       barrier_init(barrier_in(s), 1);
       load(t, s);
     }},
    {"a copy of 8 bytes", "other than whole 16 bytes", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x == 0) bulk_load(data_in(s), t.in, 8, barrier_in(s));
     }},
    {"a copy from between", "misaligned global address", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x == 0) bulk_load(data_in(s), t.in + 1, 16, barrier_in(s));
     }},
    {"a copy to between", "misaligned shared-memory", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x == 0) bulk_load(data_in(s) + 2, t.in, 16, barrier_in(s));
     }},
    {"a copy past the end of shared memory", "out of shared memory's range", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x == 0) bulk_load(s + kShared - 16, t.in, 32, barrier_in(s));
     }},
    {"a copy past the end of global memory", "memory access out of range", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x == 0) bulk_load(data_in(s), t.in + kCount - 4, 32, barrier_in(s));
     }},
    {"a store past the end of global memory", "memory access out of range", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       if (threadIdx.x == 0) bulk_store(t.out + kCount - 4, data_in(s), 32);
     }},
    {"two copies to one place", "two transfers to the same shared memory", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x > 0) return;
       barrier_expect(barrier_in(s), 96);
       bulk_load(data_in(s), t.in, 64, barrier_in(s));
       bulk_load(data_in(s) + 12, t.in, 32, barrier_in(s));
     }},
    {"an end before a copy has landed", "a block ended while copies", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x == 0) load(t, s);
     }},
    {"ldmatrix of what is under way", "shared memory that a transfer is under way to", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x == 0) load(t, s);
       __syncwarp();
       uint32_t r[4];
       ldmatrix_x4(r, s + 128 + 16 * threadIdx.x);
     }},
    {"no commit", "never committed", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       if (threadIdx.x == 0) bulk_store(t.out, data_in(s), 16);
     }},
    {"no wait for a store", "never waited for", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       if (threadIdx.x == 0) store(t, s);
     }},
    {"a wait for all stores but one", "never waited for", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       if (threadIdx.x == 0) store(t, s), bulk_wait_read<1>();
     }},
    {"a source overwritten too early", "wrong numbers", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x > 0) return;
       load(t, s);
       barrier_wait(barrier_in(s), 0);
       store(t, s);
       data_in(s)[5] = 0;
       bulk_wait_read<0>();
     }},
    {"a load over an unread source", "that a bulk store has yet to read", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x > 0) return;
       load(t, s);
       barrier_wait(barrier_in(s), 0);
       store(t, s);
       load(t, s);
     }},
    {"stmatrix over an unread source", "that a bulk store has yet to read", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       if (threadIdx.x == 0) store(t, s);
       store_matrices(s, 1);
       bulk_wait_read<0>();
     }},
    {"stmatrix without fence", "has not called async_proxy_fence", 64, 1,
     [](const Tensors& t, unsigned char* s) {
       if (threadIdx.x < 32) store_matrices(s, 1);
       __syncthreads();
       async_proxy_fence();
       if (threadIdx.x == 40) store(t, s), bulk_wait_read<0>();
     }},
    {"the fence of one thread for all", "has not called async_proxy_fence", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       store_matrices(s, 1);
       __syncwarp();
       if (threadIdx.x == 0) async_proxy_fence(), store(t, s), bulk_wait_read<0>();
     }},
    {"a load over what was written without fence", "over shared memory whose writer has not", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       store_matrices(s, 1);
       __syncwarp();
       if (threadIdx.x == 0) load(t, s);
     }},
    {"global memory read before the store's wait", "wrong numbers", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x > 0) return;
       load(t, s);
       barrier_wait(barrier_in(s), 0);
       store(t, s);
       bulk_wait_read<0>();
       for (int i = 0; i < kCount; ++i) data_in(s)[i] = t.out[i];
       async_proxy_fence();
       store(t, s);
       bulk_wait<0>();
     }},
    {"a plain wait for another block's store", "it takes barrier_wait_cluster", 32, 2,
     [](const Tensors&, unsigned char* s) {
       ready(s);
       if (threadIdx.x == 0) {
         barrier_expect(barrier_in(s), 16);
         store_remote(reinterpret_cast<float4*>(s + 128), cluster_rank() ^ 1, {}, barrier_in(s));
         barrier_wait(barrier_in(s), 0);
       }
       cluster_sync();
     }},
    {"a store to a block that has ended", "of a block that has ended", 32, 2,
     [](const Tensors&, unsigned char* s) {
       ready(s);
       if (cluster_rank() == 1) return;
       if (threadIdx.x == 0) store_remote(reinterpret_cast<float4*>(s + 128), 1, {}, barrier_in(s));
     }},
    {"a store under way to a block that ends", "a block ended while copies", 32, 2,
     [](const Tensors&, unsigned char* s) {
       ready(s);
       if (cluster_rank() == 0 && threadIdx.x == 0) {
         store_remote(reinterpret_cast<float4*>(s + 128), 1, {}, barrier_in(s));
       }
       cluster_sync();
     }},
    {"a cluster's second arrival", "cluster_arrive twice", 32, 2,
     [](const Tensors&, unsigned char*) { cluster_arrive(), cluster_arrive(); }},
    {"a cluster's wait alone", "cluster_wait without cluster_arrive", 32, 2,
     [](const Tensors&, unsigned char*) { cluster_wait(); }},
    {"a cluster's arrival without wait", "wrong numbers", 32, 2,
     [](const Tensors& t, unsigned char* s) {
       copy_out({t.in, data_in(s)}, t.in, kCount);
       cluster_arrive();
       const unsigned* other = cluster_map(data_in(s), cluster_rank() ^ 1);
       if (cluster_rank() == 0) copy_out(t, other, kCount);
       cluster_wait();
       cluster_sync();
     }},
    {"a block that runs ahead of its cluster", "wrong numbers", 32, 2,
     [](const Tensors& t, unsigned char* s) {
       copy_out({t.in, data_in(s)}, t.in, kCount);
       __syncthreads();
       const unsigned* other = cluster_map(data_in(s), cluster_rank() ^ 1);
       for (int i = 0; i < 4; ++i) __syncthreads();
       if (cluster_rank() == 0) copy_out(t, other, kCount);
       cluster_sync();
     }},
    {"different numbers of threads", "with different numbers of threads", 128, 1,
     [](const Tensors&, unsigned char*) { block_barrier(1, threadIdx.x < 64 ? 64 : 128); }},
    {"threads that are no warps", "other than whole warps", 64, 1,
     [](const Tensors&, unsigned char*) { block_barrier(1, 48); }},
    {"a part of a warp", "by a part of a warp", 64, 1,
     [](const Tensors&, unsigned char*) {
       if (threadIdx.x < 16 || threadIdx.x >= 48) block_barrier(1, 32);
     }},
    {"the number of __syncthreads", "a number other than 1 to 15", 64, 1,
     [](const Tensors&, unsigned char*) { block_barrier(0, 64); }},
};
