#!/bin/sh
# Turns a Debian root file system into one that Vagrant and a trial can use. Runs in it, as root, once, when a box is made.
set -eu

useradd --create-home --shell /bin/bash vagrant
install -d -m 0700 -o vagrant -g vagrant /home/vagrant/.ssh
install -m 0600 -o vagrant -g vagrant /etc/seatrial/vagrant.pub /home/vagrant/.ssh/authorized_keys
rm -r /etc/seatrial
chmod 0440 /etc/sudoers.d/vagrant

echo seatrial >/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 seatrial\n' >/etc/hosts
printf '/dev/vda / ext4 errors=remount-ro 0 1\n' >/etc/fstab

# Each machine makes its own identity when it first starts.
rm -f /etc/ssh/ssh_host_*
: >/etc/machine-id

systemctl enable --quiet systemd-networkd.service seatrial-hostkey.service ssh.service containerd.service docker.service \
    steady.service steady.slice
# There is nothing to update from, and what runs by the clock would run into measurements.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer e2scrub_all.timer man-db.timer \
    systemd-networkd-wait-online.service; do
    systemctl mask --quiet "$unit"
done

rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/*.log /var/log/apt /var/cache/ldconfig
