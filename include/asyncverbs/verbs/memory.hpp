// SPDX-License-Identifier: MIT
// Registered memory: the protection domain, memory regions, and slices of them.
#pragma once

#include <asyncverbs/requirements.hpp>

#include <sys/mman.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include <asyncverbs/verbs/detail/memory_use.hpp>
#include <asyncverbs/verbs/detail/native.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs {

/// Owns a protection domain (ibv_pd): memory regions, queue pairs and the other objects of a domain
/// can be used with each other only. They keep it alive, and it keeps its device open.
/// Move-only. A moved-from ProtectionDomain owns nothing: native_handle() is nullptr, creating a
/// child object throws invalid_argument. See ibv_alloc_pd(3).
class ProtectionDomain {
public:
    /// Throws std::system_error naming ibv_alloc_pd.
    explicit ProtectionDomain(const Context& context)
        : context_(detail::checked(context.shared_handle(), "Context")) {
        pd_ = detail::own<ibv_dealloc_pd>(
            detail::create("ibv_alloc_pd", [&] { return ibv_alloc_pd(context_.native_handle()); }),
            context_.shared_handle());
    }

    /// A domain that the program has already, of a device that is borrowed; see borrow(). Throws
    /// invalid_argument for nullptr.
    explicit ProtectionDomain(std::shared_ptr<ibv_pd> handle)
        : context_(borrow(detail::adopted(handle, "ibv_pd")->context)), pd_(std::move(handle)) {}

    ProtectionDomain(ProtectionDomain&&) noexcept = default;
    ProtectionDomain& operator=(ProtectionDomain&&) noexcept = default;

    /// Deallocates the domain, and reports as Context::close() does: device_or_resource_busy while
    /// a region, a queue pair or another object of the domain exists.
    [[nodiscard]] std::error_code close() noexcept {
        if (const std::error_code error = detail::close(pd_)) return error;
        const ProtectionDomain released(std::move(*this));
        return {};
    }

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

namespace detail {

// Throws unless the `count` bytes at `offset` are inside a slice of `length` bytes. `owner` is for
// the text.
inline void check_slice(std::size_t offset, std::size_t count, std::size_t length,
                        const char* owner) {
    if (offset > length || count > length - offset) {
        throw_error(std::errc::invalid_argument, "a slice of length " + std::to_string(count) +
                                                     " at offset " + std::to_string(offset) +
                                                     " is outside " + owner + " of size " +
                                                     std::to_string(length));
    }
}

} // namespace detail

/// `length` bytes at `address` in the memory region of `lkey`: a view, which is cheap to copy and
/// keeps nothing alive.
///
/// Lifetime: the MemoryRegion, or the PooledBuffer, that a slice was made from must exist during a
/// call that posts the slice, and no thread may destroy it meanwhile. From then on, until the
/// operation has completed, the queue keeps the region registered, and the memory itself if the
/// region owns it. For a slice that was made from an address and a key, the caller does that.
struct Slice {
    Slice() noexcept = default; ///< An empty slice, of no region.

    /// `count` bytes in the region of `key`. Nothing is kept unless there is a `memory_keeper`.
    // Slice is no aggregate: GCC 12 destroys aggregates twice in expressions that await.
    Slice(std::byte* bytes, std::size_t count, std::uint32_t key,
          detail::MemoryKeeper* memory_keeper = nullptr) noexcept
        : address(bytes), length(count), lkey(key), keeper(memory_keeper) {}

    std::byte* address = nullptr;           ///< of the first byte
    std::size_t length = 0;                 ///< in bytes
    std::uint32_t lkey = 0;                 ///< of the memory region, for local use
    detail::MemoryKeeper* keeper = nullptr; ///< of the region or buffer that it was made from

    /// The bytes from `offset` to the end. Throws as slice(offset, count) does.
    [[nodiscard]] Slice slice(std::size_t offset) const {
        return slice(offset, offset <= length ? length - offset : 0);
    }

    /// The `count` bytes at `offset`; `count` may be 0. Throws std::system_error (invalid_argument)
    /// with offset, length and size unless all of them are inside this slice.
    [[nodiscard]] Slice slice(std::size_t offset, std::size_t count) const {
        detail::check_slice(offset, count, length, "its region");
        return {address + offset, count, lkey, keeper};
    }

    /// The memory itself.
    [[nodiscard]] std::span<std::byte> bytes() const noexcept {
        return std::span<std::byte>(address, length);
    }

