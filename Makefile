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
PACKAGES = $(shell go list $(addsuffix /...,$(MODULES)) | grep -v -x -E 'github.com/marquee-ads/marquee/e2e(/machine|/sidecar|/cluster|/vms)?')

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

# ENV names the environment; SERVERS, CLIENTS and MEMORY (MiB) are its own so far,
# and at first 3, 2 and enough. INSTALL=1 installs what the host lacks (as root).
# LIBVIRT_URI=qemu:///system takes the host's own libvirt instead of one in a box.
.PHONY: vms vms-destroy
vms: marquee ## Make virtual machines and a cluster of them; SERVERS=1 CLIENTS=1 for a small one
	@$(MARQUEE) vms --env $(or $(ENV),local) up $(if $(SERVERS),--servers $(SERVERS)) $(if $(CLIENTS),--clients $(CLIENTS)) \
	  $(if $(MEMORY),--memory $(MEMORY)) $(if $(LIBVIRT_URI),--libvirt-uri '$(LIBVIRT_URI)') $(if $(INSTALL),--install)
vms-destroy: marquee ## Remove them, and everything that belongs to them
	@$(MARQUEE) vms --env $(or $(ENV),local) destroy

.PHONY: deploy images
deploy: marquee ## Run what nomad-jobs/ says on a cluster: ENV=local for its machines, PRUNE=1 stops jobs it has no more
	@$(MARQUEE) jobs deploy $(if $(ENV),--env '$(ENV)') $(if $(PRUNE),--prune)
images: marquee ## Container images of the services in .marquee/images-oci; PUSH=registry.example.com/marquee sends them
	@$(MARQUEE) images $(if $(PUSH),--push '$(PUSH)')

REVISION = $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
.PHONY: marquee
marquee: ## Build the marquee command into .marquee/bin
	@CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-X main.revision=$(REVISION)" -o $(MARQUEE) ./platform/cmd/marquee

# --- change it ------------------------------------------------------------

.PHONY: generate check-generate
GENERATED := proto/gen proto/marquee $(wildcard services/*/postgres) bench/cmd/restgateway/gen docs/errors.md docs/authorisation.md
generate: marquee proto-deps ## Regenerate code from .proto and .sql files
	@$(MARQUEE) tools buf sqlc protoc-gen-go protoc-gen-go-grpc protoc-gen-grpc-gateway >/dev/null
	cd proto && buf format -w --path marquee && buf generate
	cd bench && buf generate
	@for f in services/*/sqlc.yaml; do echo "cd $${f%/*} && sqlc generate"; (cd $${f%/*} && sqlc generate); done
	go run ./platform/fault/cmd/errorsdoc > docs/errors.md
	cd proto && buf build -o - | go run ../platform/auth/cmd/authorisationdoc > ../docs/authorisation.md
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

# Terraform's tests run beside the others, and say what they have to say after
# them. -w: tests without what only debuggers read are linked faster.
.PHONY: test
test: marquee compiler ## Unit and integration tests with -race, on a real Postgres and Consul; terraform's
	@$(MARQUEE) tools gotestsum nomad consul postgres $(if $(TERRAFORM),,terraform) >/dev/null
	@said=.marquee/terraform-test.log; terraform/test.sh $(MARQUEE) $(TERRAFORM) >$$said 2>&1 & beside=$$!; trap 'kill $$beside 2>/dev/null || true' EXIT; \
	  failed=0; gotestsum --format pkgname-and-test-fails --format-hide-empty-pkg -- -race -ldflags=-w -timeout 15m $(PACKAGES) || failed=1; \
	  wait $$beside || failed=1; trap - EXIT; cat $$said; exit $$failed

# Which programs test terraform/: nothing takes terraform or tofu, 1.9 or newer,
# from PATH, and else builds OpenTofu.
TERRAFORM ?=
.PHONY: terraform-test
terraform-test: marquee ## Test the modules of terraform/, offline; TERRAFORM="terraform tofu" for both programs
	@terraform/test.sh $(MARQUEE) $(TERRAFORM)

# Two scenarios have clusters of their own, in namespaces. One cluster at a time: a
# second one starting takes the machine away from calls that must not fail.
E2E = $(if $(RUN),$(if $(findstring Sidecar,$(RUN)),./e2e/sidecar,$(if $(findstring Machines,$(RUN)),./e2e/machine,./e2e)),./e2e ./e2e/machine ./e2e/sidecar)
.PHONY: e2e
e2e: marquee ## The scenarios on a real Nomad + Consul cluster; RUN=Failover or RUN=Failover/OneAccount for one
	@$(MARQUEE) tools gotestsum >/dev/null
	@$(if $(RUN),go test -list '$(firstword $(subst /, ,$(RUN)))' $(E2E) | grep '^Test' >/dev/null || { echo 'make e2e: no scenario is called $(RUN); there are'; go test -list . ./e2e ./e2e/machine ./e2e/sidecar | grep '^Test'; exit 1; } >&2)
	gotestsum --format standard-verbose -- -count 1 -p 1 -timeout 25m $(if $(RUN),-run '$(RUN)') $(E2E)

.PHONY: e2e-cluster
e2e-cluster: marquee ## Kill, cut off and upgrade machines under load (root; about 10 minutes); RUN='KillMachine|Drain' for some scenarios
	@$(MARQUEE) tools gotestsum >/dev/null
	gotestsum --format standard-verbose -- -count 1 -timeout 35m -run 'TestCluster$(if $(RUN),/^($(RUN))$$)' ./e2e/cluster

.PHONY: e2e-vms
e2e-vms: marquee ## Terraform, virtual machines, a deployment, machines lost, replaced and added (about 20 minutes); SERVERS=3, RUN='LoseAMachine|LoseTheData' for some steps
	@$(MARQUEE) tools gotestsum >/dev/null
	MARQUEE_E2E_VMS=1 MARQUEE_E2E_SERVERS=$(SERVERS) MARQUEE_E2E_STEPS='$(RUN)' gotestsum --format standard-verbose -- -count 1 -timeout 30m ./e2e/vms

.PHONY: bench
bench: marquee ## Measure what the mesh, the gateway and displays cost; writes docs/performance.md (about 20 minutes); BENCH='-only orders' prints a part
	go run ./bench/cmd/bench $(BENCH)

.PHONY: fuzz
fuzz: ## Fuzz everything that parses bytes from outside, FUZZTIME each (default 30s)
	@for p in $$(grep -rlE '^func Fuzz' --include=*_test.go platform services e2e | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -hoE '^func Fuzz[A-Za-z0-9]+' $$p/*_test.go | cut -d' ' -f2); do \
	    echo "== $$p $$f"; go test ./$$p -run '^$$' -fuzz "^$$f$$" -fuzztime $${FUZZTIME:-30s}; done; done

.PHONY: clean
clean: marquee ## Take every cluster of this checkout down and remove all that was built
	@for c in .marquee/clusters/*/; do [ ! -d "$$c" ] || $(MARQUEE) --cluster "$$(basename "$$c")" down --wipe; done
	@for e in .marquee/environments/*/vms.json; do [ ! -f "$$e" ] || $(MARQUEE) vms --env "$$(basename "$$(dirname "$$e")")" destroy; done
	rm -rf .marquee proto/third_party
