#!/bin/sh
# Run Postgres with its log archived by pgBackRest, a minute's at most being at stake, and a backup
# each day. Where PGDATA is empty and the repository has a backup, that is restored first, up to the
# last piece of the log. The repository is said by pgBackRest's own variables, PGBACKREST_REPO1_…;
# DATABASE_PASSWORD is the password of the role and database `registry`.
set -eu

if [ "$(id -u)" = 0 ]; then # a volume that is new belongs to root
    mkdir -p "$PGDATA" "$PGHOST"
    chown postgres:postgres "$PGDATA" "$PGHOST"
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
cd /

export PGUSER=postgres PGDATABASE=postgres
export PGBACKREST_STANZA=registry
export PGBACKREST_PG1_PATH="$PGDATA" PGBACKREST_PG1_PORT="$PGPORT" PGBACKREST_PG1_SOCKET_PATH="$PGHOST"
export PGBACKREST_REPO1_TYPE=s3 PGBACKREST_REPO1_PATH="${PGBACKREST_REPO1_PATH:-/postgres}"
export PGBACKREST_REPO1_S3_URI_STYLE=path PGBACKREST_REPO1_CIPHER_TYPE=aes-256-cbc
export PGBACKREST_REPO1_RETENTION_FULL=2 PGBACKREST_START_FAST=y
export PGBACKREST_LOG_LEVEL_FILE=off PGBACKREST_LOG_LEVEL_CONSOLE=warn

chmod 700 "$PGDATA"
if [ ! -s "$PGDATA/PG_VERSION" ] || [ -e "$PGDATA/../restoring" ]; then
    info=$(pgbackrest info --output=json)
    case $info in
    *'"backup":[{'*)
        echo "the disk is empty: Postgres is restored from its backup"
        # Left behind where this is cut short: then it begins again.
        touch "$PGDATA/../restoring"
        pgbackrest restore --delta --type=default --archive-mode=preserve
        rm "$PGDATA/../restoring"
        ;;
    *'"code":1,'* | *'"code":2,'* | *'"code":3,'*) # no stanza, no backup, or a stanza with nothing in it
        echo "the disk is empty and there is no backup: a new Postgres is made"
        initdb --username=postgres --auth-local=trust --auth-host=scram-sha-256 --encoding=UTF8 --locale=C
        echo 'host registry registry all scram-sha-256' >> "$PGDATA/pg_hba.conf"
        ;;
    *) # an empty database must not take the place of one that cannot be seen
        echo "the disk is empty and the repository cannot be asked: $info" >&2
        exit 1
        ;;
    esac
fi

postgres -c listen_addresses="${LISTEN_ADDRESSES:-*}" -c port="$PGPORT" -c unix_socket_directories="$PGHOST" \
    -c wal_level=replica -c archive_mode=on -c archive_command='pgbackrest archive-push %p' \
    -c archive_timeout=60 &
server=$!
trap 'kill -INT $server' TERM INT

query() { psql --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 "$@"; }

# A restored one answers before it has read all of its log.
until [ "$(query --command='SELECT pg_is_in_recovery()' 2> /dev/null)" = f ]; do
    kill -0 $server
    sleep 0.2
done
query --set=password="$DATABASE_PASSWORD" << 'SQL'
SELECT 'CREATE ROLE registry LOGIN' WHERE to_regrole('registry') IS NULL \gexec
SELECT 'CREATE DATABASE registry OWNER registry'
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'registry') \gexec
ALTER ROLE registry PASSWORD :'password';
SQL

(
    set +e
    # A failure is in the log, and is tried again: it must not end Postgres.
    until pgbackrest stanza-create; do sleep 60; done
    while :; do
        # Of the last full backup, whose name is its time and an F.
        day=$(pgbackrest info --output=json | grep -o '"label":"[0-9]*-[0-9]*F"' | tail -n 1 | grep -o '[0-9]\{8\}')
        type=diff
        [ "${day:-0}" -gt "$(date --date='7 days ago' +%Y%m%d)" ] || type=full
        pgbackrest backup --type=$type
        echo "backup ($type) ended with status $?"
        sleep 86400
    done
) &
backups=$!

wait $server || true # a signal ends the first wait
wait $server || status=$?
kill $backups 2> /dev/null || true
exit ${status:-0}
