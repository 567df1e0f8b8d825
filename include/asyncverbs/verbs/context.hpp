// SPDX-License-Identifier: MIT
// An open RDMA device, and what can be asked of it.
// Queries check their input first: the kernel answers a wrong port or index with a bare EINVAL.
#pragma once

#include <cerrno>
#include <cstdint>
#include <string>
#include <string_view>

#include <asyncverbs/verbs/detail/handle.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>
#include <asyncverbs/verbs/device_list.hpp>
#include <asyncverbs/verbs/gid_text.hpp>

namespace asyncverbs {

/// Owns an open device (ibv_context); the root of all other objects, which keep it open.
/// Move-only. A moved-from Context owns nothing: native_handle() is nullptr, using it in any other
/// way throws invalid_argument. Queries may be called from any thread.
/// See ibv_open_device(3).
template <class Use>
class BasicContext {
public:
    /// Opens `device`, an element of a DeviceList. Throws std::system_error naming ibv_open_device;
    /// invalid_argument where `device` is nullptr.
    explicit BasicContext(ibv_device* device) {
        if (device == nullptr) {
            detail::throw_error(std::errc::invalid_argument, "cannot open a null ibv_device");
        }
        errno = 0;
        ibv_context* native = ibv_open_device(device);
        if (native == nullptr) {
            throw_verb_error("ibv_open_device", detail::verb_errno());
        }
        context_ = detail::own<ibv_close_device, Use>(native);
    }

    /// Shares a context that is already open, another owner's shared_handle() or, with a deleter
    /// that does nothing, one that belongs to other code (librdmacm's `id->verbs`), which must then
    /// stay open as long as this owner and its children exist.
    explicit BasicContext(const std::shared_ptr<ibv_context>& handle) : context_(handle) {
        static_cast<void>(get()); // throws where there is none
    }

    BasicContext(BasicContext&&) noexcept = default;
    BasicContext& operator=(BasicContext&&) noexcept = default;

    /// Opens the device called `name`, whatever the state of its ports; without a name the first
    /// device that has an active port. Throws std::system_error (no_such_device) that says which
    /// devices there are and, where a port was looked for, the state of their ports.
    [[nodiscard]] static BasicContext open(std::string_view name = {}) {
        const BasicDeviceList<Use> devices;
        if (!name.empty()) {
            return BasicContext(devices.find(name));
        }
        devices.require_any();
        std::string seen;
        for (ibv_device* device : devices) {
            seen += (seen.empty() ? "" : "; ") + std::string(ibv_get_device_name(device));
            try {
                BasicContext context(device);
                std::string states;
                if (context.find_active_port(states) != 0) {
                    return context;
                }
                seen += " (" + states + ")";
            } catch (const std::system_error& error) {
                // One device that cannot be opened must not hide the next one.
                seen += " (" + std::string(error.what()) + ")";
            }
        }
        detail::throw_error(std::errc::no_such_device,
                            "no RDMA device with an active port; there are: " + seen);
    }

    /// The device's name, such as "mlx5_0".
    [[nodiscard]] std::string name() const { return ibv_get_device_name(get()->device); }

    /// How many completion vectors there are: each is an interrupt, and so a CPU that hears of
    /// completions first, as /proc/irq/*/smp_affinity_list says. At least 1, for vector 0 is valid
    /// on every device. See CompletionQueue.
    [[nodiscard]] int num_comp_vectors() const {
        const int count = get()->num_comp_vectors;
        return count < 1 ? 1 : count;
    }

    /// The device's limits. Throws std::system_error naming ibv_query_device.
    /// See ibv_query_device(3).
    [[nodiscard]] ibv_device_attr query_device() const {
        ibv_device_attr attr{};
        errno = 0;
        if (const int result = ibv_query_device(get(), &attr)) {
            throw_verb_error("ibv_query_device", detail::verb_errno(result));
        }
        return attr;
    }

    /// The attributes of `port`, counted from 1. Throws invalid_argument that says which ports the
    /// device has, else std::system_error naming ibv_query_port. See ibv_query_port(3).
    [[nodiscard]] ibv_port_attr query_port(int port = 1) const {
        detail::check_range("port number", port, 1, query_device().phys_port_cnt, name());
        ibv_port_attr attr{};
        errno = 0;
        if (const int result = ibv_query_port(get(), static_cast<std::uint8_t>(port), &attr)) {
            throw_verb_error("ibv_query_port", detail::verb_errno(result));
        }
        return attr;
    }

    /// Whether a port with these attributes carries traffic.
    [[nodiscard]] static bool is_active(const ibv_port_attr& port) noexcept {
        return port.state == IBV_PORT_ACTIVE || port.state == IBV_PORT_ACTIVE_DEFER;
    }

    /// The first port that is active. Throws std::system_error (network_down) that says the state
    /// of each port.
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
    /// Throws invalid_argument for an index outside the table (saying its range) and for an empty
    /// entry (saying which are in use). See ibv_query_gid_ex(3).
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

    /// The GID at `index` of the GID table of `port`; as query_gid_entry().
    [[nodiscard]] ibv_gid query_gid(int port, int index) const {
        return query_gid_entry(port, index).gid;
    }

    /// Reads one entry of the GID table without judging it: 0, or ENODATA where the entry is empty,
    /// or another errno. For code that walks the table.
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
    [[nodiscard]] ibv_context* get() const { return detail::alive(context_, "Context").get(); }

    // The first active port, or 0 with the states of all ports in `states`.
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

    detail::Handle<ibv_context, Use> context_;
};

/// The Context of programs: compiled only where it is used, but otherwise as a class.
using Context = BasicContext<OnUse>;

} // namespace asyncverbs
