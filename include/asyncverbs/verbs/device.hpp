// SPDX-License-Identifier: MIT
// Devices: the list of them, an open one, and the GIDs of its ports.
#pragma once

#include <asyncverbs/requirements.hpp>

#include <arpa/inet.h>
#include <infiniband/verbs.h>
#include <netinet/in.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <asyncverbs/verbs/detail/native.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs {

/// The GID as inet_ntop(3) writes an IPv6 address: "::ffff:10.7.0.1", "fe80::1".
[[nodiscard]] inline std::string gid_text(const ibv_gid& gid) {
    std::array<char, INET6_ADDRSTRLEN> text{};
    inet_ntop(AF_INET6, gid.raw, text.data(), static_cast<socklen_t>(text.size()));
    return text.data();
}

/// Whether all bytes are zero: an unused entry of a port's GID table.
[[nodiscard]] inline bool is_empty_gid(const ibv_gid& gid) noexcept {
    constexpr ibv_gid empty{};
    return std::memcmp(gid.raw, empty.raw, sizeof gid.raw) == 0;
}

/// Whether the GID holds an IPv4 address, as "::ffff:10.7.0.1" does.
[[nodiscard]] inline bool is_ipv4_mapped_gid(const ibv_gid& gid) noexcept {
    constexpr ibv_gid prefix{{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}};
    return std::memcmp(gid.raw, prefix.raw, 12) == 0; // the other 4 bytes are the address
}

/// Whether routers do not forward what is sent from the GID: one of fe80::/10 or, in IPv4,
/// 169.254.0.0/16.
[[nodiscard]] inline bool is_link_local_gid(const ibv_gid& gid) noexcept {
    if (is_ipv4_mapped_gid(gid)) return gid.raw[12] == 169 && gid.raw[13] == 254;
    return gid.raw[0] == 0xfe && (gid.raw[1] & 0xc0) == 0x80;
}

