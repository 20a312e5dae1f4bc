#!/bin/bash
# Children joined by pipes: each number goes through all of them, once and in order.
cd "$1" || exit 1
numbers() { local n=0; while :; do n=$((n + 1)); echo "$n"; sleep 0.005; done; }
numbers | while read -r n; do echo "$n"; done | while read -r n; do echo "$n" >>numbers; done &
trap 'echo usr1 >>signals' USR1
echo "$BASHPID" >shell
while :; do wait; done
