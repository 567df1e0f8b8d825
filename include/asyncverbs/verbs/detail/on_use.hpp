// SPDX-License-Identifier: MIT
// Keeps the library cheap to include. What a header defines outside of a template is compiled in
// every file that includes it, with all that it instantiates; GCC even emits the coroutines.
#pragma once

namespace asyncverbs {

/// The one argument of class templates that are templates for one reason alone: a compiler does no
/// more than parse them until somebody uses one. Such a class is `BasicStream<Use>`, and users know
/// it as `using Stream = BasicStream<OnUse>`. It names others of its kind by its own `Use`, lest
/// these be compiled with it.
///
/// Not in detail: the functions there would be candidates for a user's calls with a Stream.
struct OnUse;

namespace detail {

template <class T, class Use>
struct TypeOnUse {
    using type = T;
};

// `T` itself, for the members of such a class whose types are templates of the standard library:
// without it these would be instantiated, for they do not depend on `Use`.
template <class T, class Use>
using Used = typename TypeOnUse<T, Use>::type;

} // namespace detail
} // namespace asyncverbs
