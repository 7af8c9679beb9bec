#!/usr/bin/env bash
# images.sh BINARY JARS LIBRARY ENGINE: the images of compose.yaml from files of this machine, for where no registry is reached.
#
#   BINARY   bin/ctrloop
#   JARS     folder of Apache Kafka's jars (make kafka-jars)
#   LIBRARY  libchdb.so, the embedded ClickHouse (ctrloop setup)
#   ENGINE   the program that stands for a ClickHouse server (internal/warehouse/warehousetest/server)
#
# Each is put together from nothing: the program, and the shared libraries of this machine that it names. An image whose files
# are as they were is left alone. Needs a container engine (DOCKER_HOST), a JDK and glibc. The names of the images are in
# images.env, beside this file.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
binary=$1 jars=$2 library=$3 engine=$4
# shellcheck source=images.env
. "$here/images.env"
export DOCKER_BUILDKIT=0 # the builder that every engine has
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# copy ROOT FILE...: files of this machine with the shared libraries that they name, to the same places under ROOT.
copy() {
	local root=$1 file
	shift
	for file in "$@"; do
		echo "$file"
		ldd "$file" 2>/dev/null | grep -oE '/[^ ]+' || true # of a script: none
	done | sort -u | while read -r file; do
		mkdir -p "$root$(dirname "$file")"
		cp -L "$file" "$root$file"
	done
}

# found NAME...: where the loader finds these libraries.
found() {
	local name path
	for name in "$@"; do
		path=$(ldconfig -p | awk -v name="$name" '$1 == name && /x86-64/ { print $NF; exit }')
		[ -n "$path" ] || {
			echo "images: this machine has no $name: its C library must be glibc" >&2
			return 1
		}
		echo "$path"
	done
}

# fresh IMAGE FILE...: whether the image is there and was made from these files; sets $from, which the image is labelled with.
# Large files that others have checked already count by name, size and time.
fresh() {
	local image=$1
	shift
	from=$(stat -Lc '%n %s %Y' "$@" "$here/images.sh" | sha256sum | cut -c1-16)
	[ "$(docker image inspect -f '{{index .Config.Labels "ctrloop.from"}}' "$image" 2>/dev/null)" = "$from" ] || return
	echo "images: $image is as it was"
}

# glibc ROOT: what a base image has: the loader, the C library with the parts that were libraries of their own, names and users.
glibc() {
	local root=$1
	# shellcheck disable=SC2046 # one word a path
	copy "$root" /lib64/ld-linux-x86-64.so.2 $(found libc.so.6 libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1 libnss_files.so.2 libnss_dns.so.2 libresolv.so.2)
	mkdir -p "$root/etc" "$root/tmp"
	chmod 1777 "$root/tmp"
	printf 'root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n' >"$root/etc/passwd"
	echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
	[ ! -e /etc/ssl/certs/ca-certificates.crt ] || copy "$root" /etc/ssl/certs/ca-certificates.crt
}

# ctrloop: as the stage `service` of ../Dockerfile, whose base image cannot be had here.
ctrloop() {
	local to=$work/ctrloop
	fresh "$IMAGE_CTRLOOP" "$binary" "$here/Dockerfile" && return
	glibc "$to/root"
	mkdir -p "$to/data/artifacts"
	cp "$binary" "$to/ctrloop"
	docker build -q --label "ctrloop.from=$from" -f "$here/Dockerfile" -t "$IMAGE_CTRLOOP" "$to"
}

# clickhouse: no ClickHouse server, but the embedded engine of ctrloop behind the ports of one.
clickhouse() {
	local root=$work/clickhouse
	fresh "$IMAGE_CLICKHOUSE" "$engine" "$library" && return
	glibc "$root"
	mkdir -p "$root"/usr/{local/bin,local/lib,bin} "$root/var/lib/clickhouse"
	cp "$engine" "$root/usr/local/bin/clickhouse-stand-in"
	cp "$library" "$root/usr/local/lib/libchdb.so"
	ln -s ../local/bin/clickhouse-stand-in "$root/usr/bin/clickhouse-client"
	chown 65532:65532 "$root/var/lib/clickhouse"
	tar -C "$root" -c . | docker import -c "LABEL ctrloop.from=$from" -c 'ENTRYPOINT ["/usr/local/bin/clickhouse-stand-in"]' -c 'USER 65532:65532' \
		-c 'VOLUME /var/lib/clickhouse' -c 'EXPOSE 8123 9000' - "$IMAGE_CLICKHOUSE"
}

# kafka: Apache Kafka itself, from its jars on Maven, with a Java of the modules that it uses.
kafka() {
	local root=$work/kafka jdk file
	fresh "$IMAGE_KAFKA" "$jars"/*.jar "$here"/kafka/* && return
	jdk=$(dirname "$(dirname "$(readlink -f "$(command -v javac)")")")
	[ -x "$jdk/bin/jlink" ] || {
		echo "images: the Kafka image needs a JDK with jlink" >&2
		return 1
	}
	glibc "$root"
	mkdir -p "$root"/opt/kafka/{libs,config,bin} "$root"/{etc/kafka/docker,mnt/shared/config,var/lib/kafka/data,usr/bin}
	"$jdk/bin/jlink" --strip-debug --no-man-pages --no-header-files --compress=1 --output "$root/opt/java" --add-modules \
		java.base,java.logging,java.management,java.naming,java.security.jgss,java.security.sasl,java.sql,java.xml,java.desktop,jdk.management,jdk.unsupported,jdk.crypto.ec
	cp "$jars"/*.jar "$root/opt/kafka/libs/"
	install -m 644 "$here"/kafka/{log4j2.yaml,server.properties} "$root/etc/kafka/docker/"
	install -m 644 "$here/kafka/log4j2.yaml" "$root/etc/kafka/docker/tools-log4j2.yaml"
	install -m 755 "$here/kafka/run" "$root/etc/kafka/docker/"
	install -m 755 "$here/kafka/answers" "$root/opt/kafka/bin/kafka-broker-api-versions.sh"
	find "$root/opt/java" -name '*.so' | while read -r file; do
		# shellcheck disable=SC2046 # one word a path
		copy "$root" $(ldd "$file" 2>/dev/null | grep -oE '=> /(lib|usr)[^ ]+' | cut -c4-)
	done
	copy "$root" /bin/bash /bin/cat /bin/grep /bin/sleep /bin/ls /usr/bin/env
	mkdir -p "$root/bin"
	ln -sf bash "$root/bin/sh"
	echo 'appuser:x:1000:1000:appuser:/:/bin/sh' >>"$root/etc/passwd"
	chown -R 1000:1000 "$root/opt/kafka/config" "$root/var/lib/kafka/data"
	tar -C "$root" -c . | docker import -c "LABEL ctrloop.from=$from" -c 'ENV CLUSTER_ID=5L6g3nShT-eMCtK--X86sw' -c 'USER 1000:1000' -c 'VOLUME /var/lib/kafka/data' \
		-c 'EXPOSE 9092' -c 'CMD ["/etc/kafka/docker/run"]' - "$IMAGE_KAFKA"
}

for image in ${IMAGES:-kafka clickhouse ctrloop}; do
	echo "images: $image"
	"$image"
done
