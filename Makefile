# Steward. `make run` starts the main job, `make test` proves it; `make help` lists the rest.
SHELL       := /bin/bash
.DEFAULT_GOAL := help
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS     := -s -w -X main.version=$(VERSION)
# One set of flags for build, vet and test, so that they share one build cache.
export GOFLAGS := -trimpath -buildvcs=false
export CGO_ENABLED ?= 0
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 20s
BENCHTIME   ?= 1s

.PHONY: help deb build run demo test test-components check generate bench fuzz clean image

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

build: ## build bin/steward, bin/steward-agent and bin/steward-bench
	@mkdir -p bin
	go build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

run: build ## build and start server, demo fleet and this machine as a device
	bin/steward demo

demo: build ## take this machine through a whole life, once
	bin/steward demo --once

test: build test-components ## install what the tests need (as root) and run all tests
	scripts/test

test-components:
	scripts/install-test-components

check: ## format, vet, linters, generated files, architecture
	scripts/check

generate: build ## write the files in api/ anew from the code
	bin/steward openapi > api/openapi.yaml
	bin/steward openapi --device-contract > api/device-contract.schema.json

image: build ## build the container image steward:latest (needs Docker)
	rm -rf dist/image && packaging/container/context dist/image
	docker build -t steward:latest dist/image

bench: build ## run the benchmarks of docs/benchmarks.md
	scripts/bench

fuzz: ## fuzz every parser for FUZZTIME each
	scripts/fuzz $(FUZZTIME)

deb: ## build the Debian packages into dist/
	packaging/build-deb dist

clean: ## remove what was built
	rm -rf bin dist
