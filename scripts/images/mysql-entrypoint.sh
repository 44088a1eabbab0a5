#!/bin/sh
# Makes a database at the first start, as MYSQL_DATABASE, MYSQL_USER, MYSQL_PASSWORD and MYSQL_ROOT_PASSWORD say, then runs what it is told.
set -eu
data=/var/lib/mysql
if [ ! -d "$data/mysql" ]; then
    chown mysql:mysql "$data"
    mariadb-install-db --user=mysql --datadir="$data" --skip-test-db --auth-root-authentication-method=normal \
        --innodb-log-file-size=8M >/dev/null
    : "${MYSQL_DATABASE:=app}" "${MYSQL_USER:=app}" "${MYSQL_PASSWORD:=}" "${MYSQL_ROOT_PASSWORD:=}"
    # A quote would end the text that it stands in.
    case "$MYSQL_DATABASE$MYSQL_USER$MYSQL_PASSWORD$MYSQL_ROOT_PASSWORD" in
    *[\'\"\`\\]*)
        echo "names and passwords must not hold quotes or backslashes" >&2
        exit 1
        ;;
    esac
    mariadbd --user=mysql --datadir="$data" --bootstrap --innodb-log-file-size=8M <<SQL
FLUSH PRIVILEGES;
CREATE DATABASE IF NOT EXISTS \`$MYSQL_DATABASE\`;
CREATE USER IF NOT EXISTS '$MYSQL_USER'@'%' IDENTIFIED BY '$MYSQL_PASSWORD';
GRANT ALL ON \`$MYSQL_DATABASE\`.* TO '$MYSQL_USER'@'%';
ALTER USER 'root'@'localhost' IDENTIFIED BY '$MYSQL_ROOT_PASSWORD';
SQL
fi
mkdir -p /run/mysqld
chown mysql:mysql /run/mysqld
exec "$@" --user=mysql --datadir="$data" --bind-address='*' --innodb-log-file-size=8M --skip-name-resolve