    /// The slice as a scatter/gather element. Throws std::system_error (invalid_argument) if it is
    /// longer than 4 GiB - 1, the limit of one element.
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

/// `length` bytes at `address` in the peer's memory region `rkey`. A plain value: the peer makes it
/// with MemoryRegion::remote_slice(), and sends it in a message of the application.
struct RemoteSlice {
    std::uint64_t address = 0; ///< at the peer
    std::size_t length = 0;    ///< in bytes
    std::uint32_t rkey = 0;    ///< of its memory region

    /// The slice's bytes from `offset` on. Throws as slice(offset, count) does.
    [[nodiscard]] RemoteSlice slice(std::size_t offset) const {
        return slice(offset, offset <= length ? length - offset : 0);
    }

    /// The `count` bytes at `offset`. Throws std::system_error (invalid_argument), with offset,
    /// length and size, if they are not all inside this slice.
    [[nodiscard]] RemoteSlice slice(std::size_t offset, std::size_t count) const {
        detail::check_slice(offset, count, length, "the peer's");
        return {address + offset, count, rkey};
    }
};

namespace detail {

// A template, because rdma-core before 34 does not declare the verb.
template <class Domain>
[[nodiscard]] ibv_mr* register_dmabuf(Domain* pd, std::uint64_t offset, std::size_t length,
                                      std::uint64_t iova, int fd, int access) {
    if constexpr (requires { ibv_reg_dmabuf_mr(pd, offset, length, iova, fd, access); }) {
        return ibv_reg_dmabuf_mr(pd, offset, length, iova, fd, access);
    } else {
        errno = EOPNOTSUPP;
        return nullptr;
    }
}

} // namespace detail

/// Owns the registration of a range of memory (ibv_mr); keeps its protection domain alive.
/// The caller's memory must outlive the region and every work request that names it. A region made
/// by allocate() owns its memory, and frees it after it was deregistered.
///
/// May be destroyed on any thread while operations use its slices: then it stays registered until
/// the last of them has completed, or its queue pair was destroyed. See Slice.
/// Move-only. A moved-from MemoryRegion owns nothing: native_handle() is nullptr, bytes() is empty,
/// anything else throws invalid_argument. See ibv_reg_mr(3).
class MemoryRegion {
public:
    /// Registers `bytes`. `access` is a combination of ibv_access_flags; local reads are always
    /// allowed; remote writes and atomics need IBV_ACCESS_LOCAL_WRITE as well. Also possible, where
    /// the device can do it: IBV_ACCESS_ON_DEMAND, pages are not locked but fetched when they are
    /// used; IBV_ACCESS_RELAXED_ORDERING, the writes of a message may become visible in any order,
    /// all of them before its completion (a device that cannot ignores it). Throws
    /// std::system_error: invalid_argument if `bytes` is empty, else naming ibv_reg_mr, and the
    /// limit on locked memory (`ulimit -l`) if that is the likely cause.
    MemoryRegion(const ProtectionDomain& domain, std::span<std::byte> bytes,
                 int access = IBV_ACCESS_LOCAL_WRITE)
        : MemoryRegion(domain, bytes, access, nullptr) {}

    /// A region that owns its memory: `size` bytes, zeroed, at the start of a page. Throws
    /// std::system_error naming mmap (invalid_argument if `size` is 0), and as the constructor
    /// does.
    [[nodiscard]] static MemoryRegion allocate(const ProtectionDomain& domain, std::size_t size,
                                               int access = IBV_ACCESS_LOCAL_WRITE) {
        detail::Handle<void> pages = allocate_pages(size);
        const std::span<std::byte> bytes(static_cast<std::byte*>(pages.get()), size);
        return MemoryRegion(domain, bytes, access, std::move(pages));
    }

    /// Registers `length` bytes at `offset` of the dma-buf `fd`, such as memory of a GPU. `iova` is
    /// the address of the first byte in work requests, here and at the peer, at the same offset in
    /// a page as `offset`. bytes() and the slices have these addresses, which need not be memory of
    /// the process. `fd` may be closed afterwards. Throws std::system_error naming
    /// ibv_reg_dmabuf_mr: operation_not_supported if the device, its driver or rdma-core (before
    /// 34) cannot do it. See ibv_reg_dmabuf_mr(3).
    [[nodiscard]] static MemoryRegion dmabuf(const ProtectionDomain& domain, int fd,
                                             std::uint64_t offset, std::size_t length,
                                             std::uint64_t iova,
                                             int access = IBV_ACCESS_LOCAL_WRITE) {
        const auto& pd = detail::checked(domain.shared_handle(), "ProtectionDomain");
        ibv_mr* const native = detail::create("ibv_reg_dmabuf_mr", [&] {
            return detail::register_dmabuf(pd.get(), offset, length, iova, fd, access);
        });
        return MemoryRegion(detail::own<ibv_dereg_mr>(native, pd));
    }

