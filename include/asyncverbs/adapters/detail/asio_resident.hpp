// SPDX-License-Identifier: MIT
// What has to let go of an Asio execution context before that ends: an io_context may be destroyed
// while somebody waits, and before the objects that he waits for.
#pragma once

#include <mutex>
#include <utility>

#include <asyncverbs/adapters/detail/asio_flavour.hpp>
#include <asyncverbs/core/detail/intrusive_list.hpp>

namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR {

class AsioResidents;

class AsioResident : public ListNode {
public:
    AsioResident() = default;
    AsioResident(const AsioResident&) = delete;
    AsioResident& operator=(const AsioResident&) = delete;

    /// The context is being destroyed: it runs nothing any more, but its services are still there.
    /// Called once, by a resident that is in the list.
    virtual void evict() noexcept = 0;

protected:
    ~AsioResident() = default;

    template <class Executor>
    void enter(const Executor& executor);
    void leave() noexcept;

private:
    friend AsioResidents;

    AsioResidents* residents_ = nullptr;
};

// The service of a context that knows its residents. Asio shuts services down in the reverse of
// their order of creation, so this one goes before those that its residents use.
class AsioResidents : public net::execution_context::service {
public:
    using key_type = AsioResidents;
    static inline net::execution_context::id id;

    explicit AsioResidents(net::execution_context& context)
        : net::execution_context::service(context) {}

    void add(AsioResident& resident) {
        const std::lock_guard lock(mutex_);
        residents_.push_back(resident);
    }
    void remove(AsioResident& resident) noexcept {
        const std::lock_guard lock(mutex_);
        resident.unlink();
    }

private:
    AsioResident* next() noexcept {
        const std::lock_guard lock(mutex_);
        if (residents_.empty()) return nullptr;
        AsioResident& resident = residents_.take_front();
        resident.residents_ = nullptr;
        return &resident;
    }

    void shutdown() override {
        while (AsioResident* const resident = next()) resident->evict();
    }

    std::mutex mutex_; // several threads may run the context
    IntrusiveList<AsioResident> residents_;
};

template <class Executor>
void AsioResident::enter(const Executor& executor) {
    net::execution_context& context = net::query(executor, net::execution::context);
    residents_ = &net::use_service<AsioResidents>(context);
    residents_->add(*this);
}

inline void AsioResident::leave() noexcept {
    if (residents_ != nullptr) std::exchange(residents_, nullptr)->remove(*this);
}

} // namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR
