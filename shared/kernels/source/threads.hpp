// A team of threads that runs the same list of operations side by side.
//
// Knows threads, items of work and barriers. Does not know what an operation
// does. Work is taken item by item from one counter: a thread that the system
// has set aside holds nobody up, and a core shared with another process is used
// as far as it goes.
#pragma once

#include "cores.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace percept {

inline void breathe() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits until `value` is no longer `old`: a short spin, then asleep.
inline void await_change(const std::atomic<uint32_t> &value, uint32_t old, int spins) {
    for (int spin = 0; spin < spins; spin++) {
        if (value.load(std::memory_order_acquire) != old) return;
        breathe();
    }
    while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

class Team {
  public:
    static constexpr int BARRIER_SPINS = 4000;
    static constexpr int IDLE_SPINS = 8000;

    explicit Team(int size) : size_(size < 1 ? 1 : size), calls_(new Call[size_]) {
        try {
            for (int index = 1; index < size_; index++) threads_.emplace_back([this, index] { serve(index); });
        } catch (...) { // the system gives no more: those that it gave must end first
            close();
            throw;
        }
    }

    ~Team() { close(); }

    // Threads that take part in the present job.
    int size() const { return active_; }

    // From now on takes only its part of the cores that it shares with other processes.
    void share(const CoreShare &share) {
        std::lock_guard<std::mutex> one_at_a_time(running_);
        share_ = std::make_unique<CoreShare>(share);
    }

    // Threads that a job would get now.
    int next_part() {
        std::lock_guard<std::mutex> one_at_a_time(running_);
        if (!share_) return size_;
        int part = std::min(size_, share_->begin());
        share_->end();
        return part;
    }

    // Runs `job(operation)` for each of `count` operations, on every thread that there is a core for, the caller's
    // included; each begins when all have ended the one before. Who takes part is asked anew for each.
    void run(int64_t count, const std::function<void(int64_t)> &job) {
        std::lock_guard<std::mutex> one_at_a_time(running_);
        job_ = &job;
        for (operation_ = 0; operation_ < count; operation_++) {
            active_ = share_ ? std::min(size_, share_->begin()) : size_;
            counter_.store(0, std::memory_order_relaxed);
            announce();
            job(operation_);
            meet();
        }
        if (share_) share_->end();
    }

    // The next `count` items of the present operation: the first of them.
    int64_t take(int64_t count) { return counter_.fetch_add(count, std::memory_order_relaxed); }

  private:
    // Waits for all threads that take part.
    void meet() {
        uint32_t generation = generation_.load(std::memory_order_acquire);
        uint32_t all = (uint32_t)active_; // read before arriving: once all have arrived, the next job may change it
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == all) {
            arrived_.store(0, std::memory_order_relaxed);
            generation_.store(generation + 1, std::memory_order_release);
            generation_.notify_all();
        } else {
            await_change(generation_, generation, BARRIER_SPINS);
        }
    }

    void close() {
        closing_ = true;
        active_ = size_;
        announce();
        for (std::thread &thread : threads_) thread.join();
    }

    // A thread of its own for each: those that take no part sleep on.
    struct alignas(64) Call {
        std::atomic<uint32_t> number{0};
    };

    void announce() {
        for (int index = 1; index < active_; index++) {
            calls_[index].number.fetch_add(1, std::memory_order_release);
            calls_[index].number.notify_one();
        }
    }

    void serve(int index) {
        uint32_t seen = 0;
        while (true) {
            await_change(calls_[index].number, seen, IDLE_SPINS);
            seen++;
            if (closing_) return;
            (*job_)(operation_);
            meet();
        }
    }

    const int size_;
    int active_ = 1;
    std::unique_ptr<CoreShare> share_;
    const std::unique_ptr<Call[]> calls_;
    std::vector<std::thread> threads_;
    std::mutex running_;
    const std::function<void(int64_t)> *job_ = nullptr;
    int64_t operation_ = 0;
    std::atomic<bool> closing_{false};
    alignas(64) std::atomic<uint32_t> generation_{0};
    alignas(64) std::atomic<uint32_t> arrived_{0};
    alignas(64) std::atomic<int64_t> counter_{0};
};

} // namespace percept
