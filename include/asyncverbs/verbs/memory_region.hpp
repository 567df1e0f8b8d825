// SPDX-License-Identifier: MIT
// Memory that the device may read and write.
// Owns the registration, and the bytes where it has allocated them.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <asyncverbs/verbs/detail/handle.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>
#include <asyncverbs/verbs/detail/pages.hpp>
#include <asyncverbs/verbs/protection_domain.hpp>
#include <asyncverbs/verbs/slice.hpp>

namespace asyncverbs {

/// Owns the registration of a range of memory (ibv_mr); keeps its protection domain alive.
/// The caller's memory must outlive the region, its slices, and every work request that names it.
/// Memory of its own, see allocate(), it frees after the registration.
/// Move-only. A moved-from MemoryRegion owns nothing: native_handle() is nullptr, bytes() is empty,
/// anything else throws invalid_argument. See ibv_reg_mr(3).
template <class Use>
class BasicMemoryRegion {
public:
    /// Registers `bytes`. `access` is a combination of ibv_access_flags; local reads are always
    /// allowed, remote writes and atomics need IBV_ACCESS_LOCAL_WRITE as well. Throws
    /// std::system_error: invalid_argument where `bytes` is empty, else naming ibv_reg_mr (often
    /// the limit on locked memory, `ulimit -l`).
    BasicMemoryRegion(const BasicProtectionDomain<Use>& domain, std::span<std::byte> bytes,
                      int access = IBV_ACCESS_LOCAL_WRITE)
        : BasicMemoryRegion(domain, bytes, access, nullptr) {}

    /// A region over `size` bytes of its own, zeroed and at the start of a page. Throws
    /// std::system_error: naming mmap (invalid_argument where `size` is 0), else as above.
    [[nodiscard]] static BasicMemoryRegion allocate(const BasicProtectionDomain<Use>& domain,
                                                    std::size_t size,
                                                    int access = IBV_ACCESS_LOCAL_WRITE) {
        detail::Handle<void, Use> pages = detail::allocate_pages<Use>(size);
        const detail::Used<std::span<std::byte>, Use> bytes(static_cast<std::byte*>(pages.get()),
                                                            size);
        return BasicMemoryRegion(domain, bytes, access, std::move(pages));
    }

    BasicMemoryRegion(BasicMemoryRegion&&) noexcept = default;
    BasicMemoryRegion& operator=(BasicMemoryRegion&&) noexcept = default;

    /// The key that names the region in local scatter/gather elements.
    [[nodiscard]] std::uint32_t lkey() const { return get()->lkey; }

    /// The key that a peer's RDMA reads, writes and atomics name the region by.
    [[nodiscard]] std::uint32_t rkey() const { return get()->rkey; }

    /// The memory that is registered.
    [[nodiscard]] std::span<std::byte> bytes() const noexcept {
        return mr_ ? std::span(static_cast<std::byte*>(mr_->addr), mr_->length)
                   : std::span<std::byte>();
    }

    /// The whole region.
    [[nodiscard]] BasicSlice<Use> slice() const {
        return {static_cast<std::byte*>(get()->addr), mr_->length, mr_->lkey, mr_};
    }

    /// The region's bytes from `offset` on; throws where that is outside, as Slice::slice() does.
    [[nodiscard]] BasicSlice<Use> slice(std::size_t offset) const { return slice().slice(offset); }

    /// `length` bytes at `offset`; throws where that is outside, as Slice::slice() does.
    [[nodiscard]] BasicSlice<Use> slice(std::size_t offset, std::size_t length) const {
        return slice().slice(offset, length);
    }

    /// The native object, for verbs that this library does not cover; nullptr when moved from.
    [[nodiscard]] ibv_mr* native_handle() const noexcept { return mr_.get(); }

    /// Shares ownership: the region, its parents and the memory that it has allocated live as long
    /// as the pointer, or a copy, exists.
    [[nodiscard]] const std::shared_ptr<ibv_mr>& shared_handle() const noexcept { return mr_; }

private:
    BasicMemoryRegion(const BasicProtectionDomain<Use>& domain, std::span<std::byte> bytes,
                      int access, detail::Handle<void, Use> memory) {
        const auto& pd = detail::alive(domain.shared_handle(), "ProtectionDomain");
        if (bytes.empty()) {
            detail::throw_error(std::errc::invalid_argument,
                                "cannot register an empty span as a memory region");
        }
        errno = 0;
        ibv_mr* native =
            ibv_reg_mr(pd.get(), bytes.data(), bytes.size(), static_cast<unsigned>(access));
        if (native == nullptr) {
            throw_verb_error("ibv_reg_mr", detail::verb_errno());
        }
        mr_ = detail::own<ibv_dereg_mr, Use>(native, std::move(memory), pd);
    }

    [[nodiscard]] ibv_mr* get() const { return detail::alive(mr_, "MemoryRegion").get(); }

    detail::Handle<ibv_mr, Use> mr_;
};

/// The MemoryRegion of programs: compiled only where it is used, but otherwise as a class.
using MemoryRegion = BasicMemoryRegion<OnUse>;

} // namespace asyncverbs
