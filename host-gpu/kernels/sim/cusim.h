// cusim.h - run CUDA C++ kernels on the CPU (tests only). One fiber per CUDA thread, so __syncthreads, __syncwarp,
// shuffles, mma.sync, ldmatrix and cp.async behave as on the GPU. No NVIDIA header is used. C++17, g++ >= 9 or clang.
//   g++ -std=c++17 -O2 -march=x86-64-v3 -DCUSIM -Isim -Ikernels -Wno-unknown-pragmas -x c++ kernels/foo.cu ...
// Environment: CUSIM_SEED=n   random thread interleaving (shakes out missing barriers)
//              CUSIM_THREADS=n  n blocks at a time        Sanitizers: -fsanitize=address | undefined | thread
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>
#if !defined(__x86_64__) || defined(CUSIM_UCONTEXT)
#include <ucontext.h>
#define CUSIM_USE_UCONTEXT 1
#endif
#if defined(__F16C__)
#include <immintrin.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#endif
#if defined(__SANITIZE_THREAD__)   // every CUDA thread is a TSan fiber; only barriers make happens-before edges
extern "C" { void* __tsan_get_current_fiber(); void* __tsan_create_fiber(unsigned); void __tsan_switch_to_fiber(void*, unsigned);
  void __tsan_acquire(void*); void __tsan_release(void*); void AnnotateIgnoreWritesBegin(const char*, int); void AnnotateIgnoreWritesEnd(const char*, int); }
#define CUSIM_ACQ(p) __tsan_acquire((void*)(p))
#define CUSIM_REL(p) __tsan_release((void*)(p))
#define CUSIM_IGN(b) AnnotateIgnoreWrites##b(__FILE__, __LINE__)
#define CUSIM_FN __attribute__((noinline, no_sanitize("thread"))) inline
#else
#define CUSIM_ACQ(p) ((void)0)
#define CUSIM_REL(p) ((void)0)
#define CUSIM_IGN(b) ((void)0)
#define CUSIM_FN inline
#endif
#define CUSIM_AT const char *file = __builtin_FILE(), int line = __builtin_LINE()

// ---- language extensions -------------------------------------------------------------------------------------------
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
struct alignas(8) float2 { float x, y; };   struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };       struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; }; struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(4) char4 { signed char x, y, z, w; }; struct alignas(4) uchar4 { unsigned char x, y, z, w; };
struct alignas(4) short2 { short x, y; };   struct alignas(4) ushort2 { unsigned short x, y; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
constexpr int warpSize = 32;
using std::max; using std::min;

// ---- fibers and scheduler ------------------------------------------------------------------------------------------
#ifndef CUSIM_USE_UCONTEXT
extern "C" void cusim_switch(void** save, void* load);
asm(".text\n.weak cusim_switch\n.hidden cusim_switch\n.type cusim_switch,@function\ncusim_switch:\n"
    "push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15; mov %rsp,(%rdi); mov %rsi,%rsp\n"
    "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret\n.size cusim_switch,.-cusim_switch\n");
#endif
namespace cusim {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
constexpr size_t kStack = 256 << 10;
#else
constexpr size_t kStack = 64 << 10;
#endif
constexpr size_t kSharedLimit = 99 << 10;                                // per block on sm_86 / sm_89
struct Fiber; struct Copy { void* dst; const void* src; unsigned bytes; };
typedef void (*Exec)(Fiber** lanes, unsigned mask); typedef void (*Invoke)(void* fn, void** args);
struct Fiber {
#ifdef CUSIM_USE_UCONTEXT
  ucontext_t uc;
#endif
  void *sp = nullptr, *fake = nullptr, *tsan = nullptr; const char* stack = nullptr; size_t stack_size = 0;
  dim3 tid; unsigned warp = 0, lane = 0, mask = 0, bar = 0; bool done = false;
  const char *what = nullptr, *file = ""; int line = 0; void* payload = nullptr; Exec exec = nullptr;   // why it waits
  unsigned n_copies = 0, n_groups = 0, groups[16]; Copy copies[64];                                   // cp.async in flight
};
struct Warp { unsigned alive, waiting, gen; char tag[2]; };
struct Bar { unsigned arrived = 0, any = 0, all = 1, count = 0, r_any = 0, r_all = 0, r_count = 0, gen = 0; int line = 0; char tag[2] = {}; };
struct Shared { const void* key; void* p; };
struct Worker {
  Fiber main, *cur = &main, *fibers[1024], *pool[2][1024] = {}, *ready[1024]; Warp warps[32]; Bar bars[16]; Shared shared[32];
  unsigned head = 0, n_ready = 0, n = 0, alive = 0, n_shared = 0; size_t shared_bytes = 0, dyn_bytes = 0; uint64_t rng = 0;
  dim3 blockIdx, blockDim, gridDim; void *dyn = nullptr, *fn = nullptr, **args = nullptr; Invoke invoke = nullptr;
  std::string err; char start_tag = 0, end_tag = 0;
};
inline thread_local Worker* W = nullptr;

CUSIM_FN void switch_to(Fiber* to) {
  Fiber* from = W->cur; W->cur = to;
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to->tsan, 1 /* no happens-before edge */);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(from->done ? nullptr : &from->fake, to->stack, to->stack_size);
#endif
#ifdef CUSIM_USE_UCONTEXT
  swapcontext(&from->uc, &to->uc);
#else
  cusim_switch(&from->sp, to->sp);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from->fake, nullptr, nullptr);
#endif
}
CUSIM_FN void push_ready(Fiber* f) { Worker& w = *W; w.ready[(w.head + w.n_ready++) & 1023] = f; }
CUSIM_FN Fiber* pop_ready() {
  Worker& w = *W;
  if (!w.n_ready) return &w.main;
  if (w.rng) { w.rng ^= w.rng << 13; w.rng ^= w.rng >> 7; w.rng ^= w.rng << 17;
    unsigned j = (w.head + w.rng % w.n_ready) & 1023; Fiber* t = w.ready[j]; w.ready[j] = w.ready[w.head]; w.ready[w.head] = t; }
  Fiber* f = w.ready[w.head]; w.head = (w.head + 1) & 1023; w.n_ready--; return f;
}
CUSIM_FN std::string where(const Fiber* f) {
  char b[300]; const char* s = strrchr(f->file, '/');
  snprintf(b, sizeof b, "block (%u,%u,%u) thread (%u,%u,%u) %s at %s:%d", W->blockIdx.x, W->blockIdx.y, W->blockIdx.z,
           f->tid.x, f->tid.y, f->tid.z, f->what ? f->what : "running", s ? s + 1 : f->file, f->line);
  return b;
}
[[noreturn]] CUSIM_FN void fail(const std::string& m) {                  // abandon the block; launch() returns the message
  if (W->err.empty()) W->err = m + ": " + where(W->cur);
  CUSIM_REL(&W->end_tag); switch_to(&W->main); abort();
}
CUSIM_FN void fail_if_err() { if (!W->err.empty()) fail(""); }

