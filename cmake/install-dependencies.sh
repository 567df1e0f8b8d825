#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Installs the missing ones of the given Debian or Ubuntu packages, and reports that on standard error. If all are
# installed, it does nothing and asks for no password.
#
# Usage: cmake/install-dependencies.sh PACKAGE...

set -euo pipefail

say() {
    printf 'install-dependencies: %s\n' "$*" >&2
}

fail() {
    say "error: $*"
    exit 1
}

is_installed() {
    dpkg-query --show --showformat='${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif [[ -t 0 ]]; then
        sudo "$@" # may ask for the password
    else
        sudo -n "$@"
    fi
}

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 \
        -o Acquire::Retries=2 -o Acquire::http::Timeout=30 "$@"
}

if ! type -P dpkg-query apt-get >/dev/null; then
    say "not a Debian or Ubuntu system; make sure that these packages, or their equivalents, are installed: $*"
    exit 0
fi

missing=()
for package; do
    is_installed "$package" || missing+=("$package")
done
((${#missing[@]} > 0)) || exit 0

advice="apt-get update && apt-get install --no-install-recommends ${missing[*]}"
say "missing packages: ${missing[*]}"
((EUID == 0)) || type -P sudo >/dev/null || fail "only root can install them, and there is no sudo; run as root: $advice"
if ((EUID != 0)) && [[ ! -t 0 ]] && ! sudo -n true 2>/dev/null; then
    fail "only root can install them, and sudo asks for a password; run as root: $advice"
fi

say "installing them"
log=$(mktemp)
trap 'rm -f -- "$log"' EXIT
# Missing or outdated package lists are the usual cause of a failure. Update them and try again.
try_install() {
    apt install --no-install-recommends "${missing[@]}" || { apt update && apt install --no-install-recommends "${missing[@]}"; }
}
if ! try_install >"$log" 2>&1; then
    tail -n 8 "$log" | sed 's/^/install-dependencies:   | /' >&2
    fail "the installation failed (no network?); when the network works, run as root: $advice"
fi
say "installed"
