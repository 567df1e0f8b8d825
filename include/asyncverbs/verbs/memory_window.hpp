// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <infiniband/verbs.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <system_error>
#include <utility>

#include <asyncverbs/verbs/detail/native.hpp>
#include <asyncverbs/verbs/error.hpp>
#include <asyncverbs/verbs/memory.hpp>

namespace asyncverbs {

namespace detail {

template <class Request>
class SendRequestKinds;

inline int deallocate_window(ibv_mw* window) noexcept { return ibv_dealloc_mw(window); }

} // namespace detail

/// Owns a memory window (ibv_mw, of type 2) of one memory region: a key for a part of the region
/// that is given to the peer of a queue pair, and taken back without deregistering the region. So
/// an RDMA read that comes too late fails, instead of reading what is in the memory by then.
///
///     MemoryRegion region = MemoryRegion::allocate(
///         domain, size, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND);
///     MemoryWindow window(region);
///     co_await qp.bind(window, region.slice(0, 4096), IBV_ACCESS_REMOTE_READ);
///     // … send window.remote_slice() to the peer, which reads
///     co_await qp.invalidate(window);
///
/// AsyncQp has the operations. Keeps its region registered, and must itself exist until they have
/// completed. soft-RoCE has memory windows, soft-iWARP has none.
/// Move-only. A moved-from MemoryWindow owns nothing: native_handle() is nullptr, anything else
/// throws invalid_argument. See ibv_alloc_mw(3).
class MemoryWindow {
public:
    /// A window that no peer can use yet. Throws std::system_error naming ibv_alloc_mw:
    /// operation_not_supported if the device has no windows of type 2.
    explicit MemoryWindow(const MemoryRegion& region)
        : region_(detail::checked(region.shared_handle(), "MemoryRegion")) {
        const auto hint = [](int error) {
            return error == EOPNOTSUPP ? " (the device has no memory windows of type 2)" : "";
        };
        ibv_mw* const native = detail::create(
            "ibv_alloc_mw", [&] { return ibv_alloc_mw(region_->pd, IBV_MW_TYPE_2); }, hint);
        window_ = detail::own<detail::deallocate_window>(native, region_);
        bound_.rkey = native->rkey;
    }

    MemoryWindow(MemoryWindow&&) noexcept = default;
    MemoryWindow& operator=(MemoryWindow&&) noexcept = default;

    /// Deallocates the window, which ends its binding, and reports as Context::close() does.
    [[nodiscard]] std::error_code close() noexcept {
        if (const std::error_code error = detail::close(window_)) return error;
        const MemoryWindow released(std::move(*this));
        return {};
    }

    /// What the peer may access after the bind that was posted last, until invalidate(): to be sent
    /// to it once the bind has completed. Each bind has another key. Empty before the first.
    [[nodiscard]] const RemoteSlice& remote_slice() const noexcept { return bound_; }

    /// The native object, for verbs that this library does not cover; nullptr when moved from.
    [[nodiscard]] ibv_mw* native_handle() const noexcept { return window_.get(); }

    /// Shares ownership: the window and its region live as long as the pointer, or a copy, exists.
    [[nodiscard]] const std::shared_ptr<ibv_mw>& shared_handle() const noexcept { return window_; }

private:
    template <class Request>
    friend class detail::SendRequestKinds;

    const RemoteSlice& next_binding(const Slice& slice) {
        static_cast<void>(detail::checked(window_, "MemoryWindow"));
        if (slice.lkey != region_->lkey) {
            detail::throw_error(std::errc::invalid_argument,
                                "the slice is of another region than the memory window");
        }
        bound_ = {reinterpret_cast<std::uintptr_t>(slice.address), slice.length,
                  ibv_inc_rkey(bound_.rkey)};
        return bound_;
    }

    detail::Handle<ibv_mr> region_;
    detail::Handle<ibv_mw> window_;
    RemoteSlice bound_{};
};

} // namespace asyncverbs
