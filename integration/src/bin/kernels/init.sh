#!/bin/sh
# The first process of the machine: makes it usable, runs the suites, and turns it off.
# The console is for the kernel; what the host reads goes over the second serial line.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root CI=1 RUST_BACKTRACE=0
export NFTPROXY_BUILT=/built NFTPROXY_VM=1
. /settings

busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev 2>/dev/null
# What the suites read lies there, if they were built there.
busybox mkdir /kept
busybox cp -a /tmp/. /kept
busybox mount -t tmpfs tmp /tmp
busybox cp -a /kept/. /tmp
busybox ln -sf /proc/self/fd /dev/fd
busybox hostname node
busybox stty -F /dev/ttyS1 raw -echo 2>/dev/null
exec </dev/null >/dev/ttyS1 2>&1

ip link set lo up
echo "@ready $(busybox uname -r)"
for suite in $SUITES; do
	echo "@begin $suite"
	/built/deps/"$suite" $ARGUMENTS
	echo "@end $suite $?"
done
echo "@done"
busybox sleep 1
busybox poweroff -f
