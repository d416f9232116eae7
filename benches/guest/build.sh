#!/usr/bin/env bash
# Builds the measuring guest: `build.sh CACHE BUSYBOX` prints the folder below CACHE that it made, or that was there,
# made from the same sources. In it: root (packages unpacked, the static program, its data), guest.img (the same as
# an initramfs), hello-32.img and hello-64.img (hello.c). BUSYBOX is a static one. Needs no root; fetches packages once.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=$1 busybox=$2

# Libraries are named, as nothing here resolves dependencies.
packages=(
    libc6 zlib1g libcrypt1 liblzma5 libzstd1 liblz4-1 gzip xz-utils zstd libssl3 openssl
    python3.11-minimal libpython3.11-minimal libexpat1 lua5.4 perl-base
    sqlite3 libsqlite3-0 libreadline8 libtinfo6
    cpp-12 libgmp10 libmpfr6 libmpc3 libisl23 libgcc-s1 libstdc++6 tcc
)

say() { echo "build: $*" >&2; }

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9

stamp=$(cat "$here"/*.c "$here"/*.h "$here"/build.sh "$here"/programs/* | sha256sum | cut -c1-16)
finished=$cache/guest-$stamp
# Others may be in use by other working copies.
find "$cache" -maxdepth 1 -name 'guest-*' -mtime +2 ! -path "$finished" -exec rm -rf {} +
if [ -d "$finished" ]; then
    touch "$finished"
    echo "$finished"
    exit 0
fi

# Packages: with the machine's lists, or else with lists of our own, which need no root.
fetch() {
    local into=$1
    if (cd "$into" && apt-get -qq download "${packages[@]}") 2>"$into/log"; then
        return
    fi
    mkdir -p "$into/apt/lists/partial" "$into/apt/cache/archives/partial"
    local own=(-o Dir::State::lists="$into/apt/lists" -o Dir::Cache="$into/apt/cache" -o Debug::NoLocking=1)
    (cd "$into" && apt-get -qq "${own[@]}" update && apt-get -qq "${own[@]}" download "${packages[@]}") \
        2>>"$into/log" || { cat "$into/log" >&2; say "cannot fetch packages"; exit 1; }
    rm -rf "$into/apt"
}

names=$(printf '%s\n' "${packages[@]}" | sha256sum | cut -c1-16)
packed=$cache/packages-$names
if [ ! -d "$packed" ]; then
    say "fetching ${#packages[@]} packages"
    rm -rf "$cache/packages.partial"
    mkdir -p "$cache/packages.partial"
    fetch "$cache/packages.partial"
    mv "$cache/packages.partial" "$packed"
fi

folder=$cache/guest.partial
root=$folder/root
say "building $finished"
rm -rf "$folder"
mkdir -p "$root/data" "$root/programs" "$root"/usr/{bin,sbin,lib,lib64}
# Packages still have files in the folders of old; all go to /usr, as on installed systems.
for old in bin sbin lib lib64; do ln -s "usr/$old" "$root/$old"; done
for deb in "$packed"/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink \
        --exclude='./usr/share' --exclude='./etc' --exclude='./var' --exclude='./usr/lib/x86_64-linux-gnu/gconv'
done
cp "$busybox" "$root/bin/busybox"
chmod 755 "$root/bin/busybox"
cp "$here"/programs/* "$root/programs"

# x86-64-v1 without contraction: the same instructions everywhere. The stack-protector would only blur.
gcc -std=gnu11 -O2 -static -pthread -ffp-contract=off -fno-stack-protector -Wall -Wextra \
    -o "$root/init" "$here"/{main,integer,memory,crypto,float,vector,system,programs}.c -lm

linker() {
    "$root/lib64/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu" "$@"
}
linked() {
    local program=$1
    shift
    linker "$root$program" "$@"
}

# Nothing may come from the host: it isn't there in the guest.
for program in /usr/bin/{gzip,xz,zstd,openssl,python3.11,lua5.4,perl,sqlite3,tcc} \
    /usr/lib/gcc/x86_64-linux-gnu/12/cc1; do
    foreign=$(linker --list "$root$program" | grep -v -e "$root" -e vdso || true)
    if [ -n "$foreign" ]; then
        say "$program needs a package that isn't named here:" $foreign
        exit 1
    fi
done

# Data: text for the packers, a long file for the ciphers, C for the compilers.
find "$root/usr/lib/python3.11" -name '*.py' | LC_ALL=C sort | xargs cat >"$root/data/text.all"
head -c 3000000 "$root/data/text.all" >"$root/data/text"
rm "$root/data/text.all"
for _ in 1 2 3 4 5; do cat "$root/data/text"; done >"$root/data/long"
linked /usr/bin/gzip -9 -n -c "$root/data/text" >"$root/data/text.gz"
linked /usr/bin/xz -6 -c "$root/data/text" >"$root/data/text.xz"
linked /usr/bin/zstd -q -9 -c "$root/data/text" >"$root/data/text.zst"
gcc -std=gnu11 -E -P "$here/system.c" >"$root/data/source.i"
linked /usr/bin/tcc -E -P -I "$root/usr/lib/x86_64-linux-gnu/tcc/include" -I /usr/include \
    -I /usr/include/x86_64-linux-gnu "$here/memory.c" >"$root/data/plain.i"

# An initramfs from a folder, by the busybox that goes into it. A console must be there before anything is
# mounted, and only the kernel can make one without root: it has a small initramfs of its own with it.
archive() {
    (cd "$1" && find . | LC_ALL=C sort | "$root/bin/busybox" cpio -o -H newc -R 0:0 2>/dev/null) >"$2.partial"
    mv "$2.partial" "$2"
}
archive "$root" "$folder/guest.img"
for bits in 32 64; do
    rm -rf "$folder/hello"
    mkdir -p "$folder/hello"
    for name in init off; do
        gcc -m$bits -O2 -static -nostdlib -fno-pic -no-pie -fno-stack-protector -Wall -Wextra \
            $([ $name = init ] || echo -DOFF) -o "$folder/hello/$name" "$here/hello.c"
    done
    archive "$folder/hello" "$folder/hello-$bits.img"
done
rm -rf "$folder/hello"
mv "$folder" "$finished"
say "$(du -m "$finished/guest.img" | cut -f1) MiB in $finished/guest.img"
echo "$finished"
