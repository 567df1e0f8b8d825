# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154 # Variables of one part are used in another.
#
# The guest's kernel: the distribution's own, downloaded but not installed, with an initramfs of
# busybox and the modules needed. Both are kept in a cache; an entry is built aside and renamed into
# place when it is complete.

# Changes with the layout of a cache entry, so that no version reads another's.
cache_format=4

# rdma_rxe asks for crc32_generic only when a link is added, and newer kernels have it built in.
guest_modules=(virtio_pci virtio_console 9pnet_virtio 9p overlay dummy rdma_rxe rdma_ucm ib_uverbs)
optional_guest_modules=(crc32_generic)
# For several devices on one link, apart from the others: what is not loaded costs no time. tc loses
# packets by sch_netem.
link_modules=(virtio_net macvlan sch_netem)

print_cache_directory() {
    local cache=${XDG_CACHE_HOME:-} user_home=${HOME:-}
    if [[ $cache != /* ]]; then
        [[ -n $user_home ]] || user_home=$(getent passwd "$EUID" | cut -d: -f6)
        cache=${user_home:-/root}/.cache
    fi
    echo "$cache/soft-roce/$cache_format"
}

# The packages that hold the kernel and its modules, found by the dependencies of the one given.
print_kernel_packages() {
    local package
    for package in $(apt-cache depends "$1" 2>/dev/null |
                     sed -En 's/^ *Depends: (linux-(image|modules|modules-extra)-[0-9].*)/\1/p'); do
        echo "$package"
        print_kernel_packages "$package"
    done
}

find_kernel_packages() {
    local meta
    for meta in linux-image-amd64 linux-image-generic; do
        mapfile -t kernel_packages < <(print_kernel_packages "$meta" | sort -u)
        if (( ${#kernel_packages[@]} > 0 )); then
            return 0
        fi
    done
    return 1
}

download_kernel() {
    find_kernel_packages || return 1
    say "downloading ${kernel_packages[*]}, kept in $(dirname -- "$PWD")"
    run_apt_get download "${kernel_packages[@]}" busybox-static
}

try_download_kernel() {
    download_kernel && return
    [[ $install = yes ]] && can_become_root || return 1
    update_package_lists
    download_kernel
}

# Decompresses standard input; the format goes by a file name's suffix.
decompress() {
    case $1 in
        *.xz) xz -dc ;;
        *.zst) zstd -dcq ;;
        *) cat ;;
    esac
}

# QEMU boots an ELF kernel by its entry point for PVH, which it finds in a Xen note of type 18.
is_bootable() {
    cmp -s -n 4 -- "$1" <(printf '\177ELF') &&
        LC_ALL=C grep -qaP '\x04\x00{3}[\x04\x08]\x00{3}\x12\x00{3}Xen\x00' "$1"
}

# Unpacks the kernel proper from its self-extracting image, whose header says where it is and how
# long, with its size behind it: to do that here saves seconds of emulation at every boot. A kernel
# packed in another format boots as it is.
extract_kernel() {
    local image=$1 kernel=$2 sectors offset length format=none
    sectors=$(od -A n -t u1 -j 497 -N 1 -- "$image")
    read -r offset length < <(od -A n -t u4 -j 584 -N 8 -- "$image")
    offset=$(( offset + (sectors + 1) * 512 ))
    case $(od -A n -t x1 -j "$offset" -N 4 -- "$image") in
        ' fd 37 7a 58') format=kernel.xz ;;
        ' 28 b5 2f fd') format=kernel.zst ;;
    esac
    if dd if="$image" bs=1M iflag=skip_bytes,count_bytes skip="$offset" count="$(( length - 4 ))" \
        status=none | decompress "$format" >"$kernel" && is_bootable "$kernel"; then
        return 0
    fi
    cp -- "$image" "$kernel"
}

# Cuts off a module's signature, which the guest would spend a good part of its boot to verify. It
# ends with its length, big-endian, and a magic line.
remove_signature() {
    local module=$1 magic='~Module signature appended~' size digits
    [[ $(tail -c 28 -- "$module" | tr -d '\0') = "$magic" ]] || return 0
    read -r -a digits < <(tail -c 32 -- "$module" | od -A n -t u1 -N 4)
    size=$(( digits[0] << 24 | digits[1] << 16 | digits[2] << 8 | digits[3] ))
    truncate -s "-$(( size + 12 + 28 ))" -- "$module"
}

# Prints the modules' files below the directory given, in the order in which they have to be loaded.
print_module_files() {
    local root=$1 release=$2
    modprobe -d "$root" -S "$release" --show-depends -a "${@:3}" |
        sed -n 's|^insmod .*/\(lib/modules/[^ ]*\).*|\1|p'
}

# Adds the modules' files on standard input under numbers that keep their order.
add_modules() {
    local root=$1 target=$2 number=$3 file module
    mkdir -p -- "$target"
    while read -r file; do
        module=$target/$number-$(basename -- "${file%%.ko*}").ko
        decompress "$file" <"$root/$file" >"$module" || return 1
        remove_signature "$module"
        number=$(( number + 1 ))
    done
}

# Those that a link takes in addition come after those of every guest.
add_all_modules() {
    local root=$1 release=$2 modules all
    modules=$(print_module_files "$root" "$release" "${guest_modules[@]}") || return 1
    modules+=$'\n'$(print_module_files "$root" "$release" "${optional_guest_modules[@]}" \
        2>/dev/null) || true
    modules=$(awk 'NF && !seen[$0]++' <<<"$modules")
    all=$modules$'\n'$(print_module_files "$root" "$release" "${link_modules[@]}") || return 1
    add_modules "$root" initramfs/modules 100 <<<"$modules" || return 1
    awk '!seen[$0]++' <<<"$all" | tail -n "+$(( $(wc -l <<<"$modules") + 1 ))" |
        add_modules "$root" link/modules 200
}

add_busybox() {
    local root=$1 target=$2 applet
    cp -- "$root"/{usr/,}bin/busybox "$target/" 2>/dev/null || [[ -x $target/busybox ]] || return 1
    while read -r applet; do
        [[ $applet = busybox ]] || ln -s busybox "$target/$applet"
    done < <("$target/busybox" --list)
}

# Makes the files of a cache entry in the current directory.
build_kernel() {
    local root=$PWD/root package release part
    try_download_kernel || {
        print_apt_words
        fail "there is no kernel for the guest: apt-get downloads neither linux-image-amd64 nor" \
            "linux-image-generic; once the network is there, as root, run: apt-get update"
    }
    say "unpacking the kernel and making an initramfs"
    mkdir root link initramfs initramfs/{bin,proc,sys,dev,lower,overlay,root}
    for package in *.deb; do
        dpkg-deb -x "$package" root || fail "$package cannot be unpacked in $PWD"
    done
    [[ -e root/lib/modules ]] || ln -s usr/lib root/lib
    release=$(basename -- root/lib/modules/*)
    depmod -b "$root" "$release" || fail "the modules of Linux $release cannot be indexed in $PWD"
    add_all_modules "$root" "$release" ||
        fail "Linux $release lacks a module that the guest needs"
    add_busybox root initramfs/bin || fail "the package busybox-static has no busybox"
    for part in initramfs link; do
        (cd "$part" && find . | cpio -o -H newc --quiet) >"$part.cpio" ||
            fail "the initramfs cannot be written in $PWD"
    done
    extract_kernel "root/boot/vmlinuz-$release" kernel ||
        fail "the kernel cannot be written in $PWD"
    rm -rf root initramfs link ./*.deb
    echo "$release" >release
}

print_cached_kernel() {
    local entry
    for entry in "$1"/*/release; do
        if [[ -s $entry ]]; then
            dirname -- "$entry"
        fi
    done | sort -V | tail -n 1
}

# One of several runs at once builds the entry, and the others wait for it. What an earlier run left
# half-built is removed.
build_cache() (
    cache=$1
    mkdir -p -- "$cache" 2>/dev/null || true
    [[ -w $cache ]] ||
        fail "the cache directory $cache is not writable; set XDG_CACHE_HOME to one that is"
    exec {lock}>"$cache/lock"
    flock "$lock"
    if [[ -n $(print_cached_kernel "$cache") ]]; then
        exit 0
    fi
    rm -rf -- "$cache"/new.*
    new=$(mktemp -d -- "$cache/new.XXXXXX")
    trap 'rm -rf -- "$new"' EXIT
    cd -- "$new" || exit
    build_kernel
    mv -T -- "$new" "$cache/$(<release)"
)

# shellcheck disable=SC2317 # It is called by traps.
end_builder() {
    kill -TERM -- "-$builder" 2>/dev/null || true
    wait "$builder" 2>/dev/null || true
}

# Sets kernel_directory, which holds: kernel, initramfs.cpio, link.cpio (what a link takes in
# addition), release.
find_kernel() {
    local cache
    cache=$(print_cache_directory)
    kernel_directory=$(print_cached_kernel "$cache")
    if [[ -z $kernel_directory ]]; then
        # The builder is a process group of its own, to be ended with all that it has started.
        set -m
        build_cache "$cache" &
        set +m
        builder=$!
        trap_signals end_builder
        wait "$builder" || exit 1
        kernel_directory=$(print_cached_kernel "$cache")
    fi
}
