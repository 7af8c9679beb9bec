# Everything a developer runs. `make` alone lists the targets.
#
# Needs Go 1.26, Python 3.11 or newer, and npm; no C compiler (except `race`) and no containers (except what says so).
# Downloads go into CTRLOOP_HOME (default: ctrloop in the user's cache folder) and are fetched once.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# Optimised by a CPU profile of the join (make pgo): docs/benchmarks.md has what it gains.
PGO := bench/ctrloop.pgo
GOBUILD := CGO_ENABLED=0 go build -trimpath -pgo $(PGO) -ldflags "-s -w -X main.version=$(VERSION)"
# Two test binaries at a time: each may start an engine (0.3 GB) and a broker.
GOTEST := go test -p 2 -timeout 20m
TRAINER := trainer-bridge/trainer
# Tools of development, pinned, built from source into an ignored folder.
TOOLS := $(CURDIR)/.cache/tools
GOLANGCI_LINT := $(TOOLS)/golangci-lint-2.15.0
BUF := $(TOOLS)/buf-1.75.0
PROTOC_GEN_GO := $(TOOLS)/protoc-gen-go-1.36.12
# The trainer's environment; evaluated where it is used, after `setup`.
PYTHON = $$(bin/ctrloop setup --python-path)
# Options of `make demo`, such as ARGS="--quick --seed 7".
ARGS ?=
FUZZTIME ?= 20s

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "%-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## bin/ctrloop
	$(GOBUILD) -o bin/ctrloop ./cmd/ctrloop

.PHONY: setup
setup: build ## fetch the embedded engine, the embedded broker and the Python environment (3.4 GB, once)
	bin/ctrloop setup

.PHONY: demo
demo: setup ## the whole loop on the built-in world, scoreboard in bin/demo.json
	bin/ctrloop demo --json bin/demo.json $(ARGS)

.PHONY: test
test: test-go test-python ## all tests, Go and Python

.PHONY: test-go
test-go: setup ## the tests in Go
	$(GOTEST) ./...

.PHONY: test-python
test-python: setup ## those of the trainer
	cd $(TRAINER) && OMP_NUM_THREADS=1 "$(PYTHON_FROM_TRAINER)" -m pytest

# As PYTHON, from inside the trainer's folder.
PYTHON_FROM_TRAINER = $$(../../bin/ctrloop setup --python-path)

.PHONY: lint
lint: setup $(GOLANGCI_LINT) ## golangci-lint, buf and ruff
	$(GOLANGCI_LINT) run
	cd internal/stream/kafkatest/container && go vet . # a module of its own
	cd $(TRAINER) && "$(PYTHON_FROM_TRAINER)" -m ruff check . && "$(PYTHON_FROM_TRAINER)" -m ruff format --check .

.PHONY: race
race: setup ## Go tests under the race detector (needs a C compiler)
	$(GOTEST) -race ./...

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME
	@go list -f '{{if .TestGoFiles}}{{.ImportPath}}{{end}}' ./... | while read -r pkg; do \
	  for target in $$(go test -list '^Fuzz' "$$pkg" | grep '^Fuzz' || true); do \
	    echo "== $$pkg $$target"; go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) "$$pkg"; \
	  done; \
	done

.PHONY: e2e
e2e: setup ## tests of the shipped binary only
	$(GOTEST) -count 1 ./e2e

.PHONY: review-inputs
review-inputs: setup ## every file that an outside review found to be read wrongly, held against the right value
	CTRLOOP_REVIEW_INPUTS=all $(GOTEST) -count 1 -run Review -v ./e2e

.PHONY: chaos
chaos: setup ## kill -9 of a whole demo at KILLS random moments (20), resumed and held against the oracle
	CTRLOOP_E2E_KILLS=$(or $(KILLS),20) go test -count 1 -timeout 90m -run DemoSurvivesKill -v ./e2e

.PHONY: chaos-join
chaos-join: ## the join under drawn faults, EVENTS events (10 million), held against the oracle; SEED= repeats a run
	CTRLOOP_CHAOS_EVENTS=$(or $(EVENTS),10000000) CTRLOOP_CHAOS_SEED=$(SEED) \
	  go test -count 1 -timeout 180m -run '^TestChaos$$' -v ./joiner

