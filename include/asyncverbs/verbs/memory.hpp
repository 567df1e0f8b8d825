// SPDX-License-Identifier: MIT
// The protection domain: memory regions and queue pairs work together only within one.
// It keeps its device open.
#pragma once

#include <sys/mman.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include <asyncverbs/verbs/detail/handle.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs {

/// Owns a protection domain (ibv_pd). Its memory regions and queue pairs keep it alive.
/// Move-only. A moved-from ProtectionDomain owns nothing: native_handle() is nullptr, making a
/// child of it throws invalid_argument. See ibv_alloc_pd(3).
class ProtectionDomain {
public:
    /// Throws std::system_error naming ibv_alloc_pd.
    explicit ProtectionDomain(const Context& context)
        : context_(detail::checked(context.shared_handle(), "Context")) {
        errno = 0;
        ibv_pd* native = ibv_alloc_pd(context_.native_handle());
        if (native == nullptr) {
            throw_verb_error("ibv_alloc_pd", detail::verb_errno());
        }
        pd_ = detail::own<ibv_dealloc_pd>(native, context_.shared_handle());
    }

    ProtectionDomain(ProtectionDomain&&) noexcept = default;
    ProtectionDomain& operator=(ProtectionDomain&&) noexcept = default;

    /// The device that the domain belongs to.
    [[nodiscard]] const Context& context() const noexcept { return context_; }

    /// The native object, for verbs that this library does not cover; nullptr when moved from.
    [[nodiscard]] ibv_pd* native_handle() const noexcept { return pd_.get(); }

    /// Shares ownership: the domain and its device live as long as the pointer, or a copy, exists.
    [[nodiscard]] const std::shared_ptr<ibv_pd>& shared_handle() const noexcept { return pd_; }

private:
    Context context_;
    detail::Handle<ibv_pd> pd_;
};

} // namespace asyncverbs

namespace asyncverbs::detail {

// Whole pages of zeroed memory. Of the kernel and not of the heap, so that nothing else ever lives
// where a device may still write.

// Throws std::system_error naming mmap; EINVAL for a size of 0.
[[nodiscard]] inline Handle<void> allocate_pages(std::size_t size) {
    void* pages = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) {
        throw_verb_error("mmap", errno);
    }
    const auto unmap = [size](void* memory) { munmap(memory, size); };
    return {pages, unmap};
}

} // namespace asyncverbs::detail

namespace asyncverbs {

/// `length` bytes at `address` in the memory region of `lkey`. Keeps the region registered for as
/// long as it, or a copy, exists; whether it keeps the memory as well depends on the region.
/// A slice that was made of an address and a key by hand keeps nothing.
struct Slice {
    Slice() noexcept = default; ///< Of no memory.

    /// `count` bytes in the region of `key`, which `owner` keeps registered.
    // A constructor: GCC 12 destroys aggregates twice in expressions that await.
    Slice(std::byte* bytes, std::size_t count, std::uint32_t key,
          detail::Handle<ibv_mr> owner = nullptr) noexcept
        : address(bytes), length(count), lkey(key), region(std::move(owner)) {}

    std::byte* address = nullptr;  ///< of the first byte
    std::size_t length = 0;        ///< in bytes
    std::uint32_t lkey = 0;        ///< of the memory region, for local use
    detail::Handle<ibv_mr> region; ///< what is kept registered; nullptr: nothing

    /// The slice's bytes from `offset` on. Throws as slice(offset, length) does.
    [[nodiscard]] Slice slice(std::size_t offset) const {
        return slice(offset, offset <= length ? length - offset : 0);
    }

    /// The `count` bytes at `offset`; `count` may be 0. Throws std::system_error (invalid_argument)
    /// that says offset, length and size where they are not all inside this slice.
    [[nodiscard]] Slice slice(std::size_t offset, std::size_t count) const {
        if (offset > length || count > length - offset) {
            detail::throw_error(std::errc::invalid_argument,
                                "a slice of length " + std::to_string(count) + " at offset " +
                                    std::to_string(offset) + " is outside its region of size " +
                                    std::to_string(length));
        }
        return {address + offset, count, lkey, region};
    }

