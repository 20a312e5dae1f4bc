#!/bin/bash
# Runs a command as root on Debian's own kernel (6.1: older than what CI has, cgroup v2 alone, all
# its controllers) in a virtual machine that has the files of this one, and forgets what it writes:
#
#   cargo build --workspace --all-targets && cargo build --release
#   tests/vm.sh target/release/appshot demo
#   tests/vm.sh 'cd tests && ../target/debug/deps/apps-HASH ::cycle'
#
# Without KVM (ACCEL=kvm, where it works) all is emulated: some twenty times as slow, so what is
# said of times means nothing. A disk (ext4, 2 GiB) is at /run/disk. Ends with the command's code;
# 124 after TIMEOUT seconds (3600).
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
[ "$(id -u)" = 0 ] || { echo "tests/vm.sh: needs root: all files of this machine are to be seen there" >&2; exit 6; }

packages=""
for need in qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio; do
    command -v "${need%%:*}" >/dev/null || packages="$packages ${need#*:}"
done
# shellcheck disable=SC2086
[ -z "$packages" ] || DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $packages >&2

home=$PWD/target/vm
mkdir -p "$home"
kernel() { find "$home/kernel/boot" -name 'vmlinuz-*' 2>/dev/null | head -1; }
if [ -z "$(kernel)" ]; then
    package=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: //p' | head -1)
    [ -n "$package" ] || { echo "tests/vm.sh: no kernel: apt knows no linux-image-amd64; run apt-get update" >&2; exit 6; }
    (cd "$home" && apt-get download -q "$package" >&2 && dpkg -x "$package"_*.deb kernel && rm "$package"_*.deb)
fi

work=$(mktemp -d "$home/run.XXXXXX")
trap 'rm -rf "$work"' EXIT
# In the order in which they need each other.
modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci netfs fscache 9pnet 9pnet_virtio 9p
overlay virtio_blk crc16 mbcache jbd2 crc32c_generic libcrc32c ext4 inet_diag tcp_diag udp_diag raw_diag unix_diag
netlink_diag af_packet_diag veth tun llc stp bridge"
mkdir -p "$work/root/bin" "$work/root/modules"
cp "$(command -v busybox)" "$work/root/bin/busybox"
for module in $modules; do
    find "$home/kernel/lib/modules" -name "$module.ko" -exec cp {} "$work/root/modules/" \;
done
{
    echo "export PATH='$PATH' HOME='$HOME' RUST_BACKTRACE=0"
    export -p | grep -E ' (APPSHOT|CARGO|RUSTUP)_' || true
    echo 'for _ in $(seq 50); do [ -b /dev/vda ] && break; sleep 0.1; done; mkdir /run/disk; mount /dev/vda /run/disk'
    printf 'cd %q\n' "$PWD"
    # shellcheck disable=SC2016
    printf '(eval %q); code=$?\n' "$*"
    printf 'echo; echo "vm: exit $code"; sync; echo o >/proc/sysrq-trigger; sleep 60\n'
} >"$work/root/job"
cat >"$work/root/init" <<INIT
#!/bin/busybox sh
b=/bin/busybox
\$b mkdir -p /proc /sys /dev /below /above /new
\$b mount -t proc proc /proc; \$b mount -t sysfs sys /sys; \$b mount -t devtmpfs dev /dev
for module in $(echo $modules); do \$b insmod /modules/\$module.ko; done
\$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,ro,cache=loose host /below
\$b mount -t tmpfs -o size=4G above /above; \$b mkdir /above/upper /above/work
\$b mount -t overlay -o lowerdir=/below,upperdir=/above/upper,workdir=/above/work root /new
for place in proc sys dev; do \$b mount --move /\$place /new/\$place; done
\$b mkdir -p /new/dev/shm /new/dev/pts
\$b mount -t tmpfs shm /new/dev/shm; \$b mount -t devpts pts /new/dev/pts
\$b mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
# As systemd has it.
echo "+cpu +io +memory +pids" >/new/sys/fs/cgroup/cgroup.subtree_control
\$b mount -t tmpfs run /new/run; \$b mount -t tmpfs -o size=2G tmp /new/tmp
\$b ip link set lo up
\$b cp /job /new/run/job
exec \$b switch_root /new /bin/bash /run/job
INIT
chmod +x "$work/root/init"
(cd "$work/root" && find . | cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initrd"
truncate -s 2G "$work/disk"
mkfs.ext4 -q "$work/disk"

cpu=max
[ "${ACCEL:-tcg}" != kvm ] || cpu=host
timeout "${TIMEOUT:-3600}" qemu-system-x86_64 -accel "${ACCEL:-tcg,thread=multi}" -cpu $cpu -smp 2 -m 6G \
    -display none -serial stdio -no-reboot -kernel "$(kernel)" -initrd "$work/initrd" \
    -append "console=ttyS0 loglevel=3 panic=-1" \
    -fsdev local,id=host,path=/,security_model=none,readonly=on,multidevs=remap \
    -device virtio-9p-pci,fsdev=host,mount_tag=host \
    -drive file="$work/disk",if=virtio,format=raw </dev/null | tee "$work/log" | grep -v '^vm: exit ' ||
    [ "${PIPESTATUS[0]}" != 124 ] || exit 124
exit "$(sed -n 's/^vm: exit \([0-9]*\).*/\1/p' "$work/log" | tail -1 | grep . || echo 1)"
