// SPDX-License-Identifier: MIT
#include "proof/allocations.hpp"

#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

long live = 0; // the explorer has one thread

} // namespace

long asyncverbs::proof::live_allocations() { return live; }

void* operator new(std::size_t size) {
    void* const memory = std::malloc(size == 0 ? 1 : size);
    if (memory == nullptr) throw std::bad_alloc();
    ++live;
    return memory;
}

void operator delete(void* memory) noexcept {
    if (memory == nullptr) return;
    --live;
    std::free(memory);
}

void operator delete(void* memory, std::size_t) noexcept { ::operator delete(memory); }
