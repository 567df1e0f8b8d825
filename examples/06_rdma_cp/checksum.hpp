// SPDX-License-Identifier: MIT
// XXH3 of 128 bits, part by part.
#pragma once

#include "protocol.hpp"

#include <xxhash.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <span>

namespace rdma_cp {

class Checksum {
public:
    Checksum() : state_(XXH3_createState()) {
        if (!state_) throw std::bad_alloc();
        XXH3_128bits_reset(state_.get());
    }

    void add(std::span<const std::byte> bytes) {
        XXH3_128bits_update(state_.get(), bytes.data(), bytes.size());
    }

    Digest digest() const {
        XXH128_canonical_t canonical;
        XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_.get()));
        Digest digest;
        static_assert(sizeof digest == sizeof canonical);
        std::memcpy(digest.data(), &canonical, sizeof canonical);
        return digest;
    }

private:
    struct Free {
        void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
    };
    std::unique_ptr<XXH3_state_t, Free> state_;
};

} // namespace rdma_cp
