// SPDX-License-Identifier: MIT
// The RDMA devices of this machine, as a range.
// A snapshot: devices that come or go later do not change it.
#pragma once

#include <cerrno>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include <asyncverbs/verbs/detail/on_use.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs {

/// The RDMA devices that were there when the list was made. Move-only; a moved-from list is empty.
/// A device pointer is valid as long as the list, or a Context opened on that device, exists.
/// See ibv_get_device_list(3).
template <class Use>
class BasicDeviceList {
public:
    /// Lists the devices. A machine without RDMA support in its kernel has an empty list.
    /// Throws std::system_error naming ibv_get_device_list.
    BasicDeviceList() {
        errno = 0;
        int count = 0;
        devices_ = ibv_get_device_list(&count);
        if (devices_ != nullptr) {
            size_ = static_cast<std::size_t>(count);
        } else if (detail::verb_errno() != ENOSYS) {
            throw_verb_error("ibv_get_device_list", detail::verb_errno());
        }
    }

    /// Leaves `other` empty.
    BasicDeviceList(BasicDeviceList&& other) noexcept
        : devices_(std::exchange(other.devices_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    /// Frees the list that was here before.
    BasicDeviceList& operator=(BasicDeviceList&& other) noexcept {
        BasicDeviceList old(std::move(other));
        std::swap(old.devices_, devices_);
        std::swap(old.size_, size_);
        return *this;
    }
    ~BasicDeviceList() {
        if (devices_ != nullptr) ibv_free_device_list(devices_);
    }

    /// The first device; the elements are pointers. As of a range of the standard library.
    [[nodiscard]] ibv_device* const* begin() const noexcept { return devices_; }
    /// Behind the last one.
    [[nodiscard]] ibv_device* const* end() const noexcept { return devices_ + size_; }
    /// How many devices there are.
    [[nodiscard]] std::size_t size() const noexcept { return size_; }
    /// Whether there is none.
    [[nodiscard]] bool empty() const noexcept { return size_ == 0; }

    /// The device at `index`, which must be less than size().
    [[nodiscard]] ibv_device* operator[](std::size_t index) const noexcept {
        return devices_[index];
    }

    /// The device called `name`. Throws std::system_error (no_such_device) that names the devices
    /// there are, or says that there is none.
    [[nodiscard]] ibv_device* find(std::string_view name) const {
        std::string names;
        for (ibv_device* device : *this) {
            if (name == ibv_get_device_name(device)) {
                return device;
            }
            names += (names.empty() ? "" : ", ") + std::string(ibv_get_device_name(device));
        }
        require_any();
        detail::throw_error(std::errc::no_such_device, "no RDMA device is named \"" +
                                                           std::string(name) +
                                                           "\"; there are: " + names);
    }

    /// Throws std::system_error (no_such_device) where the list is empty, saying what may help.
    void require_any() const {
        if (empty()) {
            detail::throw_error(std::errc::no_such_device,
                                "no RDMA device found; without RDMA hardware a soft-RoCE device "
                                "will do (rdma link add rxe0 type rxe netdev INTERFACE)");
        }
    }

    /// The array that ibv_get_device_list(3) gave; nullptr where there is no RDMA support in the
    /// kernel, and in a moved-from list.
    [[nodiscard]] ibv_device** native_handle() const noexcept { return devices_; }

private:
    ibv_device** devices_ = nullptr;
    std::size_t size_ = 0;
};

/// The DeviceList of programs: compiled only where it is used, but otherwise as a class.
using DeviceList = BasicDeviceList<OnUse>;

} // namespace asyncverbs