// A warp collective: every lane of `mask` brings a payload on its own stack; the last to arrive runs exec over all of them.
CUSIM_FN bool try_complete(Warp& wp, unsigned base, unsigned mask, Fiber* self) {
  Worker& w = *W; unsigned need = mask & wp.alive; Fiber *l[32] = {}, *first = nullptr;
  if (!need || (wp.waiting & need) != need) return false;
  for (unsigned i = 0; i < 32; i++) if (need >> i & 1) {
    l[i] = w.fibers[base + i]; if (!first) first = l[i];
    if (l[i]->mask != mask || l[i]->line != first->line || l[i]->exec != first->exec) {
      w.err = "warp divergence, lanes of one mask are in different collectives: " + where(first) + " but " + where(l[i]); return false; }
  }
  wp.waiting &= ~need; wp.gen += !first->exec;
  if (first->exec) first->exec(l, need);
  for (unsigned i = 0; i < 32; i++) if (l[i] && l[i] != self) push_ready(l[i]);
  return true;
}
CUSIM_FN void collective(unsigned mask, void* payload, Exec exec, const char* what, const char* file, int line) {
  Worker& w = *W; Fiber* f = w.cur; Warp& wp = w.warps[f->warp];
  f->what = what; f->file = file; f->line = line; f->mask = mask; f->payload = payload; f->exec = exec;
  if (!(mask >> f->lane & 1)) fail("calling lane is not in its own mask");
  wp.waiting |= 1u << f->lane;
  if (!try_complete(wp, f->warp * 32, mask, f)) { fail_if_err(); switch_to(pop_ready()); }
  fail_if_err(); f->what = nullptr;
}
CUSIM_FN void release_bar(Bar& b, unsigned id, Fiber* self) {
  Worker& w = *W; b.r_any = b.any; b.r_all = b.all; b.r_count = b.count; b.arrived = b.any = b.count = 0; b.all = 1; b.gen++;
  for (unsigned i = 0; i < w.n; i++) { Fiber* g = w.fibers[i]; if (g != self && g->bar == id + 1) { g->bar = 0; push_ready(g); } }
}
CUSIM_FN Bar barrier(unsigned id, unsigned need, bool pred, const char* file, int line) {   // need 0: all live threads
  Worker& w = *W; Fiber* f = w.cur; Bar& b = w.bars[id];
  f->what = id ? "named barrier" : "__syncthreads"; f->file = file; f->line = line;
  if (!b.arrived) b.line = line;
  if (!need && b.line != line) fail("divergent __syncthreads, other threads wait at line " + std::to_string(b.line));
  char* tag = &b.tag[b.gen & 1]; (void)tag; CUSIM_REL(tag); b.arrived++;   // two tags: an early thread is at most one barrier ahead
  b.any |= pred; b.all &= pred; b.count += pred;
  if (b.arrived == (need ? need : w.alive)) release_bar(b, id, f);
  else { f->bar = id + 1; switch_to(pop_ready()); }
  f->what = nullptr; CUSIM_ACQ(tag); return b;
}
CUSIM_FN void thread_exit() {
  Worker& w = *W; Fiber* f = w.cur; Warp& wp = w.warps[f->warp];
  if (f->n_copies) fail("thread exits with cp.async copies that it never waited for");
  CUSIM_REL(&w.end_tag); f->done = true; w.alive--; wp.alive &= ~(1u << f->lane);
  if (w.alive && w.bars[0].arrived == w.alive) release_bar(w.bars[0], 0, f);
  for (unsigned i = 0; i < 32; i++) if (wp.waiting >> i & 1) try_complete(wp, f->warp * 32, w.fibers[f->warp * 32 + i]->mask, nullptr);
  switch_to(w.err.empty() ? pop_ready() : &w.main); abort();
}
inline void entry() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  CUSIM_ACQ(&W->start_tag); W->invoke(W->fn, W->args); thread_exit();
}
CUSIM_FN void reset_fiber(Fiber* f) {
  if (!f->stack) {                                                       // with a guard page below the stack
    char* m = (char*)mmap(nullptr, kStack + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m == MAP_FAILED || mprotect(m, 4096, PROT_NONE)) abort();
    f->stack = m + 4096; f->stack_size = kStack;
#if defined(__SANITIZE_THREAD__)
    f->tsan = __tsan_create_fiber(0);
#endif
  }
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(f->stack, kStack);                       // redzones of frames that never returned
#endif
  f->done = false; f->what = nullptr; f->file = ""; f->line = 0; f->bar = f->n_copies = f->n_groups = 0; f->fake = nullptr;
#ifdef CUSIM_USE_UCONTEXT
  getcontext(&f->uc); f->uc.uc_stack.ss_sp = (void*)f->stack; f->uc.uc_stack.ss_size = kStack; f->uc.uc_link = nullptr; makecontext(&f->uc, entry, 0);
#else
  void** s = (void**)(f->stack + kStack) - 2; *s = (void*)entry; for (int i = 0; i < 6; i++) *--s = nullptr; f->sp = s;
#endif
}
// Shared memory: from the heap, new for every block and of exact size (ASan sees the first byte past the end), and
// filled with 0xff, so that what is read before it was written is NaN or -1.
CUSIM_FN void* shared_alloc(const void* key, size_t bytes) {
  Worker& w = *W; void* p = nullptr;
  for (unsigned i = 0; i < w.n_shared; i++) if (w.shared[i].key == key) return w.shared[i].p;
  w.shared_bytes += bytes;
  if (w.shared_bytes > kSharedLimit || w.n_shared == 32) fail("too much shared memory");
  CUSIM_IGN(Begin); if (posix_memalign(&p, 128, bytes)) abort(); memset(p, 0xff, bytes); CUSIM_IGN(End);
  w.shared[w.n_shared++] = {key, p}; return p;
}
CUSIM_FN void set_up(Worker* own, Invoke invoke, void* fn, dim3 grid, dim3 block, size_t dyn, void** args) {
  Worker& w = *(W = own); w.err.clear(); w.cur = &w.main; w.blockDim = block; w.gridDim = grid; w.n = block.x * block.y * block.z;
  w.fn = fn; w.args = args; w.invoke = invoke; w.dyn_bytes = dyn;
#if defined(__SANITIZE_THREAD__)
  w.main.tsan = __tsan_get_current_fiber();
#endif
#if defined(__SANITIZE_ADDRESS__)
  pthread_attr_t at; void* lo; pthread_getattr_np(pthread_self(), &at); pthread_attr_getstack(&at, &lo, &w.main.stack_size); pthread_attr_destroy(&at); w.main.stack = (char*)lo;
#endif
}
CUSIM_FN void run_block(uint64_t b, uint64_t seed) {
  Worker& w = *W; w.head = w.n_ready = 0; w.alive = w.n; w.rng = seed ? (seed + b) * 0x9E3779B97F4A7C15ull | 1 : 0;
  w.blockIdx = {unsigned(b % w.gridDim.x), unsigned(b / w.gridDim.x % w.gridDim.y), unsigned(b / ((uint64_t)w.gridDim.x * w.gridDim.y))};
  for (Warp& x : w.warps) x.alive = x.waiting = 0;
  for (Bar& b : w.bars) b = Bar();
  for (unsigned i = 0; i < w.n; i++) {
#if defined(__SANITIZE_THREAD__)
    Fiber*& f = w.pool[(w.blockIdx.x ^ w.blockIdx.y ^ w.blockIdx.z) & 1][i];   // two sets, so that a race between neighbouring blocks shows too
#else
    Fiber*& f = w.pool[0][i];
#endif
    if (!f) f = new Fiber;
    w.fibers[i] = f; reset_fiber(f); f->warp = i / 32; f->lane = i % 32; w.warps[i / 32].alive |= 1u << (i % 32);
    f->tid = {i % w.blockDim.x, i / w.blockDim.x % w.blockDim.y, i / (w.blockDim.x * w.blockDim.y)}; push_ready(f);
  }
  if (w.dyn_bytes > kSharedLimit) { w.err = "too much dynamic shared memory"; return; }
  w.dyn = w.dyn_bytes ? shared_alloc(&w.dyn, w.dyn_bytes) : nullptr;
  CUSIM_REL(&w.start_tag);
  switch_to(pop_ready());                                                // comes back when nothing is runnable
  if (!w.err.empty()) CUSIM_ACQ(&w.end_tag);
  if (w.err.empty() && w.alive) for (unsigned i = 0; i < w.n; i++) if (!w.fibers[i]->done) {
    w.err = "deadlock, " + std::to_string(w.alive) + " threads never leave; first: " + where(w.fibers[i]); break; }
  CUSIM_IGN(Begin); while (w.n_shared) free(w.shared[--w.n_shared].p); CUSIM_IGN(End);
  w.shared_bytes = 0;
}
// Runs the grid; returns "" or what went wrong.
inline std::string launch(Invoke invoke, void* fn, dim3 grid, dim3 block, size_t dyn, void** args) {
  const char *es = getenv("CUSIM_SEED"), *et = getenv("CUSIM_THREADS"); uint64_t seed = es ? strtoull(es, nullptr, 10) : 0;
  int nt = et ? atoi(et) : 1; uint64_t n = (uint64_t)block.x * block.y * block.z, total = (uint64_t)grid.x * grid.y * grid.z;
  std::atomic<uint64_t> next{0}; std::atomic<bool> bad{false}; std::string err;
  if (!n || n > 1024 || !total || grid.y > 65535 || grid.z > 65535) return "invalid launch configuration";
  auto work = [&] {
    static std::mutex mu; static std::vector<Worker*> idle;              // workers keep their fibers' stacks for later launches
    Worker* own; { std::lock_guard<std::mutex> g(mu); if (idle.empty()) own = new Worker; else { own = idle.back(); idle.pop_back(); } }
    set_up(own, invoke, fn, grid, block, dyn, args);
    for (uint64_t b; !bad && (b = next++) < total;) { run_block(b, seed); if (!own->err.empty() && !bad.exchange(true)) err = own->err; }
    CUSIM_ACQ(&own->end_tag); std::lock_guard<std::mutex> g(mu); idle.push_back(own);
  };
  if (nt <= 1) work(); else { std::vector<std::thread> t; for (int i = 0; i < nt; i++) t.emplace_back(work); for (auto& x : t) x.join(); }
  return err;
}
// Type-erased launch, void** args as for cuLaunchKernel; the sizes let the host check a launch against the signature.
template <class... A> struct Sig {
  template <size_t... I> static void call(void (*f)(A...), void** a, std::index_sequence<I...>) { f(*(std::decay_t<A>*)a[I]...); }
  static void invoke(void* fn, void** a) { call((void (*)(A...))fn, a, std::index_sequence_for<A...>()); }
  static constexpr unsigned char sizes[sizeof...(A) + 1] = {sizeof(A)..., 0};
};
struct Desc { const char* name; void* fn; Invoke invoke; unsigned nargs; const unsigned char* sizes; };
template <class... A> Desc desc(const char* n, void (*f)(A...)) { return {n, (void*)f, Sig<A...>::invoke, sizeof...(A), Sig<A...>::sizes}; }
template <class... A, class... B> std::string run(void (*f)(A...), dim3 g, dim3 b, size_t dyn, B... v) {
  std::tuple<std::decay_t<A>...> t((std::decay_t<A>)v...); void* p[sizeof...(A) + 1]; unsigned i = 0;
  std::apply([&](auto&... x) { ((p[i++] = &x), ...); }, t);
  return launch(Sig<A...>::invoke, (void*)f, g, b, dyn, p);
}
}  // namespace cusim
#define CUSIM_DESC(name) extern "C" cusim::Desc cusim_desc_##name() { return cusim::desc(#name, name); }
#define threadIdx (::cusim::W->cur->tid)
#define blockIdx (::cusim::W->blockIdx)
#define blockDim (::cusim::W->blockDim)
#define gridDim (::cusim::W->gridDim)
#define HOB_SHARED(T, name, dims) static const char name##_key = 0; using name##_t = T dims; \
  auto& name = *(name##_t*)::cusim::shared_alloc(&name##_key, sizeof(name##_t))
#define HOB_DYN_SHARED(T, name) T* name = (T*)::cusim::W->dyn

// ---- synchronisation, shuffles, votes ------------------------------------------------------------------------------
static inline void __syncthreads(CUSIM_AT) { cusim::barrier(0, 0, false, file, line); }
static inline int __syncthreads_or(int p, CUSIM_AT) { return (int)cusim::barrier(0, 0, p, file, line).r_any; }
static inline int __syncthreads_and(int p, CUSIM_AT) { return (int)cusim::barrier(0, 0, p, file, line).r_all; }
static inline int __syncthreads_count(int p, CUSIM_AT) { return (int)cusim::barrier(0, 0, p, file, line).r_count; }
static inline void hob_bar_sync(int id, int n, CUSIM_AT) { cusim::barrier(id, n, false, file, line); }
namespace cusim {
struct Shfl { uint64_t in, out; int mode, arg, width; };                 // mode: 0 idx, 1 up, 2 down, 3 xor
CUSIM_FN void shfl_exec(Fiber** l, unsigned m) {
  for (int i = 0; i < 32; i++) if (m >> i & 1) {
    Shfl& s = *(Shfl*)l[i]->payload; int seg = i & ~(s.width - 1), end = seg + s.width - 1, j = i;
    if (s.mode == 0) j = seg + (s.arg & (s.width - 1));
    if (s.mode == 1) j = i - s.arg < seg ? i : i - s.arg;
    if (s.mode == 2) j = i + s.arg > end ? i : i + s.arg;
    if (s.mode == 3) j = (i ^ s.arg) > end ? i : (i ^ s.arg);
    if (!(m >> j & 1)) { W->err = "shuffle reads lane " + std::to_string(j) + ", which is not in the mask or has exited: " + where(l[i]); return; }
    s.out = ((Shfl*)l[j]->payload)->in;
  }
}
template <class T> CUSIM_FN T shfl(unsigned mask, T v, int mode, int arg, int width, const char* file, int line) {
  static_assert(sizeof(T) <= 8, ""); Shfl s{0, 0, mode, arg, width}; __builtin_memcpy(&s.in, &v, sizeof v);
  collective(mask, &s, shfl_exec, "shuffle", file, line); __builtin_memcpy(&v, &s.out, sizeof v); return v;
}
struct Vote { unsigned pred, ballot; };
CUSIM_FN void vote_exec(Fiber** l, unsigned m) { unsigned b = 0;
  for (int i = 0; i < 32; i++) if (l[i] && ((Vote*)l[i]->payload)->pred) b |= 1u << i;
  for (int i = 0; i < 32; i++) if (m >> i & 1) ((Vote*)l[i]->payload)->ballot = b; }
CUSIM_FN unsigned vote(unsigned mask, bool p, const char* file, int line) { Vote v{p, 0}; collective(mask, &v, vote_exec, "vote", file, line); return v.ballot; }
}
template <class T> static inline T __shfl_sync(unsigned m, T v, int src, int width = 32, CUSIM_AT) { return cusim::shfl(m, v, 0, src, width, file, line); }
template <class T> static inline T __shfl_up_sync(unsigned m, T v, unsigned d, int width = 32, CUSIM_AT) { return cusim::shfl(m, v, 1, (int)d, width, file, line); }
template <class T> static inline T __shfl_down_sync(unsigned m, T v, unsigned d, int width = 32, CUSIM_AT) { return cusim::shfl(m, v, 2, (int)d, width, file, line); }
template <class T> static inline T __shfl_xor_sync(unsigned m, T v, int x, int width = 32, CUSIM_AT) { return cusim::shfl(m, v, 3, x, width, file, line); }
static inline unsigned __ballot_sync(unsigned m, int p, CUSIM_AT) { return cusim::vote(m, p, file, line); }
static inline int __any_sync(unsigned m, int p, CUSIM_AT) { return cusim::vote(m, p, file, line) != 0; }
static inline int __all_sync(unsigned m, int p, CUSIM_AT) { return cusim::vote(m, !p, file, line) == 0; }
CUSIM_FN void __syncwarp(unsigned m = 0xffffffffu, CUSIM_AT) {             // unlike a shuffle it orders memory
  cusim::Warp& wp = cusim::W->warps[cusim::W->cur->warp]; char* t = &wp.tag[wp.gen & 1]; (void)t; CUSIM_REL(t); cusim::collective(m, nullptr, nullptr, "__syncwarp", file, line); CUSIM_ACQ(t); }

// ---- atomics (acq_rel, so that TSan takes the "last block" idiom as ordered) -----------------------------------------
template <class T, class F> static inline T cusim_rmw(T* p, F f) {
  T o, n; __atomic_load(p, &o, __ATOMIC_RELAXED);
  do n = f(o); while (!__atomic_compare_exchange(p, &o, &n, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
  return o; }
template <class T> static inline T atomicAdd(T* p, std::common_type_t<T> v) { return cusim_rmw(p, [=](T o) { return T(o + v); }); }
template <class T> static inline T atomicMax(T* p, std::common_type_t<T> v) { return cusim_rmw(p, [=](T o) { return o > v ? o : v; }); }
template <class T> static inline T atomicMin(T* p, std::common_type_t<T> v) { return cusim_rmw(p, [=](T o) { return o < v ? o : v; }); }
template <class T> static inline T atomicExch(T* p, std::common_type_t<T> v) { return cusim_rmw(p, [=](T) { return v; }); }
template <class T> static inline T atomicCAS(T* p, std::common_type_t<T> c, std::common_type_t<T> v) { return cusim_rmw(p, [=](T o) { return o == c ? v : o; }); }
static inline unsigned atomicInc(unsigned* p, unsigned m) { return cusim_rmw(p, [=](unsigned o) { return o >= m ? 0u : o + 1; }); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __trap() { cusim::fail("__trap"); }

// ---- math and bit intrinsics -----------------------------------------------------------------------------------------
template <class T> static inline T __ldg(const T* p) { return *p; }
template <class T> static inline T __ldcs(const T* p) { return *p; }
// macros: glibc's <math.h> declares functions of these names
#define __expf expf
#define __logf logf
#define __log2f log2f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
static inline float __fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline int __float2int_rn(float x) { return (int)lrintf(x); } static inline float __saturatef(float x) { return fminf(fmaxf(x, 0.f), 1.f); }
template <class O, class I> static inline O cusim_bits(I i) { O o; static_assert(sizeof(O) == sizeof(I), ""); __builtin_memcpy(&o, &i, sizeof o); return o; }
static inline int __float_as_int(float f) { return cusim_bits<int>(f); }       static inline float __int_as_float(int i) { return cusim_bits<float>(i); }
static inline unsigned __float_as_uint(float f) { return cusim_bits<unsigned>(f); } static inline float __uint_as_float(unsigned i) { return cusim_bits<float>(i); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned long long)((unsigned __int128)a * b >> 64); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }         static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) { uint64_t v = (uint64_t)b << 32 | a; unsigned r = 0;
  for (int i = 0; i < 4; i++) { unsigned k = s >> 4 * i, x = (unsigned)(v >> 8 * (k & 7)) & 255; r |= (k & 8 ? (x & 128 ? 255u : 0u) : x) << 8 * i; } return r; }
static inline int __dp4a(int a, int b, int c) { uint32_t r = (uint32_t)c; for (int i = 0; i < 4; i++) r += (uint32_t)((int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i)); return (int)r; }
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) { for (int i = 0; i < 4; i++) c += (a >> 8 * i & 255) * (b >> 8 * i & 255); return c; }
static inline int hob_dp4a(int a, int b, int c) { return __dp4a(a, b, c); }

// ---- half and bfloat16 -------------------------------------------------------------------------------------------------
struct __half { uint16_t x; };
struct alignas(4) __half2 { __half x, y; };
struct __nv_bfloat16 { uint16_t x; };
static inline float __half2float(__half h) {
#if defined(__F16C__)
  return _cvtsh_ss(h.x);
#else
  uint32_t s = (uint32_t)(h.x & 0x8000) << 16, e = h.x >> 10 & 31, m = h.x & 0x3ff;
  if (e == 31) return cusim_bits<float>(s | 0x7f800000u | m << 13);
  if (e) return cusim_bits<float>(s | (e + 112) << 23 | m << 13);
  return cusim_bits<float>(s | cusim_bits<uint32_t>((float)m * 0x1p-24f));
#endif
}
static inline __half __float2half_rn(float f) {
#if defined(__F16C__)
  return {(uint16_t)_cvtss_sh(f, 0)};
#else
  uint32_t u = cusim_bits<uint32_t>(f), s = u >> 16 & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000) return {(uint16_t)(s | 0x7e00 | (a >> 13 & 0x3ff))};
  if (a >= 0x477ff000) return {(uint16_t)(s | 0x7c00)};
  if (a < 0x38800000) return {(uint16_t)(s | (uint32_t)lrintf(fabsf(f) * 0x1p24f))};
  a += 0xfff + (a >> 13 & 1); return {(uint16_t)(s | ((a - 0x38000000) >> 13))};
#endif
}
static inline __half __float2half(float f) { return __float2half_rn(f); }
static inline __half __ushort_as_half(unsigned short u) { return {u}; }       static inline unsigned short __half_as_ushort(__half h) { return h.x; }
static inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }   static inline __half __low2half(__half2 v) { return v.x; }
static inline __half __high2half(__half2 v) { return v.y; }                   static inline float __low2float(__half2 v) { return __half2float(v.x); }
static inline float __high2float(__half2 v) { return __half2float(v.y); }     static inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
static inline __half2 __floats2half2_rn(float a, float b) { return {__float2half_rn(a), __float2half_rn(b)}; }
static inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
static inline __half2 __half2half2(__half a) { return {a, a}; }
static inline __half __hadd(__half a, __half b) { return __float2half_rn(__half2float(a) + __half2float(b)); }
static inline __half __hmul(__half a, __half b) { return __float2half_rn(__half2float(a) * __half2float(b)); }
static inline __half __hfma(__half a, __half b, __half c) { return __float2half_rn(fmaf(__half2float(a), __half2float(b), __half2float(c))); }
static inline __half2 __hadd2(__half2 a, __half2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
static inline __half2 __hmul2(__half2 a, __half2 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }
static inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
static inline float __bfloat162float(__nv_bfloat16 b) { return cusim_bits<float>((uint32_t)b.x << 16); }
static inline __nv_bfloat16 __float2bfloat16(float f) { uint32_t u = cusim_bits<uint32_t>(f); if (f != f) return {0x7fff}; return {(uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16)}; }

// ---- tensor-core and asynchronous-copy wrappers (on the device: inline PTX, see hob.cuh) --------------------------------
namespace cusim {
struct MmaF { const unsigned *a, *b; float* c; }; struct MmaI { const unsigned *a, *b; int* c; };
struct Ldm { const void* row; int n, trans; unsigned r[4]; };
CUSIM_FN bool partial(Fiber** l, unsigned m) { if (m == 0xffffffffu) return false; W->err = "mma/ldmatrix with less than a full warp: " + where(l[__builtin_ctz(m)]); return true; }
CUSIM_FN float h16(unsigned r, int i) { return __half2float({(uint16_t)(r >> 16 * i)}); }
CUSIM_FN void mma_f16_exec(Fiber** l, unsigned m) {                      // m16n8k16, row.col, f32 += f16 * f16
  if (partial(l, m)) return;
  float A[16][16], B[16][8];
  for (int t = 0; t < 32; t++) { MmaF& p = *(MmaF*)l[t]->payload; int g = t >> 2, q = t & 3;
    for (int i = 0; i < 2; i++) {
      for (int r = 0; r < 4; r++) A[g + 8 * (r & 1)][q * 2 + i + 8 * (r >> 1)] = h16(p.a[r], i);
      for (int r = 0; r < 2; r++) B[q * 2 + i + 8 * r][g] = h16(p.b[r], i); } }
  for (int t = 0; t < 32; t++) { MmaF& p = *(MmaF*)l[t]->payload; int g = t >> 2, q = t & 3;
    for (int j = 0; j < 4; j++) { float s = 0; for (int k = 0; k < 16; k++) s += A[g + 8 * (j >> 1)][k] * B[k][q * 2 + (j & 1)]; p.c[j] += s; } }
}
CUSIM_FN void mma_s8_exec(Fiber** l, unsigned m) {                       // m16n8k32, row.col, s32 += s8 * s8
  if (partial(l, m)) return;
  int8_t A[16][32], B[8][32];
  for (int t = 0; t < 32; t++) { MmaI& p = *(MmaI*)l[t]->payload; int g = t >> 2, q = t & 3;
    for (int r = 0; r < 4; r++) __builtin_memcpy(&A[g + 8 * (r & 1)][q * 4 + 16 * (r >> 1)], &p.a[r], 4);
    for (int r = 0; r < 2; r++) __builtin_memcpy(&B[g][q * 4 + 16 * r], &p.b[r], 4); }
  for (int t = 0; t < 32; t++) { MmaI& p = *(MmaI*)l[t]->payload; int g = t >> 2, q = t & 3;
    for (int j = 0; j < 4; j++) { int s = 0; for (int k = 0; k < 32; k++) s += A[g + 8 * (j >> 1)][k] * B[q * 2 + (j & 1)][k]; p.c[j] += s; } }
}
CUSIM_FN void mma_s8_short_exec(Fiber** l, unsigned m) {                 // m16n8k16, row.col, s32 += s8 * s8
  if (partial(l, m)) return;
  int8_t A[16][16], B[8][16];
  for (int t = 0; t < 32; t++) { MmaI& p = *(MmaI*)l[t]->payload; int g = t >> 2, q = t & 3;
    for (int r = 0; r < 2; r++) __builtin_memcpy(&A[g + 8 * r][q * 4], &p.a[r], 4);
    __builtin_memcpy(&B[g][q * 4], p.b, 4); }
  for (int t = 0; t < 32; t++) { MmaI& p = *(MmaI*)l[t]->payload; int g = t >> 2, q = t & 3;
    for (int j = 0; j < 4; j++) { int s = 0; for (int k = 0; k < 16; k++) s += A[g + 8 * (j >> 1)][k] * B[q * 2 + (j & 1)][k]; p.c[j] += s; } }
}
CUSIM_FN void ldmatrix_exec(Fiber** l, unsigned m) {
  if (partial(l, m)) return;
  for (int t = 0; t < 32; t++) { Ldm& p = *(Ldm*)l[t]->payload;
    for (int j = 0; j < p.n; j++) { unsigned v = 0;
      for (int i = 0; i < 2; i++) { int row = p.trans ? (t & 3) * 2 + i : t >> 2, col = p.trans ? t >> 2 : (t & 3) * 2 + i;
        v |= (unsigned)((const uint16_t*)((Ldm*)l[j * 8 + row]->payload)->row)[col] << 16 * i; }
      p.r[j] = v; } }
}
template <int N> inline void ldmatrix(unsigned* d, const void* row, bool trans, const char* file, int line) {
  if ((uintptr_t)row & 15) fail("ldmatrix row address not 16-byte aligned");
  if ((int)W->cur->lane < 8 * N) { volatile char c = *(const volatile char*)row; (void)c; c = ((const volatile char*)row)[15]; }  // let the sanitizers see this lane's read
  Ldm p{row, N, trans, {}}; collective(~0u, &p, ldmatrix_exec, "ldmatrix", file, line); for (int i = 0; i < N; i++) d[i] = p.r[i];
}
__attribute__((noinline)) inline void copy16(const Copy& c) { if (c.bytes) *(uint4*)c.dst = *(const uint4*)c.src; else *(uint4*)c.dst = {}; }   // instrumented
CUSIM_FN void land(unsigned keep) {                                      // let all but the newest `keep` groups arrive
  Fiber* f = W->cur; if (f->n_groups <= keep) return;
  unsigned upto = f->groups[f->n_groups - keep - 1], n = 0;
  for (unsigned i = 0; i < upto; i++) copy16(f->copies[i]);
  for (unsigned i = upto; i < f->n_copies; i++) f->copies[i - upto] = f->copies[i];
  f->n_copies -= upto;
  for (unsigned g = 0; g < f->n_groups; g++) if (f->groups[g] > upto) f->groups[n++] = f->groups[g] - upto;
  f->n_groups = n;
}
}  // namespace cusim
static inline void hob_mma_f16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], CUSIM_AT) {
  cusim::MmaF p{a, b, c}; cusim::collective(~0u, &p, cusim::mma_f16_exec, "mma f16", file, line); }
