#!/bin/sh
# Runs a command where nothing of these types is mounted, as on other hosts:
# unshare -m tests/without.sh cgroup2,cgroup COMMAND...
types=$1
shift
mount --make-rprivate / && umount -a -t "$types" && exec "$@"
