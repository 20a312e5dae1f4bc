#!/bin/sh
# Runs a command where no cgroup v2 is mounted, as on older hosts:
# unshare -m tests/without_v2.sh COMMAND...
mount --make-rprivate / && umount -a -t cgroup2 && exec "$@"