static inline void hob_mma_s8(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], CUSIM_AT) {
  cusim::MmaI p{a, b, c}; cusim::collective(~0u, &p, cusim::mma_s8_exec, "mma s8", file, line); }
static inline void hob_mma_s8_short(int (&c)[4], unsigned a0, unsigned a1, unsigned b, CUSIM_AT) {
  unsigned a[2] = {a0, a1}; cusim::MmaI p{a, &b, c}; cusim::collective(~0u, &p, cusim::mma_s8_short_exec, "mma s8 short", file, line); }
static inline void hob_ldmatrix_x4(unsigned (&d)[4], const void* row, CUSIM_AT) { cusim::ldmatrix<4>(d, row, false, file, line); }
static inline void hob_ldmatrix_x2_trans(unsigned (&d)[2], const void* row, CUSIM_AT) { cusim::ldmatrix<2>(d, row, true, file, line); }
// The copy is made when hob_cp_async_wait says it must have arrived, no sooner. pred false: 16 zero bytes, gmem is not read.
CUSIM_FN void hob_cp_async16(void* smem, const void* gmem, bool pred = true) {
  cusim::Fiber* f = cusim::W->cur;
  if (((uintptr_t)smem | (pred ? (uintptr_t)gmem : 0)) & 15) cusim::fail("cp.async address not 16-byte aligned");
  if (f->n_copies == 64) cusim::fail("cusim: more than 64 cp.async in flight in one thread");
  f->copies[f->n_copies++] = {smem, gmem, pred ? 16u : 0u}; }
CUSIM_FN void hob_cp_async_commit() { cusim::Fiber* f = cusim::W->cur; if (f->n_groups == 16) cusim::fail("cusim: more than 16 cp.async groups"); f->groups[f->n_groups++] = f->n_copies; }
template <int N> static inline void hob_cp_async_wait() { cusim::land(N); }
