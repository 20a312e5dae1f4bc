#!/bin/bash
# DIR PROGRAM...: runs them all at once; 0 if every one of them ends with 0.
dir=$1
shift
for program; do
    "$program" "$dir/ready-${program##*/}" "$dir/go" || touch "$dir/failed" &
done
wait
[ ! -e "$dir/failed" ]
