# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154 # The parts share variables.
#
# The guest's kernel: the distribution's own kernel, downloaded but not installed, with an initramfs
# that contains busybox and the modules needed. A cache keeps both. An entry is built in a temporary
# directory, which is renamed when the entry is complete and on the disk. Its file "checksums" shows
# whether it still is what was built.

# Change it with the layout of a cache entry, so that no version reads an entry of another layout.
cache_format=4

# rdma_rxe requests crc32_generic only when a link is added, so it is not among the module's
# dependencies. Newer kernels have it built in, so it is optional.
guest_modules=(virtio_pci virtio_console 9pnet_virtio 9p overlay dummy rdma_rxe rdma_ucm ib_uverbs)
optional_guest_modules=(crc32_generic)
# Modules for a link. They are in a separate archive, because each loaded module costs boot time. tc
# drops packets with sch_netem.
link_modules=(virtio_net macvlan sch_netem)

print_cache_directory() {
    local cache=${XDG_CACHE_HOME:-} user_home=${HOME:-}
    if [[ $cache != /* ]]; then
        [[ -n $user_home ]] || user_home=$(getent passwd "$EUID" | cut -d: -f6)
        cache=${user_home:-/root}/.cache
    fi
    echo "$cache/soft-roce/$cache_format"
}

# Prints the packages that contain the kernel and its modules: dependencies of the given package.
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

# Decompresses standard input. The suffix of the file name gives the format.
decompress() {
    case $1 in
        *.xz) xz -dc ;;
        *.zst) zstd -dcq ;;
        *) cat ;;
    esac
}

# QEMU boots an ELF kernel at its PVH entry point, which a Xen note of type 18 contains.
is_bootable() {
    cmp -s -n 4 -- "$1" <(printf '\177ELF') &&
        LC_ALL=C grep -qaP '\x04\x00{3}[\x04\x08]\x00{3}\x12\x00{3}Xen\x00' "$1"
}

# Unpacks the kernel from its self-extracting image. Unpacking it here saves seconds of emulation at
# every boot. The image's header gives the offset and the length of the payload; the last four bytes
# are the unpacked size. If the format is not supported, the image is used as it is.
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

# Removes a module's signature, because verifying it would take a good part of the guest's boot
# time. The signature ends with its length, big-endian, and a magic line.
remove_signature() {
    local module=$1 magic='~Module signature appended~' size digits
    [[ $(tail -c 28 -- "$module" | tr -d '\0') = "$magic" ]] || return 0
    read -r -a digits < <(tail -c 32 -- "$module" | od -A n -t u1 -N 4)
    size=$(( digits[0] << 24 | digits[1] << 16 | digits[2] << 8 | digits[3] ))
    truncate -s "-$(( size + 12 + 28 ))" -- "$module"
}

# Prints the modules' files below the given directory, in the order in which they must be loaded.
print_module_files() {
    local root=$1 release=$2
    modprobe -d "$root" -S "$release" --show-depends -a "${@:3}" |
        sed -n 's|^insmod .*/\(lib/modules/[^ ]*\).*|\1|p'
}

# Copies the modules' files that standard input lists. A number in each name keeps their order.
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

# The link's additional modules are loaded after the modules of every guest.
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

# Creates the files of a cache entry in the current directory.
build_kernel() {
    local root=$PWD/root package release part
    try_download_kernel || {
        print_apt_words
        fail "there is no kernel for the guest: apt-get cannot download linux-image-amd64 or" \
            "linux-image-generic; when the network works, run as root: apt-get update"
    }
    say "unpacking the kernel and creating an initramfs"
    mkdir root link initramfs initramfs/{bin,proc,sys,dev,lower,overlay,root}
    for package in *.deb; do
        dpkg-deb -x "$package" root || fail "cannot unpack $package in $PWD"
    done
    [[ -e root/lib/modules ]] || ln -s usr/lib root/lib
    release=$(basename -- root/lib/modules/*)
    depmod -b "$root" "$release" || fail "cannot index the modules of Linux $release in $PWD"
    add_all_modules "$root" "$release" ||
        fail "Linux $release lacks a module that the guest needs"
    add_busybox root initramfs/bin || fail "the package busybox-static does not contain busybox"
    for part in initramfs link; do
        (cd "$part" && find . | cpio -o -H newc --quiet) >"$part.cpio" ||
            fail "cannot write the initramfs in $PWD"
    done
    extract_kernel "root/boot/vmlinuz-$release" kernel ||
        fail "cannot write the kernel in $PWD"
    rm -rf root initramfs link ./*.deb
    echo "$release" >release
    sha256sum kernel initramfs.cpio link.cpio release >checksums ||
        fail "cannot write $PWD/checksums"
    # Every user may read the cache.
    { chmod 755 . && chmod 644 ./* && sync -- ./* .; } || fail "cannot write $PWD to the disk"
}

# Whether a directory is a complete cache entry. A power cut can leave files empty or cut short; and
# another program, or another version of this one, may have made the directory.
is_intact() {
    (cd -- "$1" 2>/dev/null && [[ $(wc -l <checksums) = 4 ]] &&
        sha256sum --check --quiet --strict checksums) >/dev/null 2>&1
}

# Prints the newest entry of the cache, whether intact or not.
print_cached_kernel() {
    local entry
    for entry in "$1"/*/; do
        entry=${entry%/}
        if [[ -d $entry && ${entry##*/} != new.* ]]; then
            echo "$entry"
        fi
    done | sort -V | tail -n 1
}

# If several runs start at once, one builds the entry and the others wait for it. Incomplete entries
# of earlier runs are removed.
build_cache() (
    cache=$1
    mkdir -p -- "$cache" 2>/dev/null || true
    [[ -w $cache ]] ||
        fail "the cache directory $cache is not writable; set XDG_CACHE_HOME to a writable one"
    exec {lock}>"$cache/lock"
    flock "$lock"
    entry=$(print_cached_kernel "$cache")
    if [[ -n $entry ]]; then
        is_intact "$entry" && exit 0
        say "the cache entry $entry is damaged or incomplete; making it anew"
        rm -rf -- "$entry" || fail "cannot remove the damaged cache entry $entry; remove it"
    fi
    rm -rf -- "$cache"/new.*
    new=$(mktemp -d -- "$cache/new.XXXXXX")
    trap 'rm -rf -- "$new"' EXIT
    cd -- "$new" || exit
    build_kernel
    mv -T -- "$new" "$cache/$(<release)"
    sync -- "$cache"
)

# shellcheck disable=SC2317 # Traps call it.
end_builder() {
    kill -TERM -- "-$builder" 2>/dev/null || true
    wait "$builder" 2>/dev/null || true
}

# The builder gets its own process group, so that a signal ends all of its processes.
run_builder() {
    set -m
    "$@" &
    set +m
    builder=$!
    trap_signals end_builder
    wait "$builder" || exit 1
}

# Sets kernel_directory. It contains kernel, initramfs.cpio, link.cpio (the additional modules for a
# link), release and, after the first run with --provider siw, siw.cpio.
find_kernel() {
    local cache
    cache=$(print_cache_directory)
    kernel_directory=$(print_cached_kernel "$cache")
    if [[ -z $kernel_directory ]] || ! is_intact "$kernel_directory"; then
        [[ -z $kernel_directory || -w $cache ]] ||
            fail "the cache entry $kernel_directory is damaged, incomplete or not readable; remove" \
                "it as its owner, or set XDG_CACHE_HOME to another directory"
        run_builder build_cache "$cache"
        kernel_directory=$(print_cached_kernel "$cache")
    fi
}
