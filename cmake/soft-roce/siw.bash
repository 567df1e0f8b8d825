# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154 # The parts share variables.
#
# The kernel module siw (soft-iWARP), for --provider siw. Ubuntu's kernel packages contain it.
# Debian's do not, so there it is compiled from the distribution's kernel source. Nothing is
# installed except the compiler, make and libelf. The result is kept beside the kernel as siw.cpio,
# an archive with the module and those that it needs in addition to a guest's other modules.

# siw requests crc32c when it is loaded, so crc32c_generic is not among its dependencies. Newer
# kernels have crc32c built in.
optional_siw_modules=(crc32c_generic libcrc32c)

# Prints those of the given packages that apt-get knows.
print_known_packages() {
    apt-cache --no-all-versions show "$@" 2>/dev/null | sed -n 's/^Package: //p' | sort -u
}

# Prints the dependencies of a package that match an extended regular expression, and theirs.
print_dependencies() {
    local package pattern=$2
    for package in $(apt-cache depends "$1" 2>/dev/null |
                     sed -En "s/^ *\|?Depends: ($pattern)\$/\1/p"); do
        echo "$package"
        print_dependencies "$package" "$pattern"
    done
}

# Downloads packages into the current directory and unpacks them below root.
unpack_packages() {
    local package
    run_apt_get download "$@" || return 1
    for package in *.deb; do
        dpkg-deb -x "$package" root || return 1
    done
    rm -f -- *.deb
}

unpack_guest_modules() {
    local packages
    mapfile -t packages < <(print_known_packages "linux-image-$release" "linux-modules-$release" \
        "linux-modules-extra-$release")
    (( ${#packages[@]} > 0 )) && unpack_packages "${packages[@]}" || return 1
    [[ -e root/lib/modules ]] || ln -s usr/lib root/lib
}

# Installs the programs that compile a module for the guest's kernel, if they are missing. The
# kernel's headers name the compiler.
install_compiler() {
    local name missing=()
    for name in make $(print_dependencies "linux-headers-$release" \
                       'linux-(headers|kbuild|compiler)-.*|gcc-[0-9]+|libelf1.*'); do
        case $name in
            make | gcc-*) type -P "$name" >/dev/null || missing+=("$name") ;;
            libelf1*) ldconfig -p | grep -q 'libelf\.so\.1 ' || missing+=("$name") ;;
        esac
    done
    install_missing "${missing[@]}"
}

# Unpacks the module's source into the directory siw.
unpack_siw_source() {
    local version=$1 source archive
    source=linux-source-$(sed -E 's/^([0-9]+\.[0-9]+).*/\1/' <<<"$release")
    run_apt_get download "$source=$version" || run_apt_get download "$source" || return 1
    archive=$(dpkg-deb --fsys-tarfile "$source"_*.deb | tar -tf - |
              grep -E '/linux-source-[^/]*\.tar\.xz$') || return 1
    dpkg-deb --fsys-tarfile "$source"_*.deb | tar -xOf - "$archive" | xz -dc |
        tar -xf - --wildcards --strip-components=4 '*/drivers/infiniband/sw/siw' || return 1
    rm -f -- *.deb
}

# Compiles the module. make gets a clean environment, because the kernel's makefiles read many
# variables.
compile_siw() {
    local root=$PWD/root headers=$PWD/root/usr/src/linux-headers-$release packages words
    [[ $PWD != *[[:space:]:]* ]] ||
        fail "cannot compile siw in $PWD, because make does not support blanks and colons in the" \
            "path; set XDG_CACHE_HOME to another directory"
    install_compiler
    say "compiling siw for Linux $release"
    mapfile -t packages < <(print_dependencies "linux-headers-$release" 'linux-(headers|kbuild)-.*')
    unpack_packages "linux-headers-$release" "${packages[@]}" || return 1
    unpack_siw_source "$(apt-cache --no-all-versions show "linux-headers-$release" |
                         sed -n 's/^Version: //p')" || return 1
    # The makefile includes that of the common headers by its path.
    sed -i "s|/usr/src/|$root/usr/src/|" "$headers/Makefile"
    # Debug information for BPF would need pahole.
    words=$(env -i PATH="$PATH" make -C "$headers" "M=$PWD/siw" CONFIG_RDMA_SIW=m \
        CONFIG_DEBUG_INFO_BTF_MODULES= modules 2>&1) || {
        tail -n 20 <<<"$words" | sed 's/^/soft-roce:   | /' >&2
        fail "cannot compile siw for Linux $release"
    }
    mkdir -p "root/lib/modules/$release/extra"
    strip --strip-debug -o "root/lib/modules/$release/extra/siw.ko" siw/siw.ko
}

print_siw_modules() {
    {
        print_module_files "$root" "$release" "${optional_siw_modules[@]}" 2>/dev/null
        print_module_files "$root" "$release" siw
    } | awk '!seen[$0]++' | while read -r file; do
        # Leave out what every guest loads.
        [[ $'\n'$loaded =~ -$(basename -- "${file%%.ko*}").ko($'\n'|$) ]] || echo "$file"
    done
}

# Creates siw.cpio in the current directory.
build_siw_archive() {
    local root=$PWD/root release loaded
    release=$(<"$kernel_directory/release")
    loaded=$(cpio -it --quiet <"$kernel_directory/initramfs.cpio")
    mkdir root
    say "unpacking the modules of Linux $release"
    unpack_guest_modules && depmod -b "$root" "$release" || return 1
    if ! modinfo -b "$root" -k "$release" siw >/dev/null 2>&1; then
        compile_siw && depmod -b "$root" "$release" || return 1
    fi
    print_siw_modules | add_modules "$root" archive/modules 300 || return 1
    (cd archive && find . | cpio -o -H newc --quiet) >siw.cpio
}

# If several runs start at once, one builds the archive and the others wait for it.
build_siw() (
    cache=$1
    [[ -w $kernel_directory ]] ||
        fail "the cache directory $kernel_directory is not writable; set XDG_CACHE_HOME to a" \
            "writable one"
    exec {lock}>"$cache/lock"
    flock "$lock"
    if is_siw_intact; then
        exit 0
    fi
    [[ ! -e $kernel_directory/siw.cpio ]] ||
        say "the cached $kernel_directory/siw.cpio is damaged; making it anew"
    new=$(mktemp -d -- "$cache/new.XXXXXX")
    trap 'rm -rf -- "$new"' EXIT
    cd -- "$new" || exit
    build_siw_archive || {
        print_apt_words
        fail "there is no siw for the guest's Linux $(<"$kernel_directory/release"): apt-get cannot" \
            "download its headers and source; when the network works, run as root: apt-get update;" \
            "if they are no longer offered, remove $cache, and the newest kernel is fetched"
    }
    sha256sum siw.cpio >siw.checksum
    chmod 644 siw.cpio siw.checksum
    sync -- siw.cpio siw.checksum
    mv -T -- siw.cpio "$kernel_directory/siw.cpio"
    mv -T -- siw.checksum "$kernel_directory/siw.checksum"
    sync -- "$kernel_directory"
)

is_siw_intact() {
    (cd -- "$kernel_directory" && sha256sum --check --quiet --strict siw.checksum) >/dev/null 2>&1
}

find_siw() {
    if ! is_siw_intact; then
        run_builder build_siw "$(print_cache_directory)"
    fi
}
