#!/usr/bin/env bash
# ray.sh FOLDER: holds the runner for Ray against a real one. It is installed (384 MB, once) into a folder of FOLDER that is named by
# ray.txt, pinned by hash. Ray listens on all addresses of the machine; where this user may make a network namespace, in one with
# loopback alone.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lock=$here/ray.txt
venv=$1/ray/$(sha256sum "$lock" | head -c 12)
if [ ! -e "$venv/.complete" ]; then
	rm -rf "$venv"
	mkdir -p "$(dirname "$venv")"
	if uv=$(command -v uv); then
		"$uv" venv --quiet --no-project --python "${CTRLOOP_PYTHON:-python3}" "$venv"
		"$uv" pip install --quiet --python "$venv/bin/python" --require-hashes --no-deps -r "$lock"
	else
		"${CTRLOOP_PYTHON:-python3}" -m venv "$venv"
		"$venv/bin/python" -m pip install --quiet --require-hashes --no-deps -r "$lock"
	fi
	touch "$venv/.complete"
fi
test=$(mktemp -d)
trap 'rm -rf "$test"' EXIT
(cd "$here/../.." && go test -c -o "$test/ring" .)
alone=()
if unshare --net true 2>/dev/null; then
	alone=(unshare --net -- python3 "$here/loopback.py")
else
	echo "no network namespace: Ray listens on all addresses of this machine until the test ends"
fi
cd "$here/../.." && CTRLOOP_TEST_RAY=$venv "${alone[@]}" "$test/ring" -test.run '^TestRayRing$' -test.v -test.timeout 30m
