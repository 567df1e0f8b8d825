// SPDX-License-Identifier: MIT
// Whole pages of zeroed memory. Of the kernel and not of the heap, so that nothing else ever lives
// where a device may still write.
#pragma once

#include <sys/mman.h>

#include <cerrno>
#include <cstddef>

#include <asyncverbs/verbs/detail/handle.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

// Throws std::system_error naming mmap; EINVAL for a size of 0.
template <class Use>
[[nodiscard]] Handle<void, Use> allocate_pages(std::size_t size) {
    void* pages = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) {
        throw_verb_error("mmap", errno);
    }
    const auto unmap = [size](void* memory) { munmap(memory, size); };
    return {pages, unmap};
}

} // namespace asyncverbs::detail
