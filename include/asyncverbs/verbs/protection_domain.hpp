// SPDX-License-Identifier: MIT
// The protection domain: memory regions and queue pairs work together only within one.
// It keeps its device open.
#pragma once

#include <cerrno>

#include <asyncverbs/verbs/context.hpp>
#include <asyncverbs/verbs/detail/handle.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs {

/// Owns a protection domain (ibv_pd). Its memory regions and queue pairs keep it alive.
/// Move-only. A moved-from ProtectionDomain owns nothing: native_handle() is nullptr, making a
/// child of it throws invalid_argument. See ibv_alloc_pd(3).
template <class Use>
class BasicProtectionDomain {
public:
    /// Throws std::system_error naming ibv_alloc_pd.
    explicit BasicProtectionDomain(const BasicContext<Use>& context)
        : context_(detail::alive(context.shared_handle(), "Context")) {
        errno = 0;
        ibv_pd* native = ibv_alloc_pd(context_.native_handle());
        if (native == nullptr) {
            throw_verb_error("ibv_alloc_pd", detail::verb_errno());
        }
        pd_ = detail::own<ibv_dealloc_pd, Use>(native, context_.shared_handle());
    }

    BasicProtectionDomain(BasicProtectionDomain&&) noexcept = default;
    BasicProtectionDomain& operator=(BasicProtectionDomain&&) noexcept = default;

    /// The device that the domain belongs to.
    [[nodiscard]] const BasicContext<Use>& context() const noexcept { return context_; }

    /// The native object, for verbs that this library does not cover; nullptr when moved from.
    [[nodiscard]] ibv_pd* native_handle() const noexcept { return pd_.get(); }

    /// Shares ownership: the domain and its device live as long as the pointer, or a copy, exists.
    [[nodiscard]] const std::shared_ptr<ibv_pd>& shared_handle() const noexcept { return pd_; }

private:
    BasicContext<Use> context_;
    detail::Handle<ibv_pd, Use> pd_;
};

/// The ProtectionDomain of programs: compiled only where it is used, but otherwise as a class.
using ProtectionDomain = BasicProtectionDomain<OnUse>;

} // namespace asyncverbs
