#!/usr/bin/env bash
# run.sh BUILD [ctrloop bench peers options]: builds the Kafka Streams program into the folder BUILD, starts a real
# broker of its own, runs both sides on one log and stops the broker. `make bench-peers` calls it.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$1
shift
mkdir -p "$build"
build=$(cd "$build" && pwd)
if [ ! -e "$build/classes/bench/Join.class" ] || [ "$root/bench/kafka-streams/src/main/java/bench/Join.java" -nt "$build/classes/bench/Join.class" ]; then
  mvn -q -B -Dstyle.color=never -f "$root/bench/kafka-streams/pom.xml" -Dctrloop.build="$build" package \
    org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$build/lib"
fi
data=$(mktemp -d)
cd "$root"
go build -o "$build/broker" ./internal/stream/kafkatest/broker
"$build/broker" --dir "$data/kafka" >"$data/address" &
broker=$!
trap 'kill $broker 2>/dev/null; wait $broker 2>/dev/null || true; rm -rf "$data"' EXIT
for _ in $(seq 1200); do
  [ -s "$data/address" ] && break
  kill -0 $broker || exit 1
  sleep 0.1
done
read -r _ address _ pid <"$data/address"
bin/ctrloop bench peers --kafka "$address" --broker-pid "$pid" --streams "$build" "$@"
