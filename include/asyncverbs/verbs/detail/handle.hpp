// SPDX-License-Identifier: MIT
// What the owners have in common: a shared pointer to the native object, whose deleter destroys the
// object and only then lets go of the parents.
// So no order in which owners are destroyed can be wrong, and none has to be remembered.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

// Takes over `native`, which is also destroyed when this function throws. `destroy` must not throw;
// its result is dropped, since nobody is left who could act on it. The parents are let go right
// after the child, not when the deleter itself is destroyed: a weak_ptr may delay that for ever.
template <class Native, class Destroy, class... Parents>
[[nodiscard]] std::shared_ptr<Native> own(Native* native, Destroy destroy, Parents... parents) {
    return std::shared_ptr<Native>(
        native,
        [destroy = std::move(destroy), ... parents = std::move(parents)](Native* object) mutable {
            destroy(object);
            (parents.reset(), ...);
        });
}

// The handle of an owner that is about to be used. Fails cleanly where the owner was moved from,
// which would otherwise be a null pointer in libibverbs.
template <class Native>
[[nodiscard]] const std::shared_ptr<Native>& alive(const std::shared_ptr<Native>& handle,
                                                   const char* owner) {
    if (!handle) {
        throw_error(std::errc::invalid_argument,
                    std::string("this ") + owner + " was moved from and owns nothing");
    }
    return handle; // NOLINT(bugprone-return-const-ref-from-parameter): a member of an owner
}

} // namespace asyncverbs::detail
