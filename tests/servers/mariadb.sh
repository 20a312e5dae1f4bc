#!/bin/bash
# DIR PORT OPTION...: a server, and a client of it that stays, at a Unix socket: what comes
# through the fifo `session` it does, what it is answered goes to the file `answers`.
cd "$1" || exit 1
port=$2
shift 2
mariadbd --no-defaults --user=root --datadir="$PWD/data" --socket="$PWD/socket" --bind-address=127.0.0.1 --port="$port" \
    --pid-file="$PWD/pid" --innodb-buffer-pool-size=32M --innodb-log-file-size=8M --skip-name-resolve "$@" &
until mariadb --no-defaults -S socket -e 'select 1' >/dev/null 2>&1; do sleep 0.1; done
exec mariadb --no-defaults -S socket --unbuffered -nN <>session >>answers 2>&1
