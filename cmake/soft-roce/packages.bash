# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154 # The parts share variables.
#
# The distribution's packages that a guest needs on the host: finds the missing ones, and installs
# them if that is allowed.

print_missing_packages() {
    local program package
    while read -r program package; do
        if ! type -P "$program" >/dev/null; then
            echo "$package"
        fi
    done <<'PROGRAMS' | uniq
qemu-system-x86_64 qemu-system-x86
cpio cpio
depmod kmod
modprobe kmod
ip iproute2
rdma iproute2
xz xz-utils
zstd zstd
PROGRAMS
    # libibverbs needs this plug-in for soft-RoCE devices.
    if [[ ! -e /etc/libibverbs.d/rxe.driver ]]; then
        echo ibverbs-providers
    fi
}

become_root() {
    if (( EUID == 0 )); then
        "$@"
    else
        sudo -n -- "$@"
    fi
}

can_become_root() {
    (( EUID == 0 )) || { type -P sudo && sudo -n true; } >/dev/null 2>&1
}

# The output of apt-get is kept, and shown only to explain a failure. apt-get asks no questions, and
# its waits have time limits.
apt_words=
apt_get=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300
         -o Acquire::Retries=1 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30)

run_apt_get() {
    apt_words=$("${apt_get[@]}" "$@" </dev/null 2>&1)
}

run_apt_get_as_root() {
    apt_words=$(become_root "${apt_get[@]}" "$@" </dev/null 2>&1)
}

print_apt_words() {
    printf '%s\n' "$apt_words" | tail -n 8 | sed 's/^/soft-roce:   | /' >&2
}

update_package_lists() {
    say "updating the package lists"
    run_apt_get_as_root update || print_apt_words
}

# Missing or outdated package lists are the usual cause of a failure. Update them and try again.
try_install() {
    say "installing packages: $*"
    run_apt_get_as_root install --no-install-recommends "$@" && return
    update_package_lists
    run_apt_get_as_root install --no-install-recommends "$@"
}

install_missing() {
    local missing=("$@") advice
    (( ${#missing[@]} > 0 )) || return 0
    advice="run as root: apt-get install --no-install-recommends ${missing[*]}"
    [[ $install = yes ]] || fail "packages are missing, and --no-install is set; $advice"
    type -P apt-get >/dev/null ||
        fail "packages are missing, and there is no apt-get to install them: ${missing[*]}"
    can_become_root || fail "packages are missing, and only root may install them; $advice"
    try_install "${missing[@]}" || {
        print_apt_words
        fail "packages are missing, and installing them failed; when the network works, $advice"
    }
}

install_packages() {
    local missing
    mapfile -t missing < <(print_missing_packages)
    install_missing "${missing[@]}"
    mapfile -t missing < <(print_missing_packages)
    (( ${#missing[@]} == 0 )) ||
        fail "packages are installed, but their programs are missing: ${missing[*]}"
}