/// The RDMA devices of this machine, as a range. A snapshot: devices that appear or disappear later
/// do not change it. Move-only; a moved-from list is empty. A device pointer is valid as long as
/// the list, or a Context opened on that device, exists. See ibv_get_device_list(3).
class DeviceList {
public:
    /// Lists the devices. The list is empty if the kernel has no RDMA support.
    /// Throws std::system_error naming ibv_get_device_list.
    DeviceList() {
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
    DeviceList(DeviceList&& other) noexcept
        : devices_(std::exchange(other.devices_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    /// Frees the previous list; leaves `other` empty.
    DeviceList& operator=(DeviceList&& other) noexcept {
        DeviceList taken(std::move(other));
        std::swap(taken.devices_, devices_);
        std::swap(taken.size_, size_);
        return *this;
    }
    ~DeviceList() {
        if (devices_ != nullptr) ibv_free_device_list(devices_);
    }

    /// The first device; the elements of the range are pointers.
    [[nodiscard]] ibv_device* const* begin() const noexcept { return devices_; }
    /// The end of the range.
    [[nodiscard]] ibv_device* const* end() const noexcept { return devices_ + size_; }
    /// The number of devices.
    [[nodiscard]] std::size_t size() const noexcept { return size_; }
    /// Whether the list has no device.
    [[nodiscard]] bool empty() const noexcept { return size_ == 0; }

    /// The device at `index`, which must be less than size().
    [[nodiscard]] ibv_device* operator[](std::size_t index) const noexcept {
        return devices_[index];
    }

    /// The device called `name`. Throws std::system_error (no_such_device) that names the existing
    /// devices, or says that there are none.
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

    /// Throws std::system_error (no_such_device) if the list is empty, and says what may help.
    void require_any() const {
        if (!empty()) return;
        // libibverbs leaves out a device without its file, as in a container.
        const bool is_hidden = access("/sys/class/infiniband_verbs/uverbs0", F_OK) == 0 &&
                               access("/dev/infiniband/uverbs0", F_OK) != 0;
        detail::throw_error(
            std::errc::no_such_device,
            is_hidden ? "no RDMA device found: the kernel has one, but its file in /dev/infiniband "
                        "is missing (for a container: --device=/dev/infiniband)"
                      : "no RDMA device found; without RDMA hardware a soft-RoCE device will do "
                        "(rdma link add rxe0 type rxe netdev INTERFACE)");
    }

    /// The array that ibv_get_device_list(3) returned; nullptr if the kernel has no RDMA support,
    /// and in a moved-from list.
    [[nodiscard]] ibv_device** native_handle() const noexcept { return devices_; }

private:
    ibv_device** devices_ = nullptr;
    std::size_t size_ = 0;
};

/// A handle of an object that the program made itself and goes on owning. Each owner of this
/// library has a constructor that takes a handle; the owner, and everything that is made with it,
/// must be destroyed before the object.
///
///     CompletionQueue queue(borrow(cq)); // the program destroys it
///     CompletionQueue queue(std::shared_ptr<ibv_cq>(cq, ibv_destroy_cq)); // the last owner does
///
/// What the program does with the object itself must not disturb its owner: it does not destroy the
/// object first (undefined; the audit of the simulated verbs finds the use), read the owner's
/// completions or events, or post where an AsyncQp posts.
template <class Native>
[[nodiscard]] std::shared_ptr<Native> borrow(Native* object) noexcept {
    return {std::shared_ptr<void>(), object};
}

/// Owns an open device (ibv_context), the root of all other objects; they keep it open.
///
/// fork(2): the child may exec or _exit, nothing else. All native objects are the parent's: a child
/// that destroys an owner destroys the parent's object, and one that runs an event loop takes the
/// parent's events. exec closes all descriptors of this library. On Linux before 5.12 call
/// ibv_fork_init(3), or set IBV_FORK_SAFE=1 in the environment, before the first device is opened;
/// otherwise a fork may leave the device with other pages than the process. Either keeps registered
/// pages out of the child.
///
/// Move-only. A moved-from Context owns nothing: native_handle() is nullptr, any other use
/// throws invalid_argument. Queries may be called from any thread.
/// See ibv_open_device(3).
class Context {
public:
    /// Opens `device`, an element of a DeviceList. Throws std::system_error: invalid_argument if
    /// `device` is nullptr, else naming ibv_open_device.
    explicit Context(ibv_device* device) {
        if (device == nullptr) {
            detail::throw_error(std::errc::invalid_argument, "cannot open a null ibv_device");
        }
        const auto hint = [](int error) {
            return error == ENOENT ? " (may this user open the files in /dev/infiniband?)" : "";
        };
        context_ = detail::own<ibv_close_device>(
            detail::create("ibv_open_device", [&] { return ibv_open_device(device); }, hint));
    }

    /// Shares a context that is already open: the shared_handle() of another owner, or a context
    /// of other code, see borrow(). Throws invalid_argument for nullptr.
    explicit Context(const std::shared_ptr<ibv_context>& handle)
        : context_(detail::adopted(handle, "ibv_context")) {}

    Context(Context&&) noexcept = default;
    Context& operator=(Context&&) noexcept = default;

    /// Opens the device called `name`, in any state of its ports; without a name, the first device
    /// that has an active port. Throws std::system_error (no_such_device) that names the existing
    /// devices and, without a name, the state of their ports.
    [[nodiscard]] static Context open(std::string_view name = {}) {
        const DeviceList devices;
        if (!name.empty()) {
            return Context(devices.find(name));
        }
        devices.require_any();
        std::string seen;
        for (ibv_device* device : devices) {
            seen += (seen.empty() ? "" : "; ") + std::string(ibv_get_device_name(device));
            try {
                Context context(device);
                std::string states;
                if (context.find_active_port(states) != 0) {
                    return context;
                }
                seen += " (" + states + ")";
            } catch (const std::system_error& error) {
                // A device that cannot be opened must not hide the next one.
                seen += " (" + std::string(error.what()) + ")";
            }
        }
        detail::throw_error(std::errc::no_such_device,
                            "no RDMA device with an active port; there are: " + seen);
    }

    /// Closes the device, and reports what the destructor cannot. Every owner of a native object
    /// has this function. It returns {}, and the owner is as if moved from. Or it returns the error
    /// of the verb, or device_or_resource_busy if another owner or shared_handle() needs the native
    /// object; then nothing has changed: destroy what is in the way, also what was created with
    /// native_handle(), and close again. The destructor would leak the object instead.
    [[nodiscard]] std::error_code close() noexcept { return detail::close(context_); }

    /// The device's name, such as "mlx5_0".
    [[nodiscard]] std::string name() const { return ibv_get_device_name(get()->device); }

    /// The number of completion vectors. Each is an interrupt, so it decides which CPU handles the
    /// completion events first; see /proc/irq/*/smp_affinity_list. At least 1, because vector 0 is
    /// valid on every device. See CompletionQueue.
    [[nodiscard]] int num_comp_vectors() const {
        const int count = get()->num_comp_vectors;
        return count < 1 ? 1 : count;
    }

    /// The device's limits. Throws std::system_error naming ibv_query_device.
    /// See ibv_query_device(3).
    [[nodiscard]] ibv_device_attr query_device() const {
        ibv_device_attr attr{};
        detail::call("ibv_query_device", [&] { return ibv_query_device(get(), &attr); });
        return attr;
    }

    /// The attributes of `port`, counted from 1. Throws std::system_error: invalid_argument, with
    /// the valid ports, for a port that does not exist, else naming ibv_query_port. See
    /// ibv_query_port(3).
    [[nodiscard]] ibv_port_attr query_port(int port = 1) const {
        detail::check_range("port number", port, 1, query_device().phys_port_cnt, name());
        ibv_port_attr attr{};
        detail::call("ibv_query_port",
                     [&] { return ibv_query_port(get(), static_cast<std::uint8_t>(port), &attr); });
        return attr;
    }

    /// Whether a port with these attributes carries traffic.
    [[nodiscard]] static bool is_active(const ibv_port_attr& port) noexcept {
        return port.state == IBV_PORT_ACTIVE || port.state == IBV_PORT_ACTIVE_DEFER;
    }

    /// The first active port. Throws std::system_error (network_down), with the state of each port,
    /// if no port is active.
    [[nodiscard]] int active_port() const {
        std::string states;
        const int port = find_active_port(states);
        if (port == 0) {
            detail::throw_error(std::errc::network_down,
                                "no port of " + name() + " is active: " + states);
        }
        return port;
    }

    /// The entry at `index`, counted from 0, of the GID table of `port`: the GID and its type.
    /// Throws std::system_error: invalid_argument for an index outside the table (with its range)
    /// and for an empty entry (with those in use), else naming ibv_query_gid_ex. See
    /// ibv_query_gid_ex(3).
    [[nodiscard]] ibv_gid_entry query_gid_entry(int port, int index) const {
        const int length = query_port(port).gid_tbl_len;
        const std::string where = "port " + std::to_string(port) + " of " + name();
        detail::check_range("GID index", index, 0, length - 1, where);
        ibv_gid_entry entry{};
        const int error = try_query_gid(port, index, entry);
        if (error == ENODATA) {
            detail::throw_error(std::errc::invalid_argument,
                                "GID index " + std::to_string(index) + " of " + where +
                                    " is empty; in use are: " + used_gids(port, length));
        }
        if (error != 0) {
            throw_verb_error("ibv_query_gid_ex", error);
        }
        return entry;
    }

    /// The GID at `index` of the GID table of `port`; see query_gid_entry().
    [[nodiscard]] ibv_gid query_gid(int port, int index) const {
        return query_gid_entry(port, index).gid;
    }

    /// The form that does not throw, for code that iterates over the table: returns 0, ENODATA for
    /// an empty entry, or another errno, positive.
    [[nodiscard]] int try_query_gid(int port, int index, ibv_gid_entry& entry) const {
        errno = 0;
        const int result = ibv_query_gid_ex(get(), static_cast<std::uint32_t>(port),
                                            static_cast<std::uint32_t>(index), &entry, 0);
        if (result != 0) {
            return detail::verb_errno(result);
        }
        return is_empty_gid(entry.gid) ? ENODATA : 0;
    }

    /// The native object, for verbs that this library does not cover; nullptr when moved from.
    [[nodiscard]] ibv_context* native_handle() const noexcept { return context_.get(); }

    /// Shares ownership: the device stays open as long as the pointer, or a copy, exists.
    [[nodiscard]] const std::shared_ptr<ibv_context>& shared_handle() const noexcept {
        return context_;
    }

private:
    [[nodiscard]] ibv_context* get() const { return detail::checked(context_, "Context").get(); }

    // The first active port; or 0, and the states of all ports in `states`.
    [[nodiscard]] int find_active_port(std::string& states) const {
        const int count = query_device().phys_port_cnt;
        for (int port = 1; port <= count; ++port) {
            const ibv_port_attr attr = query_port(port);
            if (is_active(attr)) {
                return port;
            }
            states += (states.empty() ? "port " : ", port ") + std::to_string(port) + " " +
                      ibv_port_state_str(attr.state);
        }
        if (states.empty()) {
            states = "it has no ports";
        }
        return 0;
    }

    [[nodiscard]] std::string used_gids(int port, int length) const {
        constexpr int most = 8;
        std::string text;
        int found = 0;
        for (int index = 0; index < length; ++index) {
            ibv_gid_entry entry{};
            if (try_query_gid(port, index, entry) != 0) {
                continue;
            }
            if (++found > most) {
                return text + ", and more";
            }
            text += (text.empty() ? "" : ", ") + std::to_string(index) + " (" +
                    gid_text(entry.gid) + ")";
        }
        return text.empty() ? "none" : text;
    }

    detail::Handle<ibv_context> context_;
};

namespace detail {
// The index has 8 bits in an address vector; a GID table may be longer.
inline constexpr int max_gid_index = 255;
} // namespace detail

/// The index of the GID to use on `port`: a RoCE v2 entry with an IPv4-mapped address, else another
/// RoCE v2 entry, both rather with an address that can be routed than with a link-local one; else
/// an entry of RoCE v1 or InfiniBand. Of several in the same class, the first.
/// Throws std::system_error: address_not_available if the table has no GID at all, naming
/// ibv_query_gid_ex if no entry can be read, and as Context::query_port() does.
[[nodiscard]] inline int select_gid(const Context& context, int port) {
    const int length = context.query_port(port).gid_tbl_len;
    int best_index = -1;
    int best_rank = 0;
    int failure = 0;
    for (int index = 0; index < length && index <= detail::max_gid_index && best_rank < 5;
         ++index) {
        ibv_gid_entry entry{};
        if (const int error = context.try_query_gid(port, index, entry)) {
            failure = error == ENODATA ? failure : error;
            continue;
        }
        const bool v2 = entry.gid_type == IBV_GID_TYPE_ROCE_V2;
        const int family = is_ipv4_mapped_gid(entry.gid) ? 1 : 0;
        const int rank = !v2 ? 1 : (is_link_local_gid(entry.gid) ? 2 : 4) + family;
        if (rank > best_rank) {
            best_rank = rank;
            best_index = index;
        }
    }
    if (best_index < 0 && failure != 0) {
        throw_verb_error("ibv_query_gid_ex", failure);
    }
    if (best_index < 0) {
        detail::throw_error(std::errc::address_not_available,
                            "port " + std::to_string(port) + " of " + context.name() +
                                " has no GID among its " + std::to_string(length) +
                                " entries; its network interface may have no address yet");
    }
    return best_index;
}

} // namespace asyncverbs
