#!/usr/bin/env bash
# engine.sh start|stop|env FOLDER: a container engine of the project's own, for the tests that need one, on Debian and as root.
#
# start installs Debian's engine where there is none and starts it with its data, its socket and its log in FOLDER. No
# service of the system is started and no firewall rule is written: published ports are reached over loopback, and containers
# have no way out. stop ends its containers and the engine, and removes FOLDER. Both may be repeated. env prints the variables
# with which programs use it, and nothing where it does not run: whatever engine the machine has counts then.
set -euo pipefail
command=${1:-} folder=${2:-}
packages=(docker.io runc iptables docker-compose)

say() { echo "container engine: $*"; }
fail() {
	echo "container engine: $*" >&2
	exit 1
}

case "$command:$folder" in
start:?* | stop:?* | env:?*) ;;
*) fail "usage: engine.sh start|stop|env FOLDER" ;;
esac
case "$folder" in /*) ;; *) folder=$PWD/$folder ;; esac
export DOCKER_HOST=unix://$folder/docker.sock

# A file of a machine that was switched off names a process that is another one today.
running() { [ -e "$folder/pid" ] && [ "$(cat "/proc/$(cat "$folder/pid")/comm" 2>/dev/null)" = dockerd ]; }
answers() { docker info >/dev/null 2>&1; }

install() {
	local missing=()
	command -v dockerd >/dev/null && command -v containerd >/dev/null && command -v runc >/dev/null && command -v iptables >/dev/null ||
		missing=("${packages[@]}")
	docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || missing+=(docker-compose)
	[ ${#missing[@]} = 0 ] && return
	command -v apt-get >/dev/null || fail "no dockerd here and no apt-get to install it: start an engine of your own and set DOCKER_HOST"
	say "installs Debian's packages ${missing[*]} (about 80 MB to download)"
	apt-get update -q >/dev/null
	# The package would start a service of the system by itself: policy-rc.d is how Debian is told not to.
	local policy=/usr/sbin/policy-rc.d
	[ -e "$policy" ] && policy= || printf '#!/bin/sh\nexit 101\n' >"$policy"
	[ -z "$policy" ] || { chmod +x "$policy" && trap 'rm -f '"$policy" EXIT; }
	DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" >/dev/null
}

start() {
	[ "$(uname -s)" = Linux ] && [ "$(id -u)" = 0 ] || fail "it needs root on Linux; without, start an engine of your own and set DOCKER_HOST"
	# A socket's path has at most 108 bytes, and the longest of the engine's is containerd's.
	[ ${#folder} -le 60 ] || fail "$folder is too long for the path of a socket (60 characters at most): check out the project nearer to /"
	install
	if running; then
		answers || fail "it runs and does not answer: $folder/log says why; engine.sh stop $folder ends it"
		say "runs already: DOCKER_HOST=$DOCKER_HOST"
		return
	fi
	mkdir -p "$folder"
	rm -f "$folder/pid"
	ip link show docker0 >/dev/null 2>&1 || touch "$folder/made-bridge"
	# Detached from make, so that Ctrl-C there does not end it.
	setsid dockerd --data-root "$folder/data" --exec-root "$folder/exec" -H "$DOCKER_HOST" -p "$folder/pid" \
		--iptables=false --ip6tables=false >"$folder/log" 2>&1 </dev/null &
	for _ in $(seq 150); do
		answers && break
		kill -0 $! 2>/dev/null || break
		sleep 0.2
	done
	answers || fail "it did not start: $(tail -n 3 "$folder/log")"
	say "started, version $(docker version -f '{{.Server.Version}}'), everything of it is in $folder"
	say "to use it by hand: export DOCKER_HOST=$DOCKER_HOST"
}

stop() {
	[ -d "$folder" ] || {
		say "there is none in $folder"
		return
	}
	if running; then
		if answers; then
			docker ps -aq | xargs -r docker rm -f -v >/dev/null
			docker network prune -f >/dev/null # the bridge of a network outlives the engine
		fi
		local pid
		pid=$(cat "$folder/pid")
		kill "$pid"
		for _ in $(seq 150); do
			kill -0 "$pid" 2>/dev/null || break
			sleep 0.2
		done
		kill -0 "$pid" 2>/dev/null && fail "process $pid does not end: $folder/log says why"
	fi
	[ ! -e "$folder/made-bridge" ] || ip link delete docker0 2>/dev/null || true
	rm -rf "$folder"
	say "stopped, $folder is removed"
}

env() {
	running || return 0
	echo "DOCKER_HOST=$DOCKER_HOST"
	# Of testcontainers-go. The container that cleans up after killed tests is an image that cannot be had; and ports are on
	# loopback, also where the file /.dockerenv makes a machine look like a container.
	echo TESTCONTAINERS_RYUK_DISABLED=true
	echo TESTCONTAINERS_HOST_OVERRIDE=127.0.0.1
}

"$command"
