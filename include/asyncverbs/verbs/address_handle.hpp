// SPDX-License-Identifier: MIT
// Where a datagram goes: what a UD send needs besides the peer's number and key.
// Made from a queue pair, since the way to a peer begins at the port and GID that it was given.
#pragma once

#include <cerrno>
#include <memory>

#include <asyncverbs/verbs/detail/handle.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

namespace asyncverbs {

/// Owns an address handle (ibv_ah); keeps its protection domain alive. Goes into the `wr.ud.ah` of
/// sends, whose completions it must outlive, of any UD queue pair of the domain that has the same
/// port. Move-only. A moved-from AddressHandle owns nothing: native_handle() is nullptr.
/// See ibv_create_ah(3).
class AddressHandle {
public:
    /// The way from `local`, after its init(), to `remote`. Of `path` the fields service_level,
    /// hop_limit, traffic_class and flow_label count. Throws std::system_error: invalid_argument
    /// before init(), where `local` is of another domain, and where `remote` cannot be reached (no
    /// GID on RoCE); else naming ibv_create_ah.
    AddressHandle(const ProtectionDomain& domain, const QueuePair& local,
                  const QueuePairAddress& remote, const RtrOptions& path = {}) {
        const auto& pd = detail::checked(domain.shared_handle(), "ProtectionDomain");
        ibv_ah_attr attr = local.path_to(remote, path);
        if (local.native_handle()->pd != pd.get()) {
            detail::throw_error(std::errc::invalid_argument,
                                "the queue pair belongs to another ProtectionDomain");
        }
        errno = 0;
        ibv_ah* native = ibv_create_ah(pd.get(), &attr);
        if (native == nullptr) {
            throw_verb_error("ibv_create_ah", detail::verb_errno());
        }
        ah_ = detail::own<ibv_destroy_ah>(native, pd);
    }

    AddressHandle(AddressHandle&&) noexcept = default;
    AddressHandle& operator=(AddressHandle&&) noexcept = default;

    /// The native object, for verbs that this library does not cover; nullptr when moved from.
    [[nodiscard]] ibv_ah* native_handle() const noexcept { return ah_.get(); }

    /// Shares ownership: the handle and its parents live as long as the pointer, or a copy, exists.
    [[nodiscard]] const std::shared_ptr<ibv_ah>& shared_handle() const noexcept { return ah_; }

private:
    detail::Handle<ibv_ah> ah_;
};

} // namespace asyncverbs
