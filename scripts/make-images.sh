#!/usr/bin/env bash
# Assembles images from Debian packages: DIR/NAME.tar, as `docker save` writes them. Does nothing for those that are there.
#
#   scripts/make-images.sh DIR [NAME]...       (default: busybox python)
#
# busybox, python              of the demo
# nginx, httpd                 web servers, of benchmarks and examples
# mysql, wordpress             MariaDB and WordPress with PHP, that read the environment their namesakes on Docker Hub read
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

[ $# -ge 1 ] || { echo "usage: $0 DIR [NAME]..." >&2; exit 2; }
directory=$1
shift
wanted=("$@")
[ ${#wanted[@]} -gt 0 ] || wanted=(busybox python)
mkdir -p "$directory"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Reproducible: the same packages give the same layers.
pack() {
    tar --create --file "$2" --directory "$1" --sort=name --mtime=@0 --numeric-owner --exclude=./dev .
}

busybox_layer() {
    [ -e "$work/busybox.layer" ] && return
    local root=$work/busybox
    mkdir -p "$root"/{bin,etc,home,root,tmp,usr/bin,usr/sbin,sbin,var/tmp}
    chmod 1777 "$root/tmp" "$root/var/tmp"
    install -m 0755 /bin/busybox "$root/bin/busybox"
    for applet in $(/bin/busybox --list); do
        [ "$applet" = busybox ] || ln -sf busybox "$root/bin/$applet"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\ndaemon:x:1:1::/:/bin/false\n' >"$root/etc/passwd"
    printf 'root:x:0:\ndaemon:x:1:\nusers:x:100:nobody\nnogroup:x:65534:\n' >"$root/etc/group"
    pack "$root" "$work/busybox.layer"
}

make_busybox() {
    busybox_layer
    "$here/assemble-image.py" "$directory/busybox.tar.new" busybox:latest "$work/busybox.layer" \
        --config '{"Cmd":["sh"],"Env":["PATH=/bin:/sbin:/usr/bin:/usr/sbin"]}'
    mv "$directory/busybox.tar.new" "$directory/busybox.tar"
}

# Extracted, not installed: no maintainer script runs, nothing of this machine comes along.
extract() {
    local name=$1 packages=$2
    mmdebstrap --quiet --variant=extract --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$work/$name" >&2
    rm -rf "$work/$name"/{dev,proc,sys,run,tmp,var/lib/apt,var/cache,etc/apt} "$work/$name"/usr/share/{doc,man,locale}
}

# NAME TAG CONFIG: what was extracted, on busybox.
assemble() {
    local name=$1
    pack "$work/$name" "$work/$name.layer"
    "$here/assemble-image.py" "$directory/$name.tar.new" "$name:$2" "$work/busybox.layer" "$work/$name.layer" --config "$3"
    mv "$directory/$name.tar.new" "$directory/$name.tar"
}

# Users of services, who come with maintainer scripts otherwise.
add_user() {
    local root=$work/$1 user=$2 id=$3
    mkdir -p "$root/etc"
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n%s:x:%d:%d::/:/bin/false\n' \
        "$user" "$id" "$id" >"$root/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n%s:x:%d:\n' "$user" "$id" >"$root/etc/group"
}

make_python() {
    busybox_layer
    extract python python3-minimal,libpython3-stdlib,python3
    ln -sf python3 "$work/python/usr/bin/python"
    assemble python latest '{"Cmd":["python3"],"Env":["PATH=/usr/bin:/bin:/usr/sbin:/sbin"]}'
}

make_nginx() {
    busybox_layer
    extract nginx nginx-light
    add_user nginx www-data 33
    mkdir -p "$work/nginx"/{run,var/log/nginx,var/lib/nginx,usr/share/nginx/html}
    install -m 0644 "$here/images/nginx.conf" "$work/nginx/etc/nginx/nginx.conf"
    echo 'it works' >"$work/nginx/usr/share/nginx/html/index.html"
    head -c 1024 /dev/zero | tr '\0' a >"$work/nginx/usr/share/nginx/html/1k"
    head -c 1048576 /dev/zero | tr '\0' a >"$work/nginx/usr/share/nginx/html/1m"
    assemble nginx latest '{"Cmd":["nginx","-g","daemon off;"],"Env":["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],"ExposedPorts":{"80/tcp":{}},"StopSignal":"SIGQUIT"}'
}

make_httpd() {
    busybox_layer
    extract httpd apache2-bin
    add_user httpd www-data 33
    rm -rf "$work/httpd"/usr/{share,lib/x86_64-linux-gnu}/perl* "$work/httpd/usr/lib/x86_64-linux-gnu/perl-base"
    mkdir -p "$work/httpd"/{run,var/www/html,var/log/apache2,etc/apache2}
    install -m 0644 "$here/images/httpd.conf" "$work/httpd/etc/apache2/apache2.conf"
    echo 'it works' >"$work/httpd/var/www/html/index.html"
    assemble httpd 2.4 '{"Cmd":["apache2","-DFOREGROUND"],"Env":["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],"ExposedPorts":{"80/tcp":{}},"StopSignal":"SIGWINCH"}'
}

make_mysql() {
    busybox_layer
    extract mysql mariadb-server-core,mariadb-client-core,mariadb-common
    add_user mysql mysql 999
    mkdir -p "$work/mysql"/{run/mysqld,var/lib/mysql,usr/local/bin}
    install -m 0755 "$here/images/mysql-entrypoint.sh" "$work/mysql/usr/local/bin/entrypoint"
    assemble mysql latest '{"Entrypoint":["entrypoint"],"Cmd":["mariadbd"],"Env":["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"ExposedPorts":{"3306/tcp":{}}}'
}

make_wordpress() {
    busybox_layer
    extract wordpress wordpress,php8.2-cli,php8.2-mysql
    local root=$work/wordpress
    add_user wordpress www-data 33
    # What only other programs of the packages use.
    find "$root/usr/bin" -type f ! -name php8.2 -delete
    rm -rf "$root"/usr/{sbin,lib/apache2,lib/x86_64-linux-gnu/perl*,share/perl*,share/apache2}
    rm -f "$root"/usr/lib/x86_64-linux-gnu/lib{x265,SvtAv1Enc,aom,dav1d,perl}.so*
    for extension in mysqlnd mysqli ctype tokenizer; do
        echo "extension=$extension.so"
    done >"$root/etc/php/8.2/cli/conf.d/10-wordpress.ini"
    mkdir -p "$root/etc/wordpress"
    install -m 0644 "$here/images/wordpress-config.php" "$root/etc/wordpress/config-default.php"
    ln -sf php8.2 "$root/usr/bin/php"
    # A web server of its own that takes several requests at a time.
    assemble wordpress latest '{"Cmd":["php","-S","0.0.0.0:80","-t","/usr/share/wordpress"],"Env":["PATH=/usr/sbin:/usr/bin:/sbin:/bin","PHP_CLI_SERVER_WORKERS=4"],"ExposedPorts":{"80/tcp":{}}}'
}

for image in "${wanted[@]}"; do
    [ -e "$directory/$image.tar" ] || "make_$image"
done
