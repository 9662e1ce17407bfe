#!/bin/sh
# Makes a machine of an installed system, given as an archive: the files in stage
# are copied into it, and out gets the disk, the kernel and its modules. Run in
# the folder that holds these, with root's rights over the files.
set -eu
mkdir root
root=$PWD/root out=$PWD/out
tar -C "$root" --numeric-owner -xpf "$1"
mkdir -p "$root/dev" "$root/proc" "$root/sys" "$root/etc/modprobe.d"
cp -r stage/. "$root/"
cp modprobe.conf "$root/etc/modprobe.d/marquee.conf"
# A moving line on the console costs a processor that is emulated a second of
# every ten.
mkdir -p "$root/etc/systemd/system.conf.d"
printf '[Manager]\nShowStatus=error\n' > "$root/etc/systemd/system.conf.d/marquee.conf"
while read -r unit; do
  ln -sf /dev/null "$root/etc/systemd/system/$unit"
done < masked
# Nomad links the libraries and time zones into the chroot of every task on a
# machine with databases, file by file, which takes an emulated one minutes. Perl
# and character sets, which are most of them, become a symbolic link each, and
# zones that count leap seconds go, but for the one that chrony reads.
mkdir "$root/usr/lib/apart"
for dir in gconv perl perl-base; do
  mv "$root/usr/lib/x86_64-linux-gnu/$dir" "$root/usr/lib/apart/$dir"
  ln -s "../apart/$dir" "$root/usr/lib/x86_64-linux-gnu/$dir"
done
find "$root/usr/share/zoneinfo/right" -not -type d -not -path '*/right/UTC' -delete
find "$root/usr/share/zoneinfo/right" -type d -empty -delete
rm -rf "$root/usr/share/zoneinfo/posix"
mount -t proc proc "$root/proc"
chroot "$root" systemd-sysusers /etc/sysusers.d/marquee.conf
# shellcheck disable=SC2086
chroot "$root" systemctl enable $ENABLE > /dev/null 2>&1
# The programs run on this system, or nobody gets it.
chroot "$root" /usr/local/bin/consul version > "$out/consul.version"
chroot "$root" /usr/local/bin/nomad version > "$out/nomad.version"
echo 'use POSIX; exit 0' | chroot "$root" perl
chroot "$root" /usr/lib/postgresql/15/bin/postgres --version > "$out/postgres.version"
chroot "$root" dpkg-query -W > "$out/packages"
umount "$root/proc"
# Every machine makes its own keys and identity when it starts first.
rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/resolv.conf" "$root/etc/hostname"
: > "$root/etc/resolv.conf"
: > "$root/etc/machine-id"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/log/*.log "$root"/var/log/apt
kernel=$(ls "$root/lib/modules")
mv "$root/boot/vmlinuz-$kernel" "$out/vmlinuz"
cp -r "$root/lib/modules/$kernel" "$out/modules"
rm -rf "$root"/boot/initrd*
truncate -s "$SIZE" "$out/disk.raw"
# Initialised here, where it costs nothing, instead of by every machine.
mkfs.ext4 -q -F -L root -m 1 -E lazy_itable_init=0,lazy_journal_init=0 -d "$root" "$out/disk.raw"
chmod 644 "$out/vmlinuz"
rm -rf "$root"