    /// A region that the program has already, see borrow(): a borrowed one must stay registered
    /// until the operations that use it have completed. Throws invalid_argument for nullptr.
    explicit MemoryRegion(std::shared_ptr<ibv_mr> handle) {
        static_cast<void>(detail::adopted(handle, "ibv_mr"));
        state_ = std::make_shared<detail::RegionState>(std::move(handle));
    }

    MemoryRegion(MemoryRegion&&) noexcept = default;
    MemoryRegion& operator=(MemoryRegion&&) noexcept = default;

    /// Deregisters the memory, and reports as Context::close() does: device_or_resource_busy while
    /// an operation uses a slice of the region, or a memory window is bound to it. As during the
    /// destructor, no thread may post a slice of it meanwhile.
    [[nodiscard]] std::error_code close() noexcept {
        if (state_ == nullptr) return {};
        if (const std::error_code error = state_->close()) return error;
        state_.reset();
        return {};
    }

    /// The key that names the region in local scatter/gather elements.
    [[nodiscard]] std::uint32_t lkey() const { return get()->lkey; }

    /// The key that names the region in RDMA reads, writes and atomics of a peer.
    [[nodiscard]] std::uint32_t rkey() const { return get()->rkey; }

    /// The registered memory.
    [[nodiscard]] std::span<std::byte> bytes() const noexcept {
        if (state_ == nullptr) return {};
        return {static_cast<std::byte*>(get()->addr), get()->length};
    }

    /// The whole region.
    [[nodiscard]] Slice slice() const {
        const ibv_mr& region = *get();
        return {static_cast<std::byte*>(region.addr), region.length, region.lkey, state_.get()};
    }

    /// The bytes from `offset` to the end; see Slice::slice().
    [[nodiscard]] Slice slice(std::size_t offset) const { return slice().slice(offset); }

    /// The `length` bytes at `offset`; see Slice::slice().
    [[nodiscard]] Slice slice(std::size_t offset, std::size_t length) const {
        return slice().slice(offset, length);
    }

    /// The whole region, for RDMA reads, writes and atomics of a peer, which `access` must allow.
    [[nodiscard]] RemoteSlice remote_slice() const {
        const ibv_mr& region = *get();
        return {reinterpret_cast<std::uintptr_t>(region.addr), region.length, region.rkey};
    }

    /// The native object, for verbs that this library does not cover; nullptr when moved from.
    [[nodiscard]] ibv_mr* native_handle() const noexcept {
        return state_ != nullptr ? state_->region().get() : nullptr;
    }

    /// Shares ownership: the region, its parents and the memory that it owns live as long as the
    /// pointer, or a copy, exists.
    [[nodiscard]] std::shared_ptr<ibv_mr> shared_handle() const noexcept {
        return state_ != nullptr ? state_->region() : nullptr;
    }

private:
    MemoryRegion(const ProtectionDomain& domain, std::span<std::byte> bytes, int access,
                 detail::Handle<void> memory) {
        const auto& pd = detail::checked(domain.shared_handle(), "ProtectionDomain");
        if (bytes.empty()) {
            detail::throw_error(std::errc::invalid_argument,
                                "cannot register an empty span as a memory region");
        }
        const auto register_bytes = [&] {
            return ibv_reg_mr(pd.get(), bytes.data(), bytes.size(), static_cast<unsigned>(access));
        };
        ibv_mr* native = detail::create("ibv_reg_mr", register_bytes, detail::locked_memory_hint);
        state_ = std::make_shared<detail::RegionState>(
            detail::own<ibv_dereg_mr>(native, std::move(memory), pd));
    }

    // Zeroed pages. They come from the kernel, not from the heap: no other object ever shares a
    // page to which a device may still write.
    [[nodiscard]] static detail::Handle<void> allocate_pages(std::size_t size) {
        void* pages =
            mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pages == MAP_FAILED) {
            throw_verb_error("mmap", errno);
        }
        const auto unmap = [size](void* memory) { munmap(memory, size); };
        return {pages, unmap};
    }

    [[nodiscard]] ibv_mr* get() const {
        return detail::checked(state_, "MemoryRegion")->region().get();
    }

    std::shared_ptr<detail::RegionState> state_; // not shared: slices refer to it
};

} // namespace asyncverbs
