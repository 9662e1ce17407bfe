# Everything a person does with this repository, a line each: make help.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

TOOLS   := $(CURDIR)/.marquee/tools
MARQUEE := .marquee/bin/marquee
export PATH := $(TOOLS):$(PATH)
export CGO_ENABLED ?= 1

# The modules of go.work, as folders; derived, not copied.
MODULES  = $(shell go list -m -f '{{.Dir}}')
# The e2e scenarios bring up a cluster: they run with make e2e, not make test.
PACKAGES = $(shell go list $(addsuffix /...,$(MODULES)) | grep -v -x -E 'github.com/marquee-ads/marquee/e2e(/sidecar)?')

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

# --- run it ---------------------------------------------------------------

.PHONY: up down status
up: marquee ## Bring the platform up on this machine and print its URLs
	@$(MARQUEE) up
down: marquee ## Take it down; data stays (marquee down --wipe removes it)
	@$(MARQUEE) down
status: marquee ## Jobs, instances, health and versions
	@$(MARQUEE) status

REVISION = $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
.PHONY: marquee
marquee: ## Build the marquee command into .marquee/bin
	@CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-X main.revision=$(REVISION)" -o $(MARQUEE) ./platform/cmd/marquee

# --- change it ------------------------------------------------------------

.PHONY: generate check-generate
GENERATED := proto/gen proto/marquee services/account/postgres bench/cmd/restgateway/gen docs/errors.md
generate: marquee proto-deps ## Regenerate code from .proto and .sql files
	@$(MARQUEE) tools buf sqlc protoc-gen-go protoc-gen-go-grpc protoc-gen-grpc-gateway >/dev/null
	cd proto && buf format -w --path marquee && buf generate
	cd bench && buf generate
	cd services/account && sqlc generate
	go run ./platform/fault/cmd/errorsdoc > docs/errors.md
check-generate: generate ## Fail when generated code is not what is committed
	@test -z "$$(git status --porcelain -- $(GENERATED))" || { git status --short -- $(GENERATED); git --no-pager diff --stat -- $(GENERATED); \
	  echo 'generated code is not what is committed: run make generate and commit the result' >&2; exit 1; }

.PHONY: proto-deps
proto-deps:
	@tools/protoc-gen/deps.sh

.PHONY: lint
lint: marquee proto-deps ## golangci-lint, buf lint, buf breaking
	@$(MARQUEE) tools golangci-lint buf >/dev/null
	cd proto && buf lint && buf format --diff --exit-code --path marquee
	cd proto && buf build -o -\#format=binpb | buf breaking -\#format=binpb --against released.binpb
	golangci-lint run $(addsuffix /...,$(MODULES))

.PHONY: release-api
release-api: marquee proto-deps ## Take the protos as they are for what callers rely on from now on (proto/released.binpb)
	@$(MARQUEE) tools buf >/dev/null
	cd proto && buf build --exclude-source-info -o released.binpb

.PHONY: tidy
tidy: ## go mod tidy in every module of the workspace
	@for m in $(MODULES); do (cd $$m && GOWORK=off go mod tidy); done

# --- prove it -------------------------------------------------------------

.PHONY: compiler
compiler: # the race detector is linked with C
	@command -v $${CC:-gcc} >/dev/null || { echo 'make test: the race detector needs a C compiler: apt-get install gcc libc6-dev (or set CC)' >&2; exit 1; }

.PHONY: test
test: marquee compiler ## Unit and integration tests with -race, on a real Postgres and Consul
	@$(MARQUEE) tools gotestsum nomad consul postgres >/dev/null
	gotestsum --format pkgname-and-test-fails --format-hide-empty-pkg -- -race -timeout 15m $(PACKAGES)

# The sidecar scenario has a cluster of its own.
E2E = $(if $(RUN),$(if $(findstring Sidecar,$(RUN)),./e2e/sidecar,./e2e),./e2e ./e2e/sidecar)
.PHONY: e2e
e2e: marquee ## The scenarios on a real Nomad + Consul cluster; RUN=Failover or RUN=Failover/OneAccount for one
	@$(MARQUEE) tools gotestsum >/dev/null
	@go test -list '$(or $(firstword $(subst /, ,$(RUN))),.)' $(E2E) | grep '^Test' >/dev/null || { echo 'make e2e: no scenario is called $(RUN); there are'; go test -list . ./e2e ./e2e/sidecar | grep '^Test'; exit 1; } >&2
	gotestsum --format standard-verbose -- -count 1 -p 1 -timeout 25m $(if $(RUN),-run '$(RUN)') $(E2E)

.PHONY: bench
bench: marquee ## Measure what the mesh and the gateway cost; writes docs/performance.md (about 8 minutes)
	go run ./bench/cmd/bench $(BENCH)

.PHONY: fuzz
fuzz: ## Fuzz everything that parses bytes from outside, FUZZTIME each (default 30s)
	@for p in $$(grep -rlE '^func Fuzz' --include=*_test.go platform services e2e | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -hoE '^func Fuzz[A-Za-z0-9]+' $$p/*_test.go | cut -d' ' -f2); do \
	    echo "== $$p $$f"; go test ./$$p -run '^$$' -fuzz "^$$f$$" -fuzztime $${FUZZTIME:-30s}; done; done

.PHONY: clean
clean: marquee ## Take every cluster of this checkout down and remove all that was built
	@for c in .marquee/clusters/*/; do [ ! -d "$$c" ] || $(MARQUEE) --cluster "$$(basename "$$c")" down --wipe; done
	rm -rf .marquee proto/third_party
