// The cores of a machine, shared by the services that compute on it.
//
// Each service has a place in a table that all of them map into memory. While
// several compute at once, each takes its part of the cores; one that computes
// alone takes them all. Knows who computes. Does not know what.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace percept {

// The same places stand in shared/kernels/cores.py.
struct alignas(64) CorePlace {
    std::atomic<int64_t> holder; // a process, or 0: the places are given out in Python
    std::atomic<int64_t> busy;   // computes now
    std::atomic<int64_t> seen;   // when it last said so, in nanoseconds of the monotonic clock
};

class CoreShare {
  public:
    static constexpr int64_t PAUSE = 1'000'000;       // ns; between two steps a service is still at work
    static constexpr int64_t SILENCE = 2'000'000'000; // ns; a service that says nothing for so long has died

    CoreShare(CorePlace *places, int count, int own, int cores)
        : places_(places), count_(count), own_(own), cores_(cores) {}

    // Computes now, or goes on: how many cores there are for it.
    int begin() {
        int64_t now = clock();
        CorePlace &own = places_[own_];
        own.seen.store(now, std::memory_order_relaxed);
        own.busy.store(1, std::memory_order_relaxed);
        int active = 1, before = 0;
        for (int place = 0; place < count_; place++) {
            if (places_[place].holder.load(std::memory_order_relaxed) == 0) break; // given out in order
            if (place == own_ || !is_active(places_[place], now)) continue;
            active++;
            if (place < own_) before++;
        }
        int part = cores_ / active + (before < cores_ % active);
        return part < 1 ? 1 : part;
    }

    void end() {
        places_[own_].seen.store(clock(), std::memory_order_relaxed);
        places_[own_].busy.store(0, std::memory_order_relaxed);
    }

  private:
    static int64_t clock() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

    static bool is_active(const CorePlace &place, int64_t now) {
        int64_t silent = now - place.seen.load(std::memory_order_relaxed);
        return silent < (place.busy.load(std::memory_order_relaxed) ? SILENCE : PAUSE);
    }

    CorePlace *places_;
    int count_, own_, cores_;
};

} // namespace percept
