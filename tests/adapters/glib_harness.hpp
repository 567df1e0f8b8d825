// SPDX-License-Identifier: MIT
// A harness for the conformance suite: the GLib notifier of the example.
#pragma once

#include <glib.h>

#include <algorithm>
#include <chrono>
#include <limits>

#include "09_glib/glib_notifier.hpp"

namespace asyncverbs::support {

struct GlibHarness {
    GlibHarness() = default;
    GlibHarness(const GlibHarness&) = delete;
    GlibHarness& operator=(const GlibHarness&) = delete;
    ~GlibHarness() { g_main_context_unref(context); }

    GlibNotifier notifier(int fd) { return {context, fd}; }

    void run_once(std::chrono::milliseconds at_most) {
        if (at_most.count() == 0) {
            g_main_context_iteration(context, FALSE);
            return;
        }
        constexpr auto longest = std::numeric_limits<int>::max();
        const auto bound = std::min<std::chrono::milliseconds::rep>(at_most.count(), longest);
        GSource* const timeout = g_timeout_source_new(static_cast<guint>(bound));
        g_source_set_callback(
            timeout, [](gpointer) -> gboolean { return G_SOURCE_REMOVE; }, nullptr, nullptr);
        g_source_attach(timeout, context);
        g_main_context_iteration(context, TRUE);
        g_source_destroy(timeout);
        g_source_unref(timeout);
    }

    GMainContext* context = g_main_context_new();
};

} // namespace asyncverbs::support