.PHONY: two
two: setup kafka-jars ## two processes of every role on a real broker, killed, stopped and continued for ROUNDS rounds (20); SEED= repeats a run
	CTRLOOP_TWO_ROUNDS=$(or $(ROUNDS),20) CTRLOOP_TWO_SEED=$(SEED) go test -count 1 -timeout 120m -run '^TestTwo$$' -v ./e2e/two

.PHONY: kafka-jars
kafka-jars: ## fetch Java and Apache Kafka's jars (78 MB, once)
	go run ./internal/stream/kafkatest/broker --fetch

.PHONY: kafka
kafka: ## run a real Kafka broker on 127.0.0.1:KAFKA_PORT (9092) until Ctrl-C
	go run ./internal/stream/kafkatest/broker --port $(or $(KAFKA_PORT),9092)

# -p 1: one real broker at a time is enough for two cores.
.PHONY: kafka-ring
kafka-ring: kafka-jars ## tests of stream and joiner against a real Kafka broker (minutes; RUN selects)
	CTRLOOP_TEST_KAFKA=real go test -p 1 -count 1 -timeout 40m $(if $(RUN),-run '$(RUN)') $(KAFKA_RING)

# Where ctrloop keeps its downloads.
DOWNLOADS = $${CTRLOOP_HOME:-$${XDG_CACHE_HOME:-$$HOME/.cache}/ctrloop}

.PHONY: ray-ring
ray-ring: ## training jobs on a real Ray head of this machine (384 MB from PyPI, once; two minutes)
	trainer-bridge/runner/ring/ray.sh "$(DOWNLOADS)"

.PHONY: slurm-ring
slurm-ring: ## training jobs on a real Slurm of this machine (root; installs Debian's packages; a minute)
	trainer-bridge/runner/ring/slurm.sh

# Nothing is downloaded into the project's own engine: its Kafka is the image that is built here.
.PHONY: kafka-ring-containers
kafka-ring-containers: kafka-jars ## the same against Apache Kafka in a container (make container-engine), without the tests that kill the broker
	@[ ! -S $(ENGINE)/docker.sock ] || env $(ENGINE_ENV) IMAGES=kafka deploy/local/images.sh - "$(KAFKA_JARS)" - -
	env $(ENGINE_ENV) $(LOCAL_KAFKA) CTRLOOP_TEST_KAFKA=container \
	  go test -p 1 -count 1 -timeout 40m $(if $(RUN),-run '$(RUN)') $(KAFKA_RING)

KAFKA_RING := ./internal/stream/... ./joiner

# A container engine of the project's own, for where there is none and no registry is reached: Debian's, in an ignored folder.
ENGINE := $(CURDIR)/.cache/container-engine
ENGINE_ENV = $$(deploy/local/engine.sh env $(ENGINE))
LOCAL_KAFKA = $$([ ! -S $(ENGINE)/docker.sock ] || sed -n 's/^IMAGE_KAFKA=/CTRLOOP_TEST_KAFKA_IMAGE=/p' deploy/local/images.env)
COMPOSE = $$(docker compose version >/dev/null 2>&1 && echo "docker compose" || echo docker-compose)
# Where kafka-jars has put them.
KAFKA_JARS = $$(go run ./internal/stream/kafkatest/broker --fetch)

.PHONY: container-engine
container-engine: ## install Debian's container engine and start it in .cache (Linux, root); stopped by container-engine-stop
	deploy/local/engine.sh start $(ENGINE)

.PHONY: container-engine-stop
container-engine-stop: ## end that engine, its containers, images and data
	deploy/local/engine.sh stop $(ENGINE)

.PHONY: container-images
container-images: build kafka-jars ## the images of deploy/compose.yaml from files of this machine (no registry; needs glibc and a JDK)
	bin/ctrloop setup --no-python
	$(GOBUILD) -o .cache/clickhouse-stand-in ./internal/warehouse/warehousetest/server
	env $(ENGINE_ENV) deploy/local/images.sh bin/ctrloop "$(KAFKA_JARS)" "$$(bin/ctrloop setup --engine-path)" .cache/clickhouse-stand-in