    /// The memory itself.
    [[nodiscard]] std::span<std::byte> bytes() const noexcept {
        return std::span<std::byte>(address, length);
    }

    /// The slice as a scatter/gather element. Throws std::system_error (invalid_argument) for more
    /// than 4 GiB - 1, which is all that one element can name.
    [[nodiscard]] ibv_sge sge() const {
        if (length > std::numeric_limits<std::uint32_t>::max()) {
            detail::throw_error(std::errc::invalid_argument,
                                "a slice of " + std::to_string(length) +
                                    " bytes does not fit a scatter/gather element: 4294967295 is "
                                    "its greatest length");
        }
        ibv_sge sge{};
        sge.addr = reinterpret_cast<std::uintptr_t>(address);
        sge.length = static_cast<std::uint32_t>(length);
        sge.lkey = lkey;
        return sge;
    }
};

/// Owns the registration of a range of memory (ibv_mr); keeps its protection domain alive.
/// The caller's memory must outlive the region, its slices, and every work request that names it.
/// Memory of its own, see allocate(), it frees after the registration.
/// Move-only. A moved-from MemoryRegion owns nothing: native_handle() is nullptr, bytes() is empty,
/// anything else throws invalid_argument. See ibv_reg_mr(3).
class MemoryRegion {
public:
    /// Registers `bytes`. `access` is a combination of ibv_access_flags; local reads are always
    /// allowed, remote writes and atomics need IBV_ACCESS_LOCAL_WRITE as well. Throws
    /// std::system_error: invalid_argument where `bytes` is empty, else naming ibv_reg_mr (often
    /// the limit on locked memory, `ulimit -l`).
    MemoryRegion(const ProtectionDomain& domain, std::span<std::byte> bytes,
                 int access = IBV_ACCESS_LOCAL_WRITE)
        : MemoryRegion(domain, bytes, access, nullptr) {}

    /// A region over `size` bytes of its own, zeroed and at the start of a page. Throws
    /// std::system_error: naming mmap (invalid_argument where `size` is 0), else as above.
    [[nodiscard]] static MemoryRegion allocate(const ProtectionDomain& domain, std::size_t size,
                                               int access = IBV_ACCESS_LOCAL_WRITE) {
        detail::Handle<void> pages = detail::allocate_pages(size);
        const std::span<std::byte> bytes(static_cast<std::byte*>(pages.get()), size);
        return MemoryRegion(domain, bytes, access, std::move(pages));
    }

    MemoryRegion(MemoryRegion&&) noexcept = default;
    MemoryRegion& operator=(MemoryRegion&&) noexcept = default;

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
    [[nodiscard]] Slice slice() const {
        return {static_cast<std::byte*>(get()->addr), mr_->length, mr_->lkey, mr_};
    }

    /// The region's bytes from `offset` on; throws where that is outside, as Slice::slice() does.
    [[nodiscard]] Slice slice(std::size_t offset) const { return slice().slice(offset); }

    /// `length` bytes at `offset`; throws where that is outside, as Slice::slice() does.
    [[nodiscard]] Slice slice(std::size_t offset, std::size_t length) const {
        return slice().slice(offset, length);
    }

    /// The native object, for verbs that this library does not cover; nullptr when moved from.
    [[nodiscard]] ibv_mr* native_handle() const noexcept { return mr_.get(); }

    /// Shares ownership: the region, its parents and the memory that it has allocated live as long
    /// as the pointer, or a copy, exists.
    [[nodiscard]] const std::shared_ptr<ibv_mr>& shared_handle() const noexcept { return mr_; }

private:
    MemoryRegion(const ProtectionDomain& domain, std::span<std::byte> bytes, int access,
                 detail::Handle<void> memory) {
        const auto& pd = detail::checked(domain.shared_handle(), "ProtectionDomain");
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
        mr_ = detail::own<ibv_dereg_mr>(native, std::move(memory), pd);
    }

    [[nodiscard]] ibv_mr* get() const { return detail::checked(mr_, "MemoryRegion").get(); }

    detail::Handle<ibv_mr> mr_;
};

} // namespace asyncverbs
