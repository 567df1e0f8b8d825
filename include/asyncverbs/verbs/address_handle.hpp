// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <infiniband/verbs.h>

#include <cstdint>
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
        ibv_ah_attr attr = local.path_to(remote, path);
        create(domain, local, "ibv_create_ah",
               [&](ibv_pd* pd) { return ibv_create_ah(pd, &attr); });
    }

    /// The way back to the sender of a datagram, for a reply: `received` is the slice that `local`
    /// received it in, with the GRH, and `completion` that of the receive. Then wc.src_qp is the
    /// number of the sender's queue pair. Throws std::system_error: invalid_argument for another
    /// completion than that of a datagram and a slice of less than 40 bytes, and as the first form;
    /// else naming ibv_create_ah_from_wc.
    AddressHandle(const ProtectionDomain& domain, const QueuePair& local, const ibv_wc& completion,
                  const Slice& received) {
        if (completion.status != IBV_WC_SUCCESS || (completion.opcode & IBV_WC_RECV) == 0 ||
            received.length < sizeof(ibv_grh)) {
            detail::throw_error(std::errc::invalid_argument,
                                "a reply needs the completion of a received datagram, and the "
                                "slice of its receive, which begins with a GRH of 40 bytes");
        }
        ibv_wc wc = completion;
        auto* const grh = reinterpret_cast<ibv_grh*>(received.address);
        const std::uint8_t port = local.port();
        create(domain, local, "ibv_create_ah_from_wc",
               [&](ibv_pd* pd) { return ibv_create_ah_from_wc(pd, &wc, grh, port); });
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
    template <class Create>
    void create(const ProtectionDomain& domain, const QueuePair& local, const char* verb,
                Create create_handle) {
        const auto& pd = detail::checked(domain.shared_handle(), "ProtectionDomain");
        if (local.native_handle()->pd != pd.get()) {
            detail::throw_error(std::errc::invalid_argument,
                                "the queue pair belongs to another ProtectionDomain");
        }
        ah_ = detail::own<ibv_destroy_ah>(
            detail::create(verb, [&] { return create_handle(pd.get()); }), pd);
    }

    detail::Handle<ibv_ah> ah_;
};

} // namespace asyncverbs