.PHONY: deploy-test
deploy-test: container-images ## bring deploy/compose.yaml up from those images: an event in, a label out, two services killed
	env $(ENGINE_ENV) CTRLOOP_TEST_COMPOSE="$(COMPOSE)" go test -count 1 -timeout 20m -v -run '^TestCompose' ./deploy

.PHONY: bench
bench: ## Go benchmarks
	go test -run '^$$' -bench . -benchmem ./...

.PHONY: bench-join
bench-join: build ## the join against its targets (ARGS="--kafka HOST:PORT" adds a real broker, --quick is a smoke test)
	bin/ctrloop bench join --json bin/bench-join.json $(ARGS)

# The folder of this checkout, which the profile names, becomes as many dots: the format has lengths.
.PHONY: pgo
pgo: build ## make the profile anew that the binary is built by, on a machine that does nothing else
	mkdir -p .cache/pgo
	bin/ctrloop bench join --only loop,embedded --profile .cache/pgo
	go tool pprof -proto -output .cache/pgo/both.pprof .cache/pgo/loop.pprof .cache/pgo/embedded.pprof
	gunzip -c .cache/pgo/both.pprof | LC_ALL=C sed "s#$(CURDIR)#$$(tr -c . . <<<'$(CURDIR)' | head -c $$(printf %s '$(CURDIR)' | wc -c))#g" | gzip -n9 > $(PGO)

.PHONY: bench-peers
bench-peers: build kafka-jars ## the join beside Kafka Streams on one real broker and one log (needs a JDK and Maven)
	bench/kafka-streams/run.sh .cache/kafka-streams --json bin/bench-peers.json $(ARGS)

.PHONY: bench-experiments
bench-experiments: build ## the statistics of rollouts against simulated users, 1,000 runs a row (minutes)
	bin/ctrloop bench experiments --json bin/bench-experiments.json $(ARGS)

.PHONY: docs
docs: build ## generated reference pages
	@mkdir -p .cache
	bin/ctrloop config docs --source . > .cache/config.md.new
	mv .cache/config.md.new docs/reference/config.md

.PHONY: generate
generate: $(BUF) $(PROTOC_GEN_GO) docs ## protobuf code and reference pages
	ln -sf $(PROTOC_GEN_GO) $(TOOLS)/protoc-gen-go
	PATH="$(TOOLS):$$PATH" $(BUF) generate

.PHONY: check-generated
check-generated: generate ui ## fail where a generated file is not what its source says
	git diff --exit-code -- docs/reference schemas/eventpb serving/console/ui/dist
	$(BUF) lint

.PHONY: ui
ui: ## build the console's assets (needs Node; the built ones are committed)
	@if [ -f serving/console/ui/package.json ]; then cd serving/console/ui && npm ci --ignore-scripts && npm run build; \
	else echo "the console has no build step: its assets are served as they are"; fi

.PHONY: release
release: ## Linux binaries with checksums, in bin/release
	@mkdir -p bin/release
	@for target in linux/amd64 linux/arm64; do \
	  out=bin/release/ctrloop-$(VERSION)-$${target/\//-}; echo "$$out"; \
	  GOOS=$${target%/*} GOARCH=$${target#*/} $(GOBUILD) -o "$$out" ./cmd/ctrloop; \
	done
	cd bin/release && sha256sum ctrloop-$(VERSION)-* > SHA256SUMS

.PHONY: clean
clean: ## remove what was built; downloads in CTRLOOP_HOME stay
	@[ ! -d $(ENGINE) ] || deploy/local/engine.sh stop $(ENGINE)
	rm -rf bin .cache

$(GOLANGCI_LINT):
	GOBIN=$(TOOLS)/.new go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
	mv $(TOOLS)/.new/golangci-lint $@

$(BUF):
	GOBIN=$(TOOLS)/.new go install github.com/bufbuild/buf/cmd/buf@v1.75.0
	mv $(TOOLS)/.new/buf $@

$(PROTOC_GEN_GO):
	GOBIN=$(TOOLS)/.new go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
	mv $(TOOLS)/.new/protoc-gen-go $@
