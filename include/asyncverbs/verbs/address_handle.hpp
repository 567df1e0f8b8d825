// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <memory>
#include <system_error>
#include <utility>

#include <asyncverbs/verbs/detail/native.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

namespace asyncverbs {

/// Owns an address handle (ibv_ah), the destination of UD sends: it is their `wr.ud.ah`, besides
/// the peer's number and key, and must outlive their completions. Any UD queue pair of the same
/// domain and port may use it. Keeps its protection domain alive.
/// Move-only. A moved-from AddressHandle owns nothing: native_handle() is nullptr.
/// See ibv_create_ah(3).
class AddressHandle {
public:
    /// The path to `remote` from the port and GID of `local`, after its init(). Uses service_level,
    /// hop_limit, traffic_class and flow_label of `path`. Throws std::system_error:
    /// invalid_argument before init(), if `local` is of another domain, and if `remote` cannot be
    /// reached (no GID on RoCE); else naming ibv_create_ah.
    AddressHandle(const ProtectionDomain& domain, const QueuePair& local,
                  const QueuePairAddress& remote, const RtrOptions& path = {}) {
        const auto& pd = detail::checked(domain.shared_handle(), "ProtectionDomain");
        ibv_ah_attr attr = local.path_to(remote, path);
        if (local.native_handle()->pd != pd.get()) {
            detail::throw_error(std::errc::invalid_argument,
                                "the queue pair belongs to another ProtectionDomain");
        }
        ah_ = detail::own<ibv_destroy_ah>(
            detail::create("ibv_create_ah", [&] { return ibv_create_ah(pd.get(), &attr); }), pd);
    }

    AddressHandle(AddressHandle&&) noexcept = default;
    AddressHandle& operator=(AddressHandle&&) noexcept = default;

    /// Destroys the handle, and reports as Context::close() does.
    [[nodiscard]] std::error_code close() noexcept { return detail::close(ah_); }

    /// The native object, for verbs that this library does not cover; nullptr when moved from.
    [[nodiscard]] ibv_ah* native_handle() const noexcept { return ah_.get(); }

    /// Shares ownership: the handle and its parents live as long as the pointer, or a copy, exists.
    [[nodiscard]] const std::shared_ptr<ibv_ah>& shared_handle() const noexcept { return ah_; }

private:
    detail::Handle<ibv_ah> ah_;
};

} // namespace asyncverbs
