#!/usr/bin/env bash
# slurm.sh: holds the runner for Slurm against a real one: a node, its controller and slurmrestd on this machine, all state in a
# temporary folder. Needs root. Where the daemons are missing it installs Debian's packages (40 MB), without starting their services.
set -euo pipefail
packages=(slurmctld slurmd slurmrestd slurm-client munge slurm-wlm-jwt-plugin)
[ "$(id -u)" = 0 ] || { echo "want root: munge and Slurm check who owns their keys"; exit 1; }
for program in slurmctld slurmd slurmrestd scontrol munged; do
	if ! command -v "$program" >/dev/null; then
		echo "installs ${packages[*]}"
		export DEBIAN_FRONTEND=noninteractive
		# Their services must not start: 101 is "not allowed" (policy-rc.d of Debian).
		[ -e /usr/sbin/policy-rc.d ] || {
			printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
			chmod +x /usr/sbin/policy-rc.d
			trap 'rm -f /usr/sbin/policy-rc.d' EXIT
		}
		apt-get update -q >/dev/null
		apt-get install -q -y --no-install-recommends "${packages[@]}" >/dev/null
		break
	fi
done
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
CTRLOOP_TEST_SLURM=1 go test -count 1 -timeout 30m -v -run '^TestSlurmRing$' .
