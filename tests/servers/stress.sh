#!/bin/bash
# DIR STRESSOR...: stress-ng with these, until the file `go` is there; 0 if each of them has
# found what it expected.
cd "$1" || exit 1
shift
taskset -c 0 stress-ng --verify --timeout 0 --temp-path . --oom-avoid "$@" &
while [ ! -e go ]; do sleep 0.1; done
kill -INT $!
wait $!
