#!/usr/bin/env bash
# Installs the programs that the tests run beside Xenolith, by apt: QEMU as the peer, NASM and gcc for
# small guests, e2fsprogs, debootstrap, GRUB and xorriso for disk images, iasl and dmidecode for the firmware tables, valgrind to count.
#
#   testsuites/guests/install-peers.sh           install what is missing
#   testsuites/guests/install-peers.sh --check   say what is missing, install nothing; status 1 if any
#
# Quick and silent on the network when everything is there; then it needs no root either.
set -euo pipefail

# A program that must run, and the package that brings it. dpkg's word is not enough: a package can be
# unpacked and broken.
peers=(
    "qemu-system-x86_64 --version|qemu-system-x86"
    "test -e /usr/share/seabios/bios-256k.bin|seabios"
    "test -e /usr/lib/ipxe/qemu/pxe-e1000.rom|ipxe-qemu"
    "nasm -v|nasm"
    "test -e /usr/include/gnu/stubs-32.h|gcc-multilib"
    "mkfs.ext4 -V|e2fsprogs"
    "iasl -v|acpica-tools"
    "dmidecode --version|dmidecode"
    "sfdisk --version|fdisk"
    "grub-mkimage --version|grub-common"
    "xorriso --version|xorriso"
    "test -e /usr/lib/grub/i386-pc/boot.img|grub-pc-bin"
    "dpkg-deb --version|dpkg"
    "debootstrap --version|debootstrap"
    "fakeroot --version|fakeroot"
    "busybox true|busybox-static"
    "script --version|bsdutils"
    "xz --version|xz-utils"
    "valgrind --version|valgrind"
)

# mkfs.ext4 and sfdisk live where an ordinary user's PATH does not look.
PATH="$PATH:/usr/sbin:/sbin"

say() { echo "install-peers: $*" >&2; }
fail() { say "$*"; exit 1; }

missing() {
    local peer
    for peer in "${peers[@]}"; do
        # busybox-static and busybox give the same program: only the static one suits an initramfs.
        if [ "${peer#*|}" = busybox-static ]; then
            dpkg-query -W -f '${db:Status-Status}' busybox-static 2>/dev/null | grep -qx installed ||
                echo busybox-static
        else
            ${peer%%|*} >/dev/null 2>&1 || echo "${peer#*|}"
        fi
    done
}

