// SPDX-License-Identifier: MIT
#include "proof/schedule.hpp"

#include <stdexcept>

namespace asyncverbs::proof {

namespace {

constexpr std::string_view digits = "0123456789abcdefghijklmnopqrstuvwxyz";

} // namespace

Schedule::Schedule() { choices_.reserve(1024); }

Schedule::Schedule(std::string_view text) : Schedule() {
    for (const char character : text) {
        const std::size_t taken = digits.find(character);
        if (taken == std::string_view::npos) {
            throw std::invalid_argument(std::string("a schedule has no '") + character + "'");
        }
        choices_.push_back({.taken = static_cast<std::uint8_t>(taken)});
    }
}

std::size_t Schedule::choose(std::size_t options) {
    if (options > digits.size()) throw std::logic_error("more options than a schedule can name");
    if (position_ == choices_.size()) choices_.emplace_back();
    Choice& choice = choices_[position_++];
    const bool as_before = choice.options == 0 || choice.options == options;
    if (!as_before || choice.taken >= options) {
        throw std::logic_error("a choice that cannot be made as it was before");
    }
    choice.options = static_cast<std::uint8_t>(options);
    return choice.taken;
}

bool Schedule::next() {
    choices_.resize(position_);
    position_ = 0;
    while (!choices_.empty() && choices_.back().taken + 1 == choices_.back().options) {
        choices_.pop_back();
    }
    if (choices_.empty()) return false;
    ++choices_.back().taken;
    return true;
}

std::string Schedule::text() const {
    std::string text;
    for (std::size_t index = 0; index < position_; ++index) text += digits[choices_[index].taken];
    return text;
}

} // namespace asyncverbs::proof
