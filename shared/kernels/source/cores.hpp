// The cores of a machine, shared by the services that compute on it.
//
// Each service has a place in a table that all of them map into memory. While
// several compute at once, each takes its part of the cores; one that computes
// alone takes them all. Teams that were told to give way leave the cores that an
// urgent one wants to it, within bounds. Knows who computes. Does not know what.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>

namespace percept {

// The same places stand in shared/kernels/cores.py.
struct alignas(64) CorePlace {
    std::atomic<int64_t> holder; // a process, or 0: the places are given out in Python
    std::atomic<int64_t> busy;   // computes now
    std::atomic<int64_t> seen;   // when it last said so, in nanoseconds of the monotonic clock
    std::atomic<int64_t> urgent; // threads that what it computes has, where others are to give way; written in Python
};
static_assert(sizeof(CorePlace) == 64 && offsetof(CorePlace, urgent) == 24, "shared/kernels/cores.py knows the places");

class CoreShare {
  public:
    static constexpr int64_t PAUSE = 1'000'000;       // ns; between two steps a service is still at work
    static constexpr int64_t SILENCE = 2'000'000'000; // ns; a service that says nothing for so long has died
    static constexpr int64_t PATIENCE = 1;            // waits for so many times as long as it went on before,
    static constexpr int64_t MOST = 1'000'000'000;    // ns; but never for longer than this in a row
    static constexpr int64_t GLANCE = 200'000;        // ns; how often who waits looks whether it may go on

    CoreShare(CorePlace *places, int count, int own, int cores, bool gives_way)
        : places_(places), count_(count), own_(own), cores_(cores), gives_way_(gives_way) {}

    // Computes now, or goes on: how many cores there are for it. Who gives way may sleep before.
    int begin() {
        int64_t now = clock();
        int left = gives_way_ ? give_way(now) : cores_;
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
        int part = std::min(cores_ / active + (before < cores_ % active), left);
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

    // Cores that urgent teams leave; sleeps while there are none, as long as patience lasts. Sets `now` to its end.
    int give_way(int64_t &now) {
        patience_ = std::min(MOST, patience_ + PATIENCE * (now - begun_));
        int left = cores_ - urgent_threads(now);
        while (left < 1 && patience_ > 0) {
            places_[own_].seen.store(0, std::memory_order_relaxed); // its cores are free, at once
            places_[own_].busy.store(0, std::memory_order_relaxed);
            std::this_thread::sleep_for(std::chrono::nanoseconds(GLANCE));
            int64_t woken = clock();
            patience_ = std::max<int64_t>(0, patience_ - (woken - now));
            now = woken;
            left = cores_ - urgent_threads(now);
        }
        begun_ = now;
        return left < 1 ? cores_ : left; // out of patience: its part, as without urgency
    }

    int urgent_threads(int64_t now) const {
        int64_t threads = 0;
        for (int place = 0; place < count_; place++) {
            const CorePlace &other = places_[place];
            if (other.holder.load(std::memory_order_relaxed) == 0) break;
            if (place != own_ && is_active(other, now)) threads += other.urgent.load(std::memory_order_relaxed);
        }
        return (int)std::min<int64_t>(threads, cores_);
    }

    CorePlace *places_;
    int count_, own_, cores_;
    bool gives_way_;
    int64_t begun_ = clock(), patience_ = 0; // ns
};

} // namespace percept