mapfile -t wanted < <(missing)
if [ ${#wanted[@]} -eq 0 ]; then
    exit 0
fi
if [ "${1:-}" = --check ]; then
    fail "missing: ${wanted[*]}"
fi
command -v apt-get >/dev/null ||
    fail "missing: ${wanted[*]}; there is no apt-get here, install them by hand"

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || fail "missing: ${wanted[*]}; run me as root, or where sudo asks no password"
    as_root=(sudo -n)
fi

# The machine's own entries for its Debian release, and beside each archive that has the release
# itself, the backports. Foreign sources are left out: a broken one is none of our business, and few
# have backports. Reads both styles, one-line and deb822.
backports_list() {
    awk -v codename="$1" '
        function emit(options, uri, suite, components) {
            line = "deb " (options == "" ? "" : "[" options "] ") uri " " suite " " components
            if (!(line in seen)) { seen[line] = 1; print line }
        }
        function take(type, uris, suites, components, signed,    u, s, i, j, n, m, opt) {
            if (type !~ /(^| )deb( |$)/ || (" " components " ") !~ / main /) return
            # Only archives signed by Debian itself; an entry that names no key trusts the machine.
            if (signed != "" && signed !~ /debian-archive-[a-z-]*keyring/) return
            opt = signed == "" ? "" : "signed-by=" signed
            n = split(uris, u, " "); m = split(suites, s, " ")
            for (i = 1; i <= n; i++) for (j = 1; j <= m; j++) {
                if (index(s[j], codename) != 1) continue
                emit(opt, u[i], s[j], components)
                if (s[j] == codename) emit(opt, u[i], codename "-backports", components)
            }
        }
        function stanza() {
            if (enabled != "no") take(f["types"], f["uris"], f["suites"], f["components"], f["signed-by"])
            split("", f); enabled = ""
        }
        FNR == 1 { stanza() }
        { sub(/\r$/, "") }
        FILENAME ~ /\.list$/ {
            if ($1 != "deb") next
            text = $0; sub(/#.*/, "", text); signed = ""
            if (match(text, /\[[^]]*\]/)) {
                opts = substr(text, RSTART + 1, RLENGTH - 2)
                text = substr(text, 1, RSTART - 1) substr(text, RSTART + RLENGTH)
                if (match(opts, /signed-by=[^ ]+/)) signed = substr(opts, RSTART + 10, RLENGTH - 10)
            }
            k = split(text, w, " "); comps = ""
            for (i = 4; i <= k; i++) comps = comps " " w[i]
            take("deb", w[2], w[3], comps, signed); next
        }
        /^#/ { next }
        /^[ \t]*$/ { stanza(); next }
        /^[ \t]/ { f[key] = f[key] " " $0; next }
        {
            key = tolower($0); sub(/:.*/, "", key); value = $0; sub(/^[^:]*:[ \t]*/, "", value)
            f[key] = value; if (key == "enabled") enabled = tolower(value)
        }
        END { stanza() }
    ' /dev/null $(ls /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null)
}

log=$(mktemp)
work=$(mktemp -d)
trap 'rm -rf "$log" "$work"' EXIT
# apt's own helper user must be able to read the private lists.
chmod 755 "$work"

install() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends \
        -o DPkg::Lock::Timeout=120 "$@" >>"$log" 2>&1
}

# Debian's stable packages first, except where QEMU's tools are from backports already: the two
# releases' files collide.
qemu_backported=no
case "$(dpkg-query -W -f '${Version}\n' qemu-utils qemu-system-common qemu-block-extra 2>/dev/null || true)" in
    *~bpo*) qemu_backported=yes ;;
esac
plain=() qemu=()
for package in "${wanted[@]}"; do
    case "$package" in
        qemu-system-x86 | seabios) qemu+=("$package") ;;
        *) plain+=("$package") ;;
    esac
done
if [ $qemu_backported = no ]; then
    plain+=("${qemu[@]}")
    qemu=()
fi

if [ ${#plain[@]} -gt 0 ]; then
    say "installing ${plain[*]}"
    # A foreign source that cannot be reached makes update fail; what we want may still be there.
    "${as_root[@]}" apt-get -q -o DPkg::Lock::Timeout=120 update >>"$log" 2>&1 || true
    install install "${plain[@]}" || { tail -n 25 "$log" >&2; fail "apt-get cannot install: ${plain[*]}"; }
fi

if [ ${#qemu[@]} -gt 0 ]; then
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    [ -n "$codename" ] || fail "/etc/os-release names no release, so I cannot tell its backports"
    say "installing ${qemu[*]} from $codename-backports, as qemu-utils is from there"
    backports_list "$codename" >"$work/sources.list"
    grep -q -- "-backports " "$work/sources.list" ||
        fail "no apt source for $codename's main archive, so I cannot tell where its backports are"
    mkdir -p "$work/lists/partial" "$work/parts"
    chmod -R 755 "$work"
    private=(-o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts="$work/parts"
        -o Dir::State::lists="$work/lists" -o APT::Get::List-Cleanup=false)
    "${as_root[@]}" apt-get -q -o DPkg::Lock::Timeout=120 "${private[@]}" update >>"$log" 2>&1 || true
    install "${private[@]}" -t "$codename-backports" install "${qemu[@]}" ||
        { tail -n 25 "$log" >&2; fail "apt-get cannot install from backports: ${qemu[*]}"; }
    # The private lists belong to root when sudo made them.
    "${as_root[@]}" rm -rf "$work"
fi

mapfile -t wanted < <(missing)
[ ${#wanted[@]} -eq 0 ] || fail "apt-get reports success, yet missing or broken: ${wanted[*]}"
